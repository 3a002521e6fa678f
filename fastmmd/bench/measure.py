"""Runs: the tracked rows of this installation, or of two builds in turn."""

from __future__ import annotations

import hashlib
import os
import statistics
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

import fastmmd
from fastmmd.bench import record
from fastmmd.bench.builds import Worker, commit_of
from fastmmd.bench.clock import Cores, peak_bytes, stopwatch_of
from fastmmd.bench.interleave import Budget, Rounds, interleave
from fastmmd.bench.limits import Limits, key
from fastmmd.bench.machine import describe
from fastmmd.bench.record import Record, Series
from fastmmd.bench.rows import REFERENCE, SUBJECT, Lanes, Row
from fastmmd.bench.verdict import Thresholds, Verdict, compare

__all__ = ["Duel", "default_threads", "duel", "machine", "run"]

BASE, HEAD = "base", "head"
# Midmeans of fewer rounds have no interval to speak of.
LEAST_ROUNDS = 9
# Of two builds: turns about as short as a time slice of the system, of which some are then not
# disturbed at all, and many of them.
TURN, MOST_ROUNDS = 0.01, 150
# Two processes of one build differ: no answer stands on a single pass, and no change on two.
LEAST_PASSES = {"same": 2, "better": 3, "worse": 3}
# Two cores are quiet at the same time more seldom than one, and a slower kernel is slower on one.
THREADS_OF_DUELS = 1
# Over all rows: what disturbs the machine for a second is then not in all rounds of a row.
SWEEPS = 3
Say = Callable[[str], object]


