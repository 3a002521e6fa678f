"""The trainer: the weight schedule, one step against its definition, and real small trainings."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fastmmd import Energy, MMDLoss, mmd2, reference
from fastmmd.train import Aligner, DomainPair, LayerHistory, alignment_weight
from fastmmd.train.means import means_of_all

pytestmark = pytest.mark.training

CLASSES = 3


def parts(norm: bool = False) -> dict[str, Any]:
    """Backbone, bottleneck and classifier for points in the plane, the same at each call."""
    torch.manual_seed(7)
    layers = [nn.Linear(2, 16), *([nn.BatchNorm1d(16)] if norm else []), nn.ReLU()]
    return {
        "backbone": nn.Sequential(*layers),
        "bottleneck": nn.Sequential(nn.Linear(16, 8), nn.Tanh()),
        "classifier": nn.Linear(8, CLASSES),
        "num_classes": CLASSES,
    }


def blobs(n: int, shift: float, seed: int) -> tuple[Tensor, Tensor]:
    """Three clusters [n, 2] around a circle, moved by a shift, and their labels [n]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    angles = labels * (2 * math.pi / CLASSES)
    centres = 2 * torch.stack((angles.cos(), angles.sin()), dim=1)
    return centres + shift + 0.3 * torch.randn(n, 2, generator=generator), labels


