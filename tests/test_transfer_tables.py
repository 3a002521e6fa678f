"""The published accuracies, computed again and recorded."""

from __future__ import annotations

import json
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


def test_command_names_missing_data(
    tables: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        tables.main(["--data", str(tmp_path / "absent")])
    assert "--data must name the folder" in capsys.readouterr().err
