"""The source-only twin against a training of its own, and the verdict where the answer is known."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset

from fastmmd.compare.reading import InputError
from fastmmd.train import (
    Aligner,
    DomainPair,
    EpochSeed,
    LayerHistory,
    Outputs,
    TransferGuard,
    collect,
    judge,
)
from fastmmd.train.checkpoints import EveryEpoch, load_checkpoint
from fastmmd.train.twin import optimizer_and_schedule

pytestmark = pytest.mark.training


def blobs(n: int, shift: float, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    angles = labels * (2 * math.pi / 3)
    centres = 2 * torch.stack((angles.cos(), angles.sin()), dim=1)
    return centres + shift + 0.3 * torch.randn(n, 2, generator=generator), labels


def pair(more: Any = None, **options: Any) -> DomainPair:
    source = TensorDataset(*blobs(96, 0.0, 0))
    return DomainPair(
        source if more is None else [source, *more],
        TensorDataset(blobs(80, 1.5, 1)[0]),
        source_val=TensorDataset(*blobs(60, 0.0, 2)),
        batch_size=16,
        seed=0,
        **options,
    )


def aligner(dropout: float = 0.0, **options: Any) -> Aligner:
    torch.manual_seed(7)
    defaults: dict[str, Any] = {
        "optimizer": partial(torch.optim.Adam, lr=1e-2),
        "scheduler": CosineAnnealingLR,
    }
    return Aligner(
        nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout)),
        nn.Sequential(nn.Linear(16, 8), nn.Tanh()),
        nn.Linear(8, 3),
        num_classes=3,
        **{**defaults, **options},
    )


def fit(module: L.LightningModule, data: Any, *callbacks: L.Callback, **options: Any) -> None:
    defaults: dict[str, Any] = {
        "max_epochs": 4,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    others = {name: options.pop(name, None) for name in ("ckpt_path", "val_dataloaders")}
    trainer = L.Trainer(**{**defaults, **options}, callbacks=list(callbacks))
    trainer.fit(module, data, **others, weights_only=True)


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(value, other[name]) for name, value in a.state_dict().items())


# The twin


CLIPPED = {"accumulate_grad_batches": 3, "gradient_clip_val": 0.05}


def half() -> dict[str, Any]:
    """Precision 16-mixed, for which Lightning takes bfloat16 on a CPU unless it is told."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=5)  # falls at first
    return {"plugins": MixedPrecision("16-mixed", "cpu", scaler)}


@pytest.mark.parametrize(
    "options",
    [
        dict,
        lambda: CLIPPED,
        lambda: {"gradient_clip_val": 0.0},  # which the trainer takes as none
        lambda: {"precision": "bf16-mixed"},
        lambda: {"precision": "64-true"},
        half,
        lambda: CLIPPED | half(),
    ],
    ids=["plain", "clipped", "not clipped", "bf16", "64-true", "16-mixed", "16-mixed, clipped"],
)
@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler")  # a step that was skipped
def test_the_twin_is_a_source_only_training(options: Any) -> None:
    """To the bit, and the aligned model ends as it would without the guard."""
    alone, beside, guarded = aligner(target_forward="none"), aligner(), aligner()
    start = aligner()
    fit(alone, pair(), **options())
    fit(beside, pair(), **options())
    guard = TransferGuard()
    fit(guarded, pair(), guard, **options())
    assert not same_weights(alone, start)
    assert guard.twin is not None
    assert same_weights(guard.twin, alone)
    assert same_weights(guarded, beside)
    assert not same_weights(guarded, alone)
    assert guard.verdict is not None
    assert guard.verdict.true_gain is None  # the target of the data module has no labels


def test_the_twin_has_the_weights_of_sources_and_labelled_targets() -> None:
    weights: dict[str, Any] = {"source_weights": [3.0, 1.0], "target_label_weight": 0.25}
    labelled = TensorDataset(*blobs(6, 1.5, 4))
    data = partial(pair, more=[TensorDataset(*blobs(48, -0.5, 5))], target_labelled=labelled)
    alone, guarded = aligner(target_forward="none", **weights), aligner(**weights)
    guard = TransferGuard()
    fit(alone, data())
    fit(guarded, data(), guard)
    assert same_weights(guard.twin, alone)  # type: ignore[arg-type]


