from __future__ import annotations

from typing import Any

import pytest

from benchmarks.session import SESSION, Session
from fastmmd.bench.machine import describe


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="small cells and few rounds")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SESSION] = Session(config.getoption("--quick"))


@pytest.fixture(scope="session")
def session(pytestconfig: pytest.Config) -> Session:
    return pytestconfig.stash[SESSION]


def pytest_benchmark_generate_machine_info() -> dict[str, Any]:
    return describe()


def pytest_benchmark_update_commit_info(commit_info: dict[str, Any]) -> None:
    commit_info["project"] = "fastmmd"
    commit_info.pop("branch", None)


def pytest_benchmark_group_stats() -> list[Any]:
    return []  # no table of pytest-benchmark's own beside that of the report


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    session = config.stash[SESSION]
    peaks = session.peak.highest()
    output_json["quick"] = session.quick
    output_json["disturbance"] = session.whole.since_last()
    output_json["fma_peak"] = [
        {
            "instruction_set": instruction_set,
            "threads": threads,
            "flop_per_second": rate,
            "samples": session.peak.samples[instruction_set, threads],
        }
        for (instruction_set, threads), rate in peaks.items()
    ]
    for benchmark in output_json["benchmarks"]:
        info = benchmark["extra_info"]
        benchmark["params"] = None  # all in extra_info, and in words in the name
        peak = peaks.get((info.get("instruction_set"), info.get("threads")))
        if peak and "flop" in info:
            info["share_of_peak"] = info["flop"] / benchmark["stats"]["median"] / peak
