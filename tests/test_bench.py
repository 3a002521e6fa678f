"""fastmmd bench: records, verdicts, builds, the command, the fixture."""

from __future__ import annotations

import copy
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastmmd.bench import readme as readme_figures
from fastmmd.bench import record as records
from fastmmd.bench import rows as tracked
from fastmmd.bench import table, verdict
from fastmmd.bench.builds import BuildError, build, revision
from fastmmd.bench.interleave import Rounds
from fastmmd.bench.record import Record, RecordError, Series
from fastmmd.bench.verdict import Thresholds, compare, judge
from fastmmd.cli import main

MACHINE = {
    "device": "cpu",
    "cpu": "a processor",
    "instruction_set": "avx2",
    "threads": 2,
    "torch": "2.13.0",
    "compiler": "GCC 12",
}
ROOT = Path(__file__).parents[1]


def series(
    seed: int, factor: float = 1.0, noise: float = 0.02, rounds: int = 30, time: float = 1e-3
) -> Series:
    """Times of a machine whose speed wanders: log-normal, correlated from round to round."""
    draw = np.random.default_rng(seed)
    drift = np.cumsum(0.05 * draw.standard_normal(rounds))
    lanes = (
        tuple(t * np.exp(drift + noise * draw.standard_normal(rounds)))
        for t in (time * factor, 5 * time)
    )
    return Series("row", *lanes)


def content(of: dict[str, Series], **changes: Any) -> dict[str, Any]:
    entries = []
    for name, s in of.items():
        rounds = Rounds(
            {"fastmmd": [*s.subject], "reference": [*s.reference]},
            dict.fromkeys(("fastmmd", "reference"), 1),
        )
        entries += [records.entry(name, lane, rounds, lane, {}) for lane in rounds.seconds]
    made = records.content(MACHINE, {"id": "0" * 40}, entries)
    return made | changes


def write(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


# --- verdicts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "answer"), [(1.25, "worse"), (0.75, "better"), (1.0, "same")])
def test_verdict_under_noise(factor: float, answer: str) -> None:
    found = [
        judge(series(2 * i), series(2 * i + 1, factor), False, Thresholds()).answer
        for i in range(20)
    ]
    assert found.count(answer) >= 19, found


def test_machine_out_of_control_is_unclear() -> None:
    wild = [
        judge(series(i, noise=1.5), series(i + 50, noise=1.5), False, Thresholds())
        for i in range(20)
    ]
    assert [v.answer for v in wild].count("unclear") >= 18, [v.answer for v in wild]


def test_paired_rounds_need_no_reference() -> None:
    base = series(0, noise=0.0)
    head = Series("row", tuple(1.1 * t for t in base.subject), tuple(reversed(base.reference)))
    found = judge(base, head, True, Thresholds())
    assert found.answer == "worse"
    assert found.change == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1)


def test_one_run_a_side_needs_twice_the_change() -> None:
    found = [judge(series(2 * i), series(2 * i + 1, 1.08), False, Thresholds()) for i in range(10)]
    assert {v.answer for v in found} <= {"unclear", "same"}


def joined(seeds: range, factor: float, offset: float = 0.0) -> Series:
    """Runs in processes that differ by themselves."""
    draw = np.random.default_rng(seeds.start)
    runs = [series(i, factor * np.exp(offset * draw.standard_normal())) for i in seeds]
    whole = runs[0]
    for run in runs[1:]:
        whole = whole.followed_by(run)
    return whole


def test_several_runs_a_side() -> None:
    found = judge(joined(range(4), 1.0), joined(range(4, 8), 1.1), False, Thresholds())
    assert found.answer == "worse"
    assert found.rounds == 120
    # Processes that differ by 4 % of themselves: seldom an alarm.
    alarms = [
        judge(
            joined(range(10 * i, 10 * i + 4), 1.0, 0.04),
            joined(range(10 * i + 4, 10 * i + 8), 1.0, 0.04),
            False,
            Thresholds(),
        ).answer
        in ("worse", "better")
        for i in range(20)
    ]
    assert sum(alarms) <= 1


