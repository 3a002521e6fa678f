"""A training by Lightning in two processes that it starts itself: run by the tests as a script.

``python distributed_training.py FOLDER`` leaves the losses of each step and the parameters that
they end in as ``FOLDER/RANK.pt``, and the samples of each epoch of a ``DomainPair``.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from distributed_worker import CLASSES
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fastmmd.train import Aligner, BalancedSampler, DomainPair, FineTuner, Task, TransferGuard
from fastmmd.train.checkpoints import EveryEpoch

EPOCHS, SIZE, ROWS = 10, 13, 120  # 9 batches of 13 samples an epoch and one of 3
ALIGNMENTS = {"dan": 1.0, "jan": 1.0, "dann": 0.0, "cdan": 0.0}  # and the weight of each
DRAWN = 4  # the seed of the balanced draws
SHARE = 8  # of a batch belongs to the first of two processes, of the last one two samples


QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def two_processes(unused: bool = False) -> dict[str, Any]:
    strategy = DDPStrategy(
        process_group_backend="gloo",
        timeout=timedelta(seconds=60),
        find_unused_parameters=unused,
    )
    return {"devices": 2, "strategy": strategy}


class Losses(L.Callback):
    """The objective of each step."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.steps.append(outputs["loss"].clone())


def own(indices: list[int], rank: int | None) -> list[int]:
    """The part of a batch that a process has; all of it for None."""
    share = min(SHARE, len(indices) - 1)
    return {None: indices, 0: indices[:share], 1: indices[share:]}[rank]


def batches(seed: int, rank: int | None) -> list[list[int]]:
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(seed)).tolist()
    return [own(order[i : i + SIZE], rank) for i in range(0, ROWS, SIZE)]


