"""A pytest plugin: notes each test in a journal, passes over those noted before, and stops where
the context of the device is lost, so that the tests that follow can run in a new process.
"""  # noqa: D205

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.gpu_journal import LOST, Journal, context_is_lost, device_answers

JOURNAL = "FASTMMD_GPU_JOURNAL"  # the variable of the environment that names it
SHARE = "FASTMMD_GPU_SHARE"  # "1/4": the second of every four tests
journal = Journal(Path(os.environ[JOURNAL]))


def pytest_configure(config: pytest.Config) -> None:
    # Known where pytest-xdist is installed; markers must be known.
    config.addinivalue_line("markers", "xdist_group(name): tests for one worker")


@pytest.hookimpl(trylast=True)  # of those that are marked
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ended = journal.ended()
    share, shares = map(int, os.environ.get(SHARE, "0/1").split("/"))
    # Where one hangs, its like with other parameters would, too, and take all the time.
    hung = {name.split("[")[0] for name, end in ended.items() if end["outcome"].startswith("hung")}
    kept = [
        item
        for item in items[share::shares]
        if item.nodeid not in ended and item.nodeid.split("[")[0] not in hung
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    journal.begin(item.nodeid)
    outcome, message = "passed", ""
    reports: list[pytest.TestReport] = []
    item.stash[REPORTS] = reports
    result = yield
    for report in reports:
        if report.outcome != "passed":
            outcome, message = report.outcome, str(report.longrepr)
            break
    journal.end(item.nodeid, outcome, message=message[-400:] if outcome == "failed" else "")
    if outcome == "failed" and (context_is_lost(message) or not device_answers()):
        pytest.exit("the context of the device is lost", LOST)
    return result


REPORTS = pytest.StashKey[list[pytest.TestReport]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    item.stash[REPORTS].append(report)
    return report
