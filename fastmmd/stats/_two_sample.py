"""The kernel two-sample test."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastmmd.kernels import Kernel, as_kernel
from fastmmd.stats._arrays import Array, like, samples, whole
from fastmmd.stats._forms import METHODS, exact, statistics

__all__ = ["TwoSampleResult", "check_test", "checked_level", "two_sample_test"]


@dataclass(frozen=True, eq=False)
class TwoSampleResult:
    """What :func:`two_sample_test` found.

    Attributes:
        statistic: MMD^2 of the samples as given.
        pvalue: ``(1 + #{null >= statistic}) / (1 + num_permutations)``.
        null: The statistic under each random relabelling, [num_permutations], float64, in the
            order they were drawn; a NumPy array if both samples were.
        num_permutations: How many there were.
        method: ``"permutation"`` or ``"wild_bootstrap"``.
        estimator: ``"biased"`` or ``"unbiased"``.
        seed: That of the relabellings.
        n: Points in x.
        m: Points in y.
    """

    statistic: float
    pvalue: float
    null: Array = field(repr=False)
    num_permutations: int
    method: str
    estimator: str
    seed: int
    n: int
    m: int

    def rejects(self, level: float = 0.05) -> bool:
        """Whether the test of this level takes the distributions for different.

        Raises:
            ValueError: The p-value is NaN, as it is if the data hold NaN or infinity.
        """
        level = checked_level(level)
        if math.isnan(self.pvalue):
            raise ValueError("pvalue must not be NaN for a verdict: x or y holds NaN or infinity")
        return self.pvalue <= level

    def critical_value(self, level: float = 0.05) -> float:
        """What the statistic must exceed for the test of this level to reject.

        Infinity if the level is below ``1 / (1 + num_permutations)``: no statistic rejects then.
        """
        allowed = math.floor(checked_level(level) * (1 + self.num_permutations) + 1e-9) - 1
        if allowed < 0:
            return math.inf
        if allowed >= self.num_permutations:
            return -math.inf
        ranked = torch.as_tensor(self.null).sort(descending=True).values
        return float(ranked[allowed])

    @property
    def zscore(self) -> float:
        """Distance of the statistic from the mean of ``null`` in its standard deviations.

        It tells strong differences apart where the p-value is as small as it can be. NaN if the
        null distribution is a single value.
        """
        null = torch.as_tensor(self.null)
        spread = float(null.std(correction=0))
        return (self.statistic - float(null.mean())) / spread if spread > 0 else math.nan


def two_sample_test(
    x: Array,
    y: Array,
    kernel: Kernel | None = None,
    num_permutations: int = 999,
    method: str = "permutation",
    estimator: str = "biased",
    seed: int = 0,
) -> TwoSampleResult:
    r"""Tests whether two samples come from one distribution, by MMD^2 and random relabellings.

    Under the hypothesis that they do, every relabelling of the pooled points is as likely as the
    one that was observed. The p-value is ``(1 + #{null >= statistic}) / (1 + B)``, which rejects
    at level a with probability at most a, for any sample sizes and any B (Phipson and Smyth,
    "Permutation p-values should never be zero", 2010). The test is that of Gretton et al., "A
    kernel two-sample test" (JMLR 2012).

    All B statistics come from one pass over the kernel values, of which no matrix is kept: memory
    is O((n + m)(d + B)). The relabellings depend on the seed alone, not on the kernel or the number
    of threads.

    Statistics that differ by less than rounding can explain count as equal, hence as ``>=``. That
    matters for tiny samples, where relabellings repeat, and for discrete data: where most points
    are repeats of others, float64 is used throughout.

    Args:
        x: The first sample, [n, d]: a NumPy array or a tensor, of any real dtype. Integers are
            converted; of two dtypes the wider is taken.
        y: The second sample, [m, d].
        kernel: A :class:`fastmmd.Kernel`; ``Gaussian("mean")`` by default. Heuristic bandwidths
            look at the pooled sample, which no relabelling changes.
        num_permutations: B, at least 1. The smallest possible p-value is 1 / (1 + B).
        method: ``"permutation"`` labels n of the pooled points at random as x.
            ``"wild_bootstrap"``, for n = m, swaps the labels of each pair (x_i, y_i) at random, and
            suits paired samples.
        estimator: ``"biased"`` or ``"unbiased"``. With n = m they give one p-value. Under
            ``"wild_bootstrap"``, ``"unbiased"`` is the U-statistic of the pairs, which leaves out
            k(x_i, y_i) too.
        seed: 0 <= seed < 2^64.

    Returns:
        The statistic, the p-value and the null distribution. If the data hold NaN or infinity,
        statistic and p-value are NaN.

    Raises:
        TypeError: An argument of another type.
        ValueError: A wrong rank, different widths or devices, an empty sample, fewer than 2 points
            for ``"unbiased"``, an unknown method or estimator, n != m for ``"wild_bootstrap"``,
            num_permutations < 1, a seed out of range.

    Example:
        >>> import numpy as np
        >>> import fastmmd as fm
        >>> rng = np.random.default_rng(0)
        >>> x, y = rng.normal(size=(100, 5)), rng.normal(size=(80, 5))
        >>> fm.two_sample_test(x, y + 0.5).pvalue
        0.001
        >>> fm.two_sample_test(x, y).rejects(0.05)
        False
    """
    a, b, unbiased = check_test(x, y, method, estimator)
    count = whole("num_permutations", num_permutations, 1)
    seed = whole("seed", seed, 0, 2.0**64)
    with torch.no_grad():
        terms = as_kernel(kernel).terms_for(a, b)
        values, rounding = statistics(a, b, terms, method, unbiased, seed, count)
    observed, null = float(values[0]), values[1:].clone()
    return TwoSampleResult(
        statistic=observed,
        pvalue=_pvalue(observed, null, rounding),
        null=like(null, x, y),
        num_permutations=count,
        method=method,
        estimator=estimator,
        seed=seed,
        n=len(a),
        m=len(b),
    )


def _pvalue(observed: float, null: Tensor, rounding: float) -> float:
    if math.isnan(observed) or bool(null.isnan().any()):
        return math.nan
    return (1 + int((null >= observed - rounding).sum())) / (1 + len(null))


def check_test(x: Any, y: Any, method: str, estimator: str) -> tuple[Tensor, Tensor, bool]:
    """The samples of a test, and whether its estimator is the unbiased one.

    Raises:
        TypeError: An argument of another type.
        ValueError: An argument that the tests do not take.
    """
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"method must be 'permutation' or 'wild_bootstrap', got {method!r}")
    if not isinstance(estimator, str) or estimator not in ("biased", "unbiased"):
        raise ValueError(f"estimator must be 'biased' or 'unbiased', got {estimator!r}")
    unbiased = estimator == "unbiased"
    a, b = samples(x, y, least=1 + unbiased)
    if method == "wild_bootstrap" and len(a) != len(b):
        raise ValueError(
            "x and y must have equally many points for method='wild_bootstrap', got"
            f" {len(a)} and {len(b)}"
        )
    return *exact(a, b), unbiased


def checked_level(level: float) -> float:
    if isinstance(level, bool) or not isinstance(level, (int, float)):
        raise TypeError(f"level must be a number between 0 and 1, got {level!r}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level!r}")
    return float(level)
