"""Clocks of devices, and what a call allocates."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import cycle

import torch
from torch import Tensor

from .interleave import Lane, fastest, stopwatch

__all__ = [
    "Cores",
    "allocations",
    "cache_of",
    "fastest_of",
    "peak_bytes",
    "rotated",
    "run_on",
    "sets_beyond",
    "stopwatch_of",
]

Samples = tuple[Tensor, Tensor]
MAX_SETS = 1024


def stopwatch_of(device: str) -> Callable[[Lane, int], float]:
    """Seconds for a number of calls: of the processor, or by events of the GPU."""
    return stopwatch if device == "cpu" else _by_events


def fastest_of(device: str) -> Callable[[Lane, int], float]:
    """The same, by the fastest slice of a turn."""
    return fastest(stopwatch_of(device))


def cache_of(device: str) -> int:
    """Bytes that inputs have to exceed to be read from memory.

    None on the CPU, where a loss is computed on what the layer before it has just written; on a GPU
    its second-level cache, as a step of training writes more than that holds in between.
    """
    return 0 if device == "cpu" else int(torch.cuda.get_device_properties().L2_cache_size)


def sets_beyond(cache: int, size: int) -> int:
    """How many inputs of so many bytes, used in turn, are more than a cache holds; 1024 at most."""
    return min(MAX_SETS, 2 * cache // size + 2) if cache else 1


def rotated(call: Callable[[Tensor, Tensor], object], sets: Sequence[Samples]) -> Lane:
    """A lane that works on another set at each call."""
    if len(sets) == 1:
        return partial(call, *sets[0])
    turn = cycle(sets)
    return lambda: call(*next(turn))


class Cores:
    """Sets of cores that all lanes of a round run on, one set after the other.

    Each set serves for two rounds, of which one runs the lanes backwards. Each core is in as many
    sets as any other, and sets that follow one another have few cores in common.

    Args:
        threads: How many cores a set has.
        available: The cores; those of this process unless given.
    """

    def __init__(self, threads: int, available: Sequence[int] | None = None) -> None:
        if available is None:
            available = sorted(os.sched_getaffinity(0))
        count = len(available)
        starts = sorted(range(count), key=lambda i: i % threads)
        sets = [sorted(available[(i + k) % count] for k in range(threads)) for i in starts]
        self._sets = sets if threads < count else []
        self._round = 0

    @property
    def now(self) -> list[int] | None:
        """The set of this round; None if the threads need all cores."""
        return self._sets[self._round // 2 % len(self._sets)] if self._sets else None

    def next_round(self) -> None:
        """A round is over."""
        self._round += 1


def run_on(cores: Sequence[int]) -> None:
    """From now on all threads of this process run on these cores.

    Of two, the main thread has the first and all others the second: free to choose, the two of a
    team can stay on one core and spin there in turn while another process holds the other. On more
    the main thread may choose, as threads that are made later have its cores; the others, in the
    order of their making, have one each in turn.
    """
    others = sorted(map(int, os.listdir("/proc/self/task")))
    others.remove(os.getpid())
    os.sched_setaffinity(0, cores[:1] if len(cores) <= 2 else cores)
    for thread, core in zip(others, cycle(cores[1:] or cores), strict=False):
        with suppress(OSError):  # it has ended meanwhile
            os.sched_setaffinity(thread, {core})


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
