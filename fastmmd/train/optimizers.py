"""Optimisers and learning-rate schedules by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import lightning as L
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["OPTIMIZERS", "SCHEDULES", "make_optimizer", "make_scheduler", "total_steps"]

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "rmsprop": torch.optim.RMSprop,
    "adamw": torch.optim.AdamW,
}

# Factor on the rate at a share of the steps that follow the warm-up.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda share: 1.0,
    "linear": lambda share: 1.0 - share,
    "cosine": lambda share: 0.5 * (1.0 + math.cos(math.pi * share)),
}


def make_optimizer(
    optimizer: str | Callable[..., Optimizer],
    groups: list[dict[str, Any]],
    options: Mapping[str, Any],
) -> Optimizer:
    """An optimiser of parameter groups, by name or by what is called with them."""
    if isinstance(optimizer, str):
        return OPTIMIZERS[optimizer](groups, **options)
    return optimizer(groups, **options)


def make_scheduler(
    scheduler: str | Callable[[Optimizer, int], Any],
    optimizer: Optimizer,
    steps: int,
    warmup: float,
) -> Any:
    """A schedule over so many steps, by name with a linear warm-up, or by what is called."""
    if not isinstance(scheduler, str):
        return scheduler(optimizer, steps)
    return LambdaLR(optimizer, partial(_factor, scheduler, steps, round(warmup * steps)))


def _factor(schedule: str, steps: int, warmup: int, step: int) -> float:
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return SCHEDULES[schedule](min(1.0, (step - warmup) / max(1, steps - warmup)))


def total_steps(trainer: L.Trainer) -> int:
    """Optimiser steps of a fit.

    Raises:
        ValueError: The trainer has no end (``max_epochs=-1``).
    """
    steps = trainer.estimated_stepping_batches
    if not math.isfinite(steps) or steps < 1:
        raise ValueError(
            "a schedule needs a training with an end: set max_epochs or max_steps of the Trainer"
            f" (max_epochs={trainer.max_epochs}, max_steps={trainer.max_steps})"
        )
    return int(steps)
