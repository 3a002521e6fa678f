"""``fastmmd compare``: files in, tables, JSON, pictures and exit statuses out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

import fastmmd as fm
from fastmmd.cli import main
from fastmmd.compare import comparison as comparison_module
from fastmmd.compare import main as main_module
from fastmmd.compare.comparison import Settings, compare, energy_coefficient
from fastmmd.compare.reading import InputError, Table, aligned, read

NAMES = ("age", "income", "visits")


@pytest.fixture
def samples() -> tuple[Any, Any]:
    """Two samples that differ in the second column, one row of the second far from all."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(80, 3)), rng.normal(size=(60, 3))
    b[:, 1] += 1.5
    return a, b


@pytest.fixture
def files(samples: tuple[Any, Any], tmp_path: Path) -> tuple[str, str]:
    """The samples as .npy files."""
    paths = tmp_path / "a.npy", tmp_path / "b.npy"
    for path, sample in zip(paths, samples, strict=True):
        np.save(path, sample)
    return str(paths[0]), str(paths[1])


def write_csv(path: Path, values: Any, header: bool = True, delimiter: str = ",") -> str:
    head = delimiter.join(NAMES[: values.shape[1]]) if header else ""
    np.savetxt(path, values, delimiter=delimiter, header=head, comments="", fmt="%.17g")
    return str(path)


def write_parquet(path: Path, values: Any) -> str:
    pq.write_table(pa.table(dict(zip(NAMES, values.T, strict=True))), path)
    return str(path)


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["compare", *arguments, "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


# --- reading -------------------------------------------------------------------------------------


def test_every_format_gives_the_same_numbers(samples: tuple[Any, Any], tmp_path: Path) -> None:
    a, _ = samples
    np.save(tmp_path / "a.npy", a)
    np.savez(tmp_path / "one.npz", a)
    np.savez_compressed(tmp_path / "two.npz", x=a, y=a[:5])
    write_csv(tmp_path / "a.csv", a)
    write_csv(tmp_path / "bare.csv", a, header=False)
    write_csv(tmp_path / "semicolon.csv", a, delimiter=";")
    write_csv(tmp_path / "blank.csv", a, header=False, delimiter=" ")
    write_csv(tmp_path / "A.TSV", a, delimiter="\t")
    write_parquet(tmp_path / "a.parquet", a)
    for name, named in {
        "a.npy": False, "one.npz": False, "a.csv": True, "bare.csv": False,
        "semicolon.csv": True, "blank.csv": False, "A.TSV": True, "a.parquet": True,
    }.items():  # fmt: skip
        table = read(str(tmp_path / name))
        np.testing.assert_array_equal(table.values, a)
        assert table.names == (NAMES if named else None)
        assert table.notes == ()
    assert len(read(str(tmp_path / "two.npz"), key="y").values) == 5


def test_arrays_of_other_shapes_and_types(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.arange(5))
    assert read(str(path)).values.tolist() == [[0], [1], [2], [3], [4]]
    np.save(path, np.arange(24, dtype=np.uint8).reshape(3, 2, 4))
    table = read(str(path))
    assert table.values.shape == (3, 8)
    assert table.labels[5] == "[1, 1]"
    assert table.values[1, 5] == 13
    np.save(path, np.array([[True, False], [False, False]]))
    assert read(str(path)).values.tolist() == [[1, 0], [0, 0]]
    np.save(path, np.ones((4, 2), np.float16))
    assert read(str(path)).values.dtype == np.float16


@pytest.mark.parametrize(
    ("text", "values", "names"),
    [
        ("1,2\n3,4\n", [[1, 2], [3, 4]], None),
        ("\ufeffx,y\r\n1,2\r\n3,4\r\n", [[1, 2], [3, 4]], ("x", "y")),
        ("x\n1\n\n2\n", [[1], [2]], ("x",)),
        ('"a, b","c"\n"1","2"\n3,4\n', [[1, 2], [3, 4]], ("a, b", "c")),
        ("a b\n1\n2\n", [[1], [2]], ("a b",)),
        ("1 2\n3   4\n", [[1, 2], [3, 4]], None),
        ("x|y\n1|2\n-3e2|+.5\n", [[1, 2], [-300, 0.5]], ("x", "y")),
        (" x , y \n 1 , 2 \n 3 , 4 \n", [[1, 2], [3, 4]], ("x", "y")),
    ],
)
def test_csv(text: str, values: Any, names: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode())
    table = read(str(path))
    assert table.values.tolist() == values
    assert table.names == names


def test_an_index_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(",x,y\n0,1,2\n1,3,4\n")
    table = read(str(path))
    assert table.values.tolist() == [[1, 2], [3, 4]]
    assert table.names == ("x", "y")
    assert "the first column has no name" in table.notes[0]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [1, 2], "__index_level_0__": [7, 8]}), path)
    table = read(str(path))
    assert table.names == ("x",)
    assert "index" in table.notes[0]


