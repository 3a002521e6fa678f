"""The MMD of a pair of samples or of a batch of them.

``fastmmd::mmd2`` makes the value and, as further outputs, the gradients that its flags ask for: the
MMD is a scalar, so its gradient is a scalar times what the forward pass knows already.
``fastmmd::mmd2_backward`` differentiates those outputs, which is what a second derivative needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmmd.checks import BIASED, is_direct
from fastmmd.ops import _cuda
from fastmmd.ops._core import (
    DTYPES,
    KERNEL_SCHEMA,
    address,
    at_points,
    buffer,
    cut,
    differentiable,
    doubles,
    loop,
    native,
    per_unit_of,
    refuse_forward_mode,
    register_vmap,
    result_dtype,
    third_order,
    transforms_active,
)
from fastmmd.terms import Terms

# The differentiable arguments of both operators, in order, absent weights as None.
_Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor, Tensor]
_NAMES = ("x", "y", "x_weights", "y_weights", "scales", "coefficients")
_NO_NEEDS = (False,) * 6
_PARAMETERS = 4  # from here on the inputs are those that a batch shares

# All others: families, shapes, units, factors, widths, estimator, size and constant_factors.
_Constants = tuple[
    Sequence[int], Sequence[float], Sequence[int], Sequence[int], Sequence[int], int, int, int
]


def mmd2(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    terms: Terms,
    estimator: int = BIASED,
    size: int = 0,
    widths: Sequence[int] | None = None,
    constant_factors: int = 0,
) -> Tensor:
    """Squared MMD, differentiable, of arguments that have been checked; see :func:`fastmmd.mmd2`.

    Args:
        x: [n, d], or a batch, [B, n, d], which is one native call.
        y: [m, d] or [B, m, d].
        x_weights: [n] or [B, n].
        y_weights: [m] or [B, m].
        terms: the kernel.
        estimator: its number in :mod:`fastmmd.checks`.
        size: points of a block, or number of superdiagonals.
        widths: numbers of features of the factors of a product of kernels, with sum d.
        constant_factors: how many of them, from the last, count as constant: the gradients to their
            features are 0 then, and cost nothing.

    Returns:
        A scalar or [B]: float64 for float64 inputs, float32 otherwise.

    Raises:
        NotImplementedError: for forward-mode differentiation, and for CUDA tensors in a build
            without CUDA kernels.
        ValueError: for tensors of the kernel on another device than x.
    """
    families, scales, coefficients, shapes, units, factors = terms = at_points(terms, x)
    inputs = (x, y, x_weights, y_weights, scales, coefficients)
    direct = is_direct(*inputs)
    summands = cut(terms, direct)
    if summands is not None:  # the MMD is linear in the kernel
        if x.dtype in (torch.float16, torch.bfloat16):
            x, y = x.float(), y.float()  # so that the gradients are rounded once, when added up
        rest = (estimator, size, widths, constant_factors)
        values = [mmd2(x, y, x_weights, y_weights, t, *rest) for t in summands]
        return torch.stack(values).sum(0)
    constants = (
        families,
        shapes,
        units,
        factors,
        widths or (),
        estimator,
        size,
        constant_factors,
    )
    if direct:
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
            return _ShortRoad.apply(*inputs, constants)
        return run(inputs, constants, _NO_NEEDS)[0]
    refuse_forward_mode("mmd2")
    transformed = transforms_active()
    # Inside a transform of torch.func nobody can tell from here what requires a gradient.
    enabled = torch.is_grad_enabled()
    needs = [enabled and t is not None and (transformed or t.requires_grad) for t in inputs]
    return with_gradients(inputs, constants, needs)[0]


def with_gradients(
    inputs: _Inputs, constants: _Constants, needs: Sequence[bool]
) -> tuple[Tensor, ...]:
    """``fastmmd::mmd2``, the value with its gradients and factors, which differentiate too."""
    op: Any = _Transformed.apply if transforms_active() else torch.ops.fastmmd.mmd2
    outputs: tuple[Tensor, ...] = op(*inputs, *constants, needs)
    return outputs


def run(
    inputs: _Inputs,
    constants: _Constants,
    needs: Sequence[bool],
    resolved: Tensor | None = None,
) -> tuple[Any, ...]:
    """One pass, on whatever device: the value, and the six gradients or None where not needed."""
    x, y, x_weights, y_weights, scales, coefficients = inputs
    families, shapes, units, factors, widths, estimator, size, constant_factors = constants
    shape, other, device = x.shape, y.shape, x.device
    n, d = shape[-2], shape[-1]
    batch: tuple[int, ...] = ()
    count = 1
    if len(shape) == 3:
        count = shape[0]
        batch = (count,)
    m = other[-2]
    terms = len(families)
    widths = widths or (d,)
    result = result_dtype(x)
    v_x = v_y = v_x_weights = v_y_weights = v_scales = v_coefficients = None
    value = torch.empty(batch, dtype=result, device=device)
    if needs[0]:
        v_x = torch.empty(shape, dtype=result, device=device)
    if needs[1]:
        v_y = torch.empty(other, dtype=result, device=device)
    if x_weights is not None:
        x_weights = doubles(x_weights)
        if needs[2]:
            v_x_weights = torch.empty_like(x_weights)
    if y_weights is not None:
        y_weights = doubles(y_weights)
        if needs[3]:
            v_y_weights = torch.empty_like(y_weights)
    if needs[4] or needs[5]:  # the native side makes both or neither
        v_scales = torch.empty((*batch, terms), dtype=torch.float64, device=device)
        v_coefficients = torch.empty_like(v_scales)
    outputs = (value, v_x, v_y, v_x_weights, v_y_weights, v_scales, v_coefficients)
    if count == 0:
        return outputs
    if _cuda.serves(x):
        inputs = (x, y, x_weights, y_weights, scales, coefficients)
        _cuda.mmd2(inputs, (*constants[:4], widths, *constants[5:]), outputs, resolved)
        return outputs
    dtype, threads = DTYPES[x.dtype], torch.get_num_threads()
    # Behind the scratch space lie the factors that were used, should nobody ask for them.
    scratch, tail = buffer(
        native.mmd2_workspace(n, m, widths, count, dtype, estimator, size, threads, units),
        count * terms,
    )
    base = scratch.data_ptr()
    native.mmd2(
        x.data_ptr(),
        y.data_ptr(),
        n,
        m,
        x.stride(),
        y.stride(),
        count,
        dtype,
        address(x_weights),
        address(y_weights),
        widths,
        factors,
        families,
        scales.data_ptr(),
        coefficients.data_ptr(),
        shapes,
        units,
        estimator,
        size,
        constant_factors,
        value.data_ptr(),
        address(v_x),
        address(v_y),
        address(v_x_weights),
        address(v_y_weights),
        address(v_scales),
        address(v_coefficients),
        base + tail if resolved is None else resolved.data_ptr(),
        base,
        threads,
    )
    return outputs


def _scaled(grad: Tensor, v: Tensor, like: Tensor) -> Tensor:
    """What arrives at the value, times the gradient of the value."""
    if grad.ndim:  # a batch
        v = grad.reshape(-1, *[1] * (v.ndim - 1)) * v
        if v.ndim > like.ndim:  # a parameter of the kernel, which all share
            v = v.sum(0)
    else:
        v = grad * v
    # The dtype changes after the product: before it, the gradients of float16 inputs are so small
    # that float16 loses them.
    return v if v.dtype == like.dtype else v.to(like.dtype)


class _ShortRoad(torch.autograd.Function):
    """``fastmmd::mmd2`` without the dispatcher."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        x_weights: Tensor | None,
        y_weights: Tensor | None,
        scales: Tensor,
        coefficients: Tensor,
        constants: _Constants,
    ) -> Tensor:
        inputs = (x, y, x_weights, y_weights, scales, coefficients)
        value, *gradients = run(inputs, constants, ctx.needs_input_grad)
        ctx.save_for_backward(*inputs, *gradients)
        ctx.constants = constants
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, needs = ctx.saved_tensors, ctx.needs_input_grad[:6]
        inputs, gradients = saved[:6], saved[6:]
        if torch.is_grad_enabled():
            # This pass is to be differentiated: the operator ties the gradients to the inputs.
            gradients = with_gradients(inputs, ctx.constants, needs)[1:7]
        grads = [
            _scaled(grad, v, t) if need else None
            for t, v, need in zip(inputs, gradients, needs, strict=True)
        ]
        return (*grads, None)


