"""The form in which the layers below :mod:`fastmmd.kernels` know a kernel.

A kernel is a sum of terms ``coefficient * phi(scale / unit * u)``. ``phi`` is the profile of the
term's family, ``u`` what its geometry makes of a pair of points (their squared distance, inner
product or cosine), and ``unit`` is 1 or a statistic of the data.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

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
UNITS = {"mean": MEAN, "median": MEDIAN}  # the heuristics by name


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


def numbers(values: Sequence[float], device: torch.device | None = None) -> Tensor:
    """Numbers as float64 on a device, the CPU by default; not to be written to.

    On a GPU they are made once, and kept. Nothing is copied there from memory of the host, which
    would wait for the device, and spoil the capture of a CUDA graph.
    """
    values = tuple(values)
    if device is None or device.type == "cpu":
        return torch.tensor(values, dtype=torch.float64, device="cpu")
    if torch.compiler.is_compiling():
        return _filled(values, device)
    return _numbers(values, device)


def on_device(t: Tensor, device: torch.device) -> Tensor:
    """A list of numbers on a device; constants from the CPU are kept there."""
    if t.device == device:
        return t
    if t.requires_grad or not t.is_cpu or type(t) is not Tensor or torch.compiler.is_compiling():
        return t.to(device)
    return numbers(t.tolist(), device)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """One after another, where one of them lies that is not on the CPU, if any."""
    device = next((p.device for p in parts if not p.is_cpu), parts[0].device)
    return torch.cat([on_device(p, device) for p in parts])


def _numbers(values: tuple[float, ...], device: torch.device) -> Tensor:
    if device.type != "cuda":
        return _kept(values, device, 0)
    if (
        torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch.cuda.is_current_stream_capturing()  # they are there once the graph is replayed
    ):
        return _filled(values, device)
    # Each stream has its own, as it would have to wait for those of another.
    return _kept(values, device, torch._C._cuda_getCurrentRawStream(device.index))


@functools.lru_cache(maxsize=4096)
def _kept(values: tuple[float, ...], device: torch.device, stream: int) -> Tensor:
    with torch.inference_mode(False):
        return _filled(values, device)


def _filled(values: tuple[float, ...], device: torch.device) -> Tensor:
    parts = [
        torch.full((len(list(run)),), value, dtype=torch.float64, device=device)
        for value, run in itertools.groupby(values)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
