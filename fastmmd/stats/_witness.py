"""Where two samples differ, and kernel sums, for NumPy arrays and tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastmmd import functional
from fastmmd.kernels import Kernel
from fastmmd.stats._arrays import Array, like, samples, tensor

__all__ = ["Contributions", "contributions", "kernel_sum", "witness"]


class Contributions(NamedTuple):
    """What each point adds to MMD^2: ``x`` for the points of x, [n], ``y`` for those of y, [m]."""

    x: Array
    y: Array


def witness(
    x: Array,
    y: Array,
    at: Array,
    kernel: Kernel | None = None,
    x_weights: Array | None = None,
    y_weights: Array | None = None,
) -> Array:
    """:func:`fastmmd.witness` for NumPy arrays or tensors: positive where x is denser than y.

    Args:
        x: The first sample, [n, d], of any real dtype.
        y: The second sample, [m, d].
        at: Points, [k, d].
        kernel: ``Gaussian("mean")`` by default.
        x_weights: Weights of the points of x, [n], divided by their sum; 1/n each by default.
        y_weights: Those of y, [m].

    Returns:
        The witness function at the points, [k]: float64 for float64 points, float32 otherwise; a
        NumPy array if all points were.

    Raises:
        TypeError: As :func:`fastmmd.witness`, or points that are no numbers.
        ValueError: As :func:`fastmmd.witness`.

    Example:
        >>> import numpy as np
        >>> import fastmmd as fm
        >>> x, y = np.array([[0.0], [1.0]]), np.array([[4.0], [5.0]])
        >>> fm.stats.witness(x, y, np.array([[0.5], [2.5], [4.5]]), fm.Energy())
        array([ 3.5,  0. , -3.5])
    """
    a, b = samples(x, y)
    where = tensor("at", at)
    dtype = torch.promote_types(a.dtype, where.dtype)
    a, b, where = a.to(dtype), b.to(dtype), where.to(dtype)
    p, q = _weights(x_weights, y_weights)
    with torch.no_grad():
        return like(functional.witness(a, b, where, kernel, p, q), x, y, at)


def contributions(
    x: Array,
    y: Array,
    kernel: Kernel | None = None,
    x_weights: Array | None = None,
    y_weights: Array | None = None,
) -> Contributions:
    """:func:`fastmmd.contributions` for NumPy arrays or tensors: what each point adds to MMD^2.

    The largest are those of points that one sample has and the other lacks; a point with a negative
    one looks like the other sample.

    Args:
        x: The first sample, [n, d], of any real dtype.
        y: The second sample, [m, d].
        kernel: ``Gaussian("mean")`` by default.
        x_weights: Weights of the points of x, [n], divided by their sum; 1/n each by default.
        y_weights: Those of y, [m].

    Returns:
        Those of x, [n], and of y, [m]: float64 for float64 points, float32 otherwise; NumPy arrays
        if both samples were.

    Raises:
        TypeError: As :func:`fastmmd.contributions`, or points that are no numbers.
        ValueError: As :func:`fastmmd.contributions`.

    Example:
        >>> import numpy as np
        >>> import fastmmd as fm
        >>> x, y = np.array([[0.0], [0.1], [9.0]]), np.array([[0.0], [0.1], [0.2]])
        >>> int(fm.stats.contributions(x, y, fm.Gaussian(1.0)).x.argmax())
        2
    """
    a, b = samples(x, y)
    p, q = _weights(x_weights, y_weights)
    with torch.no_grad():
        of_x, of_y = functional.contributions(a, b, kernel, p, q)
    return Contributions(like(of_x, x, y), like(of_y, x, y))


def _weights(x_weights: Array | None, y_weights: Array | None) -> tuple[Tensor | None, ...]:
    return (
        None if x_weights is None else tensor("x_weights", x_weights),
        None if y_weights is None else tensor("y_weights", y_weights),
    )


def kernel_sum(x: Array, y: Array, v: Array, kernel: Kernel | None = None) -> Array:
    """:func:`fastmmd.kernel_sum` for NumPy arrays or tensors: ``K(x, y) @ v`` without K.

    Args:
        x: [n, d], of any real dtype.
        y: [m, d].
        v: [m] or [m, p].
        kernel: ``Gaussian("mean")`` by default.

    Returns:
        [n] or [n, p]: float64 for float64 points, float32 otherwise; a NumPy array if all three
        were.

    Raises:
        TypeError: As :func:`fastmmd.kernel_sum`, or points that are no numbers.
        ValueError: As :func:`fastmmd.kernel_sum`.

    Example:
        >>> import numpy as np
        >>> import fastmmd as fm
        >>> x, y = np.array([[1.0, 0.0]]), np.array([[2.0, 5.0], [3.0, 5.0]])
        >>> fm.stats.kernel_sum(x, y, np.array([1.0, 10.0]), fm.Linear())
        array([32.])
    """
    a, b = samples(x, y)
    w = tensor("v", v)
    dtype = torch.promote_types(a.dtype, w.dtype)
    with torch.no_grad():
        result = functional.kernel_sum(a.to(dtype), b.to(dtype), w.to(dtype), kernel)
    return like(result, x, y, v)
