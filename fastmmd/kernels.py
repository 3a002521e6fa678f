"""Kernels as a user writes them down: ``Gaussian("mean") + 0.5 * Laplacian(2.0)``.

:meth:`Kernel.terms` spells a kernel out as :class:`~fastmmd.terms.Terms`, which is all that the
layers below know about it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastmmd.parameters import (
    Bandwidth,
    Factor,
    Learnable,
    RunningBandwidth,
    Weights,
    bank_size,
    checked_bandwidth,
    checked_coef0,
    checked_degree,
    checked_fixed,
    checked_multipliers,
    checked_nonnegative,
    checked_nu,
    checked_positive,
    checked_scalar,
    checked_weights,
    is_number,
    show,
    show_weights,
    store,
    value_of,
)
from fastmmd.terms import (
    COSINE,
    ENERGY,
    FIXED,
    GAUSSIAN,
    INVERSE_MULTIQUADRIC,
    LAPLACIAN,
    LINEAR,
    MATERN_3_2,
    MATERN_5_2,
    POLYNOMIAL,
    RATIONAL_QUADRATIC,
    UNITS,
    WIDTH,
    Terms,
    joined,
    numbers,
    on_device,
)

__all__ = [
    "Cosine",
    "Energy",
    "Gaussian",
    "InverseMultiquadric",
    "Kernel",
    "Laplacian",
    "Linear",
    "Matern",
    "Polynomial",
    "RationalQuadratic",
    "Scaled",
    "Sum",
    "as_kernel",
]


_CURRENT = torch.device("cuda")


class Kernel(nn.Module):
    """A kernel function of two points, the base class of all kernels.

    Kernels are modules, so that tensor bandwidths and weights show up in ``parameters()`` and
    ``state_dict()``, and follow ``to()``. Kernels add (``k1 + k2``) and take positive factors
    (``0.5 * k``). Numbers given at construction are fixed.
    """

    # Terms that hold no parameter are worked out once: a small batch costs less than working them
    # out again.
    _constant_terms: Terms | None = None
    _constant_numbers: tuple[list[float], list[float]] | None = None  # scales and coefficients

    def terms(self, device: torch.device | None = None) -> Terms:
        """Spell the kernel out.

        Args:
            device: where the points are that the kernel is for; by default numbers stay on the
                CPU, or go to where the kernel's tensors are.

        Returns:
            The terms; ``scales`` and ``coefficients`` carry the graph of tensor bandwidths and
            weights.

        Raises:
            ValueError: a tensor bandwidth or weight has come to hold a value out of range, or is on
                another device than the points. Values are looked at on the CPU in eager mode only.
        """
        if device == _CURRENT:  # whichever it is
            device = torch.device("cuda", torch.cuda.current_device())
        constant = self._constant_terms
        if constant is None:
            return self._make_terms(device)
        if device is None or device.type == "cpu":
            return constant
        if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
            return self._make_terms(device)  # where nobody may look at tensors
        if self._constant_numbers is None:
            self._constant_numbers = constant.scales.tolist(), constant.coefficients.tolist()
        scales, coefficients = self._constant_numbers
        return constant._replace(
            scales=numbers(scales, device), coefficients=numbers(coefficients, device)
        )

    def terms_for(self, x: Tensor, y: Tensor) -> Terms:
        """Spell the kernel out for two samples, [n, d] and [m, d], or batches [B, n, d], [B, m, d].

        A :class:`RunningBandwidth` in training mode takes them in first.
        """
        if self._constant_terms is None:
            for module in self.modules():  # each once, should kernels share one
                if isinstance(module, RunningBandwidth):
                    module.update(x, y)
        return self.terms(x.device)

    def _make_terms(self, device: torch.device | None = None) -> Terms:
        raise NotImplementedError(
            "a Kernel is written down as Gaussian, Laplacian, ..., their sums and multiples"
        )

    def _settle(self, *arguments: Any) -> None:
        """Work the terms out for good, where all of the arguments are fixed."""
        if all(map(is_number, arguments)):
            self._constant_terms = self._make_terms()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED and name in self.__dict__:
            raise AttributeError(
                f"{name} of a {type(self).__name__} is fixed, as it was given as numbers"
            )
        super().__setattr__(name, value)

    def __add__(self, other: Kernel) -> Kernel:
        return Sum(self, other) if isinstance(other, Kernel) else NotImplemented

    def __mul__(self, factor: Factor) -> Kernel:
        if not isinstance(factor, (Real, Tensor, Learnable)):
            return NotImplemented
        return Scaled(self, factor)

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


_FIXED = frozenset(
    {"bandwidth", "multipliers", "weights", "factor", "alpha", "nu", "degree", "gamma", "coef0"}
)


class Gaussian(Kernel):
    r"""A bank of Gaussians, ``k(x, y) = sum_k w_k exp(-|x - y|^2 / (2 m_k s^2))``.

    With the mean or the median of all pairs as bandwidth this is the multi-kernel of Gretton et
    al., "Optimal kernel choice for large-scale two-sample tests" (NeurIPS 2012), as Long et al.,
    "Learning transferable features with deep adaptation networks" (ICML 2015), use it.

    Args:
        bandwidth: s, in the units of the data. A positive number; a floating tensor, scalar or of
            shape [B] (a ``nn.Parameter`` becomes a parameter of the kernel, another tensor a
            buffer, and gradients reach either); a :class:`Learnable`, which stays positive; or a
            heuristic on the pooled sample z, worked out at each call and held constant in the
            gradient: ``"mean"`` takes ``2 s^2 = mean of |z_i - z_j|^2 over i != j``, ``"median"``
            the lower median over i < j; or a :class:`RunningBandwidth`, their average over steps.
        multipliers: m_k, K positive numbers.
        weights: w_k, non-negative numbers, a tensor of shape [B * K] or a :class:`Learnable`, the
            multipliers of the first bandwidth first (B = 1 for a scalar or a heuristic); 1 each by
            default.

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
    weights: tuple[float, ...] | Tensor | Learnable | None

    def __init__(
        self,
        bandwidth: Bandwidth = "mean",
        multipliers: Sequence[float] = (0.25, 0.5, 1, 2, 4),
        weights: Weights = None,
    ) -> None:
        super().__init__()
        store(self, "bandwidth", checked_bandwidth(bandwidth))
        self.multipliers = checked_multipliers(multipliers)
        size = bank_size(bandwidth) * len(self.multipliers)
        store(self, "weights", checked_weights(weights, size))
        self._settle(self.bandwidth, self.weights)

    def _make_terms(self, device: torch.device | None = None) -> Terms:
        inverse = [0.5 / m for m in self.multipliers]
        return _bank(GAUSSIAN, self.bandwidth, inverse, self.weights, device=device)

    def __repr__(self) -> str:
        parts = [f"bandwidth={show(self.bandwidth)}", f"multipliers={self.multipliers}"]
        return f"Gaussian({', '.join(parts + show_weights(self.weights))})"