def test_columns(samples: tuple[Any, Any], tmp_path: Path) -> None:
    a, _ = samples
    csv = tmp_path / "a.csv"
    csv.write_text("name,x,y\nfoo,1,2\nbar,3,4\n")
    table = read(str(csv), columns=["y", "x"])
    assert table.values.tolist() == [[2, 1], [4, 3]]
    assert table.names == ("y", "x")
    assert read(str(csv), columns=["2"]).names == ("y",)
    parquet = tmp_path / "a.parquet"
    pq.write_table(pa.table({"name": ["a", "b"], "x": [1, 2], "flag": [True, False]}), parquet)
    assert read(str(parquet), columns=["flag", "x"]).values.tolist() == [[1, 1], [0, 2]]
    np.save(tmp_path / "a.npy", a)
    table = read(str(tmp_path / "a.npy"), columns=["2", "0"])
    np.testing.assert_array_equal(table.values, a[:, [2, 0]])
    assert table.names == ("column 2", "column 0")


def test_columns_are_matched_by_name() -> None:
    a = Table("a", np.array([[1.0, 2.0], [3.0, 4.0]]), ("x", "y"))
    b = Table("b", np.array([[20.0, 10.0], [40.0, 30.0]]), ("y", "x"))
    _, second = aligned(a, b)
    assert second.values.tolist() == [[10, 20], [30, 40]]
    assert second.names == ("x", "y")
    assert "put into the order of a" in second.notes[0]
    first, _ = aligned(replace(a, names=None), b)
    assert first.names == ("y", "x")
    with pytest.raises(InputError, match="different columns: 'y' only in the first, 'z' only in"):
        aligned(a, replace(b, names=("z", "x")))
    with pytest.raises(InputError, match="repeat names"):
        aligned(
            Table("a", np.ones((2, 3)), ("x", "x", "y")),
            Table("b", np.ones((2, 3)), ("x", "y", "x")),
        )


