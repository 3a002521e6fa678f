"""What the drop-ins share: checks that name the arguments, and kernels written down as terms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from fastmmd.checks import is_plain
from fastmmd.joint import product_terms
from fastmmd.terms import FIXED, Terms

_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def check_pair(
    x: Any, y: Any, names: tuple[str, str] = ("x", "y"), *, least: int = 1, batches: bool = False
) -> None:
    """Raise unless x and y are two samples of at least ``least`` points each.

    Args:
        x: what should be of shape [n, d].
        y: what should be of shape [m, d].
        names: what the caller calls them.
        least: how many points there must be.
        batches: whether [B, n, d] and [B, m, d] will do as well.
    """
    for name, t in zip(names, (x, y), strict=True):
        check_points(t, name, least, batches)
    shapes = f"got {names[0]} of shape {list(x.shape)} and {names[1]} of shape {list(y.shape)}"
    both = " and ".join(names)
    if x.ndim != y.ndim:
        raise ValueError(f"{both} must be of one rank, {shapes}")
    if x.ndim == 3 and x.shape[0] != y.shape[0]:
        raise ValueError(f"{both} must hold the same number of samples, {shapes}")
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"{both} must be of one width, {shapes}")
    if x.dtype != y.dtype:
        raise TypeError(f"{both} must be of one dtype, got {x.dtype} and {y.dtype}")
    if x.device != y.device:
        raise ValueError(f"{both} must be on one device, got {x.device} and {y.device}")


def check_points(t: Any, name: str, least: int = 1, batches: bool = False) -> None:
    """Raise unless t is a sample of at least ``least`` points."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")
    if t.dtype not in _DTYPES:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {t.dtype}")
    if t.ndim != 2 and not (batches and t.ndim == 3):
        accepted = "[points, width]" + (" or [batch, points, width]" if batches else "")
        raise ValueError(f"{name} must be of shape {accepted}, got shape {list(t.shape)}")
    if t.numel() == 0:
        raise ValueError(f"{name} must not be empty, got shape {list(t.shape)}")
    if t.shape[-2] < least:
        raise ValueError(f"{name} must have at least {least} points, got shape {list(t.shape)}")


def check_same_size(x: Tensor, y: Tensor, names: tuple[str, str], why: str) -> None:
    """Raise unless both samples have as many points."""
    if x.shape[0] != y.shape[0]:
        raise ValueError(
            f"{names[0]} and {names[1]} must have as many points {why}, got shapes"
            f" {list(x.shape)} and {list(y.shape)}"
        )


def check_lists(what: str, *named: tuple[str, Any]) -> int:
    """The common length of several sequences, with one entry for each ``what``."""
    sizes = []
    for name, values in named:
        if not isinstance(values, (list, tuple, torch.nn.ModuleList)):
            raise TypeError(
                f"{name} must be a list or tuple, one entry for each {what},"
                f" got {type(values).__name__}"
            )
        sizes.append(len(values))
    if len(set(sizes)) != 1 or sizes[0] == 0:
        counted = ", ".join(f"{n} has {s}" for (n, _), s in zip(named, sizes, strict=True))
        raise ValueError(f"there must be one entry for each {what}: {counted}")
    return sizes[0]


def check_positive(name: str, value: Any) -> float:
    """The value as a float; raise unless it is a positive number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a positive number, got {value!r}")
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
    return float(value)


def check_count(name: str, value: Any) -> int:
    """The value; raise unless it is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number of at least 1, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value}")
    return value


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}")


def check_labels(labels: Any, name: str, points: Tensor, classes: int) -> None:
    """Raise unless there is one class of 0, ..., classes - 1 for each point."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(labels).__name__}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{name} must be of an integer dtype, got {labels.dtype}")
    if labels.shape != points.shape[:1]:
        raise ValueError(
            f"{name} must be of shape [{len(points)}], one class for each point,"
            f" got shape {list(labels.shape)}"
        )
    if labels.device != points.device:
        raise ValueError(f"{name} must be on {points.device}, got {labels.device}")
    if is_plain(labels):
        low, high = (int(t) for t in torch.aminmax(labels))
        if low < 0 or high >= classes:
            raise ValueError(
                f"{name} must lie between 0 and {classes - 1}, got {low if low < 0 else high}"
            )


def check_probabilities(probabilities: Any, name: str, points: Tensor, classes: int) -> None:
    """Raise unless there is one distribution over the classes for each point."""
    if not isinstance(probabilities, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(probabilities).__name__}")
    if probabilities.dtype not in _DTYPES:
        raise TypeError(f"{name} must be of a floating dtype, got {probabilities.dtype}")
    if probabilities.shape != (len(points), classes):
        raise ValueError(
            f"{name} must be of shape [{len(points)}, {classes}], one probability for each point"
            f" and class, got shape {list(probabilities.shape)}"
        )
    if probabilities.device != points.device:
        raise ValueError(f"{name} must be on {points.device}, got {probabilities.device}")
    if is_plain(probabilities):
        rows = probabilities.detach().double()
        low = float(rows.min())
        if not low >= 0:
            raise ValueError(
                f"{name} must hold probabilities, the softmax of the logits, got {low:.3g}"
            )
        sums = rows.sum(1)
        # What a softmax in the dtype of the rows leaves of 1.
        allowed = max(1e-4, 4 * torch.finfo(probabilities.dtype).eps)
        worst = float(sums[(sums - 1).abs().argmax()])
        if not abs(worst - 1) <= allowed:
            raise ValueError(
                f"{name} must hold probabilities, the softmax of the logits: each row must sum to"
                f" 1, got a sum of {worst:.6g}"
            )


# Modules keep terms from call to call, but only those of an ordinary call: tensors made inside of a
# transform or a trace are none for the next.


def family_terms(
    family: int,
    scales: Sequence[float] | Tensor,
    unit: int = FIXED,
    coefficients: Sequence[float] | float = 1.0,
    shape: tuple[float, float] = (0.0, 0.0),
) -> Terms:
    """Terms of one family and one unit."""
    if not isinstance(scales, Tensor):
        scales = torch.tensor(scales, dtype=torch.float64, device="cpu")
    size = scales.numel()
    if isinstance(coefficients, float):
        coefficients = (coefficients,) * size
    return Terms(
        (family,) * size,
        scales,
        torch.tensor(coefficients, dtype=torch.float64, device="cpu"),
        shape * size,
        (unit,) * size,
        (0,) * size,
    )


def added(parts: Sequence[Terms]) -> Terms:
    """The sum of kernels."""
    if len(parts) == 1:
        return parts[0]
    together = product_terms(parts)
    return together._replace(factors=(0,) * len(together.factors))


def multiplied(parts: Sequence[Terms]) -> Terms:
    """The product of kernels, each of which looks at features of its own."""
    return parts[0] if len(parts) == 1 else product_terms(parts)


def squared_distances(x: Tensor, y: Tensor | None = None) -> Tensor:
    """``|x_i - y_j|^2`` as a matrix, for the few places where the caller asks for a matrix."""
    centre = x.detach().mean(0)
    x = x - centre
    other = x if y is None else y - centre
    norms = x.square().sum(1, keepdim=True) + other.square().sum(1)
    d2 = torch.addmm(norms, x, other.T, alpha=-2).clamp(min=0)
    if y is not None:
        return d2
    return d2.masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), 0)


def at_least_single(t: Tensor) -> Tensor:
    """In float32 if it is half."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t