class _Radial(Kernel):
    """A kernel of ``|x - y|`` with one term for each bandwidth."""

    bandwidth: Bandwidth
    weights: tuple[float, ...] | Tensor | Learnable | None

    _family: int
    _inverse = 1.0  # the scale is this over s^2
    _shape = (0.0, 0.0)

    def _bandwidth_and_weights(self, bandwidth: Bandwidth, weights: Weights) -> None:
        store(self, "bandwidth", checked_bandwidth(bandwidth))
        store(self, "weights", checked_weights(weights, bank_size(bandwidth)))
        self._settle(self.bandwidth, self.weights)

    def _make_terms(self, device: torch.device | None = None) -> Terms:
        inverse = [self._inverse]
        return _bank(self._family, self.bandwidth, inverse, self.weights, self._shape, device)

    def _shown(self) -> list[str]:
        """What ``repr`` shows before the bandwidth."""
        return []

    def __repr__(self) -> str:
        parts = [f"bandwidth={show(self.bandwidth)}", *show_weights(self.weights)]
        return f"{type(self).__name__}({', '.join(self._shown() + parts)})"


class Laplacian(_Radial):
    """A bank of Laplacian kernels ``exp(-|x - y| / s)``, with the Euclidean norm.

    Its gradient in ``|x - y|`` is taken as 0 where x = y.

    Args:
        bandwidth: s, as for :class:`Gaussian`; a heuristic fixes ``2 s^2`` in the same way.
        weights: one non-negative weight per bandwidth, numbers, a tensor of shape [B] or a
            :class:`Learnable`; 1 each by default.

    Raises:
        ValueError: a bandwidth or weight out of range or of a wrong shape, or an unknown heuristic.
        TypeError: an argument of another type.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> fm.Laplacian(torch.tensor([1.0, 2.0]), weights=(0.5, 0.5))
        Laplacian(bandwidth=tensor([1., 2.]), weights=(0.5, 0.5))
    """

    _family = LAPLACIAN

    def __init__(self, bandwidth: Bandwidth = "mean", weights: Weights = None) -> None:
        super().__init__()
        self._bandwidth_and_weights(bandwidth, weights)