class Plain(L.LightningModule):
    """A module of one's own, that has no objective for the source alone."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Identity(), nn.Linear(2, 3)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch["target"][0]).square().sum() + nn.functional.cross_entropy(
            self(batch["source"][0]), batch["source"][1]
        )

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_the_twin_of_another_module_descends_cross_entropy() -> None:
    guard, points, labels = TransferGuard(), *blobs(96, 0.0, 0)
    source = TensorDataset(points, labels)
    data = DomainPair(source, TensorDataset(points), source_val=source, batch_size=96)
    fit(Plain(), data, guard, max_epochs=1)
    gradient = (1 / 3 - torch.eye(3)[labels]).T @ points / 96
    torch.testing.assert_close(guard.twin.head.weight, -0.1 * gradient)  # type: ignore[union-attr]


def test_random_numbers_of_the_model_are_not_touched() -> None:
    plain, guarded, guard = aligner(dropout=0.5), aligner(dropout=0.5), TransferGuard()
    torch.manual_seed(3)
    fit(plain, pair())
    drawn = torch.rand(())
    torch.manual_seed(3)
    fit(guarded, pair(), guard)
    assert same_weights(plain, guarded)
    assert torch.rand(()) == drawn
    assert not same_weights(plain, guard.twin)  # type: ignore[arg-type]


@pytest.mark.parametrize("callback", [TransferGuard, LayerHistory])
def test_a_generator_that_loaders_share_is_not_touched(callback: Any) -> None:
    def train(watched: bool) -> Aligner:
        shared, points = torch.Generator().manual_seed(1), TensorDataset(*blobs(60, 0.0, 2))
        training, source, target = (
            DataLoader(points, 20, shuffle=shuffle, generator=shared)
            for shuffle in (True, False, True)
        )
        module = aligner()
        data = CombinedLoader({"source": training, "target": training}, "max_size_cycle")
        fit(module, data, *([callback(source=source, target=target)] if watched else []))
        return module

    assert same_weights(train(True), train(False))


def test_a_guard_that_cannot_judge_in_the_end_leaves_the_rest(
    recwarn: pytest.WarningsRecorder,
) -> None:
    """Of a training whose twin has diverged, say."""
    source, target = (DataLoader(TensorDataset(*blobs(60, s, 3)), 20) for s in (0.0, 1.5))
    given, ended = aligner(), []
    nn.init.constant_(given.classifier.weight, math.nan)
    after = LambdaCallback(on_fit_end=lambda *_: ended.append(True))
    guard = TransferGuard(given, source=source, target=target)
    fit(aligner(), pair(), guard, after, max_epochs=1)
    said = "TransferGuard has no verdict: the outputs of twin must"
    assert any(said in str(warning.message) for warning in recwarn)
    assert guard.verdict is None
    assert ended


@pytest.mark.parametrize("accumulated", [1, 4])
def test_the_twin_is_resumed(accumulated: int, tmp_path: Path) -> None:
    whole = TransferGuard()
    run = partial(fit, accumulate_grad_batches=accumulated, enable_checkpointing=True)
    run(aligner(0.3), pair(), EpochSeed(1), whole, default_root_dir=tmp_path / "whole")
    stopped = [EpochSeed(1), TransferGuard(), EveryEpoch(tmp_path), StopAfter(2)]
    run(aligner(0.3), pair(), *stopped)
    load_checkpoint(tmp_path / "last.ckpt")  # as tensors and plain objects
    resumed, module = TransferGuard(), aligner(0.3)
    again = [EpochSeed(9), resumed, EveryEpoch(tmp_path)]
    run(module, pair(), *again, ckpt_path=tmp_path / "last.ckpt")
    assert same_weights(whole.twin, resumed.twin)  # type: ignore[arg-type]
    assert str(whole.verdict) == str(resumed.verdict)


class StopAfter(L.Callback):
    """Ends a training early that was to have been longer."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch + 1 == self.epochs


