"""Tables and texts of small files that the tests write, sound and damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from domains import TEXTS, batches, shuffled_rows, words, write_texts
from scipy.io import savemat

from fastmmd.compare.reading import InputError
from fastmmd.train import (
    Tables,
    Texts,
)

pytestmark = pytest.mark.training


# Tables

HEADER = "length,label,domain,width\n"


def rows(n: int = 24, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of two domains and two classes: petrol and diesel, which are not in order."""
    generator = np.random.default_rng(seed)
    return [
        {
            "length": float(np.float32(generator.normal() + (i % 2))),
            "label": ("petrol", "diesel")[i % 2],
            "domain": "north" if i < 2 * n // 3 else "south",
            "width": float(np.float32(100 * generator.normal())),
        }
        for i in range(n)
    ]


def write_csv(path: Path, separator: str = ",") -> str:
    lines = [separator.join(map(str, row.values())) for row in rows()]
    path.write_text("\n".join([HEADER.strip().replace(",", separator), *lines]) + "\n")
    return str(path)


def write_parquet(path: Path) -> str:
    pq.write_table(pa.Table.from_pylist(rows()), path)
    return str(path)


def arrays() -> dict[str, Any]:
    table = rows()
    return {
        "X": np.array([[row["length"], row["width"]] for row in table]),
        "label": np.array([0 if row["label"] == "diesel" else 1 for row in table]),
        "label_names": np.array(["diesel", "petrol"]),
        "domain": np.array([row["domain"] for row in table]),
    }


def write_npz(path: Path) -> str:
    np.savez(path, **arrays())
    return str(path)


def write_mat(path: Path) -> str:
    made = arrays() | {"label": arrays()["label"][:, None].astype(float)}
    made["label_names"] = np.array(["diesel", "petrol"], dtype=object)  # a cell array
    savemat(path, made)
    return str(path)