class InverseMultiquadric(_Radial):
    """A bank of inverse multiquadrics ``(1 + |x - y|^2 / s^2)^(-1/2)``.

    Its tails are heavy: points far apart still pull at each other. Gorham and Mackey, "Measuring
    sample quality with kernels" (ICML 2017), show what that is good for.

    Args:
        bandwidth: s, as for :class:`Gaussian`; a heuristic fixes ``2 s^2`` in the same way.
        weights: as for :class:`Laplacian`.

    Raises:
        ValueError: a bandwidth or weight out of range or of a wrong shape, or an unknown heuristic.
        TypeError: an argument of another type.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> zero, two = torch.zeros(1, 1), torch.full((1, 1), 2.0)
        >>> fm.mmd2(zero, two, fm.InverseMultiquadric(1.0))  # 2 - 2 / sqrt(5)
        tensor(1.1056)
    """

    _family = INVERSE_MULTIQUADRIC

    def __init__(self, bandwidth: Bandwidth = "mean", weights: Weights = None) -> None:
        super().__init__()
        self._bandwidth_and_weights(bandwidth, weights)


class RationalQuadratic(_Radial):
    """A bank of rational quadratic kernels ``(1 + |x - y|^2 / (2 alpha s^2))^(-alpha)``.

    A mixture of Gaussians whose inverse squared bandwidths follow a gamma distribution, equation
    (4.19) of Rasmussen and Williams, "Gaussian processes for machine learning" (2006). It tends to
    the Gaussian as alpha grows. Binkowski et al., "Demystifying MMD GANs" (ICLR 2018), sum several.

    Args:
        alpha: a positive number.
        bandwidth: s, as for :class:`Gaussian`; a heuristic fixes ``2 s^2`` in the same way.
        weights: as for :class:`Laplacian`.

    Raises:
        ValueError: an alpha, bandwidth or weight out of range or of a wrong shape, or an unknown
            heuristic.
        TypeError: an argument of another type.

    Example:
        >>> import fastmmd as fm
        >>> fm.RationalQuadratic(0.2, 1.0) + fm.RationalQuadratic(5, 1.0)
        RationalQuadratic(alpha=0.2, bandwidth=1.0) + RationalQuadratic(alpha=5.0, bandwidth=1.0)
    """

    alpha: float

    _family = RATIONAL_QUADRATIC
    _inverse = 0.5

    def __init__(
        self, alpha: float = 1.0, bandwidth: Bandwidth = "mean", weights: Weights = None
    ) -> None:
        super().__init__()
        self.alpha = checked_fixed("alpha", alpha)
        self._shape = (self.alpha, 0.0)
        self._bandwidth_and_weights(bandwidth, weights)

    def _shown(self) -> list[str]:
        return [f"alpha={self.alpha}"]


class Matern(_Radial):
    r"""A bank of Matern kernels of smoothness nu, with ``r = |x - y|``.

    - nu = 1/2: ``exp(-r / s)``, the :class:`Laplacian`, whose gradient in r is taken as 0 at 0;
    - nu = 3/2: ``(1 + q) exp(-q)``, ``q = sqrt(3) r / s``;
    - nu = 5/2: ``(1 + q + q^2 / 3) exp(-q)``, ``q = sqrt(5) r / s``.

    Equations (4.14) and (4.17) of Rasmussen and Williams, "Gaussian processes for machine learning"
    (2006).

    Args:
        nu: 0.5, 1.5 or 2.5.
        bandwidth: s, as for :class:`Gaussian`; a heuristic fixes ``2 s^2`` in the same way.
        weights: as for :class:`Laplacian`.

    Raises:
        ValueError: another nu, a bandwidth or weight out of range or of a wrong shape, or an
            unknown heuristic.
        TypeError: an argument of another type.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> fm.Matern(2.5, torch.tensor([0.5, 2.0]))
        Matern(nu=2.5, bandwidth=tensor([0.5000, 2.0000]))
    """

    nu: float

    def __init__(
        self, nu: float = 1.5, bandwidth: Bandwidth = "mean", weights: Weights = None
    ) -> None:
        super().__init__()
        self.nu = checked_nu(nu)
        self._family = {0.5: LAPLACIAN, 1.5: MATERN_3_2, 2.5: MATERN_5_2}[self.nu]
        self._bandwidth_and_weights(bandwidth, weights)

    def _shown(self) -> list[str]:
        return [f"nu={self.nu}"]


