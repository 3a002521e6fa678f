"""What the estimators share: points and domain labels in, points of the kind that came in out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor

from fastmmd.stats._arrays import tensor

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "DomainEstimator",
    "DomainTransformer",
    "Domains",
    "DomainwiseTransformer",
    "check_choice",
    "check_components",
    "check_number",
    "labels",
    "like",
    "points",
    "split",
]


class Domains(NamedTuple):
    """Which rows are whose, as indices in ascending order."""

    source: Tensor
    target: Tensor


class DomainEstimator(BaseEstimator):
    """An estimator whose ``fit`` is told by ``sample_domain`` which rows are of which domain."""

    # Pipelines with metadata routing hand it on without being asked to.
    __metadata_request__fit: ClassVar[dict[str, bool]] = {"sample_domain": True}


class DomainTransformer(TransformerMixin, DomainEstimator):
    """One that has ``transform``, too."""

    def fit(self, X: Any, y: Any = None, *, sample_domain: Any = None) -> Self:
        """Learn from the rows of both domains.

        Args:
            X: [n, d], the rows of both domains, NumPy array or tensor of real numbers.
            y: ignored.
            sample_domain: [n] integers, >= 0 for source rows, < 0 for target rows.

        Returns:
            This object.

        Raises:
            TypeError: data, domain labels or a parameter of another type.
            ValueError: NaN or infinity, a wrong rank or shape, one domain only, too few rows, or a
                parameter that is outside of what the class allows.
        """
        rows = points(self, X, reset=True, least=2)
        self._learn(X, rows, split(sample_domain, rows))
        return self

    def _learn(self, X: Any, rows: Tensor, domains: Domains) -> None:
        """What ``fit`` does with its rows [n, d] in float64."""
        raise NotImplementedError

    def fit_transform(self, X: Any, y: Any = None, *, sample_domain: Any = None) -> Any:
        """Fit, and transform the same rows.

        Args:
            X: as in ``fit``.
            y: as in ``fit``.
            sample_domain: as in ``fit``.

        Returns:
            As ``transform``: one row for each row of X, in the same order.

        Raises:
            TypeError: as ``fit``.
            ValueError: as ``fit``.
        """
        estimator: Any = self
        return estimator.fit(X, y, sample_domain=sample_domain).transform(X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


class DomainwiseTransformer(DomainTransformer):
    """One that treats source rows in another way than target rows."""

    __metadata_request__transform: ClassVar[dict[str, bool]] = {"sample_domain": True}

    def transform(self, X: Any, *, sample_domain: Any = None) -> Any:
        """Map rows, each as its domain is.

        Args:
            X: [n, d], NumPy array or tensor of real numbers.
            sample_domain: [n] integers, >= 0 for source rows, < 0 for target rows; all are target
                rows if None.

        Returns:
            One row for each row of X, of the kind, device and floating dtype of X.

        Raises:
            NotFittedError: ``fit`` was not called.
            TypeError: as ``fit``.
            ValueError: a width other than that of ``fit``, NaN or infinity, domain labels of a
                wrong shape.
        """
        rows = points(self, X, reset=False)
        return like(self._mapped(rows, split(sample_domain, rows, absent="target")), X)

    def _mapped(self, rows: Tensor, domains: Domains) -> Tensor:
        """What ``transform`` makes of rows [n, d] in float64."""
        raise NotImplementedError

    def fit_transform(self, X: Any, y: Any = None, *, sample_domain: Any = None) -> Any:
        """As that of every transformer; ``sample_domain`` goes to ``transform``, too."""
        return self.fit(X, y, sample_domain=sample_domain).transform(X, sample_domain=sample_domain)


def points(estimator: Any, X: Any, *, reset: bool, least: int = 1) -> Tensor:
    """The rows [n, d] in float64, wherever they are.

    Args:
        estimator: whose ``n_features_in_`` is set or looked at.
        X: NumPy array, tensor, or what scikit-learn makes an array of.
        reset: whether this is ``fit``.
        least: how many rows there must be.

    Raises:
        TypeError: sparse data, or a tensor of something else than real numbers.
        ValueError: a wrong rank or width, too few rows, NaN or infinity.
    """
    if not reset:
        check_is_fitted(estimator)
    if not isinstance(X, Tensor):
        array = validate_data(
            estimator, X, reset=reset, dtype=np.float64, ensure_min_samples=least, order="C"
        )
        return tensor("X", array)
    rows = tensor("X", X)
    if rows.ndim != 2:
        raise ValueError(f"X must be of rank 2, [rows, features], got shape {list(rows.shape)}")
    if len(rows) < least or rows.shape[1] == 0:
        raise ValueError(
            f"X must have at least {least} rows and 1 feature, got shape {list(rows.shape)}"
        )
    validate_data(estimator, rows, reset=reset, skip_check_array=True)
    rows = rows.double()
    if not bool(torch.isfinite(rows).all()):
        raise ValueError("X must be finite, got NaN or infinity")
    return rows


def labels(y: Any, rows: Tensor, where: Tensor, whose: str) -> npt.NDArray[Any]:
    """The class labels of some of the rows; those of the others are not looked at.

    Args:
        y: a label for each row, numbers or strings, as an array, a tensor or a list.
        rows: [n, d].
        where: the indices of the rows whose labels are wanted.
        whose: what rows these are, for errors.

    Raises:
        ValueError: y is missing or of a wrong shape, or a label is missing or no class label.
    """
    if y is None:
        raise ValueError(
            f"y must be given: the class labels of {whose} rows are needed, and its length is that"
            " of X; requires y to be passed, but the target y is None"
        )
    array = column_or_1d(y.detach().cpu().numpy() if isinstance(y, Tensor) else y, warn=True)
    if len(array) != len(rows):
        raise ValueError(f"y must be of length {len(rows)}, as X is, got {len(array)}")
    found = array[where.cpu().numpy()]
    if any(label is None or label != label for label in found.tolist()):
        raise ValueError(f"y must have a label for each of the {whose} rows, got None or NaN")
    check_classification_targets(found)
    return found


def split(sample_domain: Any, rows: Tensor, *, absent: str | None = None) -> Domains:
    """The rows of the two domains.

    Args:
        sample_domain: one integer for each row, source >= 0, target < 0.
        rows: [n, d].
        absent: the domain of all rows if ``sample_domain`` is None; None makes that an error, and
            asks for rows of both domains.

    Raises:
        TypeError: ``sample_domain`` holds something else than integers.
        ValueError: it is missing or of a wrong shape, or one domain has no rows.
    """
    n, device = len(rows), rows.device
    if sample_domain is None:
        if absent is None:
            raise ValueError(
                "sample_domain must be given: one integer for each row, >= 0 for source rows,"
                " < 0 for target rows, got None"
            )
        all_rows = torch.arange(n, device=device)
        empty = all_rows[:0]
        return Domains(all_rows, empty) if absent == "source" else Domains(empty, all_rows)
    if isinstance(sample_domain, Tensor):
        labels = sample_domain.detach().to(device)
    else:
        array = np.asarray(sample_domain)
        if array.dtype.kind not in "iu":
            raise TypeError(f"sample_domain must hold integers, got an array of {array.dtype}")
        labels = torch.from_numpy(array.astype(np.int64)).to(device)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"sample_domain must hold integers, got a tensor of {labels.dtype}")
    if labels.shape != (n,):
        raise ValueError(
            f"sample_domain must be of shape [{n}], one integer for each row of X, got shape"
            f" {list(labels.shape)}"
        )
    source = labels >= 0
    domains = Domains(source.nonzero().flatten(), (~source).nonzero().flatten())
    if absent is None and not (len(domains.source) and len(domains.target)):
        raise ValueError(
            "sample_domain must have rows of both domains, source (>= 0) and target (< 0), got"
            f" {len(domains.source)} source and {len(domains.target)} target rows"
        )
    return domains


def like(result: Tensor, X: Any) -> Any:
    """The result as X came in: its dtype if that is a floating one, a NumPy array or a tensor."""
    if isinstance(X, Tensor):
        dtype = X.dtype if X.is_floating_point() else torch.float64
        return result.to(X.device, dtype)
    array = result.cpu().numpy()
    single = getattr(X, "dtype", None) == np.float32
    return array.astype(np.float32) if single else array


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise unless the value is one of these names."""
    if value not in choices:
        *first, last = map(repr, choices)
        raise ValueError(f"{name} must be {', '.join(first)} or {last}, got {value!r}")


def check_number(name: str, value: Any, *, zero: bool = True) -> float:
    """The value as a float, if it is a finite number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (0 <= value < float("inf")) or (value == 0 and not zero):
        raise ValueError(
            f"{name} must be finite and {'not negative' if zero else 'positive'}, got {value!r}"
        )
    return float(value)


def check_components(value: Any, most: int, what: str) -> int:
    """The number of components, if there can be as many."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"n_components must be an integer, got {value!r}")
    if not 1 <= value <= most:
        raise ValueError(f"n_components must be from 1 to {most}, {what}, got {value}")
    return int(value)


def check_count(name: str, value: Any) -> int:
    """The value, if it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return int(value)
