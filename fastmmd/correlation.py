"""Distances between the covariances of two samples, by dense matrix products."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from fastmmd.checks import check_points

_SCALINGS = ("deep_coral", "mean", "frobenius")


def coral(
    x: Tensor, y: Tensor, scaling: str | float = "deep_coral", mean_scaling: float = 0.0
) -> Tensor:
    r"""Correlation alignment: how far the covariances of two samples are apart.

    ``scale |C_x - C_y|_F^2 + mean_scaling / d |mean_x - mean_y|^2``, with covariances over n - 1
    and m - 1. The scale is

    - ``"deep_coral"``: ``1 / (4 d^2)``, as in equation (1) of Sun and Saenko, "Deep CORAL:
      correlation alignment for deep domain adaptation" (ECCV 2016);
    - ``"mean"``: ``1 / d^2``, the mean of the squared differences of entries;
    - ``"frobenius"``: 1, as in Sun, Feng and Saenko, "Return of frustratingly easy domain
      adaptation" (AAAI 2016);
    - ``s / d^2`` for a positive number s.

    The loss of DomainBed and of the Transfer Learning Library is ``scaling="mean",
    mean_scaling=1``.

    Half inputs are taken to float32, under autocast too. Memory is O((n + m) d + d^2).
    Differentiable any number of times.

    Args:
        x: the first sample, [n, d], n >= 2, float16, bfloat16, float32 or float64; or a batch,
            [B, n, d].
        y: the second sample, [m, d], m >= 2, of the dtype and on the device of x; or a batch,
            [B, m, d].
        scaling: ``"deep_coral"``, ``"mean"``, ``"frobenius"`` or a positive number.
        mean_scaling: a number that is not negative.

    Returns:
        A scalar, or [B] of a batch: float64 for float64 inputs, float32 otherwise.

    Raises:
        TypeError: an argument that is no tensor, or of a dtype or type that is not accepted.
        ValueError: a wrong rank, different widths, batch sizes or devices, fewer than 2 points, an
            unknown scaling or one that is out of range.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [7.0], [9.0]])
        >>> fm.coral(x, y)  # (2 - 4)^2 / 4
        tensor(1.)
    """
    check_points(x, y)
    for name, t in (("x", x), ("y", y)):
        if t.shape[-2] < 2:
            raise ValueError(
                f"{name} must have at least 2 points for a covariance, got shape {list(t.shape)}"
            )
    check_scaling(scaling, mean_scaling)
    d = x.shape[-1]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    with torch.autocast(x.device.type, enabled=False):
        x_mean, x_cov = _moments(x.to(dtype))
        y_mean, y_cov = _moments(y.to(dtype))
    # The entries are scaled before they are squared: in float32 the squares soon overflow.
    if isinstance(scaling, str):
        root = {"deep_coral": 0.5 / d, "mean": 1 / d, "frobenius": 1.0}[scaling]
    else:
        root = math.sqrt(scaling) / d
    value = (root * (x_cov - y_cov)).square().sum((-2, -1))
    if mean_scaling:
        value = value + mean_scaling * (x_mean - y_mean).square().mean((-2, -1))
    return value


def check_scaling(scaling: Any, mean_scaling: Any) -> None:
    """Raise unless these scale a loss."""
    accepted = "'deep_coral', 'mean', 'frobenius' or a positive number"
    if isinstance(scaling, bool) or not isinstance(scaling, (str, Real)):
        raise TypeError(f"scaling must be {accepted}, got {scaling!r}")
    known = scaling in _SCALINGS if isinstance(scaling, str) else 0 < float(scaling) < math.inf
    if not known:
        raise ValueError(f"scaling must be {accepted}, got {scaling!r}")
    if isinstance(mean_scaling, bool) or not isinstance(mean_scaling, Real):
        raise TypeError(f"mean_scaling must be a number, got {mean_scaling!r}")
    if not 0 <= float(mean_scaling) < math.inf:
        raise ValueError(f"mean_scaling must be finite and not negative, got {mean_scaling!r}")


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of points [..., n, d], [..., 1, d], and their covariance, [..., d, d]."""
    mean = x.mean(-2, keepdim=True)
    centred = x - mean
    return mean, centred.mT @ centred / (x.shape[-2] - 1)
