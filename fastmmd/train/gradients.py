"""Gradients that are multiplied on their way back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["scale_gradient", "with_value"]


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """The same tensor; the gradient that passes through it is multiplied by the factor."""
    if factor == 1 or not (x.requires_grad and torch.is_grad_enabled()):
        return x
    scaled: Tensor = _ScaledGradient.apply(x, factor)
    return scaled


def with_value(x: Tensor, value: Tensor, factor: float) -> Tensor:
    """The constant ``value``; its gradient, times the factor, is handed on to x of its shape."""
    out: Tensor = _WithValue.apply(x, value, factor)
    return out


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


class _WithValue(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, factor: float) -> Tensor:
        ctx.factor, ctx.dtype = factor, x.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return (grads[0] * ctx.factor).to(ctx.dtype), None, None
