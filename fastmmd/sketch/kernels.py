"""Kernels as plain numbers: what a sketch is made for, and what its file says of it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastmmd.kernels import (
    Gaussian,
    InverseMultiquadric,
    Kernel,
    Laplacian,
    Matern,
    RationalQuadratic,
    Scaled,
    Sum,
)
from fastmmd.parameters import RunningBandwidth, value_of

__all__ = ["kernel_of", "spelled_out"]

# By the name in a file: the class, and the number that it takes beside the bandwidth.
_FAMILIES: dict[str, tuple[type[Kernel], str | None]] = {
    "Gaussian": (Gaussian, None),
    "Laplacian": (Laplacian, None),
    "Matern": (Matern, "nu"),
    "InverseMultiquadric": (InverseMultiquadric, None),
    "RationalQuadratic": (RationalQuadratic, "alpha"),
}


def spelled_out(kernel: Kernel) -> dict[str, Any]:
    """The kernel in dictionaries, lists, strings and numbers, as it is now.

    Raises:
        TypeError: It is no kernel.
        ValueError: It is no mean of cosines, or its bandwidth is to be taken from data.
    """
    if isinstance(kernel, Sum):
        return {"sum": [spelled_out(summand) for summand in kernel.summands()]}
    if isinstance(kernel, Scaled):
        return {"factor": _numbers(kernel.factor), "times": spelled_out(kernel.kernel)}
    name = type(kernel).__name__
    if not isinstance(kernel, Kernel):
        raise TypeError(f"kernel must be a fastmmd.Kernel such as Gaussian(2.0), got {kernel!r}")
    if _FAMILIES.get(name, (None,))[0] is not type(kernel):
        raise ValueError(
            "kernel must be made of Gaussian, Laplacian, Matern, InverseMultiquadric and"
            f" RationalQuadratic kernels, as others are no means of cosines, got {kernel!r}"
        )
    result: dict[str, Any] = {"family": name}
    extra = _FAMILIES[name][1]
    if extra is not None:
        result[extra] = getattr(kernel, extra)
    of: Any = kernel  # one of the classes above
    result["bandwidth"] = _bandwidth(of.bandwidth)
    if isinstance(kernel, Gaussian):
        result["multipliers"] = [float(m) for m in kernel.multipliers]
    result["weights"] = None if of.weights is None else _numbers(of.weights)
    return result


def kernel_of(spelled: Any) -> Kernel:
    """The kernel that :func:`spelled_out` spelled out.

    Raises:
        TypeError: This is nothing that it made.
        ValueError: In the same way.
    """
    if not isinstance(spelled, dict):
        raise TypeError(f"kernel must be a table, got {spelled!r}")
    if "sum" in spelled:
        return Sum(*map(kernel_of, spelled["sum"]))
    if "times" in spelled:
        return Scaled(kernel_of(spelled["times"]), float(spelled["factor"]))
    if spelled.get("family") not in _FAMILIES:
        raise ValueError(f"kernel must be of a known family, got {spelled.get('family')!r}")
    family, extra = _FAMILIES[spelled["family"]]
    arguments: dict[str, Any] = {"bandwidth": spelled["bandwidth"], "weights": spelled["weights"]}
    if isinstance(arguments["bandwidth"], list):
        arguments["bandwidth"] = torch.tensor(arguments["bandwidth"], dtype=torch.float64)
    if family is Gaussian:
        arguments["multipliers"] = spelled["multipliers"]
    if extra is not None:
        arguments[extra] = spelled[extra]
    return family(**arguments)


def _bandwidth(bandwidth: Any) -> float | list[float]:
    if isinstance(bandwidth, str):
        raise ValueError(
            f"kernel must have a bandwidth in numbers, got {bandwidth!r}: a sketch never sees all"
            " of the data. Give a number, the same for all sketches that are to meet; or"
            f" b = fastmmd.RunningBandwidth({bandwidth!r}), shown some rows of the data by"
            " b.update(rows, other_rows), as the bandwidth"
        )
    if not isinstance(bandwidth, RunningBandwidth):
        return _numbers(bandwidth)
    twice_squared = float(bandwidth.value)
    if math.isnan(twice_squared):
        raise ValueError(
            "kernel must have a bandwidth, but its RunningBandwidth has seen no data: show it some"
            " rows by its method update(rows, other_rows)"
        )
    if twice_squared == 0:
        raise ValueError(
            "kernel must have a positive bandwidth, but all rows that its RunningBandwidth has seen"
            " were equal"
        )
    return math.sqrt(twice_squared / 2)


def _numbers(value: Any) -> Any:
    """A number or a list of numbers, exactly those of a tensor."""
    value = value_of(value)
    if isinstance(value, Tensor):
        return value.detach().double().tolist()
    return [float(v) for v in value] if isinstance(value, tuple) else float(value)
