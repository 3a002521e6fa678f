"""What is made of a pair of samples and has no derivative: bandwidths and forms of sign vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmmd.checks import RESOLVE, is_direct
from fastmmd.ops import _cuda
from fastmmd.ops._core import (
    DTYPES,
    KERNEL_SCHEMA,
    MAX_TERMS,
    at_points,
    buffer,
    cut,
    doubles,
    loop,
    native,
    pick,
    register_vmap,
)
from fastmmd.ops._mmd2 import run
from fastmmd.terms import GAUSSIAN, Terms

# How the vectors of sign_forms are drawn.
PERMUTATION, WILD = range(2)


def resolve(x: Tensor, y: Tensor, terms: Terms, widths: Sequence[int] | None = None) -> Tensor:
    """The factors ``scale / unit`` of a kernel on two samples, without a gradient.

    Args:
        x: [n, d] or [B, n, d].
        y: [m, d] or [B, m, d].
        terms: the kernel.
        widths: numbers of features of the factors of a product of kernels, with sum d.

    Returns:
        [T] or [B, T], float64; 0 where the unit is 0, as it is if all points are equal.

    Raises:
        NotImplementedError: for CUDA tensors in a build without CUDA kernels.
        ValueError: for tensors of the kernel on another device than x.
    """
    terms = at_points(terms, x)
    scales, factors, units = terms.scales.detach(), terms.factors, terms.units
    if len(units) <= MAX_TERMS:
        return _resolve(x, y, scales, units, factors, widths)
    # Among many terms there are few units.
    keys = sorted(set(zip(factors, units, strict=True)))
    found = _resolve(
        x,
        y,
        torch.ones(len(keys), dtype=torch.float64, device=x.device),
        tuple(unit for _, unit in keys),
        tuple(factor for factor, _ in keys),
        widths,
    )
    positions = {key: i for i, key in enumerate(keys)}
    return scales * pick(found, [positions[key] for key in zip(factors, units, strict=True)])


def _resolve(
    x: Tensor,
    y: Tensor,
    scales: Tensor,
    units: Sequence[int],
    factors: Sequence[int],
    widths: Sequence[int] | None,
) -> Tensor:
    arguments = (x.detach(), y.detach(), scales, units, factors, widths or ())
    if is_direct(x, y, scales):
        return _resolve_op(*arguments)
    result: Tensor = torch.ops.fastmmd.resolve(*arguments)
    return result


class SignForms(NamedTuple):
    """Forms of sign vectors v_b with the kernel matrix of the pooled sample.

    K0 is that matrix without its diagonal kappa, r its row sums. Of a kernel that is linear the
    matrix is that of the points less their mean: no MMD feels the difference, and it loses less.
    """

    forms: Tensor  # v_b' K0 v_b, [count + 1], float64
    linear: Tensor  # v_b' r
    diagonal: Tensor  # v_b' kappa
    total: float  # 1' r
    trace: float  # 1' kappa


def sign_forms(
    x: Tensor,
    y: Tensor,
    terms: Terms,
    scheme: int,
    seed: int,
    count: int,
    widths: Sequence[int] | None = None,
) -> SignForms:
    """What any labelling of the pooled sample makes of its kernel matrix, all in one pass.

    The first vector is that of the samples as given, 1/n on x and -1/m on y. The others are drawn
    from the seed, in a way that does not depend on the kernel or the number of threads.

    Args:
        x: [n, d].
        y: [m, d].
        terms: the kernel.
        scheme: ``PERMUTATION``: 1/n on n of the points, drawn at random, -1/m on the others; or
            ``WILD``, for n = m: a random sign for each pair of x_i and y_i.
        seed: from 0 to 2^64 - 1.
        count: how many vectors are drawn.
        widths: numbers of features of the factors of a product of kernels, with sum d.

    Returns:
        The forms, without a gradient.

    Raises:
        NotImplementedError: for CUDA tensors in a build without CUDA kernels.
        ValueError: for tensors of the kernel on another device than x.
    """
    x, y = x.detach(), y.detach()
    terms = at_points(terms, x)
    scales, coefficients = terms.scales.detach(), terms.coefficients.detach()
    direct = is_direct(x, y, scales, coefficients)
    terms = terms._replace(scales=scales, coefficients=coefficients)
    op: Any = _sign_forms_op if direct else torch.ops.fastmmd.sign_forms
    seed -= (seed >> 63) << 64  # operators take signed integers
    made = [
        op(x, y, t.scales, t.coefficients, *_constants(t), widths or (), scheme, seed, count)
        for t in cut(terms, direct) or [terms]
    ]  # all forms are linear in the kernel
    *forms, totals = (sum(of[1:], of[0]) for of in zip(*made, strict=True))
    return SignForms(*forms, *totals.tolist())


def _constants(terms: Terms) -> tuple[Any, ...]:
    return terms.families, terms.shapes, terms.units, terms.factors


torch.library.define(
    "fastmmd::resolve",
    "(Tensor x, Tensor y, Tensor scales, int[] units, int[] factors, SymInt[] widths) -> Tensor",
)
torch.library.define(
    "fastmmd::sign_forms",
    "(Tensor x, Tensor y, Tensor scales, Tensor coefficients,"
    f" {KERNEL_SCHEMA}, int scheme, int seed, SymInt count)"
    " -> (Tensor forms, Tensor linear, Tensor diagonal, Tensor totals)",
)


def _resolve_op(
    x: Tensor,
    y: Tensor,
    scales: Tensor,
    units: Sequence[int],
    factors: Sequence[int],
    widths: Sequence[int],
) -> Tensor:
    terms = len(units)
    scales = doubles(scales)
    resolved = torch.empty((*x.shape[:-2], terms), dtype=torch.float64, device=x.device)
    # Units do not depend on the families; Gaussians stand for all, as they go together. The
    # coefficients are not looked at.
    constants = ((GAUSSIAN,) * terms, (0.0, 0.0) * terms, units, factors, widths, RESOLVE, 0, 0)
    run((x, y, None, None, scales, scales), constants, (False,) * 6, resolved)
    return resolved


def _resolve_fake(x: Tensor, y: Tensor, scales: Tensor, *_: Any) -> Tensor:
    return torch.empty((*x.shape[:-2], *scales.shape), dtype=torch.float64, device=x.device)


def _sign_forms_op(
    x: Tensor,
    y: Tensor,
    scales: Tensor,
    coefficients: Tensor,
    families: Sequence[int],
    shapes: Sequence[float],
    units: Sequence[int],
    factors: Sequence[int],
    widths: Sequence[int],
    scheme: int,
    seed: int,
    count: int,
) -> tuple[Tensor, ...]:
    (n, d), m = x.shape, y.shape[0]
    scales, coefficients = doubles(scales), doubles(coefficients)
    dtype, threads = DTYPES[x.dtype], torch.get_num_threads()
    widths = widths or (d,)
    forms, linear, diagonal, totals, resolved = (
        torch.empty(size, dtype=torch.float64, device=x.device)
        for size in (count + 1, count + 1, count + 1, 2, len(families))
    )
    arguments = (
        x.data_ptr(),
        y.data_ptr(),
        n,
        m,
        x.stride(),
        y.stride(),
        dtype,
        widths,
        factors,
        families,
        scales.data_ptr(),
        coefficients.data_ptr(),
        shapes,
        units,
        scheme,
        seed % (1 << 64),
        count,
        forms.data_ptr(),
        linear.data_ptr(),
        diagonal.data_ptr(),
        totals.data_ptr(),
        resolved.data_ptr(),
    )
    if _cuda.serves(x):
        _cuda.check_devices(x, scales, coefficients)
        _cuda.sign_forms(x, y, widths, arguments)
    else:
        scratch, _ = buffer(native.sign_forms_workspace(n, m, widths, count, dtype, threads))
        native.sign_forms(*arguments, scratch.data_ptr(), threads)
    return forms, linear, diagonal, totals


def _sign_forms_fake(*args: Any) -> tuple[Tensor, ...]:
    sizes = (args[-1] + 1,) * 3 + (2,)
    return tuple(torch.empty(s, dtype=torch.float64, device=args[0].device) for s in sizes)


torch.library.impl("fastmmd::resolve", "CPU", _resolve_op)
torch.library.impl("fastmmd::resolve", "CUDA", _resolve_op)
torch.library.register_fake("fastmmd::resolve", _resolve_fake)
torch.library.impl("fastmmd::sign_forms", "CPU", _sign_forms_op)
torch.library.impl("fastmmd::sign_forms", "CUDA", _sign_forms_op)
torch.library.register_fake("fastmmd::sign_forms", _sign_forms_fake)

register_vmap("sign_forms", loop(torch.ops.fastmmd.sign_forms))
_resolve_loop = loop(lambda *args: (torch.ops.fastmmd.resolve(*args),))
register_vmap(
    "resolve",
    lambda *args: tuple(of[0] for of in _resolve_loop(*args)),
)
