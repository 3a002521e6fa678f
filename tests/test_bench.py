"""fastmmd bench: records, rows, the command, the fixture."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_runs import content, series, write

from fastmmd.bench import peak, plain, table
from fastmmd.bench import readme as readme_figures
from fastmmd.bench import rows as tracked
from fastmmd.bench.clock import sets_beyond
from fastmmd.bench.limits import Limits, key
from fastmmd.bench.record import Record, RecordError
from fastmmd.cli import main

ROOT = Path(__file__).parents[1]


# --- records -------------------------------------------------------------------------------------


def test_format_is_that_of_pytest_benchmark(tmp_path: Path) -> None:
    file = write(tmp_path / "run.json", content({"a row": series(0)}))
    done = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare", file],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "a row [fastmmd]" in done.stdout


@pytest.mark.parametrize("key", ["device", "cpu", "instruction_set", "threads", "torch"])
def test_other_machines_are_refused(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = content({"row": series(0)})
    b = copy.deepcopy(a)
    b["machine_info"][key] = "another"
    files = write(tmp_path / "a.json", a), write(tmp_path / "b.json", b)
    assert main(["bench", "compare", *files]) == 2
    assert f"cannot be compared: {key.replace('_', ' ')}" in capsys.readouterr().err


def damage(name: str) -> Any:
    made = content({"row": series(0)})
    if name == "schema":
        made["fastmmd_bench"]["schema"] = 99
    elif name == "foreign":
        made["benchmarks"] = [{"name": "x", "extra_info": {}, "stats": {"data": [1.0]}}]
    elif name == "no machine":
        del made["machine_info"]
    elif name == "negative":
        made["benchmarks"][0]["stats"]["data"][0] = -1.0
    elif name == "rounds":
        made["benchmarks"][0]["stats"]["data"].pop()
    elif name == "one lane":
        del made["benchmarks"][1]
    elif name == "list":
        made = [made]
    elif name == "machine":
        made["machine_info"] = []
    elif name == "commit":
        made["commit_info"]["id"] = 5
    elif name == "huge":
        made["benchmarks"][0]["stats"]["data"][0] = 10**400
    elif name == "limits":
        made["fastmmd_bench"]["limits"] = {"flop_per_second": 1.0}
    return made


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("schema", "schema 99"),
        ("foreign", "no row with a subject and a reference"),
        ("no machine", "machine_info"),
        ("negative", "not positive"),
        ("rounds", "not complete"),
        ("one lane", "no row with a subject"),
        ("list", "no 'benchmarks'"),
        ("machine", "must be objects"),
        ("limits", "limits"),
        ("commit", "commit_info.id 5"),
        ("huge", "OverflowError"),
    ],
)
def test_files_that_are_no_records(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write(tmp_path / "good.json", content({"row": series(0)}))
    bad = write(tmp_path / "bad.json", damage(name))
    assert main(["bench", "compare", good, bad]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "bad.json" in error
    with pytest.raises(RecordError, match=message):
        Record.load(bad)


def test_truncated_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = json.dumps(content({"row": series(0)}))
    (tmp_path / "a.json").write_text(text)
    (tmp_path / "b.json").write_text(text[: len(text) // 2])
    assert main(["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 2
    assert "only the beginning" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000])
def test_text_that_json_gives_up_on(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.json").write_text(text)
    assert main(["bench", "compare", *2 * [str(tmp_path / "a.json")]]) == 2
    assert "a.json: not JSON" in capsys.readouterr().err


@pytest.mark.parametrize(("factor", "status"), [(1.3, 1), (1.0, 0), (0.7, 0)])
def test_exit_status_is_1_for_worse_alone(
    factor: float, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [
        write(tmp_path / f"{i}.json", content({"row": series(i, f)}))
        for i, f in enumerate((1.0, factor))
    ]
    verdicts = tmp_path / "verdicts.json"
    assert main(["bench", "compare", *files, "--json", str(verdicts)]) == status
    assert "| row |" in capsys.readouterr().out
    (found,) = json.loads(verdicts.read_text())["verdicts"]
    assert (found["answer"] == "worse") == (status == 1)


# --- rows and runs -------------------------------------------------------------------------------


def test_rows_have_names_of_their_own_and_reasons() -> None:
    names = [row.name for row in tracked.rows()]
    assert len(set(names)) == len(names)
    assert all(row.why for row in tracked.rows())


def test_every_public_function_is_tracked() -> None:
    import fastmmd as fm

    tracked_ops = {row.op.split(",")[0] for row in tracked.rows()}
    functions = {name for name in fm.__all__ if name[0].islower()} - {"compat", "stats"}
    # Made of the forms or the sums that other rows time.
    functions -= {"class_conditional_mmd2", "contributions", "mmd2_variance", "power_criterion"}
    assert functions <= tracked_ops, functions - tracked_ops


def test_lanes_that_disagree_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    (row, *_) = tracked.select("coral", quick=True)
    wrong = tracked.Row(
        "coral", row.n, row.d, row.why, lambda x, y: (lambda x, y: x.sum(), row.make(x, y)[1])
    )
    with pytest.raises(ArithmeticError, match="differs from plain PyTorch"):
        wrong.prepare()


def test_other_libraries_beside_the_rows_that_they_can_compute() -> None:
    families = [op for op in {row.op for row in tracked.rows()} if op.startswith("mmd2, ")]
    with_keops = {op for op, beside in tracked.PEERS.items() if "KeOps" in beside}
    assert {op for op in families if op.split(", ")[1][0].isupper()} <= with_keops
    assert {"mmd2", "energy_distance", "kernel_sum", "witness"} <= with_keops
    assert tracked.PEERS.keys() <= {row.op for row in tracked.rows()}
    geomloss = {op for op, beside in tracked.PEERS.items() if "geomloss online" in beside}
    assert geomloss == {"mmd2", "mmd2, Laplacian", "mmd2, Energy", "energy_distance"}


@pytest.mark.parametrize("op", ["mmd2, Laplacian", "mmd2, Energy", "energy_distance"])
def test_other_libraries_compute_the_same(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("geomloss")
    beside = tracked.PEERS[op]
    chosen = {name: beside[name] for name in beside if name == "geomloss tensorized"}
    monkeypatch.setattr(tracked, "PEERS", {op: chosen})
    (row, *_) = (row for row in tracked.rows() if row.op == op)
    lanes = dataclasses.replace(row, n=32).prepare(peers=True)
    assert set(lanes.calls) == {"fastmmd", "reference", *chosen}


def test_gradients_of_other_libraries_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_sided(simple: Any, x: Any, y: Any) -> Any:
        return lambda x, y: simple(x, y.detach()) + 0 * y.sum()

    another = tracked.PEERS["mmd2"]["KeOps"]._replace(modules=(), make=one_sided)
    monkeypatch.setattr(tracked, "PEERS", {"coral": {"another": another}})
    forward, backward = tracked.select("coral", quick=True)
    assert "another" in forward.prepare(peers=True).calls
    with pytest.raises(ArithmeticError, match="another computes something else"):
        backward.prepare(peers=True)


def test_half_precision_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    beside = {name: p for name, p in tracked.PEERS["mmd2"].items() if name.endswith("-style")}
    monkeypatch.setattr(tracked, "PEERS", {"mmd2": beside})
    for row in tracked.select("mmd2, .*bfloat16", quick=True):
        assert row.prepare(peers=True).calls.keys() == {"fastmmd", "reference", "TLlib-style"}


def test_library_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(simple: Any, x: Any, y: Any) -> Any:
        raise OSError("no compiler")

    peers = {"KeOps": tracked.PEERS["kernel_sum"]["KeOps"]._replace(modules=(), make=broken)}
    monkeypatch.setattr(tracked, "PEERS", {"kernel_sum": peers})
    options = ["--quick", "--peers", "--select", "kernel_sum", "-o", str(tmp_path / "run.json")]
    assert main(["bench", "run", *options]) == 2
    assert "KeOps fails: OSError('no compiler')" in capsys.readouterr().err


def test_permutations_by_product() -> None:
    (row,) = tracked.select("two_sample_test", quick=True)
    lanes = dataclasses.replace(row, n=16).prepare(peers=True)
    assert "K @ labellings" in lanes.calls
    x, y = row.samples()
    torch.manual_seed(0)
    _, by_product = plain.permuted_by_product(x[:16], y[:16], 400)
    _, by_index = plain.permuted_by_index(x[:16], y[:16], 400)
    spread = by_index.std() / 400**0.5
    assert (by_product.mean() - by_index.mean()).abs() < 6 * spread


def test_peak_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    monkeypatch.setattr(peak, "program", peak.program.__wrapped__)  # forgets what it compiled
    with pytest.raises(peak.CompilerError, match="/no/such/compiler"):
        peak.program("baseline")
    limits = Limits("cpu", 1, {torch.float32, torch.bfloat16})
    limits.sample()
    assert "/no/such/compiler" in limits.not_measured
    # On the CPU halves are computed with in float32.
    assert limits.rates.keys() == {"flop_per_second", "bytes_per_second"}
    run = content({"row": series(0)})
    run["fastmmd_bench"]["limits"] = limits.rates
    assert "peak of fused multiply-adds not measured" in table.run(Record.parse(run))


@pytest.mark.parametrize("found", ["", "exit 3", "echo fast"])
def test_peak_that_does_not_run(
    found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program"
    if found:
        program.write_text(f"#!/bin/sh\n{found}\n")
        program.chmod(0o755)
    monkeypatch.setattr(peak, "program", lambda instruction_set: program)
    limits = Limits("cpu", 1, {torch.float32})
    limits._sample_peaks()
    assert "does not run" in limits.not_measured


def test_limits_of_types() -> None:
    names = [
        key("multiply-adds", dtype, device)
        for device in ("cpu", "cuda")
        for dtype in (torch.float32, torch.bfloat16, torch.float64)
    ]
    fma = "fma_flop_per_second"
    assert names == [fma, fma, f"{fma}_float64", fma, f"{fma}_bfloat16", f"{fma}_float64"]


def test_inputs_that_take_turns() -> None:
    """What a GPU is given, on the CPU: more samples than its cache holds."""
    (row, *_) = tracked.select("coral.*forward$", quick=True)
    size = 2 * row.n * row.d * 4
    seen: list[int] = []

    def make(x: Any, y: Any) -> Any:
        ours, simple = row.make(x, y)

        def watched(x: Any, y: Any) -> Any:
            seen.append(x.data_ptr())
            return ours(x, y)

        return watched, simple

    lanes = dataclasses.replace(row, make=make).prepare(cache=3 * size)
    seen.clear()
    for _ in range(16):
        lanes.calls["fastmmd"]()
    assert len(set(seen)) == 8  # twice what the cache holds, and two more
    assert seen[:8] == seen[8:]
    assert sets_beyond(0, size) == 1


@pytest.mark.parametrize("pattern", ["no such operation", "("])
def test_empty_selection(pattern: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run.json"
    assert main(["bench", "run", "--quick", "--select", pattern, "-o", str(out)]) == 2
    assert "--select" in capsys.readouterr().err
    assert not out.exists()


def test_device_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert main(["bench", "run", "--device", "cuda", "-o", str(tmp_path / "x.json")]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_run_and_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastmmd.bench import peers

    missing = peers.PEERS["mmd2"]["KeOps"]._replace(modules=("no_such_library",))
    monkeypatch.setattr(tracked, "PEERS", {"mmd2": {"KeOps": missing}})
    out = tmp_path / "run.json"
    arguments = ["--quick", "--threads", "1", "--select", "mmd2, n=32 .*backward", "--peers"]
    assert main(["bench", "run", *arguments, "-o", str(out)]) == 0
    run = Record.load(out)
    (only,) = run.series.values()
    assert len(only.subject) >= 9
    assert only.info["flop"] == 2 * 6 * 32 * 32 * 256
    assert only.info["error"] < 1e-3
    assert only.info["share_of_limit"] > 0
    assert 2 * 32 * 256 * 4 <= only.info["peak_bytes"] < 2**20  # the gradients, and little else
    assert run.machine["threads"] == 1
    assert run.limits["flop_per_second"] > 0
    # The peak is no more than twice that of the best code there is for matrix products.
    assert run.limits["fma_flop_per_second"] > 0.5 * run.limits["flop_per_second"]
    assert only.info["share_of_peak"] > 0
    assert main(["bench", "report", str(out), str(out), "-o", str(tmp_path / "report")]) == 0
    text = (tmp_path / "report" / "table.md").read_text()
    assert "not installed" in text
    assert only.name in text
    for name in ("speedup", "roofline", "history"):
        for ending in ("png", "svg"):
            assert (tmp_path / "report" / f"{name}.{ending}").stat().st_size > 1000
    capsys.readouterr()


def test_report_of_a_history_over_machines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (content({"row": series(i)}) for i in range(2))
    b["machine_info"] = b["machine_info"] | {"cpu": "another"}
    files = write(tmp_path / "a.json", a), write(tmp_path / "b.json", b)
    out = str(tmp_path / "report")
    assert main(["bench", "report", *files, "-o", out]) == 2
    assert "cannot be compared" in capsys.readouterr().err
    assert main(["bench", "report", "--like-last", *files, "-o", out]) == 0
    assert "another" in (tmp_path / "report" / "table.md").read_text()
    assert not (tmp_path / "report" / "history.png").exists()


def test_times() -> None:
    shown = [table.time(t) for t in (2.5e-7, 4.4e-5, 1.23e-3, 0.456, 123.4, math.nan)]
    assert shown == ["0.250 µs", "44.0 µs", "1.23 ms", "456 ms", "123 s", ""]


def test_planted_slow_downs_of_the_documentation() -> None:
    text = " ".join((ROOT / "docs" / "tracking.md").read_text().split())
    (name,) = re.findall(r"`(benchmarks/results/\S+/planted\.json)`", text)
    found = json.loads((ROOT / name).read_text())
    assert (
        f"{found['found']} of {found['trials']} slow-downs were found, and of {found['trials']}"
        " comparisons of two builds of the same code"
        f" {found['false_alarms'] or 'none'} raised an alarm"
        f" (commit {found['commit']['id'][:9]}, `{name}`)"
    ) in text


# --- the README ----------------------------------------------------------------------------------


def test_figures_of_the_readme_are_those_of_the_results() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    (table_of,) = re.findall(r"\[All figures of that run\]\((.*?)/table.md\)", text)
    assert readme_figures.replaced(text, readme_figures.block(ROOT / table_of, readme)) == text, (
        f"write them anew: fastmmd bench report --readme README.md {table_of}"
    )


def test_readme_without_a_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (results,) = (ROOT / "benchmarks" / "results").glob("*/results.json")
    readme = tmp_path / "README.md"
    readme.write_text("# no marks\n")
    assert main(["bench", "report", "--readme", str(readme), str(results.parent)]) == 2
    assert "no place for figures" in capsys.readouterr().err
    assert main(["bench", "report", "--readme", str(readme), str(tmp_path)]) == 2
    assert "no results of make bench" in capsys.readouterr().err


# --- the fixture ---------------------------------------------------------------------------------


def test_bench_pair(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["fastmmd.testing"]\n')
    (tmp_path / "test_mine.py").write_text(
        "import time\n"
        "def test_loss(bench_pair):\n"
        "    found = bench_pair(lambda: time.sleep(1e-3), lambda: time.sleep(4e-3), seconds=0.2)\n"
        "    assert found.ratio > 1.5\n"
        "    bench_pair(lambda: None, lambda: None, name='another', seconds=0.1)\n"
    )
    file = tmp_path / "pairs.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, f"--bench-pairs={file}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    run = Record.load(file)
    assert list(run.series) == ["test_mine.py::test_loss", "another"]
    done = subprocess.run(
        [*command, "--bench-pairs=no/such/folder/x.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    assert "there is no folder" in done.stderr + done.stdout
    # Nothing is left of an earlier run.
    subprocess.run([*command, f"--bench-pairs={file}", "-k", "none"], cwd=tmp_path, check=False)
    assert not file.exists()


def test_bench_pair_of_two_devices() -> None:
    from fastmmd.testing import BenchPair

    pair = BenchPair("row", [], {"cuda"})
    with pytest.raises(ValueError, match="of one device"):
        pair(lambda: None, lambda: None)
