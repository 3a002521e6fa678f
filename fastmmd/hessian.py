r"""The Hessian of the MMD times a vector, which is what second derivatives come down to.

With signed masses and a sum over pairs, ``F = sum_ij A_ij k(D_ij)``, D the squared distances. With
d for the derivative along the given tangents,

    G = sum_ij dA_ij k_ij + A_ij dk_ij,     dk = sum_t dw_t phi_t + w_t phi_t' (dc_t D + c_t dD)

and the gradient of G with respect to the points, masses, factors c and coefficients w is the
product of the Hessian with the tangents. It is written out by hand, as the implementation of an
operator runs where autograd does not, in plain PyTorch, block by block and in float64: a road for
correctness, in O((n + m) d) memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastmmd.reference import PROFILE_DERIVATIVES

_BLOCK = 512  # points: a matrix of a block stays in cache
_NEAR_NUMBERS = 1 << 20  # in the differences of near duplicates that are worked out at a time


class _Side(NamedTuple):
    """One sample, or the gradient of G with respect to it. Tangents are named ``dot_*``."""

    points: Tensor  # [n, d]
    dot_points: Tensor
    masses: Tensor  # [n], summing to 1
    dot_masses: Tensor
    inner: Tensor  # what the sum over pairs within the sample is multiplied by, [1]
    dot_inner: Tensor


def hessian_product(
    points: Sequence[Tensor],
    weights: Sequence[Tensor],
    families: Sequence[int],
    factors: Tensor,
    coefficients: Tensor,
    unbiased: bool,
    dot_points: Sequence[Tensor],
    dot_weights: Sequence[Tensor],
    dot_factors: Tensor,
    dot_coefficients: Tensor,
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """The Hessian of the MMD in all its arguments, times their tangents. Everything is float64.

    Args:
        points: the two samples, [n, d] and [m, d].
        weights: those of their points, [n] and [m], not divided by their sums.
        families: the family of each term of the kernel, T of them.
        factors: [T], ``k = sum_t coefficient_t phi_t(factor_t D)``.
        coefficients: [T].
        unbiased: whether the diagonal is left out.
        dot_points: the tangents of the points, and so on.
        dot_weights: [n] and [m].
        dot_factors: [T].
        dot_coefficients: [T].

    Returns:
        The products for points, weights, factors and coefficients.
    """
    centre = torch.cat(list(points)).mean(0)  # distances lose less around 0
    sides = [
        _Side(p - centre, dot_p, *_masses(w, dot_w, unbiased))
        for p, dot_p, w, dot_w in zip(points, dot_points, weights, dot_weights, strict=True)
    ]
    grads = [_Side(*(torch.zeros_like(t) for t in side)) for side in sides]
    terms = torch.stack([factors, coefficients, dot_factors, dot_coefficients])
    v_terms = torch.zeros_like(terms[:2])
    for a, b in ((0, 0), (1, 1), (0, 1)):
        slices = (_slices(len(s.points)) for s in (sides[a], sides[b]))
        for i, j in itertools.product(*slices):
            if a != b:
                _add_block(sides, grads, (0, 1), (i, j), families, terms, v_terms, -2.0, False)
            elif i.start <= j.start:  # a mirror counts twice
                multiple = 1.0 if i == j else 2.0
                diagonal = unbiased and i == j
                _add_block(
                    sides, grads, (a, a), (i, j), families, terms, v_terms, multiple, diagonal
                )
    v_weights = [
        _masses_backward(w, dot_w, side, grad, unbiased)
        for w, dot_w, side, grad in zip(weights, dot_weights, sides, grads, strict=True)
    ]
    return [g.points for g in grads], v_weights, v_terms[0].clone(), v_terms[1].clone()


def _slices(n: int) -> list[slice]:
    return [slice(i, min(i + _BLOCK, n)) for i in range(0, n, _BLOCK)]


def _add_block(
    sides: Sequence[_Side],
    grads: Sequence[_Side],
    which: tuple[int, int],
    block: tuple[slice, slice],
    families: Sequence[int],
    terms: Tensor,
    v_terms: Tensor,
    multiple: float,
    without_diagonal: bool,
) -> None:
    """Add to the gradients of G what one block of pairs contributes."""
    (a, b), (i, j) = which, block
    x, dot_x, p, dot_p = (t[i] for t in sides[a][:4])
    y, dot_y, q, dot_q = (t[j] for t in sides[b][:4])
    within = a == b
    f = multiple * (sides[a].inner if within else torch.ones_like(sides[a].inner))
    dot_f = multiple * (sides[a].dot_inner if within else torch.zeros_like(f))

    d2, dot_d2, near = _distances(x, y, dot_x, dot_y)
    keep = torch.ones_like(d2)
    if without_diagonal:
        keep.fill_diagonal_(0)
    pq = torch.outer(p, q) * keep
    dot_pq = (torch.outer(dot_p, q) + torch.outer(p, dot_q)) * keep
    mass, dot_mass = f * pq, f * dot_pq + dot_f * pq

    k, dot_k = torch.zeros_like(d2), torch.zeros_like(d2)
    k_d, dot_k_d = torch.zeros_like(d2), torch.zeros_like(d2)  # derivatives in D
    for t, family in enumerate(families):
        c, w, dot_c, dot_w = terms[:, t]
        phi, phi_1, phi_2 = PROFILE_DERIVATIVES[family](c * d2)
        dot_t = dot_c * d2 + c * dot_d2
        k += w * phi
        dot_k += dot_w * phi + w * phi_1 * dot_t
        k_d += w * c * phi_1
        dot_k_d += dot_w * c * phi_1 + w * (c * phi_2 * dot_t + dot_c * phi_1)
        v_terms[0, t] += (dot_mass * w * phi_1 * d2).sum()
        v_terms[0, t] += (
            mass * (dot_w * phi_1 * d2 + w * (phi_2 * d2 * dot_t + phi_1 * dot_d2))
        ).sum()
        v_terms[1, t] += (dot_mass * phi + mass * phi_1 * dot_t).sum()

    k, dot_k = k * keep, dot_k * keep
    grads[a].masses[i] += f * (k @ dot_q + dot_k @ q) + dot_f * (k @ q)
    grads[b].masses[j] += f * (dot_p @ k + p @ dot_k) + dot_f * (p @ k)
    grads[a].dot_masses[i] += f * (k @ q)
    grads[b].dot_masses[j] += f * (p @ k)
    if within:
        grads[a].inner.add_(multiple * (dot_p @ k @ q + p @ k @ dot_q + p @ dot_k @ q))
        grads[a].dot_inner.add_(multiple * (p @ k @ q))

    v_d2, v_dot_d2 = 2 * (dot_mass * k_d + mass * dot_k_d), 2 * mass * k_d
    for rows, columns in near:
        # As in the distances, the difference of near duplicates is taken before the sum.
        pull = v_d2[rows, columns, None] * (x[rows] - y[columns])
        pull += v_dot_d2[rows, columns, None] * (dot_x[rows] - dot_y[columns])
        grads[a].points[i].index_add_(0, rows, pull)
        grads[b].points[j].index_add_(0, columns, -pull)
        v_d2[rows, columns] = 0
        v_dot_d2[rows, columns] = 0
    v_x, v_y = _pull_back(v_d2, x, y)
    v_dot_x, v_dot_y = _pull_back(v_dot_d2, dot_x, dot_y)
    grads[a].points[i] += v_x + v_dot_x
    grads[b].points[j] += v_y + v_dot_y


def _distances(
    x: Tensor, y: Tensor, dot_x: Tensor, dot_y: Tensor
) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
    """D, its derivative along the tangents, and the near duplicates, a bounded number at a time."""
    norms = x.square().sum(1, keepdim=True) + y.square().sum(1)
    d2 = torch.addmm(norms, x, y.T, alpha=-2)
    dot_d2 = (x * dot_x).sum(1, keepdim=True) + (y * dot_y).sum(1) - dot_x @ y.T - x @ dot_y.T
    dot_d2 *= 2
    # The products lose the distance of near duplicates.
    every = (d2 <= 1e-6 * norms).nonzero(as_tuple=True)
    size = max(_NEAR_NUMBERS // x.shape[1], 1)
    near = list(zip(*(indices.split(size) for indices in every), strict=True))
    for rows, columns in near:
        difference = x[rows] - y[columns]
        d2[rows, columns] = difference.square().sum(1)
        dot_d2[rows, columns] = 2 * (difference * (dot_x[rows] - dot_y[columns])).sum(1)
    return d2, dot_d2, near


def _pull_back(v: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """``sum_j v_ij (x_i - y_j)`` and ``sum_i v_ij (y_j - x_i)``."""
    return v.sum(1, keepdim=True) * x - v @ y, v.sum(0).unsqueeze(1) * y - v.T @ x


def _masses(weights: Tensor, dot_weights: Tensor, unbiased: bool) -> tuple[Tensor, ...]:
    """The masses and the factor of the inner sum, each with its tangent."""
    total = weights.sum()
    p = weights / total
    dot_p = (dot_weights - p * dot_weights.sum()) / total
    inner = 1 / (1 - p.square().sum()) if unbiased else torch.ones_like(total)
    dot_inner = 2 * inner.square() * (p * dot_p).sum() if unbiased else torch.zeros_like(total)
    return p, dot_p, inner, dot_inner


def _masses_backward(
    weights: Tensor, dot_weights: Tensor, side: _Side, grad: _Side, unbiased: bool
) -> Tensor:
    """The gradient with respect to the weights, from that with respect to what they make."""
    p, dot_p, inner = side.masses, side.dot_masses, side.inner
    v_p, v_dot_p = grad.masses, grad.dot_masses
    if unbiased:
        v_inner = grad.inner + grad.dot_inner * 4 * inner * (p * dot_p).sum()
        v_p = v_p + 2 * inner.square() * (grad.dot_inner * dot_p + v_inner * p)
        v_dot_p = v_dot_p + 2 * inner.square() * grad.dot_inner * p
    total = weights.sum()
    v_p = v_p - v_dot_p * dot_weights.sum() / total
    return (v_p - (v_p * p).sum() - (v_dot_p * dot_p).sum()) / total