def test_a_twin_may_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    given, module = aligner(target_forward="none"), aligner()
    fit(given, pair())
    before = {name: value.clone() for name, value in given.state_dict().items()}
    source, target = (DataLoader(TensorDataset(*blobs(60, s, 3)), 20) for s in (0.0, 1.5))
    guard = TransferGuard(given, source=source, target=target)
    fit(module, pair(), guard, max_epochs=25)
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())
    assert guard.verdict is not None
    assert guard.verdict.true_gain == pytest.approx(
        collect(module, target).accuracy() - collect(given, target).accuracy()
    )
    assert guard.verdict.sentence() in capsys.readouterr().out
    assert guard.state_dict() == {}


def test_a_twin_may_be_a_checkpoint(tmp_path: Path) -> None:
    alone, guard = aligner(target_forward="none"), TransferGuard()
    fit(alone, pair(), EveryEpoch(tmp_path), enable_checkpointing=True)
    from_file = TransferGuard(tmp_path / "last.ckpt")
    fit(aligner(), pair(), guard)
    fit(aligner(), pair(), from_file)
    assert same_weights(from_file.twin, alone)  # type: ignore[arg-type]
    assert str(from_file.verdict) == str(guard.verdict)
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "last.ckpt").read_bytes()[:500])
    for name, message in (("no.ckpt", "No such file"), ("cut.ckpt", "is damaged")):
        with pytest.raises(InputError, match=message):
            fit(aligner(), pair(), TransferGuard(str(tmp_path / name)))


@pytest.mark.parametrize(
    ("processes", "automatic", "message"),
    [
        (2, True, "strategy SimpleNamespace; of several processes it knows DDPStrategy"),
        (1, False, "manual optimization"),
    ],
)
def test_what_a_twin_is_not_trained_with(processes: int, automatic: bool, message: str) -> None:
    trainer = SimpleNamespace(strategy=SimpleNamespace(), world_size=processes)
    module = aligner()
    module.automatic_optimization = automatic
    with pytest.raises(ValueError, match=f"cannot train a twin with {message}"):
        TransferGuard().setup(trainer, module, "fit")  # type: ignore[arg-type]


def test_a_guard_without_data_to_judge_by() -> None:
    module = aligner()
    with pytest.raises(ValueError, match="there is no source loader"):
        fit(module, pair(), TransferGuard(), limit_val_batches=0)
    assert same_weights(module, aligner())  # it is said before the training
    rarely = TransferGuard()
    fit(aligner(), pair(), rarely, check_val_every_n_epoch=9, num_sanity_val_steps=0)
    assert rarely.verdict is not None


def test_what_would_stop_the_judge_is_found_out_before_the_training() -> None:
    points, labels = blobs(60, 0.0, 2)
    enough = DataLoader(TensorDataset(points, labels), 30)
    few = DataLoader(TensorDataset(points[:19], labels[:19]), 30)

    def unknown(known: int, batch_size: int = 30) -> DataLoader[Any]:
        """The last ones have a label."""
        partly = labels.where(torch.arange(60) >= 60 - known, -100)
        return DataLoader(TensorDataset(points, partly), batch_size)

    for loaders, message in (
        ({"source": DataLoader(points, 30), "target": enough}, "with labels; it gives none"),  # type: ignore[arg-type]
        ({"source": unknown(12), "target": enough}, "20 samples with labels to judge by; got 12"),
        (
            {"source": few, "target": enough},
            "source must .* at least 20 samples .* got 19",
        ),
        (
            {"source": enough, "target": few},
            "target must .* at least 20 samples .* got 19",
        ),
    ):
        module = aligner()
        with pytest.raises(ValueError, match=message):
            fit(module, pair(), TransferGuard(**loaders))
        assert same_weights(module, aligner())
    late = TransferGuard(source=unknown(20), target=enough)  # none is in the first batch
    fit(aligner(), pair(), late, max_epochs=1)
    assert late.verdict is not None
    with pytest.raises(ValueError, match="max_samples must be at least 20; got 5"):
        TransferGuard(max_samples=5)
    with pytest.raises(ValueError, match="max_samples must be at least 2; got 1"):
        LayerHistory(max_samples=1)


def test_loaders_that_lightning_has_not_yet_asked_for() -> None:
    data, guard, history = pair(), TransferGuard(), LayerHistory()
    validation = [DataLoader(TensorDataset(*blobs(60, s, 2)), 30) for s in (0.0, 1.5)]
    module, options = aligner(), {"num_sanity_val_steps": 0, "check_val_every_n_epoch": 2}
    fit(module, data.train_dataloader(), guard, history, val_dataloaders=validation, **options)
    assert guard.verdict is not None
    assert guard.verdict.true_gain is not None
    assert history.accuracy["target"][-1] == collect(module, validation[1]).accuracy()


