"""NumPy arrays and tensors in, tensors of a dtype that the operators take out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastmmd.checks import check_points

__all__ = ["Array", "like", "samples", "tensor", "whole"]

Array = npt.NDArray[Any] | Tensor

# What a float32 holds exactly; wider integers become float64.
_SMALL_INTEGERS = frozenset({torch.bool, torch.uint8, torch.int8, torch.int16})


def tensor(name: str, value: Any) -> Tensor:
    """The array as a floating tensor, without a graph; it shares memory where it can.

    Args:
        name: The argument's name, for errors.
        value: A NumPy array or a tensor, floating, integer or boolean.

    Raises:
        TypeError: It is neither, or holds something else than real numbers.
    """
    if not isinstance(value, (np.ndarray, Tensor)):
        raise TypeError(
            f"{name} must be a numpy.ndarray or a torch.Tensor, got {type(value).__name__}"
        )
    points = _from_numpy(name, value) if isinstance(value, np.ndarray) else value.detach()
    if points.is_complex():
        raise TypeError(f"{name} must hold real numbers, got {points.dtype}")
    if not points.is_floating_point():
        small = points.dtype in _SMALL_INTEGERS
        points = points.to(torch.float32 if small else torch.float64)
    return points


def _from_numpy(name: str, array: npt.NDArray[Any]) -> Tensor:
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, got an array of dtype {array.dtype}")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    elif array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.float64)  # older versions of torch have no such dtypes
    # torch takes neither a foreign byte order nor negative strides, and warns of memory that must
    # not be written to.
    plain = array.dtype.newbyteorder("=")
    if array.dtype != plain or not array.flags.writeable or min(array.strides, default=0) < 0:
        array = array.astype(plain, order="C")
    return torch.from_numpy(array)


def samples(x: Any, y: Any, least: int = 1) -> tuple[Tensor, Tensor]:
    """Two samples [n, d] and [m, d] as tensors of one dtype, the wider of the two.

    Args:
        x: The first sample.
        y: The second.
        least: How many points each must have.

    Raises:
        TypeError: One is no array of real numbers.
        ValueError: A wrong rank, an empty sample, different widths or devices, too few points.
    """
    a, b = tensor("x", x), tensor("y", y)
    dtype = torch.promote_types(a.dtype, b.dtype)
    a, b = a.to(dtype), b.to(dtype)
    for name, points in (("x", a), ("y", b)):
        if points.ndim != 2:
            hint = f"; {name}[:, None] makes points of one feature" if points.ndim == 1 else ""
            raise ValueError(
                f"{name} must be of rank 2, [points, features], got shape {list(points.shape)}"
                + hint
            )
    check_points(a, b)
    for name, points in (("x", a), ("y", b)):
        if len(points) < least:
            raise ValueError(
                f"{name} must have at least {least} points, got shape {list(points.shape)}"
            )
    return a, b


def like(result: Tensor, *given: Any) -> Array:
    """The result as a NumPy array if all that was given were NumPy arrays."""
    if any(isinstance(value, Tensor) for value in given):
        return result
    return result.numpy()


def whole(name: str, value: Any, least: int, below: float = math.inf) -> int:
    """The value, if it is a whole number of that range.

    Raises:
        TypeError: It is no integer.
        ValueError: It is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if not least <= value < below:
        bound = "" if math.isinf(below) else f" and below 2^{round(math.log2(below))}"
        raise ValueError(f"{name} must be at least {least}{bound}, got {value}")
    return int(value)