def bad_files(folder: Path) -> dict[str, tuple[Callable[[Path], Any], str]]:
    """What is written to the file of that name, and what is said of it."""
    objects = np.array([[1, "a"]], dtype=object)

    def table(**columns: Any) -> Callable[[Path], Any]:
        return lambda path: pq.write_table(pa.table(columns), path)

    def text(content: str | bytes) -> Callable[[Path], Any]:
        return lambda path: path.write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )

    def array(values: Any) -> Callable[[Path], Any]:
        return lambda path: np.save(path, values, allow_pickle=True)

    return {
        "missing.npy": (lambda path: None, "cannot be read (No such file or directory)"),
        "folder.csv": (lambda path: path.mkdir(), "cannot be read (Is a directory)"),
        "numbers.txt": (text("1,2\n"), "ends in .npy, .npz, .csv, .tsv, .parquet"),
        "empty.npy": (text(""), "is empty"),
        "empty.csv": (text(""), "is empty"),
        "blank.csv": (text("\n\n"), "is empty"),
        "empty.parquet": (text(""), "is empty"),
        "header.csv": (text("x,y\n"), "holds no numbers (of shape 0 x 2)"),
        "none.npy": (array(np.ones((0, 3))), "holds no numbers (of shape 0 x 3)"),
        "narrow.npy": (array(np.ones((3, 0))), "holds no numbers (of shape 3 x 0)"),
        "rows.parquet": (table(x=pa.array([], pa.float64())), "holds no numbers"),
        "one.csv": (text("x,y\n1,2\n"), "has 1 row"),
        "scalar.npy": (array(np.float64(3)), "holds a single number"),
        "words.npy": (array(np.array([["a", "b"]])), "holds text, not numbers"),
        "objects.npy": (array(objects), "holds Python objects or text, not numbers"),
        "complex.npy": (array(np.ones((3, 2), complex)), "dtype complex128, not real numbers"),
        "dates.npy": (array(np.array(["2020-01-01"], "M8[D]")), "not real numbers"),
        "damaged.npy": (text(b"\x93NUMPY\x01\x00v\x00{'descr"), "is no NumPy file, or is damaged"),
        "noise.npy": (text(b"noise"), "is no NumPy file, or is damaged"),
        "noise.npz": (text(b"PK\x03\x04noise"), "is no NumPy file, or is damaged"),
        "objects.npz": (lambda path: np.savez(path, a=objects), "holds Python objects or text"),
        "several.npz": (lambda path: np.savez(path, a=[1], b=[2]), "has several arrays, 'a', 'b'"),
        "nan.npy": (
            array([[1, 2], [3, np.nan]]),
            "row 1 (from 0) has a missing value (NaN) in col",
        ),
        "inf.npy": (array([[1, 2], [-np.inf, 4]]), "row 1 (from 0) has -inf in column 0"),
        "widths.csv": (text("1,2\n3,4\n5\n"), "line 3 has 1 column where the first has 2"),
        "wider.csv": (text("x,y\n1,2\n3,4,5\n"), "line 3 has 3 columns where the first has 2"),
        "words.csv": (text("x,y\n1,2\n3,four\n"), "line 3 has text in column 'y': 'four'"),
        "all-words.csv": (text("x,y\na,b\nc,d\n"), "line 2 has text in column 'x': 'a'"),
        "hole.csv": (text("x,y\n1,2\n,4\n"), "line 3 has nothing in column 'x'"),
        "nan.csv": (text("x,y\n1,2\nnan,4\n"), "row 1 (from 0) has a missing value"),
        "separators.csv": (text("x\n1_000\n2\n"), "line 2 has text in column 'x': '1_000'"),
        "latin.csv": (text("größe\n1\n".encode("latin-1")), "is not UTF-8 text"),
        "binary.csv": (text(b"\x00\x01\x02\n"), "is no text file"),
        "words.parquet": (table(x=[1.0, 2.0], city=["a", "b"]), "column 'city' holds text, not"),
        "hole.parquet": (table(x=[1.0, None, 3.0]), "row 1 (from 0) has nothing in column 'x'"),
        "lists.parquet": (table(x=[[1.0], [2.0]]), "column 'x' holds values of list<"),
        "noise.parquet": (text("noise"), "is no Parquet file, or is damaged"),
    }


@pytest.mark.parametrize("name", bad_files(Path()))
def test_bad_files(
    name: str, files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, said = bad_files(tmp_path)[name]
    path = tmp_path / name
    write(path)
    for pair in ((str(path), files[1]), (files[0], str(path))):
        output = tmp_path / "out"
        assert main(["compare", *pair, "--output", str(output)]) == 2
        printed = capsys.readouterr()
        assert said in printed.err
        assert str(path) in printed.err
        assert printed.err.count("\n") == 1
        assert printed.out == ""
        assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--permutations", "0"], "--permutations: must be a whole number of at least 1; got '0'"),
        (["--permutations", "x"], "--permutations: must be a whole number"),
        (["--seed", "-1"], "--seed: must be a whole number of at least 0 and below 2^64; got '-1'"),
        (["--seed", str(2**64)], "--seed: must be a whole number of at least 0 and below 2^64"),
        (["--alpha", "0"], "--alpha: must be a number between 0 and 1; got '0'"),
        (["--alpha", "5%"], "--alpha: must be a number between 0 and 1; got '5%'"),
        (["--bandwidth", "-2"], "--bandwidth: must be a positive number, mean or median; got '-2'"),
        (["--bandwidth", "mode"], "--bandwidth: must be a positive number, mean or median"),
        (["--kernel", "gauss"], "--kernel: invalid choice: 'gauss'"),
        (["--method", "bootstrap"], "--method: invalid choice: 'bootstrap'"),
        (["--estimator", "linear"], "--estimator: invalid choice: 'linear'"),
        (["--max-rows", "-1"], "--max-rows: must be a whole number of at least 0; got '-1'"),
        (["--columns", "a,,b"], "--columns: must be names with commas between"),
        (["--columns", "a,a"], "--columns: names a column twice"),
        (["--top", "0"], "--top: must be a whole number of at least 1"),
    ],
)
def test_bad_options(
    arguments: list[str],
    said: str,
    files: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["compare", *files, *arguments])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "wild_bootstrap"], "--method wild_bootstrap pairs the rows"),
        (["--kernel", "energy", "--bandwidth", "2"], "--bandwidth: --kernel energy takes none"),
        (["--columns", "7"], "--columns: there is no column '7'; it has 0 to 2"),
        (["--key", "z"], None),
    ],
)
def test_options_that_do_not_fit_the_files(
    arguments: list[str],
    said: str | None,
    files: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = main(["compare", *files, *arguments])
    if said is None:  # an .npy file has no keys
        assert status == 0
        return
    assert status == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""


def test_unequal_widths(samples: tuple[Any, Any], tmp_path: Path, capsys: Any) -> None:
    np.save(tmp_path / "a.npy", samples[0])
    np.save(tmp_path / "b.npy", samples[1][:, :2])
    assert main(["compare", str(tmp_path / "a.npy"), str(tmp_path / "b.npy")]) == 2
    assert "have unequal widths: 3 columns and 2 columns" in capsys.readouterr().err


def test_key_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.ones((3, 2)))
    assert main(["compare", str(path), str(path), "--key", "z"]) == 2
    assert "has no array 'z'; it has 'x'" in capsys.readouterr().err


