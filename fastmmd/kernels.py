"""Kernels as a user writes them down: ``Gaussian("mean") + 0.5 * Laplacian(2.0)``.

A kernel is a sum of terms ``coefficient * phi(scale / unit * u)``. ``phi`` is the profile of the
term's family, ``u`` what its geometry makes of a pair of points (their squared distance, inner
product or cosine), and ``unit`` is 1 or a statistic of the data. :meth:`Kernel.terms` spells a
kernel out in that form, which is all that the layers below know about it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from fastmmd.checks import are_weights, is_plain

# The families, by the numbers that the native core knows them by. Matern 1/2 is the Laplacian.
GAUSSIAN, LAPLACIAN, ENERGY, INVERSE_MULTIQUADRIC, RATIONAL_QUADRATIC = range(5)
MATERN_3_2, MATERN_5_2, POLYNOMIAL, LINEAR, COSINE = range(5, 10)

# What a family's profile is a function of: |x - y|^2, <x, y>, or <x, y> / (|x| |y|), which is 0
# where a norm is.
RADIAL, DOT, COSINE_SIMILARITY = range(3)
GEOMETRY = (RADIAL,) * 7 + (DOT, DOT, COSINE_SIMILARITY)  # by family

# Units: 1 is the mean of |z_i - z_j|^2 over i != j of the pooled sample z, 2 their lower median
# over i < j, 3 the lower median of all |x_i - x_j|^2, i = j among them, 4 the number of features.
FIXED, MEAN, MEDIAN, X_MEDIAN, WIDTH = range(5)
UNITS = {"mean": MEAN, "median": MEDIAN}
_BANDWIDTHS = "a positive number, a tensor, 'mean' or 'median'"

Bandwidth = float | str | Tensor
Weights = Sequence[float] | Tensor | None


class Terms(NamedTuple):
    """A kernel as a list of T terms, or a product of such lists, one for each factor.

    Of a product, factor l looks at features of its own: points are the factors' features side by
    side.
    """

    families: tuple[int, ...]
    scales: Tensor  # [T], float64, contiguous
    coefficients: Tensor  # [T], float64, contiguous
    shapes: tuple[float, ...]  # [2 T]: the two shape parameters of each term, 0 where unused
    units: tuple[int, ...]  # a unit of 0 makes the scale 0
    factors: tuple[int, ...]  # that the term is a summand of, from 0 and never falling


class Kernel(nn.Module):
    """A kernel function of two points, the base class of all kernels.

    Kernels are modules, so that tensor bandwidths and weights show up in ``parameters()`` and
    ``state_dict()``, and follow ``to()``. Kernels add (``k1 + k2``) and take positive factors
    (``0.5 * k``). Numbers given at construction are fixed.
    """

    # Terms that hold no parameter are worked out once: a small batch costs less than working them
    # out again.
    _constant_terms: Terms | None = None

    def terms(self) -> Terms:
        """Spell the kernel out.

        Returns:
            The terms; ``scales`` and ``coefficients`` carry the graph of tensor bandwidths and
            weights.

        Raises:
            ValueError: a tensor bandwidth or weight has come to hold a value out of range. Values
                are looked at on the CPU in eager mode only.
        """
        return self._make_terms() if self._constant_terms is None else self._constant_terms

    def terms_for(self, x: Tensor, y: Tensor) -> Terms:
        """The kernel spelled out for two samples, [n, d] and [m, d], or batches of them."""
        return self.terms()

    def _make_terms(self) -> Terms:
        raise NotImplementedError(
            "a Kernel is written down as Gaussian, Laplacian or Energy, their sums and multiples"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED and name in self.__dict__:
            raise AttributeError(
                f"{name} of a {type(self).__name__} is fixed, as it was given as numbers"
            )
        super().__setattr__(name, value)

    def __add__(self, other: Kernel) -> Kernel:
        return Sum(self, other) if isinstance(other, Kernel) else NotImplemented

    def __mul__(self, factor: float | Tensor) -> Kernel:
        return Scaled(self, factor) if isinstance(factor, (Real, Tensor)) else NotImplemented

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


_FIXED = frozenset({"bandwidth", "multipliers", "weights", "factor"})


class Gaussian(Kernel):
    r"""A bank of Gaussians, ``k(x, y) = sum_k w_k exp(-|x - y|^2 / (2 m_k s^2))``.

    With the mean or the median of all pairs as bandwidth this is the multi-kernel of Gretton et
    al., "Optimal kernel choice for large-scale two-sample tests" (NeurIPS 2012), as Long et al.,
    "Learning transferable features with deep adaptation networks" (ICML 2015), use it.

    Args:
        bandwidth: s, in the units of the data. A positive number; a floating tensor, scalar or of
            shape [B] (a ``nn.Parameter`` becomes a parameter of the kernel, another tensor a
            buffer, and gradients reach either); or a heuristic on the pooled sample z, worked out
            at each call and held constant in the gradient: ``"mean"`` takes ``2 s^2 = mean of
            |z_i - z_j|^2 over i != j``, ``"median"`` the lower median over i < j.
        multipliers: m_k, K positive numbers.
        weights: w_k, non-negative numbers or a tensor of shape [B * K], the multipliers of the
            first bandwidth first (B = 1 for a scalar or a heuristic); 1 each by default.

    Raises:
        ValueError: a bandwidth, multiplier or weight out of range or of a wrong shape, or an
            unknown heuristic.
        TypeError: an argument of another type.

    Example:
        >>> import fastmmd as fm
        >>> fm.Gaussian("median", multipliers=(1, 2)) + 0.5 * fm.Laplacian(2.0)
        Gaussian(bandwidth='median', multipliers=(1, 2)) + 0.5 * Laplacian(bandwidth=2.0)
    """

    bandwidth: Bandwidth
    multipliers: tuple[float, ...]
    weights: tuple[float, ...] | Tensor | None

    def __init__(
        self,
        bandwidth: Bandwidth = "mean",
        multipliers: Sequence[float] = (0.25, 0.5, 1, 2, 4),
        weights: Weights = None,
    ) -> None:
        super().__init__()
        _store(self, "bandwidth", _checked_bandwidth(bandwidth))
        self.multipliers = _checked_multipliers(multipliers)
        _store(
            self,
            "weights",
            _checked_weights(weights, _bank_size(bandwidth) * len(self.multipliers)),
        )
        if not isinstance(self.bandwidth, Tensor) and not isinstance(self.weights, Tensor):
            self._constant_terms = self._make_terms()

    def _make_terms(self) -> Terms:
        return _bank(GAUSSIAN, self.bandwidth, [0.5 / m for m in self.multipliers], self.weights)

    def __repr__(self) -> str:
        parts = [f"bandwidth={_show(self.bandwidth)}", f"multipliers={self.multipliers}"]
        return f"Gaussian({', '.join(parts + _show_weights(self.weights))})"


class Laplacian(Kernel):
    """A bank of Laplacian kernels ``exp(-|x - y| / s)``, with the Euclidean norm.

    Its gradient in ``|x - y|`` is taken as 0 where x = y.

    Args:
        bandwidth: s, as for :class:`Gaussian`; a heuristic fixes ``2 s^2`` in the same way.
        weights: one non-negative weight per bandwidth, numbers or a tensor of shape [B]; 1 each
            by default.

    Raises:
        ValueError: a bandwidth or weight out of range or of a wrong shape, or an unknown heuristic.
        TypeError: an argument of another type.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> fm.Laplacian(torch.tensor([1.0, 2.0]), weights=(0.5, 0.5))
        Laplacian(bandwidth=tensor([1., 2.]), weights=(0.5, 0.5))
    """

    bandwidth: Bandwidth
    weights: tuple[float, ...] | Tensor | None

    def __init__(self, bandwidth: Bandwidth = "mean", weights: Weights = None) -> None:
        super().__init__()
        _store(self, "bandwidth", _checked_bandwidth(bandwidth))
        _store(self, "weights", _checked_weights(weights, _bank_size(bandwidth)))
        if not isinstance(self.bandwidth, Tensor) and not isinstance(self.weights, Tensor):
            self._constant_terms = self._make_terms()

    def _make_terms(self) -> Terms:
        return _bank(LAPLACIAN, self.bandwidth, [1.0], self.weights)

    def __repr__(self) -> str:
        parts = [f"bandwidth={_show(self.bandwidth)}", *_show_weights(self.weights)]
        return f"Laplacian({', '.join(parts)})"


class Energy(Kernel):
    """The energy kernel, ``k(x, y) = -|x - y|`` with the Euclidean norm.

    MMD^2 with it is the energy distance ``2 E|x - y| - E|x - x'| - E|y - y'|`` (Sejdinovic et
    al., "Equivalence of distance-based and RKHS-based statistics in hypothesis testing", Annals
    of Statistics 2013). It has no bandwidth. Its gradient in ``|x - y|`` is taken as 0 where x =
    y.
    """

    def __init__(self) -> None:
        super().__init__()
        self._constant_terms = Terms(
            (ENERGY,), _doubles([1.0]), _doubles([1.0]), (0.0, 0.0), (FIXED,), (0,)
        )


class Sum(Kernel):
    """The sum of kernels, what ``k1 + k2`` makes.

    Args:
        kernels: the summands; sums among them are spliced in.
    """

    def __init__(self, *kernels: Kernel) -> None:
        super().__init__()
        if not kernels:
            raise ValueError("kernels: at least one kernel is needed, got none")
        for kernel in kernels:
            if not isinstance(kernel, Kernel):
                raise TypeError(f"kernels: every summand must be a fastmmd.Kernel, got {kernel!r}")
        flat = [
            k
            for kernel in kernels
            for k in (kernel.summands() if isinstance(kernel, Sum) else [kernel])
        ]
        self.kernels = nn.ModuleList(flat)
        if all(k._constant_terms is not None for k in flat):
            self._constant_terms = self._make_terms()

    def summands(self) -> list[Kernel]:
        """The kernels that are added, none of them a sum."""
        return [cast(Kernel, kernel) for kernel in self.kernels]

    def _make_terms(self) -> Terms:
        parts = [kernel.terms() for kernel in self.summands()]
        return Terms(
            sum((p.families for p in parts), ()),
            torch.cat([p.scales for p in parts]),
            torch.cat([p.coefficients for p in parts]),
            sum((p.shapes for p in parts), ()),
            sum((p.units for p in parts), ()),
            sum((p.factors for p in parts), ()),
        )

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.kernels))


class Scaled(Kernel):
    """A positive multiple of a kernel, what ``0.5 * k`` makes.

    Args:
        kernel: the kernel.
        factor: a positive number or a scalar tensor, which may be a ``nn.Parameter``.

    Raises:
        ValueError: a factor that is not positive and finite, or a tensor that is no scalar.
        TypeError: an argument of another type.
    """

    factor: float | Tensor

    def __init__(self, kernel: Kernel, factor: float | Tensor) -> None:
        super().__init__()
        if not isinstance(kernel, Kernel):
            raise TypeError(f"kernel must be a fastmmd.Kernel, got {kernel!r}")
        if isinstance(factor, Tensor) and factor.ndim != 0:
            raise ValueError(
                f"factor must be a number or a scalar tensor, got shape {list(factor.shape)}"
            )
        self.kernel = kernel
        _store(self, "factor", _checked_positive("factor", factor))
        if kernel._constant_terms is not None and not isinstance(factor, Tensor):
            self._constant_terms = self._make_terms()

    def _make_terms(self) -> Terms:
        factor = self.factor
        if isinstance(factor, Tensor):
            factor = _checked_positive("factor", factor).double()
        terms = self.kernel.terms()
        return terms._replace(coefficients=terms.coefficients * factor)

    def __repr__(self) -> str:
        inner = f"({self.kernel!r})" if isinstance(self.kernel, Sum) else repr(self.kernel)
        return f"{_show(self.factor)} * {inner}"


def _bank(
    family: int,
    bandwidth: Bandwidth,
    inverse: list[float],
    weights: tuple[float, ...] | Tensor | None,
) -> Terms:
    """The terms ``w phi(inverse_k * D / s^2)``, those of the first bandwidth first."""
    unit = FIXED
    if isinstance(bandwidth, Tensor):
        s = _checked_positive("bandwidth", bandwidth).double().reshape(-1, 1)
        scales = (torch.tensor(inverse, dtype=torch.float64, device=s.device) / (s * s)).reshape(-1)
        size = scales.numel()
    else:
        if isinstance(bandwidth, str):  # s^2 is half of the unit
            unit, values = UNITS[bandwidth], [2.0 * i for i in inverse]
        else:
            values = [i / bandwidth / bandwidth for i in inverse]
            if not all(0 < v < math.inf for v in values):
                raise ValueError(
                    f"bandwidth must be positive and its square in range, got {bandwidth!r}"
                )
        scales, size = _doubles(values), len(values)
    if isinstance(weights, Tensor):
        coefficients = _checked_nonnegative(weights).double().contiguous()
    elif weights is None:
        coefficients = scales.new_ones(size)
    else:
        coefficients = torch.tensor(weights, dtype=torch.float64, device=scales.device)
    return Terms(
        (family,) * size, scales, coefficients, (0.0, 0.0) * size, (unit,) * size, (0,) * size
    )


def _doubles(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def _store(module: nn.Module, name: str, value: Any) -> None:
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        module.register_buffer(name, value)
    else:
        setattr(module, name, value)


def _bank_size(bandwidth: Bandwidth) -> int:
    return bandwidth.numel() if isinstance(bandwidth, Tensor) else 1


def _checked_bandwidth(bandwidth: Any) -> Any:
    if isinstance(bandwidth, str):
        if bandwidth not in UNITS:
            raise ValueError(f"bandwidth must be {_BANDWIDTHS}, got {bandwidth!r}")
        return bandwidth
    if isinstance(bandwidth, Tensor) and (bandwidth.ndim > 1 or bandwidth.numel() == 0):
        raise ValueError(
            f"bandwidth must be of shape [] or [B], B > 0, got shape {list(bandwidth.shape)}"
        )
    return _checked_positive("bandwidth", bandwidth)


def _checked_positive(name: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        _checked_floating(name, value)
        if is_plain(value) and not bool(((value > 0) & value.isfinite()).all()):
            raise ValueError(f"{name} must be positive and finite, got {value.detach()}")
        return value
    if not isinstance(value, Real):
        accepted = _BANDWIDTHS if name == "bandwidth" else "a positive number"
        raise TypeError(f"{name} must be {accepted}, got {value!r}")
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
    return value


def _checked_multipliers(multipliers: Any) -> tuple[float, ...]:
    if isinstance(multipliers, (str, Tensor)) or not isinstance(multipliers, Sequence):
        raise TypeError(f"multipliers must be a sequence of positive numbers, got {multipliers!r}")
    if not multipliers:
        raise ValueError("multipliers must hold at least one positive number, got none")
    return tuple(_checked_positive("multipliers", m) for m in multipliers)


def _checked_weights(weights: Any, size: int) -> Any:
    if weights is None:
        return None
    if isinstance(weights, Tensor):
        if weights.ndim != 1 or weights.numel() != size:
            raise ValueError(
                f"weights must be of shape [{size}], one for each term, got {list(weights.shape)}"
            )
        return _checked_nonnegative(weights)
    if (
        isinstance(weights, str)
        or not isinstance(weights, Sequence)
        or not all(isinstance(w, Real) for w in weights)
    ):
        raise TypeError(f"weights must be numbers, a tensor or None, got {weights!r}")
    if len(weights) != size:
        raise ValueError(f"weights must hold {size} numbers, one for each term, got {len(weights)}")
    if not all(0 <= float(w) < math.inf for w in weights) or not any(weights):
        raise ValueError(f"weights must be non-negative, finite and not all zero, got {weights!r}")
    return tuple(float(w) for w in weights)


def _checked_nonnegative(weights: Tensor) -> Tensor:
    _checked_floating("weights", weights)
    if is_plain(weights) and not are_weights(weights):
        raise ValueError(
            f"weights must be non-negative, finite and not all zero, got {weights.detach()}"
        )
    return weights


def _checked_floating(name: str, value: Tensor) -> None:
    if not value.is_floating_point():
        raise TypeError(f"{name} must be of a floating dtype, got {value.dtype}")


def _show(value: Any) -> str:
    return repr(value.detach()) if isinstance(value, Tensor) else repr(value)


def _show_weights(weights: Any) -> list[str]:
    return [] if weights is None else [f"weights={_show(weights)}"]


_DEFAULT = Gaussian("mean")  # it has no state, so one serves all


def as_kernel(kernel: Kernel | None) -> Kernel:
    """The kernel, or the default one for None; TypeError for anything else."""
    if kernel is None:
        return _DEFAULT
    if not isinstance(kernel, Kernel):
        raise TypeError(f"kernel must be a fastmmd.Kernel such as Gaussian('mean'), got {kernel!r}")
    return kernel
