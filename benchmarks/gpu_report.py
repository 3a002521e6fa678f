"""What a run of ``make gpu-check`` found, as Markdown; it needs neither a GPU nor fastmmd."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures import Figure
from benchmarks.results import Row, Spread, ratio, spread

Results = dict[str, Any]
# From here on a lane computes something else.
WRONG = 0.05
TIMES_FASTER = {  # (row, lane beside fastmmd): what it is, must, aim
    ("tf32", "plain"): ("n = m = 8192, d = 256, TF32: faster than plain PyTorch", 20, 40),
    ("compiled", "torch.compile"): ("the same: faster than torch.compile of it", 2.5, 4),
    ("highest", "plain"): ('n = m = 8192, d = 256, "highest": faster than plain PyTorch', 6, 12),
    ("wide", "plain"): ("n = m = 4096, d = 2048, TF32: faster than plain PyTorch", 4.5, 7),
    ("eager", "plain"): ("n = m = 64, d = 256, eager: faster than plain PyTorch", 6, 12),
    ("features", "plain"): (
        "random features, n = m = 65536, d = 512, D = 8192, TF32: faster than their composition",
        *(4, 6),
    ),
    ("keops", "keops"): ("n = m = 8192, d = 256: faster than KeOps", 10, 40),
    ("keops", "geomloss"): ("n = m = 8192, d = 256: faster than geomloss, online", 10, 40),
}
SHARES = {  # of the rate of torch.mm in the same rounds
    "bf16_rate": ("n = m = 16384, d = 512, bf16: share of the rate of cuBLAS", 0.45, 0.6),
    "features": (
        "random features, n = m = 65536, d = 512, D = 8192, TF32: share of the rate of cuBLAS",
        *(0.5, 0.6),
    ),
    "tf32_rate": ("n = m = 16384, d = 256, TF32: share of the rate of cuBLAS", 0.45, 0.6),
}
REPLAY = ("n = m = 64, d = 256: replay of a CUDA graph, microseconds", 30, 15)
MEMORY = {  # extra memory over the samples
    "float32": ("n = m = 32768, d = 256, float32: extra memory over the samples", 4, 3),
    "bfloat16": ("n = m = 32768, d = 256, bf16: extra memory over the samples", 5, 4),
}


def lanes(results: Results, row: str) -> dict[str, dict[str, Any]]:
    """What was timed in a row by lane; nothing if it did not come to its end."""
    return {r["lane"]: r for r in _records(results, row) if "seconds" in r}


def timed(record: dict[str, Any]) -> Row:
    return Row("gpu", record, record["seconds"])


def sound(record: dict[str, Any]) -> bool:
    """Whether a lane computed what it should; NaN is not."""
    return all(error < WRONG for error in record.get("error", {}).values())


def figures(results: Results) -> Iterator[Figure]:
    """What is asked for, as far as it was measured."""
    for (row, other), (name, must, aim) in TIMES_FASTER.items():
        found = lanes(results, row)
        if other in found and "fastmmd" in found and sound(found["fastmmd"]):
            spread_ = ratio(timed(found[other]), timed(found["fastmmd"]))
            yield Figure(name, "x", spread_, must, aim)
    for row, (name, must, aim) in SHARES.items():
        found = lanes(results, row)
        if "fastmmd" in found and "torch.mm" in found and sound(found["fastmmd"]):
            yield Figure(name, "%", _share(found["fastmmd"], found["torch.mm"]), must, aim)
    for record in _records(results, "graph", lane="fastmmd", clock="cold"):
        if sound(record):
            times = [1e6 * t for t in record["seconds"]]
            yield Figure(REPLAY[0], "us", spread(times, min(times)), *REPLAY[1:], smaller=True)
    for dtype, (name, must, aim) in MEMORY.items():
        peaks = [
            r["peak_memory"] / r["sample_bytes"]
            for r in _records(results, "memory", dtype=dtype)
            if r["peak_memory"] is not None
        ]
        if peaks:
            most = max(peaks)
            yield Figure(name, "x", Spread(most, most, most, most), must, aim, smaller=True)


def _records(results: Results, row: str, **info: Any) -> Iterator[dict[str, Any]]:
    for record in results["rows"].get(row, {}).get("records", ()):
        if info.items() <= record.items():
            yield record


def _share(ours: dict[str, Any], product: dict[str, Any]) -> Spread:
    rates = [
        ours["flop"] / a / (product["flop"] / b)
        for a, b in zip(ours["seconds"], product["seconds"], strict=True)
    ]
    return spread(rates, max(rates))


def matrix_rate(results: Results, dtype: str, precision: str) -> float | None:
    """FLOP/s of matrix products that such inputs may use, as measured in this run."""
    rates = {name: _rate(record) for name, record in lanes(results, "rates").items()}
    if not rates:
        return None
    if dtype != "float32":
        return rates[dtype]
    if precision == "highest":  # in float32, or three products of TF32
        return max(rates["float32"], rates["tf32"] / 3)
    return rates["tf32"] if precision == "high" else rates["bfloat16"]


def _rate(record: dict[str, Any]) -> float:
    return float(record["work"]) / median(record["seconds"])


# --- Markdown ------------------------------------------------------------------------------------


def markdown(results: Results) -> str:
    """All of it."""
    parts = [_heading(results), _phases(results)]
    sections: list[tuple[str, Callable[[Results], str]]] = [
        ("Figures", _figures),
        ("Rates of the device in this run", _rates),
        ("Times", _times),
        ("Memory", _memory),
        ("Accuracy", _accuracy),
        ("What failed", _failures),
    ]
    for title, make in sections:
        text = make(results)
        if text:
            parts.append(f"### {title}\n\n{text}")
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruler = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ruler, *rows))


def _heading(results: Results) -> str:
    device = results["device"]
    words = [
        f"{device.get('name', 'unknown')}, compute capability {device.get('capability', '?')}",
        f"driver {results['driver']}",
        f"torch {results['torch']} with CUDA {results['cuda']}",
        f"nvcc {results['nvcc']}",
        f"Python {results['python']}",
        f"commit {results['commit']}",
        f"sources {results['sources'][:12]}",
        f"{results['date']} UTC",
    ]
    lines = ["; ".join(words) + "."]
    if results["dry"]:
        lines.append("**A dry run on a CPU, at toy sizes: none of its numbers means anything.**")
    return "\n".join(lines)


def _phases(results: Results) -> str:
    rows = [
        (p["name"], p["outcome"], f"{p['seconds']:.0f}", f"{p['budget']:.0f}", p["detail"])
        for p in results["phases"]
    ]
    return table(("phase", "outcome", "seconds", "at most", ""), rows)


def _number(value: float, unit: str) -> str:
    if unit == "%":
        return f"{100 * value:.0f} %"
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _figures(results: Results) -> str:
    rows = []
    for f in figures(results):
        bound = "≤ " if f.smaller else "≥ "
        quartiles = f"{_number(f.spread.low, f.unit)} to {_number(f.spread.high, f.unit)}"
        must, aim = ("" if b is None else bound + _number(b, f.unit) for b in (f.must, f.aim))
        once = f.spread.low == f.spread.high
        shown = _number(f.spread.median, f.unit)
        rows.append((f.name, shown, "" if once else quartiles, must, aim, f.verdict))
    for record in lanes(results, "huge").values():
        done = "yes" if record["finite"] else "not finite"
        verdict = "met" if record["finite"] else "missed"
        rows.append(("n = m = 131072, d = 128, bf16: completes", done, "", "yes", "", verdict))
    checked = list(_records(results, "accuracy"))
    if checked:
        met = sum(r["met"] for r in checked)
        verdict = "met" if met == len(checked) else "missed"
        shown = f"{met} of {len(checked)}"
        rows.append(("tolerance rule, at each precision", shown, "", "all", "", verdict))
    return table(("figure", "median", "quartiles", "must", "aim", ""), rows) if rows else ""


def _rates(results: Results) -> str:
    rows = []
    for name, record in lanes(results, "rates").items():
        rate = _rate(record)
        if name == "copy":
            rows.append(("copy, bytes read and written", f"{rate / 1e12:.2f} TB/s"))
        else:
            rows.append((f"torch.mm, 8192 x 8192 x 8192, {name}", f"{rate / 1e12:.1f} TFLOP/s"))
    return table(("what", "rate"), rows) if rows else ""


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"


def _times(results: Results) -> str:
    header = (
        *("row", "lane", "n = m, d", "operands", "ms", "quartiles", "TFLOP counted"),
        *("executed", "TFLOP/s of the counted", "share of torch.mm", "floor: arithmetic, ms"),
        *("floor: bytes, ms", "road", "products that use symmetry", "error"),
    )
    rows = []
    for row, found in results["rows"].items():
        rows += [
            (row, *_time(results, record))
            for record in found.get("records", ())
            if "seconds" in record and "n" in record
        ]
    return table(header, rows) if rows else ""


def _time(results: Results, record: dict[str, Any]) -> Sequence[str]:
    spread_ = spread(record["seconds"], min(record["seconds"]))
    flop, ours = record["flop"], record["lane"].startswith("fastmmd")
    mode = "" if record["mode"] == "gradients" else ", value"
    kind = record["dtype"] + (f", {record['precision']}" if record["dtype"] == "float32" else "")
    rate = matrix_rate(results, record["dtype"], record["precision"])
    copy = lanes(results, "rates").get("copy")
    floors = ["", ""]
    if ours and rate and copy:
        moved = record["sample_bytes"] * (1 if mode else 2)
        floors = [_milliseconds(flop / rate), _milliseconds(moved / _rate(copy))]
    executed = record.get("executed")
    return (
        record["lane"] + (f" ({record['clock']})" if record["clock"] != "events" else ""),
        f"{record['n']}, {record['d']}",
        kind,
        _milliseconds(spread_.median),
        f"{_milliseconds(spread_.low)} to {_milliseconds(spread_.high)}",
        f"{flop / 1e12:.3g}",
        "" if executed is None else f"{executed / 1e12:.3g}",
        f"{flop / spread_.median / 1e12:.3g}",
        f"{100 * flop / spread_.median / rate:.0f} %" if rate else "",
        *floors,
        record.get("road", ""),
        record.get("symmetric", ""),
        f"{max(e.values()):.1e}" if (e := record.get("error")) else "",
    )


def _memory(results: Results) -> str:
    rows = []
    for row in ("memory", "huge"):
        for r in _records(results, row):
            if r["peak_memory"] is not None:
                kind = r["dtype"] + (f", {r['precision']}" if r["dtype"] == "float32" else "")
                sizes = [r["sample_bytes"] / 2**20, r["peak_memory"] / 2**20]
                shown = [f"{size:.0f}" for size in sizes]
                times = f"{r['peak_memory'] / r['sample_bytes']:.2f}"
                rows.append((f"{r['n']}, {r['d']}", kind, *shown, times))
    header = ("n = m, d", "operands", "samples, MiB", "extra, MiB", "extra / samples")
    return table(header, rows) if rows else ""


def _accuracy(results: Results) -> str:
    rows = []
    for r in _records(results, "accuracy"):
        sizes = f"{r['n']}, {r['m']}, {r['d']}"
        cells = [f"{r['error'][name]:.1e} / {r['bound'][name]:.1e}" for name in r["error"]]
        met = "met" if r["met"] else "**missed**"
        rows.append((r["level"], sizes, f"{r['offset']:g}", *cells, met))
    header = ("level", "n, m, d", "offset", "value: error / bound", "x", "y", "")
    return table(header, rows) if rows else ""


def _failures(results: Results) -> str:
    lines = []
    for name, found in results["rows"].items():
        if found["outcome"] != "passed":
            lines.append(f"- row {name}: {found['outcome']}. {found.get('message', '')}")
        for record in found.get("records", ()):
            if "note" in record:
                lines.append(f"- row {name}: {record['note']}")
            elif name != "accuracy" and not sound(record):
                lines.append(f"- row {name}, {record['lane']}: computes something else")
    for name, found in results["tests"].items():
        if found["outcome"] not in ("passed", "skipped"):
            lines.append(f"- {name}: {found['outcome']}")
    return "\n".join(lines)


def main() -> None:
    """Print the tables of a results.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_report", description=__doc__)
    parser.add_argument("results", type=Path)
    sys.stdout.write(markdown(json.loads(parser.parse_args().results.read_text())))


if __name__ == "__main__":
    main()