def fast(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def trainer(**options: Any) -> L.Trainer:
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(**{**defaults, **options})


def pair(target_shift: float = 1.5, **options: Any) -> DomainPair:
    source, target = blobs(96, 0.0, 0), blobs(96, target_shift, 1)
    defaults = {
        "source_val": TensorDataset(*blobs(60, 0.0, 2)),
        "target_val": TensorDataset(*blobs(60, target_shift, 3)),
        "batch_size": 32,
        "seed": 0,
    }
    return DomainPair(TensorDataset(*source), TensorDataset(target[0]), **{**defaults, **options})


class Recorder(L.Callback):
    """What was logged at each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.progress: list[float] = []

    def on_train_batch_start(self, trainer: Any, module: Aligner, *_: Any) -> None:
        self.progress.append(module.progress())

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.steps.append({k: float(v) for k, v in trainer.callback_metrics.items()})


# Schedule


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.37, 0.5, 1.0])
def test_dann_schedule_is_the_published_formula(progress: float) -> None:
    expected = 3.0 * (2.0 / (1.0 + math.exp(-10.0 * progress)) - 1.0)
    assert alignment_weight(progress, "dann", 3.0) == pytest.approx(expected, rel=1e-12)
    assert alignment_weight(progress, "constant", 3.0) == 3.0


def test_dann_schedule_rises_from_zero_to_the_maximum() -> None:
    weights = [alignment_weight(p / 100) for p in range(101)]
    assert weights[0] == 0.0
    assert weights == sorted(weights)
    assert 0.9999 < weights[-1] < 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.5, "sine"), "schedule must be one of dann, constant, .*; got 'sine'"),
        ((1.5,), "progress"),
        ((math.nan,), "progress"),
        ((0.5, "dann", -1.0), "maximum"),
        ((0.5, "dann", math.inf), "maximum"),
    ],
)
def test_schedule_rejects(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        alignment_weight(*arguments)


# One step


@pytest.mark.parametrize("target_forward", ["joint", "separate", "none"])
@pytest.mark.parametrize("loss", [None, MMDLoss(Energy(), "unbiased")], ids=["default", "energy"])
def test_a_step_descends_task_loss_plus_weighted_mmd(target_forward: str, loss: Any) -> None:
    """One step of SGD against autograd through the reference, written out."""
    modules = parts(norm=True)
    expected = copy.deepcopy(modules)
    (x, y), z = blobs(32, 0.0, 0), blobs(24, 1.0, 1)[0]
    aligner = Aligner(
        **modules,
        loss=loss,
        weight=0.7,
        schedule="constant",
        target_forward=target_forward,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    loaders = {
        "source": DataLoader(TensorDataset(x, y), 32),
        "target": DataLoader(TensorDataset(z), 24),
    }
    trainer(max_steps=1).fit(aligner, CombinedLoader(loaders))

    features = nn.Sequential(expected["backbone"], expected["bottleneck"])
    if target_forward == "joint":
        source, target = features(torch.cat((x, z))).split((32, 24))
    else:
        source, target = features(x), features(z)
    total = F.cross_entropy(expected["classifier"](source), y)
    if target_forward != "none":
        kernel = () if loss is None else (Energy(), "unbiased")
        total = total + 0.7 * reference.mmd2(source, target, *kernel)
    network = nn.ModuleList([features, expected["classifier"]])
    gradients = torch.autograd.grad(total, list(network.parameters()))
    trained = [*aligner.backbone.parameters(), *aligner.bottleneck.parameters()]
    trained += aligner.classifier.parameters()
    for before, gradient, after in zip(network.parameters(), gradients, trained, strict=True):
        torch.testing.assert_close(after, before - 0.1 * gradient)


def test_joint_forward_shows_batch_normalisation_both_domains() -> None:
    means = {}
    for target_forward in ("joint", "none"):
        aligner = Aligner(**parts(norm=True), weight=0.0, target_forward=target_forward)
        trainer(max_steps=1, limit_val_batches=0).fit(aligner, pair(target_shift=50.0))
        means[target_forward] = aligner.backbone[1].running_mean.abs().max()
    assert means["joint"] > 10 * means["none"]


def test_weight_zero_has_no_gradient_but_a_figure() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return (x.sum() + y.sum()) * math.nan

    recorder = Recorder()
    aligner = Aligner(**parts(), loss=Broken(), weight=0.0)
    trainer(max_epochs=1, callbacks=[recorder]).fit(aligner, pair())
    assert all(p.isfinite().all() for p in aligner.parameters())
    assert math.isfinite(recorder.steps[-1]["train_loss"])
    aligner = Aligner(**parts(), weight=0.0)
    run = trainer(max_epochs=1)
    run.fit(aligner, pair())
    assert run.callback_metrics["train_alignment_loss"] > 0
    assert run.callback_metrics["train_alignment_weight"] == 0


def test_weight_follows_the_share_of_steps_that_are_done() -> None:
    recorder = Recorder()
    run = trainer(max_epochs=4, callbacks=[recorder])
    run.fit(Aligner(**parts(), weight=2.0), pair())
    assert recorder.progress == [step / 12 for step in range(12)]
    last_epoch = [alignment_weight(step / 12, "dann", 2.0) for step in range(9, 12)]
    logged = float(run.callback_metrics["train_alignment_weight"])
    assert logged == pytest.approx(sum(last_epoch) / 3, rel=1e-6)


def test_a_schedule_needs_an_end() -> None:
    with pytest.raises(ValueError, match=r"max_epochs=-1"):
        trainer(max_epochs=-1).fit(Aligner(**parts()), pair())
    run = trainer(max_epochs=-1, max_time={"seconds": 1}, limit_train_batches=1)
    run.fit(Aligner(**parts(), schedule="constant"), pair())
    assert run.global_step > 0


# Trainings


def test_training_aligns_the_domains() -> None:
    """Clusters that are moved so far that the source alone misreads them."""
    accuracy, distance, losses = {}, {}, {}
    for target_forward in ("none", "joint"):
        recorder = Recorder()
        aligner = Aligner(
            **parts(),
            target_forward=target_forward,
            optimizer=fast,
            scheduler=torch.optim.lr_scheduler.CosineAnnealingLR,
        )
        run = trainer(max_epochs=40, callbacks=[recorder])
        data = pair()
        run.fit(aligner, data)
        assert aligner.optimizers().param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
        losses[target_forward] = recorder.steps
        accuracy[target_forward] = float(run.callback_metrics["val_target_accuracy"])
        assert run.callback_metrics["val_source_accuracy"] > 0.95
        with torch.no_grad():
            sides = [data.source_val.tensors[0], data.target_val.tensors[0]]
            features = [aligner.features(side) for side in sides]
            distance[target_forward] = float(mmd2(*features))
    assert losses["joint"][-1]["train_loss"] < 0.5 * losses["joint"][0]["train_loss"]
    assert "train_alignment_loss" not in losses["none"][-1]
    assert distance["joint"] < 0.5 * distance["none"]
    assert accuracy["joint"] > accuracy["none"] + 0.1


class Labelled(Dataset[Any]):
    """Target inputs with labels of any sort beside them."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        return self.inputs[index], self.labels[index]


def test_target_labels_are_not_read() -> None:
    """The same bits without target labels, with the true ones and with NaN."""
    inputs, labels = blobs(96, 1.5, 1)
    targets: list[Dataset[Any]] = [
        TensorDataset(inputs),
        Labelled(inputs, labels),
        Labelled(inputs, torch.full((96,), math.nan)),
    ]
    states = []
    for target in targets:
        aligner = Aligner(**parts())
        data = DomainPair(TensorDataset(*blobs(96, 0.0, 0)), target, batch_size=32, seed=0)
        trainer(max_epochs=3).fit(aligner, data)
        states.append(aligner.state_dict())
    for other in states[1:]:
        for name, value in states[0].items():
            assert torch.equal(value, other[name]), name


def test_resumed_training_ends_where_the_whole_one_does(tmp_path: Path) -> None:
    (x, y), z = blobs(96, 0.0, 0), blobs(64, 1.5, 1)[0]

    def fit(ckpt_path: Path | None = None) -> Aligner:
        # A fixed order: that of a shuffle is not in a checkpoint.
        loaders = {
            "source": DataLoader(TensorDataset(x, y), 32),
            "target": DataLoader(TensorDataset(z), 32),
        }
        aligner = Aligner(**parts(), scheduler=torch.optim.lr_scheduler.CosineAnnealingLR)
        every = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        run = trainer(max_epochs=4, callbacks=[every], enable_checkpointing=True)
        run.fit(aligner, CombinedLoader(loaders, "max_size_cycle"), ckpt_path=ckpt_path)
        assert run.global_step == 12
        return aligner

    whole = fit().state_dict()
    resumed = fit(tmp_path / "epoch=1.ckpt").state_dict()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name

    checkpoint = tmp_path / "epoch=3.ckpt"
    saved = torch.load(checkpoint, weights_only=True)["hyper_parameters"]
    assert saved == {
        "num_classes": CLASSES,
        "alignment": None,
        "layers": [],
        "source_weights": None,
        "target_label_weight": 1.0,
        "global_batch": False,
        "all_classes": True,
        "weight": 1.0,
        "schedule": "dann",
        "target_forward": "joint",
    }
    loaded = Aligner.load_from_checkpoint(checkpoint, weights_only=True, **parts())
    torch.testing.assert_close(loaded(x), Aligner.load_from_checkpoint(checkpoint, **parts())(x))
    for name, value in whole.items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_best_checkpoint_by_a_source_metric(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, monitor="val_source_loss")
    run = trainer(max_epochs=2, callbacks=[best], enable_checkpointing=True)
    run.fit(Aligner(**parts()), pair())
    assert Path(best.best_model_path).is_file()


def test_loggers_and_progress_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trainer(
        max_epochs=2,
        logger=CSVLogger(tmp_path),
        callbacks=[RichProgressBar()],
        enable_progress_bar=True,
        log_every_n_steps=1,
    )
    data = pair()
    run.fit(Aligner(**parts()), data)
    run.test(run.lightning_module, data.val_dataloader(), verbose=False)
    header = Path(run.logger.log_dir, "metrics.csv").read_text().splitlines()[0].split(",")
    assert set(header) >= {
        "train_loss",
        "train_task_loss",
        "train_alignment_loss",
        "train_alignment_weight",
        "train_source_accuracy",
        "val_source_loss",
        "val_source_accuracy",
        "val_target_accuracy",
        "test_source_accuracy",
        "test_target_accuracy",
    }
    assert "weight: 1.0" in Path(run.logger.log_dir, "hparams.yaml").read_text()
    assert "Epoch 1/1" in capsys.readouterr().out


def test_tensorboard_logger(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = trainer(max_epochs=1, logger=TensorBoardLogger(tmp_path))
    run.fit(Aligner(**parts()), pair())
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def test_bfloat16_mixed_precision() -> None:
    aligner = Aligner(**parts(), optimizer=fast)
    run = trainer(max_epochs=10, precision="bf16-mixed")
    run.fit(aligner, pair())
    assert run.callback_metrics["train_alignment_loss"].dtype == torch.float32
    assert run.callback_metrics["val_source_accuracy"] > 0.9
    assert all(p.dtype == torch.float32 for p in aligner.parameters())


@pytest.mark.parametrize("target_forward", ["joint", "separate"])
@pytest.mark.parametrize("autocast", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_data_of_either_half_under_autocast(
    dtype: torch.dtype, autocast: torch.dtype, target_forward: Any
) -> None:
    """Autocast to the other one refuses ``torch.cat``."""
    (x, labels), (y, _) = blobs(96, 0.0, 0), blobs(96, 1.5, 1)
    options = {"layers": ["backbone"], "target_forward": target_forward, "schedule": "constant"}
    scaler = torch.amp.GradScaler("cpu") if autocast == torch.float16 else None
    mixed = MixedPrecision("bf16-mixed" if scaler is None else "16-mixed", "cpu", scaler)
    found = []
    for kind, plugins in ((torch.float32, []), (dtype, [mixed])):
        domains = TensorDataset(x.to(kind), labels), TensorDataset(y.to(kind))
        network = parts() | {"backbone": nn.Flatten(), "bottleneck": nn.Linear(2, 8)}
        aligner = Aligner(**network, alignment="jan", **options)
        run = trainer(max_epochs=1, plugins=plugins)
        run.fit(aligner, DomainPair(*domains, batch_size=32, seed=0))
        found.append(run.callback_metrics)
    single, half = found
    for name in ("train_alignment_loss", "train_task_loss"):
        assert half[name] == pytest.approx(single[name], rel=2e-2)


def test_fast_dev_run_and_predict() -> None:
    aligner, data = Aligner(**parts()), pair()
    run = trainer(fast_dev_run=True)
    run.fit(aligner, data)
    (logits,) = run.predict(aligner, data.val_dataloader()[1])
    inputs = data.target_val.tensors[0][:32]
    torch.testing.assert_close(logits, aligner(inputs).detach())


# Bad arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "weight"),
        ({"weight": math.nan}, "weight"),
        ({"schedule": "sine"}, "schedule must be one of dann, constant, .*; got 'sine'"),
        ({"target_forward": "both"}, "target_forward must be one of joint, separate, none"),
        ({"num_classes": 1}, "num_classes must be at least 2; got 1"),
    ],
)
def test_aligner_rejects(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Aligner(**{**parts(), **options})


def test_validation_says_what_it_takes() -> None:
    aligner, data = Aligner(**parts()), pair()
    with pytest.raises(ValueError, match="got one of index 2"):
        trainer().validate(aligner, [*data.val_dataloader(), data.val_dataloader()[0]])
    with pytest.raises(ValueError, match=r"needs batches of \(inputs, labels\)"):
        trainer().validate(aligner, DataLoader(TensorDataset(blobs(8, 0.0, 0)[0])))


def test_labels_that_are_no_classes() -> None:
    """Of the source each has to be one, in training and in validation; of the target not (-100)."""
    aligner, (x, y) = Aligner(**parts()), blobs(12, 0.0, 0)
    for label in (CLASSES, -100, -1):
        wrong = DataLoader(TensorDataset(x, torch.full_like(y, label)), 6)
        with pytest.raises(ValueError, match=f"classes .* got .*{label}|must lie .* got {label}"):
            trainer().validate(aligner, wrong, verbose=False)
        with pytest.raises(ValueError, match=f"classes from 0 to {CLASSES - 1}, got .*{label}"):
            trainer(max_epochs=1).fit(aligner, CombinedLoader({"source": wrong, "target": wrong}))
    unknown = y.clone()
    unknown[4:] = -100
    loaders = [DataLoader(TensorDataset(x, labels), 6) for labels in (y, unknown)]
    source, target = trainer().validate(aligner, loaders, verbose=False)
    logits = aligner.eval()(x).detach()
    assert source["val_source_loss"] == pytest.approx(float(F.cross_entropy(logits, y)), rel=1e-5)
    right = (logits.argmax(1) == y)[:4].float().mean()
    assert target["val_target_accuracy"] == pytest.approx(float(right))
    loaders[1] = DataLoader(TensorDataset(x, torch.full_like(y, -100)), 6)
    found = trainer().validate(aligner, loaders, verbose=False)
    assert found[0]["val_source_accuracy"] == source["val_source_accuracy"]
    assert not [name for of_loader in found for name in of_loader if "target" in name]
    history = LayerHistory()
    trainer(max_epochs=1, callbacks=[history]).fit(
        aligner, pair(source_val=None, target_val=None).train_dataloader(), loaders
    )
    assert list(history.accuracy) == ["source"]


def test_a_process_without_a_step_has_the_same_names() -> None:
    """Of what is summed over processes at the end of an epoch: another number would hang."""
    (x, y), z = blobs(8, 0.0, 0), blobs(6, 1.0, 1)[0]
    summed: list[torch.Size] = []

    def reduce(values: Tensor, reduce_op: str) -> Tensor:
        summed.append(values.shape)
        return values

    strategy: Any = SimpleNamespace(root_device=torch.device("cpu"), reduce=reduce)
    batches = [{"source": (x, y), "target": z}, {"source": (x, y), "target_labelled": (x, y)}]
    for forward, batch, logged in (("joint", batches[0], 4), ("none", batches[1], 3)):
        aligner = Aligner(**parts(), schedule="constant", target_forward=forward)
        aligner._log_step = lambda *_: None  # type: ignore[method-assign]
        means = [aligner.means, aligner._labelled_means]
        assert means_of_all(means, strategy) == {}
        aligner.training_step(batch, 0)
        assert len(means_of_all(means, strategy)) == logged
        assert summed[-2] == summed[-1]


# Data


def test_batches_pair_the_domains_and_cycle_the_shorter() -> None:
    source = TensorDataset(torch.arange(10.0), torch.zeros(10))
    target = TensorDataset(100 + torch.arange(5.0))
    loader = DomainPair(source, target, batch_size=2, seed=3).train_dataloader()
    for _ in range(2):
        batches = [batch for batch, _, _ in loader]
        assert len(batches) == 5
        seen = torch.cat([batch["source"][0] for batch in batches])
        assert sorted(seen.tolist()) == list(range(10))
        targets = [int(value) for batch in batches for value in batch["target"][0]]
        assert len(targets) == 10
        # Four whole samples fit into the first two batches: a pass without repetition.
        assert len(set(targets[:4])) == 4
        assert set(targets) <= set(range(100, 105))


def test_order_of_the_source_does_not_depend_on_the_target() -> None:
    source = TensorDataset(torch.arange(12.0), torch.zeros(12))

    def order(target_size: int, seed: int) -> list[float]:
        target = TensorDataset(torch.zeros(target_size))
        loader = DomainPair(source, target, batch_size=3, seed=seed).train_dataloader()
        return torch.cat([batch["source"][0] for batch, _, _ in loader]).tolist()

    assert order(12, seed=0) == order(6, seed=0)
    assert order(12, seed=0) != order(12, seed=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 97}, "between 1 and the 96 samples of source; got 97"),
        ({"batch_size": 0}, "got 0"),
        ({"num_workers": -1}, "num_workers must not be negative; got -1"),
        ({"seed": -2}, "seed must not be negative; got -2"),
        ({"source_val": None}, "target_val is given but source_val is not"),
    ],
)
def test_domain_pair_rejects(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pair(**options)


def test_validation_is_optional() -> None:
    aligner = Aligner(**parts())
    trainer(max_epochs=1).fit(aligner, pair(source_val=None, target_val=None))
    run = trainer(max_epochs=1)
    run.fit(aligner, pair(target_val=None))
    assert "val_source_accuracy" in run.callback_metrics
    assert "val_target_accuracy" not in run.callback_metrics


# Imports


def test_import_of_the_package_leaves_lightning_alone() -> None:
    code = (
        "import sys, fastmmd, fastmmd.cli;"
        "print([m for m in ('lightning', 'torchmetrics', 'matplotlib', 'sklearn', 'rich')"
        " if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize("missing", ["lightning", "torchmetrics"])
def test_missing_extra_is_named(missing: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "try:\n    import fastmmd.train\nexcept ImportError as error:\n    print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"fastmmd.train needs {missing}" in result.stdout
    assert "pip install 'fastmmd[train]'" in result.stdout
