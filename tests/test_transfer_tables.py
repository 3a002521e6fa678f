"""The published accuracies, computed again, recorded, and as the documentation has them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import pytest

import fastmmd  # noqa: F401  the installed one, before its sources are on the path

SURF = [f"{source}-{target}" for source in "CAWD" for target in "CAWD" if source != target]
TASKS = [*SURF, "USPS-MNIST", "MNIST-USPS"]


@pytest.fixture
def tables(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(repository))
    from benchmarks import transfer_tables

    return transfer_tables


@pytest.mark.parametrize("task", TASKS)
def test_published(tables: ModuleType, task: str, real_data: Path) -> None:
    found = [round(value, 2) for value in tables.accuracies(real_data, task)]
    assert found == list(tables.PUBLISHED[task])


def test_record(tables: ModuleType) -> None:
    record = json.loads(tables.RESULT.read_text())["accuracy_percent"]
    assert set(record) == set(TASKS)
    assert {task: tuple(row.values()) for task, row in record.items()} == tables.PUBLISHED
    assert all(tuple(row) == tables.METHODS for row in record.values())


def test_documentation(tables: ModuleType, repository: Path) -> None:
    record = json.loads(tables.RESULT.read_text())["accuracy_percent"]
    text = (repository / "docs" / "transfer.md").read_text()
    rows = re.findall(r"^\| ([A-Z]+-[A-Z]+) \| (.+) \|$", text, re.MULTILINE)
    assert {task: cells.split(" | ") for task, cells in rows} == {
        task: [f"{value:.2f}" for value in row.values()] for task, row in record.items()
    }
    # What docs/choosing.md says of them.
    assert sum(max(row, key=row.get) == "JDA" for row in record.values()) == len(TASKS) - 1
    assert sum(row["TCA"] < row["none"] for row in record.values()) == 1


def test_command_names_missing_data(
    tables: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        tables.main(["--data", str(tmp_path / "absent")])
    assert "--data must name the folder" in capsys.readouterr().err


def test_documented_mean_matching(repository: Path) -> None:
    record = json.loads((repository / "benchmarks/results/mean-matching.json").read_text())
    text = " ".join((repository / "docs" / "transfer.md").read_text().split())
    assert record["relative_gap"] <= 1e-6
    assert f"take {record['seconds']} s and {record['extra_mib']} MiB on 2 threads" in text
    before, after = record["mmd2_unweighted"], record["mmd2_weighted"]
    assert f"falls from {before:.4f} to {after:.4f}" in text
