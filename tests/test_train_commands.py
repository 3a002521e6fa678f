"""``fastmmd fit`` and ``predict``: what they write, what they survive, what they say."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from fastmmd.cli import main
from fastmmd.compare.reading import InputError
from fastmmd.train import Aligner, collect
from fastmmd.train.checkpoints import AtomicCheckpointIO, load_checkpoint
from fastmmd.train.predictions import write_predictions

pytestmark = pytest.mark.training

# A data module for class_path, with random inputs, that can kill its process.
POINTS = """
import os, signal
import torch
from torch.utils.data import Dataset, TensorDataset
from fastmmd.train import DomainPair

class Points(Dataset):
    def __init__(self, n, shift, noise, dies_at=0):
        self.labels = torch.arange(n) % 3
        self.points = torch.eye(3)[self.labels][:, :2] * 3 + shift
        self.noise, self.dies_at, self.reads = noise, dies_at, 0

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        self.reads += 1
        if self.reads == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.points[index] + self.noise * torch.randn(2), self.labels[index]

class PointsPair(DomainPair):
    def __init__(self, dies_at: int = 0, target_size: int = 40, batch_size: int = 16):
        fixed = TensorDataset(*(torch.eye(3)[:, :2], torch.arange(3)))
        super().__init__(
            Points(48, 0.0, 0.3, dies_at), Points(target_size, 1.0, 0.0),
            source_val=fixed, target_val=fixed, batch_size=batch_size,
        )
