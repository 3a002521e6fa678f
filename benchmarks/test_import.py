"""``import fastmmd`` beside ``import torch``, each in new processes."""

from __future__ import annotations

import subprocess
import sys
from functools import cache, partial
from typing import Any

import pytest

from benchmarks.session import Session
from fastmmd.bench.interleave import Budget, Rounds, interleave, replay

MODULES = ("torch", "fastmmd")


def seconds_to_import(module: str) -> float:
    """Of the statement alone, without the start of the interpreter."""
    code = f"from time import perf_counter as t; s = t(); import {module}; print(t() - s)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


@cache
def imports(session: Session) -> Rounds:
    for module in MODULES:
        seconds_to_import(module)  # the files are in memory afterwards
    return interleave(
        {module: partial(seconds_to_import, module) for module in MODULES},
        Budget(5.0) if session.quick else Budget(20.0, least=7),
        measure=lambda lane, calls: sum(lane() for _ in range(calls)),
    )


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.benchmark(timer=replay)
def test_import(module: str, session: Session, benchmark: Any) -> None:
    rounds = imports(session)
    benchmark.group = "import"
    benchmark.extra_info["module"] = module
    replay.record(benchmark, rounds.seconds[module], rounds.calls[module])
