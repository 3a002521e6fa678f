"""The same functions in plain PyTorch, with every matrix written out.

They are the oracle of the tests and the other side of the benchmarks. Everything here
differentiates twice, forwards and backwards, and runs on any device, in O((n + m)^2) memory and in
the dtype it is given (float16 and bfloat16 are taken to float32). Cast to float64 for an oracle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from fastmmd.checks import BIASED, BLOCK, CROSS, ESTIMATORS, INCOMPLETE, LINEAR, UNBIASED
from fastmmd.kernels import Kernel, as_kernel
from fastmmd.terms import COSINE_SIMILARITY, GEOMETRY, POLYNOMIAL, RADIAL, Terms
from fastmmd.terms import LINEAR as LINEAR_FAMILY


def _root(t: Tensor) -> Tensor:
    """The square root, with derivatives of 0 at 0, where its own are infinite."""
    zero = t == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, t).sqrt())


def _matern_3_2(t: Tensor, p: float, q: float) -> Tensor:
    # The slope at 0 is finite, but lost in the product of 0 and the slope of the root.
    zero = t == 0
    r = torch.where(zero, 1.0, 3 * t).sqrt()
    return torch.where(zero, 1 - 1.5 * t, (1 + r) * torch.exp(-r))


def _matern_5_2(t: Tensor, p: float, q: float) -> Tensor:
    zero = t == 0
    r = torch.where(zero, 1.0, 5 * t).sqrt()
    series = 1 - 5 / 6 * t + 25 / 24 * t.square()
    return torch.where(zero, series, (1 + r + r.square() / 3) * torch.exp(-r))


# The profile of each family, in the order of their numbers: k = phi(t), t the scaled statistic of
# the pair, p and q the shape of the term.
PROFILES: tuple[Callable[[Tensor, float, float], Tensor], ...] = (
    lambda t, p, q: torch.exp(-t),  # Gaussian
    lambda t, p, q: torch.exp(-_root(t)),  # Laplacian
    lambda t, p, q: -_root(t),  # energy
    lambda t, p, q: (1 + t).rsqrt(),  # inverse multiquadric
    lambda t, p, q: (1 + t / p).pow(-p),  # rational quadratic
    _matern_3_2,
    _matern_5_2,
    lambda t, p, q: (t + q).pow(int(p)),  # polynomial
    lambda t, p, q: t,  # linear
    lambda t, p, q: t,  # cosine
)

Derivatives = tuple[Tensor, Tensor, Tensor]


def _gaussian_derivatives(t: Tensor, p: float, q: float) -> Derivatives:
    phi = torch.exp(-t)
    return phi, -phi, phi


def _laplacian_derivatives(t: Tensor, p: float, q: float) -> Derivatives:
    root, inverse = _root(t), _inverse_root(t)
    phi = torch.exp(-root)
    return phi, -0.5 * phi * inverse, 0.25 * phi * (1 + root) * inverse**3


def _energy_derivatives(t: Tensor, p: float, q: float) -> Derivatives:
    inverse = _inverse_root(t)
    return -_root(t), -0.5 * inverse, 0.25 * inverse**3


def _inverse_multiquadric_derivatives(t: Tensor, p: float, q: float) -> Derivatives:
    phi = (1 + t).rsqrt()
    return phi, -0.5 * phi**3, 0.75 * phi**5


def _rational_quadratic_derivatives(t: Tensor, p: float, q: float) -> Derivatives:
    base = 1 + t / p
    phi = base.pow(-p)
    return phi, -phi / base, (1 + 1 / p) * phi / base.square()


def _matern_3_2_derivatives(t: Tensor, p: float, q: float) -> Derivatives:
    r = (3 * t).sqrt()
    e = torch.exp(-r)
    return (1 + r) * e, -1.5 * e, 2.25 * e * _inverse_root(3 * t)


def _matern_5_2_derivatives(t: Tensor, p: float, q: float) -> Derivatives:
    r = (5 * t).sqrt()
    e = torch.exp(-r)
    return (1 + r + r.square() / 3) * e, -5 / 6 * (1 + r) * e, 25 / 12 * e


def _polynomial_derivatives(t: Tensor, p: float, q: float) -> Derivatives:
    base, degree = t + q, int(p)
    second = degree * (degree - 1) * base.pow(max(degree - 2, 0))
    return base.pow(degree), degree * base.pow(degree - 1), second


def _identity_derivatives(t: Tensor, p: float, q: float) -> Derivatives:
    nan = 0 * t  # that of a NaN stays
    return t, 1 + nan, nan


def _inverse_root(t: Tensor) -> Tensor:
    return torch.where(t == 0, 0.0, t.rsqrt())


# The profiles with their first and second derivative; infinite ones, at 0, are taken as 0.
PROFILE_DERIVATIVES: tuple[Callable[[Tensor, float, float], Derivatives], ...] = (
    _gaussian_derivatives,
    _laplacian_derivatives,
    _energy_derivatives,
    _inverse_multiquadric_derivatives,
    _rational_quadratic_derivatives,
    _matern_3_2_derivatives,
    _matern_5_2_derivatives,
    _polynomial_derivatives,
    _identity_derivatives,
    _identity_derivatives,
)


def squared_distances(x: Tensor, y: Tensor | None = None) -> Tensor:
    """``|x_i - y_j|^2`` by one matrix product, as ``|x|^2 + |y|^2 - 2 x y``, clamped at 0.

    Its error is the rounding of that sum: little for data around 0, all of the distance of near
    duplicates.

    Args:
        x: points, [..., n, d].
        y: points, [..., m, d]; x itself if None, with a diagonal of exact zeros.

    Returns:
        [..., n, m].
    """
    other = x if y is None else y
    norms = x.square().sum(-1, keepdim=True) + other.square().sum(-1).unsqueeze(-2)
    d2 = torch.addmm(norms, x, other.T, alpha=-2) if x.ndim == 2 else norms - 2 * (x @ other.mT)
    d2 = d2.clamp(min=0)
    return d2 if y is not None else d2.masked_fill(_diagonal(x), 0)


def direct_squared_distances(x: Tensor, y: Tensor | None = None) -> Tensor:
    """``|x_i - y_j|^2`` from the differences: accurate for near duplicates, in O(n m d) memory."""
    other = x if y is None else y
    return (x.unsqueeze(-2) - other.unsqueeze(-3)).square().sum(-1)


def inner_products(x: Tensor, y: Tensor | None = None) -> Tensor:
    """``<x_i, y_j>``, [..., n, m]."""
    return x @ (x if y is None else y).mT


def cosines(x: Tensor, y: Tensor | None = None) -> Tensor:
    """``<x_i, y_j> / (|x_i| |y_j|)``, [..., n, m]; 0, as are its derivatives, where a norm is 0."""
    return inner_products(directions(x), None if y is None else directions(y))


def directions(x: Tensor) -> Tensor:
    """``x_i / |x_i|``, [..., n, d]; 0, as are its derivatives, where x_i is."""
    norms = _root(x.square().sum(-1, keepdim=True))
    return torch.where(norms == 0, 0.0, x / torch.where(norms == 0, 1.0, norms))


def mean_squared_distance(z: Tensor) -> Tensor:
    """The mean of ``|z_i - z_j|^2`` over i != j of z [N, d], a scalar without a gradient.

    In linear time, as ``sum_ij |z_i - z_j|^2 = 2 N sum_i |z_i - mean|^2``.
    """
    z = z.detach()
    return 2 * (z - z.mean(0)).square().sum() / (len(z) - 1)


def median_squared_distance(z: Tensor) -> Tensor:
    """The median of ``|z_i - z_j|^2`` over i < j of z [N, d], a scalar without a gradient.

    Of two middle values it is the lower, as with ``torch.median``.
    """
    return torch.pdist(z.detach()).square().median()


def full_median_squared_distance(x: Tensor) -> Tensor:
    """``torch.median`` of all n^2 squared distances, those of a point to itself among them."""
    pairs = torch.pdist(x.detach()).square()
    return torch.cat([pairs, pairs, pairs.new_zeros(len(x))]).median()


def resolve(terms: Terms, x: Tensor, y: Tensor, widths: Sequence[int] | None = None) -> Tensor:
    """The factors scale / unit of the terms on two samples, [n, d] and [m, d].

    Args:
        terms: the kernel.
        x: the first sample.
        y: the second sample.
        widths: numbers of features of the factors of a product of kernels.

    Returns:
        [T], in the dtype of x; 0 where the unit is 0, as it is if all points are equal.
    """
    statistics: dict[int, Callable[[Tensor, Tensor], Tensor]] = {
        0: lambda x, y: x.new_ones(()),
        1: lambda x, y: mean_squared_distance(torch.cat([x, y])),
        2: lambda x, y: median_squared_distance(torch.cat([x, y])),
        3: lambda x, y: full_median_squared_distance(x),
        4: lambda x, y: x.new_tensor(x.shape[1]),
    }
    layers = list(zip(_layers(x, widths), _layers(y, widths), strict=True))
    keys = list(zip(terms.factors, terms.units, strict=True))
    units = {(layer, unit): statistics[unit](*layers[layer]) for layer, unit in set(keys)}
    factors = [
        torch.where(units[key] == 0, 0.0, scale / units[key]) if key[1] else scale
        for scale, key in zip(terms.scales.to(x), keys, strict=True)
    ]
    return torch.stack(factors)


def _layers(x: Tensor, widths: Sequence[int] | None) -> Sequence[Tensor]:
    return [x] if widths is None else x.split(list(widths), -1)


def kernel_matrix(statistics: Sequence[Tensor], terms: Terms, factors: Tensor) -> Tensor:
    """``prod_l sum_t coefficient_t phi_t(factor_t u_t)``, t over the terms of factor l.

    Args:
        statistics: u of each term, of one shape: squared distances, inner products or cosines.
        terms: the kernel.
        factors: [T], scale / unit of the terms.

    Returns:
        Of that shape.
    """
    coefficients = terms.coefficients.to(factors)
    layers: list[Tensor] = []
    for t, (family, layer, u) in enumerate(
        zip(terms.families, terms.factors, statistics, strict=True)
    ):
        p, q = terms.shapes[2 * t : 2 * t + 2]
        value = coefficients[t] * PROFILES[family](factors[t] * u, p, q)
        if layer < len(layers):
            layers[layer] = layers[layer] + value
        else:
            layers.append(value)
    first, *others = layers
    return math.prod(others, start=first)


# How the points of a term are looked at: the layer (factor) it belongs to, its geometry, and
# whether the points are moved to their mean first.
View = tuple[int, int, bool]
Points = dict[View, Tensor]


def views(terms: Terms, invariant: bool) -> list[View]:
    """The view of each term.

    Distances are taken of centred points, as they lose less around 0. So are the inner products of
    a linear kernel, where the estimator does not change with a translation of both samples and no
    polynomial needs them as they are.
    """
    linear = invariant and not any(terms.factors) and POLYNOMIAL not in terms.families
    return [
        (layer, GEOMETRY[f], GEOMETRY[f] == RADIAL or (linear and f == LINEAR_FAMILY))
        for f, layer in zip(terms.families, terms.factors, strict=True)
    ]


def is_invariant(estimator: int, weighted: bool) -> bool:
    """Whether an estimator with a linear kernel ignores a translation of both samples.

    With weights, the sums over i != j do not weigh the points as the cross sum does.
    """
    return estimator != CROSS and not (estimator == UNBIASED and weighted)


def centred(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both samples less the mean of their points, which counts as a constant."""
    centre = torch.cat([x, y]).detach().mean(0)
    return x - centre, y - centre