def test_a_data_module_without_a_target_to_measure_on() -> None:
    class Source(L.LightningDataModule):
        train_dataloader = staticmethod(lambda: pair().train_dataloader())
        val_dataloader = staticmethod(lambda: pair().val_dataloader())

    with pytest.raises(ValueError, match="there is no target loader"):
        fit(aligner(), Source(), TransferGuard())


def test_a_share_of_the_samples_is_not_measured() -> None:
    trainer: Any = SimpleNamespace(world_size=2)
    loader = DataLoader(TensorDataset(*blobs(60, 0.0, 2)), 30)
    given = aligner()
    for callback in (
        TransferGuard(given),
        TransferGuard(given, source=loader),
        LayerHistory(target=loader),
    ):
        with pytest.raises(ValueError, match="each of the 2 processes has a share: give source"):
            callback.on_train_start(trainer, given)


def test_configurations_of_an_optimizer() -> None:
    (weight,) = nn.Linear(1, 1, bias=False).parameters()
    optimizer = torch.optim.SGD([weight], lr=1.0)
    schedule = StepLR(optimizer, 1)
    by_epoch = {"scheduler": schedule, "interval": "epoch", "frequency": 1}
    assert optimizer_and_schedule(optimizer) == (optimizer, None)
    assert optimizer_and_schedule([optimizer]) == (optimizer, None)
    assert optimizer_and_schedule(([optimizer], [schedule])) == (optimizer, by_epoch)
    assert optimizer_and_schedule({"optimizer": optimizer}) == (optimizer, None)
    assert optimizer_and_schedule({"optimizer": optimizer, "lr_scheduler": schedule}) == (
        optimizer,
        by_epoch,
    )
    by_step = {"scheduler": schedule, "interval": "step", "frequency": 3}
    assert optimizer_and_schedule({"optimizer": optimizer, "lr_scheduler": by_step}) == (
        optimizer,
        by_step,
    )
    plateau = {"optimizer": optimizer, "lr_scheduler": ReduceLROnPlateau(optimizer)}
    with pytest.raises(ValueError, match="cannot train a twin with ReduceLROnPlateau"):
        optimizer_and_schedule(plateau)
    with pytest.raises(ValueError, match="several"):
        optimizer_and_schedule([optimizer, optimizer])


# The verdict


LABELS = torch.arange(300) % 3


