"""The oracle of float64 inputs: extended precision, with the gradients written out.

The gradients of sample weights are what is left of sums that nearly cancel. Float64 knows them no
better than what is under test does, and a bound of a few roundings leaves no room for that.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fastmmd.terms import COSINE_SIMILARITY, DOT, FIXED, GEOMETRY, MEAN, RADIAL, WIDTH, X_MEDIAN

if TYPE_CHECKING:
    from tolerance import Case

Array = np.ndarray


def pair_masses(estimator: str, size: int, p: Array, q: Array, x_count: int, y_count: int) -> Array:
    """What the kernel of each pair of points of the pooled sample is multiplied by, [N, N].

    Args:
        estimator: its name.
        size: its parameter.
        p: the weights of the first sample, divided by their sum.
        q: those of the second.
        x_count: points of the first sample.
        y_count: those of the second.
    """
    paired = min(x_count, y_count)
    xx, yy, xy = (
        np.zeros(shape, p.dtype)
        for shape in ((x_count, x_count), (y_count, y_count), (x_count, y_count))
    )
    if estimator in ("biased", "unbiased"):
        xx[:], yy[:], xy[:] = np.outer(p, p), np.outer(q, q), -np.outer(p, q)
        if estimator == "unbiased":
            for block, u in ((xx, p), (yy, q)):
                np.fill_diagonal(block, 0)
                block /= 1 - u @ u
    elif estimator == "cross":
        xy[:] = np.outer(p, q) / 2
    elif estimator == "block":
        count = paired // size
        for i in range(count):
            rows = slice(i * size, (i + 1) * size)
            for block in (xx, yy):
                block[rows, rows] = (1 - np.eye(size)) / p.dtype.type(size * (size - 1) * count)
            xy[rows, rows] = -1 / p.dtype.type(size * size * count)
    else:
        pairs = (
            [(2 * i, 2 * i + 1) for i in range(paired // 2)]
            if estimator == "linear"
            else [(i, i + r) for r in range(1, size + 1) for i in range(paired - r)]
        )
        share = 1 / p.dtype.type(len(pairs))
        for i, j in pairs:
            xx[i, j] = yy[i, j] = share
            xy[i, j] = xy[j, i] = -share / 2
    return np.block([[xx, xy], [xy.T, yy]])


def extended(case: Case, incoming: float) -> dict[str, Tensor]:
    """The value and, ``incoming`` times, the gradients; those of the terms' scales among them."""
    real = np.longdouble
    terms = case.terms()
    scales, coefficients = (t.detach().numpy().astype(real) for t in terms[1:3])
    x, y = case.x.numpy().astype(real), case.y.numpy().astype(real)
    z, n = np.concatenate([x, y]), len(x)
    p, q = (
        np.ones(len(t), real) if w is None else w.detach().double().numpy().astype(real)
        for t, w in ((x, case.x_weights), (y, case.y_weights))
    )
    x_sum, y_sum = p.sum(), q.sum()
    p, q = p / x_sum, q / y_sum
    mass = pair_masses(case.estimator, case.size(), p, q, n, len(y))

    # The pair statistics of each factor, and the inverse units.
    edges = np.cumsum([0, *(case.widths or [z.shape[1]])])
    layers = [z[:, a:b] for a, b in itertools.pairwise(edges)]
    # how each term looks at pairs
    looks = [(layer, GEOMETRY[f]) for f, layer in zip(terms.families, terms.factors, strict=True)]
    pairs = {look: _statistic(layers[look[0]], look[1]) for look in set(looks)}
    units = set(zip(terms.factors, terms.units, strict=True))
    sizes = {key: _unit(layers[key[0]], key[1], n) for key in units}
    inverse = np.array(
        [
            1 / sizes[key] if sizes[key] else real(0)
            for key in zip(terms.factors, terms.units, strict=True)
        ]
    )
    rates = scales * inverse

    phi, slope, values = [], [], [np.zeros_like(mass) for _ in layers]
    for t, (family, look) in enumerate(zip(terms.families, looks, strict=True)):
        shape = terms.shapes[2 * t : 2 * t + 2]
        value, derivative = _profile(family, rates[t] * pairs[look], *map(real, shape))
        phi.append(value)
        slope.append(derivative)
        values[look[0]] += coefficients[t] * value

    k = np.prod(values, axis=0)
    rests = [
        mass * np.prod([v for i, v in enumerate(values) if i != layer], axis=0)
        for layer in range(len(layers))
    ]
    pulls = {look: np.zeros_like(mass) for look in pairs}
    v_scales, v_coefficients = np.zeros_like(scales), np.zeros_like(scales)
    for t, look in enumerate(looks):
        pull = rests[look[0]] * coefficients[t] * slope[t]
        v_coefficients[t] = (rests[look[0]] * phi[t]).sum()
        v_scales[t] = (pull * pairs[look]).sum() * inverse[t]
        pulls[look] += pull * rates[t]
    v_z = np.zeros_like(z)
    for (layer, geometry), pull in pulls.items():
        part = v_z[:, edges[layer] : edges[layer + 1]]
        part += _points_gradient(layers[layer], geometry, pull + pull.T)

    xx, yy, xy = k[:n, :n].copy(), k[n:, n:].copy(), k[:n, n:]
    if case.estimator == "cross":
        v_p, v_q = xy @ q, p @ xy
    else:
        v_p, v_q = -2 * xy @ q, -2 * p @ xy
        for v, u, block in ((v_p, p, xx), (v_q, q, yy)):
            inner = real(1)
            if case.estimator == "unbiased":
                np.fill_diagonal(block, 0)
                inner = 1 / (1 - u @ u)
                v += 2 * inner**2 * (u @ block @ u) * u
            v += 2 * inner * (block @ u)

    v = {
        "x": v_z[:n],
        "y": v_z[n:],
        "x_weights": (v_p - v_p @ p) / x_sum,
        "y_weights": (v_q - v_q @ q) / y_sum,
        "scales": v_scales,
        "coefficients": v_coefficients,
    }
    for name in ("x_weights", "y_weights"):
        if getattr(case, name) is None:
            del v[name]
    v = {"value": (mass * k).sum()} | {name: g * real(incoming) for name, g in v.items()}
    return {name: torch.from_numpy(np.asarray(array, float)) for name, array in v.items()}


