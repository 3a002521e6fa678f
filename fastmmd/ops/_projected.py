"""The MMD of linear images of two samples, and its gradients to the map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmmd.checks import is_plain
from fastmmd.ops._core import CPU, DTYPES, address, buffer, cut, doubles, native
from fastmmd.ops._mmd2 import mmd2
from fastmmd.terms import Terms

ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda h: h,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": torch.nn.functional.gelu,
}
_NUMBERS = {None: 0, "relu": 1, "tanh": 2, "gelu": 3}
_DTYPES = (torch.float32, torch.float64)
# Points, in all, up to which the products of a layer are worth packing for both ways at once.
SMALL = 1024


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

    On the CPU the map, the kernel and all gradients of small batches are one native call.

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
        and len(x) + len(y) <= SMALL
        and cut(terms, True) is None
    )
    if short:
        constants = (families, shapes, units, factors, estimator, size)
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
        value, *gradients = _run(inputs, activation, constants, ctx.needs_input_grad)
        ctx.save_for_backward(*inputs, *gradients)
        ctx.activation, ctx.constants = activation, constants
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, needs = ctx.saved_tensors, ctx.needs_input_grad[:8]
        inputs, gradients = saved[:8], saved[8:]
        if torch.is_grad_enabled():
            return (*_second(ctx, inputs, needs, grad), None, None)
        results = [
            (grad * v).to(i.dtype) if need else None
            for i, v, need in zip(inputs, gradients, needs, strict=True)
        ]
        return (*results, None, None)


def _run(
    inputs: Sequence[Any], activation: str | None, constants: tuple[Any, ...], needs: Sequence[bool]
) -> tuple[Any, ...]:
    """One call of the native side: the value, and the eight gradients or None where not needed."""
    x, y, weight, bias, x_weights, y_weights, scales, coefficients = inputs
    families, shapes, units, factors, estimator, size = constants
    (n, d), m, p, dtype = x.shape, len(y), len(weight), DTYPES[x.dtype]
    threads, number = torch.get_num_threads(), _NUMBERS[activation]
    bias = None if bias is None else bias.detach().contiguous()
    a, b = (None if w is None else doubles(w) for w in (x_weights, y_weights))
    value = torch.empty((), dtype=x.dtype, device=CPU)
    v_x, v_y, v_weight, v_bias, v_a, v_b = (
        torch.empty(t.shape, dtype=t.dtype, device=CPU) if need and t is not None else None
        for t, need in zip((x, y, weight, bias, a, b), needs, strict=False)
    )
    v_scales = v_coefficients = None
    if needs[6] or needs[7]:  # the core makes both or neither
        v_scales = torch.empty(len(families), dtype=torch.float64, device=CPU)
        v_coefficients = torch.empty_like(v_scales)
    # Behind the scratch space lie the factors that were used.
    scratch, tail = buffer(
        native.projected_mmd2_workspace(n, m, d, p, dtype, number, estimator, size, threads, units),
        len(families),
    )
    base = scratch.data_ptr()
    native.projected_mmd2(
        x.data_ptr(),
        y.data_ptr(),
        n,
        m,
        d,
        x.stride(),
        y.stride(),
        dtype,
        weight.data_ptr(),
        p,
        weight.stride(),
        address(bias),
        number,
        address(a),
        address(b),
        factors,
        families,
        scales.data_ptr(),
        coefficients.data_ptr(),
        shapes,
        units,
        estimator,
        size,
        value.data_ptr(),
        address(v_x),
        address(v_y),
        address(v_weight),
        address(v_bias),
        address(v_a),
        address(v_b),
        address(v_scales),
        address(v_coefficients),
        base + tail,
        base,
        threads,
    )
    return value, v_x, v_y, v_weight, v_bias, v_a, v_b, v_scales, v_coefficients


def _second(
    ctx: Any, inputs: Sequence[Any], needs: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """The gradients tied to the inputs, for a second derivative."""
    families, shapes, units, factors, estimator, size = ctx.constants
    terms = Terms(families, inputs[6], inputs[7], shapes, units, factors)
    value = _composed(inputs, terms, ctx.activation, estimator, size)
    wanted = [i for i, need in zip(inputs, needs, strict=True) if need]
    made = iter(torch.autograd.grad(value, wanted, grad.to(CPU), create_graph=True))
    return [next(made) if need else None for need in needs]
