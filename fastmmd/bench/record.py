"""Records of runs: files in pytest-benchmark's format, with the rounds of all lanes of a row."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fastmmd.bench.interleave import Rounds
from fastmmd.bench.rows import REFERENCE, SUBJECT

__all__ = ["SCHEMA", "Record", "RecordError", "Series", "entry"]

SCHEMA = 1
# Ratios to a reference hold for the machine, the code that runs on it and the reference itself.
LIMITS = {"flop_per_second", "bytes_per_second"}  # at least
_SAME = ("device", "cpu", "instruction_set", "threads", "torch")


class RecordError(ValueError):
    """A file is no record of a run, or two records cannot be compared."""


@dataclass(frozen=True)
class Series:
    """One row of a run.

    Attributes:
        name: Of the row, the same in every run.
        subject: Seconds per call of what is tracked, one entry per round.
        reference: Seconds per call of the reference in the same rounds.
        info: What else was recorded.
        others: Seconds of further lanes, by name; None of one that is not installed.
        runs: Numbers of rounds, if they come from several runs.
    """

    name: str
    subject: tuple[float, ...]
    reference: tuple[float, ...]
    info: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, tuple[float, ...] | None] = field(default_factory=dict)
    runs: tuple[int, ...] = ()

    @property
    def rounds_of_runs(self) -> tuple[int, ...]:
        """The numbers of rounds of the runs that these come from, one after the other."""
        return self.runs or (len(self.subject),)

    def followed_by(self, other: Series) -> Series:
        """The rounds of two runs of one row."""
        return replace(
            self,
            subject=self.subject + other.subject,
            reference=self.reference + other.reference,
            runs=self.rounds_of_runs + other.rounds_of_runs,
        )

    @property
    def ratio(self) -> float:
        """Times faster than the reference: the median over the rounds."""
        pairs = zip(self.reference, self.subject, strict=True)
        return statistics.median(r / s for r, s in pairs)


@dataclass(frozen=True)
class Record:
    """A run.

    Attributes:
        machine: What it ran on.
        commit: Of the code that was measured: ``id``, ``dirty``, ``time``.
        when: Date and time, ISO 8601.
        series: The rows by name.
        rounds_with: What other record the rounds are paired with, a name that both have, or None.
        limits: The measured limits of the machine: ``flop_per_second`` of torch.mm in float32,
            ``bytes_per_second`` of a copy, ``fma_flop_per_second`` of multiply-adds where it was
            measured; the same of other types with ``_`` and their name.
        plain_forms: What tells one state of the references' code from another, or None.
        where: The file, for messages.
    """

    machine: Mapping[str, Any]
    commit: Mapping[str, Any]
    when: str
    series: Mapping[str, Series]
    rounds_with: str | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    plain_forms: str | None = None
    where: str = "this run"

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Reads a file that ``fastmmd bench run``, or pytest with ``bench_pair``, has written.

        Of a folder, all files of that kind: runs of the same code, whose rounds are put together.

        Raises:
            RecordError: It cannot be read, is not JSON (truncated, say), has another schema, or no
                row of it has a subject and a reference; or runs of a folder do not compare, or are
                not of the same code.
        """
        if Path(path).is_dir():
            files = sorted(Path(path).glob("*.json"))
            if not files:
                raise RecordError(f"{path}: no .json file in that folder")
            first, *more = map(cls.load, files)
            series = dict(first.series)
            for record in more:
                first.check_comparable(record)
                first._check_same_code(record)
                for name, of in record.series.items():
                    series[name] = series[name].followed_by(of) if name in series else of
            return replace(first, series=series, where=str(path))
        try:
            text = Path(path).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise RecordError(f"{path}: cannot be read ({error})") from error
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RecordError(f"{path}: not JSON, or only the beginning of it ({error})") from error
        return cls.parse(content, str(path))

    @classmethod
    def parse(cls, content: Any, where: str = "the record", empty: bool = False) -> Record:
        """Takes the content of such a file.

        Args:
            content: Parsed JSON.
            where: The file, for messages.
            empty: Whether there may be no row.

        Raises:
            RecordError: As for :meth:`load`.
        """
        if not isinstance(content, dict) or "benchmarks" not in content:
            raise RecordError(f"{where}: not a file of pytest-benchmark: it has no 'benchmarks'")
        own = content.get("fastmmd_bench", {"schema": SCHEMA})
        if not isinstance(own, dict) or own.get("schema") != SCHEMA:
            found = own.get("schema") if isinstance(own, dict) else own
            raise RecordError(f"{where}: schema {found!r}, and this version reads {SCHEMA}")
        lanes: dict[str, dict[str, Any]] = {}
        try:
            for benchmark in content["benchmarks"]:
                info = benchmark["extra_info"]
                if "lane" not in info:
                    continue
                stats = benchmark.get("stats")
                data = None if stats is None else tuple(map(float, stats["data"]))
                if data is not None and not all(math.isfinite(t) and t > 0 for t in data):
                    raise ValueError(f"times of {benchmark['name']!r} that are not positive")
                lanes.setdefault(info["row"], {})[info["lane"]] = (data, info)
            machine, commit = content["machine_info"], content["commit_info"]
            when = str(content["datetime"])
            limits = {k: float(v) for k, v in own.get("limits", {}).items()}
            if not isinstance(machine, dict) or not isinstance(commit, dict):
                raise TypeError("machine_info and commit_info must be objects")
            if not isinstance(commit.get("id"), str | None):
                raise TypeError(f"commit_info.id {commit['id']!r} is no string")
            if limits and not limits.keys() >= LIMITS:
                raise ValueError(f"limits {sorted(limits)}")
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise RecordError(f"{where}: not a record of fastmmd bench: {error!r}") from error
        series = {}
        for name, of in lanes.items():
            if SUBJECT not in of or REFERENCE not in of:
                continue
            (subject, info), (reference, _) = of.pop(SUBJECT), of.pop(REFERENCE)
            if not subject or not reference or len(subject) != len(reference):
                raise RecordError(f"{where}: the rounds of {name!r} are not complete")
            others = {k: v[0] for k, v in of.items()}
            runs = _runs(info.get("runs", []), len(subject))
            if runs is None:
                raise RecordError(f"{where}: the runs of {name!r} are not those of its rounds")
            series[name] = Series(name, subject, reference, info, others, runs)
        if not series and not empty:
            raise RecordError(f"{where}: no row with a subject and a reference in it")
        together, plain = own.get("rounds_with"), own.get("plain_forms")
        return cls(machine, commit, when, series, together, limits, plain, where)

    def compares_with(self, other: Record) -> bool:
        """Whether ratios carry over."""
        return all(self.machine.get(key) == other.machine.get(key) for key in _SAME)

    def check_comparable(self, other: Record) -> None:
        """Refuses what ratios do not carry over.

        Raises:
            RecordError: The other run was made on another device, instruction set, number of
                threads or torch.
        """
        for key in _SAME:
            a, b = self.machine.get(key), other.machine.get(key)
            if a != b:
                what = key.replace("_", " ")
                raise RecordError(
                    f"{self.where} and {other.where} cannot be compared: {what} {a!r} and {b!r}"
                )

    def _check_same_code(self, other: Record) -> None:
        for what, a, b in (
            ("commit", self.commit.get("id"), other.commit.get("id")),
            ("plain forms", self.plain_forms, other.plain_forms),
            ("rounds measured with", self.rounds_with, other.rounds_with),
        ):
            if a != b:
                raise RecordError(
                    f"{self.where} and {other.where} of one folder are not runs of the same code:"
                    f" {what} {a!r} and {b!r}"
                )


