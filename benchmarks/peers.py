"""The contestants: fastmmd, and what a user would write or copy in its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fastmmd as fm
from benchmarks.cells import Cell
from fastmmd import reference
from fastmmd.bench.plain import MULTIPLIERS

Objective = Callable[[Tensor, Tensor], Tensor]


def fused(bandwidth: float) -> Objective:
    kernel = fm.Gaussian(bandwidth, MULTIPLIERS)
    return lambda x, y: fm.mmd2(x, y, kernel)


def loss_module(bandwidth: float) -> Objective:
    return fm.MMDLoss(fm.Gaussian(bandwidth, MULTIPLIERS))


def plain(bandwidth: float) -> Objective:
    kernel = fm.Gaussian(bandwidth, MULTIPLIERS)
    return lambda x, y: reference.mmd2(x, y, kernel)


def compiled(bandwidth: float) -> Objective:
    # What is compiled for one cell must not count against the limit of the next, past which torch
    # silently runs uncompiled code.
    torch.compiler.reset()
    objective: Objective = torch.compile(plain(bandwidth), fullgraph=True, dynamic=False)
    return objective


def differences(bandwidth: float) -> Objective:
    """In the manner of DeepDA: the differences of all pairs, (2n, 2n, d), then their squares."""
    widths = [2 * m * bandwidth**2 for m in MULTIPLIERS]

    def objective(x: Tensor, y: Tensor) -> Tensor:
        z = torch.cat([x, y])
        d2 = (z.unsqueeze(0) - z.unsqueeze(1)).square().sum(2)
        k = torch.zeros_like(d2)
        for width in widths:
            k = k + torch.exp(-d2 / width)
        n = len(x)
        return torch.mean(k[:n, :n] + k[n:, n:] - k[:n, n:] - k[n:, :n])

    return objective


class _Blocked(torch.autograd.Function):
    """The best that plain PyTorch was found to do: value and gradients in one pass over tiles.

    Each tile of the pooled sample and its mirror are one, its operations work in place, and the
    bank costs one exponential, as its scales double.
    """

    TILE = 512  # the fastest of 256 to 4096 on a few megabytes of cache per core

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, scale: float, wanted: bool) -> Tensor:
        n, m = len(x), len(y)
        z = torch.cat([x, y])
        z -= z.mean(0)
        norms = z.square().sum(1)
        a = torch.cat([x.new_full((n,), 1 / n), x.new_full((m,), -1 / m)])
        pulled, mass = torch.zeros_like(z), torch.zeros_like(norms)
        value = x.new_zeros((), dtype=torch.float64)
        starts = range(0, n + m, _Blocked.TILE)
        for i in starts:
            rows = slice(i, i + _Blocked.TILE)
            for j in starts[i // _Blocked.TILE :]:
                columns = slice(j, j + _Blocked.TILE)
                d2 = torch.addmm(
                    norms[rows, None] + norms[columns], z[rows], z[columns].T, alpha=-2
                )
                power = d2.clamp_(min=0).mul_(-scale).exp_()
                k = power.clone()
                slope = power.clone() if wanted else None
                for t in range(1, len(MULTIPLIERS)):
                    power.square_()
                    k += power
                    if slope is not None:
                        slope.add_(power, alpha=2**t)
                value += torch.dot(a[rows], k @ a[columns]) * (1 if i == j else 2)
                if slope is None:
                    continue
                slope *= a[rows, None]
                slope *= a[columns]
                pulled[rows].addmm_(slope, z[columns])
                mass[rows] += slope.sum(1)
                if i != j:
                    pulled[columns].addmm_(slope.T, z[rows])
                    mass[columns] += slope.sum(0)
        if wanted:
            gradient = (mass[:, None] * z - pulled) * (-4 * scale)
            ctx.save_for_backward(*gradient.split([n, m]))
        return value.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        v_x, v_y = ctx.saved_tensors
        return grad * v_x, grad * v_y, None, None


def blocked(bandwidth: float) -> Objective:
    scale = 0.5 / max(MULTIPLIERS) / bandwidth**2
    return lambda x, y: _Blocked.apply(x, y, scale, torch.is_grad_enabled())


@dataclass(frozen=True)
class Peer:
    """One way to compute the MMD."""

    title: str
    make: Callable[[float], Objective]  # from the bandwidth
    most: int = 1 << 30  # the largest n for which it is asked
    eager: bool = True


PEERS = {
    "fastmmd": Peer("fastmmd.mmd2", fused),
    "module": Peer("fastmmd.MMDLoss", loss_module, most=128),  # above, the module costs nothing
    "reference": Peer("plain PyTorch", plain),
    "compile": Peer("torch.compile", compiled, eager=False),
    "blocked": Peer("blocked autograd.Function", blocked),
    "deepda": Peer("DeepDA-style", differences, most=512),  # memory of d (2n)^2 numbers
}


def taking_part(cell: Cell) -> list[str]:
    """Names of the peers that are measured in a cell."""
    return [name for name, peer in PEERS.items() if cell.n <= peer.most]


def run(objective: Objective, x: Tensor, y: Tensor, mode: str) -> tuple[Tensor, ...]:
    """One call: the value, and the gradients of x and y in that mode."""
    if mode == "value":
        with torch.no_grad():
            return (objective(x, y),)
    value = objective(x, y)
    return (value, *torch.autograd.grad(value, (x, y)))


def exact(cell: Cell) -> tuple[Tensor, ...]:
    """Value and gradients in float64, of the samples as rounded to float32."""
    x, y = (t.detach().double().requires_grad_() for t in cell.samples())
    # Above, the matrices would take many gigabytes; below, the other is held against this one.
    make = plain if cell.n <= 2048 else blocked
    return run(make(cell.bandwidth), x, y, "gradients")


def errors(results: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> dict[str, float]:
    """The largest error against float64, relative to the largest entry."""
    relative = [
        float((r.detach().double() - t.detach()).abs().max() / t.detach().abs().max())
        for r, t in zip(results, truth, strict=False)
    ]
    return {"value": relative[0]} | ({"gradients": max(relative[1:])} if relative[1:] else {})