WRITERS: dict[str, Callable[[Path], str]] = {
    "a.csv": write_csv,
    "a.tsv": lambda path: write_csv(path, "\t"),
    "a.parquet": write_parquet,
    "a.npz": write_npz,
    "a.mat": write_mat,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_table_gives_the_same_samples(name: str, tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path / name)
    data = Tables(path, "north", "south", val_share=0.25, batch_size=4)
    assert data.classes == ("diesel", "petrol")
    table = rows()
    values = np.array([[row["length"], row["width"]] for row in table])
    expected = (values - values[:16].mean(0)) / values[:16].std(0)  # fitted on the source alone
    source, target = data.sources[0].train, data.target.train
    np.testing.assert_allclose(source.inputs, expected[:16], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(target.inputs, expected[16:], rtol=1e-5, atol=1e-6)
    assert source.labels.tolist() == [int(row["label"] == "petrol") for row in table[:16]]

    measured = [torch.cat([y for _, y in loader]).tolist() for loader in data.val_dataloader()]
    assert sorted(measured[0]) == [0, 0, 1, 1]  # a quarter of each class
    assert measured[1] == target.labels.tolist()
    for batch in batches(data):
        assert [part.shape for part in batch["source"]] == [(4, 2), (4,)]
        assert batch["target"].shape == (4, 2)  # and no labels


def test_a_file_for_each_domain_and_several_sources(tmp_path: Path) -> None:
    files = {}
    for domain in ("a", "b", "c"):
        files[domain] = tmp_path / f"{domain}.csv"
        lines = [f"{i},{i * i},{i % 3}" for i in range(9)]
        head = "x,y,kind\n" if domain != "c" else "x,y\n"
        lines = lines if domain != "c" else [line.rpartition(",")[0] for line in lines]
        files[domain].write_text(head + "\n".join(lines))
    data = Tables(files, ["a", "b"], "c", label="kind", batch_size=3, val_share=0)
    assert data.classes == ("0", "1", "2")
    assert data.target.labels is None
    assert data.val_dataloader() == []
    (batch, *_) = batches(data)
    assert [len(part) for part in batch["source"]] == [2, 2]
    alone = Tables(files, ["a", "b"], label="kind", batch_size=6, val_share=0)
    assert sum(len(y) for _, y in alone.train_dataloader()) == 18
    predicted = torch.cat(list(data.predict_dataloader()))
    assert predicted.shape == (9, 2)


def test_features_may_be_chosen_and_left_as_they_are(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv")
    data = Tables(path, "north", features=["width"], standardize=False)
    data.setup("fit")
    expected = [[row["width"]] for row in rows()[:16]]
    np.testing.assert_allclose(data.sources[0].train.inputs, expected, rtol=1e-6)
    constant = tmp_path / "b.csv"
    constant.write_text("x,label,domain\n1,a,d\n1,b,d\n")
    data = Tables(str(constant), "d", val_share=0)
    data.setup("fit")
    assert data.sources[0].train.inputs.tolist() == [[0.0], [0.0]]


def test_published_features(real_data: Path) -> None:
    path = real_data / "office_caltech_surf.npz"
    data = Tables(path, "amazon", "webcam", label="y", batch_size=64)
    assert data.classes == tuple(str(i) for i in range(1, 11))
    assert len(data.sources[0].train) == 958
    assert len(data.target.train) == 295
    raw = np.load(path)
    amazon = raw["X"][raw["domain"] == list(raw["domain_names"]).index("amazon")].astype(float)
    deviation = amazon.std(0)
    expected = (amazon - amazon.mean(0)) / np.where(deviation == 0, 1, deviation)
    np.testing.assert_allclose(data.sources[0].train.inputs, expected, rtol=1e-5, atol=1e-5)


def test_a_few_target_labels(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv")
    data = Tables(path, "north", "south", target_labels_per_class=2, batch_size=4)
    (batch, *_) = batches(data)
    assert sorted(batch["target_labelled"][1].tolist()) == [0, 0, 1, 1]
    few = {tuple(row) for row in batch["target_labelled"][0].tolist()}
    others = {tuple(row) for row in shuffled_rows(data.val_dataloader()[1]).tolist()}
    assert len(others) == 4
    assert not few & others
    seen = {tuple(row) for each in batches(data) for row in each["target"].tolist()}
    assert not few & seen
    with pytest.raises(InputError, match="south has 4 samples of class 'diesel', of which 4"):
        Tables(path, "north", "south", target_labels_per_class=4).setup("fit")
    with pytest.raises(ValueError, match="there is no target"):
        Tables(path, "north", target_labels_per_class=1).setup("fit")


def test_splits_and_orders_follow_from_the_seed(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv")

    def draws(seed: int, **options: Any) -> list[list[float]]:
        data = Tables(path, "north", batch_size=2, seed=seed, **options)
        return torch.cat([x for x, _ in data.train_dataloader()]).tolist()

    assert draws(0) == draws(0) != draws(1)
    assert draws(0, balanced=True) == draws(0, balanced=True) != draws(0)


def test_balanced_draws(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    lines = [f"{i},{'rare' if i % 10 == 0 else 'common'},{d}" for d in "st" for i in range(200)]
    path.write_text("x,label,domain\n" + "\n".join(lines))
    for target in (None, "t"):
        data = Tables(path, "s", target, balanced=True, batch_size=20, val_share=0)
        drawn = [b["source"] if isinstance(b, dict) else b for b in batches(data)]
        rare = torch.cat([y for _, y in drawn]).float().mean().item()
        assert abs(rare - 0.5) < 5 * 0.5 / 200**0.5  # five standard deviations of 200 draws


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", {}, "is empty"),
        ("1,2,3\n4,5,6\n", {}, "the first line does not name the columns"),
        ("x,label,domain\n", {}, "has no rows"),
        ("x,label,domain\n1,a,s\n1,a\n", {}, "line 3 has 2 columns where the first has 3"),
        ("x,label,domain\n1,a,s\nred,a,s\n", {}, "line 3 has text in column 'x': 'red'; features"),
        ("x,label,domain\n1,a,s\n,a,s\n", {}, "line 3 has nothing in column 'x'"),
        ("x,label,domain\n1,a,s\nnan,a,s\n", {}, "has a missing value"),
        ("x,kind,domain\n1,a,s\n2,a,s\n", {}, "has no column 'label'; it has 'x', 'kind'"),
        ("x,label\n1,a\n2,a\n", {}, "has no column 'domain'; it has 'x', 'label'"),
        ("x,label,domain\n1,a,s\n2,b,s\n", {"target": "t"}, "has no domain 't'; it has 's'"),
        ("x,label,domain\n1,a,s\n2,,s\n", {}, "a source must have a label in every row"),
        (
            "x,label,domain\n1,a,s\n2,b,s\n1,a,t\n2,c,t\n",
            {"target": "t"},
            r"t must have the same classes: .* lacks 'b' and has 'c' besides",
        ),
        (
            "x,label,domain\n1,a,s\n2,b,s\n1,a,t\n2,a,t\n",
            {"target": "t"},
            r"t must have the same classes: .* lacks 'b' and has none besides",
        ),
        (
            "x,label,domain\n1,a,s\n2,b,s\n1,a,t\n2,,t\n",
            {"target": "t"},
            r"row 1 \(from 0\) has no label, and others have",
        ),
        ("x,label,domain\n1,a,s\n2,b,s\n", {"features": ["y"]}, "has no column 'y'; it has 'x'"),
        ("label,domain\na,s\nb,s\n", {}, "a.csv"),
        ("x,label,domain\n\xff\xfe,a,s\n", {}, "is not UTF-8 text"),
    ],
)
def test_bad_tables(content: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=message) as caught:
        Tables(path, "s", **options).setup("fit")
    assert str(path) in str(caught.value)
    assert "--" not in str(caught.value)  # no option of a command line


def test_a_target_with_fewer_classes_may_be_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,label,domain\n1,a,s\n2,b,s\n1,b,t\n2,b,t\n")
    data = Tables(path, "s", "t", same_labels=False, val_share=0)
    data.setup("fit")
    assert data.target.labels.tolist() == [1, 1]


def test_damaged_tables(tmp_path: Path) -> None:
    def refused(name: str, content: bytes, message: str) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            Tables(path, "north").setup("fit")
        assert str(path) in str(caught.value)

    whole = {name: Path(write(tmp_path / name)).read_bytes() for name, write in WRITERS.items()}
    refused("b.npz", whole["a.npz"][:-200], "is no NumPy file, or is damaged")
    refused("b.npz", b"nothing", "is no NumPy file, or is damaged")
    refused("b.mat", whole["a.mat"][:300], "is no MATLAB file, or is damaged")
    refused("b.mat", b"x" * 600, "is no MATLAB file, or is damaged")
    refused("b.parquet", whole["a.parquet"][:-20], "is no Parquet file, or is damaged")
    refused("b.xls", b"1", "the name of a table ends in")
    with pytest.raises(InputError, match=r"nowhere\.csv: cannot be read"):
        Tables(tmp_path / "nowhere.csv", "north").setup("fit")

    def odd(message: str, **changed: Any) -> None:
        made = {name: array for name, array in (arrays() | changed).items() if array is not None}
        np.savez(tmp_path / "c.npz", **made)
        with pytest.raises(InputError, match=message):
            Tables(tmp_path / "c.npz", "north").setup("fit")

    odd("has no array 'label'", label=None)
    odd("24 rows of features and 20 entries of 'label'", label=arrays()["label"][:20])
    odd("features must name one of its arrays: 'X', 'Y'", Y=arrays()["X"])
    odd("has numbers that label_names has no entries for", label=arrays()["label"] + 1)
    odd("a value that is no number", X=np.full((24, 2), np.nan))
    odd("holds Python objects", X=np.array([[{}, 1]] * 24, dtype=object))
    odd(r"must be numbers \[n, d\]; they are complex128", X=np.full((24, 2), 1j))


def test_domains_of_unequal_tables(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("x,y,label\n1,2,a\n3,4,b\n")
    (tmp_path / "t.csv").write_text("x,label\n1,a\n3,b\n")
    (tmp_path / "u.csv").write_text("y,x,label\n1,2,a\n3,4,b\n")
    files = {name: tmp_path / f"{name}.csv" for name in "stu"}
    with pytest.raises(InputError, match=r"s.csv and .*t.csv must have as many features: .* 2 and"):
        Tables(files, "s", "t").setup("fit")
    with pytest.raises(InputError, match="the same columns in one order"):
        Tables(files, "s", "u").setup("fit")
    Tables(files, "s", "u", features=["x", "y"]).setup("fit")
    with pytest.raises(InputError, match="files has no domain 'v'; it has 's', 't', 'u'"):
        Tables(files, "s", "v").setup("fit")


# Texts


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_texts_become_tokens_of_one_length(name: str, tmp_path: Path) -> None:
    path = write_texts(tmp_path / name)
    data = Texts(path, "films", "kitchen", tokenizer=words, batch_size=2, val_share=0)
    assert data.classes == ("bad", "good")
    expected = words(
        [text for text, *_ in TEXTS],
        max_length=128,
        padding=True,
        truncation=True,
        return_tensors="pt",
    )
    for domain, part in ((data.sources[0], slice(0, 4)), (data.target, slice(4, 6))):
        for key, values in expected.items():
            assert torch.equal(domain.train.inputs[key], values[part])
    assert data.sources[0].train.labels.tolist() == [1, 0, 1, 0]
    (batch, *_) = batches(data)
    assert batch["source"][0]["input_ids"].shape == batch["target"]["input_ids"].shape == (2, 9)
    short = Texts(path, "films", tokenizer=words, max_length=3)
    short.setup("fit")
    assert short.sources[0].train.inputs["input_ids"].shape == (4, 3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text"', "line 2 is no JSON"),
        ("a.jsonl", "[1]\n", "line 1 is no object of names and values"),
        ("a.jsonl", "\n", "has no rows"),
        ("a.jsonl", '{"text": "x", "label": 1, "domain": "s"}\n{"text": "y"}', "entry 2 has no"),
        ("a.csv", "text,label,domain\nx,a,s\n ,b,s\n", r"row 1 \(from 0\) has an empty 'text'"),
        ("a.csv", "text,label,domain\nx,a\n", "line 2 has 2 columns where the first has 3"),
        ("a.csv", "words,label,domain\nx,a,s\n", "has no column 'text'; it has 'words'"),
        ("a.txt", "x", "the name of a table ends in .csv, .tsv, .parquet, .jsonl"),
    ],
)
def test_bad_texts(name: str, content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        Texts(path, "s", tokenizer=words).setup("fit")
    assert str(path) in str(caught.value)
    with pytest.raises(ValueError, match="max_length must be at least 1; got 0"):
        Texts(path, "s", tokenizer=words, max_length=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"val_share": 1.0}, r"val_share must lie in \[0, 1\); got 1.0"),
        ({"seed": -1}, "seed must not be negative; got -1"),
        ({"target_labels_per_class": -1}, "target_labels_per_class must not be negative"),
        ({"num_workers": -1}, "num_workers must not be negative"),
    ],
)
def test_data_modules_reject(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tables("a.csv", "s", **options)
