"""Maps between feature spaces: from pairs of rows, and by writing features twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted
from torch import Tensor

from fastmmd.stats._arrays import tensor
from fastmmd.transfer._base import (
    Domains,
    DomainwiseTransformer,
    check_choice,
    check_number,
    like,
    points,
    split,
)

__all__ = ["FeatureAugmentation", "LinearMapping"]


class LinearMapping(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""The linear map that takes source rows to the target rows they are paired with.

    ``x -> x W + b``, from pairs (x_i, y_i), i = 1..n, with means taken off first (so that b is what
    it has to be) if ``fit_intercept``:

    - ``"least_squares"``: the W with the least ``sum_i |x_i W - y_i|^2``, of several the one with
      the least norm;
    - ``"ridge"``: with the least ``sum_i |x_i W - y_i|^2 + reg |W|^2`` (Hoerl and Kennard, "Ridge
      regression", Technometrics 1970);
    - ``"procrustes"``: of orthogonal W, which turn and mirror and keep all distances, that with the
      least sum of squares: ``W = U V'`` for ``X' Y = U S V'`` (Schönemann, "A generalized solution
      of the orthogonal Procrustes problem", Psychometrika 1966).

    Pairs may be known, as translations of words are, or come from
    :meth:`FeatureMatcher.pairs`. The domains may differ in width, but for ``"procrustes"``. Memory
    O(n d + min(n, d)^2), in float64, on the device of X.

    Args:
        method: ``"least_squares"``, ``"ridge"`` or ``"procrustes"``.
        reg: of ``"ridge"``, positive.
        fit_intercept: whether there is a b.

    Attributes:
        coef_: W, [d, p].
        intercept_: b, [p]; zeros without an intercept.
        n_features_in_: d.

    Example:
        >>> import numpy as np
        >>> from fastmmd.transfer import LinearMapping
        >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        >>> turned = x @ np.array([[0.0, 1.0], [-1.0, 0.0]]) + 5
        >>> LinearMapping("procrustes").fit(x, turned).transform([[2.0, 0.0]]).round(6)
        array([[5., 7.]])
    """

    def __init__(
        self, method: str = "least_squares", reg: float = 1.0, fit_intercept: bool = True
    ) -> None:
        self.method = method
        self.reg = reg
        self.fit_intercept = fit_intercept

    def fit(self, X: Any, y: Any) -> LinearMapping:
        """Work the map out.

        Args:
            X: [n, d], source rows, NumPy array or tensor of real numbers.
            y: [n, p], the target row of each; [n] counts as [n, 1].

        Returns:
            This object.

        Raises:
            TypeError: data or a parameter of another type.
            ValueError: NaN or infinity, a wrong rank, pairs of unequal length, an unknown method,
                different widths for ``"procrustes"``, a ``reg`` that is not positive.
        """
        check_choice("method", self.method, ("least_squares", "ridge", "procrustes"))
        reg = check_number("reg", self.reg, zero=False)
        rows = points(self, X, reset=True)
        paired = _targets(y).to(rows.device)
        if len(paired) != len(rows):
            raise ValueError(
                f"X and y must be pairs, as many rows of each, got {len(rows)} and {len(paired)}"
            )
        if self.method == "procrustes" and paired.shape[1] != rows.shape[1]:
            raise ValueError(
                "y must be as wide as X for method='procrustes', got widths"
                f" {paired.shape[1]} and {rows.shape[1]}"
            )
        means = [
            z.mean(0) if self.fit_intercept else z.new_zeros(z.shape[1]) for z in (rows, paired)
        ]
        w = self._map_of(rows - means[0], paired - means[1], reg)
        self._map, self._offset = w, means[1] - means[0] @ w
        self.coef_, self.intercept_ = like(w, X), like(self._offset, X)
        self._n_features_out = w.shape[1]
        return self

    def _map_of(self, x: Tensor, y: Tensor, reg: float) -> Tensor:
        if self.method == "least_squares":
            return torch.linalg.pinv(x) @ y
        if self.method == "procrustes":
            u, _, vt = torch.linalg.svd(x.T @ y)
            return u @ vt
        n, d = x.shape
        eye = torch.eye(min(n, d), dtype=x.dtype, device=x.device)
        if d <= n:
            return torch.linalg.solve(x.T @ x + reg * eye, x.T @ y)
        return x.T @ torch.linalg.solve(x @ x.T + reg * eye, y)

    def transform(self, X: Any) -> Any:
        """Map rows to the target's features.

        Args:
            X: [n, d], NumPy array or tensor of real numbers.

        Returns:
            [n, p], of the kind, device and floating dtype of X.

        Raises:
            NotFittedError: ``fit`` was not called.
            TypeError: as ``fit``.
            ValueError: a width other than that of ``fit``, NaN or infinity.
        """
        rows = points(self, X, reset=False)
        return like(rows @ self._map.to(rows.device) + self._offset.to(rows.device), X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _targets(y: Any) -> Tensor:
    """The second halves of the pairs, [n, p], in float64."""
    if y is None:
        raise ValueError(
            "y must be given: the target rows that those of X are paired with; requires y to be"
            " passed, but the target y is None"
        )
    paired = tensor("y", y if isinstance(y, (np.ndarray, Tensor)) else np.asarray(y)).double()
    if paired.ndim == 1:
        paired = paired[:, None]
    if paired.ndim != 2 or 0 in paired.shape:
        raise ValueError(f"y must be of rank 2, [rows, features], got shape {list(paired.shape)}")
    if not bool(torch.isfinite(paired).all()):
        raise ValueError("y must be finite, got NaN or infinity")
    return paired


class FeatureAugmentation(DomainwiseTransformer):
    r"""Each feature three times: shared, of the source only, of the target only.

    ``x -> (x, x, 0)`` for source rows, ``x -> (x, 0, x)`` for target rows. A linear model of the
    result has weights that both domains share and weights of each domain's own: for some labels in
    the target. From Daumé III, "Frustratingly easy domain adaptation" (ACL 2007).

    Nothing is learned, so ``fit`` takes rows of one domain, too. Which rows are whose is told by
    ``sample_domain``; without it all count as target rows.

    Attributes:
        n_features_in_: d.

    Example:
        >>> import numpy as np
        >>> from fastmmd.transfer import FeatureAugmentation
        >>> x = np.array([[1.0, 2.0], [3.0, 4.0]])
        >>> FeatureAugmentation().fit_transform(x, sample_domain=[0, -1])
        array([[1., 2., 1., 2., 0., 0.],
               [3., 4., 0., 0., 3., 4.]])
    """

    def fit(self, X: Any, y: Any = None, *, sample_domain: Any = None) -> FeatureAugmentation:
        """Look at the width of the rows.

        Args:
            X: [n, d], NumPy array or tensor of real numbers.
            y: ignored.
            sample_domain: [n] integers, of which only the shape is checked.

        Returns:
            This object.

        Raises:
            TypeError: data or domain labels of another type.
            ValueError: NaN or infinity, a wrong rank or shape.
        """
        split(sample_domain, points(self, X, reset=True), absent="target")
        return self

    def _mapped(self, rows: Tensor, domains: Domains) -> Tensor:
        out = rows.new_zeros(3, *rows.shape)
        out[0] = rows
        for copy, half in zip(out[1:], domains, strict=True):
            copy[half] = rows[half]
        return out.transpose(0, 1).reshape(len(rows), -1)

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        """``shared_x0``, ..., ``source_x0``, ..., ``target_x0``, ...

        Raises:
            NotFittedError: ``fit`` was not called.
            ValueError: names that are not those of ``fit``.
        """
        check_is_fitted(self, "n_features_in_")
        names = _check_feature_names_in(self, input_features)
        copies = ("shared", "source", "target")
        return np.array([f"{copy}_{name}" for copy in copies for name in names], dtype=object)
