"""Kernel matrices times matrices, ``K(x, y) @ v``, without the kernel matrices.

With G what arrives at the result, its gradients are those of ``sum_ij k(x_i, y_j) <G_i, v_j>``:
a sum over the pairs of two samples, [x, G] and [y, v], of a product of kernels, k and the linear
one. So ``fastmmd::mmd2`` makes them, and their gradients, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmmd.checks import CROSS, is_direct
from fastmmd.ops import _cuda
from fastmmd.ops._core import (
    DTYPES,
    KERNEL_SCHEMA,
    MAX_TERMS,
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
    transforms_active,
)
from fastmmd.ops._mmd2 import with_gradients
from fastmmd.terms import FIXED, LINEAR, Terms, numbers


def kernel_sum(
    x: Tensor, y: Tensor, v: Tensor, terms: Terms, widths: Sequence[int] | None = None
) -> Tensor:
    """``K(x, y) @ v``, differentiable; see :func:`fastmmd.kernel_sum`.

    Args:
        x: [n, d].
        y: [m, d].
        v: [m, p].
        terms: the kernel.
        widths: numbers of features of the factors of a product of kernels, with sum d.

    Returns:
        [n, p]: float64 for float64 points, float32 otherwise.

    Raises:
        NotImplementedError: for forward-mode differentiation, and for CUDA tensors in a build
            without CUDA kernels.
        ValueError: for tensors of the kernel on another device than x.
    """
    families, scales, coefficients, shapes, units, factors = terms = at_points(terms, x)
    v = v.to(result_dtype(x))
    inputs = (x, y, v, scales, coefficients)
    direct = is_direct(*inputs)
    # One term is left for the linear kernel of the derivative.
    summands = cut(terms, direct, MAX_TERMS - 1)
    if summands is not None:
        return torch.stack([kernel_sum(x, y, v, t, widths) for t in summands]).sum(0)
    constants = (families, shapes, units, factors, widths or ())
    if direct and not (torch.is_grad_enabled() and any(t.requires_grad for t in inputs)):
        return _run(*inputs, *constants)[0]
    refuse_forward_mode("kernel_sum")
    op: Any = _Transformed.apply if transforms_active() else torch.ops.fastmmd.kernel_sum
    out: Tensor = op(*inputs, *constants)[0]
    return out


torch.library.define(
    "fastmmd::kernel_sum",
    "(Tensor x, Tensor y, Tensor v, Tensor scales, Tensor coefficients,"
    f" {KERNEL_SCHEMA}) -> (Tensor out, Tensor resolved)",
)


def _run(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    scales: Tensor,
    coefficients: Tensor,
    families: Sequence[int],
    shapes: Sequence[float],
    units: Sequence[int],
    factors: Sequence[int],
    widths: Sequence[int],
) -> tuple[Tensor, Tensor]:
    (n, d), (m, p) = x.shape, v.shape
    dtype, threads = DTYPES[x.dtype], torch.get_num_threads()
    widths = widths or (d,)
    v, scales, coefficients = v.detach().contiguous(), doubles(scales), doubles(coefficients)
    out = torch.empty((n, p), dtype=v.dtype, device=x.device)
    resolved = torch.empty_like(scales)
    arguments = (
        x.data_ptr(),
        y.data_ptr(),
        n,
        m,
        x.stride(),
        y.stride(),
        dtype,
        v.data_ptr(),
        p,
        widths,
        factors,
        families,
        address(scales),
        address(coefficients),
        shapes,
        units,
        out.data_ptr(),
        resolved.data_ptr(),
    )
    if _cuda.serves(x):
        _cuda.check_devices(x, v, scales, coefficients)
        _cuda.kernel_sum(x, y, widths, arguments)
    else:
        scratch, _ = buffer(native.kernel_sum_workspace(n, m, widths, p, dtype, threads))
        native.kernel_sum(*arguments, scratch.data_ptr(), threads)
    return out, resolved


def _fake(
    x: Tensor, y: Tensor, v: Tensor, scales: Tensor, coefficients: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    out = torch.empty((x.shape[0], v.shape[1]), dtype=v.dtype, device=x.device)
    return out, torch.empty_like(scales, dtype=torch.float64)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:5], output[1])
    ctx.constants = inputs[5:]
    ctx.mark_non_differentiable(output[1])


def _autograd(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, y, v, scales, coefficients, resolved = ctx.saved_tensors
    families, shapes, units, factors, widths = ctx.constants
    for_x, for_y, for_v, for_scales, for_coefficients = ctx.needs_input_grad[:5]
    per_unit = per_unit_of(resolved, scales.detach(), units)
    scales = scales * per_unit
    units = [FIXED] * len(families)
    if not (for_x or for_y or for_scales or for_coefficients):  # K' G is the cheaper road
        op: Any = _Transformed.apply if transforms_active() else torch.ops.fastmmd.kernel_sum
        out = op(y, x, grad, scales, coefficients, families, shapes, units, factors, widths)[0]
        return (None, None, out, *[None] * 7)

    (n, d), m = x.shape, y.shape[0]
    p = v.shape[1]
    one = numbers([1.0], scales.device)
    outputs = with_gradients(
        # in the result's dtype, as in it are G and v
        (
            torch.cat([x.to(v.dtype), grad], 1),
            torch.cat([y.to(v.dtype), v], 1),
            None,
            None,
            torch.cat([scales, one]),
            torch.cat([coefficients, one]),
        ),
        (
            [*families, LINEAR],
            [*shapes, 0.0, 0.0],
            [*units, FIXED],
            [*factors, factors[-1] + 1],
            [*(widths or [d]), p],
            CROSS,
            0,
            # The last factor is G and v. What is to be differentiated again needs its gradient.
            int(not for_v and not torch.is_grad_enabled()),
        ),
        [for_x, for_y or for_v, False, False, for_scales, for_coefficients],
    )
    pairs = n * m  # that CROSS takes the mean over
    v_x, v_y, v_scales, v_coefficients = (outputs[i] for i in (1, 2, 5, 6))
    return (
        (pairs * v_x[:, :d]).to(x.dtype) if for_x else None,
        (pairs * v_y[:, :d]).to(y.dtype) if for_y else None,
        pairs * v_y[:, d:] if for_v else None,
        pairs * per_unit * v_scales[:-1] if for_scales else None,
        pairs * v_coefficients[:-1] if for_coefficients else None,
        *[None] * 5,
    )


torch.library.impl("fastmmd::kernel_sum", "CPU", _run)
torch.library.impl("fastmmd::kernel_sum", "CUDA", _run)
torch.library.register_fake("fastmmd::kernel_sum", _fake)
_Transformed = differentiable("kernel_sum", _autograd, _setup_context)


register_vmap("kernel_sum", loop(torch.ops.fastmmd.kernel_sum))
