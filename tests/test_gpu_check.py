"""``make gpu-check`` without a GPU: every phase at toy sizes, and what becomes of its findings."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import fastmmd  # noqa: F401  the installed one, before its sources are on the path

PHASES = ["build", "tests", "sanitizer", "bench"]
# The others compile at run time, for tens of seconds.
QUICK = (
    "facts,rates,tf32,highest,eager,graph,bf16_rate,tf32_rate,wide,accuracy,memory,features,huge,"
    "roads"
)


@pytest.fixture(autouse=True)
def _benchmarks(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(repository))


def gpu_check(repository: Path, *options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu_check", *map(str, options)]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True)


def test_every_phase_without_a_gpu(repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("--out", out, "--dry-run", "--commit", "abc123", "--rows", QUICK)
    done = gpu_check(repository, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(out.iterdir())) <= 8
    results = json.loads((out / "results.json").read_text())
    assert [phase["name"] for phase in results["phases"]] == PHASES
    assert results["commit"] == "abc123"
    assert results["device"]
    assert set(results["rows"]) == set(QUICK.split(",")) - {"facts"}
    assert {row["outcome"] for row in results["rows"].values()} == {"passed"}
    for record in results["rows"]["tf32"]["records"]:
        assert record["flop"] > 0
        assert record["seconds"]
    table = (out / "table.md").read_text()
    assert table in done.stdout
    assert "dry run" in table
    for title in ("Figures", "Rates", "Times", "Accuracy"):
        assert f"### {title}" in table


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_says_what_is_missing(repository: Path, tmp_path: Path) -> None:
    done = gpu_check(repository, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "no CUDA device" in done.stderr
    assert not (tmp_path / "out").exists()


def test_make_takes_the_python_it_is_given(repository: Path) -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "-n", "gpu-check",
         "PYTHON=another-python", "OUT=a-folder"],
        cwd=repository, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (line,) = done.stdout.splitlines()
    assert 'another-python -m benchmarks.gpu_check --out "a-folder"' in line
    assert ".venv/bin/python" not in line


def test_within_nine_minutes() -> None:
    from benchmarks import gpu_check

    assert sum(gpu_check.BUDGETS.values()) <= gpu_check.TOTAL < 9 * 60


def test_nothing_comes_from_a_network() -> None:
    from benchmarks import gpu_check

    command = gpu_check.build_command(Path("site"))
    assert command[0] == sys.executable
    assert {"--no-build-isolation", "--no-deps", "--no-index", "--target"} <= set(command)


def test_commit_and_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.gpu_machine import COMMIT, commit_of, digest

    assert commit_of(tmp_path) == "unknown"
    monkeypatch.setenv(COMMIT, "of the environment")
    assert commit_of(tmp_path) == "of the environment"
    before = digest(tmp_path)
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "kernel.cu").write_text("// a kernel")
    assert digest(tmp_path) != before


@pytest.mark.parametrize(
    ("status", "log", "verdict"),
    [
        (0, "all calls were made\n========= ERROR SUMMARY: 0 errors", "clean"),
        (9, "========= ERROR SUMMARY: 2 errors", "found: 2 errors"),
        (9, "========= RACECHECK SUMMARY: 1 hazard displayed", "found: 1 hazard displayed"),
        (1, "========= Error: Device not supported", "refused (Device not supported)"),
        (139, "", "crashed (status 139)"),
        (None, "", "cut"),
    ],
)
def test_sanitizer_verdict(status: int | None, log: str, verdict: str) -> None:
    from benchmarks import gpu_check

    assert gpu_check.sanitizer_verdict(status, log) == verdict


@pytest.mark.parametrize(
    ("outcomes", "proved"),
    [
        ((), False),  # the phase was cut before they began
        (("skipped",), False),
        (("passed", "skipped"), True),
        (("passed", "cut"), False),
        (("passed", "failed"), False),
        (("hung (over 60 s)",), False),
    ],
)
def test_clusters_are_proved_before_they_are_measured(
    outcomes: tuple[str, ...], proved: bool
) -> None:
    from benchmarks import gpu_check

    tests = {f"test_cuda.py::test_clusters[{i}]": {"outcome": o} for i, o in enumerate(outcomes)}
    tests["test_cuda.py::test_panels"] = {"outcome": "passed"}
    assert gpu_check.has_proved(tests, "test_clusters") is proved


# --- what hangs and what crashes -----------------------------------------------------------------

ENTRIES = """
import os, sys, time
from pathlib import Path
from benchmarks.gpu_journal import Journal
journal = Journal(Path(sys.argv[1]))
for entry in ("first", "hangs", "second", "crashes", "third"):
    if entry in journal.ended():
        continue
    journal.begin(entry)
    if entry == "hangs":
        time.sleep(60)
    if entry == "crashes":
        os._exit(11)
    journal.end(entry, "passed")