def _statistic(z: Array, geometry: int) -> Array:
    """Squared distances, inner products or cosines of all pairs."""
    if geometry == RADIAL:
        return np.square(z[:, None] - z).sum(-1)
    if geometry == COSINE_SIMILARITY:
        z = _directions(z)[0]
    return z @ z.T


def _directions(z: Array) -> tuple[Array, Array]:
    """``z / |z|`` and ``1 / |z|``, both 0 where z is."""
    norms = np.sqrt(np.square(z).sum(1, keepdims=True))
    inverse = np.divide(1, norms, out=np.zeros_like(norms), where=norms != 0)
    return z * inverse, inverse


def _points_gradient(z: Array, geometry: int, pull: Array) -> Array:
    """The gradient of ``sum_ij pull_ij u_ij / 2`` for a symmetric pull."""
    if geometry == RADIAL:
        return 2 * (pull.sum(1)[:, None] * z - pull @ z)
    if geometry == DOT:
        return pull @ z
    directions, inverse = _directions(z)
    v = pull @ directions
    return (v - (v * directions).sum(1)[:, None] * directions) * inverse


def _unit(z: Array, unit: int, n: int) -> Array:
    """The unit of a term on the pooled sample, the first n points of which are x."""
    if unit in (FIXED, WIDTH):
        return z.dtype.type(1 if unit == FIXED else z.shape[1])
    d2 = _statistic(z, RADIAL)
    pairs = np.sort(d2[np.triu_indices(len(z), 1)])
    if unit == X_MEDIAN:
        pairs = np.sort(d2[:n, :n].ravel())
    return pairs.mean() if unit == MEAN else pairs[(len(pairs) - 1) // 2]


def _profile(family: int, t: Array, p: Array, q: Array) -> tuple[Array, Array]:
    """The profile of a family and its derivative, an infinite one taken as 0."""
    root = np.sqrt(np.maximum(t, 0))  # of a radial kernel
    inverse_root = np.divide(1, root, out=np.zeros_like(t), where=root != 0)
    if family == 0:
        return np.exp(-t), -np.exp(-t)
    if family == 1:
        return np.exp(-root), -np.exp(-root) * inverse_root / 2
    if family == 2:
        return -root, -inverse_root / 2
    if family == 3:
        return (1 + t) ** -0.5, -((1 + t) ** -1.5) / 2
    if family == 4:
        return (1 + t / p) ** -p, -((1 + t / p) ** (-p - 1))
    if family == 5:
        r = np.sqrt(t.dtype.type(3)) * root
        return (1 + r) * np.exp(-r), -3 * np.exp(-r) / 2
    if family == 6:
        r = np.sqrt(t.dtype.type(5)) * root
        return (1 + r + r * r / 3) * np.exp(-r), -5 * (1 + r) * np.exp(-r) / 6
    if family == 7:
        return (t + q) ** int(p), p * (t + q) ** (int(p) - 1)
    return t, np.ones_like(t)
