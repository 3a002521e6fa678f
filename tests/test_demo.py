"""The demo: its data, its folder, and a short run of the whole."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits
from tolerance import threads

from fastmmd._output import OutputError, OutputFolder
from fastmmd.cli import main
from fastmmd.demo import data as demo_data
from fastmmd.demo import main as demo_main
from fastmmd.demo.data import SIDE, STRIP, TEST_PATCHES, ClutteredDigits, left_edges, make_domains
from fastmmd.demo.experiment import MODELS, Recorder, Settings, modules, train
from fastmmd.demo.main import demo
from fastmmd.demo.timing import interleaved_ms
from fastmmd.train import Aligner

FILES = {"accuracy.png", "aligned.ckpt", "features.png", "samples.png", "summary.json"}


@pytest.fixture(autouse=True, scope="module")
def _two_threads() -> Iterator[None]:
    """What the demo is to run well with; tests may run side by side."""
    with threads(2):
        yield


# One run is measured by several tests: one worker makes it for them all.
together = pytest.mark.xdist_group("demo")


# Data


def test_no_digit_is_in_two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits that carry their number, so that each can be followed through the split."""
    real = load_digits()
    number = np.arange(len(real.images), dtype=np.float32)
    real.images = np.broadcast_to(number[:, None, None] * 16 / 4096, real.images.shape).copy()
    monkeypatch.setattr(demo_data, "load_digits", lambda: real)
    monkeypatch.setattr(demo_data, "CONTRAST", 0.0)
    domains = make_domains(5)
    once = len(domains.target_test) // TEST_PATCHES
    images = [
        domains.source_train.tensors[0],
        domains.target_train.digits,
        domains.source_test.tensors[0],
        domains.target_test.tensors[0][:once],
    ]
    seen = [(4096 * part[:, 0, 0, 0]).round().long().tolist() for part in images]
    assert sorted(n for part in seen for n in part) == list(range(1797))
    assert [len(part) for part in seen] == list(domains.sizes().values())
    # Labels stay with their digits.
    test_numbers, test_labels = seen[3] * TEST_PATCHES, domains.target_test.tensors[1]
    assert test_labels.tolist() == [int(real.target[n]) for n in test_numbers]


def test_target_is_digit_over_clutter() -> None:
    domains = make_domains(0)
    clutter = domains.target_train
    digit = clutter.digits[3]
    image = clutter[3]
    assert image.shape == digit.shape == (1, SIDE, SIDE)
    assert image.dtype == torch.float32
    assert (image >= digit).all()
    assert image.max() <= 1
    patch = (image - digit) / (0.7 * (1 - digit).clamp_min(1e-3))
    sheer = digit < 0.9
    assert patch[sheer].min() >= 0
    assert patch[sheer].max() <= 1 + 1e-4


def test_patches_are_fresh_at_each_read_and_fixed_by_the_seed() -> None:
    first, second = make_domains(1), make_domains(1)
    reads = [first.target_train[0] for _ in range(5)]
    again = [second.target_train[0] for _ in range(5)]
    assert all(torch.equal(a, b) for a, b in zip(reads, again, strict=True))
    assert not any(torch.equal(reads[0], other) for other in reads[1:])
    assert torch.equal(first.target_test.tensors[0], second.target_test.tensors[0])
    assert not torch.equal(first.target_test.tensors[0], make_domains(2).target_test.tensors[0])


