"""The report: its figures against first principles, its pages, and the record over a training."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from PIL import Image
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fastmmd import Gaussian, mmd2
from fastmmd._extras import MissingExtraError
from fastmmd._output import OutputError
from fastmmd.cli import main
from fastmmd.train import (
    Aligner,
    DomainPair,
    LayerHistory,
    Outputs,
    TransferGuard,
    WriteReport,
    collect,
    judge,
    layer_distances,
    report,
    scores,
)
from fastmmd.train.checkpoints import EveryEpoch

pytestmark = pytest.mark.training

PICTURES = ["confusion.png", "features.png", "gap.png", "samples.png", "training.png"]


def images(n: int, shift: float, seed: int) -> tuple[Tensor, Tensor]:
    """Images [n, 1, 4, 4] of three classes, and their labels [n]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    bars = torch.zeros(n, 1, 4, 4)
    bars[torch.arange(n), 0, labels] = 1.0
    return bars + shift + 0.2 * torch.randn(bars.shape, generator=generator), labels


def aligner() -> Aligner:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU())
    return Aligner(backbone, nn.Linear(12, 6), nn.Linear(6, 3), num_classes=3)


def loader(shift: float, seed: int, n: int = 45, labels: bool = True) -> DataLoader[Any]:
    tensors = images(n, shift, seed)
    return DataLoader(TensorDataset(*tensors[: 2 if labels else 1]), 20)


def pair() -> DomainPair:
    return DomainPair(
        TensorDataset(*images(48, 0.0, 0)),
        TensorDataset(images(48, 0.7, 1)[0]),
        source_val=TensorDataset(*images(45, 0.0, 2)),
        target_val=TensorDataset(*images(45, 0.7, 3)),
        batch_size=16,
        seed=0,
    )


def fit(*callbacks: L.Callback, ckpt_path: Path | None = None, **options: Any) -> Aligner:
    module = aligner()
    defaults: dict[str, Any] = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = L.Trainer(**{**defaults, **options}, callbacks=list(callbacks))
    trainer.fit(module, pair(), ckpt_path=ckpt_path, weights_only=True)
    return module


# Figures


def test_scores_are_those_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 4, generator=generator)
    labels = torch.randint(4, (60,), generator=generator)
    found = scores(Outputs(logits, logits, labels))
    predictions = logits.argmax(1)
    macro = precision_recall_fscore_support(labels, predictions, average="macro")
    single = precision_recall_fscore_support(labels, predictions)
    for i, name in enumerate(("precision", "recall", "f1")):
        assert found[name] == pytest.approx(macro[i], rel=1e-6)
        assert found["per_class"][name].tolist() == pytest.approx(list(single[i]), rel=1e-6)
    assert found["confusion"].tolist() == confusion_matrix(labels, predictions).tolist()
    assert found["accuracy"] == float((labels == predictions).double().mean())
    with pytest.raises(ValueError, match="labels are needed"):
        scores(Outputs(logits, logits))


def test_layer_distances_are_mmd() -> None:
    module = aligner()
    source, target = (collect(module, loader(s, 0), layers=["backbone.1"]) for s in (0.0, 0.7))
    found = layer_distances(source, target)
    assert list(found) == ["backbone.1", "features", "logits"]
    for name, x, y in (
        ("backbone.1", source.layers["backbone.1"], target.layers["backbone.1"]),
        ("features", source.features, target.features),
    ):
        assert found[name] == float(mmd2(x, y, Gaussian("mean"), "unbiased"))
    fewer = layer_distances(source, target, max_samples=10)
    assert fewer["features"] != found["features"]
    assert fewer["features"] == pytest.approx(found["features"], rel=0.5)


