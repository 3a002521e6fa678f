"""The page on trade-offs and its picture against the numbers that were measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import tradeoff

ROOT = Path(__file__).parents[1]
FOLDER = "benchmarks/results/amd-epyc-zen5-avx512-4-threads"


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / FOLDER / "tradeoff.json").read_text())
    return loaded


def test_tables_are_those_of_the_numbers(result: dict[str, Any]) -> None:
    page = (ROOT / "docs/tradeoff.md").read_text()
    for table in tradeoff.markdown(result["rows"]).split("\n\n"):
        assert table.strip() in page
    assert f"{result['machine']['threads']} threads" in page
    assert result["machine"]["torch"].split("+")[0] in page


def test_all_ways_were_measured(result: dict[str, Any]) -> None:
    rows = result["rows"]
    assert {row["way"] for row in rows} == {way.name for way in tradeoff.ways()}
    assert {row["n"] for row in rows} == set(tradeoff.SIZES)
    assert result["width"] == tradeoff.WIDTH


def test_advice() -> None:
    """Times that cross between two sizes, and the first size that reaches an error."""

    def row(way: str, n: int, seconds: float, error: float) -> dict[str, Any]:
        kind = {"way": way, "n": n, "seconds": seconds, "relative_error": error}
        return kind | {"peak_bytes": n << 20, "repeats": 1}

    rows = [
        row("exact", 1000, 1e-3, 0.08),
        row("exact", 4000, 16e-3, 0.04),
        row("features", 1000, 2e-3, 0.15),
        row("features", 4000, 8e-3, 0.06),
        row("linear", 1000, 1e-4, 0.5),
        row("linear", 4000, 4e-4, 0.25),
    ]
    text = tradeoff.markdown(rows)
    assert "| features | 2000 | 2 | 1.5 |" in text
    assert "| linear | less than 1000 | 40 | 6.2 |" in text
    assert "| exact | **1 ms, n = 1000** | **1 ms, n = 1000** | **16 ms, n = 4000** | — |" in text
    assert "| features | 2 ms, n = 1000 | 8 ms, n = 4000 | — | — |" in text
    assert "| linear | 4000 | 0.4 ms | 25.0 % | 1 | 4000 MiB |" in text