def points(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(ROWS, 4, generator=generator, dtype=torch.float64)
    return inputs + seed, inputs[:, :CLASSES].argmax(1)


def train(alignment: str, rank: int | None) -> dict[str, Tensor]:
    """Losses [steps] and parameters, of a process of two or, for None, of one with all samples."""
    torch.manual_seed(1)
    aligner = Aligner(
        nn.Sequential(nn.Linear(4, 8), nn.Tanh()),
        nn.Sequential(nn.Linear(8, 6), nn.Tanh()),
        nn.Linear(6, CLASSES),
        CLASSES,
        alignment=alignment,
        weight=ALIGNMENTS[alignment],
        global_batch=True,
        optimizer=partial(torch.optim.SGD, lr=0.02, momentum=0.5),
    )
    loaders = {
        "source": DataLoader(TensorDataset(*points(0)), batch_sampler=batches(0, rank)),
        "target": DataLoader(TensorDataset(points(1)[0]), batch_sampler=batches(1, rank)),
    }
    losses = Losses()
    parallel = {"use_distributed_sampler": False, **two_processes()}
    trainer = L.Trainer(
        **(parallel if rank is not None else {"devices": 1}),
        precision="64-true",
        max_epochs=EPOCHS,
        callbacks=[losses],
        **QUIET,
    )
    trainer.fit(aligner, CombinedLoader(loaders, "min_size"))
    logged = {k: v for k, v in trainer.callback_metrics.items() if k != "train_loss"}
    return {"losses": torch.stack(losses.steps), **logged, **aligner.state_dict()}


class Samples(L.LightningModule):
    """Learns nothing of note, and keeps which samples it was given: [epoch][domain][sample]."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen: list[list[list[float]]] = []

    def on_train_epoch_start(self) -> None:
        self.seen.append([[], []])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        for found, domain in zip(self.seen[-1], ("source", "target"), strict=True):
            found += batch[domain][0].tolist()
        return self.scale * batch["source"][0].sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def samples(rank: int) -> list[list[list[float]]]:
    """What a process is given of two domains of equal size, in two epochs."""
    torch.manual_seed(rank)  # so each process draws another seed of the order
    indices = TensorDataset(torch.arange(24.0))
    module = Samples()
    data = DomainPair(indices, indices, batch_size=4)
    L.Trainer(max_epochs=2, **two_processes(), **QUIET).fit(module, data)
    return module.seen


def balanced(folder: Path, epochs: int, resume: Path | None = None) -> dict[str, Any]:
    """Parameters, and the samples that this process was given, of a training on drawn samples."""
    torch.manual_seed(2)
    inputs, labels = points(0)
    tuner = FineTuner(nn.Sequential(nn.Linear(4, 8), nn.Tanh()), CLASSES, in_features=8, lr=0.1)
    torch.manual_seed(100 + int(os.environ.get("LOCAL_RANK", 0)))  # each draws another seed
    data = TensorDataset(inputs.float(), labels)
    loader = DataLoader(data, 10, sampler=BalancedSampler(labels, seed=DRAWN))
    seen = Seen()
    trainer = L.Trainer(
        **two_processes(),
        **{**QUIET, "enable_checkpointing": True},
        max_epochs=epochs,
        callbacks=[seen, ModelCheckpoint(folder, filename=f"balanced-{epochs}")],
    )
    trainer.fit(tuner, loader, ckpt_path=resume)
    return {"parameters": tuner.state_dict(), "seen": seen.epochs}


def absent(rank: int, num_classes: int) -> str:
    """What is said of classes that no process has: each of two lacks one of three."""
    labels = torch.tensor([rank, 2] * 4)
    data = DataLoader(TensorDataset(torch.randn(8, 4), labels), 4)
    parallel = {"use_distributed_sampler": False, **two_processes()}
    trainer = L.Trainer(max_epochs=1, **parallel, **QUIET)
    try:
        trainer.fit(FineTuner(nn.Linear(4, 4), num_classes, in_features=4), data)
    except ValueError as error:
        return str(error)
    return ""


def measured(rank: int | None) -> dict[str, float]:
    """What a validation says of two tasks, where the second process has no label of one of them."""
    torch.manual_seed(4)
    inputs, labels = points(0)
    inputs, labels = inputs[:30].float(), labels[:30]
    tuner = FineTuner(
        nn.Linear(4, 4), tasks={"kind": Task(CLASSES), "size": Task(1, "regression")}, in_features=4
    )
    batches = [
        (x, {"size": x.sum(1), **({"kind": y} if i < 2 else {})})
        for i, (x, y) in enumerate(zip(inputs.split(10), labels.split(10), strict=True))
    ]
    own = {None: batches, 0: batches[:2], 1: batches[2:]}[rank]
    parallel = {"devices": 1} if rank is None else two_processes()
    trainer = L.Trainer(**parallel, use_distributed_sampler=False, **QUIET)
    (found,) = trainer.validate(tuner, DataLoader(own, batch_size=None), verbose=False)  # type: ignore[arg-type]
    return dict(found)


class StopAfterOne(L.Callback):
    """Ends a training early that was to have been longer."""

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        trainer.should_stop = True


def guarded(folder: Path) -> dict[str, Any]:
    """A source-only training of two processes, a twin beside an aligned one, and its verdict."""
    source, held_out = (TensorDataset(*points(seed)) for seed in (0, 2))
    target = TensorDataset(points(1)[0])

    def run(*callbacks: L.Callback, resume: Path | None = None, **options: Any) -> Aligner:
        torch.manual_seed(1)
        aligner = Aligner(
            nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh()),
            nn.Linear(8, 6),
            nn.Linear(6, CLASSES),
            CLASSES,
            alignment="dann",  # its discriminator has parameters that the twin does not use
            global_batch=True,
            optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.5),
            scheduler=torch.optim.lr_scheduler.CosineAnnealingLR,
            **options,
        )
        trainer = L.Trainer(
            max_epochs=2,
            accumulate_grad_batches=2,
            gradient_clip_val=0.1,
            precision="64-true",
            callbacks=list(callbacks),
            **two_processes(unused="target_forward" in options),
            **{**QUIET, "enable_checkpointing": any(isinstance(c, EveryEpoch) for c in callbacks)},
        )
        data = DomainPair(source, target, batch_size=10, seed=3)
        trainer.fit(aligner, data, ckpt_path=resume, weights_only=True)
        return aligner

    loaders = {name: DataLoader(of, 30) for name, of in (("source", held_out), ("target", target))}
    guard = TransferGuard(**loaders)
    aligned = run(guard)
    again = TransferGuard(**loaders)
    run(TransferGuard(**loaders), EveryEpoch(folder), StopAfterOne())
    resumed = run(again, resume=folder / "last.ckpt")
    assert guard.twin is not None
    assert again.twin is not None
    return {
        "alone": run(target_forward="none").state_dict(),
        "twin": guard.twin.state_dict(),
        "resumed twin": again.twin.state_dict(),
        "resumed": resumed.state_dict(),
        "aligned": aligned.state_dict(),
        "plain": run().state_dict(),
        "word": None if guard.verdict is None else guard.verdict.word,
    }


class Seen(L.Callback):
    """The first features of the samples of each epoch."""

    def __init__(self) -> None:
        self.epochs: list[list[float]] = []

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self.epochs.append([])

    def on_train_batch_end(self, trainer: Any, module: Any, out: Any, batch: Any, _: int) -> None:
        self.epochs[-1] += batch[0][:, 0].tolist()


def main() -> None:
    torch.set_num_threads(1)
    rank = int(os.environ.get("LOCAL_RANK", 0))
    found: dict[str, Any] = {alignment: train(alignment, rank) for alignment in ALIGNMENTS}
    found["samples"] = samples(rank)
    folder = Path(sys.argv[1])
    found["whole"] = balanced(folder, 3)
    balanced(folder, 1)
    found["resumed"] = balanced(folder, 3, folder / "balanced-1.ckpt")
    found["absent"] = [absent(rank, count) for count in (3, 5)]
    found["measured"] = measured(rank)
    found["guarded"] = guarded(folder)
    torch.save(found, folder / f"{rank}.pt")


if __name__ == "__main__":
    main()
