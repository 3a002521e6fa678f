"""Classes that are not equally frequent: weights for the loss, or for the drawing of samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, WeightedRandomSampler, default_collate

from fastmmd.train.batches import joined, labelled_parts
from fastmmd.train.data import check_not_negative, known_labels
from fastmmd.train.distributed import processes
from fastmmd.train.shuffling import ProcessShare, new_seed, seed_of

__all__ = [
    "BalancedOrder",
    "BalancedSampler",
    "balanced_class_weights",
    "labels_of",
    "training_labels",
]


def balanced_class_weights(labels: Tensor | Sequence[int], num_classes: int) -> Tensor:
    r"""Weights n / (C n_c), by which every class has the same share of the loss.

    Those of scikit-learn's ``class_weight="balanced"`` (King and Zeng, "Logistic Regression in Rare
    Events Data", 2001). Their mean over the samples is 1.

    Args:
        labels: Classes [n], whole numbers from 0.
        num_classes: Number C of classes.

    Returns:
        [C], float32.

    Raises:
        ValueError: A label is out of range, or a class has no sample.

    Example:
        >>> balanced_class_weights([0, 0, 0, 1], num_classes=2)
        tensor([0.6667, 2.0000])
    """
    counts = _counts(torch.as_tensor(labels), num_classes)
    return counts.sum() / (num_classes * counts.float())


class BalancedOrder(WeightedRandomSampler):
    """Draws with replacement, each class as often as any other, that follow from seed and epoch.

    Arguments and errors are those of :class:`BalancedSampler`.
    """

    def __init__(
        self, labels: Tensor | Sequence[int], num_samples: int | None, seed: int, epoch: int
    ) -> None:
        labels = torch.as_tensor(labels)
        if labels.numel() == 0:
            raise ValueError("BalancedSampler needs labels; got none")
        if num_samples is not None and num_samples < 1:
            raise ValueError(f"num_samples must be at least 1; got {num_samples!r}")
        check_not_negative(seed=seed, epoch=epoch)
        present, inverse, counts = labels.unique(return_inverse=True, return_counts=True)
        if present[0] < 0:
            raise ValueError(f"labels must not be negative; got {int(present[0])}")
        super().__init__(
            (1.0 / counts.double())[inverse].tolist(),
            num_samples or len(labels),
            replacement=True,
            generator=torch.Generator(),
        )
        self.seed = seed
        self.epoch = -1
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Begins an epoch; nothing for the current one."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.generator.manual_seed(seed_of(self.seed, epoch))


class BalancedSampler(ProcessShare[BalancedOrder]):
    """Draws samples with replacement, each class as often as any other.

    For a ``DataLoader``. The draws of an epoch follow from the seed and the epoch, so a resumed
    training sees those of an uninterrupted one; give ``generator`` to the loader as well. With
    several processes each has its share of the same draws, with Lightning's
    ``use_distributed_sampler`` or without.

    Args:
        labels: Classes [n] of the dataset, in its order.
        num_samples: Draws per epoch, of all processes together; default n.
        seed: Of the draws. Default: drawn from torch's global random numbers, of the first process.
        epoch: The epoch to begin with.

    Raises:
        ValueError: There are no labels, or one is negative, ``num_samples`` is less than 1, or
            ``seed`` or ``epoch`` is negative.

    Example:
        >>> sampler = BalancedSampler([0] * 90 + [1] * 10, 1000, seed=0)
        >>> 450 < sum(index >= 90 for index in sampler) < 550
        True
    """

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        num_samples: int | None = None,
        *,
        seed: int | None = None,
        epoch: int = 0,
    ) -> None:
        order = BalancedOrder(labels, num_samples, new_seed() if seed is None else seed, epoch)
        super().__init__(order, 1, 0)
        self._agreed = seed is not None

    def __len__(self) -> int:
        self._join()
        return super().__len__()

    def __iter__(self) -> Iterator[int]:
        self._join()
        if self.num_replicas > 1 and not self._agreed:
            first = [self.order.seed]
            dist.broadcast_object_list(first)
            self._agreed = True
            epoch, self.order.epoch = self.order.epoch, -1
            self.order.seed = first[0]
            self.set_epoch(epoch)
        return super().__iter__()

    def _join(self) -> None:
        """The share of this process, once there are several: they may be started later."""
        if processes() != self.num_replicas:
            self.share(processes(), dist.get_rank() if processes() > 1 else 0)


def labels_of(dataset: Dataset[Any]) -> Any:
    """The labels of a dataset of ``(inputs, label)``, in its order.

    Read from where the dataset has them at hand (``labels``, ``targets``, the second tensor of a
    ``TensorDataset``, also through ``Subset`` and ``ConcatDataset``), else sample by sample.

    Returns:
        A tensor [n] or, where a label is a vector, [n, k]; a mapping of those where it is a mapping
        of tasks.

    Raises:
        ValueError: A sample has no label.
    """
    known = known_labels(dataset)
    if known is not None:
        return known
    samples = [dataset[i] for i in range(len(dataset))]  # type: ignore[arg-type]
    if any(not isinstance(sample, (tuple, list)) or len(sample) < 2 for sample in samples):
        raise ValueError(f"{type(dataset).__name__} has samples without labels")
    return default_collate([sample[1] for sample in samples])


def training_labels(loader: Any) -> Any:
    """The labels of all that a loader, or a combination of them by domain, trains on.

    Raises:
        ValueError: As :func:`labels_of`.
        TypeError: They cannot be looked up before the training.
    """
    datasets: list[Any] = [getattr(part, "dataset", None) for part in labelled_parts(loader)]
    for dataset in datasets:
        countable = hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset)
        if known_labels(dataset) is None and not countable:
            raise TypeError(
                "class_weights='balanced' looks the labels up before the training, which needs a"
                f" dataset with a length and samples by index; got {type(dataset).__name__}: give"
                " the weights as numbers"
            )
    return joined([labels_of(dataset) for dataset in datasets])


def _counts(labels: Tensor, num_classes: int) -> Tensor:
    if labels.dim() != 1 or labels.is_floating_point():
        raise ValueError(
            f"labels must be whole numbers [n]; got {labels.dtype} of shape {list(labels.shape)}"
        )
    if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < num_classes):
        raise ValueError(
            f"labels must lie between 0 and num_classes - 1 = {num_classes - 1}; they lie between"
            f" {int(labels.min())} and {int(labels.max())}"
        )
    counts = torch.bincount(labels, minlength=num_classes)
    if (counts == 0).any():
        raise ValueError(
            f"class {int((counts == 0).nonzero()[0])} has no sample, so its weight is not defined"
        )
    return counts
