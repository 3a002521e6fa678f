"""``fastmmd sketch``, ``fastmmd compare`` of sketches, and the examples of sketches."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from test_compare import bad_files

import fastmmd as fm
from benchmarks.sketch_memory import of_commands
from fastmmd.cli import main
from fastmmd.compare import sketches as sketches_module
from fastmmd.compare import streaming

NAMES = ("age", "income", "visits")


@pytest.fixture
def samples() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(800, 3)), rng.normal(size=(600, 3)) + np.array([0.0, 1.5, 0])


@pytest.fixture
def files(samples: tuple[Any, Any], tmp_path: Path) -> tuple[str, str]:
    """The samples as .npy files."""
    paths = tmp_path / "a.npy", tmp_path / "b.npy"
    for path, sample in zip(paths, samples, strict=True):
        np.save(path, sample)
    return str(paths[0]), str(paths[1])


@pytest.fixture
def sketches(files: tuple[str, str], tmp_path: Path) -> tuple[str, str]:
    """The files, sketched."""
    a, b = str(tmp_path / "A.npz"), str(tmp_path / "B.npz")
    assert main(["sketch", files[0], "-o", a, "--num-features", "512"]) == 0
    assert main(["sketch", files[1], "-o", b, "--like", a]) == 0
    return a, b


def sketched(path: object, tmp_path: Path, *options: str) -> fm.MeanEmbedding:
    out = tmp_path / "out.npz"
    options = (*options, "--num-features", "32", "--bandwidth", "2")
    assert main(["sketch", str(path), "-o", str(out), *options]) == 0
    return fm.MeanEmbedding.load(out)


# --- fastmmd sketch ------------------------------------------------------------------------------


def test_every_format_gives_the_same_sketch(
    samples: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_NUMBERS", 300)  # 100 rows at a time
    values = samples[0]
    expected = fm.MeanEmbedding(32, fm.Gaussian(2.0, (1,)), 3).update(values).state()
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(values))
    np.save(tmp_path / "big-endian.npy", values.astype(">f8"))
    np.savez(tmp_path / "one.npz", values)
    np.savez(tmp_path / "fortran.npz", np.asfortranarray(values))
    np.savez_compressed(tmp_path / "two.npz", x=values, y=values[:5])
    (tmp_path / "npy.npz").write_bytes((tmp_path / "a.npy").read_bytes())
    text = "\n".join(",".join(map(repr, row.tolist())) for row in values)
    (tmp_path / "bare.csv").write_text(text)
    (tmp_path / "a.csv").write_text(f"\n{','.join(NAMES)}\n\n{text}\n\n")
    quoted = "\n".join(f'"{i}\nsay ""{i}""",{row}' for i, row in enumerate(text.split("\n")))
    (tmp_path / "quoted.csv").write_text(f"text,{','.join(NAMES)}\n{quoted}\n")
    (tmp_path / "a.tsv").write_text(text.replace(",", "\t"))
    (tmp_path / "blank.csv").write_text(text.replace(",", " "))
    pq.write_table(
        pa.table(dict(zip(NAMES, values.T, strict=True))),
        tmp_path / "a.parquet",
        row_group_size=170,
    )
    for name, named, options in (
        ("a.npy", False, []),
        ("fortran.npy", False, []),
        ("big-endian.npy", False, []),
        ("one.npz", False, []),
        ("fortran.npz", False, []),
        ("two.npz", False, ["--key", "x"]),
        ("npy.npz", False, []),
        ("bare.csv", False, []),
        ("a.csv", True, []),
        ("quoted.csv", True, ["--columns", ",".join(NAMES)]),
        ("a.tsv", False, []),
        ("blank.csv", False, []),
        ("a.parquet", True, []),
    ):
        found = sketched(tmp_path / name, tmp_path, *options)
        assert found.columns == (NAMES if named else None)
        assert found.count == 800
        assert torch.allclose(found.state()[3:], expected[3:], rtol=1e-12, atol=1e-9), name


