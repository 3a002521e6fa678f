"""Domains side by side: one batch of each per step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from fastmmd.train.evaluation import IGNORED
from fastmmd.train.shuffling import (
    EpochOrder,
    EpochShuffle,
    common_seed,
    first_epoch,
    new_seed,
    of_process,
)

__all__ = ["DomainPair", "check_not_negative", "known_labels", "training_loader"]


def known_labels(dataset: Any) -> Tensor | None:
    """The labels [n] of a data set that has them at hand, else None.

    They are the second tensor of a ``TensorDataset`` or the attribute ``targets`` or ``labels``, as
    in torchvision; subsets and concatenations of such data sets have theirs.
    """
    if isinstance(dataset, Subset):
        whole = known_labels(dataset.dataset)
        return None if whole is None else whole[torch.as_tensor(list(dataset.indices))]
    if isinstance(dataset, ConcatDataset):
        parts = [known_labels(part) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        return torch.cat(known) if len(known) == len(parts) else None
    if isinstance(dataset, TensorDataset):
        found: Any = dataset.tensors[1] if len(dataset.tensors) > 1 else None
    else:
        found = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if found is None:
        return None
    try:
        labels = torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError):
        return None
    return labels if labels.ndim == 1 and not labels.is_floating_point() else None


def training_loader(
    dataset: Dataset[Any],
    order: EpochOrder,
    batch_size: int,
    trainer: L.Trainer | None,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> DataLoader[Any]:
    """The samples of this process in that order, without an incomplete last batch.

    Of fewer samples than a batch holds it is one batch.
    """
    sampler = of_process(order, trainer)
    return DataLoader(
        dataset,
        batch_size=min(batch_size, len(sampler)),
        sampler=sampler,
        drop_last=True,
        num_workers=num_workers,
        generator=sampler.generator,
        collate_fn=collate_fn,
    )


def check_not_negative(**numbers: int) -> None:
    """Checks arguments that count something, or are a seed.

    Raises:
        ValueError: One is negative.
    """
    for name, value in numbers.items():
        if value < 0:
            raise ValueError(f"{name} must not be negative; got {value!r}")


class DomainPair(L.LightningDataModule):
    """Pairs a labelled source with an unlabelled target by Lightning's ``CombinedLoader``.

    A training batch is ``{"source": ..., "target": ...}``. An epoch is one pass over the longest of
    the domains; the others start again, newly shuffled (mode ``"max_size_cycle"``). Incomplete last
    batches are left out, so every MMD is over ``batch_size`` points of each domain.

    Args:
        source: Map-style dataset of ``(inputs, label)``, or a list of several; then ``"source"`` of
            a batch is a list.
        target: Map-style dataset of ``inputs``, or of tuples whose first entry is read.
        source_val: Labelled source to validate on.
        target_val: Labelled target to measure on; a label of -100 is one that is not known. Needs
            ``source_val``, which comes first.
        target_labelled: Labelled target to train on, if a few labels are known: the entry
            ``"target_labelled"`` of a batch, of ``batch_size`` samples or of all if there are
            fewer.
        batch_size: Samples per domain and step.
        num_workers: Worker processes per loader.
        seed: Seed of the shuffling. Each domain has a random stream of its own, so the order of one
            does not depend on the others, and each epoch its own, so a resumed training sees the
            batches of an uninterrupted one. Default: drawn from torch's global random numbers.
            Several processes share each domain out, by the seed of the first.
        collate_fn: Makes a batch of samples, as for ``torch.utils.data.DataLoader``.
        same_labels: Whether the domains must have the same classes; looked at where labels are
            known: in a ``TensorDataset``, or as ``targets`` or ``labels``.

    Raises:
        ValueError: A domain is empty, ``batch_size`` is less than 1 or larger than one of the
            training sets, ``num_workers`` or ``seed`` is negative, there is a ``target_val``
            without ``source_val``, or the classes of domains differ.
    """

    def __init__(
        self,
        source: Dataset[Any] | Sequence[Dataset[Any]],
        target: Dataset[Any],
        *,
        source_val: Dataset[Any] | None = None,
        target_val: Dataset[Any] | None = None,
        target_labelled: Dataset[Any] | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        same_labels: bool = True,
    ) -> None:
        super().__init__()
        check_not_negative(num_workers=num_workers, seed=seed or 0)
        self.several = isinstance(source, list | tuple)
        self.sources: list[Dataset[Any]] = list(source) if self.several else [source]  # type: ignore
        if not self.sources:
            raise ValueError("source must hold at least one dataset, got none")
        names = [f"source {i}" for i in range(len(self.sources))] if self.several else ["source"]
        domains = dict(zip(names, self.sources, strict=True)) | {"target": target}
        for name, dataset in domains.items():
            _check_size(name, dataset, batch_size)
        if target_labelled is not None:
            _check_size("target_labelled", target_labelled, 1)
        if target_val is not None and source_val is None:
            raise ValueError(
                "target_val is given but source_val is not: the source is validated first"
            )
        if same_labels:
            _check_classes({n: d for n, d in domains.items() if n != "target"}, exact=True)
            for name, labelled, exact in (
                ("target_val", target_val, True),
                ("target_labelled", target_labelled, False),  # a few may lack a class
            ):
                if labelled is not None:
                    pair = {names[0]: self.sources[0], name: labelled}
                    _check_classes(pair, exact, ignored=name == "target_val")
        self.source = source
        self.target = target
        self.source_val = source_val
        self.target_val = target_val
        self.target_labelled = target_labelled
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.collate_fn = collate_fn
        self.seed = new_seed() if seed is None else seed

    def train_dataloader(self) -> CombinedLoader:
        """One batch of each domain per step."""
        self.seed = common_seed(self.seed, self.trainer)
        # Streams: the first source 0, the target 1, then further sources, then labelled targets.
        first = self._train_loader(self.sources[0], 0)
        more = [self._train_loader(d, 2 + i) for i, d in enumerate(self.sources[1:])]
        loaders: dict[str, Any] = {
            "source": [first, *more] if self.several else first,
            "target": self._train_loader(self.target, 1),
        }
        if self.target_labelled is not None:
            stream = 1 + len(self.sources)
            loaders["target_labelled"] = self._train_loader(self.target_labelled, stream)
        return CombinedLoader(loaders, mode="max_size_cycle")

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """The source loader, then that of the target, as far as they are given."""
        return [
            self._in_order(dataset)
            for dataset in (self.source_val, self.target_val)
            if dataset is not None
        ]

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """As ``val_dataloader``."""
        return self.val_dataloader()

    def source_labels(self) -> Tensor | None:
        """The labels of all sources, where they are known."""
        return known_labels(ConcatDataset(self.sources))

    def predict_dataloader(self) -> DataLoader[Any]:
        """The target in its order."""
        return self._in_order(self.target)

    def _in_order(self, dataset: Dataset[Any]) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=self.collate_fn,
        )

    def _train_loader(self, dataset: Dataset[Any], stream: int) -> DataLoader[Any]:
        order = EpochShuffle(
            dataset,  # type: ignore[arg-type]
            self.seed,
            stream,
            epoch=first_epoch(self.trainer),
        )
        return training_loader(
            dataset, order, self.batch_size, self.trainer, self.num_workers, self.collate_fn
        )

    def state_dict(self) -> dict[str, Any]:
        """The seed, for the checkpoint."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The seed of the training that is resumed."""
        self.seed = state_dict["seed"]


