"""Checks of arguments, all done before any kernel runs.

Values are looked at where that costs nothing: Python numbers and plain CPU tensors in eager mode.
On other devices and under ``torch.compile`` only shapes, dtypes and devices are.
"""

from __future__ import annotations

import math

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

_PLAIN_TYPES = frozenset({Tensor, torch.nn.Parameter})
_POINT_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_ESTIMATORS = {"biased": False, "unbiased": True}


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary CPU tensors and no one traces, transforms or intercepts operators.

    Then, and only then, values may be looked at and addresses passed on.
    """
    if torch.compiler.is_compiling():
        return False
    for t in tensors:
        if t is not None and (type(t) not in _PLAIN_TYPES or not t.is_cpu or t.is_neg()):
            return False
    return not (
        torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state()
        or forward_ad._current_level >= 0
        or torch.overrides.has_torch_function(tensors)  # of a mode, as the types are plain
    )


def are_weights(weights: Tensor, positive: int = 1) -> bool:
    """Whether all are finite, none is negative and ``positive`` or more are not zero."""  # TOOLONG
    weights = weights.detach()
    low, high = torch.aminmax(weights)  # NaN if any is
    if not (low.item() >= 0 and 0 < high.item() < math.inf):
        return False
    return positive == 1 or int(torch.count_nonzero(weights)) >= positive


def check_estimator(estimator: str) -> bool:
    """Whether the estimator is the unbiased one."""
    if isinstance(estimator, str) and estimator in _ESTIMATORS:
        return _ESTIMATORS[estimator]
    raise ValueError(f"estimator must be 'biased' or 'unbiased', got {estimator!r}")


def check_points(x: Tensor, y: Tensor, unbiased: bool) -> None:
    """Raise unless x and y are two samples."""
    for name, t in (("x", x), ("y", y)):
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")
        if t.dtype not in _POINT_DTYPES:
            raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {t.dtype}")
        if t.ndim != 2:
            raise ValueError(f"{name} must be of rank 2, [points, width], got shape {_shape(t)}")
        if t.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got layout {t.layout}")
        size, width = t.shape
        if size == 0 or width == 0:
            raise ValueError(f"{name} must not be empty, got shape {_shape(t)}")
        if unbiased and size == 1:
            raise ValueError(
                f"{name} must have at least 2 points for estimator='unbiased',"
                f" got shape {_shape(t)}"
            )
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"x and y must be of one width, got x of shape {_shape(x)} and y of shape {_shape(y)}"
        )
    if x.dtype != y.dtype:
        raise TypeError(f"x and y must be of one dtype, got x of {x.dtype} and y of {y.dtype}")
    if x.device != y.device:
        raise ValueError(f"x and y must be on one device, got x on {x.device} and y on {y.device}")


def check_weights(name: str, weights: Tensor, points: Tensor, unbiased: bool) -> None:
    """Raise unless there is one weight for each of the points."""
    if not isinstance(weights, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor or None, got {type(weights).__name__}")
    if not weights.is_floating_point():
        raise TypeError(f"{name} must be of a floating dtype, got {weights.dtype}")
    if weights.ndim != 1 or weights.shape[0] != points.shape[0]:
        raise ValueError(
            f"{name} must be of shape [{points.shape[0]}], one weight for each point,"
            f" got shape {_shape(weights)}"
        )
    if weights.device != points.device:
        raise ValueError(
            f"{name} must be on the device of its points, {points.device}, got {weights.device}"
        )
    if is_plain(weights) and not are_weights(weights, 2 if unbiased else 1):
        least = "at least two positive" if unbiased else "a positive sum"
        raise ValueError(
            f"{name} must be finite and non-negative with {least}, got {weights.detach()}"
        )


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
