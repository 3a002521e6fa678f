"""The same functions in plain PyTorch, with every matrix written out.

They are the oracle of the tests and the other side of the benchmarks. Everything here
differentiates twice, forwards and backwards, and runs on any device, in O((n + m)^2) memory and in
the dtype it is given (float16 and bfloat16 are taken to float32). Cast to float64 for an oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastmmd.kernels import Kernel, Terms, as_kernel


def _root(t: Tensor) -> Tensor:
    """The square root, with derivatives of 0 at 0, where its own are infinite."""
    zero = t == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, t).sqrt())


# The profile of each family, in the order of their numbers: k = phi(scale * |x - y|^2 / unit).
PROFILES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda t: torch.exp(-t),  # Gaussian
    lambda t: torch.exp(-_root(t)),  # Laplacian
    lambda t: -_root(t),  # Energy
)


def _gaussian_derivatives(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    phi = torch.exp(-t)
    return phi, -phi, phi


def _laplacian_derivatives(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    root, inverse = _root(t), _inverse_root(t)
    phi = torch.exp(-root)
    return phi, -0.5 * phi * inverse, 0.25 * phi * (1 + root) * inverse**3


def _energy_derivatives(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    inverse = _inverse_root(t)
    return -_root(t), -0.5 * inverse, 0.25 * inverse**3


def _inverse_root(t: Tensor) -> Tensor:
    return torch.where(t == 0, 0.0, t.rsqrt())


# The profiles with their first and second derivative, those of a root taken as 0 at 0.
PROFILE_DERIVATIVES = (_gaussian_derivatives, _laplacian_derivatives, _energy_derivatives)


def squared_distances(x: Tensor, y: Tensor | None = None) -> Tensor:
    """``|x_i - y_j|^2`` by one matrix product, as ``|x|^2 + |y|^2 - 2 x y``, clamped at 0.

    Its error is the rounding of that sum: little for data around 0, all of the distance of near
    duplicates.

    Args:
        x: points, [n, d].
        y: points, [m, d]; x itself if None, with a diagonal of exact zeros.

    Returns:
        [n, m].
    """
    other = x if y is None else y
    norms = x.square().sum(1, keepdim=True) + other.square().sum(1)
    d2 = torch.addmm(norms, x, other.T, alpha=-2).clamp(min=0)
    return d2 if y is not None else d2.masked_fill(_diagonal(x), 0)


def direct_squared_distances(x: Tensor, y: Tensor | None = None) -> Tensor:
    """``|x_i - y_j|^2`` from the differences: accurate for near duplicates, in O(n m d) memory."""
    return (x.unsqueeze(1) - (x if y is None else y)).square().sum(-1)


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


def resolve(terms: Terms, z: Tensor) -> Tensor:
    """The factors scale / unit of the terms on the pooled sample z [N, d].

    Returns:
        [T], in the dtype of z; 0 where the unit is 0, as it is if all points are equal.
    """
    statistics = {1: mean_squared_distance, 2: median_squared_distance}
    units = {u: statistics[u](z) for u in sorted(set(terms.units)) if u}
    factors = [
        scale if u == 0 else torch.where(units[u] == 0, 0.0, scale / units[u])
        for scale, u in zip(terms.scales.to(z), terms.units, strict=True)
    ]
    return torch.stack(factors)


def kernel_matrix(
    d2: Tensor, families: Sequence[int], factors: Tensor, coefficients: Tensor
) -> Tensor:
    """``sum_t coefficient_t phi_t(factor_t d2)``, elementwise in the squared distances d2."""
    first, *others = [
        coefficient * PROFILES[family](factor * d2)
        for family, factor, coefficient in zip(families, factors, coefficients, strict=True)
    ]
    return sum(others, first)


def mmd2(
    x: Tensor,
    y: Tensor,
    kernel: Kernel | None = None,
    estimator: str = "biased",
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    *,
    factors: Tensor | None = None,
    distances: Callable[..., Tensor] = squared_distances,
) -> Tensor:
    """Squared MMD between two samples, as :func:`fastmmd.mmd2`, but for checks of the arguments.

    Args:
        x: [n, d].
        y: [m, d].
        kernel: ``Gaussian("mean")`` by default.
        estimator: ``"biased"`` or ``"unbiased"``.
        x_weights: [n].
        y_weights: [m].
        factors: [T], taken in place of those of :func:`resolve`.
        distances: how ``|x_i - y_j|^2`` is computed.

    Returns:
        A scalar.
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        x, y = x.float(), y.float()
    terms = as_kernel(kernel).terms()
    z = torch.cat([x, y])
    if factors is None:
        factors = resolve(terms, z)
    centre = z.detach().mean(0)  # a translation changes no gradient
    x, y = x - centre, y - centre

    def gram(a: Tensor, b: Tensor | None = None) -> Tensor:
        return kernel_matrix(distances(a, b), terms.families, factors, terms.coefficients.to(a))

    def masses(weights: Tensor | None, points: Tensor) -> Tensor:
        weights = points.new_ones(len(points)) if weights is None else weights.to(points)
        return weights / weights.sum()

    def within(points: Tensor, p: Tensor) -> Tensor:
        if estimator == "biased":
            return p @ gram(points) @ p
        return p @ gram(points).masked_fill(_diagonal(points), 0) @ p / (1 - p.square().sum())

    p, q = masses(x_weights, x), masses(y_weights, y)
    return within(x, p) + within(y, q) - 2 * (p @ gram(x, y) @ q)


def _diagonal(x: Tensor) -> Tensor:
    return torch.eye(len(x), dtype=torch.bool, device=x.device)