class _Bare(Kernel):
    """One term without parameters."""

    _family: int

    def __init__(self) -> None:
        super().__init__()
        self._constant_terms = self._make_terms()

    def _make_terms(self, device: torch.device | None = None) -> Terms:
        one = numbers([1.0], device)
        return Terms((self._family,), one, one, (0.0, 0.0), (FIXED,), (0,))


class Energy(_Bare):
    """The energy kernel, ``k(x, y) = -|x - y|`` with the Euclidean norm.

    MMD^2 with it is the energy distance ``2 E|x - y| - E|x - x'| - E|y - y'|`` (Sejdinovic et
    al., "Equivalence of distance-based and RKHS-based statistics in hypothesis testing", Annals
    of Statistics 2013). It has no bandwidth. Its gradient in ``|x - y|`` is taken as 0 where x =
    y.
    """

    _family = ENERGY


class Polynomial(Kernel):
    """The polynomial kernel ``(gamma <x, y> + coef0)^degree``.

    MMD^2 with it compares all moments up to the degree (for coef0 > 0). With its defaults it is
    the kernel of the Kernel Inception Distance of Binkowski et al., "Demystifying MMD GANs" (ICLR
    2018). It is not invariant under translation, so data far from the origin cost digits.

    Args:
        degree: a positive integer.
        gamma: a positive number, a scalar tensor (differentiable, as the bandwidth of
            :class:`Gaussian`) or a :class:`Learnable`; 1 / d by default, d the number of features.
        coef0: a non-negative number.

    Raises:
        ValueError: an argument out of range or of a wrong shape.
        TypeError: an argument of another type.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 0.0]])
        >>> fm.mmd2(x, y, fm.Polynomial(2, gamma=1, coef0=0))  # 5^2 + 9^2 - 2 * 3^2
        tensor(88.)
    """

    degree: int
    gamma: Factor | None
    coef0: float

    def __init__(self, degree: int = 3, gamma: Factor | None = None, coef0: float = 1) -> None:
        super().__init__()
        self.degree = checked_degree(degree)
        store(self, "gamma", None if gamma is None else checked_scalar("gamma", gamma))
        self.coef0 = checked_coef0(coef0)
        self._settle(self.gamma)

    def _make_terms(self, device: torch.device | None = None) -> Terms:
        gamma = value_of(self.gamma)
        if isinstance(gamma, Tensor):
            _check_device("gamma", gamma, device)
            scales = checked_positive("gamma", gamma).double().reshape(1)
        else:
            scales = numbers([1.0 if gamma is None else gamma], device)
        unit = WIDTH if gamma is None else FIXED
        shape = (float(self.degree), self.coef0)
        return Terms((POLYNOMIAL,), scales, torch.ones_like(scales), shape, (unit,), (0,))

    def __repr__(self) -> str:
        parts = [f"degree={self.degree}", f"gamma={show(self.gamma)}", f"coef0={self.coef0}"]
        return f"Polynomial({', '.join(parts)})"


class Linear(_Bare):
    """The linear kernel ``<x, y>``.

    Biased MMD^2 with it is the squared distance of the two means; nothing else of the samples
    counts.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> x, y = torch.tensor([[0.0, 0.0], [2.0, 2.0]]), torch.tensor([[4.0, 5.0]])
        >>> fm.mmd2(x, y, fm.Linear())  # |(1, 1) - (4, 5)|^2
        tensor(25.)
    """

    _family = LINEAR


class Cosine(_Bare):
    """The cosine kernel ``<x, y> / (|x| |y|)``; it and its gradients are 0 where a norm is 0.

    The linear kernel of the points' directions.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> x, y = torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]])
        >>> fm.mmd2(x, y, fm.Cosine())  # 1 + 1/4 - 2 * sqrt(1/2) / 2
        tensor(0.5429)
    """

    _family = COSINE


