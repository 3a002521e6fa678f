"""The tolerance rule of the tests, on a GPU and at sizes that take each road.

With E the worst error of plain PyTorch over the seeds, in the compute precision and on the same
rounded inputs centred in float64, a result may err by 2 E + 8 eps S, where S is the sum of
``|a_i a_j| |k_ij|`` for the value and the largest entry for a gradient, and eps that of the type
whose products are taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fastmmd as fm
from benchmarks.gpu_device import Device, precision
from benchmarks.peers import MULTIPLIERS
from fastmmd import reference

SEEDS = 8
INCOMING = 700.0  # keeps the gradients of halves among the normal numbers
NAMES = ("value", "v_x", "v_y")
# By the sizes at which the roads change: all in one launch; narrow rows; wide rows.
SIZES = ((301, 255, 100), (1201, 1003, 100), (1201, 1003, 300))
OFFSETS = (0.0, 100.0)


@dataclass(frozen=True)
class Level:
    """A dtype with a precision of torch's matrix products, and the eps of the operands."""

    dtype: torch.dtype
    precision: str
    eps: float


LEVELS = {
    "float32, highest": Level(torch.float32, "highest", 2.0**-23),
    "float32, high (TF32)": Level(torch.float32, "high", 2.0**-11),
    "float32, medium (bf16)": Level(torch.float32, "medium", 2.0**-8),
    "float16": Level(torch.float16, "highest", 2.0**-11),
    "bfloat16": Level(torch.bfloat16, "highest", 2.0**-8),
    "float64": Level(torch.float64, "highest", 2.0**-52),
}


def accuracy(device: Device) -> list[dict[str, Any]]:
    """Of each level, size and offset: the worst error over its bound."""
    records = []
    for name, level in LEVELS.items():
        for n, m, d in [(31, 17, 5)] if device.dry else SIZES:
            if level.dtype == torch.float64 and n > 512:
                continue  # the oracle of float64 takes the differences of all pairs
            for offset in OFFSETS:
                found = _worst(level, n, m, d, offset, device.torch)
                where = {"level": name, "n": n, "m": m, "d": d, "offset": offset}
                records.append({"lane": "fastmmd", **where, **found})
    return records


def _worst(
    level: Level, n: int, m: int, d: int, offset: float, device: torch.device
) -> dict[str, Any]:
    kernel = fm.Gaussian(math.sqrt(d), MULTIPLIERS)
    wide = torch.float64 if level.dtype == torch.float64 else torch.float32
    distances = reference.squared_distances
    if level.dtype == torch.float64:
        distances = reference.direct_squared_distances
    ours, allowed, plain = [], [], []
    for seed in range(SEEDS):
        x, y = _samples(seed, n, m, d, offset, level.dtype, device)
        x64, y64 = x.double(), y.double()
        exact = _run(lambda x, y: reference.mmd2(x, y, kernel, distances=distances), x64, y64)
        others = _run(
            lambda x, y: reference.mmd2(x, y, kernel, centre=_centred_in_double),
            x.to(wide),
            y.to(wide),
        )
        with precision(level.precision):
            found = _run(lambda x, y: fm.mmd2(x, y, kernel), x, y)
        size = {"value": INCOMING * _absolute_sum(x64, y64, kernel)}
        size |= {name: float(g.abs().max()) for name, g in exact.items() if name != "value"}
        ours.append(_errors(found, exact))
        plain.append(_errors(others, exact))
        allowed.append({name: 8 * level.eps * size[name] for name in NAMES})
    record: dict[str, Any] = {"error": {}, "bound": {}, "plain": {}}
    for name in NAMES:
        worst = max(errors[name] for errors in plain)
        over = [e[name] / (2 * worst + a[name]) for e, a in zip(ours, allowed, strict=True)]
        seed = over.index(max(over))
        record["plain"][name] = worst
        record["error"][name] = ours[seed][name]
        record["bound"][name] = 2 * worst + allowed[seed][name]
    return record | {"met": all(record["error"][k] <= record["bound"][k] for k in NAMES)}


def _samples(
    seed: int, n: int, m: int, d: int, offset: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    z = torch.randn(n + m, d, generator=generator, device=device, dtype=torch.float64) + offset
    x, y = z.split([n, m])
    return x.to(dtype), (1.1 * (y - offset) + 0.1 + offset).to(dtype)


def _run(objective: Any, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    value = INCOMING * objective(x, y)
    return dict(zip(NAMES, (value, *torch.autograd.grad(value, (x, y))), strict=True))


def _centred_in_double(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    centre = torch.cat([x, y]).detach().double().mean(0)
    return (x.double() - centre).to(x.dtype), (y.double() - centre).to(y.dtype)


def _absolute_sum(x: Tensor, y: Tensor, kernel: fm.Kernel) -> float:
    """S of the value: all kernel values are positive."""
    means = [
        reference.kernel_sum(a, b, b.new_ones(len(b)), kernel.terms_for(a, b)).mean() / len(b)
        for a, b in ((x, x), (y, y), (x, y))
    ]
    return float(means[0] + means[1] + 2 * means[2])


def _errors(results: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """The largest error by name; NaN counts as infinite."""
    differences = {
        name: (results[name].detach().double() - exact[name].detach()).abs().max() for name in NAMES
    }
    return {name: float(e.nan_to_num(nan=math.inf)) for name, e in differences.items()}