def test_numbers_out_of_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.array([[1.0, 1e200], [2.0, 3.0]]))
    assert main(["compare", str(path), str(path)]) == 2
    assert "column 1: holds numbers beyond 1e150" in capsys.readouterr().err


# --- the comparison ------------------------------------------------------------------------------


def test_result_is_that_of_the_test(
    samples: tuple[Any, Any], files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_json(capsys, *files, "--seed", "3", "--permutations", "199")
    a, b = (torch.from_numpy(s) for s in samples)
    centre = torch.cat([a, b]).mean(0)
    expected = fm.two_sample_test(
        (a - centre).float(), (b - centre).float(), num_permutations=199, seed=3
    )
    assert result["statistic"] == pytest.approx(expected.statistic, rel=1e-5)
    assert result["pvalue"] == expected.pvalue == 0.005
    assert result["different"] is True
    assert result["columns"] == 3
    assert result["a"] == {"path": files[0], "rows": 80, "compared": 80}
    assert result["b"]["rows"] == 60
    assert result["settings"]["permutations"] == 199
    assert result["null"]["mean"] == pytest.approx(float(expected.null.mean()), rel=1e-4)
    assert set(result["null"]["quantiles"]) == {
        "0.01",
        "0.05",
        "0.25",
        "0.5",
        "0.75",
        "0.95",
        "0.99",
    }
    assert result["critical_value"] == pytest.approx(expected.critical_value(), rel=1e-4)
    assert result["fastmmd"] == fm.__version__


def test_features_and_rows(
    samples: tuple[Any, Any], files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = samples
    b[:, 1] -= a[:, 1].mean()
    result = run_json(capsys, *files, "--top", "500")
    first = result["features"][0]
    assert first["name"] == "column 1"
    assert first["column"] == 1
    stored = np.load(files[1])
    assert first["mean_a"] == pytest.approx(a[:, 1].mean())
    assert first["mean_b"] == pytest.approx(stored[:, 1].mean())
    within = np.sqrt((79 * a[:, 1].var(ddof=1) + 59 * stored[:, 1].var(ddof=1)) / 138)
    assert first["shift"] == pytest.approx((stored[:, 1].mean() - a[:, 1].mean()) / within)
    assert first["spread"] == pytest.approx(stored[:, 1].std(ddof=1) / a[:, 1].std(ddof=1))
    assert [f["difference"] for f in result["features"]] == sorted(
        (f["difference"] for f in result["features"]), reverse=True
    )
    parts = fm.stats.contributions(a, stored)
    for rows, expected in ((result["rows_a"], parts.x), (result["rows_b"], parts.y)):
        assert len(rows) == len(expected)
        found = np.empty(len(expected))
        found[[row["row"] for row in rows]] = [row["contribution"] for row in rows]
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert [r["contribution"] for r in rows] == sorted(r["contribution"] for r in rows)[::-1]
    total = sum(row["contribution"] for row in result["rows_a"] + result["rows_b"])
    assert total == pytest.approx(result["statistic"], rel=1e-4)
    assert result["rows_a"][0]["witness"] == pytest.approx(80 * result["rows_a"][0]["contribution"])
    assert result["rows_b"][0]["witness"] == pytest.approx(
        -60 * result["rows_b"][0]["contribution"]
    )


def test_energy_coefficient() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=30), rng.normal(size=20) + 1
    cross = np.abs(x[:, None] - y).mean()
    within = [np.abs(z[:, None] - z).sum() / (len(z) * (len(z) - 1)) for z in (x, y)]
    assert energy_coefficient(x, y) == pytest.approx(1 - sum(within) / (2 * cross))
    assert energy_coefficient(np.zeros(3), np.ones(4)) == 1.0
    assert energy_coefficient(np.ones(3), np.ones(4)) == 0.0
    assert energy_coefficient(x, x) == 0.0


@pytest.mark.parametrize("kernel", [*comparison_module.KERNELS, "aggregated"])
def test_every_kernel(
    kernel: str, files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_json(capsys, *files, "--kernel", kernel, "--permutations", "499")
    assert result["different"]
    assert result["settings"]["kernel"] == kernel
    same = run_json(capsys, files[0], files[0], "--kernel", kernel, "--permutations", "499")
    assert not same["different"]
    assert same["pvalue"] > 0.5
    if kernel == "aggregated":
        assert len(result["aggregated"]) == 20
        assert result["pvalue"] == min(k["adjusted_pvalue"] for k in result["aggregated"])
        assert main(["compare", *files, "--kernel", kernel]) == 0
        assert "20 kernels" in capsys.readouterr().out


def test_methods_and_bandwidths(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    paired = run_json(
        capsys, files[0], files[0], "--method", "wild_bootstrap", "--estimator", "unbiased"
    )
    assert paired["pvalue"] > 0.5
    narrow = run_json(capsys, *files, "--bandwidth", "0.5")
    assert narrow["kernel"] == "Gaussian, bandwidth 0.5"
    median = run_json(capsys, *files, "--bandwidth", "median", "--kernel", "laplacian")
    assert median["kernel"] == "Laplacian, median squared distance"


def test_standardize(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(100, 4)), rng.normal(size=(100, 4))
    b[:, 0] += 1
    for sample in (a, b):
        sample[:, 1] *= 1e6
        sample[:, 3] = 0.1  # constant, and no power of two
    np.save(tmp_path / "a.npy", a)
    np.save(tmp_path / "b.npy", b)
    files = str(tmp_path / "a.npy"), str(tmp_path / "b.npy")
    plain = run_json(capsys, *files)
    assert not plain["different"]
    assert any("--standardize" in note for note in plain["notes"])
    fair = run_json(capsys, *files, "--standardize")
    assert fair["different"]
    assert not any("--standardize" in note for note in fair["notes"])
    assert any("constant in both files" in n and "column 3" in n for n in fair["notes"])
    constant = next(f for f in fair["features"] if f["column"] == 3)
    assert constant["difference"] == 0
    assert constant["shift"] is None


def test_all_rows_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", np.full((5, 2), 0.1))
    path = str(tmp_path / "a.npy")
    result = run_json(capsys, path, path, "--output", str(tmp_path / "out"))
    assert result["pvalue"] == 1
    assert result["zscore"] is None
    assert not result["different"]
    assert main(["compare", path, path]) == 0


def test_offsets_do_not_matter(
    samples: tuple[Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = []
    for offset in (0.0, 1e9):
        for name, sample in zip("ab", samples, strict=True):
            np.save(tmp_path / f"{name}.npy", np.round(sample, 3) + offset)
        files = str(tmp_path / "a.npy"), str(tmp_path / "b.npy")
        results.append(run_json(capsys, *files)["statistic"])
    assert results[1] == pytest.approx(results[0], rel=1e-4)


def test_max_rows(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(capsys, *files, "--max-rows", "30", "--top", "100")
    assert result["a"] == {"path": files[0], "rows": 80, "compared": 30}
    assert result["b"]["compared"] == 30
    assert any("30 of 80 rows, drawn at random" in note for note in result["notes"])
    rows = [row["row"] for row in result["rows_a"]]
    assert len(rows) == 30
    assert max(rows) >= 30
    assert result == run_json(capsys, *files, "--max-rows", "30", "--top", "100")
    other = run_json(capsys, *files, "--max-rows", "30", "--top", "100", "--seed", "1")
    assert sorted(rows) != sorted(row["row"] for row in other["rows_a"])
    assert run_json(capsys, *files, "--max-rows", "0")["a"]["compared"] == 80


def test_pairs_are_drawn_together(samples: tuple[Any, Any]) -> None:
    a = Table("a", samples[0], None)
    settings = Settings(method="wild_bootstrap", max_rows=20, permutations=9)
    result = compare(a, replace(a, path="b"), settings)
    assert torch.equal(result.points_a, result.points_b)
    assert result.test.statistic == pytest.approx(0, abs=1e-6)


def test_too_few_permutations_are_pointed_out(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_json(capsys, *files, "--permutations", "9")
    assert not result["different"]
    assert result["critical_value"] is None
    assert any("9 permutations give no p-value below 0.05" in note for note in result["notes"])


# --- what comes out ------------------------------------------------------------------------------


@pytest.mark.parametrize("rich", [True, False])
def test_printed_report(
    rich: bool, tmp_path: Path, samples: tuple[Any, Any], monkeypatch: Any, capsys: Any
) -> None:
    if not rich:
        monkeypatch.setattr("fastmmd.compare.report.find_spec", lambda name: None)
    monkeypatch.setenv("COLUMNS", "100")
    first = write_csv(tmp_path / "a.csv", samples[0])
    second = write_parquet(tmp_path / "b.parquet", samples[1])
    assert main(["compare", first, second, "--top", "2"]) == 0
    text = capsys.readouterr().out
    for said in (
        "80 rows, 3 columns", "60 rows, 3 columns", "MMD²", "p-value  0.001", "999 relabellings",
        "different at the 5 % level", "Columns that differ most (2 of 3)", "income",
        "Rows least like the other file", "row of A", "row of B",
    ):  # fmt: skip
        assert said in text
    assert "[" not in text.replace("[0", "")
    assert main(["compare", first, first]) == 0
    assert "no difference found at the 5 % level" in capsys.readouterr().out


def test_exit_status(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    a, b = files
    assert main(["compare", a, b]) == 0
    assert main(["compare", a, b, "--fail-on-difference"]) == 1
    assert main(["compare", a, a, "--fail-on-difference"]) == 0
    assert main(["compare", a, b, "--fail-on-difference", "--alpha", "0.0001"]) == 0


def pictures(path: Path) -> tuple[int, ...]:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        colours = image.convert("RGB").getcolors(1 << 24)
        assert colours is not None
        assert len(colours) > 100
        return image.size


@pytest.mark.parametrize("columns", [1, 2, 40])
def test_output(columns: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    head = ",".join(f"$x_{i}$ of some rather long kind of name" for i in range(columns))
    files = []
    for name in "ab":
        path = tmp_path / f"{name}.csv"
        np.savetxt(path, rng.normal(size=(50, columns)), delimiter=",", header=head, comments="")
        files.append(str(path))
    output = tmp_path / "deep" / "out"
    result = run_json(capsys, *files, "--output", str(output))
    assert {file.name for file in output.iterdir()} == {"compare.json", "compare.png"}
    assert json.loads((output / "compare.json").read_text()) == result
    assert min(pictures(output / "compare.png")) > 900
    assert main(["compare", *files, "--output", str(output)]) == 0
    assert f"Written to {output}: compare.json, compare.png" in capsys.readouterr().out


@pytest.mark.parametrize("columns", [1, 2])
def test_legends_lie_where_no_data_does(
    columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []

    def draw(figure: Figure, path: Path) -> None:
        figure.savefig(path)
        drawn.append(figure)

    monkeypatch.setattr("fastmmd.compare.figures.save", draw)
    rng = np.random.default_rng(0)
    files = [str(tmp_path / f"{name}.npy") for name in "ab"]
    for file in files:
        np.save(file, rng.normal(size=(50, columns)))
    assert main(["compare", *files, "--output", str(tmp_path / "out")]) == 0
    null, *others = (panel for panel in drawn[0].axes if panel.get_legend() is not None)
    boxes = [panel.get_legend().get_window_extent() for panel in (null, *others)]
    bars = max(bar.get_window_extent().y1 for bar in null.patches)
    assert boxes[0].y0 > bars
    assert len(others) == 2
    for panel, box in zip(others, boxes[1:], strict=True):
        inside, name = panel.get_window_extent(), panel.get_title(loc="left")
        (title,) = (text for text in panel.findobj(Text) if text.get_text() == name)
        assert inside.y1 <= box.y0 < box.y1 <= title.get_window_extent().y0 + 1
        assert inside.x0 <= box.x0 < box.x1 <= inside.x1


def test_nothing_is_half_written(
    files: tuple[str, str], tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main(["compare", *files, "--output", str(output)]) == 0
    before = {file.name: file.read_bytes() for file in output.iterdir()}

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastmmd.compare.figures.picture", interrupted)
    capsys.readouterr()
    assert main(["compare", *files, "--output", str(output), "--seed", "9"]) == 130
    printed = capsys.readouterr()
    assert printed.err == "fastmmd: interrupted, nothing was written\n"
    assert printed.out == ""
    assert {file.name: file.read_bytes() for file in output.iterdir()} == before


def test_an_output_that_is_a_file(
    files: tuple[str, str], tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("the folder is looked at before the work")

    monkeypatch.setattr(main_module, "compare", fail)
    assert main(["compare", *files, "--output", files[0]]) == 2
    assert "is not a folder that can be written to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("missing", "arguments", "said"),
    [
        ("matplotlib", ["a.npy", "b.npy", "--output", "out"], "--output needs matplotlib"),
        ("pyarrow", ["a.parquet", "b.npy"], "reading .parquet files needs pyarrow"),
    ],
)
def test_without_the_extra(
    missing: str, arguments: list[str], said: str, samples: tuple[Any, Any], tmp_path: Path
) -> None:
    for name, sample in zip("ab", samples, strict=True):
        np.save(tmp_path / f"{name}.npy", sample)
    write_parquet(tmp_path / "a.parquet", samples[0])
    code = (
        f"import sys; sys.modules[{missing!r}] = None; from fastmmd.cli import main;"
        f"sys.exit(main({['compare', *arguments]!r}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 2
    assert said in result.stderr
    assert "pip install 'fastmmd[cli]'" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()


def test_the_command_without_any_extra(samples: tuple[Any, Any], tmp_path: Path) -> None:
    for name, sample in zip("ab", samples, strict=True):
        np.save(tmp_path / f"{name}.npy", sample)
    code = (
        "import sys\n"
        "for name in ('rich', 'matplotlib', 'pyarrow', 'sklearn', 'lightning', 'pandas'):\n"
        "    sys.modules[name] = None\n"
        "from fastmmd.cli import main\n"
        "sys.exit(main(['compare', 'a.npy', 'b.npy', '--fail-on-difference']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.stderr == ""
    assert result.returncode == 1
    assert "different at the 5 % level" in result.stdout


def test_interrupt(tmp_path: Path) -> None:
    """Ctrl-C in the middle of the native pass."""
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(20000, 20)))
    # A shell's background jobs ignore the signal, and what they start does.
    program = """if True:
        import signal, sys
        from fastmmd.cli import main
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.exit(main())
    """
    command = [
        sys.executable, "-c", program, "compare", "a.npy", "a.npy", "--max-rows", "0",
        "--permutations", "20000", "--threads", "1", "--output", "out",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    folder = tmp_path / "out"
    while not folder.exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "fastmmd: interrupted, nothing was written\n"
    assert out == ""
    assert os.listdir(folder) == []


def test_threads_are_put_back(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    assert main(["compare", *files, "--threads", "1"]) == 0
    assert torch.get_num_threads() == threads


def test_output_that_is_closed_early(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(50, 3)))
    command = [sys.executable, "-m", "fastmmd.cli", "compare", "a.npy", "a.npy"]
    run = subprocess.Popen(
        [*command, "--fail-on-difference"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout
    run.stdout.close()
    assert run.wait() == 141
