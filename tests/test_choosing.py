"""The page that compares methods against the numbers that were measured."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import alignment

ROOT = Path(__file__).parents[1]
FOLDER = "benchmarks/results/amd-epyc-zen5-avx512-4-threads"


def test_the_table_of_alignments_is_that_of_the_numbers() -> None:
    result = json.loads((ROOT / FOLDER / "alignment.json").read_text())
    page = (ROOT / "docs/choosing.md").read_text()
    assert alignment.table(result["rows"]) in page
    assert f"{result['settings']['epochs']} epochs" in page
    assert {row["method"] for row in result["rows"]} == {*alignment.METHODS, *alignment.OTHERS}
