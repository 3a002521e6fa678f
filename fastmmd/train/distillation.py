"""What keeps a network near another one: its weights (L2-SP) or its outputs (distillation)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["L2SP", "Distillation", "distillation_loss", "teacher_names"]


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    r"""Divergence of the teacher's softened outputs from the student's.

    .. math:: T^2 \, \frac{1}{n} \sum_i \text{KL}(\sigma(t_i / T) \,\|\, \sigma(s_i / T)),

    σ the softmax. The gradient in s is T (σ(s/T) - σ(t/T)) / n; as T grows it tends to
    (s - t) / (n C), rows centred, so the factor T^2 keeps its size (Hinton, Vinyals and Dean,
    "Distilling the Knowledge in a Neural Network", 2015, section 2.1).

    Args:
        student: Logits [n, C].
        teacher: Logits [n, C]; no gradient goes there.
        temperature: T, positive.

    Returns:
        A scalar, at least 0 up to rounding.

    Raises:
        ValueError: The shapes differ, or T is not a positive, finite number.

    Example:
        >>> distillation_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
        tensor(0.)
    """
    _positive("temperature", temperature)
    if student.shape != teacher.shape:
        raise ValueError(
            "student and teacher must have logits of one shape; got"
            f" {list(student.shape)} and {list(teacher.shape)}"
        )
    return temperature**2 * F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher.detach() / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


class Distillation(nn.Module):
    """The objective (1 - weight) x hard + weight x soft: a teacher beside the labels.

    Soft is :func:`distillation_loss`, hard the task's own loss. The teacher stays in eval mode,
    gets no gradient, and is in no checkpoint of a FineTuner: it is given again.

    Args:
        teacher: Maps inputs to logits [n, C]; for a FineTuner of several tasks it may return a
            mapping of tasks to logits, for those tasks that it knows.
        temperature: T, positive.
        weight: Of the soft targets, in [0, 1]; at 1 no labels are needed.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(self, teacher: nn.Module, temperature: float = 2.0, weight: float = 0.5) -> None:
        super().__init__()
        _positive("temperature", temperature)
        if not 0.0 <= weight <= 1.0:
            raise ValueError(f"weight must lie in [0, 1]; got {weight!r}")
        self.teacher = teacher.requires_grad_(False)
        self.temperature = float(temperature)
        self.weight = float(weight)
        self.train()

    def train(self, mode: bool = True) -> Distillation:
        """Leaves the teacher in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, inputs: Any, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Soft losses of the tasks that the teacher knows, of the student's logits by task."""
        with torch.no_grad():
            taught = self.teacher(inputs)
        if isinstance(taught, Tensor):
            if len(outputs) > 1:
                raise ValueError(
                    "the teacher of several tasks must return a mapping of tasks to logits;"
                    f" got a tensor {list(taught.shape)} for {', '.join(outputs)}"
                )
            taught = dict.fromkeys(outputs, taught)
        return {
            task: distillation_loss(outputs[task], logits, self.temperature)
            for task, logits in taught.items()
            if task in outputs
        }


def teacher_names(module: nn.Module) -> set[str]:
    """The names of what is a teacher's in the state of a module."""
    return {
        f"{prefix}.teacher.{name}"
        for prefix, part in module.named_modules()
        if isinstance(part, Distillation)
        for name in part.teacher.state_dict()
    }


class L2SP(nn.Module):
    r"""A pull of the shared weights to where they started, and of new ones to 0.

    .. math:: \frac{\alpha}{2} \|w - w^0\|^2 + \frac{\beta}{2} \|v\|^2,

    w the weights of the backbone that train, w^0 their values when this was made, v those of the
    heads: the -SP penalty of Li, Grandvalet and Davoine, "Explicit Inductive Bias for Transfer
    Learning with Convolutional Networks", ICML 2018, equation (3). It takes the place of weight
    decay, which should be 0 beside it. The starting point is part of the checkpoint.

    Args:
        alpha: Strength of the pull to the start, not negative.
        beta: Strength of the pull to 0, not negative.

    Raises:
        ValueError: A strength is negative, infinite or NaN.
    """

    def __init__(self, alpha: float = 0.1, beta: float = 0.01) -> None:
        super().__init__()
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number of at least 0; got {value!r}")
        self.alpha = float(alpha)
        self.beta = float(beta)

    def start(self, backbone: nn.Module) -> None:
        """Takes the present weights of the backbone as the starting point."""
        for i, parameter in enumerate(backbone.parameters()):
            self.register_buffer(f"start_{i}", parameter.detach().clone())

    def forward(self, backbone: nn.Module, new: Iterable[nn.Parameter]) -> Tensor:
        """The penalty, a scalar; frozen weights have no part in it."""
        shared = [
            (parameter, getattr(self, f"start_{i}"))
            for i, parameter in enumerate(backbone.parameters())
            if parameter.requires_grad
        ]
        terms = [self.alpha / 2 * (w - start).square().sum() for w, start in shared]
        terms += [self.beta / 2 * v.square().sum() for v in new if v.requires_grad]
        return torch.stack(terms).sum() if terms else torch.zeros(())


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive, finite number; got {value!r}")
