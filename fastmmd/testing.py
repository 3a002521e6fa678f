"""A pytest plugin to track a loss of your own: ``bench_pair``.

In the ``conftest.py`` at the root of your tests::

    pytest_plugins = ["fastmmd.testing"]

and then, in a test::

    def test_my_loss(bench_pair):
        x, y = torch.randn(2, 512, 256)
        bench_pair(lambda: my_loss(x, y), lambda: plain_loss(x, y))

``pytest --bench-pairs FILE`` writes the rounds of all pairs to a file in pytest-benchmark's format,
``fastmmd bench compare`` tells of two such files what became better, worse or stayed the same, and
``fastmmd bench report`` draws them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastmmd._extras import require_extra
from fastmmd.bench.interleave import Budget, interleave
from fastmmd.bench.record import Series, content, entry
from fastmmd.bench.rows import REFERENCE, SUBJECT

__all__ = ["BenchPair", "bench_pair"]

_ENTRIES = pytest.StashKey[list[dict[str, Any]]]()
_DEVICES = pytest.StashKey[set[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds ``--bench-pairs``."""
    group = parser.getgroup("fastmmd")
    group.addoption(
        "--bench-pairs", metavar="FILE", help="write the rounds of all bench_pair calls there"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuses a file that cannot be written, before any test runs."""
    config.stash[_ENTRIES] = []
    config.stash[_DEVICES] = set()
    name = config.getoption("--bench-pairs")
    if name:
        require_extra("--bench-pairs", "bench", "pytest_benchmark")
        folder = Path(name).resolve().parent
        if not folder.is_dir():
            raise pytest.UsageError(f"--bench-pairs {name}: there is no folder {folder}")
        if hasattr(config, "workerinput") or config.getoption("numprocesses", None):
            raise pytest.UsageError("--bench-pairs times one test after the other: leave out -n")
        Path(name).unlink(
            missing_ok=True
        )  # a run without any pair leaves no file of an earlier one


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes the file, if anything was timed."""
    name, entries = session.config.getoption("--bench-pairs"), session.config.stash[_ENTRIES]
    if not name or not entries:
        return
    import torch

    from fastmmd.bench.builds import commit_of
    from fastmmd.bench.measure import machine

    (device,) = session.config.stash[_DEVICES]
    made = content(
        machine(device, torch.get_num_threads()), commit_of(session.config.rootpath), entries
    )
    partial = Path(name).with_name(f".{Path(name).name}.incomplete")
    partial.write_text(json.dumps(made, indent=1) + "\n")
    partial.replace(name)


class BenchPair:
    """What the fixture is: call it with a subject and a reference.

    Args:
        name: Of the row, if none is given in the call.
        entries: Where what is to be written is collected.
        devices: Where the device is noted.
    """

    def __init__(
        self,
        name: str,
        entries: list[dict[str, Any]] | None = None,
        devices: set[str] | None = None,
    ) -> None:
        self._name = name
        self._entries = entries
        self._devices: set[str] = set() if devices is None else devices

    def __call__(
        self,
        subject: Callable[[], object],
        reference: Callable[[], object],
        *,
        name: str | None = None,
        seconds: float = 2.0,
        device: str = "cpu",
    ) -> Series:
        """Times two functions in interleaved rounds, after one call of each.

        Args:
            subject: What is tracked, without arguments.
            reference: What its time is taken in proportion to: code that does not change.
            name: Of the row, which must stay the same from run to run. Default: that of the test.
            seconds: For all rounds, of which there are at least nine.
            device: ``"cuda"`` for times by events of the GPU.

        Returns:
            The rounds; ``.ratio`` is how many times faster the subject is. Ratios too move on a
            shared machine: assert with a wide margin, and leave the verdict to ``compare``.

        Raises:
            ValueError: A row of that name has been timed already, or on another device.
        """
        from fastmmd.bench.clock import stopwatch_of

        row = name or self._name
        if self._entries and any(e["extra_info"]["row"] == row for e in self._entries):
            raise ValueError(f"bench_pair: a row {row!r} has been timed; give each its own name")
        if self._devices - {device}:
            raise ValueError(
                f"bench_pair: a file of runs is of one device; got {device!r} after"
                f" {', '.join(self._devices)}"
            )
        self._devices.add(device)
        lanes = {SUBJECT: subject, REFERENCE: reference}
        for call in lanes.values():
            call()
        rounds = interleave(lanes, Budget(seconds, least=9), stopwatch_of(device))
        if self._entries is not None:
            self._entries += [entry(row, lane, rounds, lane, {}) for lane in lanes]
        return Series(row, tuple(rounds.seconds[SUBJECT]), tuple(rounds.seconds[REFERENCE]))


@pytest.fixture
def bench_pair(request: pytest.FixtureRequest) -> BenchPair:
    """Times a function beside a reference; see :class:`BenchPair`."""
    stash = request.config.stash
    if not request.config.getoption("--bench-pairs"):
        return BenchPair(request.node.nodeid)
    return BenchPair(request.node.nodeid, stash[_ENTRIES], stash[_DEVICES])
