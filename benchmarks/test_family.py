"""The permutation test, drop-ins, joint and local losses and estimators, each beside its peers."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from benchmarks import memory
from benchmarks.contests import Contest, contests
from benchmarks.measured import Measured
from benchmarks.session import SESSION, Session, running
from fastmmd.bench.interleave import Budget, interleave, replay
from fastmmd.bench.machine import Disturbance


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    session = metafunc.config.stash[SESSION]
    cases = [
        pytest.param(contest, contestant.id, id=f"{contest.subject}: {contestant.id}")
        for contest in contests(session.threads, session.quick)
        for contestant in contest.contestants
    ]
    metafunc.parametrize(("contest", "lane"), cases)


# A contest is measured at once, by the first of its tests; the others take their part of it.


@cache
def measured(contest: Contest, session: Session) -> Measured:
    """All lanes of a contest."""
    calls, info = {}, {}
    with running(contest.threads):
        for contestant in contest.contestants:
            lane = contestant.prepare()
            error = lane.error()
            assert max(error.values()) < 0.01, f"{contestant.id} computes something else: {error}"
            calls[contestant.id] = lane.call
            info[contestant.id] = {
                "subject": contest.subject,
                "peer": contestant.peer,
                "n": contestant.n,
                "m": contestant.n,
                "d": contestant.d,
                "dtype": "float32",
                "threads": contest.threads,
                "instruction_set": session.instruction_set,
                "torch": torch.__version__,
                "error": error,
            }
        noise = Disturbance()
        seconds = min(contest.seconds, session.budget.seconds)
        rounds = interleave(calls, Budget(seconds, contest.least))
        disturbance = noise.since_last()
    del calls, lane
    peaks = memory.of_contest(contest, session.quick)
    for name, entry in info.items():
        entry |= {"peak_memory": peaks.get(name), "disturbance": disturbance}
    return Measured(f"family {contest.subject}", rounds, info)


@pytest.mark.benchmark(timer=replay)
def test_family(contest: Contest, lane: str, session: Session, benchmark: Any) -> None:
    measured(contest, session).record(benchmark, lane)