"""


@pytest.fixture
def points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the module ``points`` and a configuration ``c.yaml`` that trains on it."""

    def layer(name: str, **arguments: Any) -> dict[str, Any]:
        return {"class_path": f"torch.nn.{name}", "init_args": arguments}

    config = {
        "seed_everything": 3,
        "trainer": {
            "max_epochs": 4,
            "accelerator": "cpu",
            "default_root_dir": str(tmp_path / "out"),
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        "model": {
            "class_path": "Aligner",
            "init_args": {
                "num_classes": 3,
                "backbone": {
                    "class_path": "Stack",
                    "init_args": {
                        "layers": [
                            layer("Linear", in_features=2, out_features=16),
                            layer("ReLU"),
                            layer("Dropout", p=0.2),
                        ]
                    },
                },
                "bottleneck": layer("Linear", in_features=16, out_features=4),
                "classifier": layer("Linear", in_features=4, out_features=3),
                "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}},
                "scheduler": {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR"},
            },
        },
        "data": {"class_path": "points.PointsPair"},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "points.py").write_text(POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("points", None)


def command(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "fastmmd.cli", *arguments],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its status and what it said of errors."""
    error = process.communicate(timeout=300)[1]
    return process.returncode, error


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]


def test_a_killed_training_goes_on_as_if_nothing_had_been(points: Path) -> None:
    """Killed in its third epoch, with random inputs, dropout and a schedule of the rate."""
    fit = ["fit", "--config", str(points / "c.yaml"), "--trainer.default_root_dir"]
    whole = command(points, *fit, str(points / "whole"))
    dies_at = 2 * 48 + 20  # reads of the source
    killed = command(points, *fit, str(points / "cut"), f"--data.dies_at={dies_at}")
    (status, error), (killed_status, _) = finished(whole), finished(killed)
    assert status == 0, error
    assert killed_status == -signal.SIGKILL
    assert load_checkpoint(points / "cut/checkpoints/last.ckpt")["epoch"] == 1
    resumed = command(points, *fit, str(points / "cut"), "--ckpt_path", "last")
    status, error = finished(resumed)
    assert status == 0, error
    first, second = weights(points / "whole"), weights(points / "cut")
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert [file.name for file in (points / "cut/checkpoints").iterdir()] == ["last.ckpt"]


def test_fit_validate_test_and_predict(points: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", str(points / "c.yaml")]
    assert main(["fit", *options, "--ckpt_path", "last"]) == 0
    assert "starting from the beginning" in capsys.readouterr().err
    measured = []
    for name, stage in (("validate", "val"), ("test", "test")):
        assert main([name, *options, "--ckpt_path", "last"]) == 0
        shown = capsys.readouterr().out
        found = re.findall(rf"{stage}_(source_loss|\w+_accuracy)[ │]+([\d.]+)", shown)
        measured.append({metric: float(value) for metric, value in found})
        assert list(measured[-1]) == ["source_accuracy", "source_loss", "target_accuracy"]
    assert measured[0] == measured[1]  # DomainPair tests on what it validates on
    for name in ("new/p.csv", "new/p.npz"):
        output = str(points / name)
        assert main(["predict", *options, "--ckpt_path", "last", "--output", output]) == 0
    assert sorted(file.name for file in (points / "new").iterdir()) == ["p.csv", "p.npz"]
    with (points / "new/p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["row"]) for row in rows] == list(range(40))
    for row in rows:
        shares = [float(row[f"p{c}"]) for c in range(3)]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert shares[int(row["class"])] == max(shares)
    with np.load(points / "new/p.npz") as arrays:
        assert arrays["logits"].shape == arrays["probabilities"].shape == (40, 3)
        assert (arrays["classes"] == arrays["logits"].argmax(1)).all()
        logits = arrays["logits"]
    # The weights are those of the checkpoint.
    linear = torch.nn.Linear
    network = torch.nn.Sequential(linear(2, 16), torch.nn.ReLU(), torch.nn.Dropout(0.2))
    aligner = Aligner(network, linear(16, 4), linear(4, 3), num_classes=3)
    aligner.load_state_dict(weights(points / "out"))
    target = torch.eye(3)[torch.arange(40) % 3][:, :2] * 3 + 1
    expected = collect(aligner, target.split(16)).logits
    torch.testing.assert_close(torch.from_numpy(logits), expected)
    corners = torch.eye(3)[:, :2]
    on_source = collect(aligner, [(corners, torch.arange(3))])
    assert measured[1]["source_accuracy"] == pytest.approx(on_source.accuracy())
    assert measured[1]["source_loss"] == pytest.approx(float(on_source.losses().mean()), rel=1e-5)
    # Nothing of this has written to the checkpoints.
    assert [file.name for file in (points / "out/checkpoints").iterdir()] == ["last.ckpt"]


def test_a_training_with_a_teacher_is_resumed(points: Path) -> None:
    """The teacher is in no checkpoint, and no checkpoint of the same model lacks it."""
    config = yaml.safe_load((points / "c.yaml").read_text())
    layer = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 3}}
    config["model"] = {
        "class_path": "FineTuner",
        "init_args": {
            "backbone": {**layer, "init_args": {"in_features": 2, "out_features": 4}},
            "num_classes": 3,
            "in_features": 4,
            "distillation": {"class_path": "Distillation", "init_args": {"teacher": layer}},
        },
    }
    (points / "c.yaml").write_text(yaml.safe_dump(config))
    fit = ["fit", "--config", str(points / "c.yaml"), "--trainer.max_epochs"]
    assert main([*fit, "1"]) == 0
    before = weights(points / "out")
    assert not [name for name in before if "teacher" in name]
    assert main([*fit, "2", "--ckpt_path", "last"]) == 0
    after = weights(points / "out")
    assert before.keys() == after.keys()
    assert not torch.equal(before["backbone.weight"], after["backbone.weight"])


def test_the_example_runs(repository: Path, tmp_path: Path) -> None:
    status = main(
        [
            "fit",
            f"--config={repository / 'examples' / 'align_digits.yaml'}",
            "--trainer.max_epochs=1",
            "--trainer.limit_train_batches=1",
            "--trainer.limit_val_batches=1",
            "--trainer.logger=false",
            "--trainer.enable_progress_bar=false",
            f"--trainer.default_root_dir={tmp_path}",
        ]
    )
    assert status == 0
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()
    assert "class_path: fastmmd.train.Aligner" in (tmp_path / "config.yaml").read_text()


def test_a_checkpoint_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "last.ckpt"
    storage = AtomicCheckpointIO()
    storage.save_checkpoint({"state_dict": {"w": torch.ones(2)}}, path)

    def interrupted(checkpoint: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(OSError, match="disk full"):
        storage.save_checkpoint({"state_dict": {"w": torch.zeros(2)}}, path)
    assert storage.load_checkpoint(path)["state_dict"]["w"].tolist() == [1, 1]
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


# Mistakes


class Harmful:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.init_args.wieght=1"], "Option 'wieght' is not accepted"),
        (["--model.class_path=Alinger"], "Alinger"),
        (["--model.init_args.schedule=linaer"], "linaer"),
        (["--data.class_path=points.Nothing"], "Nothing"),
        (["--data.class_path=nowhere.Nothing"], "nowhere"),
        (["--trainer.epochs=1"], "epochs"),
        (["--model.init_args.weight=-1"], "weight must be a finite number that is not negative"),
        (["--data.target_size=0"], "target must not be empty"),
        (["--trainer.max_epochs=-1"], "a schedule needs a training with an end"),
    ],
)
def test_mistakes_in_the_configuration(
    options: list[str], message: str, points: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in said(capsys, "fit", "--config", str(points / "c.yaml"), *options)
    assert not (points / "out" / "checkpoints").exists()


def test_mistakes_in_files(points: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nofile.yaml" in said(capsys, "fit", "--config", "nofile.yaml")
    config = ["--config", str(points / "c.yaml")]
    assert main(["fit", *config, "--trainer.max_epochs=1"]) == 0
    capsys.readouterr()
    last = points / "out" / "checkpoints" / "last.ckpt"

    predict = ["predict", *config, "--ckpt_path"]
    assert "No such file" in said(capsys, *predict, str(points / "nofile.ckpt"))
    other = "--model.init_args.bottleneck.init_args.out_features=5"
    wider = "--model.init_args.classifier.init_args.in_features=5"
    assert "is of another architecture" in said(capsys, *predict, str(last), other, wider)
    processes = ["--trainer.devices=2", "--output", str(points / "part.csv")]
    assert "in one process; got 2 processes" in said(capsys, *predict, str(last), *processes)
    assert not (points / "part.csv").exists()
    assert "must end in .csv or .npz" in said(capsys, *predict, str(last), "--output", "p.txt")
    occupied = str(points / "c.yaml" / "p.csv")
    assert "is not a folder that can be written to" in said(
        capsys, *predict, str(last), "--output", occupied
    )
    whole = last.read_bytes()
    damaged = points / "damaged.ckpt"
    for content in (b"", b"no checkpoint", whole[: len(whole) // 2], b"\x80\x02garbage"):
        damaged.write_bytes(content)
        assert "is damaged, no checkpoint, or holds" in said(capsys, *predict, str(damaged))
    torch.save({"state_dict": {"w": Harmful(points / "ran")}}, damaged)
    assert "is damaged, no checkpoint, or holds" in said(capsys, *predict, str(damaged))
    assert not (points / "ran").exists()
    torch.save({"weights": torch.zeros(1)}, damaged)
    assert "holds no state_dict" in said(capsys, *predict, str(damaged))
    assert "lacks" in said(capsys, "fit", *config, "--ckpt_path", str(_foreign(damaged)))


def _foreign(path: Path) -> Path:
    torch.save({"state_dict": {"w": torch.zeros(1)}}, path)
    return path


def test_errors_that_are_not_ours_keep_their_traceback(points: Path) -> None:
    broken = POINTS.replace("self.reads += 1", "raise ValueError('a bug of the user')")
    (points / "points.py").write_text(broken)
    with pytest.raises(ValueError, match="a bug of the user"):
        main(["fit", "--config", str(points / "c.yaml")])


@pytest.mark.parametrize("missing", ["lightning", "torchmetrics", "jsonargparse"])
def test_the_missing_extra_is_named(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)  # type: ignore[arg-type]
    error = said(capsys, "fit", "--config", "c.yaml")
    assert f"fastmmd fit needs {missing}" in error
    assert "pip install 'fastmmd[train]'" in error


def test_help_is_lightnings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--help"]) == 0
    assert "--output" in capsys.readouterr().out


def test_predictions_of_several_loaders_follow_each_other(tmp_path: Path) -> None:
    logits = torch.randn(5, 2)
    write_predictions(tmp_path / "p.npz", [[logits[:2], logits[2:3]], [logits[3:]]])
    with np.load(tmp_path / "p.npz") as arrays:
        assert torch.equal(torch.from_numpy(arrays["logits"]), logits)
    with pytest.raises(InputError, match="gave no batch"):
        write_predictions(tmp_path / "p.npz", [])


def test_predictions_of_files_name_them(tmp_path: Path) -> None:
    logits, paths = torch.eye(3), [tmp_path / f"{i},x.png" for i in range(4)]
    write_predictions(tmp_path / "p.npz", [logits], paths)
    with np.load(tmp_path / "p.npz") as found:
        assert found["paths"].tolist() == [str(path) for path in paths[:3]]
    write_predictions(tmp_path / "p.csv", [logits], paths)
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["row", "path", "class", "p0", "p1", "p2"]
    assert [row["path"] for row in rows] == [str(path) for path in paths[:3]]


def test_the_configuration_in_the_docs(
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (repository / "docs" / "cli.md").read_text(encoding="utf-8")
    (tmp_path / "c.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    for seed, name in enumerate(("clinic", "home")):
        points = torch.randn(120, 3, generator=torch.Generator().manual_seed(seed)) + seed
        lines = [f"{a},{b},{c},{int(a > seed)}" for a, b, c in points.tolist()]
        (tmp_path / f"{name}.csv").write_text("\n".join(["age,weight,height,label", *lines]))
    monkeypatch.chdir(tmp_path)
    quiet = ["--trainer.logger=false", "--trainer.enable_progress_bar=false"]
    assert main(["fit", "--config", "c.yaml", "--trainer.max_epochs=2", *quiet]) == 0
    assert (tmp_path / "runs/ages/checkpoints/last.ckpt").is_file()
    assert (tmp_path / "runs/ages/report/report.html").is_file()
    predict = ["predict", "--config", "c.yaml", "--ckpt_path", "last", *quiet]
    assert main([*predict, "--output", "p.csv"]) == 0
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 121

    capsys.readouterr()
    header, *rows = (tmp_path / "home.csv").read_text().splitlines()
    for content, message in (
        ([header, *(row[:-1] + "2" for row in rows)], "home"),  # other labels
        ([header], "home.csv"),
        (["{}"], "home.csv"),
    ):
        (tmp_path / "home.csv").write_text("\n".join(content))
        assert message in said(capsys, "fit", "--config", "c.yaml", *quiet)
    (tmp_path / "home.csv").unlink()
    assert "home.csv" in said(capsys, "fit", "--config", "c.yaml", *quiet)


def test_interruption(points: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As Ctrl-C does it, in the second epoch."""
    stopped = "if self.reads == 60:\n            raise KeyboardInterrupt\n        self.reads += 1"
    (points / "points.py").write_text(POINTS.replace("self.reads += 1", stopped))
    assert main(["fit", "--config", str(points / "c.yaml")]) == 130
    assert "interrupted; finished epochs are kept" in capsys.readouterr().err
    assert load_checkpoint(points / "out" / "checkpoints" / "last.ckpt")["epoch"] == 0