torch.library.define(
    "fastmmd::mmd2",
    "(Tensor x, Tensor y, Tensor? x_weights, Tensor? y_weights, Tensor scales, Tensor coefficients,"
    f" {KERNEL_SCHEMA}, int estimator, SymInt size,"
    " int constant_factors, bool[6] needs)"
    " -> (Tensor value, Tensor v_x, Tensor v_y, Tensor v_x_weights, Tensor v_y_weights,"
    " Tensor v_scales, Tensor v_coefficients, Tensor resolved)",
)
# resolved: the factors scale / unit; g_*: the gradients with respect to the outputs v_* of mmd2.
torch.library.define(
    "fastmmd::mmd2_backward",
    "(Tensor x, Tensor y, Tensor? x_weights, Tensor? y_weights, Tensor scales, Tensor coefficients,"
    f" {KERNEL_SCHEMA}, int estimator, SymInt size, int constant_factors,"
    " Tensor resolved, Tensor? g_x, Tensor? g_y, Tensor? g_x_weights, Tensor? g_y_weights,"
    " Tensor? g_scales, Tensor? g_coefficients)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
_CONSTANTS = slice(6, 14)  # among the arguments of both


def _mmd2(*args: Any) -> tuple[Tensor, ...]:
    x, y, x_weights, y_weights, scales, coefficients, *constants, needs = args
    scales, coefficients = doubles(scales), doubles(coefficients)
    resolved = torch.empty((*x.shape[:-2], len(scales)), dtype=torch.float64, device=x.device)
    inputs = (x, y, x_weights, y_weights, scales, coefficients)
    value, *gradients = run(inputs, tuple(constants), needs, resolved)
    outputs = [
        v if need and v is not None else _nothing(x)
        for v, need in zip(gradients, needs, strict=True)
    ]
    return (value, *outputs, resolved)


def _mmd2_fake(*args: Any) -> tuple[Tensor, ...]:
    inputs, needs = args[:6], args[-1]
    x, result = inputs[0], result_dtype(inputs[0])
    batch = x.shape[:-2]
    dtypes = (result,) * 2 + (torch.float64,) * 4
    outputs = [
        torch.empty(
            t.shape if i < _PARAMETERS else (*batch, *t.shape), dtype=dtype, device=x.device
        )
        if need and t is not None
        else _nothing(x)
        for i, (t, dtype, need) in enumerate(zip(inputs, dtypes, needs, strict=True))
    ]
    value = torch.empty(batch, dtype=result, device=x.device)
    resolved = torch.empty((*batch, *args[4].shape), dtype=torch.float64, device=x.device)
    return (value, *outputs, resolved)


def _nothing(x: Tensor) -> Tensor:
    return torch.empty(0, dtype=result_dtype(x), device=x.device)


def _mmd2_setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:6], *output[1:])
    ctx.constants, ctx.needs = inputs[_CONSTANTS], inputs[-1]
    ctx.mark_non_differentiable(output[-1])
    # A gradient that does not arrive must be told from zeros: it needs no second derivative.
    ctx.set_materialize_grads(False)