def test_other_shapes_and_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_NUMBERS", 16)
    path = tmp_path / "a.npy"
    for array in (
        np.arange(24, dtype=np.uint8).reshape(3, 2, 4),
        np.arange(24).reshape(3, 2, 4).astype(np.longdouble),
        np.asfortranarray(np.arange(24.0).reshape(3, 2, 4)),
    ):
        np.save(path, array)
        found = sketched(path, tmp_path)
        assert found.dim == 8
        assert found.columns is not None
        assert found.columns[5] == "[1, 1]"
        whole = found.empty().update(np.arange(24.0).reshape(3, 8))
        assert torch.allclose(found.state(), whole.state(), atol=1e-10)
    np.save(path, np.arange(5))
    assert sketched(path, tmp_path).dim == 1
    np.save(path, np.array([[True, False]]))
    assert sketched(path, tmp_path).count == 1
    np.save(path, np.arange(12.0).reshape(4, 3))
    found = sketched(path, tmp_path, "--columns", "2,0")
    assert found.columns == ("column 2", "column 0")
    whole = found.empty().update(np.arange(12.0).reshape(4, 3)[:, [2, 0]])
    assert torch.allclose(found.state(), whole.state())


def test_settings(files: tuple[str, str], tmp_path: Path, capsys: Any) -> None:
    out = str(tmp_path / "s.npz")
    made = [
        "--kernel", "matern", "--bandwidth", "3", "--num-features", "7", "--seed", "9",
        "--form", "phase", "--frequencies", "orthogonal", "--threads", "1",
    ]  # fmt: skip
    assert main(["sketch", files[0], "-o", out, *made]) == 0
    sketch = fm.MeanEmbedding.load(out)
    assert repr(sketch) == (
        "MeanEmbedding(7, Matern(nu=1.5, bandwidth=3.0), dim=3, seed=9, form='phase',"
        " frequencies='orthogonal'): 800 rows"
    )
    text = capsys.readouterr().out
    for said in ("800 rows, 3 columns", "Matern(nu=1.5", "7 for each bandwidth", "orthogonal, ph"):
        assert said in text
    assert f"Written to {out}" in text
    for kernel in sketches_module.FAMILIES:
        assert main(["sketch", files[0], "-o", out, "--kernel", kernel]) == 0


@pytest.mark.parametrize("heuristic", ["mean", "median"])
def test_bandwidth_of_the_data(
    heuristic: str, files: tuple[str, str], samples: tuple[Any, Any], tmp_path: Path
) -> None:
    out = str(tmp_path / "s.npz")
    assert main(["sketch", files[0], "-o", out, "--bandwidth", heuristic]) == 0
    running = fm.RunningBandwidth(heuristic)
    x = torch.from_numpy(samples[0])
    running.update(x[:400], x[400:])
    kernel = fm.MeanEmbedding.load(out).kernel
    assert float(kernel.bandwidth) == pytest.approx(float(running.value / 2) ** 0.5)
    assert kernel.multipliers == (0.25, 0.5, 1.0, 2.0, 4.0)


def test_bandwidth_of_some_rows(
    files: tuple[str, str], samples: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sketches_module, "_LOOKED_AT", 100)
    monkeypatch.setattr(streaming, "_NUMBERS", 90)
    parts = streaming.open_parts(files[0])
    drawn = sketches_module._drawn(parts, 3)
    assert drawn.shape == (100, 3)
    rows = [int(np.flatnonzero((samples[0] == row).all(1))[0]) for row in drawn]
    assert len(set(rows)) == 100
    assert 300 < np.mean(rows) < 500
    assert np.array_equal(drawn, sketches_module._drawn(parts, 3))


def test_columns_in_the_order_of_another(tmp_path: Path, capsys: Any) -> None:
    a, b, c, d = (tmp_path / f"{name}.csv" for name in "abcd")
    a.write_text("x,y\n1,2\n3,5\n")
    b.write_text("z,y,x\n0,2,1\n0,5,3\n")
    c.write_text("x,w\n1,2\n3,4\n")
    d.write_text("1,2\n3,5\n")
    outs = [str(tmp_path / f"{name}.npz") for name in "abcd"]
    assert main(["sketch", str(a), "-o", outs[0], "--num-features", "8"]) == 0
    assert main(["sketch", str(b), "-o", outs[1], "--like", outs[0]]) == 0
    assert "columns taken in the order of" in capsys.readouterr().out
    first, second = (fm.MeanEmbedding.load(out) for out in outs[:2])
    assert second.columns == ("x", "y")
    assert torch.equal(first.state(), second.state())
    assert main(["sketch", str(c), "-o", outs[2], "--like", outs[0]]) == 2
    assert "'y' only in the latter" in capsys.readouterr().err
    assert main(["sketch", str(c), "-o", outs[2], "--like", outs[0], "--columns", "x,w"]) == 0
    assert main(["sketch", str(d), "-o", outs[3], "--like", outs[0]]) == 0
    assert torch.equal(fm.MeanEmbedding.load(outs[3]).state(), first.state())
    bare = str(tmp_path / "bare.npz")
    assert main(["sketch", str(c), "-o", bare, "--num-features", "8", "--bandwidth", "1"]) == 0
    capsys.readouterr()
    assert main(["compare", bare, outs[0]]) == 2
    assert "columns (['x', 'w'] and ['x', 'y'])" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in bad_files(Path()) if name != "one.csv"])