def test_the_record_of_a_training_and_of_a_resumed_one(tmp_path: Path) -> None:
    whole, untouched = LayerHistory(["bottleneck"]), fit()
    module = fit(whole, EveryEpoch(tmp_path), enable_checkpointing=True, max_epochs=2)
    assert set(whole.mmd2) == {"bottleneck", "features", "logits"}
    assert all(len(values) == 3 for values in whole.mmd2.values())
    assert whole.mmd2["bottleneck"] == whole.mmd2["features"]
    first = layer_distances(*(collect(aligner(), loader(s, i)) for s, i in ((0.0, 2), (0.7, 3))))
    assert whole.mmd2["features"][0] == pytest.approx(first["features"], rel=1e-5)
    assert whole.accuracy["target"][-1] == collect(module, loader(0.7, 3)).accuracy()

    resumed = LayerHistory(["bottleneck"])
    module = fit(resumed, ckpt_path=tmp_path / "last.ckpt")
    assert {name: values[:3] for name, values in resumed.mmd2.items()} == whole.mmd2
    assert len(resumed.mmd2["features"]) == 4
    # Neither the record nor the stop changed the training, but for the schedule of the weight.
    beside = fit(LayerHistory())
    for name, value in untouched.state_dict().items():
        assert torch.equal(value, beside.state_dict()[name]), name


# Pages


