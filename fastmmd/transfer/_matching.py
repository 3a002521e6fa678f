"""Distances between rows, nearest neighbours, and matching the rows of two domains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.nn.functional import normalize

from fastmmd.transfer._base import (
    DomainEstimator,
    check_choice,
    labels,
    like,
    points,
    split,
)

__all__ = ["FeatureMatcher", "nearest"]

_ENTRIES = 1 << 22  # of the distances that are held at a time


def nearest(queries: Tensor, rows: Tensor, metric: str = "euclidean") -> tuple[Tensor, Tensor]:
    """Of each query [n, d] the nearest of the rows [m, d], the first of equals, and how far it is.

    Without the matrix of all distances.
    """
    distances = _METRICS[metric](rows)
    index, distance = [], []
    for part in queries.split(max(1, _ENTRIES // len(rows))):
        least = distances(part).min(1)
        index.append(least.indices)
        distance.append(least.values)
    return torch.cat(index), torch.cat(distance)


def _euclidean(rows: Tensor) -> Callable[[Tensor], Tensor]:
    squares = rows.square().sum(1)

    def distances(queries: Tensor) -> Tensor:
        d2 = torch.addmm(squares, queries, rows.T, alpha=-2)
        return d2.add_(queries.square().sum(1)[:, None]).clamp_(min=0).sqrt_()

    return distances


def _cosine(rows: Tensor) -> Callable[[Tensor], Tensor]:
    unit = normalize(rows, eps=0.0).nan_to_num(0.0)

    def distances(queries: Tensor) -> Tensor:
        return 1 - normalize(queries, eps=0.0).nan_to_num(0.0) @ unit.T

    return distances


def _kullback_leibler(rows: Tensor) -> Callable[[Tensor], Tensor]:
    q = rows / rows.sum(1, keepdim=True)
    absent = (q == 0).double()
    log_q = torch.where(q == 0, 1.0, q).log()

    def distances(queries: Tensor) -> Tensor:
        p = queries / queries.sum(1, keepdim=True)
        divergence = torch.special.xlogy(p, p).sum(1, keepdim=True) - p @ log_q.T
        return divergence.clamp_(min=0).masked_fill_(p @ absent.T > 0, torch.inf)

    return distances


_METRICS: dict[str, Callable[[Tensor], Callable[[Tensor], Tensor]]] = {
    "euclidean": _euclidean,
    "cosine": _cosine,
    "kl": _kullback_leibler,
}


class FeatureMatcher(DomainEstimator):
    r"""Pairs of rows, one of each domain, that lie close to each other.

    - ``method="nearest"``: each source row with the nearest target row, of equally near ones the
      first. Target rows may be in several pairs, or in none. Memory O((n + m) d).
    - ``method="assignment"``: one-to-one, min(n, m) pairs with the least sum of distances, by
      :func:`scipy.optimize.linear_sum_assignment` (Crouse, "On implementing 2D rectangular
      assignment algorithms", IEEE Transactions on Aerospace and Electronic Systems 2016), which
      takes the n x m matrix of distances and up to O(min(n, m)^2 max(n, m)) time.

    Distances of a source row x and a target row y: ``|x - y|``; ``1 - <x, y> / (|x| |y|)``, 1 where
    a norm is 0; or the Kullback-Leibler divergence ``sum_j p_j log(p_j / q_j)`` of the rows divided
    by their sums. :meth:`pairs` is what :class:`LinearMapping` is fitted to.

    Args:
        method: ``"nearest"`` or ``"assignment"``.
        metric: ``"euclidean"``, ``"cosine"`` or ``"kl"``.
        within_classes: match rows of a class with rows of that class only; y is then needed for
            both domains.

    Attributes:
        source_indices_: [p], the row of X that is the source half of each pair, ascending.
        target_indices_: [p], that of the target half.
        distances_: [p].
        n_features_in_: d.

    Example:
        >>> import numpy as np
        >>> from fastmmd.transfer import FeatureMatcher
        >>> x = np.array([[0.0], [1.0], [0.8], [5.0]])
        >>> domain = np.array([0, 0, -1, -1])
        >>> FeatureMatcher().fit(x, sample_domain=domain).target_indices_
        array([2, 2])
        >>> FeatureMatcher("assignment").fit(x, sample_domain=domain).target_indices_
        array([2, 3])
    """

    def __init__(
        self, method: str = "nearest", metric: str = "euclidean", within_classes: bool = False
    ) -> None:
        self.method = method
        self.metric = metric
        self.within_classes = within_classes

    def fit(self, X: Any, y: Any = None, *, sample_domain: Any = None) -> FeatureMatcher:
        """Find the pairs.

        Args:
            X: [n, d], the rows of both domains, NumPy array or tensor of real numbers.
            y: [n], class labels if ``within_classes``; ignored otherwise.
            sample_domain: [n] integers, >= 0 for source rows, < 0 for target rows.

        Returns:
            This object.

        Raises:
            TypeError: data or domain labels of another type.
            ValueError: NaN or infinity, a wrong rank or shape, one domain only, an unknown method
                or metric; rows with negative entries or without a positive one for ``"kl"``, and
                pairs that are all infinitely far; missing labels, or classes that only one of the
                domains has, for ``within_classes``.
        """
        check_choice("method", self.method, ("nearest", "assignment"))
        check_choice("metric", self.metric, tuple(_METRICS))
        rows = points(self, X, reset=True, least=2)
        domains = split(sample_domain, rows)
        if self.metric == "kl" and not bool(((rows >= 0).all(1) & (rows.sum(1) > 0)).all()):
            raise ValueError(
                "X must have no negative entries and a positive one in each row for metric='kl'"
            )
        groups = [(domains.source, domains.target)]
        if self.within_classes:
            halves = [labels(y, rows, half, "all") for half in domains]
            classes = [set(half.tolist()) for half in halves]
            if classes[0] != classes[1]:
                alone = sorted(classes[0] ^ classes[1])
                raise ValueError(
                    f"y must have the same classes in both domains, got {alone} in one only"
                )
            groups = [
                (_of(label, domains.source, halves[0]), _of(label, domains.target, halves[1]))
                for label in np.unique(halves[0])
            ]
        found = [self._match(rows, *group) for group in groups]
        source, target, distance = (torch.cat(parts) for parts in zip(*found, strict=True))
        order = source.argsort()
        self.source_indices_ = _indices(source[order], X)
        self.target_indices_ = _indices(target[order], X)
        self.distances_ = like(distance[order], X)
        return self

    def _match(self, rows: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        if self.method == "nearest":
            index, distance = nearest(rows[source], rows[target], self.metric)
            return source, target[index], distance
        costs = _METRICS[self.metric](rows[target])(rows[source])
        try:
            pairs = linear_sum_assignment(costs.cpu().numpy())
        except ValueError as error:
            raise ValueError(
                "X must allow pairs at a finite distance; of all one-to-one pairs by metric='kl'"
                " some are infinitely far, which a small number added to X mends"
            ) from error
        i, j = (torch.from_numpy(side).to(rows.device) for side in pairs)
        return source[i], target[j], costs[i, j]

    def pairs(self, X: Any) -> tuple[Any, Any]:
        """The paired rows of the X that ``fit`` saw: source rows [p, d] and target rows [p, d].

        Raises:
            NotFittedError: ``fit`` was not called.
            TypeError: as :meth:`fit`.
            ValueError: as :meth:`fit`.
        """
        check_is_fitted(self)
        rows = points(self, X, reset=False)
        source, target = (
            torch.as_tensor(index, device=rows.device)
            for index in (self.source_indices_, self.target_indices_)
        )
        if int(max(source.max(), target.max())) >= len(rows):
            raise ValueError(f"X must be what fit was given, got only {len(rows)} rows")
        return like(rows[source], X), like(rows[target], X)


def _of(label: Any, index: Tensor, named: Any) -> Tensor:
    """Those of the rows that are of one class."""
    return index[torch.from_numpy(named == label).to(index.device)]


def _indices(index: Tensor, X: Any) -> Any:
    return index if isinstance(X, Tensor) else index.cpu().numpy()