def test_bad_files(name: str, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(streaming, "_NUMBERS", 2)  # one row at a time
    write, said = bad_files(tmp_path)[name]
    path, out = tmp_path / name, tmp_path / "out.npz"
    write(path)
    assert main(["sketch", str(path), "-o", str(out), "--bandwidth", "1"]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert str(path) in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not out.exists()


def test_cut_files(tmp_path: Path, capsys: Any) -> None:
    for name in ("a.npy", "a.npz"):
        path = tmp_path / name
        (np.save if name == "a.npy" else np.savez)(path, np.ones((100, 3)))
        path.write_bytes(path.read_bytes()[:1500])
        assert main(["sketch", str(path), "-o", str(tmp_path / "s.npz")]) == 2
        assert "is no NumPy file, or is damaged" in capsys.readouterr().err
    assert not (tmp_path / "s.npz").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-o", "s.pt"], "-o s.pt: the name of the file of a sketch ends in .npz or .safetensors"),
        (["-o", "none/s.npz"], "-o 'none/s.npz' cannot be written (No such file or directory)"),
        (["-o", "folder.npz"], "-o 'folder.npz' cannot be written (Is a directory)"),
        (["-o", "data.npz"], "-o 'data.npz' is the file to sketch"),
        (["-o", "s.npz", "--like", "none.npz"], "none.npz: cannot be read (No such file or dir"),
        (["-o", "s.npz", "--like", "data.npz"], "data.npz: is not a file of a sketch"),
        (["-o", "s.npz", "--like", "wide.npz"], "have unequal widths: 3 columns and 5 columns"),
        (["-o", "s.npz", "--like", "wide.npz", "--seed", "1"], "--seed: comes from --like wide.n"),
        (["-o", "s.npz", "--num-features", "3"], "num_features must be even for form='pair'"),
        (["-o", "s.npz", "--columns", "7"], "--columns: there is no column '7'; it has 0 to 2"),
        (["-o", "s.npz", "--key", "z"], "has no array 'z'; it has 'arr_0'"),
    ],
)
def test_mistakes(
    options: list[str], said: str, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", np.random.default_rng(0).normal(size=(9, 3)))
    Path("folder.npz").mkdir()
    fm.MeanEmbedding(2, fm.Gaussian(1.0), 5).save("wide.npz")
    before = sorted(os.listdir())
    assert main(["sketch", "data.npz", *options]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""
    assert sorted(os.listdir()) == before


def test_no_bandwidth_in_equal_rows(tmp_path: Path, capsys: Any) -> None:
    path, out = tmp_path / "a.npy", tmp_path / "s.npz"
    np.save(path, np.full((50, 2), 0.1))
    assert main(["sketch", str(path), "-o", str(out)]) == 2
    assert "no two different rows to take a bandwidth from" in capsys.readouterr().err
    assert main(["sketch", str(path), "-o", str(out), "--bandwidth", "1"]) == 0


def test_memory(tmp_path: Path) -> None:
    """Far below the size of the file, mapped or read from an archive."""
    values = np.random.default_rng(0).normal(size=(500_000, 64)).astype(np.float32)  # 122 MiB
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", values)
    options = ["-o", str(tmp_path / "s.npz"), "--num-features", "64", "--bandwidth"]
    commands = [
        ["sketch", str(tmp_path / name), *options, bandwidth]
        for name, bandwidth in (("a.npy", "mean"), ("a.npz", "8"))
    ]
    found = of_commands(commands)
    assert found["status"] == [0, 0]
    assert found["bytes"] < 60 * 2**20


def test_the_page_has_the_memory_that_was_measured(repository: Path) -> None:
    result = json.loads((repository / "benchmarks/results/sketch-memory.json").read_text())
    page = " ".join((repository / "docs/sketch.md").read_text().split())
    assert f"Of {result['rows']:,} rows of {result['columns']} numbers" in page
    assert f"a file of {result['file_mib']} MiB" in page
    for sketch in result["sketches"]:
        assert re.search(
            rf"{sketch['num_features']:,} features [^.]*{sketch['anonymous_mib']} MiB", page
        )


PROGRAM = """if True:
    import signal, sys
    from fastmmd.cli import main
    from fastmmd.sketch import MeanEmbedding
    signal.signal(signal.SIGINT, signal.default_int_handler)
    update = MeanEmbedding.update
    def told(*arguments):
        print("working", flush=True)
        return update(*arguments)
    MeanEmbedding.update = told
    sys.exit(main())
"""


@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        (signal.SIGINT, 130, "fastmmd: interrupted, nothing was written\n"),
        (signal.SIGKILL, -signal.SIGKILL, ""),
    ],
)
def test_interrupt(tmp_path: Path, how: signal.Signals, status: int, said: str) -> None:
    """Ctrl-C, or a kill, in the middle of the native pass."""
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(30_000, 64)))
    (tmp_path / "s.npz").write_bytes(b"the old one")
    command = [
        sys.executable, "-c", PROGRAM, "sketch", "a.npy", "-o", "s.npz", "--bandwidth", "8",
        "--num-features", "400000", "--threads", "1",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "working\n"
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert err == said
    assert sorted(os.listdir(tmp_path)) == ["a.npy", "s.npz"]
    assert (tmp_path / "s.npz").read_bytes() == b"the old one"


def test_progress_on_a_terminal(files: tuple[str, str], tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "fastmmd.cli", "sketch", files[0], "-o", "s.npz"]
    run = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    shown = ""
    with contextlib.suppress(OSError):  # the end of a terminal
        while part := os.read(ours, 1 << 16):
            shown += part.decode(errors="replace")
    os.close(ours)
    assert run.wait() == 0
    assert "bandwidth" in shown
    assert "800/800" in shown
    assert "rows" in shown
    assert (tmp_path / "s.npz").exists()


# --- fastmmd compare -----------------------------------------------------------------------------


def run_json(capsys: Any, *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["compare", *arguments, "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_compare(
    samples: tuple[Any, Any], sketches: tuple[str, str], tmp_path: Path, capsys: Any
) -> None:
    result = run_json(capsys, *sketches, "--output", str(tmp_path / "out"))
    a, b = map(fm.MeanEmbedding.load, sketches)
    assert result["statistic"] == a.mmd2(b)
    assert result["standard_error"] == a.standard_error(b)
    assert result["pvalue_bound"] == a.pvalue_bound(b)
    assert result["null"]["mean"] == a.expected_mmd2(b)
    assert result["different"] is True
    assert result["a"] == {"path": sketches[0], "rows": 800, "weight": 800.0}
    assert result["columns"] == 3
    assert result["sketch"]["num_features"] == 512
    exact = float(fm.mmd2(*map(torch.from_numpy, samples), a.kernel))
    assert abs(result["statistic"] - exact) < 4 * result["standard_error"]
    assert os.listdir(tmp_path / "out") == ["compare.json"]
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == result
    unbiased = run_json(capsys, *sketches, "--estimator", "unbiased")
    assert unbiased["statistic"] == a.mmd2(b, "unbiased")
    assert unbiased["null"]["mean"] == 0


@pytest.mark.parametrize("rich", [True, False])
def test_printed_report(
    rich: bool, sketches: tuple[str, str], capsys: Any, monkeypatch: Any
) -> None:
    if not rich:
        monkeypatch.setattr("fastmmd.compare.report.find_spec", lambda name: None)
    capsys.readouterr()
    assert main(["compare", *sketches]) == 0
    text = capsys.readouterr().out
    for said in (
        "800 rows, 3 columns", "600 rows, 3 columns", "Gaussian(bandwidth=", "512 for each",
        "MMD²", "by the random features", "p-value", "at most", "different at the 5 % level",
    ):  # fmt: skip
        assert said in text


def test_exit_status(sketches: tuple[str, str]) -> None:
    a, b = sketches
    assert main(["compare", a, b]) == 0
    assert main(["compare", a, b, "--fail-on-difference"]) == 1
    assert main(["compare", a, a, "--fail-on-difference"]) == 0
    assert main(["compare", a, b, "--fail-on-difference", "--alpha", "1e-300"]) == 0


def test_a_sketch_and_a_file_of_numbers(
    sketches: tuple[str, str], files: tuple[str, str], capsys: Any
) -> None:
    expected = run_json(capsys, *sketches)
    for pair in ((sketches[0], files[1]), (files[0], sketches[1])):
        result = run_json(capsys, *pair)
        assert result["statistic"] == pytest.approx(expected["statistic"], rel=1e-9)
        assert any("sketched as" in note for note in result["notes"])
        assert result["b"]["rows"] == 600


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--permutations", "99"], "--permutations: is for files of numbers"),
        (["--kernel", "energy"], "--kernel: is for files of numbers"),
        (["--bandwidth", "1"], "--bandwidth: is for files of numbers"),
        (["--standardize"], "--standardize: is for files of numbers"),
        (["--max-rows", "5"], "--max-rows: is for files of numbers"),
        (["--seed", "5"], "--seed: is for files of numbers"),
        (["--columns", "1"], "--columns: is for files of numbers, and both files are sketches"),
        (["--key", "x"], "--key: is for files of numbers, and both files are sketches"),
    ],
)
def test_options_that_do_not_apply(
    options: list[str], said: str, sketches: tuple[str, str], capsys: Any
) -> None:
    capsys.readouterr()
    assert main(["compare", *sketches, *options]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""


def test_sketches_that_do_not_match(
    sketches: tuple[str, str], files: tuple[str, str], tmp_path: Path, capsys: Any
) -> None:
    other = str(tmp_path / "other.npz")
    assert main(["sketch", files[1], "-o", other, "--num-features", "512", "--seed", "1"]) == 0
    capsys.readouterr()
    assert main(["compare", sketches[0], other]) == 2
    said = capsys.readouterr().err
    assert "seed (0 and 1)" in said
    assert "kernel (" in said
    assert "--like" in said
    blob = Path(sketches[1]).read_bytes()
    Path(other).write_bytes(blob[:-9])
    assert main(["compare", sketches[0], other]) == 2
    assert "is no NumPy file, or is damaged" in capsys.readouterr().err
    Path(other).write_bytes(blob[:900] + bytes([blob[900] ^ 1]) + blob[901:])
    assert main(["compare", sketches[0], other]) == 2
    assert "damaged" in capsys.readouterr().err


# --- examples ------------------------------------------------------------------------------------


def printed_by(example: Path, *launcher: str) -> list[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    run = subprocess.run(
        [sys.executable, *launcher, str(example)], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def check_estimate(line: str, a: fm.MeanEmbedding, b: fm.MeanEmbedding) -> None:
    found = re.fullmatch(r"MMD\^2 = (\S+) \+- (\S+)", line)
    assert found
    assert float(found[1]) == pytest.approx(a.mmd2(b), abs=2e-8)
    assert float(found[2]) == pytest.approx(a.standard_error(b), abs=2e-6)


@pytest.mark.parametrize("processes", [2, 4])
def test_all_reduce(processes: int, repository: Path) -> None:
    example = repository / "examples" / "sketch_distributed.py"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    rows, value = printed_by(example, *launcher)
    assert rows == f"3000 and 2001 rows, on {processes} processes"
    scope = runpy.run_path(str(example))
    empty = fm.MeanEmbedding(scope["FEATURES"], scope["KERNEL"], scope["WIDTH"])
    a, b = (empty.empty().update(rows) for rows in scope["own_rows"](0, 1))
    check_estimate(value, a, b)


def test_dask(repository: Path) -> None:
    pytest.importorskip("dask.bag")
    example = repository / "examples" / "sketch_dask.py"
    rows, value = printed_by(example)
    assert rows == "3015 and 2540 rows"
    scope = runpy.run_path(str(example))
    a, b = (
        scope["sketch"](np.concatenate([scope["load"]((n, shift)) for n in numbers]))
        for numbers, shift in ((range(6), 0.0), (range(6, 11), 0.2))
    )
    check_estimate(value, a, b)