class Sum(Kernel):
    """The sum of kernels, what ``k1 + k2`` makes.

    Args:
        kernels: the summands; sums among them are spliced in.

    Raises:
        TypeError: a summand that is no kernel.
        ValueError: no summands.
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

    def _make_terms(self, device: torch.device | None = None) -> Terms:
        parts = [kernel.terms(device) for kernel in self.summands()]
        return Terms(
            sum((p.families for p in parts), ()),
            joined([p.scales for p in parts]),
            joined([p.coefficients for p in parts]),
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
        factor: a positive number; a scalar tensor, which may be a ``nn.Parameter``; or a
            :class:`Learnable`.

    Raises:
        ValueError: a factor that is not positive and finite, or a tensor that is no scalar.
        TypeError: an argument of another type.
    """

    factor: Factor

    def __init__(self, kernel: Kernel, factor: Factor) -> None:
        super().__init__()
        if not isinstance(kernel, Kernel):
            raise TypeError(f"kernel must be a fastmmd.Kernel, got {kernel!r}")
        self.kernel = kernel
        store(self, "factor", checked_scalar("factor", factor))
        if kernel._constant_terms is not None:
            self._settle(factor)

    def _make_terms(self, device: torch.device | None = None) -> Terms:
        factor = value_of(self.factor)
        terms = self.kernel.terms(device)
        coefficients = terms.coefficients
        if isinstance(factor, Tensor):
            _check_device("factor", factor, device)
            factor = checked_positive("factor", factor).double()
            coefficients = on_device(coefficients, factor.device)
        return terms._replace(
            scales=on_device(terms.scales, coefficients.device), coefficients=coefficients * factor
        )

    def __repr__(self) -> str:
        inner = f"({self.kernel!r})" if isinstance(self.kernel, Sum) else repr(self.kernel)
        return f"{show(self.factor)} * {inner}"


def _bank(
    family: int,
    bandwidth: Bandwidth,
    inverse: list[float],
    weights: Weights,
    shape: tuple[float, float] = (0.0, 0.0),
    device: torch.device | None = None,
) -> Terms:
    """The terms ``w phi(inverse_k * D / s^2)``, those of the first bandwidth first."""
    unit = FIXED
    s, weights = value_of(bandwidth), value_of(weights)
    if isinstance(s, Tensor):
        _check_device("bandwidth", s, device)
        factors = numbers(inverse, s.device)
        if isinstance(bandwidth, RunningBandwidth):  # s is 2 s^2, 0 if all points were equal
            s = s.double()
            scales = (2 * factors / s).masked_fill(s == 0, 0.0)
        else:
            s = checked_positive("bandwidth", s).double().reshape(-1, 1)
            scales = (factors / (s * s)).reshape(-1)
        size = scales.numel()
    else:
        if isinstance(s, str):  # s^2 is half of the unit
            unit, values = UNITS[s], [2.0 * i for i in inverse]
        else:
            values = [i / s / s for i in inverse]
            if not all(0 < v < math.inf for v in values):
                raise ValueError(f"bandwidth must be positive and its square in range, got {s!r}")
        scales, size = numbers(values, device), len(values)
    if isinstance(weights, Tensor):
        _check_device("weights", weights, device)
        scales = on_device(scales, weights.device)
        coefficients = checked_nonnegative(weights).double().contiguous()
    elif weights is None:
        coefficients = torch.ones_like(scales)
    else:
        coefficients = numbers(cast(Sequence[float], weights), scales.device)
    return Terms((family,) * size, scales, coefficients, shape * size, (unit,) * size, (0,) * size)


def _check_device(name: str, tensor: Tensor, device: torch.device | None) -> None:
    if device is not None and tensor.device != device:
        raise ValueError(
            f"{name} must be on the device of the points, {device}, got {tensor.device}: move the"
            " kernel there with its method to()"
        )


_DEFAULT = Gaussian("mean")  # it has no state, so one serves all


def as_kernel(kernel: Kernel | None) -> Kernel:
    """The kernel, or the default one for None; TypeError for anything else."""
    if kernel is None:
        return _DEFAULT
    if not isinstance(kernel, Kernel):
        raise TypeError(f"kernel must be a fastmmd.Kernel such as Gaussian('mean'), got {kernel!r}")
    return kernel