Measure = Callable[[Tensor, Tensor | None], Tensor]
Centre = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def gram(
    a: Points,
    b: Points | None,
    views: Sequence[View],
    terms: Terms,
    factors: Tensor,
    distances: Measure = squared_distances,
    products: Measure = inner_products,
) -> Tensor:
    """The kernel matrix of two sets of points, or of one if the second is None."""

    def statistic(view: View) -> Tensor:
        x, y = a[view], None if b is None else b[view]
        if view[1] == RADIAL:
            return distances(x, y)
        if view[1] == COSINE_SIMILARITY:
            x, y = directions(x), None if y is None else directions(y)
        return products(x, y)

    statistics = {view: statistic(view) for view in a}
    return kernel_matrix([statistics[view] for view in views], terms, factors)


def looked_at(
    x: Tensor,
    y: Tensor,
    views: Iterable[View],
    widths: Sequence[int] | None = None,
    centre: Centre = centred,
) -> tuple[Points, Points]:
    """Two samples, [n, d] and [m, d], as each of the views has them."""
    x_layers, y_layers = _layers(x, widths), _layers(y, widths)
    points: tuple[Points, Points] = ({}, {})
    for view in views:
        if view not in points[0]:
            layer, _, move = view
            pair = x_layers[layer], y_layers[layer]
            points[0][view], points[1][view] = centre(*pair) if move else pair
    return points


