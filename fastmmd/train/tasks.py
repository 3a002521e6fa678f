"""What a head learns: classes, several labels at once, or numbers; its loss and its metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmmd.train.balance import balanced_class_weights
from fastmmd.train.evaluation import IGNORED

__all__ = ["ONLY", "Kind", "Task", "TaskLoss", "as_outputs", "as_tasks"]

Kind = Literal["classification", "multilabel", "regression"]

ONLY = "task"  # the name of a single task, which the logs leave out


@dataclass(frozen=True)
class Task:
    """One of several tasks of a :class:`~fastmmd.train.FineTuner`.

    ====================  =======================  =========================  ====================
    kind                  labels                   loss                       metrics
    ====================  =======================  =========================  ====================
    ``"classification"``  [n], 0 to C - 1, or      cross-entropy              accuracy, macro F1
                          -100 for none
    ``"multilabel"``      [n, C] of 0 and 1        binary cross-entropy       accuracy, macro F1
    ``"regression"``      [n] or [n, C], numbers   mean squared error         mean absolute error,
                                                                              root mean square
    ====================  =======================  =========================  ====================

    Attributes:
        num_outputs: C: of classes, of labels, or of numbers.
        kind: One of these.
        weight: Factor of its loss in the sum over tasks, not negative.
        loss: Called as ``loss(outputs, labels)`` in place of that of the table.
        head: Maps features [n, d] to outputs [n, C]. Default: one linear layer.
        class_weights: C positive numbers, or ``"balanced"`` for those of
            :func:`~fastmmd.train.balanced_class_weights`, counted when a fit begins, for
            which the data set needs a length and samples by index. Of several
            labels: factors of the positive term, balanced ones being negatives / positives.

    Raises:
        ValueError: A number is out of range, the kind is unknown, there are class weights beside a
            loss or for numbers, or fewer or more than C.
    """

    num_outputs: int
    kind: Kind = "classification"
    weight: float = 1.0
    loss: Callable[[Tensor, Tensor], Tensor] | None = None
    head: nn.Module | None = None
    class_weights: Sequence[float] | Tensor | Literal["balanced"] | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}; got {self.kind!r}")
        least = 1 if self.kind == "regression" else 2
        if self.num_outputs < least:
            raise ValueError(
                f"num_classes (num_outputs) of {self.kind} must be at least {least};"
                f" got {self.num_outputs!r}"
            )
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"weight must be a finite number of at least 0; got {self.weight!r}")
        weights = self.class_weights
        if weights is None:
            return
        if self.loss is not None or self.kind == "regression":
            raise ValueError("class_weights are those of the loss for classes, which is not used")
        if isinstance(weights, str):
            if weights != "balanced":
                raise ValueError(f"class_weights must be numbers or 'balanced'; got {weights!r}")
            return
        numbers = torch.as_tensor(weights, dtype=torch.float32)
        if numbers.shape != (self.num_outputs,) or not (numbers > 0).all() or numbers.isinf().any():
            raise ValueError(
                f"class_weights must be {self.num_outputs} positive, finite numbers; got {weights}"
            )


class TaskLoss(nn.Module):
    """The loss of a task; its class weights are in the checkpoint."""

    class_weights: Tensor | None

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.kind = task.kind
        self.loss = task.loss
        self.num_outputs = task.num_outputs
        self.counted = isinstance(task.class_weights, str)
        weights = torch.ones(task.num_outputs) if self.counted else task.class_weights
        if weights is not None:
            weights = torch.as_tensor(weights, dtype=torch.float32).clone()
        self.register_buffer("class_weights", weights)

    def count(self, labels: Tensor) -> None:
        """Balanced class weights of all labels of a training.

        Raises:
            ValueError: A class has no sample.
        """
        if self.class_weights is None or not self.counted:
            return
        if self.kind == "classification":
            weights = balanced_class_weights(labels[labels != IGNORED], self.num_outputs)
        else:
            positives = labels.float().sum(dim=0)
            if not (positives > 0).all():
                label = int((positives == 0).nonzero()[0])
                raise ValueError(f"label {label} has no positive sample to balance")
            weights = (len(labels) - positives) / positives
        self.class_weights.copy_(weights)

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """A scalar, of outputs [n, C] and labels as the kind has them.

        The mean over the rows that have a label. It is 0 of classes where no row has one, of which
        the mean of torch is NaN.

        Raises:
            ValueError: A label on the CPU is out of range, or the shapes do not fit.
        """
        if self.kind == "classification":
            loss = self._of_classes(outputs, labels)
            # Only the value is NaN: rows without a label have the gradient 0 in any case. A branch
            # would wait for the GPU.
            return loss.masked_fill((labels == IGNORED).all(), 0.0)
        if self.loss is not None:
            return self.loss(outputs, labels)
        labels = as_outputs(labels, outputs)
        if self.kind == "multilabel":
            return F.binary_cross_entropy_with_logits(
                outputs, labels, pos_weight=self.class_weights
            )
        return F.mse_loss(outputs, labels)

    def share(self, labels: Tensor) -> Tensor | int:
        """What the mean of a batch counts for in that of several, by its labels alone.

        The number of rows that have one or, with class weights, the sum of theirs: the mean is then
        that of all rows, however they were divided into batches.
        """
        if self.kind != "classification":
            return len(labels)
        known = labels != IGNORED
        if self.loss is not None or self.class_weights is None:
            return known.sum()
        return (self.class_weights[labels.clamp(min=0)] * known).sum()

    def _of_classes(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if self.loss is not None:
            return self.loss(outputs, labels)
        check_classes(labels, self.num_outputs)
        weights = None if self.class_weights is None else self.class_weights.to(outputs.dtype)
        return F.cross_entropy(outputs, labels, weight=weights, ignore_index=IGNORED)


def as_tasks(
    num_classes: int | None, tasks: Mapping[str, Task] | None, single: dict[str, Any]
) -> dict[str, Task]:
    """Tasks by name: those given, or the only one, of what describes it.

    Raises:
        ValueError: Both or none of ``num_classes`` and ``tasks`` are given, what describes a single
            task is given beside several, or a name cannot be one of a module.
    """
    if (num_classes is None) == (tasks is None):
        raise ValueError("FineTuner takes either num_classes or tasks")
    if tasks is None:
        return {ONLY: Task(num_classes or 0, **single)}
    given = [name for name, value in single.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)} of several tasks: an argument of each Task")
    # Names of attributes of a ModuleDict cannot be keys of one.
    if not tasks or any(
        not name.isidentifier()
        or name == ONLY
        or name.startswith("target_")  # as what is logged of a second loader
        or hasattr(nn.ModuleDict, name)
        for name in tasks
    ):
        raise ValueError(
            f"tasks must have names that are identifiers, and not {ONLY!r}, one of a module's"
            f" attributes, or one that begins with 'target_'; got {list(tasks)}"
        )
    return dict(tasks)


def check_classes(labels: Tensor, num_classes: int) -> None:
    """Raises ValueError for labels that are no classes; of CUDA tensors only the dtype is read."""
    if labels.is_floating_point() or labels.dim() != 1:
        raise ValueError(
            f"labels of classes must be whole numbers [n]; got {labels.dtype} of shape"
            f" {list(labels.shape)}"
        )
    if labels.device.type == "cpu" and len(labels):
        low, high = (int(bound) for bound in labels.aminmax())
        if low >= 0 and high < num_classes:  # all that a step of most trainings has to look at
            return
        wrong = (labels >= num_classes) | ((labels < 0) & (labels != IGNORED))
        if wrong.any():
            raise ValueError(
                f"labels must lie between 0 and num_classes - 1 = {num_classes - 1}; got"
                f" {int(labels[wrong][0])}"
            )


def as_outputs(labels: Tensor, outputs: Tensor) -> Tensor:
    """Labels as numbers of the shape and dtype of the outputs.

    Raises:
        ValueError: They are not as many.
    """
    if labels.numel() != outputs.numel() or len(labels) != len(outputs):
        raise ValueError(
            f"labels must be of the shape of the outputs, {list(outputs.shape)}; got"
            f" {list(labels.shape)}"
        )
    return labels.to(outputs).view_as(outputs)
