"""The variance of the unbiased estimate of MMD^2, and the power of the test that uses it."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmmd import ops
from fastmmd.checks import check_points
from fastmmd.functional import fixed_terms
from fastmmd.kernels import Kernel, as_kernel
from fastmmd.terms import COSINE_SIMILARITY, ENERGY, GEOMETRY, POLYNOMIAL, RADIAL, Terms

_LEAST = 4  # points of a sample: the variance is made of means over four distinct ones


def mmd2_variance(x: Tensor, y: Tensor, kernel: Kernel | None = None) -> Tensor:
    r"""An unbiased estimate of the variance of ``mmd2(x, y, kernel, estimator="unbiased")``.

    With k = k(x_1, x_2) and so on for independent points, that estimate of MMD^2 is
    ``U_x + U_y - 2 U_xy``, two U-statistics and one of two samples, and its variance is

    - ``Var U_x = 2 / (n (n - 1)) [2 (n - 2) Cov(k(x_1, x_2), k(x_1, x_3)) + Var k(x_1, x_2)]``,
    - ``Var U_xy = 1 / (n m) [(m - 1) Cov(k(x_1, y_1), k(x_1, y_2))
      + (n - 1) Cov(k(x_1, y_1), k(x_2, y_1)) + Var k(x_1, y_1)]``,
    - ``Cov(U_x, U_xy) = 2 / n Cov(k(x_1, x_2), k(x_1, y_1))``,
    - ``Var U_x + Var U_y + 4 Var U_xy - 4 Cov(U_x, U_xy) - 4 Cov(U_y, U_xy)``,

    with no term left out. Each expectation is replaced by its mean over all distinct points, so
    that the mean of the result over samples is the variance itself, for any n and m (Hoeffding, "A
    class of statistics with asymptotically normal distribution", 1948). Equation (5) of Sutherland
    et al., "Generative models and model criticism via optimized maximum mean discrepancy" (ICLR
    2017), is what it comes near to for large n = m.

    Being unbiased, the result can be negative where the variance is small: for few points, or
    where x and y are hard to tell apart. :func:`power_criterion` has a floor for that.

    Memory is O((n + m) d): all that is needed are sums of rows of the matrices of k and of k^2, of
    which two passes are made, in float64 for all dtypes. Differentiable in x, y, and the tensor
    bandwidths and weights of the kernel, twice in eager mode.

    Args:
        x: the first sample, [n, d], n >= 4, float16, bfloat16, float32 or float64.
        y: the second sample, [m, d], m >= 4, of the dtype and on the device of x.
        kernel: a :class:`fastmmd.Kernel`; ``Gaussian("mean")`` by default.

    Returns:
        A scalar: float64 for float64 inputs, float32 otherwise.

    Raises:
        TypeError: an argument that is no tensor or no kernel, or of a dtype that is not accepted.
        ValueError: a wrong rank, different widths or devices, fewer than 4 points.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [4.0]])
        >>> fm.mmd2_variance(x, x + 3, fm.Linear())
        tensor(49.9601)
    """
    return _estimates(x, y, kernel).variance.to(_result_dtype(x))


def power_criterion(
    x: Tensor, y: Tensor, kernel: Kernel | None = None, *, regularizer: float = 1e-8
) -> Tensor:
    r"""The criterion of test power, ``J = MMD_u^2 / sqrt(max(variance, regularizer))``.

    ``MMD_u^2`` is the unbiased estimate and ``variance`` that of :func:`mmd2_variance`. Where x and
    y differ, the power of the test that rejects for large ``MMD_u^2`` grows with J, so a kernel is
    learned for power by gradient ascent on J (Gretton et al., "Optimal kernel choice for
    large-scale two-sample tests", NeurIPS 2012; Sutherland et al. 2017; Liu et al., "Learning deep
    kernels for non-parametric two-sample tests", ICML 2020). The test itself must be made on other
    data.

    Where the estimate of the variance is below ``regularizer``, which includes all that is
    negative, the denominator is constant and the gradient is that of ``MMD_u^2`` alone. The
    variance has the unit of k^2: kernels that are not bounded by 1, as :class:`fastmmd.Energy`, may
    want another value.

    Args:
        x: the first sample, [n, d], n >= 4.
        y: the second sample, [m, d], m >= 4.
        kernel: a :class:`fastmmd.Kernel`; ``Gaussian("mean")`` by default.
        regularizer: the least variance, a positive number.

    Returns:
        A scalar: float64 for float64 inputs, float32 otherwise.

    Raises:
        TypeError: as :func:`mmd2_variance`.
        ValueError: as :func:`mmd2_variance`, or a regularizer that is not positive and finite.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(100, 2, generator=generator)
        >>> y = torch.randn(100, 2, generator=generator) * 1.5
        >>> kernel = fm.Gaussian(torch.nn.Parameter(torch.tensor(5.0)), multipliers=(1,))
        >>> optimizer = torch.optim.Adam(kernel.parameters(), lr=0.1)
        >>> before = fm.power_criterion(x, y, kernel)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     (-fm.power_criterion(x, y, kernel)).backward()
        ...     optimizer.step()
        >>> bool(fm.power_criterion(x, y, kernel) > before)
        True
    """
    least = _checked_regularizer(regularizer)
    estimates = _estimates(x, y, kernel)
    floored = estimates.variance.clamp(min=least)
    return (estimates.mmd2 / floored.sqrt()).to(_result_dtype(x))


def _checked_regularizer(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"regularizer must be a positive number, got {value!r}")
    if not 0 < float(value) < math.inf:
        raise ValueError(f"regularizer must be positive and finite, got {value!r}")
    return float(value)


class _Estimates(NamedTuple):
    mmd2: Tensor  # the unbiased one, float64
    variance: Tensor  # its variance, float64


class _Within(NamedTuple):
    """The sums over one sample's own matrix, without its diagonal."""

    rows: Tensor  # [n], float64: the sums of the rows
    squares: Tensor  # float64: the sum of the squared entries

    def shifted(self, c: Tensor) -> _Within:
        """The sums of the matrix with c subtracted from each entry."""
        others = len(self.rows) - 1
        squares = self.squares - 2 * c * self.rows.sum() + others * len(self.rows) * c * c
        return _Within(self.rows - others * c, squares)


def _estimates(x: Tensor, y: Tensor, kernel: Kernel | None) -> _Estimates:
    check_points(x, y)
    for name, t in (("x", x), ("y", y)):
        if t.ndim != 2:
            raise ValueError(
                f"{name} must be of rank 2, [points, width], got shape {list(t.shape)}"
            )
        if len(t) < _LEAST:
            raise ValueError(
                f"{name} must have at least {_LEAST} points for an estimate of the variance,"
                f" got shape {list(t.shape)}"
            )
    terms = fixed_terms(x, y, as_kernel(kernel).terms_for(x, y))
    n, m = len(x), len(y)
    # In float64: the diagonal, which the sums of rows come with and is taken away from them, may be
    # larger than all of the rest by far.
    z = torch.cat([x, y]).double()
    # One column sums over x, the other over y.
    v = torch.zeros(n + m, 2, dtype=torch.float64, device=x.device)
    v[:n, 0] = 1
    v[n:, 1] = 1
    rows = ops.kernel_sum(z, z, v, terms)
    twice = torch.cat([z, z], 1)
    width = x.shape[1]
    squares = ops.kernel_sum(twice, twice, v, _squared(terms), (width, width))
    own = _diagonal(z, terms)

    in_x = _Within(rows[:n, 0] - own[:n], squares[:n, 0].sum() - own[:n].square().sum())
    in_y = _Within(rows[n:, 1] - own[n:], squares[n:, 1].sum() - own[n:].square().sum())
    of_x, of_y, cross_squares = rows[:n, 1], rows[n:, 0], squares[:n, 1].sum()

    # Neither estimate changes when a constant is taken from k. With that of the cross terms taken
    # away, little is left to cancel in the differences of means below.
    c = (of_x.sum() / (n * m)).detach()
    in_x, in_y = in_x.shifted(c), in_y.shifted(c)
    cross_squares = cross_squares - 2 * c * of_x.sum() + n * m * c * c
    of_x, of_y = of_x - m * c, of_y - n * c

    mmd2 = in_x.rows.sum() / (n * (n - 1)) + in_y.rows.sum() / (m * (m - 1))
    mmd2 = mmd2 - 2 * of_x.sum() / (n * m)
    variance = (
        _variance_within(in_x)
        + _variance_within(in_y)
        + 4 * _variance_across(of_x, of_y, cross_squares)
        - 4 * _covariance(in_x.rows, of_x, m)
        - 4 * _covariance(in_y.rows, of_y, n)
    )
    return _Estimates(mmd2, variance)


def _variance_within(k: _Within) -> Tensor:
    """Of the mean of k(x_i, x_j) over i != j."""
    n = len(k.rows)
    total, met = k.rows.sum(), k.rows.square().sum()
    same = k.squares / _falling(n, 2)  # E k(x_1, x_2)^2
    shared = (met - k.squares) / _falling(n, 3)  # E k(x_1, x_2) k(x_1, x_3)
    apart = (total * total - 4 * met + 2 * k.squares) / _falling(n, 4)  # (E k)^2
    return 2 / _falling(n, 2) * (2 * (n - 2) * (shared - apart) + same - apart)


def _variance_across(of_x: Tensor, of_y: Tensor, squares: Tensor) -> Tensor:
    """Of the mean of k(x_i, y_j), from the sums over y of each x, and over x of each y."""
    n, m = len(of_x), len(of_y)
    total, met_x, met_y = of_x.sum(), of_x.square().sum(), of_y.square().sum()
    same = squares / (n * m)  # E k(x_1, y_1)^2
    shared_x = (met_x - squares) / (n * m * (m - 1))  # E k(x_1, y_1) k(x_1, y_2)
    shared_y = (met_y - squares) / (n * (n - 1) * m)  # E k(x_1, y_1) k(x_2, y_1)
    apart = (total * total - met_x - met_y + squares) / (n * (n - 1) * m * (m - 1))  # (E k)^2
    return ((m - 1) * (shared_x - apart) + (n - 1) * (shared_y - apart) + same - apart) / (n * m)


def _covariance(rows: Tensor, across: Tensor, m: int) -> Tensor:
    """Of the means of k(x_i, x_j) and of k(x_i, y_j), from their sums for each x; m points y."""
    n = len(rows)
    met = rows @ across
    shared = met / (n * (n - 1) * m)  # E k(x_1, x_2) k(x_1, y_1)
    apart = (rows.sum() * across.sum() - 2 * met) / (_falling(n, 3) * m)  # E k(x_1, x_2) E k(x, y)
    return 2 / n * (shared - apart)


def _falling(n: int, k: int) -> int:
    """How many ordered choices of k distinct ones there are among n."""
    return math.perm(n, k)


def _squared(terms: Terms) -> Terms:
    """The square of a kernel: its product with itself, for points written twice side by side."""
    return Terms(
        terms.families * 2,
        torch.cat([terms.scales, terms.scales]),
        torch.cat([terms.coefficients, terms.coefficients]),
        terms.shapes * 2,
        terms.units * 2,
        (0,) * len(terms.families) + (1,) * len(terms.families),
    )


def _diagonal(z: Tensor, terms: Terms) -> Tensor:
    """k(z_i, z_i) of points [N, d], [N], for terms of fixed units."""
    norms = z.square().sum(1)
    total = torch.zeros_like(norms)
    for t, family in enumerate(terms.families):
        geometry = GEOMETRY[family]
        if geometry == RADIAL:
            phi = torch.full_like(norms, 0.0 if family == ENERGY else 1.0)
        elif geometry == COSINE_SIMILARITY:
            phi = (norms > 0).double()
        else:
            phi = terms.scales[t].to(norms) * norms
            if family == POLYNOMIAL:
                degree, coef0 = terms.shapes[2 * t : 2 * t + 2]
                phi = (phi + coef0) ** int(degree)
        total = total + terms.coefficients[t].to(norms) * phi
    return total


def _result_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
