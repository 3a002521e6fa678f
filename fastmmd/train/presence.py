"""Classes without a sample: known before a training, or found out by its first epoch."""

from __future__ import annotations

from collections.abc import Mapping

import lightning as L
import torch
from torch import Tensor

__all__ = ["ClassesSeen", "absent_classes", "check_labels"]


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


def absent_classes(found: Mapping[str, ClassesSeen], trainer: L.Trainer) -> dict[str, list[int]]:
    """By task, the classes that no process has seen; of tasks of which any was seen.

    Nothing of an epoch that was cut short, by ``limit_train_batches`` or ``max_steps``: that its
    batches lack a class says nothing of the data.
    """
    whole = isinstance(trainer.limit_train_batches, float) and trainer.limit_train_batches == 1.0
    if not (whole and trainer.is_last_batch):
        return {}
    device = trainer.strategy.root_device
    empty = {task: torch.zeros(seen.num_classes + 1) for task, seen in found.items()}
    parts = [(empty[t] if s.seen is None else s.seen).to(device) for t, s in found.items()]
    whole_of = trainer.strategy.reduce(torch.cat(parts), reduce_op="sum").cpu()
    counts = whole_of.split([len(part) for part in parts])
    return {
        task: (count[:-1] == 0).nonzero()[:, 0].tolist()
        for task, count in zip(found, counts, strict=True)
        if count[:-1].any() and not count[:-1].all()
    }


def check_labels(labels: Tensor, num_classes: int, all_classes: bool) -> None:
    """Checks the labels of all samples of a training, where they are known before it.

    Raises:
        ValueError: A label is no class, or, with ``all_classes``, a class has no sample.
    """
    classes, expected = set(labels.unique().tolist()), set(range(num_classes))
    foreign = sorted(classes - expected)
    absent = sorted(expected - classes) if all_classes else []
    if foreign or absent:
        raise ValueError(
            f"the labels of the source must be the classes 0 to {num_classes - 1}, each with at"
            f" least one sample; none has {absent}, and there are {foreign} besides"
        )
