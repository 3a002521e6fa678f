"""Interleaved timing: how often a lane is called, and for how long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, repeat

import pytest

from fastmmd.bench.interleave import Budget, interleave


def clock(calls: Iterator[float]) -> Callable[[object, int], float]:
    """Measures calls that take as long as given."""
    return lambda lane, count: sum(next(calls) for _ in range(count))


@pytest.mark.parametrize("stalled", [0, 1])
def test_one_call_that_is_held_up_is_no_long_call(stalled: int) -> None:
    first = [1e-4, 1e-4]
    first[stalled] = 0.035
    found = interleave({"a": str}, Budget(0.0), clock(chain(first, repeat(1e-4))))
    assert found.calls == {"a": 300}
    assert found.seconds["a"] == pytest.approx([1e-4] * 3)


def test_long_calls_are_not_repeated_in_a_turn() -> None:
    found = interleave({"a": str}, Budget(0.0), clock(iter([0.07, 0.06, 0.05, 0.04, 0.03])))
    assert found.calls == {"a": 1}
    assert found.seconds == {"a": [0.05, 0.04, 0.03]}  # the first two warm


def test_rounds_end_with_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def measure(lane: object, count: int) -> float:
        nonlocal now
        now += 0.1 * count
        return 0.1 * count

    monkeypatch.setattr("fastmmd.bench.interleave.perf_counter", lambda: now)
    lengths = {
        seconds: len(interleave({"a": str}, Budget(seconds, most=20), measure).seconds["a"])
        for seconds in (0.0, 1.05, 1e9)
    }
    assert lengths == {0.0: 3, 1.05: 8, 1e9: 20}
