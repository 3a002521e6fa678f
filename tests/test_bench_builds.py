"""fastmmd bench compare of revisions: builds, and the processes that time them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from bench_runs import content, series, write

from fastmmd.bench import rows as tracked
from fastmmd.bench.builds import BuildError, build, revision
from fastmmd.bench.clock import run_on
from fastmmd.bench.record import Record
from fastmmd.bench.verdict import Thresholds
from fastmmd.cli import main


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


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        ("def coral(x, y): return x.no_such_attribute", "AttributeError"),
        ("def coral(x): return x", "TypeError"),
        ("def coral(x, y): raise NotImplementedError('not here')", "NotImplementedError: not here"),
        ("def coral(x, y): return x.sum() * 0", "ArithmeticError: coral.* differs from plain"),
    ],
)
def test_operation_that_breaks_is_not_gone(
    installed: Path, tmp_path: Path, broken: str, error: str
) -> None:
    from fastmmd.bench.builds import Worker

    (tmp_path / "fastmmd").mkdir()
    for path in (installed / "fastmmd").iterdir():
        if path.name != "__init__.py":
            (tmp_path / "fastmmd" / path.name).symlink_to(path)
    (tmp_path / "fastmmd" / "__init__.py").write_text(broken + "\n")
    (row,) = tracked.select("coral.*forward$", quick=True)
    with (
        Worker("HEAD", tmp_path) as worker,
        pytest.raises(BuildError, match=rf"HEAD: coral.*{error}"),
    ):
        worker.prepare(row.name, "cpu", 1)


def test_arguments_that_a_build_does_not_take() -> None:
    import fastmmd

    assert tracked.offered("mmd2", "estimator") is fastmmd.mmd2
    with pytest.raises(tracked.MissingError, match=r"fastmmd\.mmd2 takes no colour"):
        tracked.offered("mmd2", "colour")
    with pytest.raises(tracked.MissingError, match=r"no fastmmd\.mmd3"):
        tracked.offered("mmd3")


def test_threads_of_a_team_have_a_core_each() -> None:
    available = sorted(os.sched_getaffinity(0))
    asked = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.randn(512, 512) @ torch.randn(512, 512)  # torch has its threads
    try:
        for cores in (available[:2], available[:1]):
            run_on(cores)
            main = os.getpid()
            others = [int(t) for t in os.listdir("/proc/self/task") if int(t) != main]
            assert others
            assert os.sched_getaffinity(main) == {cores[0]}
            assert all(os.sched_getaffinity(t) == {cores[-1]} for t in others)
    finally:
        torch.set_num_threads(asked)
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), available)


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
