"""Interleaved timing: A B C, A C B, C A B, ... each round in another order.

A machine that is shared, or changes its clock, is slow for seconds at a time. In interleaved rounds
that reaches every lane alike, and a ratio is taken within a round, between neighbours in time. Each
round starts with another lane, so that none always finds the caches as the same other left them.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

__all__ = ["Budget", "Lane", "Replay", "Rounds", "fastest", "interleave", "replay", "stopwatch"]

Lane = Callable[[], object]
# Of a turn: each long beside what a clock costs, short beside the time slices that schedulers give
# to others.
SLICES = 10


@dataclass(frozen=True)
class Budget:
    """How long to go on, in seconds and rounds, and how long a turn of a lane is at least."""

    seconds: float
    least: int = 3
    most: int = 40
    turn: float = 0.03


@dataclass(frozen=True)
class Rounds:
    """Seconds per call by lane, one entry per round, and the calls that each was averaged over.

    Of several runs, ``runs`` are their numbers of rounds, one after the other.
    """

    seconds: dict[str, list[float]]
    calls: dict[str, int]
    runs: tuple[int, ...] = ()


def stopwatch(lane: Lane, calls: int) -> float:
    """Seconds for a number of calls."""
    start = perf_counter()
    for _ in range(calls):
        lane()
    return perf_counter() - start


def fastest(
    measure: Callable[[Any, int], float] = stopwatch,
) -> Callable[[Any, int], float]:
    """A stopwatch that times the calls of a turn in slices, of which the fastest counts for all.

    Others only ever make a call slower, mostly for less than a turn: a turn during which they came
    and went still tells the time of the code.

    Args:
        measure: seconds for so many calls of a lane.
    """

    def seconds(lane: Any, calls: int) -> float:
        # By the calls alone: of more slices the fastest is faster.
        count = math.ceil(calls / SLICES)
        return calls * min(measure(lane, count) / count for _ in range(calls // count))

    return seconds


def interleave(
    lanes: Mapping[str, Lane],
    budget: Budget,
    measure: Callable[[Any, int], float] = stopwatch,
    between: Callable[[], object] = lambda: None,
    alike: Collection[str] = (),
) -> Rounds:
    """Time lanes against one another.

    A call shorter than a turn is repeated within it, after a third of a turn that is not timed:
    what is asked for is its time in a loop, not that of fetching back what the other lanes drove
    out of the caches.

    Args:
        lanes: what to call, by name. Whatever is done once (compilation) has been done.
        budget: when to stop.
        measure: seconds for so many calls of a lane.
        between: called after each round, outside the timing.
        alike: lanes that are called equally often in a turn: of a turn of more slices the fastest
            is faster, and a lane beside another of the same work is not to gain by that.

    Returns:
        The rounds, of the same number for every lane.
    """
    names = list(lanes)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    calls: dict[str, int] = {}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        start = perf_counter()
        for name, lane in lanes.items():  # of two at least: one that others held up is no long call
            calls[name] = max(1, math.ceil(budget.turn / _warm(lane, budget.turn / 3, measure, 2)))
        calls |= dict.fromkeys(alike, max((calls[name] for name in alike), default=1))
        done = 0
        while done < budget.least or (
            done < budget.most and (perf_counter() - start) * (done + 1) / done <= budget.seconds
        ):
            shift = done % len(names)
            # Turned round every other time: none always runs after the same other.
            order = names[shift:] + names[:shift]
            for name in order if done % 2 == 0 else reversed(order):
                lane = lanes[name]
                if calls[name] > 1:
                    _warm(lane, budget.turn / 3, measure)
                seconds[name].append(measure(lane, calls[name]) / calls[name])
            between()
            done += 1
    finally:
        if collecting:
            gc.enable()
    return Rounds(seconds, calls)


def _warm(
    lane: Any, seconds: float, measure: Callable[[Any, int], float], least_calls: int = 1
) -> float:
    """Calls a lane for so long and so often at least: the seconds of the shortest call."""
    shortest, taken, count = math.inf, 0.0, 0
    while count < least_calls or taken < seconds:
        latest = measure(lane, 1)
        shortest = min(shortest, latest)
        taken += latest
        count += 1
    return shortest


class Replay:
    """A clock that shows recorded times: it hands rounds to pytest-benchmark without new ones.

    Used as its timer while its target is :meth:`play`.
    """

    __name__ = "replay"  # by which the file of results calls the timer

    def __init__(self) -> None:
        self._now = 0.0
        self._left: list[float] = []

    def __call__(self) -> float:
        """What the clock shows."""
        return self._now

    def _play(self) -> None:
        if self._left:  # pytest-benchmark makes one more call than it times
            self._now += self._left.pop()

    def record(self, benchmark: Any, seconds: list[float], calls: int) -> None:
        """Let the ``benchmark`` fixture find the rounds of a lane.

        Args:
            benchmark: the fixture, with this clock as its timer.
            seconds: per call, by round.
            calls: per round.
        """
        self._left = [t for t in reversed(seconds) for _ in range(calls)]
        benchmark.pedantic(self._play, rounds=len(seconds), iterations=calls)


replay = Replay()