def _check_size(name: str, dataset: Dataset[Any], batch_size: int) -> None:
    size = len(dataset)  # type: ignore[arg-type]
    if size == 0:
        raise ValueError(f"{name} must not be empty, got a dataset without samples")
    if not 1 <= batch_size <= size:
        raise ValueError(
            f"batch_size must lie between 1 and the {size} samples of {name}; got {batch_size!r}"
        )


def _check_classes(datasets: Mapping[str, Any], exact: bool, ignored: bool = False) -> None:
    """Raise if labels are known and a data set's classes are not those of the first, or among.

    With ``ignored`` the others may have the label -100, of a sample whose class is not known; then
    they may lack classes, too.
    """
    first: tuple[str, set[int]] | None = None
    for name, dataset in datasets.items():
        labels = known_labels(dataset)
        if labels is None:
            if first is None:
                return
            continue
        classes = set(labels.unique().tolist())
        if first is None:
            first = name, classes
            continue
        of, expected = first
        if ignored and IGNORED in classes:
            classes, exact = classes - {IGNORED}, False
        missing = sorted(expected - classes) if exact else []
        foreign = sorted(classes - expected)
        if missing or foreign:
            raise ValueError(
                f"{name} and {of} must have the same classes: {name} lacks {missing} and has"
                f" {foreign} besides; same_labels=False trains nevertheless"
            )
