"""Maps of one domain onto the other by its covariance or its principal directions."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, OneToOneFeatureMixin
from torch import Tensor

from fastmmd.transfer._base import (
    Domains,
    DomainwiseTransformer,
    check_components,
    check_number,
    like,
)

__all__ = ["CORAL", "SubspaceAlignment"]


class CORAL(OneToOneFeatureMixin, DomainwiseTransformer):
    r"""Correlation alignment (CORAL): source rows get the covariance of the target.

    ``x -> x (C_s + reg I)^(-1/2) (C_t + reg I)^(1/2)`` for source rows, with C the covariance
    matrices over n - 1; target rows stay as they are. Algorithm 1 of Sun, Feng and Saenko, "Return
    of frustratingly easy domain adaptation" (AAAI 2016), whose ``reg`` is 1, for features that were
    standardised domain by domain: means are not moved by the method. With ``reg=0`` the covariances
    come to agree exactly.

    Memory O(n d + d^2); computed in float64, on the device of X. Which rows to map is told by
    ``sample_domain`` in ``transform``, too, where all count as target rows without it.
    A domain needs 2 rows or more.

    Args:
        reg: not negative, in units of a variance; positive where the source covariance is singular.

    Attributes:
        coef_: [d, d], what source rows are multiplied by.
        n_features_in_: d.

    Example:
        >>> import numpy as np
        >>> from fastmmd.transfer import CORAL
        >>> x = np.array([[-1.0], [1.0], [-3.0], [3.0]])
        >>> CORAL(reg=0.0).fit_transform(x, sample_domain=[0, 0, -1, -1]).T
        array([[-3.,  3., -3.,  3.]])
    """

    def __init__(self, reg: float = 1.0) -> None:
        self.reg = reg

    def _learn(self, X: Any, rows: Tensor, domains: Domains) -> None:
        reg = check_number("reg", self.reg)
        for name, half in zip(Domains._fields, domains, strict=True):
            if len(half) < 2:
                raise ValueError(
                    f"X must have at least 2 {name} rows for a covariance, got {len(half)} row"
                    f" (n_samples = {len(rows)})"
                )
        spectra = [
            torch.linalg.eigh(torch.cov(rows[half].T).reshape(2 * [rows.shape[1]]))
            for half in domains
        ]
        (of_source, u), (of_target, v) = ((s.clamp(min=0) + reg, w) for s, w in spectra)
        if float(of_source[0]) <= len(of_source) * _EPSILON * float(of_source[-1]):
            raise ValueError(
                f"reg must be positive where the source covariance is singular, got {self.reg!r}"
            )
        self._map = (u * of_source.rsqrt()) @ u.T @ (v * of_target.sqrt()) @ v.T
        self.coef_ = like(self._map, X)

    def _mapped(self, rows: Tensor, domains: Domains) -> Tensor:
        out = rows.clone()
        out[domains.source] = rows[domains.source] @ self._map.to(rows.device)
        return out


class SubspaceAlignment(ClassNamePrefixFeaturesOutMixin, DomainwiseTransformer):
    r"""Subspace alignment: the principal directions of the source turned onto the target's.

    With P_s and P_t [d, k] the first k principal directions of each domain, and each domain centred
    on its mean: ``x -> (x - mean_s) P_s P_s' P_t`` for source rows, ``x -> (x - mean_t) P_t`` for
    target rows. From Fernando, Habrard, Sebban and Tuytelaars, "Unsupervised visual domain
    adaptation using subspace alignment" (ICCV 2013).

    Memory O(n d); computed in float64, on the device of X. Which rows are whose is told by
    ``sample_domain`` in ``transform``, too, where all count as target rows without it.

    Args:
        n_components: k, at most the number of features and of the rows of either domain.

    Attributes:
        source_components_: [k, d], P_s'.
        target_components_: [k, d], P_t'.
        source_mean_: [d].
        target_mean_: [d].
        n_features_in_: d.

    Example:
        >>> import numpy as np
        >>> from fastmmd.transfer import SubspaceAlignment
        >>> x = np.array([[0.0, 1.0], [0.0, 3.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]])
        >>> aligned = SubspaceAlignment(1).fit_transform(x, sample_domain=[0, 0, -1, -1, -1])
        >>> aligned.round(2).T
        array([[-0.71,  0.71, -1.41,  0.  ,  1.41]])
    """

    def __init__(self, n_components: int = 2) -> None:
        self.n_components = n_components

    def _learn(self, X: Any, rows: Tensor, domains: Domains) -> None:
        source, target = domains
        most = min(len(source), len(target), rows.shape[1])
        k = check_components(
            self.n_components,
            most,
            f"the least of {len(source)} source rows, {len(target)} target rows and"
            f" {rows.shape[1]} features",
        )
        means = [rows[half].mean(0) for half in (source, target)]
        p_s, p_t = (
            _directions(rows[half] - mean, k)
            for half, mean in zip((source, target), means, strict=True)
        )
        self._source, self._target = (means[0], p_s @ (p_s.T @ p_t)), (means[1], p_t)
        self.source_mean_, self.target_mean_ = (like(mean, X) for mean in means)
        self.source_components_, self.target_components_ = like(p_s.T, X), like(p_t.T, X)
        self._n_features_out = k

    def _mapped(self, rows: Tensor, domains: Domains) -> Tensor:
        out = rows.new_empty(len(rows), self._n_features_out)
        for half, (mean, onto) in zip(domains, (self._source, self._target), strict=True):
            out[half] = (rows[half] - mean.to(rows.device)) @ onto.to(rows.device)
        return out


def _directions(centred: Tensor, k: int) -> Tensor:
    """The first k principal directions, [d, k], with the largest entry of each positive."""
    _, _, vt = torch.linalg.svd(centred, full_matrices=False)
    p = vt[:k].T
    largest = p.gather(0, p.abs().argmax(0, keepdim=True))
    return torch.where(largest < 0, -p, p)


_EPSILON = torch.finfo(torch.float64).eps
