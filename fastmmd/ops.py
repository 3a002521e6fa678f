"""The operators behind the public functions, and the only place that knows the native module.

``fastmmd::mmd2`` makes the value and, as further outputs, the gradients that its flags ask for: the
MMD is a scalar, so its gradient is a scalar times what the forward pass knows already.
``fastmmd::mmd2_backward`` differentiates those outputs, which is what a second derivative needs.
:func:`mmd2` calls the native core without the dispatcher where nothing needs the dispatcher, as a
small batch costs less than the way through it; both roads end in one native call, so they give the
same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from fastmmd.checks import is_plain
from fastmmd.hessian import hessian_product
from fastmmd.kernels import Terms

try:
    # After torch, whose libgomp it is to share.
    from fastmmd import _native as native
except ImportError as error:
    raise ImportError(
        f"the native module of fastmmd cannot be imported ({error}). It is compiled when fastmmd is"
        " installed: run 'pip install fastmmd', or 'make install' in a checkout, for this Python"
    ) from error

# The differentiable arguments of both operators, in order, absent weights as None.
_Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor, Tensor]
_NAMES = ("x", "y", "x_weights", "y_weights", "scales", "coefficients")
_NO_NEEDS = (False,) * 6

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
_CPU = torch.device("cpu")
_MAX_TERMS = 128  # that the native core takes


def mmd2(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    terms: Terms,
    unbiased: bool,
) -> Tensor:
    """Squared MMD, differentiable, of arguments that have been checked; see :func:`fastmmd.mmd2`.

    Args:
        x: [n, d].
        y: [m, d].
        x_weights: [n].
        y_weights: [m].
        terms: the kernel.
        unbiased: whether the diagonal is left out.

    Returns:
        A scalar: float64 for float64 inputs, float32 otherwise.

    Raises:
        NotImplementedError: for forward-mode differentiation, and for CUDA tensors.
    """
    families, scales, coefficients, shapes, units = terms
    if len(families) > _MAX_TERMS:  # the MMD is linear in the kernel
        parts = [
            Terms(families[part], scales[part], coefficients[part], shapes[part], units[part])
            for part in (slice(None, _MAX_TERMS), slice(_MAX_TERMS, None))
        ]
        return torch.stack([mmd2(x, y, x_weights, y_weights, t, unbiased) for t in parts]).sum()
    inputs = (x, y, x_weights, y_weights, scales, coefficients)
    if is_plain(*inputs):
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
            return _ShortRoad.apply(*inputs, families, shapes, units, unbiased)
        return _run(inputs, families, shapes, units, unbiased, _NO_NEEDS)[0]
    op: Any = torch.ops.fastmmd.mmd2
    transformed = False
    if not torch.compiler.is_compiling():
        if forward_ad._current_level >= 0:
            raise NotImplementedError(
                "forward-mode differentiation of fastmmd.mmd2 is not implemented: use reverse mode"
                " (backward, torch.func.grad or torch.func.vjp), which costs one pass for a scalar,"
                " or fastmmd.reference.mmd2"
            )
        if torch._C._are_functorch_transforms_active():
            op, transformed = _Transformed.apply, True
    # Inside a transform of torch.func nobody can tell from here what requires a gradient.
    enabled = torch.is_grad_enabled()
    needs = [enabled and t is not None and (transformed or t.requires_grad) for t in inputs]
    return op(*inputs, families, shapes, units, unbiased, needs)[0]


def _run(
    inputs: _Inputs,
    families: Sequence[int],
    shapes: Sequence[float],
    units: Sequence[int],
    unbiased: bool,
    needs: Sequence[bool],
    resolved: Tensor | None = None,
) -> tuple[Any, ...]:
    """One call of the native core: the value, and the six gradients or None where not needed."""
    x, y, x_weights, y_weights, scales, coefficients = inputs
    (n, d), m = x.shape, y.shape[0]
    dtype = _DTYPES[x.dtype]
    result = _result_dtype(x)
    threads = torch.get_num_threads()
    v_x = v_y = v_x_weights = v_y_weights = v_scales = v_coefficients = None
    # The device is named, as a default one may be set.
    value = torch.empty((), dtype=result, device=_CPU)
    if needs[0]:
        v_x = torch.empty((n, d), dtype=result, device=_CPU)
    if needs[1]:
        v_y = torch.empty((m, d), dtype=result, device=_CPU)
    if x_weights is not None:
        x_weights = _doubles(x_weights)
        if needs[2]:
            v_x_weights = torch.empty_like(x_weights)
    if y_weights is not None:
        y_weights = _doubles(y_weights)
        if needs[3]:
            v_y_weights = torch.empty_like(y_weights)
    if needs[4] or needs[5]:  # the core makes both or neither
        v_scales, v_coefficients = torch.empty_like(scales), torch.empty_like(scales)
    # Behind the scratch space lie the factors that were used, should nobody ask for them.
    scratch = -(-native.mmd2_workspace(n, m, d, dtype, threads) // 64) * 64
    workspace = torch.empty(scratch + 8 * len(families), dtype=torch.uint8, device=_CPU)
    base = workspace.data_ptr()
    native.mmd2(
        x.data_ptr(),
        y.data_ptr(),
        n,
        m,
        d,
        x.stride(),
        y.stride(),
        dtype,
        _address(x_weights),
        _address(y_weights),
        families,
        scales.data_ptr(),
        coefficients.data_ptr(),
        shapes,
        units,
        unbiased,
        value.data_ptr(),
        _address(v_x),
        _address(v_y),
        _address(v_x_weights),
        _address(v_y_weights),
        _address(v_scales),
        _address(v_coefficients),
        base + scratch if resolved is None else resolved.data_ptr(),
        base,
        threads,
    )
    return value, v_x, v_y, v_x_weights, v_y_weights, v_scales, v_coefficients


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _doubles(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float64).contiguous()


def _result_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _scaled(grad: Tensor, v: Tensor, like: Tensor) -> Tensor:
    # The dtype changes after the product: before it, the gradients of float16 inputs are so small
    # that float16 loses them.
    v = grad * v
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
        families: Sequence[int],
        shapes: Sequence[float],
        units: Sequence[int],
        unbiased: bool,
    ) -> Tensor:
        inputs = (x, y, x_weights, y_weights, scales, coefficients)
        needs = ctx.needs_input_grad
        value, *gradients = _run(inputs, families, shapes, units, unbiased, needs)
        ctx.save_for_backward(*inputs, *gradients)
        ctx.constants = (families, shapes, units, unbiased)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, needs = ctx.saved_tensors, ctx.needs_input_grad[:6]
        inputs, gradients = saved[:6], saved[6:]
        if torch.is_grad_enabled():
            # This pass is to be differentiated: the operator ties the gradients to the inputs.
            gradients = torch.ops.fastmmd.mmd2(*inputs, *ctx.constants, needs)[1:7]
        grads = [
            _scaled(grad, v, t) if need else None
            for t, v, need in zip(inputs, gradients, needs, strict=True)
        ]
        return (*grads, None, None, None, None)


torch.library.define(
    "fastmmd::mmd2",
    "(Tensor x, Tensor y, Tensor? x_weights, Tensor? y_weights, Tensor scales, Tensor coefficients,"
    " int[] families, float[] shapes, int[] units, bool unbiased, bool[6] needs)"
    " -> (Tensor value, Tensor v_x, Tensor v_y, Tensor v_x_weights, Tensor v_y_weights,"
    " Tensor v_scales, Tensor v_coefficients, Tensor resolved)",
)
# resolved: the factors scale / unit; g_*: the gradients with respect to the outputs v_* of mmd2.
torch.library.define(
    "fastmmd::mmd2_backward",
    "(Tensor x, Tensor y, Tensor? x_weights, Tensor? y_weights, Tensor scales, Tensor coefficients,"
    " int[] families, bool unbiased, Tensor resolved, Tensor? g_x, Tensor? g_y,"
    " Tensor? g_x_weights, Tensor? g_y_weights, Tensor? g_scales, Tensor? g_coefficients)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def _mmd2_cpu(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    scales: Tensor,
    coefficients: Tensor,
    families: Sequence[int],
    shapes: Sequence[float],
    units: Sequence[int],
    unbiased: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    scales, coefficients = _doubles(scales), _doubles(coefficients)
    resolved = torch.empty_like(scales)
    inputs: _Inputs = (x, y, x_weights, y_weights, scales, coefficients)
    value, *gradients = _run(inputs, families, shapes, units, unbiased, needs, resolved)
    outputs = [
        v if need and v is not None else _nothing(x)
        for v, need in zip(gradients, needs, strict=True)
    ]
    return (value, *outputs, resolved)


def _mmd2_cuda(x: Tensor, *_: Any) -> tuple[Tensor, ...]:
    raise NotImplementedError(
        f"fastmmd.mmd2 has no CUDA kernels in this build, and x is on {x.device}: move x and y to"
        " the CPU, or use fastmmd.reference.mmd2, which runs on any device"
    )


def _mmd2_fake(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    scales: Tensor,
    coefficients: Tensor,
    families: Sequence[int],
    shapes: Sequence[float],
    units: Sequence[int],
    unbiased: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    dtypes = (_result_dtype(x),) * 2 + (torch.float64,) * 4
    inputs = (x, y, x_weights, y_weights, scales, coefficients)
    outputs = [
        torch.empty(t.shape, dtype=dtype, device=x.device)
        if need and t is not None
        else _nothing(x)
        for t, dtype, need in zip(inputs, dtypes, needs, strict=True)
    ]
    value = torch.empty((), dtype=_result_dtype(x), device=x.device)
    return (value, *outputs, torch.empty_like(scales, dtype=torch.float64))


def _nothing(x: Tensor) -> Tensor:
    return torch.empty(0, dtype=_result_dtype(x), device=x.device)


def _mmd2_setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:6], *output[1:])
    ctx.families, ctx.unbiased, ctx.needs = inputs[6], inputs[9], inputs[10]
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
        if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
            op = _TransformedBackward.apply
        second = op(*inputs, ctx.families, ctx.unbiased, resolved, *tangents)
        for i, (first, v) in enumerate(zip(results, second, strict=True)):
            if ctx.needs_input_grad[i]:
                results[i] = v if first is None else first + v
    return (*results, None, None, None, None, None)


torch.library.impl("fastmmd::mmd2", "CPU", _mmd2_cpu)
torch.library.impl("fastmmd::mmd2", "CUDA", _mmd2_cuda)
torch.library.register_fake("fastmmd::mmd2", _mmd2_fake)
torch.library.register_autograd("fastmmd::mmd2", _mmd2_autograd, setup_context=_mmd2_setup_context)


def _mmd2_backward_cpu(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    scales: Tensor,
    coefficients: Tensor,
    families: Sequence[int],
    unbiased: bool,
    resolved: Tensor,
    *g: Tensor | None,
) -> tuple[Tensor, ...]:
    inputs = (x, y, x_weights, y_weights, scales, coefficients)
    primals = [
        torch.ones(len(points), dtype=torch.float64, device=_CPU) if t is None else t.double()
        for t, points in zip(inputs, (x, y, x, y, x, x), strict=True)
    ]
    tangents = [
        torch.zeros_like(p) if t is None else t.double() for p, t in zip(primals, g, strict=True)
    ]
    per_unit = torch.where(resolved == 0, 0.0, resolved / primals[4])  # the unit is held fixed
    v_points, v_weights, v_factors, v_coefficients = hessian_product(
        primals[:2],
        primals[2:4],
        families,
        resolved,
        primals[5],
        unbiased,
        tangents[:2],
        tangents[2:4],
        per_unit * tangents[4],
        tangents[5],
    )
    results = (*v_points, *v_weights, per_unit * v_factors, v_coefficients)
    return tuple(
        _nothing(x) if t is None else v.to(t.dtype) for t, v in zip(inputs, results, strict=True)
    )


def _mmd2_backward_fake(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    scales: Tensor,
    coefficients: Tensor,
    *_: Any,
) -> tuple[Tensor, ...]:
    inputs = (x, y, x_weights, y_weights, scales, coefficients)
    return tuple(
        _nothing(x) if t is None else torch.empty(t.shape, dtype=t.dtype, device=x.device)
        for t in inputs
    )


def _third_order(ctx: Any, *grads: Tensor | None) -> None:
    raise NotImplementedError(
        "third derivatives of fastmmd.mmd2 are not implemented: use fastmmd.reference.mmd2"
    )


torch.library.impl("fastmmd::mmd2_backward", "CPU", _mmd2_backward_cpu)
torch.library.register_fake("fastmmd::mmd2_backward", _mmd2_backward_fake)
torch.library.register_autograd("fastmmd::mmd2_backward", _third_order)


class _Transformed(torch.autograd.Function):
    """``fastmmd::mmd2`` for torch.func, which does not take the formula of an operator."""

    generate_vmap_rule = True
    setup_context = staticmethod(_mmd2_setup_context)
    backward = staticmethod(_mmd2_autograd)

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return torch.ops.fastmmd.mmd2(*args)


class _TransformedBackward(torch.autograd.Function):
    """``fastmmd::mmd2_backward`` for torch.func."""

    generate_vmap_rule = True
    backward = staticmethod(_third_order)

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return torch.ops.fastmmd.mmd2_backward(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass


def _register_loop(name: str) -> None:
    """Let vmap take an operator, one element of the batch at a time."""
    op = getattr(torch.ops.fastmmd, name)

    def loop(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], Any]:
        outputs = [
            op(
                *(
                    a.select(d, i) if isinstance(d, int) else a
                    for a, d in zip(args, in_dims, strict=True)
                )
            )
            for i in range(info.batch_size)
        ]
        return tuple(torch.stack(o) for o in zip(*outputs, strict=True)), (0,) * len(outputs[0])

    torch.library.register_vmap(f"fastmmd::{name}", loop)


if hasattr(torch.library, "register_vmap"):  # since torch 2.5; torch 2.4 loops too, with a warning
    _register_loop("mmd2")
    _register_loop("mmd2_backward")
