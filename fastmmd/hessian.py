r"""The Hessian of the MMD times a vector, which is what second derivatives come down to.

With signed masses and a sum over pairs, ``F = sum_ij A_ij k_ij``, where ``k = prod_l k_l`` and
``k_l = sum_t w_t phi_t(c_t u)``, u the squared distance, inner product or cosine of the pair in
the features of factor l. With d for the derivative along the given tangents,

    G = sum_ij dA_ij k_ij + A_ij dk_ij,     dk = sum_l P_l dk_l,     P_l = prod_{l' != l} k_l',
    dk_l = sum_t dw_t phi_t + w_t phi_t' (dc_t u + c_t du)

and the gradient of G with respect to the points, masses, factors c and coefficients w is the
product of the Hessian with the tangents. It reaches k_l as ``dA P_l + A dP_l`` and dk_l as
``A P_l``. It is written out by hand, as the implementation of an operator runs where autograd does
not, in plain PyTorch, block by block and in float64: a road for correctness, in O((n + m) d)
memory. Blocks in which an estimator counts no pair are not visited.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastmmd.checks import BIASED, BLOCK, CROSS, INCOMPLETE, LINEAR, UNBIASED
from fastmmd.reference import PROFILE_DERIVATIVES
from fastmmd.terms import COSINE_SIMILARITY, GEOMETRY, RADIAL

_BLOCK = 512  # points: a matrix of a block stays in cache
_LEAST_BLOCK = 64  # points, where few pairs are counted: a block costs as much as one of this size
_ALL_NUMBERS = 1 << 23  # in the differences of all pairs of a block
_NEAR_NUMBERS = 1 << 20  # in the differences of near duplicates that are worked out at a time


class Pairs(NamedTuple):
    """What is constant about the sum: the kernel, but for its numbers, and the estimator."""

    families: Sequence[int]
    shapes: Sequence[float]
    layers: Sequence[int]  # the factor of the kernel that each term belongs to
    widths: Sequence[int]  # of the layers; empty if there is one
    estimator: int
    size: int


class _Side(NamedTuple):
    """One sample, or the gradient of G with respect to it. Tangents are named ``dot_*``."""

    points: list[Tensor]  # [n, width] of each layer
    dot_points: list[Tensor]
    masses: Tensor  # [n]
    dot_masses: Tensor
    inner: Tensor  # what the sum over pairs within the sample is multiplied by, a scalar
    dot_inner: Tensor


class _Block(NamedTuple):
    """Pairs of points of two samples, 0 or 1, that are met together."""

    samples: tuple[int, int]
    rows: slice
    columns: slice
    multiple: float  # -2 across the samples; within, a mirror counts twice
    counted: Tensor | None  # [rows, columns]: which pairs are; None for all


def hessian_product(
    pairs: Pairs,
    points: Sequence[Tensor],
    weights: Sequence[Tensor],
    factors: Tensor,
    coefficients: Tensor,
    dot_points: Sequence[Tensor],
    dot_weights: Sequence[Tensor],
    dot_factors: Tensor,
    dot_coefficients: Tensor,
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """The Hessian of the MMD in all its arguments, times their tangents. Everything is float64.

    Args:
        pairs: the kernel and the estimator.
        points: the two samples, [n, d] and [m, d].
        weights: those of their points, [n] and [m], not divided by their sums.
        factors: [T], the c of the terms.
        coefficients: [T].
        dot_points: the tangents of the points, and so on.
        dot_weights: [n] and [m].
        dot_factors: [T].
        dot_coefficients: [T].

    Returns:
        The products for points, weights, factors and coefficients.
    """
    layers = _layers(pairs, points)
    seen = [
        [
            _seen(geometry, p[:, columns], dot_p[:, columns], centre)
            for geometry, columns, centre in layers
        ]
        for p, dot_p in zip(points, dot_points, strict=True)
    ]
    sides = [
        _Side([p for p, _ in of], [dot_p for _, dot_p in of], *_masses(w, dot_w, pairs.estimator))
        for of, w, dot_w in zip(seen, weights, dot_weights, strict=True)
    ]
    grads = [_zeros_like(side) for side in sides]
    terms = torch.stack([factors, coefficients, dot_factors, dot_coefficients])
    v_terms = torch.zeros_like(terms[:2])
    for block in _blocks(pairs, len(points[0]), len(points[1]), points[0].device):
        _add_block(sides, grads, block, pairs, terms, v_terms)
    v_points = []
    for p, dot_p, grad in zip(points, dot_points, grads, strict=True):
        v = torch.zeros_like(p)
        for (geometry, columns, _), v_p, v_dot_p in zip(
            layers, grad.points, grad.dot_points, strict=True
        ):
            if geometry == COSINE_SIMILARITY:
                v_p = _directions_backward(p[:, columns], dot_p[:, columns], v_p, v_dot_p)
            v[:, columns] = v_p
        v_points.append(v)
    v_weights = [
        _masses_backward(w, dot_w, side, grad, pairs.estimator)
        for w, dot_w, side, grad in zip(weights, dot_weights, sides, grads, strict=True)
    ]
    return v_points, v_weights, v_terms[0].clone(), v_terms[1].clone()


def _layers(pairs: Pairs, points: Sequence[Tensor]) -> list[tuple[int, slice, Tensor]]:
    """The geometry, the columns and the centre of the points in each layer."""
    widths = pairs.widths or [points[0].shape[1]]
    stops = itertools.accumulate(widths)
    columns = [slice(stop - width, stop) for width, stop in zip(widths, stops, strict=True)]
    of = dict(zip(pairs.layers, (GEOMETRY[family] for family in pairs.families), strict=True))
    centre = torch.cat(list(points)).mean(0)  # distances lose less around 0
    return [(of[layer], c, centre[c]) for layer, c in enumerate(columns)]


def _seen(geometry: int, x: Tensor, dot_x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """The points and their tangents as a geometry has them."""
    if geometry == RADIAL:
        return x - centre, dot_x
    if geometry == COSINE_SIMILARITY:
        u, inverse = _directions(x)
        return u, inverse * (dot_x - u * (u * dot_x).sum(1, keepdim=True))
    return x, dot_x


def _directions(x: Tensor) -> tuple[Tensor, Tensor]:
    """``u = x / |x|`` and ``1 / |x|``, 0 where the norm is."""
    norm = x.norm(dim=1, keepdim=True)
    inverse = torch.where(norm == 0, 0.0, 1 / norm)
    return x * inverse, inverse


def _directions_backward(x: Tensor, dot_x: Tensor, v_u: Tensor, v_dot_u: Tensor) -> Tensor:
    """The gradient with respect to x, from those to u = x / |x| and to J dx, J = du / dx."""
    u, inverse = _directions(x)

    def project(t: Tensor) -> Tensor:  # J t, and J is symmetric
        return inverse * (t - u * (u * t).sum(1, keepdim=True))

    along_v, along_x = ((u * t).sum(1, keepdim=True) for t in (v_dot_u, dot_x))
    second = inverse * (v_dot_u * project(dot_x)).sum(1, keepdim=True) * u
    second += inverse * (along_x * project(v_dot_u) + along_v * project(dot_x))
    return project(v_u) - second


def _zeros_like(side: _Side) -> _Side:
    points, dot_points, *others = side
    return _Side(
        [torch.zeros_like(t) for t in points],
        [torch.zeros_like(t) for t in dot_points],
        *(torch.zeros_like(t) for t in others),
    )


def _blocks(pairs: Pairs, n: int, m: int, device: torch.device) -> Iterator[_Block]:
    """All pairs that the estimator counts, with what they are multiplied by beside the masses."""
    if pairs.estimator in (LINEAR, BLOCK, INCOMPLETE):
        yield from _banded_blocks(pairs, min(n, m), device)
        return
    rows, columns = (_slices(0, size, _BLOCK) for size in (n, m))
    for i, j in itertools.product(rows, columns):
        yield _Block((0, 1), i, j, 1.0 if pairs.estimator == CROSS else -2.0, None)
    if pairs.estimator == CROSS:
        return
    for sample, slices in enumerate((rows, columns)):
        for i, j in itertools.product(slices, slices):
            if i.start < j.start:
                yield _Block((sample, sample), i, j, 2.0, None)
            elif i == j:
                counted = None
                if pairs.estimator == UNBIASED:
                    size = i.stop - i.start
                    counted = ~torch.eye(size, dtype=torch.bool, device=device)
                yield _Block((sample, sample), i, i, 1.0, counted)


def _banded_blocks(pairs: Pairs, paired: int, device: torch.device) -> Iterator[_Block]:
    """The same for estimators that count pairs near the diagonal only."""
    estimator, size = pairs.estimator, pairs.size
    if estimator == INCOMPLETE:
        end, number = paired, sum(paired - r for r in range(1, size + 1))
        within, across = 0.5 / number, -1 / number  # pairs within a sample are met twice
    else:
        size = 2 if estimator == LINEAR else size
        groups = paired // size
        end, within = groups * size, 1 / (groups * size * (size - 1))
        across = -1 / groups if estimator == LINEAR else -2 / (groups * size * size)
    slices = _slices(0, end, min(_BLOCK, max(_LEAST_BLOCK, size)))
    step = slices[0].stop
    for i in slices:
        if estimator == INCOMPLETE:
            first, last = max(i.start - size, 0), min(i.stop + size, end)
        else:
            first, last = i.start // size * size, -(-i.stop // size) * size
        for j in slices[first // step : -(-last // step)]:
            row = torch.arange(i.start, i.stop, device=device).unsqueeze(1)
            column = torch.arange(j.start, j.stop, device=device)
            if estimator == INCOMPLETE:
                counted = (row - column).abs() <= size
            else:
                counted = row // size == column // size
            apart = counted & (row != column)
            yield _Block((0, 1), i, j, across, counted if estimator == BLOCK else apart)
            if i.start <= j.start:
                multiple = within if i == j else 2 * within
                for sample in (0, 1):
                    yield _Block((sample, sample), i, j, multiple, apart)


def _slices(start: int, stop: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, stop)) for i in range(start, stop, size)]


# The near duplicates of a block, a bounded number at a time; None stands for all of its pairs.
_Near = Sequence[tuple[Tensor, Tensor]] | None


class _Factor(NamedTuple):
    """One factor of the kernel at the pairs of a block, [rows, columns] each."""

    u: Tensor
    dot_u: Tensor
    near: _Near
    k: Tensor
    dot_k: Tensor
    k_u: Tensor  # dk / du
    dot_k_u: Tensor


def _add_block(
    sides: Sequence[_Side],
    grads: Sequence[_Side],
    block: _Block,
    pairs: Pairs,
    terms: Tensor,
    v_terms: Tensor,
) -> None:
    """Add to the gradients of G what one block of pairs contributes."""
    (a, b), i, j, multiple, counted = block
    p, dot_p = sides[a].masses[i], sides[a].dot_masses[i]
    q, dot_q = sides[b].masses[j], sides[b].dot_masses[j]
    within = a == b
    one = torch.ones_like(sides[a].inner)
    f = multiple * (sides[a].inner if within else one)
    dot_f = multiple * (sides[a].dot_inner if within else torch.zeros_like(one))

    pq = torch.outer(p, q)
    dot_pq = torch.outer(dot_p, q) + torch.outer(p, dot_q)
    if counted is not None:
        pq, dot_pq = pq * counted, dot_pq * counted
    mass, dot_mass = f * pq, f * dot_pq + dot_f * pq

    by_layer: list[list[int]] = [[] for _ in sides[a].points]
    for t, layer in enumerate(pairs.layers):
        by_layer[layer].append(t)
    xs, dot_xs = ([t[i] for t in of] for of in sides[a][:2])
    ys, dot_ys = ([t[j] for t in of] for of in sides[b][:2])
    made = [
        _factor(of, pairs, terms, *points)
        for of, *points in zip(by_layer, xs, ys, dot_xs, dot_ys, strict=True)
    ]
    for layer, (of, factor) in enumerate(zip(by_layer, made, strict=True)):
        others, dot_others = _product(made[:layer] + made[layer + 1 :], factor.k)
        # what arrives at k and at dot_k of this factor
        v_k, v_dot_k = dot_mass * others + mass * dot_others, mass * others
        for t in of:
            _add_term(t, pairs, factor, terms, v_terms, v_k, v_dot_k)
        v_u = v_k * factor.k_u + v_dot_k * factor.dot_k_u
        v_dot_u = v_dot_k * factor.k_u
        into = [grads[a].points, grads[a].dot_points, grads[b].points, grads[b].dot_points]
        _pull_back(
            GEOMETRY[pairs.families[of[0]]],
            (xs[layer], dot_xs[layer], ys[layer], dot_ys[layer]),
            [t[layer][rows] for t, rows in zip(into, (i, i, j, j), strict=True)],
            v_u,
            v_dot_u,
            factor.near,
        )

    k, dot_k = _product(made, pq)
    if counted is not None:
        k, dot_k = k * counted, dot_k * counted
    grads[a].masses[i] += f * (k @ dot_q + dot_k @ q) + dot_f * (k @ q)
    grads[b].masses[j] += f * (dot_p @ k + p @ dot_k) + dot_f * (p @ k)
    grads[a].dot_masses[i] += f * (k @ q)
    grads[b].dot_masses[j] += f * (p @ k)
    if within:
        grads[a].inner.add_(multiple * (dot_p @ k @ q + p @ k @ dot_q + p @ dot_k @ q))
        grads[a].dot_inner.add_(multiple * (p @ k @ q))


def _product(factors: Sequence[_Factor], like: Tensor) -> tuple[Tensor, Tensor]:
    """The product of the factors, and its derivative along the tangents."""
    product, dot_product = torch.ones_like(like), torch.zeros_like(like)
    for factor in factors:
        dot_product = dot_product * factor.k + product * factor.dot_k
        product = product * factor.k
    return product, dot_product


def _factor(
    of: Sequence[int],
    pairs: Pairs,
    terms: Tensor,
    x: Tensor,
    y: Tensor,
    dot_x: Tensor,
    dot_y: Tensor,
) -> _Factor:
    near: _Near = []
    if GEOMETRY[pairs.families[of[0]]] == RADIAL:
        u, dot_u, near = _distances(x, y, dot_x, dot_y)
    else:
        u, dot_u = x @ y.T, dot_x @ y.T + x @ dot_y.T
    k, dot_k, k_u, dot_k_u = (torch.zeros_like(u) for _ in range(4))
    for t in of:
        c, w, dot_c, dot_w = terms[:, t]
        phi, phi_1, phi_2 = _profile(t, pairs, c * u)
        dot_t = dot_c * u + c * dot_u
        k += w * phi
        dot_k += dot_w * phi + w * phi_1 * dot_t
        k_u += w * c * phi_1
        dot_k_u += dot_w * c * phi_1 + w * (c * phi_2 * dot_t + dot_c * phi_1)
    return _Factor(u, dot_u, near, k, dot_k, k_u, dot_k_u)


def _profile(t: int, pairs: Pairs, scaled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return PROFILE_DERIVATIVES[pairs.families[t]](scaled, *pairs.shapes[2 * t : 2 * t + 2])


def _add_term(
    t: int,
    pairs: Pairs,
    factor: _Factor,
    terms: Tensor,
    v_terms: Tensor,
    v_k: Tensor,
    v_dot_k: Tensor,
) -> None:
    """Add to the gradients of a term's factor c and coefficient w."""
    c, w, dot_c, dot_w = terms[:, t]
    u, dot_u = factor.u, factor.dot_u
    phi, phi_1, phi_2 = _profile(t, pairs, c * u)
    dot_t = dot_c * u + c * dot_u
    v_terms[0, t] += (v_k * w * phi_1 * u).sum()
    v_terms[0, t] += (v_dot_k * (dot_w * phi_1 * u + w * (phi_2 * u * dot_t + phi_1 * dot_u))).sum()
    v_terms[1, t] += (v_k * phi + v_dot_k * phi_1 * dot_t).sum()


