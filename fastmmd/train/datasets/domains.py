"""What all data modules share: domains with classes, their split, and their loaders."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from fastmmd.compare.reading import InputError, some
from fastmmd.train.balance import BalancedOrder, labels_of
from fastmmd.train.data import DomainPair, check_not_negative, training_loader
from fastmmd.train.shuffling import EpochOrder, EpochShuffle, first_epoch, seed_of

__all__ = ["Domain", "DomainData", "Samples", "class_numbers", "source_names"]

VAL_STREAM, LABELLED_STREAM = 1, 2  # of the seed, apart from that of the order of training


class Samples(Dataset[Any]):
    """Inputs in memory, and their classes.

    Attributes:
        inputs: A tensor [n, ...], or a mapping of such tensors.
        labels: [n], numbers of classes, or None if they are not known.
    """

    def __init__(self, inputs: Tensor | Mapping[str, Tensor], labels: Tensor | None) -> None:
        self.inputs = inputs
        self.labels = labels
        self.size = len(inputs if isinstance(inputs, Tensor) else next(iter(inputs.values())))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        if isinstance(self.inputs, Tensor):
            inputs: Any = self.inputs[index]
        else:
            inputs = {name: values[index] for name, values in self.inputs.items()}
        return inputs if self.labels is None else (inputs, int(self.labels[index]))


@dataclass(frozen=True)
class Domain:
    """A domain as its files have it.

    Attributes:
        name: As the user wrote it.
        classes: Names of the classes, in the order of their numbers.
        train: What is trained on, maybe augmented.
        evaluate: The same samples, as they are measured.
        test: Others to measure on, where the publishers have set them apart.
    """

    name: str
    classes: tuple[str, ...]
    train: Dataset[Any]
    evaluate: Dataset[Any]
    test: Dataset[Any] | None = None

    @property
    def labels(self) -> Tensor | None:
        """[n], or None if they are not known."""
        return getattr(self.train, "labels", None)

    @property
    def present(self) -> set[str]:
        """Names of the classes that have samples."""
        return set() if self.labels is None else {self.classes[i] for i in self.labels.unique()}


class DomainData(L.LightningDataModule):
    """A labelled source and, maybe, a target of the same classes.

    With a target, batches are those of :class:`~fastmmd.train.DomainPair`; without, they are
    ``(inputs, labels)``, of all sources together if there are several. Target labels, where files
    have them, are for measuring only, but for the few of ``target_labels_per_class``.

    Validation and test take the source's part that was set apart, then the target; prediction takes
    the target's inputs, or the source's if there is no target.

    Args:
        batch_size: Samples per domain and step.
        val_share: Share of each class of the source that is set apart to validate on, where its
            publishers have set none apart; 0 for none.
        target_labels_per_class: So many target samples of each class are trained on with their
            labels (``"target_labelled"`` of a batch), and neither measured nor predicted.
        balanced: Draw the classes of the source equally often, with replacement.
        same_labels: Whether every domain must have all classes of the first source. Classes that
            it does not have are an error in any case.
        num_workers: Worker processes per loader.
        seed: Of the split and of the order of samples.

    Attributes:
        sources: The domains with labels, once ``setup`` has read them.
        target: The other one, or None.

    Raises:
        ValueError: A number is out of range.
    """

    sources: list[Domain]
    target: Domain | None

    def __init__(
        self,
        *,
        batch_size: int = 32,
        val_share: float = 0.2,
        target_labels_per_class: int = 0,
        balanced: bool = False,
        same_labels: bool = True,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size!r}")
        if not 0.0 <= val_share < 1.0:
            raise ValueError(f"val_share must lie in [0, 1); got {val_share!r}")
        check_not_negative(
            target_labels_per_class=target_labels_per_class, seed=seed, num_workers=num_workers
        )
        self.batch_size = batch_size
        self.val_share = val_share
        self.target_labels_per_class = target_labels_per_class
        self.balanced = balanced
        self.same_labels = same_labels
        self.num_workers = num_workers
        self.seed = seed
        self._is_read = False

    @abstractmethod
    def read(self) -> tuple[list[Domain], Domain | None]:
        """Reads the files: the sources, and the target if there is one."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers; reads the files if need be."""
        self.setup("fit")
        return self.sources[0].classes

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def setup(self, stage: str) -> None:
        """Reads the files, once, and splits.

        Raises:
            ValueError: A file or folder is missing, damaged or not what it should be (InputError),
                a domain is empty, or its classes are not those of the first source.
        """
        if self._is_read:
            return
        self.sources, self.target = self.read()
        everything = [*self.sources, *([self.target] if self.target else [])]
        for domain in everything:
            if len(domain.train) == 0:  # type: ignore[arg-type]
                raise InputError(f"the domain {domain.name} is empty")
            if domain.labels is not None:
                _check_classes(self.sources[0], domain, self.same_labels)
        if any(source.labels is None for source in self.sources):
            raise InputError(f"the source {self.sources[0].name} has no labels to learn from")
        self._split_sources()
        self._split_target()
        self._is_read = True

    def train_dataloader(self) -> Any:
        """Batches to train on."""
        self.setup("fit")
        if self.target is None:
            whole = self.source_train[0]
            if len(self.source_train) > 1:
                whole = ConcatDataset(self.source_train)
            return self._source_loader(whole, 0)
        pair = DomainPair(
            self.source_train if len(self.source_train) > 1 else self.source_train[0],
            Unlabelled(self.target_train),
            target_labelled=self.target_labelled,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            seed=self.seed,
            same_labels=False,  # they have been compared by name
        )
        pair.trainer = self.trainer
        combined = pair.train_dataloader()
        if not self.balanced:
            return combined
        sources = [self._source_loader(part, i) for i, part in enumerate(self.source_train)]
        loaders = combined.iterables | {"source": sources if len(sources) > 1 else sources[0]}
        return CombinedLoader(loaders, mode="max_size_cycle")

    def source_labels(self) -> Tensor:
        """The labels of all sources that are trained on, for the trainer to check."""
        self.setup("fit")
        return torch.cat([labels_of(part) for part in self.source_train])

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """The source's part that was set apart, then the target if it has labels."""
        self.setup("validate")
        if not self.source_val:
            return []
        whole = self.source_val[0] if len(self.source_val) == 1 else ConcatDataset(self.source_val)
        measured = [whole]
        if self.target_test is not None and self.target is not None:
            measured += [self.target_test] if self.target.labels is not None else []
        return [self._loader(part) for part in measured]

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """As ``val_dataloader``."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[Any]:
        """The target, or the source if there is none."""
        self.setup("predict")
        if self.target_test is not None:
            return self._loader(self.target_test)
        return self._loader(ConcatDataset([source.evaluate for source in self.sources]))

    def predict_paths(self) -> list[Path] | None:
        """The files of the samples of ``predict_dataloader``, if each has a file of its own."""
        return _paths(self.predict_dataloader().dataset)

    def _split_sources(self) -> None:
        self.source_train: list[Dataset[Any]] = []
        self.source_val: list[Dataset[Any]] = []
        for i, source in enumerate(self.sources):
            if source.test is not None:
                self.source_train.append(source.train)
                self.source_val.append(source.test)
                continue
            labels = labels_of(source.train)
            counts = torch.bincount(labels, minlength=len(source.classes))
            takes = (counts * self.val_share).round().long().clamp(max=(counts - 1).clamp(min=0))
            apart, rest = _pick(labels, takes, seed_of(self.seed, VAL_STREAM, i))
            self.source_train.append(Subset(source.train, rest))
            if apart:
                self.source_val.append(Subset(source.evaluate, apart))

    def _split_target(self) -> None:
        self.target_labelled: Dataset[Any] | None = None
        self.target_train: Dataset[Any] | None = None
        self.target_test: Dataset[Any] | None = None
        target, count = self.target, self.target_labels_per_class
        if target is None:
            if count:
                raise ValueError("target_labels_per_class is given, and there is no target")
            return
        self.target_train = target.train
        self.target_test = target.evaluate if target.test is None else target.test
        if not count:
            return
        if target.labels is None:
            raise InputError(f"target_labels_per_class: the target {target.name} has no labels")
        counts = torch.bincount(target.labels, minlength=len(target.classes))
        if int(counts.min()) <= count:
            rare = target.classes[int(counts.argmin())]
            raise InputError(
                f"target_labels_per_class: {target.name} has {int(counts.min())} samples of class"
                f" {rare!r}, of which {count} cannot be set apart"
            )
        takes = torch.full_like(counts, count)
        few, rest = _pick(target.labels, takes, seed_of(self.seed, LABELLED_STREAM))
        self.target_labelled = Subset(target.train, few)
        self.target_train = Subset(target.train, rest)
        if target.test is None:
            self.target_test = Subset(target.evaluate, rest)

    def _source_loader(self, dataset: Dataset[Any], stream: int) -> DataLoader[Any]:
        epoch = first_epoch(self.trainer)
        order: EpochOrder
        if self.balanced:
            order = BalancedOrder(labels_of(dataset), None, seed_of(self.seed, stream), epoch)
        else:
            order = EpochShuffle(dataset, self.seed, stream, epoch=epoch)  # type: ignore[arg-type]
        return training_loader(dataset, order, self.batch_size, self.trainer, self.num_workers)

    def _loader(self, dataset: Dataset[Any]) -> DataLoader[Any]:
        return DataLoader(dataset, batch_size=self.batch_size, num_workers=self.num_workers)


class Unlabelled(Dataset[Any]):
    """The inputs of a dataset; no label leaves it."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[index]
        return item[0] if isinstance(item, tuple) else item


