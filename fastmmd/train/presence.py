"""Classes without a sample: known before a training, or found out by its first epoch."""

from __future__ import annotations

from collections.abc import Mapping
from operator import length_hint
from typing import Any

import lightning as L
import torch
from torch import Tensor

from fastmmd.train.batches import labelled_parts
from fastmmd.train.evaluation import IGNORED

__all__ = ["ClassesSeen", "absent_classes", "check_labels", "passes_over_all"]


class ClassesSeen:
    """Which of C classes had a label in the batches so far; nothing waits for a GPU."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.seen: Tensor | None = None  # [C + 1], 0 or 1; the last is of labels that are no class

    def add(self, labels: Tensor) -> None:
        """Takes in labels [n], int64."""
        if self.seen is None:
            self.seen = torch.zeros(self.num_classes + 1, device=labels.device)
        entries = labels.long().clamp(-1, self.num_classes).remainder(self.num_classes + 1)
        self.seen.index_fill_(0, entries, 1.0)


def passes_over_all(trainer: L.Trainer) -> bool:
    """Whether an epoch that is neither cut short nor resumed may show all labelled samples.

    It does not where a loader ends before its end, or draws fewer samples than its dataset has.
    """
    loader: Any = trainer.fit_loop._combined_loader
    shortened = loader._mode == "min_size" and len(loader.flattened) > 1
    shortened = shortened or any(map(_draws_fewer, labelled_parts(loader)))
    limit = trainer.limit_train_batches
    return isinstance(limit, float) and limit == 1.0 and not shortened


def _draws_fewer(loader: Any) -> bool:
    """Whether the sampler of a loader draws fewer samples at random than its dataset has."""
    size = length_hint(getattr(loader, "dataset", ()))
    sampler = getattr(loader, "sampler", None)
    sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", sampler)
    # Of a sampler of several processes num_samples is the share of one.
    drawn: int = getattr(sampler, "total_size", getattr(sampler, "num_samples", size))
    return drawn < size


def absent_classes(
    found: Mapping[str, ClassesSeen], trainer: L.Trainer, from_start: bool
) -> dict[str, list[int]] | None:
    """By task, the classes that no process has seen; of tasks of which any was seen.

    None of an epoch that was not whole: begun in its middle, as a resumed training does, or cut
    short by ``max_steps``. That its batches lack a class says nothing of the data. All processes
    must come here.

    Args:
        found: By task, what this process has seen.
        trainer: At the end of an epoch.
        from_start: Whether this process has seen the epoch from its start.
    """
    device = trainer.strategy.root_device
    partial_here = torch.tensor([float(not (from_start and trainer.is_last_batch))])
    empty = {task: torch.zeros(seen.num_classes + 1) for task, seen in found.items()}
    parts = [partial_here, *(empty[t] if s.seen is None else s.seen for t, s in found.items())]
    all_parts = torch.cat([part.to(device) for part in parts])
    whole_of = trainer.strategy.reduce(all_parts, reduce_op="sum").cpu()
    partial, *counts = whole_of.split([len(part) for part in parts])
    if partial:
        return None
    return {
        task: (count[:-1] == 0).nonzero()[:, 0].tolist()
        for task, count in zip(found, counts, strict=True)
        if count[:-1].any() and not count[:-1].all()
    }


def check_labels(labels: Tensor, num_classes: int, all_classes: bool, ignored: bool) -> None:
    """Checks the labels of all samples of a training, where they are known before it.

    Args:
        labels: [n], whole numbers.
        num_classes: Number of classes.
        all_classes: Whether each class needs a sample. Nothing is said of data without any label.
        ignored: Whether -100 is allowed, of a sample without a label.

    Raises:
        ValueError: A label is no class, or, with ``all_classes``, a class has no sample.
    """
    classes, expected = set(labels.unique().tolist()), set(range(num_classes))
    if ignored:
        classes -= {IGNORED}
    foreign = sorted(classes - expected)
    absent = sorted(expected - classes) if all_classes and classes else []
    troubles = [
        *([f"{foreign} are no classes, which are 0 to {num_classes - 1}"] if foreign else []),
        *([f"none is of the classes {absent}"] if absent else []),
    ]
    if troubles:
        way_out = "; all_classes=False trains without them" if absent else ""
        raise ValueError(f"the labels to train on do not fit: {'; '.join(troubles)}{way_out}")
