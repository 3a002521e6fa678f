"""What a sketch is given, checked before anything is computed."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Points", "check_integer", "checked_batch", "checked_columns", "checked_weights"]

Points = Tensor | npt.NDArray[Any]

_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def check_integer(name: str, value: Any, least: int, below: float) -> None:
    """Raise unless it is an integer from ``least`` on and below ``below``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if not least <= int(value) < below:
        most = "" if math.isinf(below) else " and below 2^64"
        raise ValueError(f"{name} must be at least {least}{most}, got {value}")


def checked_columns(columns: Any, dim: int) -> tuple[str, ...] | None:
    """Names of that many features, or None."""
    if columns is None:
        return None
    if isinstance(columns, str) or not all(isinstance(name, str) for name in columns):
        raise TypeError(f"columns must be names, got {columns!r}")
    names = tuple(columns)
    if len(names) != dim:
        raise ValueError(f"columns must be {dim} names, as many as dim, got {columns!r}")
    return names


def _as_tensor(name: str, values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    if not isinstance(values, np.ndarray):
        raise TypeError(
            f"{name} must be a torch.Tensor or a NumPy array, got {type(values).__name__}"
        )
    if values.dtype.kind != "f" or values.dtype.itemsize > 8:
        raise TypeError(f"{name} must be of a floating dtype up to float64, got {values.dtype}")
    # torch takes neither another order of bytes, nor steps backwards, nor what must not be written.
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    if not values.flags.writeable or any(step < 0 for step in values.strides):
        values = values.copy()
    return torch.from_numpy(values)


def checked_batch(batch: Any, dim: int) -> Tensor:
    """Rows of that width as a tensor."""
    x = _as_tensor("batch", batch)
    if x.dtype not in _DTYPES:
        raise TypeError(f"batch must be float16, bfloat16, float32 or float64, got {x.dtype}")
    if x.layout != torch.strided:
        raise TypeError(f"batch must be dense, got layout {x.layout}")
    if x.ndim != 2 or x.shape[1] != dim:
        raise ValueError(f"batch must be of shape [n, {dim}], got {list(x.shape)}")
    return x


def checked_weights(weights: Any, x: Tensor) -> Tensor:
    """A weight for each row, in float64."""
    w = _as_tensor("weights", weights)
    if not w.is_floating_point():
        raise TypeError(f"weights must be of a floating dtype, got {w.dtype}")
    if list(w.shape) != [len(x)]:
        raise ValueError(
            f"weights must be of shape [{len(x)}], one for each row, got {list(w.shape)}"
        )
    if w.device != x.device:
        raise ValueError(f"weights must be on the device of the rows, {x.device}, got {w.device}")
    w = w.double()
    if w.is_cpu and not bool(((w >= 0) & w.isfinite()).all()):
        raise ValueError(f"weights must be finite and not negative, got {w}")
    return w