def _mmd2_autograd(ctx: Any, grad: Tensor | None, *grads: Tensor | None) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    inputs, gradients, resolved = saved[:6], saved[6:12], saved[12]
    results: list[Tensor | None] = [None] * 6
    for i, name in enumerate(_NAMES):
        if ctx.needs_input_grad[i] and grad is not None:
            if not ctx.needs[i]:
                raise RuntimeError(
                    f"fastmmd.mmd2 was not told that {name} needs a gradient: where a call is"
                    f" traced or exported, {name} must require one then"
                )
            results[i] = _scaled(grad, gradients[i], inputs[i])
    tangents = [g if need else None for g, need in zip(grads[:6], ctx.needs, strict=True)]
    if any(g is not None for g in tangents):
        op: Any = torch.ops.fastmmd.mmd2_backward
        if transforms_active():
            op = _TransformedBackward.apply
        second = op(*inputs, *ctx.constants, resolved, *tangents)
        for i, (first, v) in enumerate(zip(results, second, strict=True)):
            if ctx.needs_input_grad[i]:
                results[i] = v if first is None else first + v
    return (*results, *[None] * 9)


torch.library.impl("fastmmd::mmd2", "CPU", _mmd2)
torch.library.impl("fastmmd::mmd2", "CUDA", _mmd2)
torch.library.register_fake("fastmmd::mmd2", _mmd2_fake)
_Transformed = differentiable("mmd2", _mmd2_autograd, _mmd2_setup_context)


