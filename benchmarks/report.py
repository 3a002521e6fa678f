"""A run as Markdown, as JSON and as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, figures
from benchmarks.peers import PEERS
from benchmarks.results import Row, Run

QUIET = 0.03  # of the machine, for others: above it times are not to be relied on


def write(run: Run, folder: Path) -> str:
    """Write results.json, table.md and bench.png.

    Returns:
        The table.
    """
    text = markdown(run)
    (folder / "results.json").write_text(json.dumps(summary(run), indent=1) + "\n")
    (folder / "table.md").write_text(text)
    if any(row.kind in ("compare", "limit", "family") for row in run.rows):
        # Matplotlib takes a second to import, and only this needs it.
        from benchmarks.picture import draw

        draw(run, folder / "bench.png")
    return text


def summary(run: Run) -> dict[str, Any]:
    """All that tables and pictures show, for other programs."""
    return {
        "machine": run.machine,
        "commit": run.commit,
        "datetime": run.when,
        "quick": run.quick,
        "disturbance": run.disturbance,
        "void": run.void,
        "fma_peak": [
            {"instruction_set": name, "threads": threads, "flop_per_second": rate}
            for (name, threads), rate in run.peaks.items()
        ],
        "figures": [figure.as_dict() for figure in figures(run)],
        "times": [
            row.info | {"kind": row.kind, "median": row.median, "min": row.least}
            for row in run.rows
        ],
    }


def markdown(run: Run) -> str:
    """The tables."""
    parts = [_heading(run), _figures(figures(run))]
    for mode, title in (("gradients", "Value and gradients"), ("value", "Value alone")):
        rows = list(run.select("compare", mode=mode))
        if rows:
            parts.append(f"### {title}: milliseconds, MiB at peak\n\n{_times(rows)}")
    rows = list(run.select("compare", mode="gradients"))
    if rows:
        parts.append(
            f"### Largest relative error of a gradient, against float64\n\n{_errors(rows)}"
        )
    rows = list(run.select("family"))
    if rows:
        parts.append(f"### The family: value and gradients, or one test\n\n{_family(rows)}")
    return "\n\n".join(parts) + "\n"


def _heading(run: Run) -> str:
    m = run.machine
    peaks = ", ".join(
        f"{rate / 1e9:.0f} ({name}, {_threads(threads)})"
        for (name, threads), rate in run.peaks.items()
    )
    commit = run.commit["id"][:12] + (" with changes" if run.commit["dirty"] else "")
    lines = [
        f"{m['cpu']} (family {m['cpu_family']}, model {m['cpu_model']}), {m['cores']} cores,"
        f" {_threads(m['threads'])}, {m['instruction_set']}; torch {m['torch']}, {m['compiler']},"
        f" Python {m['python']}; fastmmd {m['fastmmd']}, commit {commit}; {run.when[:16]} UTC.",
    ]
    if peaks:
        lines.append(f"FMA peak in this run, GFLOP/s: {peaks}.")
    if run.disturbance is not None:
        lines.append(f"Taken by others meanwhile: {100 * run.disturbance:.1f} % of the machine.")
        if run.disturbance > QUIET:
            lines.append("**The machine was not quiet: ratios hold, times and shares may not.**")
    if run.quick:
        lines.append("A quick run: few rounds.")
    lines += [f"**Void: {reason}.**" for reason in run.void]
    return "\n".join(lines)


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count != 1)}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruler = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ruler, *rows))


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "%":
        return f"{100 * value:.0f} %"
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}" + (f" {unit}" if unit == "MiB" else "")


def _milliseconds(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:#.3g}".rstrip(".") if value < 100 else f"{value:.0f}"


def _figures(rows: Sequence[Figure]) -> str:
    header = ("figure", "median", "quartiles", "of the best", "must", "aim", "")
    cells = []
    for f in rows:
        bound = "≤ " if f.smaller else "≥ "
        must, aim = ("" if b is None else bound + _number(b, f.unit) for b in (f.must, f.aim))
        quartiles = f"{_number(f.spread.low, f.unit)} to {_number(f.spread.high, f.unit)}"
        once = f.spread.low == f.spread.high
        cells.append(
            (
                f.name,
                _number(f.spread.median, f.unit),
                "" if once else quartiles,
                "" if once else _number(f.spread.best, f.unit),
                must,
                aim,
                f.verdict,
            )
        )
    return _table(header, cells)


def _by_cell(rows: Sequence[Row]) -> dict[tuple[int, int, int], dict[str, Row]]:
    cells: dict[tuple[int, int, int], dict[str, Row]] = {}
    for row in rows:
        cells.setdefault((*row.size, row.info["threads"]), {})[row.info["peer"]] = row
    return cells


def _grid(rows: Sequence[Row], show: Any) -> str:
    peers = [name for name in PEERS if any(row.info["peer"] == name for row in rows)]
    cells = [
        (f"{n}, {d}, {threads}", *(show(found[p]) if p in found else "" for p in peers))
        for (n, d, threads), found in _by_cell(rows).items()
    ]
    return _table(("n = m, d, threads", *(PEERS[p].title for p in peers)), cells)


def _times(rows: Sequence[Row]) -> str:
    def show(row: Row) -> str:
        peak = row.info["peak_memory"]
        memory = "" if peak is None else f" / {_number(peak / 2**20, '')}"
        return _milliseconds(row.median) + memory

    return _grid(rows, show)


def _family(rows: Sequence[Row]) -> str:
    header = ("what", "by what", "n = m", "d", "milliseconds", "MiB at peak", "largest error")
    ruler = ("---", "---", *["---:"] * 5)
    cells = []
    for row in rows:
        peak = row.info.get("peak_memory")
        cells.append(
            (
                row.info["subject"],
                row.info["peer"],
                str(row.info["n"]),
                row.info["d"],
                _milliseconds(row.median),
                "" if peak is None else _number(peak / 2**20, ""),
                f"{max(row.info['error'].values()):.1e}",
            )
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ruler, *cells))


def _errors(rows: Sequence[Row]) -> str:
    return _grid(rows, lambda row: f"{row.info['error']['gradients']:.1e}")
