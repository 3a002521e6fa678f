"""Random features on a GPU, beside their plain composition and the matrix product in it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

import fastmmd as fm
from benchmarks.cells import Cell
from benchmarks.feature_contests import BANK, composed
from benchmarks.gpu_device import Device, precision
from benchmarks.gpu_work import OPERANDS, PRODUCTS, STAND_IN
from benchmarks.peers import errors, run
from fastmmd import reference_features
from fastmmd.bench.interleave import Budget, interleave
from fastmmd.frequencies import SCHEMES, draw
from fastmmd.ops import _cuda, _roads
from fastmmd.terms import GAUSSIAN

SIZES = (65536, 512, 8192)  # points of each sample, their width, frequencies
TOY_SIZES = (48, 16, 40)
CHECKED = 2048  # points on which lanes are held against float64
LEVEL = "high"


def features(device: Device, budget: Budget) -> list[dict[str, Any]]:
    """Value and both gradients, for one bandwidth and for five, in TF32.

    The arithmetic that is counted is that of three products of each sample with the frequencies:
    forwards, once more on the way back, and back.
    """
    n, d, count = TOY_SIZES if device.dry else SIZES
    drawn = draw(GAUSSIAN, 0.0, SCHEMES["iid"], d, count, 0)
    w, phases = drawn.w.to(device.torch).contiguous(), drawn.phases.to(device.torch)
    generator = torch.Generator(device.torch).manual_seed(0)
    x, y = torch.randn(2, n, d, generator=generator, device=device.torch)
    y = 1.1 * y + 0.1
    bandwidth = Cell(n, d, 0).bandwidth
    info = {"n": n, "d": d, "dtype": "float32", "precision": LEVEL, "mode": "gradients"}
    info |= {"clock": "events", "flop": 12.0 * n * d * count, "sample_bytes": 8 * n * d}
    calls: dict[str, Any] = {}
    infos: dict[str, dict[str, Any]] = {}
    with precision(LEVEL):
        for name, multipliers in (("", (1.0,)), (", five bandwidths", BANK)):
            kernel = fm.Gaussian(bandwidth, multipliers)

            def ours(x: Tensor, y: Tensor, kernel: fm.Kernel = kernel) -> Tensor:
                return fm.random_feature_mmd2(x, y, kernel=kernel, frequencies=w, phases=phases)

            def plain(x: Tensor, y: Tensor, multipliers: tuple[float, ...] = multipliers) -> Tensor:
                return composed(x, y, w, phases.float(), bandwidth, multipliers)

            def exact(x: Tensor, y: Tensor, multipliers: tuple[float, ...] = multipliers) -> Tensor:
                rates = torch.tensor(multipliers, dtype=torch.float64, device=x.device).rsqrt()
                return reference_features.random_feature_mmd2(
                    x, y, w.double(), phases, rates / bandwidth, torch.ones_like(rates)
                )

            truth = run(exact, *_few(x.double(), y.double()), "gradients")
            for lane, loss in (("fastmmd", ours), ("plain", plain)):
                error = errors(run(loss, *_few(x, y), "gradients"), truth)
                infos[lane + name] = info | {"error": error}
                leaves = [z.detach().requires_grad_() for z in (x, y)]
                calls[lane + name] = partial(run, loss, *leaves, "gradients")
            infos["fastmmd" + name] |= _road(device)
        calls["torch.mm"] = partial(torch.mm, x, w)
        infos["torch.mm"] = {"flop": 2.0 * n * d * count, "clock": "events"}
        rounds = interleave(calls, budget, device.stopwatch)
    return [{"lane": lane, **of, "seconds": rounds.seconds[lane]} for lane, of in infos.items()]


def _few(*samples: Tensor) -> list[Tensor]:
    return [z[:CHECKED].detach().requires_grad_() for z in samples]


def _road(device: Device) -> dict[str, Any]:
    known = STAND_IN if device.dry else _cuda.device_of(device.torch.index or 0)
    road = _roads.feature_road(torch.float32, LEVEL, known)
    name = f"{road.mode}, {PRODUCTS[road.products]} of {OPERANDS[road.operand]}"
    return {"road": name, "symmetric": "none"}