def pair_sum(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    terms: Terms,
    estimator: int,
    size: int = 0,
    widths: Sequence[int] | None = None,
    *,
    factors: Tensor | None = None,
    distances: Measure = squared_distances,
    products: Measure = inner_products,
    centre: Centre = centred,
) -> Tensor:
    """What :func:`fastmmd.ops.mmd2` computes, of one pair of samples or of a batch of them.

    Args:
        x: [n, d] or [B, n, d].
        y: [m, d] or [B, m, d].
        x_weights: [n] or [B, n].
        y_weights: [m] or [B, m].
        terms: the kernel.
        estimator: its number in :mod:`fastmmd.checks`.
        size: points of a block, or number of superdiagonals.
        widths: numbers of features of the factors of a product of kernels.
        factors: [T], taken in place of those of :func:`resolve`.
        distances: how ``|x_i - y_j|^2`` is computed.
        products: how ``<x_i, y_j>`` is computed.
        centre: how both samples are moved to their mean.

    Returns:
        A scalar or [B].
    """
    if x.ndim == 3:
        values = [
            pair_sum(
                x[i],
                y[i],
                None if x_weights is None else x_weights[i],
                None if y_weights is None else y_weights[i],
                terms,
                estimator,
                size,
                widths,
                factors=factors,
                distances=distances,
                products=products,
                centre=centre,
            )
            for i in range(len(x))
        ]
        return torch.stack(values)
    x, y = _to_float(x), _to_float(y)
    if factors is None:
        factors = resolve(terms, x, y, widths)
    weighted = x_weights is not None or y_weights is not None
    seen = views(terms, is_invariant(estimator, weighted))
    x_points, y_points = looked_at(x, y, seen, widths, centre)
    paired = min(len(x), len(y))

    def matrix(a: Points, b: Points | None = None) -> Tensor:
        return gram(a, b, seen, terms, factors, distances, products)

    def rows(points: Points, function: Callable[[Tensor], Tensor]) -> Points:
        return {view: function(p) for view, p in points.items()}

    if estimator == LINEAR:
        if distances is squared_distances:
            distances = direct_squared_distances  # each point meets one: it takes no more memory
        half = paired // 2
        # each point a sample of its own: [L // 2, 1, d]
        x_0, y_0 = (rows(p, lambda t: t[0 : 2 * half : 2, None]) for p in (x_points, y_points))
        x_1, y_1 = (rows(p, lambda t: t[1 : 2 * half : 2, None]) for p in (x_points, y_points))
        pairs = ((x_0, x_1), (y_0, y_1), (x_0, y_1), (x_1, y_0))
        xx, yy, xy, yx = (matrix(*p) for p in pairs)
        return (xx + yy - xy - yx).mean()

    if estimator == BLOCK:
        count = paired // size
        x_points, y_points = (
            rows(p, lambda t: t[: count * size].unflatten(0, (count, size)))
            for p in (x_points, y_points)
        )
        within_both = matrix(x_points) + matrix(y_points)
        off = ~torch.eye(size, dtype=torch.bool, device=x.device)
        sums = (within_both * off).sum((1, 2)) / (size * (size - 1))
        return (sums - 2 * matrix(x_points, y_points).mean((1, 2))).mean()

    if estimator == INCOMPLETE:
        x_points, y_points = (rows(p, lambda t: t[:paired]) for p in (x_points, y_points))
        xy = matrix(x_points, y_points)
        h = matrix(x_points) + matrix(y_points) - xy - xy.T
        band = torch.ones_like(h, dtype=torch.bool).triu(1).tril(size)
        return h[band].mean()

    p, q = _masses(x_weights, x), _masses(y_weights, y)
    cross = p @ matrix(x_points, y_points) @ q
    if estimator == CROSS:
        return cross

    def within(points: Points, p: Tensor) -> Tensor:
        k = matrix(points)
        if estimator == BIASED:
            return p @ k @ p
        off = k.masked_fill(torch.eye(len(p), dtype=torch.bool, device=p.device), 0)
        return p @ off @ p / (1 - p.square().sum())

    return within(x_points, p) + within(y_points, q) - 2 * cross


