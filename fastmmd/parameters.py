"""What a kernel holds: numbers, tensors, learnable values and running averages; their checks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from fastmmd.checks import are_weights, is_plain
from fastmmd.terms import GAUSSIAN, UNITS, Terms, numbers


class Learnable(nn.Module):
    """A positive number, or several, that an optimizer may move freely: ``exp(log_value)``.

    It stands for the bandwidth, the weights, the factor or the gamma of a kernel. Its parameter
    ``log_value`` may take any real value, so no step makes a bandwidth negative, and a step
    changes it by a share of itself, whatever the units of the data. A bare ``nn.Parameter`` in
    the same place is used as it is, and is an error once it is no longer positive.

    Args:
        value: where to start: a positive number, a sequence of them, or a tensor, scalar or of
            shape [K], whose dtype and device the parameter takes.

    Raises:
        ValueError: a value that is not positive and finite, none at all, or of rank 2 and more.
        TypeError: anything but numbers or a floating tensor.

    Example:
        >>> import fastmmd as fm
        >>> kernel = fm.Learnable(0.5) * fm.Laplacian(fm.Learnable(2.0))
        >>> [name for name, _ in kernel.named_parameters()]
        ['kernel.bandwidth.log_value', 'factor.log_value']
    """

    def __init__(self, value: float | Sequence[float] | Tensor) -> None:
        super().__init__()
        tensor = _learnable_start(value)
        if tensor.ndim > 1 or tensor.numel() == 0:
            raise ValueError(
                f"value must be of shape [] or [K], K > 0, got shape {list(tensor.shape)}"
            )
        self.log_value = nn.Parameter(tensor.log())

    def forward(self) -> Tensor:
        """The value, of the shape of ``log_value``."""
        return self.log_value.exp()

    def __repr__(self) -> str:
        return f"Learnable({self().detach()!r})"


def _learnable_start(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        start: Tensor = checked_positive("value", value).detach()
        return start
    if isinstance(value, Real):
        return torch.tensor(checked_fixed("value", value))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return torch.tensor([checked_fixed("value", v) for v in value])
    raise TypeError(f"value must be positive numbers or a tensor, got {value!r}")


class RunningBandwidth(nn.Module):
    """A heuristic bandwidth that is averaged over the steps of a training run.

    In training mode each call of the loss works out ``2 s^2`` of its two samples, as ``"mean"`` or
    ``"median"`` do, moves the average towards it, and uses the average. In evaluation mode the
    average stays as it is, so that losses can be compared from step to step. It is a buffer: it
    is saved in ``state_dict()``, follows ``to()``, and takes no gradient. The first call sets it.
    A call whose data hold NaN or infinity leaves it alone. In a batch [B, n, d] it is the mean
    over the B pairs of samples that counts.

    Each process averages what it sees itself.

    Args:
        heuristic: ``"mean"`` or ``"median"``, see :class:`Gaussian`.
        momentum: the weight of the new value, 0 < momentum <= 1, or None for the plain average of
            all calls.

    Attributes:
        value: the average of ``2 s^2``, a scalar; NaN before the first call.
        num_batches_tracked: how many calls it has seen.

    Raises:
        ValueError: an unknown heuristic or a momentum out of range.
        TypeError: an argument of another type.
        NotImplementedError: an update inside a transform of ``torch.func``.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> loss = fm.MMDLoss(fm.Gaussian(fm.RunningBandwidth("mean", momentum=0.5)))
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> for scale in (1, 3):
        ...     _ = loss(scale * x, scale * x)
        >>> loss.kernel.bandwidth.value  # of 2/3 and 6
        tensor(3.3333, dtype=torch.float64)
    """

    value: Tensor
    num_batches_tracked: Tensor

    def __init__(self, heuristic: str = "mean", momentum: float | None = 0.1) -> None:
        super().__init__()
        if not isinstance(heuristic, str) or heuristic not in UNITS:
            raise ValueError(f"heuristic must be 'mean' or 'median', got {heuristic!r}")
        self.heuristic = heuristic
        self.momentum = _checked_momentum(momentum)
        self.register_buffer("value", torch.tensor(math.nan, dtype=torch.float64))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    @torch.no_grad()
    def update(self, x: Tensor, y: Tensor) -> None:
        """Take in two samples, [n, d] and [m, d] or batches of them, in training mode."""
        if not self.training:
            return
        from fastmmd import ops  # not at the top: the operators are made of kernels

        one = numbers([1.0], x.device)
        terms = Terms((GAUSSIAN,), one, one, (0.0, 0.0), (UNITS[self.heuristic],), (0,))
        inverse = ops.resolve(x, y, terms)
        # The inverse of a unit of 0 is given as 0.
        new = (1 / inverse).masked_fill(inverse == 0, 0.0).mean().to(self.value)
        sound, count = new.isfinite(), self.num_batches_tracked
        momentum = 1 / (count + 1) if self.momentum is None else self.momentum
        moved = torch.where(count == 0, new, self.value + momentum * (new - self.value))
        value, count = torch.where(sound, moved, self.value), count + sound
        if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
            self.value.copy_(value)
            self.num_batches_tracked.copy_(count)
            return
        try:
            self.value.copy_(value)
            self.num_batches_tracked.copy_(count)
        except RuntimeError as error:
            raise NotImplementedError(
                "a RunningBandwidth cannot be updated inside a transform of torch.func: call eval()"
                " on it, or hand over its buffers with torch.func.functional_call"
            ) from error

    def forward(self) -> Tensor:
        """The average of ``2 s^2``, a scalar.

        Raises:
            RuntimeError: there is none yet. It is looked for on the CPU in eager mode only; NaN
                elsewhere.
        """
        if is_plain(self.value) and not self.training and self.value.isnan():
            raise RuntimeError(
                "this RunningBandwidth has seen no data: call the loss in training mode before"
                " eval(), or load a state_dict"
            )
        return self.value

    def __repr__(self) -> str:
        return f"RunningBandwidth({self.heuristic!r}, momentum={self.momentum})"


def _checked_momentum(momentum: Any) -> float | None:
    if momentum is None:
        return None
    if not isinstance(momentum, Real):
        raise TypeError(f"momentum must be a number or None, got {momentum!r}")
    if not 0 < float(momentum) <= 1:
        raise ValueError(f"momentum must be above 0 and at most 1, got {momentum!r}")
    return float(momentum)


Bandwidth = float | str | Tensor | Learnable | RunningBandwidth
Weights = Sequence[float] | Tensor | Learnable | None
Factor = float | Tensor | Learnable

_BANDWIDTHS = "a positive number, a tensor, 'mean', 'median', a Learnable or a RunningBandwidth"


def is_number(value: Any) -> bool:
    """Whether an argument that has been checked is fixed: neither a tensor nor a module."""
    return not isinstance(value, (Tensor, nn.Module))


def value_of(value: Any) -> Any:
    """What a module stands for, and anything else as it is."""
    return value() if isinstance(value, (Learnable, RunningBandwidth)) else value


def store(module: nn.Module, name: str, value: Any) -> None:
    """Set an attribute of a kernel, tensors as parameters or buffers."""
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        module.register_buffer(name, value)
    else:
        setattr(module, name, value)


def bank_size(bandwidth: Bandwidth) -> int:
    """How many bandwidths these are."""
    tensor = _tensor_of(bandwidth)
    return 1 if tensor is None else tensor.numel()


def _tensor_of(value: Any) -> Tensor | None:
    """The tensor whose shape an argument has, if it has one."""
    if isinstance(value, Learnable):
        return value.log_value
    return value if isinstance(value, Tensor) else None


def checked_bandwidth(bandwidth: Any) -> Any:
    """The bandwidth; raises unless it is one."""
    if isinstance(bandwidth, RunningBandwidth):
        return bandwidth
    if isinstance(bandwidth, str):
        if bandwidth not in UNITS:
            raise ValueError(f"bandwidth must be {_BANDWIDTHS}, got {bandwidth!r}")
        return bandwidth
    tensor = _tensor_of(bandwidth)
    if tensor is not None and (tensor.ndim > 1 or tensor.numel() == 0):
        raise ValueError(
            f"bandwidth must be of shape [] or [B], B > 0, got shape {list(tensor.shape)}"
        )
    return checked_positive("bandwidth", bandwidth)


def checked_scalar(name: str, value: Any) -> Any:
    """A positive number or scalar; raises unless it is one."""
    tensor = _tensor_of(value)
    if tensor is not None and tensor.ndim != 0:
        raise ValueError(
            f"{name} must be a number or a scalar tensor, got shape {list(tensor.shape)}"
        )
    return checked_positive(name, value)


def checked_positive(name: str, value: Any) -> Any:
    """A number, tensor or Learnable; raises unless it is positive and finite."""
    if isinstance(value, Learnable):
        return value
    if isinstance(value, Tensor):
        _checked_floating(name, value)
        if is_plain(value) and not bool(((value > 0) & value.isfinite()).all()):
            raise ValueError(f"{name} must be positive and finite, got {value.detach()}")
        return value
    if not isinstance(value, Real):
        accepted = {
            "bandwidth": _BANDWIDTHS,
            "alpha": "a positive number",
            "multipliers": "positive numbers",
        }.get(name, "a positive number, a tensor or a Learnable")
        raise TypeError(f"{name} must be {accepted}, got {value!r}")
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
    return value


def checked_fixed(name: str, value: Any) -> float:
    """A positive number that is none of the things that change; raises unless it is."""
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a positive number, got {value!r}")
    return float(checked_positive(name, value))


def checked_nu(nu: Any) -> float:
    """The smoothness of a Matern kernel; raises unless it is one."""
    if not isinstance(nu, Real):
        raise TypeError(f"nu must be 0.5, 1.5 or 2.5, got {nu!r}")
    if float(nu) not in (0.5, 1.5, 2.5):
        raise ValueError(f"nu must be 0.5, 1.5 or 2.5, got {nu!r}")
    return float(nu)


def checked_degree(degree: Any) -> int:
    """The degree of a polynomial; raises unless it is one."""
    if type(degree) is bool or not isinstance(degree, Integral):
        raise TypeError(f"degree must be a positive integer, got {degree!r}")
    if degree < 1:
        raise ValueError(f"degree must be at least 1, got {degree!r}")
    return int(degree)


def checked_coef0(coef0: Any) -> float:
    """The constant of a polynomial; raises unless it is one."""
    if not isinstance(coef0, Real):
        raise TypeError(f"coef0 must be a non-negative number, got {coef0!r}")
    if not 0 <= float(coef0) < math.inf:
        raise ValueError(f"coef0 must be non-negative and finite, got {coef0!r}")
    return float(coef0)


def checked_multipliers(multipliers: Any) -> tuple[float, ...]:
    """The multipliers of a bank; raises unless they are."""
    if isinstance(multipliers, (str, Tensor)) or not isinstance(multipliers, Sequence):
        raise TypeError(f"multipliers must be a sequence of positive numbers, got {multipliers!r}")
    if not multipliers:
        raise ValueError("multipliers must hold at least one positive number, got none")
    return tuple(checked_positive("multipliers", m) for m in multipliers)


def checked_weights(weights: Any, size: int) -> Any:
    """The weights of ``size`` terms; raises unless they are."""
    if weights is None:
        return None
    tensor = _tensor_of(weights)
    if tensor is not None:
        if tensor.ndim != 1 or tensor.numel() != size:
            raise ValueError(
                f"weights must be of shape [{size}], one for each term, got {list(tensor.shape)}"
            )
        return weights if isinstance(weights, Learnable) else checked_nonnegative(tensor)
    if (
        isinstance(weights, str)
        or not isinstance(weights, Sequence)
        or not all(isinstance(w, Real) for w in weights)
    ):
        raise TypeError(f"weights must be numbers, a tensor, a Learnable or None, got {weights!r}")
    if len(weights) != size:
        raise ValueError(f"weights must hold {size} numbers, one for each term, got {len(weights)}")
    if not all(0 <= float(w) < math.inf for w in weights) or not any(weights):
        raise ValueError(f"weights must be non-negative, finite and not all zero, got {weights!r}")
    return tuple(float(w) for w in weights)


def checked_nonnegative(weights: Tensor) -> Tensor:
    """The weights of a kernel's terms as a tensor; raises if their values are out of range."""
    _checked_floating("weights", weights)
    if is_plain(weights) and not are_weights(weights):
        raise ValueError(
            f"weights must be non-negative, finite and not all zero, got {weights.detach()}"
        )
    return weights


def _checked_floating(name: str, value: Tensor) -> None:
    if not value.is_floating_point():
        raise TypeError(f"{name} must be of a floating dtype, got {value.dtype}")


def show(value: Any) -> str:
    """How a kernel's ``repr`` shows an argument."""
    return repr(value.detach()) if isinstance(value, Tensor) else repr(value)


def show_weights(weights: Any) -> list[str]:
    """The same for weights, which are not shown where there are none."""
    return [] if weights is None else [f"weights={show(weights)}"]