def _runs(found: Any, rounds: int) -> tuple[int, ...] | None:
    """Numbers of rounds as they were read, None if they are no such numbers."""
    if not isinstance(found, list) or not all(type(n) is int and n > 0 for n in found):
        return None
    return tuple(found) if sum(found) == (rounds if found else 0) else None


def entry(
    row: str,
    lane: str,
    rounds: Rounds | None,
    key: str,
    info: Mapping[str, Any],
) -> dict[str, Any]:
    """One lane as pytest-benchmark writes it.

    Args:
        row: Name of the row.
        lane: Name of the lane.
        rounds: Its rounds, None of a peer that is not installed.
        key: Under which they stand there.
        info: What else is recorded.
    """
    extra = {**info, "row": row, "lane": lane}
    if rounds is not None and rounds.runs:
        extra["runs"] = list(rounds.runs)
    made: dict[str, Any] = {
        "group": row,
        "name": f"{row} [{lane}]",
        "fullname": f"fastmmd bench::{row} [{lane}]",
        "params": None,
        "param": None,
        "extra_info": extra,
        "options": {
            "disable_gc": True,
            "timer": "perf_counter",
            "min_rounds": 1,
            "max_time": 1.0,
            "min_time": 0.000005,
            "warmup": False,
        },
    }
    if rounds is None:
        return made | {"stats": None}
    return made | {"stats": _stats(rounds.seconds[key], rounds.calls[key])}


def _stats(data: Sequence[float], calls: int) -> dict[str, Any]:
    from pytest_benchmark.stats import Stats

    stats = Stats()
    for value in data:
        stats.update(value)
    return {**stats.as_dict(), "data": list(data), "iterations": calls}


def content(
    machine: Mapping[str, Any],
    commit: Mapping[str, Any],
    benchmarks: Iterable[Mapping[str, Any]],
    rounds_with: str | None = None,
    limits: Mapping[str, float] | None = None,
    plain_forms: str | None = None,
) -> dict[str, Any]:
    """The whole file."""
    from pytest_benchmark import __version__

    return {
        "machine_info": dict(machine),
        "commit_info": dict(commit),
        "benchmarks": list(benchmarks),
        "datetime": datetime.now(timezone.utc).isoformat(),
        "version": __version__,
        "fastmmd_bench": {
            "schema": SCHEMA,
            "rounds_with": rounds_with,
            "limits": dict(limits or {}),
            "plain_forms": plain_forms,
        },
    }