def _mmd2_backward(*args: Any) -> tuple[Tensor, ...]:
    inputs, constants, (resolved, *tangents) = args[:6], args[_CONSTANTS], args[14:]
    x = inputs[0]
    if x.ndim == 2:
        results = _second(inputs, constants, resolved, tangents)
    else:
        each = [
            _second(
                [t if i >= _PARAMETERS or t is None else t[b] for i, t in enumerate(inputs)],
                constants,
                resolved[b],
                [None if g is None else g[b] for g in tangents],
            )
            for b in range(len(x))
        ]
        results = [
            torch.stack(of).sum(0) if i >= _PARAMETERS else torch.stack(of)
            for i, of in enumerate(zip(*each, strict=True))
        ]
    return tuple(
        _nothing(x) if t is None else v.to(t.dtype) for t, v in zip(inputs, results, strict=True)
    )


def _second(
    inputs: Sequence[Any],
    constants: _Constants,
    resolved: Tensor,
    g: Sequence[Tensor | None],
) -> list[Tensor]:
    """The second derivatives of one pair of samples, in float64."""
    from fastmmd.hessian import Pairs, hessian_product  # on demand: most programs never do

    families, shapes, units, factors, widths, estimator, size, constant_factors = constants
    samples, device = inputs[:2], inputs[0].device
    primals = [
        torch.ones(len(samples[i % 2]), dtype=torch.float64, device=device)
        if t is None
        else t.double()
        for i, t in enumerate(inputs)
    ]
    tangents = [
        torch.zeros_like(p) if t is None else t.double() for p, t in zip(primals, g, strict=True)
    ]
    # 0 for the features that count as constant: neither they nor their gradients move.
    moving = torch.ones(samples[0].shape[-1], dtype=torch.float64, device=device)
    moving[sum(widths[: len(widths) - constant_factors]) if constant_factors else len(moving) :] = 0
    tangents[:2] = [t * moving for t in tangents[:2]]
    per_unit = per_unit_of(resolved, primals[4], units)
    v_points, v_weights, v_factors, v_coefficients = hessian_product(
        Pairs(families, shapes, factors, widths, estimator, size),
        primals[:2],
        primals[2:4],
        resolved,
        primals[5],
        tangents[:2],
        tangents[2:4],
        per_unit * tangents[4],
        tangents[5],
    )
    v_points = [v * moving for v in v_points]
    return [*v_points, *v_weights, per_unit * v_factors, v_coefficients]


def _mmd2_backward_fake(x: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return tuple(
        _nothing(x) if t is None else torch.empty(t.shape, dtype=t.dtype, device=x.device)
        for t in (x, *args[:5])
    )


torch.library.impl("fastmmd::mmd2_backward", "CPU", _mmd2_backward)
torch.library.impl("fastmmd::mmd2_backward", "CUDA", _mmd2_backward)
torch.library.register_fake("fastmmd::mmd2_backward", _mmd2_backward_fake)
_TransformedBackward = differentiable("mmd2_backward", third_order)


def _mmd2_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
    """One native call, if there is one kernel for all."""
    if any(isinstance(d, int) for d in in_dims[_PARAMETERS:6]):
        return _loop(info, in_dims, *args)
    count = info.batch_size
    inputs: list[Any] = [
        None if t is None else t.movedim(d, 0) if isinstance(d, int) else t.expand(count, *t.shape)
        for t, d in zip(args[:_PARAMETERS], in_dims, strict=False)
    ]
    batches = inputs[0].ndim == 4
    if batches:
        inputs = [None if t is None else t.flatten(0, 1) for t in inputs]
    outputs = torch.ops.fastmmd.mmd2(*inputs, *args[_PARAMETERS:])
    made = (True, *(need and t is not None for need, t in zip(args[-1], args, strict=False)), True)
    if batches:
        outputs = [
            o.unflatten(0, (count, -1)) if is_made else o
            for o, is_made in zip(outputs, made, strict=True)
        ]
    return tuple(outputs), tuple(0 if is_made else None for is_made in made)


_loop = loop(torch.ops.fastmmd.mmd2)
register_vmap("mmd2", _mmd2_vmap)
register_vmap("mmd2_backward", loop(torch.ops.fastmmd.mmd2_backward))
