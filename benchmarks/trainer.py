"""What the trainer adds to a training step: `python -m benchmarks.trainer -o FOLDER`.

Three trainings of the demo's network with the same loss, optimiser and batches take turns in one
process: one by `fastmmd.train.Aligner`, one by a LightningModule that has nothing but the step, and
one by a bare PyTorch loop. A step is timed
from the end of the one before it to its own, with the fetching of its batch; what a trainer does
once, before its first step, does not count.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import fastmmd as fm
from fastmmd.bench.machine import describe
from fastmmd.demo.experiment import modules, quiet_lightning
from fastmmd.train import Aligner, DomainPair, alignment_weight

BATCH = 128  # per domain
STEPS = 12  # of a turn


class Clock(L.Callback):
    """The times of the ends of steps."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Notes the time."""
        self.ends.append(time.perf_counter())

    def steps(self) -> list[float]:
        """Seconds of each step but the first."""
        return [b - a for a, b in zip(self.ends[:-1], self.ends[1:], strict=True)]


def pair(seed: int) -> DomainPair:
    """Noise of the shape of the demo's digits."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, STEPS * BATCH, 1, 28, 28, generator=generator)
    labels = torch.randint(10, (STEPS * BATCH,), generator=generator)
    source, target = TensorDataset(images[0], labels), TensorDataset(images[1])
    return DomainPair(source, target, batch_size=BATCH, seed=seed)


def make_optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


class Bare(L.LightningModule):
    """The step and nothing else: what Lightning itself adds."""

    def __init__(self, network: dict[str, Any]) -> None:
        super().__init__()
        self.features = nn.Sequential(network["backbone"], network["bottleneck"])
        self.classifier = network["classifier"]
        self.loss = fm.MMDLoss()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return objective(batch, batch_idx, self.features, self.classifier, self.loss)

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.parameters())
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def objective(
    batch: dict[str, Any], step: int, features: nn.Module, classifier: nn.Module, loss: nn.Module
) -> Tensor:
    """Of a step, written out."""
    (x, y), (z,) = batch["source"], batch["target"]
    source, target = features(torch.cat((x, z))).split((len(x), len(z)))
    task = F.cross_entropy(classifier(source), y)
    return task + alignment_weight(step / STEPS) * loss(source, target)


def by_trainer(network: dict[str, Any], data: DomainPair) -> list[float]:
    """Steps of an epoch by the trainer."""
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR
    return by_lightning(
        Aligner(**network, num_classes=10, optimizer=make_optimizer, scheduler=annealing), data
    )


def by_lightning(module: L.LightningModule, data: DomainPair) -> list[float]:
    """Steps of an epoch by Lightning."""
    clock = Clock()
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return clock.steps()


def by_loop(network: dict[str, Any], data: DomainPair) -> list[float]:
    """The same steps without Lightning."""
    clock = Clock()
    features = nn.Sequential(network["backbone"], network["bottleneck"])
    classifier = network["classifier"]
    optimizer = make_optimizer([*features.parameters(), *classifier.parameters()])
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    loss = fm.MMDLoss()
    for step, (batch, _, _) in enumerate(data.train_dataloader()):
        optimizer.zero_grad()
        objective(batch, step, features, classifier, loss).backward()
        optimizer.step()
        scheduler.step()
        clock.on_train_batch_end()
    return clock.steps()


LANES: dict[str, Callable[[dict[str, Any], DomainPair], list[float]]] = {
    "trainer": by_trainer,
    "lightning": lambda network, data: by_lightning(Bare(network), data),
    "loop": by_loop,
}


def measure(rounds: int) -> dict[str, Any]:
    """Medians over all steps, and the ratios of the medians within each round."""
    networks = {name: modules() for name in LANES}
    found: dict[str, list[list[float]]] = {name: [] for name in LANES}
    data, names = pair(0), list(LANES)
    for turn in range(-1, rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            steps = LANES[name](networks[name], data)
            if turn >= 0:
                found[name].append(steps)
    return {
        "milliseconds": {n: 1e3 * median(t for turn in f for t in turn) for n, f in found.items()},
        "over_loop_in_rounds": {n: over(found[n], found["loop"]) for n in names[:-1]},
        "rounds": rounds,
        "steps_per_round": STEPS - 1,
        "batch_size": BATCH,
    }


def over(lane: list[list[float]], loop: list[list[float]]) -> dict[str, float]:
    """Median and quartiles of the ratio."""
    ratios = [median(a) / median(b) for a, b in zip(lane, loop, strict=True)]
    return dict(zip(("low", "median", "high"), quantiles(ratios, n=4), strict=True))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/trainer"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with quiet_lightning():
        found = measure(options.rounds)
    print(json.dumps(found, indent=1))
    options.output.mkdir(parents=True, exist_ok=True)
    record = {"machine": describe(), **found}
    (options.output / "trainer.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