def source_names(source: str | Sequence[str], target: str | None) -> list[str]:
    """The names of the sources, which are one or several.

    Raises:
        ValueError: There is none, one of them is named twice, or the target is one of them.
    """
    names = [source] if isinstance(source, str) else list(source)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"source must name different domains, at least one; got {source!r}")
    if target in names:
        raise ValueError(f"target must be another domain than source; both have {target!r}")
    return names


def class_numbers(names: Sequence[str], classes: Sequence[str]) -> Tensor:
    """Numbers [n] of classes by name."""
    number = {name: i for i, name in enumerate(classes)}
    return torch.tensor([number[name] for name in names], dtype=torch.long)


def _check_classes(first: Domain, domain: Domain, same: bool) -> None:
    lacking = [name for name in first.classes if name not in domain.present]
    foreign = [name for name in domain.classes if name not in first.classes]
    if foreign or (lacking and same):
        raise InputError(
            f"{first.name} and {domain.name} must have the same classes: {domain.name} lacks"
            f" {some(lacking)} and has {some(foreign)} besides"
        )


def _paths(dataset: Any) -> list[Path] | None:
    if isinstance(dataset, Subset):
        whole = _paths(dataset.dataset)
        return None if whole is None else [whole[i] for i in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [_paths(part) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        return list(chain(*known)) if len(known) == len(parts) else None
    return getattr(dataset, "paths", None)


def _pick(labels: Tensor, takes: Tensor, seed: int) -> tuple[list[int], list[int]]:
    """So many samples of each class by chance, and the others, each in their order."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    taken = torch.zeros(len(labels), dtype=torch.bool)
    for number, count in enumerate(takes.tolist()):
        taken[order[labels[order] == number][:count]] = True
    return taken.nonzero()[:, 0].tolist(), (~taken).nonzero()[:, 0].tolist()
