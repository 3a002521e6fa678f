"""Runs and verdicts as Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from fastmmd.bench.record import Record, Series
from fastmmd.bench.verdict import Verdict, counts

__all__ = ["comparison", "run", "time"]

_ORDER = ("worse", "unclear", "better", "same", "new", "gone")


def time(seconds: float) -> str:
    """Three digits and a unit; nothing for NaN."""
    if math.isnan(seconds):
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size or unit == "µs":
            value = seconds / size
            text = f"{value:.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")
            return f"{text} {unit}"
    raise AssertionError


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    ruler = ["---"] * words + ["---:"] * (len(header) - words)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ruler, *rows))


def _place(machine: Mapping[str, Any]) -> str:
    device = machine.get("device", "cpu")
    where = machine.get("cpu", "?") if device == "cpu" else device
    threads = machine.get("threads")
    return (
        f"{where}, {machine.get('instruction_set')}, {threads} thread{'s' * (threads != 1)};"
        f" torch {machine.get('torch')}, {machine.get('compiler')}"
    )


def comparison(
    verdicts: Sequence[Verdict], base: str, head: str, machine: Mapping[str, Any]
) -> str:
    """The verdicts, those first that want to be looked at."""
    found = counts(list(verdicts))
    total = ", ".join(f"{found[answer]} {answer}" for answer in _ORDER if answer in found)
    cells = [
        (
            v.row,
            f"**{v.answer}**" if v.answer in ("worse", "better") else v.answer,
            "" if math.isnan(v.change) else f"{100 * v.change:+.1f} %",
            "" if math.isnan(v.low) else f"{100 * v.low:+.1f} to {100 * v.high:+.1f} %",
            time(v.base),
            time(v.head),
            str(v.rounds or ""),
        )
        for v in sorted(verdicts, key=lambda v: _ORDER.index(v.answer))
    ]
    header = ("row", "", "change of time", "interval", "base", "head", "rounds")
    return f"{base} to {head}: {total}\n\n{_place(machine)}\n\n{_table(header, cells, 2)}\n"


def run(record: Record) -> str:
    """Times and ratios of a run."""
    peers = list(dict.fromkeys(name for s in record.series.values() for name in s.others))
    header = (
        *("row", "fastmmd", "plain PyTorch", "times faster", "largest error"),
        *("of torch.mm's rate", "of the FMA peak", *peers),
    )
    cells = [
        (
            s.name,
            time(statistics.median(s.subject)),
            time(statistics.median(s.reference)),
            f"{s.ratio:.2f}",
            "" if s.info.get("error") is None else f"{s.info['error']:.1e}",
            *(_share(s.info.get(name)) for name in ("share_of_limit", "share_of_peak")),
            *(_peer(s, name) for name in peers),
        )
        for s in record.series.values()
    ]
    commit = record.commit.get("id")
    code = f"commit {commit[:9]}" if commit else f"version {record.commit.get('version')}"
    if record.commit.get("dirty"):
        code += " with changes"
    limits = ""
    if record.limits:
        fma = record.limits.get("fma_flop_per_second")
        peak = "not measured" if fma is None else f"{fma / 1e9:.0f} GFLOP/s"
        limits = (
            f"\nIn the same run, float32: torch.mm {record.limits['flop_per_second'] / 1e9:.0f}"
            f" GFLOP/s, peak of fused multiply-adds {peak};"
            f" copy {record.limits['bytes_per_second'] / 1e9:.0f} GB/s.\n"
        )
    return (
        f"{code}, {record.when[:16]} UTC; {_place(record.machine)}\n{limits}\n"
        f"{_table(header, cells)}\n"
    )


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _peer(series: Series, name: str) -> str:
    if name not in series.others:
        return ""
    times = series.others[name]
    return "not installed" if times is None else time(statistics.median(times))
