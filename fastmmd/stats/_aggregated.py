"""The aggregated test: many kernels, one level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from fastmmd.kernels import Gaussian, Kernel, Laplacian
from fastmmd.stats._arrays import Array, like, samples, whole
from fastmmd.stats._forms import statistics
from fastmmd.stats._two_sample import check_test, checked_level

__all__ = ["AggregatedResult", "bandwidth_grid", "kernel_collection", "mmd_aggregated_test"]

_SUBSAMPLE = 1000  # points whose distances make the grid: half a million pairs


@dataclass(frozen=True, eq=False)
class AggregatedResult:
    """What :func:`mmd_aggregated_test` found. Arrays are NumPy arrays if both samples were.

    Attributes:
        pvalue: Of the aggregated test.
        reject: Whether ``pvalue <= level``.
        level: As given.
        kernels: The K kernels.
        weights: Theirs, [K], of sum 1.
        statistics: MMD^2 with each, [K].
        pvalues: Of the single tests, not corrected for their number, [K].
        adjusted_pvalues: Corrected for it, [K]; the smallest of them is ``pvalue``.
        rejecting: Which kernels reject at ``level`` after the correction, [K] booleans. There is
            one if and only if ``reject``.
    """

    pvalue: float
    reject: bool
    level: float
    kernels: tuple[Kernel, ...] = field(repr=False)
    weights: Array = field(repr=False)
    statistics: Array = field(repr=False)
    pvalues: Array = field(repr=False)
    adjusted_pvalues: Array = field(repr=False)
    rejecting: Array = field(repr=False)


def mmd_aggregated_test(
    x: Array,
    y: Array,
    kernels: Sequence[Kernel] | None = None,
    weights: Sequence[float] | None = None,
    level: float = 0.05,
    num_permutations: int = 1999,
    num_corrections: int = 1999,
    method: str = "permutation",
    estimator: str = "unbiased",
    seed: int = 0,
) -> AggregatedResult:
    r"""Tests with many kernels at once and holds the level, so that no bandwidth need be chosen.

    The test MMDAgg of Schrab et al., "MMD aggregated two-sample test" (JMLR 2023). Kernel k with
    weight w_k rejects if its p-value, taken over B1 relabellings, is at most u w_k; the test
    rejects if any does. The largest u that keeps the level is found from B2 further relabellings:
    each is put through the same procedure, which gives the distribution of ``T = min_k p_k / w_k``
    under the hypothesis. All kernels see the same relabellings, so the correction knows how
    alike they are, and costs less power than Bonferroni's.

    The paper finds u by bisection. Sorting the B2 values of T gives it exactly, along with a
    p-value for the aggregated test, ``(1 + #{T_b <= T}) / (1 + B2)``, and one for each kernel. In
    each rank the relabelling itself counts as one of B1 + 1, so that T of the labels as given and
    the B2 others are exchangeable, and the level holds for any B1 and B2.

    Args:
        x: The first sample, [n, d]: a NumPy array or a tensor, of any real dtype.
        y: The second sample, [m, d].
        kernels: K kernels; those of :func:`kernel_collection` by default.
        weights: K positive numbers, of which only the proportions matter; equal by default.
        level: Between 0 and 1.
        num_permutations: B1.
        num_corrections: B2. The smallest possible p-value is 1 / (1 + B2).
        method: As for :func:`two_sample_test`.
        estimator: As for :func:`two_sample_test`.
        seed: Of the relabellings and of the points that :func:`kernel_collection` looks at.

    Returns:
        The verdict and what each kernel has to say. If the data hold NaN or infinity, p-values are
        NaN and nothing is rejected.

    Raises:
        TypeError: An argument of another type.
        ValueError: As for :func:`two_sample_test`; no kernels, or weights that are not K positive
            numbers.

    Example:
        >>> import numpy as np
        >>> import fastmmd as fm
        >>> rng = np.random.default_rng(0)
        >>> x, y = rng.uniform(size=(300, 1)), rng.uniform(size=(300, 1))
        >>> y += 0.025 - y % 0.1 / 2  # a comb, too fine for the default kernel
        >>> fm.two_sample_test(x, y).rejects()
        False
        >>> result = fm.stats.mmd_aggregated_test(x, y)
        >>> result.reject, len(result.kernels)
        (True, 20)
    """
    a, b, unbiased = check_test(x, y, method, estimator)
    level = checked_level(level)
    reference = whole("num_permutations", num_permutations, 1)
    corrections = whole("num_corrections", num_corrections, 1)
    seed = whole("seed", seed, 0, 2.0**64)
    chosen = kernel_collection(a, b, seed=seed) if kernels is None else _checked_kernels(kernels)
    shares = _checked_weights(weights, len(chosen)).to(a.device)

    observed, ranks = [], []
    for kernel in chosen:
        with torch.no_grad():
            terms = kernel.terms_for(a, b)
            values, rounding = statistics(
                a, b, terms, method, unbiased, seed, reference + corrections
            )
        observed.append(values[0])
        ranks.append(_pvalues(values, reference, rounding))
    statistic = torch.stack(observed)
    pvalues = torch.stack(ranks)  # [K, 1 + B2]
    scores = pvalues / shares[:, None]
    null = scores[:, 1:].amin(0)
    # Scores are ratios of whole numbers and weights: equal ones may differ in their last bits.
    as_small = null <= scores[:, :1] * (1 + 1e-12)  # [K, B2]
    adjusted = (1 + as_small.sum(1)).double() / (1 + corrections)
    adjusted = adjusted.where(pvalues.isfinite().all(), math.nan)
    pvalue = float(adjusted.min())
    return AggregatedResult(
        pvalue=pvalue,
        reject=pvalue <= level,
        level=level,
        kernels=tuple(chosen),
        weights=like(shares, x, y),
        statistics=like(statistic, x, y),
        pvalues=like(pvalues[:, 0].clone(), x, y),
        adjusted_pvalues=like(adjusted, x, y),
        rejecting=like(adjusted <= level, x, y),
    )


def _pvalues(values: Tensor, reference: int, rounding: float) -> Tensor:
    """P-values of the observed statistic and of those after the reference, against the reference.

    Args:
        values: Statistics [1 + B1 + B2]: the observed one, the reference, the others.
        reference: B1.
        rounding: Differences up to this are none.

    Returns:
        [1 + B2].
    """
    ranked = values[1 : 1 + reference].sort().values
    tested = torch.cat([values[:1], values[1 + reference :]])
    below = torch.searchsorted(ranked, tested - rounding)
    pvalues = (1 + reference - below).double() / (1 + reference)
    return pvalues.where(values.isfinite().all(), math.nan)


def kernel_collection(
    x: Array, y: Array, num_bandwidths: int = 10, seed: int = 0
) -> tuple[Kernel, ...]:
    """Gaussian and Laplacian kernels ``exp(-r^2 / b^2)`` and ``exp(-r / b)`` for a grid of b.

    The collection that Schrab et al. (JMLR 2023) recommend, but for the Euclidean norm in the
    Laplacian kernels.

    Args:
        x: The first sample, [n, d].
        y: The second sample, [m, d].
        num_bandwidths: Of each family, at least 1; see :func:`bandwidth_grid`.
        seed: Of the points that the grid looks at.

    Returns:
        ``2 * num_bandwidths`` kernels, the Gaussian ones first, narrow ones before wide ones.

    Raises:
        TypeError: As :func:`bandwidth_grid`.
        ValueError: As :func:`bandwidth_grid`.
    """
    grid = bandwidth_grid(x, y, num_bandwidths, seed)
    return (
        *(Gaussian(b / math.sqrt(2), multipliers=(1,)) for b in grid),
        *(Laplacian(b) for b in grid),
    )


def bandwidth_grid(
    x: Array, y: Array, num_bandwidths: int = 10, seed: int = 0
) -> tuple[float, ...]:
    """A geometric grid from half the 5 % quantile to twice the 95 % quantile of the distances.

    The construction of Schrab et al. (JMLR 2023, section 5.2), but over pairs from the pooled
    sample: distances between x and y alone would change with the labels, and the level would hold
    only nearly. Distances of 0 are left out. Of more than 1000 points, 1000 are drawn at random,
    whatever their labels, so memory stays bounded and the level exact.

    Args:
        x: The first sample, [n, d].
        y: The second sample, [m, d].
        num_bandwidths: At least 1; one alone is the geometric mean of the two ends.
        seed: Of the draw.

    Returns:
        The grid, ascending; of ones if no distance is positive and finite.

    Raises:
        TypeError: Samples that are no arrays of real numbers, or numbers that are no integers.
        ValueError: A wrong rank, an empty sample, different widths or devices, or numbers out of
            range.
    """
    a, b = samples(x, y)
    count = whole("num_bandwidths", num_bandwidths, 1)
    generator = torch.Generator().manual_seed(whole("seed", seed, 0, 2.0**64))
    total = len(a) + len(b)
    rows = torch.randperm(total, generator=generator)[:_SUBSAMPLE].sort().values
    points = torch.cat([a[rows[rows < len(a)]], b[rows[rows >= len(a)] - len(a)]]).cpu().double()
    distances = torch.pdist(points)
    distances = distances[(distances > 0) & distances.isfinite()].sort().values
    if len(distances) == 0:
        return (1.0,) * count
    last = len(distances) - 1
    low = 0.5 * float(distances[int(0.05 * last)])
    high = 2.0 * float(distances[math.ceil(0.95 * last)])
    if count == 1:
        return (math.sqrt(low * high),)
    return tuple(low * (high / low) ** (i / (count - 1)) for i in range(count))


def _checked_kernels(kernels: Any) -> list[Kernel]:
    if isinstance(kernels, (str, Kernel)) or not isinstance(kernels, Sequence):
        raise TypeError(f"kernels must be a sequence of fastmmd.Kernel, got {kernels!r}")
    if not kernels:
        raise ValueError("kernels must hold at least one kernel, got none")
    for kernel in kernels:
        if not isinstance(kernel, Kernel):
            raise TypeError(f"kernels must hold fastmmd.Kernel only, got {kernel!r}")
    return list(kernels)


def _checked_weights(weights: Any, size: int) -> Tensor:
    if weights is None:
        return torch.full((size,), 1 / size, dtype=torch.float64)
    if isinstance(weights, str) or not isinstance(weights, Sequence):
        raise TypeError(f"weights must be a sequence of positive numbers, got {weights!r}")
    if len(weights) != size:
        raise ValueError(f"weights must hold {size} numbers, one per kernel, got {len(weights)}")
    if not all(isinstance(w, Real) and 0 < float(w) < math.inf for w in weights):
        raise ValueError(f"weights must be positive and finite, got {weights!r}")
    shares = torch.tensor([float(w) for w in weights], dtype=torch.float64)
    return shares / shares.sum()
