"""How long a call of the loss takes, ours and the plain PyTorch one."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

from torch import Tensor

__all__ = ["interleaved_ms"]


def interleaved_ms(
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]], x: Tensor, y: Tensor, rounds: int
) -> dict[str, float]:
    """Median time of forward and backward of each loss, in milliseconds.

    The losses take turns, so a machine that slows down slows them all.

    Args:
        losses: Called with x and y.
        x: [n, d], taken as a leaf.
        y: [m, d], taken as a leaf.
        rounds: Timed calls of each; a tenth as many, at least 3, go before and do not count.

    Returns:
        Milliseconds under the names of ``losses``.
    """
    x, y = (t.detach().requires_grad_() for t in (x, y))
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    warmup = max(3, rounds // 10)
    for turn in range(-warmup, rounds):
        for name, loss in losses.items():
            x.grad = y.grad = None
            start = time.perf_counter()
            loss(x, y).backward()
            elapsed = time.perf_counter() - start
            if turn >= 0:
                seconds[name].append(elapsed)
    return {name: 1e3 * median(values) for name, values in seconds.items()}
