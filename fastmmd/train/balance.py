"""Classes that are not equally frequent: weights for the loss, or for the drawing of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    Dataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from fastmmd.train.batches import joined

__all__ = ["balanced_class_weights", "balanced_sampler", "labels_of"]


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


def balanced_sampler(
    labels: Tensor | Sequence[int],
    num_samples: int | None = None,
    *,
    seed: int | None = None,
) -> WeightedRandomSampler:
    """Draws samples with replacement, each class as often as any other.

    For a ``DataLoader``; with several processes Lightning shares its draws out among them.

    Args:
        labels: Classes [n] of the dataset, in its order.
        num_samples: Draws per epoch; default n.
        seed: Of the draws. Default: torch's global generator.

    Raises:
        ValueError: There are no labels, or one is negative.

    Example:
        >>> sampler = balanced_sampler([0] * 90 + [1] * 10, 1000, seed=0)
        >>> 450 < sum(index >= 90 for index in sampler) < 550
        True
    """
    labels = torch.as_tensor(labels)
    if labels.numel() == 0:
        raise ValueError("balanced_sampler needs labels; got none")
    if num_samples is not None and num_samples < 1:
        raise ValueError(f"num_samples must be at least 1; got {num_samples!r}")
    present, inverse, counts = labels.unique(return_inverse=True, return_counts=True)
    if present[0] < 0:
        raise ValueError(f"labels must not be negative; got {int(present[0])}")
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    weights = (1.0 / counts.double())[inverse]
    return WeightedRandomSampler(
        weights.tolist(), num_samples or len(labels), replacement=True, generator=generator
    )


def labels_of(dataset: Dataset[Any]) -> Any:
    """The labels of a dataset of ``(inputs, label)``, in its order.

    Read from ``labels`` or ``targets`` where the dataset has them (those of fastmmd and torchvision
    do), from the second tensor of a ``TensorDataset``, through ``Subset`` and ``ConcatDataset``;
    any other is gone through sample by sample.

    Returns:
        A tensor [n] or, where a label is a vector, [n, k]; a mapping of those where it is a mapping
        of tasks.

    Raises:
        ValueError: A sample has no label.
    """
    for attribute in ("labels", "targets"):
        labels = getattr(dataset, attribute, None)
        if labels is not None:
            return labels if isinstance(labels, Mapping) else torch.as_tensor(labels)
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) > 1:
        return dataset.tensors[1]
    if isinstance(dataset, Subset):
        labels, indices = labels_of(dataset.dataset), torch.as_tensor(dataset.indices)
        if isinstance(labels, Mapping):
            return {task: torch.as_tensor(of_task)[indices] for task, of_task in labels.items()}
        return labels[indices]
    if isinstance(dataset, ConcatDataset):
        return joined([labels_of(part) for part in dataset.datasets])
    samples = [dataset[i] for i in range(len(dataset))]  # type: ignore[arg-type]
    if any(not isinstance(sample, (tuple, list)) or len(sample) < 2 for sample in samples):
        raise ValueError(f"{type(dataset).__name__} has samples without labels")
    return default_collate([sample[1] for sample in samples])


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
