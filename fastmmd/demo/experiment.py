"""Three models per seed: the source alone, with batch normalisation adapted, and aligned by MMD.

They share architecture, initial weights, optimiser, number of steps and source batches. The control
and the aligned model see the same target batches as well; they differ in the weight of the loss.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from statistics import median
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fastmmd.demo.data import TEST_PATCHES, Domains
from fastmmd.functional import mmd2
from fastmmd.kernels import Gaussian
from fastmmd.train import Aligner, DomainPair
from fastmmd.train.aligner import TargetForward
from fastmmd.train.quiet import quiet_lightning

__all__ = [
    "MODELS",
    "Run",
    "Settings",
    "batch_features",
    "heldout_features",
    "modules",
    "train",
]

FEATURES = 128  # width of the bottleneck
CLASSES = 10

# What each model does with the target in the forward pass, and the weight of the loss.
MODELS: dict[str, tuple[TargetForward, float]] = {
    "source-only": ("none", 0.0),
    "control": ("joint", 0.0),
    "aligned": ("joint", 1.0),
}


@dataclass(frozen=True)
class Settings:
    """What all models of the demo share."""

    seeds: int = 3
    epochs: int = 20
    batch_size: int = 128  # per domain
    learning_rate: float = 3e-3  # AdamW, annealed to 0 by half a cosine

    def as_dict(self) -> dict[str, Any]:
        """For the summary."""
        return {**asdict(self), "optimizer": "AdamW", "scheduler": "cosine", "features": FEATURES}


@dataclass(frozen=True)
class Run:
    """One trained model and what was measured on it after the last epoch."""

    seed: int
    model: str
    source_accuracy: float  # percent
    target_accuracy: float  # percent
    mmd2: float  # unbiased, between held-out source and target features
    seconds: float  # of the training
    step_ms: float  # median: forward, backward, optimiser
    history: dict[str, list[float]]  # accuracies in percent after each epoch
    aligner: Aligner = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """For the summary: the figures without the model."""
        return {k: v for k, v in vars(self).items() if k != "aligner"}


def modules() -> dict[str, Any]:
    """Backbone, bottleneck and classifier of the demo, newly initialised, under those names.

    Images [n, 1, 28, 28] become features [n, 128] and logits [n, 10].
    """
    backbone = nn.Sequential(*block(1, 32), *block(32, 64), nn.Flatten())
    bottleneck = nn.Sequential(nn.Linear(64 * 7 * 7, FEATURES), nn.BatchNorm1d(FEATURES), nn.ReLU())
    return {
        "backbone": backbone,
        "bottleneck": bottleneck,
        "classifier": nn.Linear(FEATURES, CLASSES),
    }


def block(channels: int, width: int) -> Sequence[nn.Module]:
    """A convolution block, which halves the sides of its images."""
    return (
        nn.Conv2d(channels, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )


def train(
    model: str,
    seed: int,
    domains: Domains,
    settings: Settings,
    on_epoch: Callable[[float, float], None],
) -> Run:
    """Trains one model and measures it after each epoch on what no training saw.

    Args:
        model: A key of ``MODELS``.
        seed: Seed of the initial weights and of the order of the samples.
        domains: Newly made, so that its stream of patches is at the start.
        settings: What the models share.
        on_epoch: Called after each epoch with the accuracies on source and target in percent.

    Returns:
        The model after the last epoch and its figures; nothing is selected.

    Raises:
        KeyboardInterrupt: The user stopped it.
    """
    target_forward, weight = MODELS[model]
    torch.manual_seed(seed)
    aligner = Aligner(
        **modules(),
        num_classes=CLASSES,
        weight=weight,
        target_forward=target_forward,
        optimizer=partial(torch.optim.AdamW, lr=settings.learning_rate),
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR,
    )
    data = DomainPair(
        domains.source_train,
        domains.target_train,
        source_val=domains.source_test,
        target_val=domains.target_test,
        batch_size=settings.batch_size,
        seed=seed,
    )
    recorder = Recorder(on_epoch)
    with quiet_lightning():
        trainer = L.Trainer(
            max_epochs=settings.epochs,
            accelerator="cpu",
            devices=1,
            callbacks=[recorder],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        start = time.perf_counter()
        try:
            trainer.fit(aligner, data)
        except SystemExit:
            # What Lightning makes of Ctrl-C; some versions just return.
            if trainer.state.status != TrainerStatus.INTERRUPTED:
                raise
        if trainer.state.status == TrainerStatus.INTERRUPTED:
            raise KeyboardInterrupt
        seconds = time.perf_counter() - start
    source, target = heldout_features(aligner, domains)
    return Run(
        seed=seed,
        model=model,
        source_accuracy=recorder.history["source_accuracy"][-1],
        target_accuracy=recorder.history["target_accuracy"][-1],
        # The mean distance as bandwidth makes it one kernel for all models: it takes out the scale
        # of the features, which is arbitrary, and nothing else.
        mmd2=mmd2(source, target, Gaussian("mean"), "unbiased").item(),
        seconds=seconds,
        step_ms=1e3 * median(recorder.step_seconds),
        history=recorder.history,
        aligner=aligner,
    )


@torch.no_grad()
def heldout_features(aligner: Aligner, domains: Domains) -> tuple[Tensor, Tensor]:
    """Features of the evaluation digits of source [n, 128] and target [m, 128], each digit once."""
    aligner.eval()
    once = len(domains.target_test) // TEST_PATCHES
    source, target = domains.source_test.tensors[0], domains.target_test.tensors[0][:once]
    return aligner.features(source), aligner.features(target)


class Recorder(L.Callback):
    """Accuracies after each epoch, and how long the steps take."""

    def __init__(self, on_epoch: Callable[[float, float], None]) -> None:
        self.on_epoch = on_epoch
        self.history: dict[str, list[float]] = {"source_accuracy": [], "target_accuracy": []}
        self.step_seconds: list[float] = []
        self._start = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.step_seconds.append(time.perf_counter() - self._start)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for name, values in self.history.items():
            values.append(100 * float(trainer.callback_metrics[f"val_{name}"]))
        self.on_epoch(*(values[-1] for values in self.history.values()))


@torch.no_grad()
def batch_features(aligner: Aligner, domains: Domains, settings: Settings) -> list[Tensor]:
    """Source and target features [batch, 128] of a training batch: what the loss is timed on."""
    aligner.eval()  # a pass in training mode would move the statistics of batch normalisation
    batches = (
        next(iter(DataLoader(domains.source_train, settings.batch_size)))[0],
        next(iter(DataLoader(domains.target_train, settings.batch_size))),
    )
    return [aligner.features(inputs) for inputs in batches]
