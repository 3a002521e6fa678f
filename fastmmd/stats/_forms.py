"""From quadratic forms of sign vectors to MMD^2 statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmmd import checks, ops
from fastmmd.terms import Terms

__all__ = ["METHODS", "exact", "statistics"]

# The schemes of ops.sign_forms.
METHODS = {"permutation": 0, "wild_bootstrap": 1}


def statistics(
    x: Tensor, y: Tensor, terms: Terms, method: str, unbiased: bool, seed: int, count: int
) -> tuple[Tensor, float]:
    """MMD^2 of the samples as given and under random relabellings, from one native pass.

    With z = [x; y], K0 the kernel matrix of z without its diagonal and v = +1/n on the points
    labelled x and -1/m on the others, the operator makes v'K0v and v'K0 1 for every labelling, and
    1'K0 1. These determine the sums of K0 within and between the samples, hence both estimators.

    Args:
        x: [n, d].
        y: [m, d].
        terms: The kernel.
        method: ``"permutation"`` or, for n = m, ``"wild_bootstrap"``.
        unbiased: Which estimator.
        seed: Of the labellings.
        count: How many.

    Returns:
        The statistics [count + 1] in float64, that of the labels as given first, and how far apart
        rounding can move two equal ones.
    """
    n, m = len(x), len(y)
    forms = ops.sign_forms(x, y, terms, METHODS[method], seed, count)
    if method == "permutation":
        values = _of_permutations(forms, n, m, unbiased)
    else:
        values = _of_signs(forms, x, y, terms, unbiased)
    return values, _rounding(forms, n, m, x.dtype)


def _of_permutations(forms: ops.SignForms, n: int, m: int, unbiased: bool) -> Tensor:
    if not unbiased:
        # The squares of v are affine in v, so sum_i v_i^2 k(z_i, z_i) is known from v'kappa.
        diagonal = (1 / n - 1 / m) * forms.diagonal + forms.trace / (n * m)
        return forms.forms + diagonal
    # S_xx / n(n-1) + S_yy / m(m-1) - 2 S_xy / nm with the sums S as combinations of the forms;
    # written so that the large parts of the coefficients have cancelled.
    a, b, total = 1 / (n - 1), 1 / (m - 1), n + m
    by_form = n * m * (m * a + n * b + 2) / total**2
    by_linear = 2 * (m * a - n * b) / total**2
    by_total = (a + b) / total**2
    return by_form * forms.forms + by_linear * forms.linear + by_total * forms.total


def _of_signs(forms: ops.SignForms, x: Tensor, y: Tensor, terms: Terms, unbiased: bool) -> Tensor:
    n = len(x)
    if not unbiased:
        return forms.forms + forms.trace / n**2
    # The U-statistic of h(i, j) = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i) leaves out
    # k(x_i, y_i) too. Their sum comes from the linear estimator with each point twice, whose mean
    # is that of k(x_i, x_i) + k(y_i, y_i) - 2 k(x_i, y_i).
    fixed = terms._replace(scales=ops.resolve(x, y, terms), units=(0,) * len(terms.units))
    pairs = ops.mmd2(
        x.repeat_interleave(2, 0), y.repeat_interleave(2, 0), None, None, fixed, checks.LINEAR
    )
    return (forms.forms + forms.trace / n**2 - float(pairs) / n) * (n / (n - 1))


def _rounding(forms: ops.SignForms, n: int, m: int, dtype: torch.dtype) -> float:
    """A bound on the difference between two statistics that are equal but for rounding.

    The terms of the double sum are rounded independently of each other, so that the error is to
    the sum of their magnitudes S about as eps to the number of rows that carry it: the smaller
    sample where the sizes differ much. The spread of the null distribution shrinks with it as well,
    and is larger than this bound by three orders of magnitude or so. Where terms repeat, so do
    their errors, up to a few eps S in all; such data come in float64, see :func:`exact`.
    """
    total = n + m
    q, r = float(forms.forms[0]), float(forms.linear[0])
    s_xx = (m * m * q + 2 * m * r + forms.total) / total**2  # the mean, as are the others
    s_yy = (n * n * q - 2 * n * r + forms.total) / total**2
    s_xy = ((m - n) * r - n * m * q + forms.total) / total**2
    # Values of both signs can cancel in the sums, but |k(a, b)|^2 <= k(a, a) k(b, b).
    largest = 2 * abs((m - n) * float(forms.diagonal[0]) + 2 * forms.trace) / total
    magnitude = max(abs(s_xx) + abs(s_yy) + 2 * abs(s_xy), largest)
    eps = 2.0**-52 if dtype == torch.float64 else 2.0**-23
    return (256 * eps / min(n, m) + 8 * 2.0**-52) * magnitude


def exact(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The samples, in float64 if most of their points are repeats of others.

    Of such data the statistic takes few values, and many relabellings give the very one that was
    observed. To see that they are ties takes more than the precision of float32.
    """
    if x.dtype == torch.float64:
        return x, y
    width = x.shape[1]
    weights = torch.rand(width, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(
        x.device
    )
    rows = max(1, (1 << 18) // width)  # 2 MiB of doubles at a time
    codes = torch.cat([part.double() @ weights for z in (x, y) for part in z.split(rows)])
    gaps = codes.sort().values.diff()
    # Equal rows can have codes that differ in their last bits.
    distinct = 1 + int((gaps > 1e-12 * codes.abs().max()).sum())
    return (x.double(), y.double()) if 2 * distinct <= len(codes) else (x, y)
