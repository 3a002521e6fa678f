"""Clocks of devices, and what a call allocates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .interleave import Lane, stopwatch

__all__ = ["allocations", "peak_bytes", "stopwatch_of"]


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


def allocations(call: Callable[[], object]) -> Sequence[int]:
    """Bytes that torch allocates on the CPU in a call, negative where it frees, in order."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        result = call()
    del result
    events = told.profiler.kineto_results.events()
    return [event.nbytes() for event in events if event.name() == "[memory]"]


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes of torch's that a call holds at one time, its result included."""
    peak = level = 0
    for size in allocations(call):
        level += size
        peak = max(peak, level)
    return peak