def mmd2(
    x: Tensor,
    y: Tensor,
    kernel: Kernel | None = None,
    estimator: str = "biased",
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    *,
    block_size: int | None = None,
    num_superdiagonals: int | None = None,
    factors: Tensor | None = None,
    distances: Measure = squared_distances,
    products: Measure = inner_products,
    centre: Centre = centred,
) -> Tensor:
    """Squared MMD between two samples, as :func:`fastmmd.mmd2`, but for checks of the arguments.

    Args:
        x: [n, d] or [B, n, d].
        y: [m, d] or [B, m, d].
        kernel: ``Gaussian("mean")`` by default.
        estimator: ``"biased"``, ``"unbiased"``, ``"linear"``, ``"block"`` or ``"incomplete"``.
        x_weights: [n] or [B, n].
        y_weights: [m] or [B, m].
        block_size: of ``"block"``, the root of the number of pairs by default.
        num_superdiagonals: of ``"incomplete"``, at most 100 by default.
        factors: [T], taken in place of those of :func:`resolve`.
        distances: how ``|x_i - y_j|^2`` is computed.
        products: how ``<x_i, y_j>`` is computed.
        centre: how both samples are moved to their mean.

    Returns:
        A scalar or [B].
    """
    paired = min(x.shape[-2], y.shape[-2])
    number = ESTIMATORS[estimator]
    size = 0
    if number == BLOCK:
        size = max(2, math.isqrt(paired)) if block_size is None else block_size
    elif number == INCOMPLETE:
        size = min(100, paired - 1) if num_superdiagonals is None else num_superdiagonals
    return pair_sum(
        x,
        y,
        x_weights,
        y_weights,
        as_kernel(kernel).terms_for(x, y),
        number,
        size,
        factors=factors,
        distances=distances,
        products=products,
        centre=centre,
    )