"""


def supervised(
    repository: Path, tmp_path: Path, script: str, seconds: float
) -> tuple[str, dict[str, Any]]:
    from benchmarks.gpu_journal import Journal, supervise

    journal = Journal(tmp_path / "journal")
    status = supervise(
        [sys.executable, "-c", script, str(journal.path)],
        journal,
        tmp_path / "log",
        lambda entry: 3.0,
        time.monotonic() + seconds,
        poll=0.02,
        cwd=repository,
    )
    return status, {name: end["outcome"] for name, end in journal.ended().items()}


def test_goes_on_after_what_hangs_or_crashes(repository: Path, tmp_path: Path) -> None:
    status, outcomes = supervised(repository, tmp_path, ENTRIES, 60)
    assert status == "done"
    assert outcomes == {
        "first": "passed",
        "hangs": "hung (over 3 s)",
        "second": "passed",
        "crashes": "ended the process (status 11)",
        "third": "passed",
    }


def test_is_cut_at_the_deadline(repository: Path, tmp_path: Path) -> None:
    status, outcomes = supervised(repository, tmp_path, ENTRIES, 0.5)
    assert status == "cut"
    assert "third" not in outcomes


def test_gives_up_without_progress(repository: Path, tmp_path: Path) -> None:
    status, outcomes = supervised(repository, tmp_path, "raise SystemExit(3)", 60)
    assert (status, outcomes) == ("failed (status 3)", {})


def test_half_a_line_is_passed_over(tmp_path: Path) -> None:
    from benchmarks.gpu_journal import Journal

    journal = Journal(tmp_path / "journal")
    journal.begin("first")
    with journal.path.open("a") as file:
        file.write('{"end": "fir')
    assert journal.open()
    journal.end("first", "passed")
    assert list(journal.ended()) == ["first"]


TESTS = """
import pytest

def test_first(): pass

@pytest.mark.parametrize("case", ["a b"])
def test_lost(case): raise RuntimeError("CUDA error: an illegal memory access was encountered")

def test_fails(): assert False

def test_skips(): pytest.skip("for a reason")

@pytest.fixture
def broken(): raise ValueError("in the fixture")