def outputs(
    sureness: float, wrong: float = 0.0, labels: bool = True, only: int | None = None, seed: int = 0
) -> Outputs:
    """Logits that favour the label, or for a share of the samples the next class."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.where(torch.rand(300, generator=generator) < wrong, LABELS + 1, LABELS) % 3
    if only is not None:
        classes = torch.full_like(classes, only)
    noise = torch.randn(300, 3, generator=generator)
    features = torch.randn(300, 4, generator=torch.Generator().manual_seed(seed + 50))
    logits = sureness * torch.eye(3)[classes] + noise
    return Outputs(features, logits, LABELS if labels else None)


SOURCE = outputs(8.0, seed=1)


@pytest.mark.parametrize(
    ("aligned", "twin", "word"),
    [
        (outputs(8.0), outputs(3.0, wrong=0.4), "helped"),
        (outputs(3.0, wrong=0.4), outputs(8.0), "harmed"),
        (outputs(8.0), outputs(8.5), "did not help"),
        # As sure, and of other classes: no validator sees which is right.
        (outputs(8.0), outputs(8.0, wrong=0.4), "unclear"),
        # Surer, as all samples get one class: no reason to call it better.
        (outputs(8.0), outputs(20.0, only=1), "helped"),
        (outputs(2.5), outputs(20.0, only=1), "unclear"),
    ],
)
def test_verdicts(aligned: Outputs, twin: Outputs, word: str) -> None:
    verdict = judge((SOURCE, aligned), (SOURCE, twin))
    assert verdict.word == word, str(verdict)
    assert verdict.true_gain == pytest.approx(aligned.accuracy() - twin.accuracy())
    # What is said to be a bound is one.
    assert abs(verdict.true_gain) <= verdict.disagreement + 1e-12
    blind = [Outputs(o.features, o.logits) for o in (aligned, twin)]
    unlabelled = judge((SOURCE, blind[0]), (SOURCE, blind[1]))
    assert unlabelled.word == word
    assert unlabelled.evidence == verdict.evidence
    assert unlabelled.true_gain is None
    assert "with target labels, accuracy" not in str(unlabelled)
    assert "with target labels, accuracy" in str(verdict)


def test_a_model_that_lost_the_source_is_harmed() -> None:
    forgot = outputs(0.0, seed=1)
    verdict = judge((forgot, outputs(8.0)), (SOURCE, outputs(8.0)))
    assert verdict.word == "harmed"


@pytest.mark.parametrize("broken", ["features", "logits"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_that_diverged_is_harmed(broken: str, value: float) -> None:
    tensors = {"features": SOURCE.features.clone(), "logits": SOURCE.logits.clone()}
    tensors[broken][7] = value
    diverged = Outputs(**tensors, labels=SOURCE.labels)
    for aligned in ((diverged, outputs(8.0)), (SOURCE, diverged)):
        verdict = judge(aligned, (SOURCE, outputs(8.0)))
        assert (verdict.word, verdict.evidence) == ("harmed", ())
        assert "harmed, judged without target labels (some of its outputs are infinite" in str(
            verdict
        )
        with pytest.raises(ValueError, match="outputs of twin must be finite"):
            judge((SOURCE, SOURCE), aligned)


@pytest.mark.parametrize("samples", [21, 34, 300])
def test_the_jackknife_has_ten_groups(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def compare(name: str, models: Any, groups: Any) -> tuple[float, float, float, float]:
        seen.extend(map(len, groups))
        assert all(0 <= len(group) - samples // 10 <= 1 for part in groups for group in part)
        return 0.0, 0.0, 0.0, 1.0

    monkeypatch.setattr("fastmmd.train.verdict._compare", compare)
    part = SOURCE.subset(torch.arange(samples))
    judge((part, part), (part, part))
    assert set(seen) == {10}


def test_weights_that_amount_to_few_samples_cannot_tell() -> None:
    apart = outputs(8.0)
    apart = Outputs(apart.features + 100, apart.logits, apart.labels)
    verdict = judge((SOURCE, apart), (SOURCE, outputs(8.0)))
    says = {e.validator: e.says for e in verdict.evidence}
    assert says["importance-weighted risk"] == "cannot tell"


def test_the_error_is_that_of_a_difference_of_pairs() -> None:
    other = outputs(6.0, seed=2)
    verdict = judge((other, outputs(8.0)), (SOURCE, outputs(8.0)))
    (risk,) = (e for e in verdict.evidence if e.validator == "source risk")
    difference = other.losses() - SOURCE.losses()
    assert risk.gain == pytest.approx(-float(difference.mean()))
    # Ten groups know it to about a quarter.
    assert risk.error == pytest.approx(float(difference.std()) / math.sqrt(300), rel=0.6)


def test_more_samples_than_are_looked_at() -> None:
    verdict = judge((SOURCE, outputs(8.0)), (SOURCE, outputs(3.0, wrong=0.4)), max_samples=100)
    assert verdict.word == "helped"
    assert verdict.disagreement == pytest.approx(0.4, abs=0.15)


def test_judge_rejects() -> None:
    few = SOURCE.subset(torch.arange(12))
    with pytest.raises(ValueError, match="the same target samples"):
        judge((SOURCE, SOURCE), (SOURCE, few))
    other = Outputs(SOURCE.features, SOURCE.logits, SOURCE.known_labels().flip(0))
    with pytest.raises(ValueError, match="the same source samples"):
        judge((SOURCE, SOURCE), (other, SOURCE))
    with pytest.raises(ValueError, match="at least 20 samples; got 12"):
        judge((SOURCE, few), (SOURCE, few))
    with pytest.raises(ValueError, match="max_samples must be at least 20; got 19"):
        judge((SOURCE, SOURCE), (SOURCE, SOURCE), max_samples=19)
    blind = Outputs(SOURCE.features, SOURCE.logits)
    with pytest.raises(ValueError, match="labels are needed"):
        judge((blind, SOURCE), (blind, SOURCE))
