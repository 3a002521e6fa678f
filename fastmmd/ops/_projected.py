"""The MMD of linear images of two samples, and its gradients to the map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmmd.checks import is_plain
from fastmmd.ops._core import CPU, cut
from fastmmd.ops._mmd2 import mmd2, run
from fastmmd.terms import Terms

ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda h: h,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": torch.nn.functional.gelu,
}
_DTYPES = (torch.float32, torch.float64)


def projected_mmd2(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    terms: Terms,
    estimator: int,
    size: int,
) -> Tensor:
    """``mmd2`` of ``act(x @ weight.T + bias)`` and of y's images, differentiable.

    On the CPU both samples go through the map, the kernel and back to the gradient of their images
    in one node of the graph, whose backward is the two products of a linear layer.

    Args:
        x: [n, d].
        y: [m, d].
        weight: [p, d].
        bias: [p].
        activation: a key of ACTIVATIONS.
        x_weights: [n].
        y_weights: [m].
        terms: the kernel.
        estimator: its number in :mod:`fastmmd.checks`.
        size: points of a block, or number of superdiagonals.

    Returns:
        A scalar: float64 for float64 inputs, float32 otherwise.
    """
    families, scales, coefficients, shapes, units, factors = terms
    inputs = (x, y, weight, bias, x_weights, y_weights, scales, coefficients)
    short = (
        x.is_cpu
        and is_plain(*inputs)
        and x.dtype in _DTYPES
        and weight.dtype == x.dtype
        and not torch.is_autocast_enabled("cpu")
        and cut(terms, True) is None
    )
    if short:
        constants = (families, shapes, units, factors, (), estimator, size, 0)
        return _ShortRoad.apply(*inputs, activation, constants)
    return _composed(inputs, terms, activation, estimator, size)


def _composed(
    inputs: Sequence[Any], terms: Terms, activation: str | None, estimator: int, size: int
) -> Tensor:
    x, y, weight, bias, x_weights, y_weights, scales, coefficients = inputs
    act = ACTIVATIONS[activation]
    x, y = (act(torch.nn.functional.linear(z, weight, bias)) for z in (x, y))
    terms = terms._replace(scales=scales, coefficients=coefficients)
    return mmd2(x, y, x_weights, y_weights, terms, estimator, size)


class _ShortRoad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        *inputs, activation, constants = args
        x, y, weight, bias, x_weights, y_weights, scales, coefficients = inputs
        needs = ctx.needs_input_grad
        wanted = any(needs[2:4])  # by the map, which both samples go through
        moving = [wanted or needs[0], wanted or needs[1]]
        before = [_linear(z, weight, bias) for z in (x, y)]
        after = before if activation is None else [ACTIVATIONS[activation](h) for h in before]
        value, *gradients = run(
            (*after, x_weights, y_weights, scales, coefficients),
            constants,
            (*moving, *needs[4:8]),
        )
        images = [
            None if v is None else _through(activation, v, h, z)
            for v, h, z in zip(gradients[:2], before, after, strict=True)
        ]
        ctx.save_for_backward(*inputs, *images, *gradients[2:])
        ctx.activation, ctx.constants = activation, constants
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, needs = ctx.saved_tensors, ctx.needs_input_grad[:8]
        inputs, gradients = saved[:8], saved[8:]
        if torch.is_grad_enabled():
            return (*_second(ctx, inputs, needs, grad), None, None)
        x, y, weight = inputs[:3]
        images: list[Any] = [v if v is None else grad * v for v in gradients[:2]]
        results: list[Tensor | None] = [
            v @ weight if need and v is not None else None
            for v, need in zip(images, needs, strict=False)
        ]
        results += [None] * 6
        if needs[2] or needs[3]:
            v_x, v_y = images
            if needs[2]:
                results[2] = torch.mm(v_x.T, x).addmm_(v_y.T, y)
            if needs[3]:
                results[3] = v_x.sum(0) + v_y.sum(0)
        for i, v in enumerate(gradients[2:], 4):
            if needs[i]:
                results[i] = (grad * v).to(inputs[i].dtype)
        return (*results, None, None)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)


def _through(activation: str | None, v: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """A gradient to an image, as one to what the activation was given."""
    if activation == "relu":
        return torch.ops.aten.threshold_backward(v, after, 0)
    if activation == "tanh":
        return torch.ops.aten.tanh_backward(v, after)
    if activation == "gelu":
        return torch.ops.aten.gelu_backward(v, before)
    return v


def _second(
    ctx: Any, inputs: Sequence[Any], needs: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """The gradients tied to the inputs, for a second derivative."""
    families, shapes, units, factors, _, estimator, size, _ = ctx.constants
    terms = Terms(families, inputs[6], inputs[7], shapes, units, factors)
    value = _composed(inputs, terms, ctx.activation, estimator, size)
    wanted = [i for i, need in zip(inputs, needs, strict=True) if need]
    made = iter(torch.autograd.grad(value, wanted, grad.to(CPU), create_graph=True))
    return [next(made) if need else None for need in needs]
