"""Random features beside their plain composition, and beside the matrix products in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import fastmmd as fm
from benchmarks.cells import Cell
from benchmarks.contests import Contest, Contestant, Lane, differentiated
from fastmmd import reference_features
from fastmmd.frequencies import SCHEMES, dense, draw
from fastmmd.terms import GAUSSIAN

WIDTH = 256
BANK = (0.25, 0.5, 1.0, 2.0, 4.0)
CHECKED = 256  # points on which lanes are held against float64

Loss = Callable[[Tensor, Tensor], Tensor]


def feature_contests(threads: int, quick: bool) -> list[Contest]:
    """One bandwidth and five, at a size where a matrix of features takes 256 MiB; and a batch."""
    n, count = (2048, 1024) if quick else (16384, 4096)
    return [
        _contest("random features of a batch", threads, 64, count, (1.0,)),
        _contest("random features", threads, n, count, (1.0,)),
        _contest("random features, five bandwidths", threads, n, count, BANK),
    ]


def composed(
    x: Tensor, y: Tensor, w: Tensor, b: Tensor, bandwidth: float, multipliers: Sequence[float]
) -> Tensor:
    """As people write it: one product for all bandwidths, features, and their means."""
    projected = [z @ w for z in (x, y)]
    value = x.new_zeros(())
    for m in multipliers:
        rate = 1 / (math.sqrt(m) * bandwidth)
        means = [torch.cos(p * rate + b).mean(0) for p in projected]
        value = value + (means[0] - means[1]).square().sum()
    return 2 / w.shape[1] * value


def _contest(
    subject: str, threads: int, n: int, count: int, multipliers: tuple[float, ...]
) -> Contest:
    cell = Cell(n, WIDTH, threads)
    kernel = fm.Gaussian(cell.bandwidth, multipliers)
    rates = torch.tensor(multipliers, dtype=torch.float64).rsqrt() / cell.bandwidth

    def on(loss: Loss, scheme: int) -> Lane:
        x, y = cell.samples()
        w, b = _drawn(scheme, count)

        def exact(x: Tensor, y: Tensor) -> Tensor:
            ones = torch.ones_like(rates)
            return reference_features.random_feature_mmd2(x, y, w.double(), b, rates, ones)

        few = (t[:CHECKED].detach().requires_grad_() for t in (x, y))
        return Lane(differentiated(loss, exact, x, y).call, differentiated(loss, exact, *few).error)

    def given(of: Callable[..., Tensor]) -> Loss:
        w, b = _drawn(SCHEMES["iid"], count)
        return lambda x, y: of(x, y, w, b)

    def fused(x: Tensor, y: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return fm.random_feature_mmd2(x, y, kernel=kernel, frequencies=w, phases=b)

    def plain(x: Tensor, y: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return composed(x, y, w, b.float(), cell.bandwidth, multipliers)

    def structured(x: Tensor, y: Tensor) -> Tensor:
        return fm.random_feature_mmd2(x, y, count, kernel, frequencies="structured")

    def products() -> Lane:
        """Forwards, once more on the way back, and back: on both samples."""
        x, y = (t.detach() for t in cell.samples())
        w, _ = _drawn(SCHEMES["iid"], count)
        g = torch.zeros(n, count)

        def call() -> None:
            for z in (x, y):
                torch.mm(z, w, out=g)
                torch.mm(z, w, out=g)
                torch.mm(g, w.T)

        return Lane(call, lambda: {"value": 0.0})

    lanes: list[tuple[str, Callable[[], Lane], bool]] = [
        ("fastmmd", lambda: on(given(fused), SCHEMES["iid"]), True),
        ("fastmmd structured", lambda: on(structured, SCHEMES["structured"]), True),
        ("plain PyTorch", lambda: on(given(plain), SCHEMES["iid"]), True),
        ("torch.mm", products, False),
    ]
    contestants = tuple(
        Contestant(peer, n, str(WIDTH), prepare, remember) for peer, prepare, remember in lanes
    )
    return Contest(subject, threads, contestants, seconds=20.0, least=3)


def _drawn(scheme: int, count: int) -> tuple[Tensor, Tensor]:
    """Frequencies as a matrix [d, F], and phases."""
    drawn = draw(GAUSSIAN, 0.0, scheme, WIDTH, count, 0)
    if drawn.signs is None:
        return drawn.w.contiguous(), drawn.phases
    return dense(drawn.w, drawn.signs, WIDTH), drawn.phases
