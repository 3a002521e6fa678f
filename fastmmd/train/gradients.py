"""Gradients that are multiplied on their way back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["scale_gradients", "with_value"]


def scale_gradients(tensors: Sequence[Tensor], factor: float) -> list[Tensor]:
    """The same tensors; gradients that pass through them are multiplied by the factor."""
    if factor == 1 or not torch.is_grad_enabled():
        return list(tensors)
    return list(_ScaledGradients.apply(factor, *tensors))


def with_value(x: Tensor, value: Tensor, factor: float) -> Tensor:
    """The constant ``value``; its gradient, times the factor, is handed on to x of its shape."""
    out: Tensor = _WithValue.apply(x, value, factor)
    return out


class _ScaledGradients(torch.autograd.Function):
    # Of all at once: a call costs more than what it does.
    @staticmethod
    def forward(ctx: Any, factor: float, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.factor = factor
        ctx.set_materialize_grads(False)
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *(None if g is None else g * ctx.factor for g in grads)


class _WithValue(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, factor: float) -> Tensor:
        ctx.factor, ctx.dtype = factor, x.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return (grads[0] * ctx.factor).to(ctx.dtype), None, None