class Words(HTMLParser):
    """The text and the tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img", "!doctype"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_training_with_guard_history_and_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guard, history = TransferGuard(), LayerHistory(["backbone.1"])
    writer = WriteReport(str(tmp_path), classes=["<a>", "b|c", "$d"], title="A & B")
    module = fit(guard, history, writer)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert "report.html" in capsys.readouterr().out
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Words()
    page.feed(text)
    assert not page.open
    assert page.tags.count("img") == 5
    assert len(re.findall(r'src="data:image/png;base64,', text)) == 5
    assert 'src="http' not in text
    assert guard.verdict is not None
    assert guard.verdict.sentence() in page.text
    accuracy = collect(module, loader(0.7, 3)).accuracy()
    assert f"{100 * accuracy:.1f} %" in page.text
    for word in ("A & B", "<a>", "source only", "aligned", "backbone.1", "torch", "num_classes"):
        assert word in page.text


@pytest.mark.parametrize("labels", [True, False])
def test_markdown_and_its_pictures(labels: bool, tmp_path: Path) -> None:
    module = aligner()
    source, target = loader(0.0, 0), loader(0.7, 1, labels=labels)
    path = report(module, source, target, tmp_path, form="md", embedding="tsne", before=aligner())
    assert path == tmp_path / "report.md"
    text = path.read_text(encoding="utf-8")
    linked = re.findall(r"\]\((.*?)\)", text)
    assert sorted(linked) == [name for name in PICTURES if name != "training.png"]
    for name in linked:
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 500
            assert len(picture.convert("L").getcolors(1 << 24) or []) > 20
    assert ("no labels" in text) != labels
    assert "Not judged" in text
    # The shares of the listed samples are those of their contributions.
    (share,) = re.findall(r"\| source sample .*\n.*\n\| \d+ \| ([\d.]+) %", text)
    assert 0 < float(share) < 100


def test_features_that_are_not_images_and_many_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    points, labels = torch.randn(60, 5), torch.arange(60) % 30
    module = Aligner(nn.Identity(), nn.Linear(5, 1), nn.Linear(1, 30), num_classes=30)
    data = DataLoader(TensorDataset(points, labels), 60)
    path = report(module, data, data, tmp_path, form="md")
    assert not (tmp_path / "samples.png").exists()
    # One and the same sample twice: nothing is left to explain.
    assert "| features | -0.0" in path.read_text(encoding="utf-8")


def test_report_from_the_command_line(repository: Path, tmp_path: Path) -> None:
    status = main(
        [
            "fit",
            f"--config={repository / 'examples' / 'guarded_digits.yaml'}",
            "--trainer.max_epochs=1",
            "--trainer.limit_train_batches=1",
            "--trainer.logger=false",
            "--trainer.enable_progress_bar=false",
            f"--trainer.default_root_dir={tmp_path}",
        ]
    )
    assert status == 0
    text = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "judged without target labels" in text


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "pdf"}, "form must be one of html, md; got 'pdf'"),
        ({"embedding": "lda"}, "embedding must be one of pca, tsne, umap; got 'lda'"),
        ({"top": 0}, "top must be at least 1; got 0"),
        ({"classes": ["a", "b"]}, "classes must be the names of 3 classes; got 2"),
        ({"layers": ["tail"]}, "layers must be names of modules, .*; got 'tail'"),
    ],
)
def test_report_rejects(options: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        report(aligner(), loader(0.0, 0), loader(0.7, 1), tmp_path / "out", **options)
    assert not list(tmp_path.rglob("report*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "pdf"}, "form must be one of html, md; got 'pdf'"),
        ({"embedding": "lda"}, "embedding must be one of pca, tsne, umap; got 'lda'"),
        ({"classes": ["a", "b"]}, "classes must be the names of 3 classes; got 2"),
    ],
)
def test_a_report_that_cannot_be_written_is_found_out_before_the_training(
    options: Any, message: str, tmp_path: Path
) -> None:
    started: list[int] = []
    notes = LambdaCallback(on_train_batch_start=lambda *_: started.append(1))
    with pytest.raises(ValueError, match=message):
        fit(WriteReport(str(tmp_path), **options), notes)
    assert not started


def test_the_loaders_of_the_guard_are_those_of_the_report(tmp_path: Path) -> None:
    source, target = loader(0.0, 5, n=30), loader(0.7, 6, n=24)
    guard = TransferGuard(aligner(), source=source, target=target)
    fit(guard, WriteReport(str(tmp_path), form="md"), limit_val_batches=0, max_epochs=1)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| source samples | 30 |" in text
    assert "| target samples | 24 |" in text


def test_a_report_leaves_the_random_numbers_of_the_training(tmp_path: Path) -> None:
    drawn = []
    for callbacks in ([], [WriteReport(str(tmp_path))]):
        torch.manual_seed(4)
        fit(LambdaCallback(on_train_end=lambda *_: drawn.append(torch.rand(()))), *callbacks,
            max_epochs=1)  # fmt: skip
    assert drawn[0] == drawn[1]


def test_a_model_that_diverged_has_no_report(tmp_path: Path) -> None:
    module, source, target = aligner(), loader(0.0, 0), loader(0.7, 1)
    nn.init.constant_(module.bottleneck.weight, float("nan"))
    with pytest.raises(ValueError, match="features and logits must be finite; on the source"):
        report(module, source, target, tmp_path)
    assert not list(tmp_path.iterdir())


def test_report_says_what_it_cannot_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = loader(0.0, 0), loader(0.7, 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="not a folder that can be written to"):
        report(aligner(), source, target, tmp_path / "file")
    with pytest.raises(OutputError, match="not a folder that can be written to"):
        fit(WriteReport(str(tmp_path / "file")), default_root_dir=tmp_path)
    with pytest.raises(ValueError, match="there is no source loader"):
        fit(WriteReport(str(tmp_path / "out")), default_root_dir=tmp_path, limit_val_batches=0)
    monkeypatch.setitem(sys.modules, "umap", None)  # type: ignore[arg-type]
    with pytest.raises(MissingExtraError, match="umap-learn"):
        report(aligner(), source, target, tmp_path / "out", embedding="umap")
    with pytest.raises(MissingExtraError, match="umap-learn"):
        WriteReport(embedding="umap")
    assert not list((tmp_path / "out").iterdir())


def test_a_report_with_a_verdict_alone(tmp_path: Path) -> None:
    module = aligner()
    outputs = tuple(collect(module, loader(s, 0)) for s in (0.0, 0.7))
    verdict = judge(outputs, outputs)  # type: ignore[arg-type]
    assert verdict.word == "did not help"
    assert verdict.disagreement == 0
    path = report(module, loader(0.0, 0), loader(0.7, 0), tmp_path, verdict=verdict, form="md")
    assert "Alignment did not help" in path.read_text(encoding="utf-8")