def test_no_pixel_of_the_photographs_is_in_training_and_evaluation() -> None:
    columns = [
        {int(left) + offset for left in left_edges(640, held_out) for offset in range(SIDE)}
        for held_out in (False, True)
    ]
    assert not columns[0] & columns[1]
    assert columns[0] | columns[1] == set(range(640))
    assert columns[1] == {c for c in range(640) if c // STRIP in (2, 5)}


def test_training_data_of_the_target_has_no_labels() -> None:
    assert isinstance(make_domains(0).target_train[0], torch.Tensor)
    assert isinstance(make_domains(0).target_train, ClutteredDigits)


# Models


def test_models_share_initial_weights_and_source_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything a training step is given is the same, but for what a model is to differ in."""
    initial: dict[str, dict[str, torch.Tensor]] = {}
    batches: dict[str, list[Any]] = {}
    step = Aligner.training_step

    def recording(self: Aligner, batch: Any, batch_idx: int) -> Any:
        if not batches[model]:
            initial[model] = {k: v.clone() for k, v in self.state_dict().items()}
        batches[model].append(batch)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Aligner, "training_step", recording)
    settings = Settings(seeds=1, epochs=1)
    for model in MODELS:
        batches[model] = []
        train(model, 4, make_domains(4), settings, lambda source, target: None)
    assert {m: len(b) for m, b in batches.items()} == dict.fromkeys(MODELS, 5)
    for model in ("control", "aligned"):
        for name, value in initial["source-only"].items():
            assert torch.equal(value, initial[model][name]), name
        for ours, theirs in zip(batches["source-only"], batches[model], strict=True):
            assert torch.equal(ours["source"][0], theirs["source"][0])
            assert torch.equal(ours["source"][1], theirs["source"][1])
            assert torch.equal(ours["target"], theirs["target"])


def test_interruption_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)  # Lightning takes it away
    monkeypatch.setattr(Recorder, "on_train_batch_end", interrupted)
    try:
        assert main(["demo", "--quick", "--threads", "2", "--output", str(tmp_path)]) == 130
    finally:
        signal.signal(signal.SIGINT, handler)
    assert "interrupted, nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# The whole


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A short run: its folder, what it returned and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "runs" / "demo"
    console = Console(file=io.StringIO(), width=80)
    summary = demo(folder, Settings(seeds=2, epochs=2), console)
    return folder, summary, console.file.getvalue()  # type: ignore[attr-defined]


@together
def test_files(finished: tuple[Path, dict[str, Any], str]) -> None:
    folder, summary, printed = finished
    assert {file.name for file in folder.iterdir()} == FILES
    assert json.loads((folder / "summary.json").read_text()) == summary
    for picture in folder.glob("*.png"):
        with Image.open(picture) as image:
            assert image.width > 1000
            assert len(image.convert("L").histogram()) == 256
            assert len(image.getcolors(1 << 24) or []) > 50
    assert all(name in printed for name in FILES)


@together
def test_summary(finished: tuple[Path, dict[str, Any], str]) -> None:
    summary = finished[1]
    assert set(summary) == {
        "fastmmd",
        "torch",
        "python",
        "threads",
        "settings",
        "digits",
        "models",
        "gains",
        "loss",
        "seconds",
        "runs",
    }
    assert [(run["seed"], run["model"]) for run in summary["runs"]] == [
        (seed, model) for seed in range(2) for model in MODELS
    ]
    for run in summary["runs"]:
        assert all(len(values) == 2 for values in run["history"].values())
        # The last epoch is what counts, and nothing is selected.
        assert run["target_accuracy"] == run["history"]["target_accuracy"][-1]
        assert run["source_accuracy"] == run["history"]["source_accuracy"][-1]
    loss = summary["loss"]
    assert loss["speedup"] == pytest.approx(loss["pytorch_ms"] / loss["fastmmd_ms"])
    assert loss["fastmmd_share_of_step"] == pytest.approx(
        100 * loss["fastmmd_ms"] / loss["step_ms"]
    )
    aligned = [run["step_ms"] for run in summary["runs"] if run["model"] == "aligned"]
    assert loss["step_ms"] == pytest.approx(mean(aligned))
    assert sum(summary["digits"].values()) == 1797


@together
def test_table_shows_the_figures_of_the_summary(
    finished: tuple[Path, dict[str, Any], str],
) -> None:
    """Each printed figure, worked out anew from the single runs in the file."""
    folder, _, printed = finished
    summary = json.loads((folder / "summary.json").read_text())
    table = printed[printed.index("Held-out digits") :]

    def values(model: str, key: str) -> list[float]:
        return [run[key] for run in summary["runs"] if run["model"] == model]

    for model in MODELS:
        (row,) = (line for line in table.splitlines() if line.strip().startswith(model))
        shown = re.findall(r"(-?\d+\.\d+) ± (\d+\.\d+)", row)
        for key, (centre, spread) in zip(
            ("source_accuracy", "target_accuracy", "mmd2"), shown, strict=True
        ):
            digits = len(centre.split(".")[1])
            assert centre == f"{mean(values(model, key)):.{digits}f}"
            assert spread == f"{stdev(values(model, key)):.{digits}f}"
    for model in ("source-only", "control"):
        gains = [
            a - b
            for a, b in zip(
                values("aligned", "target_accuracy"), values(model, "target_accuracy"), strict=True
            )
        ]
        gain = f"{mean(gains):+.1f} points on the target ({min(gains):+.1f} to {max(gains):+.1f})"
        assert f"over {model}: {gain}" in table
    loss = summary["loss"]
    for name, key in (("fastmmd", "fastmmd"), ("plain PyTorch", "pytorch")):
        (row,) = (line for line in table.splitlines() if re.match(rf" *{name} +\d", line))
        shown = row.replace(name, "").split()
        assert shown == [f"{loss[f'{key}_ms']:.2f}", f"{loss[f'{key}_share_of_step']:.1f}"]
    assert f"a training step takes {loss['step_ms']:.1f} ms" in table


@together
def test_checkpoint_is_the_aligned_model(finished: tuple[Path, dict[str, Any], str]) -> None:
    folder, summary, _ = finished
    aligner = Aligner.load_from_checkpoint(folder / "aligned.ckpt", **modules()).eval()
    images, labels = make_domains(0).target_test.tensors
    with torch.no_grad():
        accuracy = 100 * (aligner(images).argmax(1) == labels).double().mean().item()
    (run,) = (r for r in summary["runs"] if (r["seed"], r["model"]) == (0, "aligned"))
    # Batches of another size round otherwise: a digit on the edge may change sides.
    assert accuracy == pytest.approx(run["target_accuracy"], abs=100 * 2 / len(labels))


# The folder


def test_unwritable_folder_is_found_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_main, "train_all", lambda *_: pytest.fail("it trained"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"--output '.*file/below' is not a folder"):
        demo(tmp_path / "file" / "below")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a refusal of the system call, as root may write anywhere."""

    def refuse(**_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(OutputError, match="Permission denied"):
        OutputFolder(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


def test_folders_made_on_the_way_are_removed(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="File name too long"):
        OutputFolder(tmp_path / "a" / "b" / ("c" * 300))
    assert not list(tmp_path.iterdir())


def test_files_appear_together_or_not_at_all(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path / "a" / "b")
    (folder.path / "kept.txt").write_text("kept")
    (folder.path / "one.txt").write_text("old")

    def fill(disk_full: bool) -> None:
        with folder.filling() as path:
            (path / "one.txt").write_text("new")
            if disk_full:
                raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fill(disk_full=True)
    assert {f.name: f.read_text() for f in folder.path.iterdir()} == {
        "kept.txt": "kept",
        "one.txt": "old",
    }
    fill(disk_full=False)
    assert {f.name: f.read_text() for f in folder.path.iterdir()} == {
        "kept.txt": "kept",
        "one.txt": "new",
    }


# Timing


def test_losses_are_timed_in_turns() -> None:
    calls: list[str] = []

    def loss(name: str) -> Any:
        def call(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            calls.append(name)
            assert x.grad is None
            assert x.requires_grad
            return (x.sum() - y.sum()) ** 2

        return call

    x = torch.ones(3, 2)
    times = interleaved_ms({"a": loss("a"), "b": loss("b")}, x, 2 * x, rounds=4)
    assert calls == ["a", "b"] * 7
    assert set(times) == {"a", "b"}
    assert all(math.isfinite(t) and t > 0 for t in times.values())
    assert x.grad is None