def _can_count(x: Tensor) -> bool:
    """Whether a number of points may be asked for: of a GPU's, that would wait for the device."""
    return x.is_cpu


def _differences(
    x: Tensor, y: Tensor, dot_x: Tensor, dot_y: Tensor
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Of all pairs, and of their tangents, some features at a time."""
    size = max(_ALL_NUMBERS // (len(x) * len(y)), 1)
    for part in _slices(0, x.shape[1], size):
        yield (
            part,
            x[:, None, part] - y[None, :, part],
            dot_x[:, None, part] - dot_y[None, :, part],
        )


def _distances(x: Tensor, y: Tensor, dot_x: Tensor, dot_y: Tensor) -> tuple[Tensor, Tensor, _Near]:
    """D, its derivative along the tangents, and which pairs are near duplicates."""
    if not _can_count(x):
        d2, dot_d2 = x.new_zeros(len(x), len(y)), x.new_zeros(len(x), len(y))
        for _, difference, dot_difference in _differences(x, y, dot_x, dot_y):
            d2 += difference.square().sum(2)
            dot_d2 += 2 * (difference * dot_difference).sum(2)
        return d2, dot_d2, None
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


def _pull_back(
    geometry: int,
    points: tuple[Tensor, Tensor, Tensor, Tensor],
    grads: Sequence[Tensor],
    v_u: Tensor,
    v_dot_u: Tensor,
    near: _Near,
) -> None:
    """Add to the gradients of ``x, dot_x, y, dot_y`` what comes from u and dot_u."""
    x, dot_x, y, dot_y = points
    v_x, v_dot_x, v_y, v_dot_y = grads
    if geometry != RADIAL:
        v_x += v_u @ y + v_dot_u @ dot_y
        v_y += v_u.T @ x + v_dot_u.T @ dot_x
        v_dot_x += v_dot_u @ y
        v_dot_y += v_dot_u.T @ x
        return
    # The tangents are constants here.
    v_u, v_dot_u = 2 * v_u, 2 * v_dot_u
    if near is None:
        for part, difference, dot_difference in _differences(x, y, dot_x, dot_y):
            pull = v_u.unsqueeze(2) * difference + v_dot_u.unsqueeze(2) * dot_difference
            v_x[:, part] += pull.sum(1)
            v_y[:, part] -= pull.sum(0)
        return
    for rows, columns in near:
        # As in the distances, the difference of near duplicates is taken before the sum.
        pull = v_u[rows, columns, None] * (x[rows] - y[columns])
        pull += v_dot_u[rows, columns, None] * (dot_x[rows] - dot_y[columns])
        v_x.index_add_(0, rows, pull)
        v_y.index_add_(0, columns, -pull)
        v_u[rows, columns] = 0
        v_dot_u[rows, columns] = 0
    for v, a, b in ((v_u, x, y), (v_dot_u, dot_x, dot_y)):
        v_x += v.sum(1, keepdim=True) * a - v @ b
        v_y += v.sum(0).unsqueeze(1) * b - v.T @ a


def _masses(weights: Tensor, dot_weights: Tensor, estimator: int) -> tuple[Tensor, ...]:
    """The masses and the factor of the inner sum, each with its tangent."""
    one, zero = weights.new_ones(()), weights.new_zeros(())
    if estimator not in (BIASED, UNBIASED, CROSS):  # the blocks know what pairs weigh
        return torch.ones_like(weights), torch.zeros_like(weights), one, zero
    total = weights.sum()
    p = weights / total
    dot_p = (dot_weights - p * dot_weights.sum()) / total
    if estimator != UNBIASED:
        return p, dot_p, one, zero
    inner = 1 / (1 - p.square().sum())
    return p, dot_p, inner, 2 * inner.square() * (p * dot_p).sum()


def _masses_backward(
    weights: Tensor, dot_weights: Tensor, side: _Side, grad: _Side, estimator: int
) -> Tensor:
    """The gradient with respect to the weights, from that with respect to what they make."""
    if estimator not in (BIASED, UNBIASED, CROSS):
        return torch.zeros_like(weights)
    p, dot_p, inner = side.masses, side.dot_masses, side.inner
    v_p, v_dot_p = grad.masses, grad.dot_masses
    if estimator == UNBIASED:
        v_inner = grad.inner + grad.dot_inner * 4 * inner * (p * dot_p).sum()
        v_p = v_p + 2 * inner.square() * (grad.dot_inner * dot_p + v_inner * p)
        v_dot_p = v_dot_p + 2 * inner.square() * grad.dot_inner * p
    total = weights.sum()
    v_p = v_p - v_dot_p * dot_weights.sum() / total
    return (v_p - (v_p * p).sum() - (v_dot_p * dot_p).sum()) / total
