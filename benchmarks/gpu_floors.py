"""The least times that the sizes of ``make gpu-check`` can take, for ``docs/cuda.md``.

``python -m benchmarks.gpu_floors --write`` puts them there, beside what was measured where there
are results of a GPU under ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

import torch

from benchmarks.gpu_machine import ROOT
from benchmarks.gpu_report import lanes, matrix_rate, table
from benchmarks.gpu_rows import Case
from benchmarks.gpu_work import stand_in, work

PAGE = ROOT / "docs" / "cuda.md"
BEGIN = "<!-- floors: begin (written by `python -m benchmarks.gpu_floors --write`) -->"
END = "<!-- floors: end -->"
# From the data sheet of the H100 SXM, dense: no measurement, and more than any program reaches.
SHEET = {"copy": 3.35e12, "bfloat16": 989e12, "float16": 989e12, "tf32": 495e12, "float32": 67e12}
CASES = {  # by the row that measures it
    "graph": Case(64, 256),
    "tf32": Case(8192, 256, precision="high"),
    "highest": Case(8192, 256),
    "wide": Case(4096, 2048, precision="high"),
    "tf32_rate": Case(16384, 256, precision="high"),
    "bf16_rate": Case(16384, 512, dtype="bfloat16"),
    "huge": Case(131072, 128, dtype="bfloat16"),
}


def rates_of_the_sheet() -> dict[str, Any]:
    """The data sheet in the form of a run."""
    records = [{"lane": name, "work": rate, "seconds": [1.0]} for name, rate in SHEET.items()]
    return {"rows": {"rates": {"records": records}}}


def floors(case: Case, results: dict[str, Any]) -> tuple[float, float] | None:
    """Seconds for the arithmetic that cannot be left out, and for the bytes in and out."""
    rate = matrix_rate(results, case.dtype, case.precision)
    copy = lanes(results, "rates").get("copy")
    if rate is None or copy is None:
        return None
    moved = 2 * case.bytes  # the samples in, their gradients out
    return case.flop("gradients") / rate, moved * median(copy["seconds"]) / copy["work"]


def measured() -> Iterator[tuple[str, dict[str, Any]]]:
    """The results of GPUs, by the folder's name."""
    for path in sorted((ROOT / "benchmarks" / "results").glob("*/results.json")):
        results = json.loads(path.read_text())
        if "sanitizer" in results:
            yield path.parent.name, results


def section() -> str:
    """The generated part of the page."""
    parts = [BEGIN, _table(rates_of_the_sheet(), with_times=False)]
    found = list(measured())
    for name, results in found:
        parts += [f"Measured, {name}:", _table(results, with_times=True)]
    if not found:
        parts.append("Measured: nothing yet, as no run on a GPU has been recorded.")
    return "\n\n".join([*parts, END])


def _table(results: dict[str, Any], with_times: bool) -> str:
    header = ["n = m, d", "operands", "road on a Hopper GPU", "TFLOP counted", "executed"]
    header += ["arithmetic, ms", "bytes, ms", "binds"] + ["measured, ms"] * with_times
    rows = []
    for row, case in CASES.items():
        found = floors(case, results)
        dtype = getattr(torch, case.dtype)
        road = stand_in(case.n, case.d, dtype, case.precision, [0] * 5, True)
        done = work(case.n, case.d, road, True)
        cells = ["", "", ""]
        if found:
            cells = [*(f"{1e3 * t:.2g}" for t in found), _binding(case, *found)]
        kind = case.dtype + (f", {case.precision}" if case.dtype == "float32" else "")
        sizes = [f"{flop / 1e12:.3g}" for flop in (case.flop("gradients"), done.executed)]
        cells = [f"{case.n}, {case.d}", kind, done.road, *sizes, *cells]
        if with_times:
            of = lanes(results, row).get("fastmmd")
            cells.append(f"{1e3 * median(of['seconds']):.2f}" if of else "")
        rows.append(cells)
    return table(header, rows)


LAUNCH = 5e-6  # seconds, about: a kernel cannot begin and end in less


def _binding(case: Case, arithmetic: float, moving: float) -> str:
    if max(arithmetic, moving) < LAUNCH:
        return "launches"
    return "arithmetic" if arithmetic > moving else "bytes"


def in_page(text: str) -> str:
    """The generated part that a page has."""
    return text[text.index(BEGIN) : text.index(END) + len(END)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, or write them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_floors", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.relative_to(ROOT)}")
    if parser.parse_args(arguments).write:
        page = PAGE.read_text()
        PAGE.write_text(page.replace(in_page(page), section()))
    else:
        print(section())


if __name__ == "__main__":
    main()
