"""Weights of source rows that make them stand for the target."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from fastmmd.kernels import Kernel
from fastmmd.transfer._base import (
    DomainEstimator,
    check_count,
    check_number,
    like,
    points,
    split,
)
from fastmmd.transfer._kernels import FittedKernel, check_kernel
from fastmmd.transfer._quadratic import Programme, solve

__all__ = ["InstanceSelector", "KernelMeanMatching"]


class KernelMeanMatching(DomainEstimator):
    r"""Kernel mean matching (KMM): weights with which the source has the target's mean embedding.

    The weights w of the n source rows minimise ``1/2 w' K w - c' w`` with
    ``c_i = n/m sum_j k(x_i, y_j)`` over ``0 <= w_i <= upper`` and
    ``|sum_i w_i - n| <= slack n``: n^2/2 times the biased MMD^2 of the weighted source and the
    target, up to a constant. Equation (12) of Huang, Smola, Gretton, Borgwardt and Schölkopf,
    "Correcting sample selection bias by unlabeled data" (NeurIPS 2006), whose ``upper`` is B.

    K is not written out: products by it are blockwise sums on the device of X, in float64. Where
    the source has more than 2048 rows an accelerated gradient method looks for the rows whose
    weight is not 0, and an interior point method solves for these alone; a product by K then says
    which others want in. Memory O((n + m) d) and one matrix of at most 5120 x 5120 with its factor.
    What is reported is certified: ``duality_gap_`` is the difference to a lower bound of the
    minimum, by Wolfe's dual.

    Args:
        kernel: ``"rbf"``, ``"linear"``, ``"laplacian"``, ``"inverse_multiquadric"``,
            ``"rational_quadratic"``, ``"matern"``, ``"polynomial"``, ``"cosine"``, with the median
            heuristic for the bandwidth; or a :class:`fastmmd.Kernel`, but for Energy.
        upper: the largest weight, where 1 is that of a row in an unweighted mean. At least
            ``1 - slack``.
        slack: how far the mean weight may be from 1; None for ``(sqrt(n) - 1) / sqrt(n)``, that of
            the paper.
        tol: the duality gap to reach, as a share of the minimum's magnitude.
        max_iter: the number of products by K after which to give up and warn.

    Attributes:
        weights_: [n], those of the source rows in their order, many of them 0.
        sample_weight_: [N], those of all rows of X, 0 for target rows: what a classifier's ``fit``
            takes.
        objective_: the value that was reached.
        duality_gap_: the minimum is at most so far below.
        n_iter_: products by K that it took.
        n_features_in_: d.

    Example:
        >>> import numpy as np
        >>> from fastmmd.transfer import KernelMeanMatching
        >>> x = np.array([[0.0], [1.0], [2.0], [2.0], [2.1]])
        >>> kmm = KernelMeanMatching(slack=0.0).fit(x, sample_domain=[0, 0, 0, -1, -1])
        >>> kmm.weights_.round(2)
        array([0., 0., 3.])
        >>> bool(kmm.duality_gap_ <= 1e-6 * abs(kmm.objective_))
        True
    """

    def __init__(
        self,
        kernel: str | Kernel = "rbf",
        upper: float = 1000.0,
        slack: float | None = None,
        tol: float = 1e-6,
        max_iter: int = 1000,
    ) -> None:
        self.kernel = kernel
        self.upper = upper
        self.slack = slack
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any = None, *, sample_domain: Any = None) -> KernelMeanMatching:
        """Find the weights.

        Args:
            X: [N, d], the rows of both domains, NumPy array or tensor of real numbers.
            y: ignored.
            sample_domain: [N] integers, >= 0 for source rows, < 0 for target rows.

        Returns:
            This object.

        Raises:
            TypeError: data, domain labels or a parameter of another type.
            ValueError: NaN or infinity, a wrong rank or shape, one domain only, an unknown kernel,
                a parameter out of range.

        Warns:
            ConvergenceWarning: the gap is larger than ``tol`` asks for.
        """
        kernel = check_kernel(self.kernel)
        tol, most = (
            check_number("tol", self.tol, zero=False),
            check_count("max_iter", self.max_iter),
        )
        rows = points(self, X, reset=True, least=2)
        domains = split(sample_domain, rows)
        source, target = rows[domains.source], rows[domains.target]
        n, m = len(source), len(target)
        slack = 1 - n**-0.5 if self.slack is None else check_number("slack", self.slack)
        upper = check_number("upper", self.upper, zero=False)
        if upper < 1 - slack:
            raise ValueError(
                f"upper must be at least 1 - slack = {1 - slack:g}, as the mean weight is, got"
                f" {self.upper!r}"
            )
        fitted = FittedKernel(kernel, rows, domains)

        def product(v: Tensor) -> Tensor:
            some = v.nonzero().flatten()  # often few
            if not len(some):
                return torch.zeros_like(v)
            return fitted.product(source, source[some], v[some] / n)

        # Divided by n, so that the gradient of one weight does not grow with their number.
        programme = Programme(
            product=product,
            block=lambda some: fitted.matrix(source[some], source[some]).div_(n),
            linear=fitted.product(source, target, source.new_full((m,), 1 / m)),
            upper=upper,
            low=max(0.0, 1 - slack) * n,
            high=(1 + slack) * n,
        )
        solution = solve(programme, tol, most)
        if not solution.gap <= tol * abs(solution.value):
            warnings.warn(
                f"KernelMeanMatching stopped at a duality gap of {solution.gap * n:.3g}, more than"
                f" tol={tol:g} of {abs(solution.value) * n:.6g}, after {solution.products} products"
                " by the kernel matrix",
                ConvergenceWarning,
                stacklevel=2,
            )
        self.objective_, self.duality_gap_ = n * solution.value, n * solution.gap
        self.n_iter_ = solution.products
        self.weights_ = like(solution.weights, X)
        every = rows.new_zeros(len(rows))
        every[domains.source] = solution.weights
        self.sample_weight_ = like(every, X)
        return self


class InstanceSelector(DomainEstimator):
    r"""The source rows that are most like the target: those that the weights favour.

    A row's weight is that of :class:`KernelMeanMatching` (Huang et al., NeurIPS 2006), or of
    another estimator with ``sample_weight_``. Kept are the rows with the largest, of equal ones the
    first.

    Args:
        estimator: what is fitted, a clone of it; None for ``KernelMeanMatching()``.
        keep: how many: a share of the source rows in (0, 1] as a float, rounded up, or a number of
            rows as an integer. Rows of weight 0 are kept only if there are not enough others.

    Attributes:
        estimator_: the fitted one.
        selected_: the rows of X that are kept, all of them source rows, ascending.
        n_features_in_: d.

    Example:
        >>> import numpy as np
        >>> from fastmmd.transfer import InstanceSelector
        >>> x = np.array([[0.0], [1.0], [2.0], [2.0], [2.1]])
        >>> selector = InstanceSelector(keep=1).fit(x, sample_domain=[0, 0, 0, -1, -1])
        >>> selector.selected_
        array([2])
        >>> selector.select(x, ["a", "b", "c", "", ""])
        (array([[2.]]), ['c'])
    """

    def __init__(self, estimator: Any = None, keep: float = 0.5) -> None:
        self.estimator = estimator
        self.keep = keep

    def fit(self, X: Any, y: Any = None, *, sample_domain: Any = None) -> InstanceSelector:
        """Find the rows.

        Args:
            X: [N, d], the rows of both domains, NumPy array or tensor of real numbers.
            y: passed on to the estimator.
            sample_domain: [N] integers, >= 0 for source rows, < 0 for target rows.

        Returns:
            This object.

        Raises:
            TypeError: data, domain labels or ``keep`` of another type.
            ValueError: as :class:`KernelMeanMatching`, or a ``keep`` out of range.
        """
        rows = points(self, X, reset=True, least=2)
        source, _ = split(sample_domain, rows)
        count = self._count(len(source))
        estimator = KernelMeanMatching() if self.estimator is None else clone(self.estimator)
        self.estimator_ = estimator.fit(X, y, sample_domain=sample_domain)
        weights = torch.as_tensor(self.estimator_.sample_weight_, device=rows.device)[source]
        largest = weights.argsort(descending=True, stable=True)[:count]
        selected = source[largest].sort().values
        self.selected_ = selected if isinstance(X, Tensor) else selected.cpu().numpy()
        return self

    def _count(self, n: int) -> int:
        keep = self.keep
        if isinstance(keep, (int, np.integer)) and not isinstance(keep, bool):
            if not 1 <= keep <= n:
                raise ValueError(f"keep must be from 1 to {n}, the source rows, got {keep}")
            return int(keep)
        share = check_number("keep", keep, zero=False)
        if share > 1:
            raise ValueError(f"keep must be an integer or a share of at most 1, got {keep!r}")
        return math.ceil(share * n)

    def select(self, *arrays: Any) -> Any:
        """What belongs to the rows that are kept.

        Args:
            *arrays: NumPy arrays, tensors or lists with an entry for each row of X.

        Returns:
            Of each the entries of :attr:`selected_`, of the same kind; a tuple of several.

        Raises:
            NotFittedError: ``fit`` was not called.
        """
        check_is_fitted(self)
        indices = [int(i) for i in self.selected_]
        chosen = tuple(
            [a[i] for i in indices] if isinstance(a, (list, tuple)) else a[indices] for a in arrays
        )
        return chosen if len(chosen) != 1 else chosen[0]