def default_threads() -> int:
    """Half of the cores: others may be busy, and a team waits for its slowest thread."""
    return max(1, len(os.sched_getaffinity(0)) // 2)


def machine(device: str, threads: int) -> dict[str, Any]:
    """What figures hold for, the device by its name."""
    name = "cpu" if device == "cpu" else torch.cuda.get_device_name()
    return describe() | {"device": name, "threads": threads}


def _info(row: Row, error: float | None) -> dict[str, Any]:
    return {
        "op": row.op,
        "n": row.n,
        "d": row.d,
        "dtype": str(row.dtype).removeprefix("torch."),
        "mode": row.mode,
        "why": row.why,
        "flop": row.flop,
        "bytes": row.bytes,
        "error": error,
    }


def _entries(
    row: Row, lanes: Lanes, rounds: Rounds, limits: Mapping[str, float], device: str
) -> list[dict[str, Any]]:
    info = _info(row, lanes.error)
    if row.flop:
        rate = row.flop / statistics.median(rounds.seconds[SUBJECT])
        for share, what in (("share_of_limit", "products"), ("share_of_peak", "multiply-adds")):
            limit = limits.get(key(what, row.dtype, device))
            info[share] = None if limit is None else rate / limit
    if device == "cpu":
        info["peak_bytes"] = peak_bytes(lanes.calls[SUBJECT])
    made = [record.entry(row.name, lane, rounds, lane, info) for lane in lanes.calls]
    return made + [record.entry(row.name, lane, None, lane, info) for lane in lanes.missing]


def _joined(before: Rounds | None, after: Rounds) -> Rounds:
    if before is None:
        return after
    return Rounds(
        {name: before.seconds[name] + times for name, times in after.seconds.items()}, after.calls
    )


def _passes(before: Rounds | None, after: Rounds) -> Rounds:
    """The rounds of another pass too, whose processes are new."""
    (count,) = {len(times) for times in after.seconds.values()}
    return replace(_joined(before, after), runs=(*(before.runs if before else ()), count))


def _faster(rounds: Rounds) -> float:
    return Series("", tuple(rounds.seconds[SUBJECT]), tuple(rounds.seconds[REFERENCE])).ratio


def run(
    rows: Sequence[Row], device: str, threads: int, seconds: float, peers: bool, say: Say
) -> dict[str, Any]:
    """Times rows of this installation beside their plain forms.

    Args:
        rows: What to time.
        device: ``"cpu"`` or ``"cuda"``.
        threads: Of torch and fastmmd.
        seconds: For the rounds of a row.
        peers: Whether other libraries are timed too.
        say: Told of each row.

    Returns:
        The content of the file of the run.
    """
    before = torch.get_num_threads()
    entries = []
    try:
        torch.set_num_threads(threads)
        limits = Limits(device, threads, {row.dtype for row in rows if row.flop})
        limits.sample()
        prepared = {row.name: row.prepare(device, peers) for row in rows}
        taken: dict[str, Rounds] = {}
        for _ in range(SWEEPS):
            for row in rows:
                budget = Budget(seconds / SWEEPS, least=LEAST_ROUNDS // SWEEPS)
                found = interleave(prepared[row.name].calls, budget, stopwatch_of(device))
                taken[row.name] = _joined(taken.get(row.name), found)
            limits.sample()
        for row in rows:
            found = taken[row.name]
            entries += _entries(row, prepared[row.name], found, limits.rates, device)
            say(f"{row.name}: {_faster(found):.2f} times plain PyTorch")
        if limits.not_measured:
            say(f"the peak of multiply-adds is not measured: {limits.not_measured}")
        described = machine(device, threads)
    finally:
        torch.set_num_threads(before)
    root = Path(fastmmd.__file__).parents[1]
    commit = commit_of(root) if (root / "pyproject.toml").is_file() else {"id": None}
    return record.content(
        described,
        commit | {"version": fastmmd.__version__},
        entries,
        limits=limits.rates,
        plain_forms=_plain_forms(),
    )


def _plain_forms() -> str:
    """A digest of the code that rows are measured in proportion to."""
    package = Path(fastmmd.__file__).parent
    digest = hashlib.sha256()
    for name in ("reference.py", "bench/plain.py", "bench/rows.py"):
        digest.update((package / name).read_bytes())
    return digest.hexdigest()[:16]


class Duel(NamedTuple):
    """Two builds, measured in the same rounds."""

    base: dict[str, Any]  # content of files
    head: dict[str, Any]
    verdicts: list[Verdict]


def duel(
    folders: Mapping[str, Path],
    commits: Mapping[str, Mapping[str, Any]],
    rows: Sequence[Row],
    device: str,
    threads: int,
    seconds: float,
    passes: int,
    thresholds: Thresholds,
    say: Say,
) -> Duel:
    """Times rows of two builds against each other, round by round.

    Each build runs in a process of its own, and the reference in a third; the others wait while one
    is timed. In a round all run on the same cores, two rounds later on others: a core that another
    process or another guest makes slow is so for all, and not in all rounds. All rows are measured
    again in new processes, as two processes of one build differ too, by where their memory lies;
    then those that are unclear, and those that seem to have changed once more.

    Args:
        folders: Of the builds, by ``"base"`` and ``"head"``.
        commits: Their commits.
        rows: What to time.
        device: ``"cpu"`` or ``"cuda"``.
        threads: Of each process.
        seconds: For the rounds of a row and pass.
        passes: How often at most.
        thresholds: What counts as a change.
        say: Told of each row.

    Raises:
        BuildError: A build does not run, or computes something else than plain PyTorch.
    """
    described = machine(device, threads)
    together = uuid.uuid4().hex
    # A GPU does not care which cores ask it to work.
    cores = Cores(threads, None if device == "cpu" else ())
    taken: dict[str, Rounds] = {}

    def one_pass(left: Sequence[Row]) -> None:
        with (
            Worker(BASE, folders[BASE]) as base,
            Worker(HEAD, folders[HEAD]) as head,
            # In a build's own process the reference would change what that build finds in memory.
            Worker(HEAD, folders[HEAD]) as plain,
        ):
            workers = {BASE: base, HEAD: head}
            for row in left:
                there = [
                    side
                    for side, worker in workers.items()
                    if "missing" not in worker.prepare(row.name, device, threads)
                ]
                if not there:
                    say(f"{row.name}: neither build has it")
                    continue
                lanes = {side: (workers[side], SUBJECT) for side in there}
                lanes[REFERENCE] = (plain if HEAD in there else base, REFERENCE)
                if HEAD in there:
                    plain.prepare(row.name, device, threads)
                rounds = interleave(
                    lanes,  # type: ignore[arg-type]
                    Budget(seconds, LEAST_ROUNDS, MOST_ROUNDS, TURN),
                    lambda lane, count: lane[0].seconds(lane[1], count, cores.now),
                    cores.next_round,
                    alike=there,
                )
                taken[row.name] = _passes(taken.get(row.name), rounds)

    def contents() -> tuple[dict[str, Any], dict[str, Any]]:
        return tuple(  # type: ignore[return-value]
            record.content(
                described,
                commits[side],
                [
                    record.entry(
                        row.name,
                        lane,
                        taken[row.name],
                        side if lane == SUBJECT else REFERENCE,
                        _info(row, None),
                    )
                    for row in rows
                    if row.name in taken and side in taken[row.name].seconds
                    for lane in (SUBJECT, REFERENCE)
                ],
                rounds_with=together,
            )
            for side in (BASE, HEAD)
        )

    left = list(rows)
    for number in range(1, passes + 1):
        one_pass(left)
        base, head = contents()
        verdicts = compare(
            Record.parse(base, BASE, empty=True), Record.parse(head, HEAD, empty=True), thresholds
        )
        open_rows = {
            v.row
            for v in verdicts
            if v.answer == "unclear" or number < LEAST_PASSES.get(v.answer, 1)
        }
        left = [row for row in rows if row.name in open_rows]
        say(f"pass {number}: {len(rows) - len(left)} of {len(rows)} rows decided")
        if not left:
            break
    return Duel(base, head, verdicts)
