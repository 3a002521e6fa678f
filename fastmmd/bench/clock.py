"""Clocks of devices."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .interleave import Lane, stopwatch

__all__ = ["stopwatch_of"]


def stopwatch_of(device: str) -> Callable[[Lane, int], float]:
    """Seconds for a number of calls: of the processor, or by events of the GPU."""
    return stopwatch if device == "cpu" else _by_events


def _by_events(lane: Lane, calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        lane()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3
