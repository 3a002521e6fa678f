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

# The estimators, by the numbers that the native core knows them by. CROSS is the sum of
# p_i q_j k(x_i, y_j) alone, RESOLVE makes bandwidths and nothing else.
BIASED, UNBIASED, LINEAR, BLOCK, INCOMPLETE, CROSS, RESOLVE = range(7)
ESTIMATORS = {
    "biased": BIASED,
    "unbiased": UNBIASED,
    "linear": LINEAR,
    "block": BLOCK,
    "incomplete": INCOMPLETE,
}
_NAMES = tuple(ESTIMATORS)
_PAIRING = (LINEAR, BLOCK, INCOMPLETE)  # the first min(n, m) points of each sample, unweighted


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary CPU tensors and no one traces, transforms or intercepts operators.

    Then, and only then, values may be looked at.
    """
    if torch.compiler.is_compiling():
        return False
    for t in tensors:
        if t is not None and (type(t) not in _PLAIN_TYPES or not t.is_cpu or t.is_neg()):
            return False
    return not _are_watched(tensors)


def is_direct(x: Tensor, *others: Tensor | None) -> bool:
    """The same of tensors on the CPU or on one GPU: their addresses may be passed on."""
    if torch.compiler.is_compiling():
        return False
    if x.is_cpu:
        return is_plain(x, *others)
    if not x.is_cuda:
        return False
    tensors, device = (x, *others), x.device
    for t in tensors:
        if t is not None and (type(t) not in _PLAIN_TYPES or t.device != device or t.is_neg()):
            return False
    return not _are_watched(tensors)


def _are_watched(tensors: tuple[Tensor | None, ...]) -> bool:
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state()
        or forward_ad._current_level >= 0
        or torch.overrides.has_torch_function(tensors)  # of a mode, as the types are plain
    )


def are_weights(weights: Tensor, positive: int = 1) -> bool:
    """Whether all are finite, none is negative and ``positive`` or more are not zero."""
    weights = weights.detach()
    low, high = torch.aminmax(weights)  # NaN if any is
    if not (low.item() >= 0 and 0 < high.item() < math.inf):
        return False
    return positive == 1 or int(torch.count_nonzero(weights)) >= positive


def check_estimator(estimator: str) -> int:
    """The number of the estimator."""
    if isinstance(estimator, str) and estimator in ESTIMATORS:
        return ESTIMATORS[estimator]
    *names, last = map(repr, _NAMES)
    raise ValueError(f"estimator must be {', '.join(names)} or {last}, got {estimator!r}")


def check_points(
    x: Tensor, y: Tensor, estimator: int = BIASED, names: tuple[str, str] = ("x", "y")
) -> None:
    """Raise unless x and y are two samples, or two batches of as many samples."""
    for name, t in zip(names, (x, y), strict=True):
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")
        if t.dtype not in _POINT_DTYPES:
            raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {t.dtype}")
        if t.ndim != 2 and t.ndim != 3:
            raise ValueError(
                f"{name} must be of rank 2, [points, width], or rank 3, [batch, points, width],"
                f" got shape {_shape(t)}"
            )
        if t.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got layout {t.layout}")
        if 0 in t.shape:
            raise ValueError(f"{name} must not be empty, got shape {_shape(t)}")
        if estimator != BIASED and t.shape[-2] == 1:
            raise ValueError(
                f"{name} must have at least 2 points for estimator={_NAMES[estimator]!r},"
                f" got shape {_shape(t)}"
            )
    # The words cost more than the checks: they are put together when they are wanted.
    same_batch = x.ndim == y.ndim and (x.ndim == 2 or x.shape[0] == y.shape[0])
    if x.shape[-1] != y.shape[-1] or not same_batch:
        if x.ndim != y.ndim:
            wanted = "of one rank"
        else:
            wanted = "of one width" if same_batch else "batches of one size"
        raise ValueError(
            f"{names[0]} and {names[1]} must be {wanted}, got {names[0]} of shape {_shape(x)} and"
            f" {names[1]} of shape {_shape(y)}"
        )
    if x.dtype != y.dtype:
        raise TypeError(
            f"{names[0]} and {names[1]} must be of one dtype, got {names[0]} of {x.dtype} and"
            f" {names[1]} of {y.dtype}"
        )
    if x.device != y.device:
        raise ValueError(
            f"{names[0]} and {names[1]} must be on one device, got {names[0]} on {x.device} and"
            f" {names[1]} on {y.device}"
        )


def check_weights(name: str, weights: Tensor, points: Tensor, estimator: int = BIASED) -> None:
    """Raise unless there is one weight for each of the points."""
    if not isinstance(weights, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor or None, got {type(weights).__name__}")
    if estimator in _PAIRING:
        raise ValueError(
            f"{name} must be None for estimator={_NAMES[estimator]!r}, which takes no weights,"
            f" got shape {_shape(weights)}"
        )
    if not weights.is_floating_point():
        raise TypeError(f"{name} must be of a floating dtype, got {weights.dtype}")
    if weights.shape != points.shape[:-1]:
        raise ValueError(
            f"{name} must be of shape {_shape(points)[:-1]}, one weight for each point,"
            f" got shape {_shape(weights)}"
        )
    if weights.device != points.device:
        raise ValueError(
            f"{name} must be on the device of its points, {points.device}, got {weights.device}"
        )
    if not is_plain(weights):
        return
    positive = 2 if estimator == UNBIASED else 1
    row, of = weights.detach(), ""
    if weights.ndim == 2:
        unsound = _first_unsound(row, positive)
        if unsound is None:
            return
        row, of = row[unsound], f"[{unsound}]"
    elif are_weights(row, positive):
        return
    least = "at least two positive" if estimator == UNBIASED else "a positive sum"
    raise ValueError(f"{name}{of} must be finite and non-negative with {least}, got {row}")


def _first_unsound(weights: Tensor, positive: int) -> int | None:
    """The first row of [B, n] that fails :func:`are_weights`."""
    low, high = torch.aminmax(weights, dim=1)
    sound = (low >= 0) & (high > 0) & (high < math.inf)
    if positive > 1:
        sound &= torch.count_nonzero(weights, 1) >= positive
    return None if bool(sound.all()) else int(torch.argmin(sound.int()))


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