def test_few_rounds_are_unclear() -> None:
    assert (
        judge(series(0, rounds=8), series(1, 2.0, rounds=8), False, Thresholds()).answer
        == "unclear"
    )


def test_confidence_grows_with_the_number_of_rows() -> None:
    assert Thresholds().of_rows(1).confidence == 0.99
    assert Thresholds().of_rows(50).confidence == pytest.approx(0.999)


def test_folders_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for side, factor in (("base", 1.0), ("head", 1.0)):
        (tmp_path / side).mkdir()
        for run in range(3):
            made = content({"row": series(len(side) + 10 * run, factor)})
            write(tmp_path / side / f"{run}.json", made)
    assert main(["bench", "compare", str(tmp_path / "base"), str(tmp_path / "head")]) == 0
    assert "1 same" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert main(["bench", "compare", str(tmp_path / "base"), str(tmp_path / "empty")]) == 2
    assert "no .json file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--select", "nosuch"], "selects no row"),
        (["--select", "("], "no regular expression"),
        (["--quick"], "--quick is for revisions"),
        (["--save", "x"], "--save is for revisions"),
        (["--threads", "2"], "--threads is for revisions"),
        (["--device", "cuda"], "--device is for revisions"),
    ],
)
def test_options_of_files(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "a.json", content({"row": series(0)}))
    assert main(["bench", "compare", file, file, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_other_plain_forms_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = content({"row": series(0)}), content({"row": series(1)})
    b["fastmmd_bench"]["plain_forms"] = "changed"
    main(["bench", "compare", write(tmp_path / "a.json", a), write(tmp_path / "b.json", b)])
    assert "plain forms differ" in capsys.readouterr().err


def test_absolute_threshold() -> None:
    base, head = series(0, time=2e-6), series(1, 1.3, time=2e-6)
    assert judge(base, head, False, Thresholds(absolute=2e-6)).answer == "same"
    assert judge(base, head, False, Thresholds(absolute=1e-9)).answer == "worse"


def test_busy_through_all_rounds_of_a_row() -> None:
    # A few rounds that are as fast as ever show that the code is.
    base = series(0, noise=0.01)
    slow = [t * (1 if i % 7 == 0 else 1.5) for i, t in enumerate(series(1, noise=0.01).subject)]
    head = Series("row", tuple(slow), series(1, noise=0.01).reference)
    assert judge(base, head, False, Thresholds()).answer == "unclear"


def test_verdicts_do_not_depend_on_the_run() -> None:
    assert judge(series(0), series(1), False, Thresholds()) == judge(
        series(0), series(1), False, Thresholds()
    )


def test_new_and_gone_rows() -> None:
    base = Record.parse(content({"a": series(0), "b": series(1)}))
    head = Record.parse(content({"b": series(1), "c": series(2)}))
    answers = {v.row: v.answer for v in compare(base, head)}
    assert answers == {"b": "same", "c": "new", "a": "gone"}
    text = table.comparison(compare(base, head), "base", "head", MACHINE)
    assert "1 same, 1 new, 1 gone" in text
    assert "nan" not in text


def test_bootstrap_keeps_neighbours_together() -> None:
    made = verdict._resampled(np.arange(27.0), np.random.default_rng(0))
    assert made.shape == (verdict._RESAMPLES, 27)
    assert (np.diff(made.reshape(-1, 3)) == 1).all()


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

    missing = peers.PEERS["KeOps"]._replace(modules=("no_such_library",))
    monkeypatch.setattr(tracked, "PEERS", {"KeOps": missing})
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


# --- revisions -----------------------------------------------------------------------------------


def test_names_that_are_neither_file_nor_revision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "compare", "no-such-revision", "nor-this", "--quick"]) == 2
    assert "'no-such-revision' is neither a file nor a revision" in capsys.readouterr().err
    file = write(tmp_path / "a.json", content({"row": series(0)}))
    assert main(["bench", "compare", file, "HEAD"]) == 2
    assert "two files of runs or two revisions" in capsys.readouterr().err


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose build fails at once."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "broken"\nbackend-path = ["."]\n'
        '[project]\nname = "fastmmd"\nversion = "0"\n'
    )
    (folder / "broken.py").write_text(
        "def build_wheel(*a, **k): raise RuntimeError('a file that does not compile')\n"
    )
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "broken"]):
        subprocess.run([*git, *command], cwd=folder, check=True)
    return folder