def test_without_its_fixture(broken): pass
"""


def test_goes_on_where_the_device_is_lost(repository: Path, tmp_path: Path) -> None:
    from benchmarks.gpu_journal import LOST, Journal

    (tmp_path / "test_it.py").write_text(TESTS)
    journal = Journal(tmp_path / "journal")
    environment = {"PYTHONPATH": str(repository), "FASTMMD_GPU_JOURNAL": str(journal.path)}
    command = [sys.executable, "-m", "pytest", "-p", "benchmarks.gpu_pytest"]
    command += ["--rootdir", str(tmp_path), "test_it.py"]

    def run() -> int:
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True
        ).returncode

    assert run() == LOST
    assert list(journal.ended()) == ["test_it.py::test_first", "test_it.py::test_lost[a b]"]
    assert run() == 1
    outcomes = {name.partition("::")[2]: end["outcome"] for name, end in journal.ended().items()}
    assert outcomes == {
        "test_first": "passed",
        "test_lost[a b]": "failed",
        "test_fails": "failed",
        "test_skips": "skipped",
        "test_without_its_fixture": "failed",
    }


def test_passes_over_the_like_of_what_hung(repository: Path, tmp_path: Path) -> None:
    from benchmarks.gpu_journal import Journal

    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('k', [0, 1, 2])\n"
        "def test_many(k): pass\n"
        "def test_many_more(): pass\n"
    )
    journal = Journal(tmp_path / "journal")
    journal.end("test_it.py::test_many[1]", "hung (over 45 s)")
    command = [sys.executable, "-m", "pytest", "-p", "benchmarks.gpu_pytest"]
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path), "test_it.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(repository), "FASTMMD_GPU_JOURNAL": str(journal.path)},
        capture_output=True,
    )
    assert done.returncode == 0
    assert list(journal.ended()) == ["test_it.py::test_many[1]", "test_it.py::test_many_more"]


def test_a_table_that_fails_is_not_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import gpu_check

    def fail(results: object) -> str:
        raise KeyError("rows")

    monkeypatch.setattr(gpu_check, "markdown", fail)
    check = gpu_check.Check(tmp_path, True, "abc123", None, "native")
    check.write()
    assert json.loads((tmp_path / "results.json").read_text())["commit"] == "abc123"
    assert "KeyError" in (tmp_path / "table.md").read_text()


# --- the report ----------------------------------------------------------------------------------


def results(**rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "date": "2030-01-01T00:00",
        "dry": False,
        "commit": "abc",
        "sources": "0" * 64,
        "driver": "1",
        "torch": "2",
        "cuda": "3",
        "nvcc": "4",
        "python": "5",
        "device": {"name": "GPU", "capability": "9.0"},
        "phases": [],
        "tests": {"tests/test_a.py::test_b": {"outcome": "failed"}},
        "rows": {name: {"outcome": "passed", "records": of} for name, of in rows.items()},
    }


def lane(name: str, seconds: list[float], error: float = 1e-6, **info: Any) -> dict[str, Any]:
    case = {"n": 8192, "d": 256, "dtype": "float32", "precision": "high", "mode": "gradients"}
    sizes = {"flop": 2e11, "sample_bytes": 1 << 24, "clock": "events"}
    return {"lane": name, **case, **sizes, "seconds": seconds, "error": {"value": error}, **info}


def test_figures_are_ratios_within_rounds() -> None:
    from benchmarks.gpu_report import figures, markdown

    made = results(
        tf32=[lane("fastmmd", [1e-3, 2e-3, 1e-3]), lane("plain", [3e-2, 8e-2, 3e-2])],
        tf32_rate=[lane("fastmmd", [1e-3]), {"lane": "torch.mm", "flop": 8e11, "seconds": [2e-3]}],
        graph=[lane("fastmmd", [2e-5, 2e-5], clock="cold"), lane("fastmmd", [1e-5], clock="warm")],
        memory=[
            {"lane": "fastmmd", "dtype": "float32", "precision": level, "n": 1, "d": 1}
            | {"peak_memory": peak, "sample_bytes": 100}
            for level, peak in (("highest", 350), ("high", 500))
        ],
        huge=[],
    )
    found = {f.name: (f.spread.median, f.verdict) for f in figures(made)}
    assert [pytest.approx(value[0]) for value in found.values()] == [30, 0.5, 20, 5]
    assert [value[1] for value in found.values()] == ["met", "met", "met", "missed"]
    assert "test_b: failed" in markdown(made)


def test_a_wrong_lane_counts_for_nothing() -> None:
    from benchmarks.gpu_report import figures, markdown

    for error in (0.5, float("nan")):
        made = results(tf32=[lane("fastmmd", [1e-3], error), lane("plain", [3e-2])])
        assert not list(figures(made))
        assert "row tf32, fastmmd: computes something else" in markdown(made)


def test_floors_come_from_the_rates_of_the_run() -> None:
    from benchmarks.gpu_report import markdown, matrix_rate

    kinds = {"copy": 3e12, "bfloat16": 8e14, "float16": 8e14, "tf32": 4e14, "float32": 5e13}
    rates = [{"lane": name, "work": rate, "seconds": [1.0]} for name, rate in kinds.items()]
    made = results(rates=rates, tf32=[lane("fastmmd", [1e-3], executed=3e11, road="panels")])
    assert matrix_rate(made, "float32", "high") == 4e14
    assert matrix_rate(made, "float32", "medium") == 8e14
    assert matrix_rate(made, "float32", "highest") == 4e14 / 3
    (row,) = [line for line in markdown(made).splitlines() if line.startswith("| tf32 | fastmmd")]
    cells = [cell.strip() for cell in row.split("|")]
    # counted and executed TFLOP, TFLOP/s, share, and the floors in milliseconds
    assert cells[7:14] == ["0.2", "0.3", "200", "50 %", "0.5", "0.0112", "panels"]


@pytest.mark.parametrize(
    ("n", "d", "precision", "dtype", "road", "times"),
    [
        (64, 256, "highest", torch.float32, "small, multiply-adds of float32", None),
        (16384, 512, "highest", torch.bfloat16, "panels, wgmma in clusters of bfloat16", 1),
        (4096, 2048, "high", torch.float32, "panels, wgmma in clusters of tf32", 1),
        # three products of TF32, and one of float32 twice as large
        (4096, 2048, "highest", torch.float32, "panels, mma.sync of 3 x tf32", 5 / 3),
    ],
)
def test_arithmetic_of_a_road(
    n: int, d: int, precision: str, dtype: torch.dtype, road: str, times: float | None
) -> None:
    from benchmarks.cells import Cell
    from benchmarks.gpu_work import stand_in, work

    found = work(n, d, stand_in(n, d, dtype, precision, [0] * 5, True), True)
    assert found.road == road
    if times is not None:  # but for the tiles on the diagonal
        assert found.executed == pytest.approx(times * Cell(n, d, 0).flop("gradients"), rel=0.02)


def test_roads_that_are_avoided(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.gpu_work import STAND_IN, avoiding, fusing, taken, without_clusters
    from fastmmd.checks import BIASED
    from fastmmd.ops import _cuda, _roads

    needs = (True, True, False, False, False, False)
    facts = (4096, 4096, (64,), torch.float32, "highest", STAND_IN, (0,) * 5, BIASED, False, needs)

    monkeypatch.setattr(_cuda._Call, "make", lambda self, road, *args: None)

    def call() -> None:
        _cuda._Call.make(None, _cuda.choose(*facts, _roads.ALL_MODES), 0)  # type: ignore[arg-type]

    first = taken(call)
    assert first is not None

    def another() -> None:
        with avoiding(first.mode):
            call()

    second = taken(another)
    assert second is not None
    assert second.mode != first.mode
    assert taken(call) == first

    facts = (4096, 4096, (256,), torch.float32, "high", *facts[5:])
    clusters = taken(call)
    assert clusters is not None
    assert clusters.products == _roads.CLUSTERS
    for change, road in (
        (without_clusters, clusters._replace(products=_roads.WGMMA)),
        (fusing, clusters._replace(mode="fused", products=_roads.MMA)),
    ):
        with change():
            assert taken(call) == road


def test_floors_of_the_documentation() -> None:
    from benchmarks import gpu_floors

    written = gpu_floors.in_page(gpu_floors.PAGE.read_text())
    assert written == gpu_floors.section(), "run: python -m benchmarks.gpu_floors --write"


def test_floors_beside_what_was_measured() -> None:
    from benchmarks import gpu_floors

    made = gpu_floors.rates_of_the_sheet()
    made["rows"]["tf32"] = {"records": [lane("fastmmd", [2e-3, 1e-3, 3e-3])]}
    case = gpu_floors.CASES["tf32"]
    assert gpu_floors.floors(case, made) == pytest.approx(
        (206.2e9 / 495e12, 33.55e6 / 3.35e12), rel=1e-3
    )
    assert gpu_floors.floors(case, {"rows": {}}) is None
    assert "| arithmetic | 2.00 |" in gpu_floors._table(made, with_times=True)


def test_an_empty_run_has_a_table() -> None:
    from benchmarks.gpu_report import markdown

    made = results()
    made["rows"] = {"tf32": {"outcome": "hung (over 40 s)"}, "wide": {"outcome": "failed"}}
    assert "row tf32: hung" in markdown(made)