def sliced_mmd2(
    x: Tensor,
    y: Tensor,
    projections: Tensor,
    estimator: str = "biased",
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
) -> Tensor:
    """:func:`fastmmd.sliced_mmd2` on the lines of ``projections`` [d, L], pair by pair."""
    s, t, a, b = x @ projections, y @ projections, _masses(x_weights, x), _masses(y_weights, y)

    def mean_distance(s: Tensor, t: Tensor, a: Tensor, b: Tensor) -> Tensor:
        distances = (s[:, None] - t).abs().mean(2)
        return a @ distances @ b

    unbiased = ESTIMATORS[estimator] == UNBIASED
    p, q = ((1 - w.square().sum()) if unbiased else 1 for w in (a, b))
    within = mean_distance(s, s, a, a) / p + mean_distance(t, t, b, b) / q
    return 2 * mean_distance(s, t, a, b) - within


def kernel_sum(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    terms: Terms,
    widths: Sequence[int] | None = None,
    *,
    factors: Tensor | None = None,
    distances: Measure = squared_distances,
    products: Measure = inner_products,
    centre: Centre = centred,
) -> Tensor:
    """``K(x, y) @ v`` of x [n, d], y [m, d] and v [m] or [m, p]."""
    x, y = _to_float(x), _to_float(y)
    if factors is None:
        factors = resolve(terms, x, y, widths)
    seen = views(terms, invariant=False)
    points = looked_at(x, y, seen, widths, centre)
    return gram(*points, seen, terms, factors, distances, products) @ v.to(x)


def sign_vectors(n: int, m: int, wild: bool, count: int, generator: torch.Generator) -> Tensor:
    """The vectors v_b of a test, [count + 1, n + m] in float64, that of the given labels first.

    Permutations put 1/n on n of the points, drawn at random, and -1/m on the others; the wild
    bootstrap (n = m) multiplies x_i and y_i by one random sign.
    """
    labels = torch.cat([torch.full((n,), 1 / n), torch.full((m,), -1 / m)]).double()
    labels[:n], labels[n:] = 1 / n, -1 / m
    vectors = [labels]
    for _ in range(count):
        if wild:
            signs = 2 * torch.randint(0, 2, (n,), generator=generator) - 1
            vectors.append(labels * torch.cat([signs, signs]))
        else:
            vectors.append(labels[torch.randperm(n + m, generator=generator)])
    return torch.stack(vectors)


def sign_forms(
    x: Tensor, y: Tensor, terms: Terms, vectors: Tensor, widths: Sequence[int] | None = None
) -> tuple[Tensor, Tensor, Tensor, float, float]:
    """Quadratic forms of the kernel matrix of the pooled sample, in float64.

    With K0 the kernel matrix without its diagonal, kappa that diagonal and r the row sums of K0,
    for the vectors v_b, [count, n + m].

    Returns:
        ``v_b' K0 v_b``, ``v_b' r`` and ``v_b' kappa``, each [count], and the sums of r and kappa.
    """
    seen = views(terms, invariant=False)
    factors = resolve(terms, x.double(), y.double(), widths)
    x_points, y_points = looked_at(x.double(), y.double(), seen, widths)
    points = {view: torch.cat([x_points[view], y_points[view]]) for view in x_points}
    k = gram(points, None, seen, terms, factors).detach()
    kappa = k.diagonal().clone()
    k = k.masked_fill(torch.eye(len(k), dtype=torch.bool, device=k.device), 0)
    v, r = vectors.to(k), k.sum(1)
    return ((v @ k) * v).sum(1), v @ r, v @ kappa, float(r.sum()), float(kappa.sum())


def _to_float(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _masses(weights: Tensor | None, points: Tensor) -> Tensor:
    weights = points.new_ones(len(points)) if weights is None else weights.to(points)
    return weights / weights.sum()


def _diagonal(x: Tensor) -> Tensor:
    return torch.eye(x.shape[-2], dtype=torch.bool, device=x.device)