def test_revision_that_does_not_build(checkout: Path, tmp_path: Path) -> None:
    assert len(revision("HEAD", checkout)) == 40
    with pytest.raises(
        BuildError, match=r"HEAD does not build:[\s\S]*a file that does not compile"
    ):
        build("HEAD", checkout, tmp_path / "into")
    trees = subprocess.run(
        ["git", "worktree", "list"], cwd=checkout, capture_output=True, text=True, check=True
    )
    assert len(trees.stdout.splitlines()) == 1


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This package as a build that lies in a folder of its own."""
    import fastmmd
    from fastmmd import ops

    folder: Path = tmp_path_factory.mktemp("build")
    (folder / "fastmmd").mkdir()
    package = Path(fastmmd.__file__).parent
    for path in (*package.iterdir(), Path(ops.native.__file__)):  # type: ignore[attr-defined]
        target = folder / "fastmmd" / path.name
        if not target.exists() and path.name != "__pycache__":
            target.symlink_to(path)
    return folder


def test_duel_of_a_build_with_itself(installed: Path) -> None:
    from fastmmd.bench.measure import BASE, HEAD, duel

    rows = tracked.select("mmd2, n=32 .*forward$", quick=True)
    heard: list[str] = []
    found = duel(
        {BASE: installed, HEAD: installed},
        {BASE: {"id": "a"}, HEAD: {"id": "b"}},
        rows,
        "cpu",
        1,
        0.3,
        1,
        Thresholds(),
        heard.append,
    )
    (v,) = found.verdicts
    assert v.rounds >= 9
    base, head = (Record.parse(c) for c in (found.base, found.head))
    assert base.rounds_with == head.rounds_with is not None
    assert base.commit["id"] == "a"
    assert base.series[v.row].reference == head.series[v.row].reference
    assert base.series[v.row].subject != head.series[v.row].subject
    assert "pass 1" in heard[-1]


def test_builds_without_the_operation(installed: Path, tmp_path: Path) -> None:
    from fastmmd.bench.measure import BASE, HEAD, duel

    old = tmp_path / "fastmmd"
    old.mkdir()
    for path in (installed / "fastmmd").iterdir():
        if path.name != "__init__.py":
            (old / path.name).symlink_to(path)
    (old / "__init__.py").write_text("from fastmmd.functional import mmd2\n")
    rows = tracked.select("coral.*forward$", quick=True)
    commits = {BASE: {"id": "a"}, HEAD: {"id": "b"}}
    heard: list[str] = []

    def answers(base: Path, head: Path) -> list[str]:
        folders = {BASE: base, HEAD: head}
        found = duel(folders, commits, rows, "cpu", 1, 0.05, 1, Thresholds(), heard.append)
        return [v.answer for v in found.verdicts]

    assert answers(tmp_path, installed) == ["new"]
    assert answers(installed, tmp_path) == ["gone"]
    assert answers(tmp_path, tmp_path) == []
    assert any("neither build has it" in line for line in heard)


def test_worker_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastmmd.bench import builds

    (tmp_path / "fastmmd").mkdir()
    (tmp_path / "fastmmd" / "__init__.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(builds, "_PATIENCE", 0.5)
    with builds.Worker("HEAD", tmp_path) as worker, pytest.raises(BuildError, match="not answer"):
        worker.prepare("any", "cpu", 1)


def test_worker_that_does_not_run(tmp_path: Path) -> None:
    from fastmmd.bench.builds import Worker

    (tmp_path / "fastmmd").mkdir()
    (tmp_path / "fastmmd" / "__init__.py").write_text("raise ImportError('undefined symbol')")
    with (
        Worker("HEAD~1", tmp_path) as worker,
        pytest.raises(BuildError, match=r"HEAD~1 does not run:[\s\S]*undefined symbol"),
    ):
        worker.prepare("any", "cpu", 1)


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
