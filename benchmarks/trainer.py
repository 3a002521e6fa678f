"""What the trainers add to a training step: `python -m benchmarks.trainer -o FOLDER`.

Of `fastmmd.train.Aligner` and of `FineTuner`: three trainings of the demo's network with the same
loss, optimiser, schedule and batches, one by the trainer, one by a LightningModule that has nothing
but the step, and one by a bare PyTorch loop. They take turns at every step, so that what slows the
machine for a second slows all of them. A step of either passes as many images through the network.
It is timed from the end of the one before it to its own, with the fetching of its batch; what a
trainer does once, before its first step, does not count.

What is added to a step is Python and does not depend on the network. So it is measured again with
one of a single layer, whose steps vary by less than it. Prints a table and writes trainer.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from threading import Condition
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastmmd as fm
from benchmarks import ROOT
from fastmmd.bench.builds import commit_of
from fastmmd.bench.machine import Disturbance, describe
from fastmmd.demo.experiment import CLASSES, FEATURES, modules, quiet_lightning
from fastmmd.train import Aligner, DomainPair, FineTuner, alignment_weight

BATCH = 256  # images of a step: of one domain, or half of each of two
STEPS = 12  # of an epoch
LANES = ("trainer", "lightning", "loop")
NETWORKS = {"demo": "the demo's", "layer": "one layer"}
RATE = 1e-3
annealing = torch.optim.lr_scheduler.CosineAnnealingLR


class Network(nn.Module):
    """The demo's, newly initialised, or one with a layer of features."""

    def __init__(self, kind: str = "demo") -> None:
        super().__init__()
        parts = modules()
        if kind == "layer":
            parts |= {"backbone": nn.Flatten(), "bottleneck": nn.Linear(28 * 28, FEATURES)}
        self.features = nn.Sequential(parts["backbone"], parts["bottleneck"])
        self.classifier = parts["classifier"]


@dataclass(frozen=True)
class Subject:
    """A trainer, and the step that it is to make."""

    trainer: Callable[[Network], L.LightningModule]
    objective: Callable[[Network, Any, float], Tensor]  # of a batch and the share of steps done
    loader: Callable[[], Iterable[Any]]
    batch: Callable[[Any], Any] = lambda item: item  # that a bare loop finds in the loader's items


def noise(images: int) -> TensorDataset:
    """Of the shape of the demo's digits, with labels."""
    generator = torch.Generator().manual_seed(images)
    points = torch.rand(images, 1, 28, 28, generator=generator)
    return TensorDataset(points, torch.randint(CLASSES, (images,), generator=generator))


def two_domains() -> Iterable[Any]:
    """Batches of both."""
    half = BATCH // 2
    source = noise(STEPS * half)
    target = TensorDataset(source.tensors[0].flip(0))
    return DomainPair(source, target, batch_size=half, seed=0).train_dataloader()


def one_domain() -> Iterable[Any]:
    """Batches of inputs and labels."""
    order = torch.Generator().manual_seed(0)
    return DataLoader(noise(STEPS * BATCH), BATCH, shuffle=True, generator=order)


def make_optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=RATE)


def aligner(network: Network) -> L.LightningModule:
    return Aligner(
        *network.features,
        network.classifier,
        num_classes=CLASSES,
        optimizer=make_optimizer,
        scheduler=annealing,
    )


def alignment(network: Network, batch: Any, share: float) -> Tensor:
    """The aligner's objective, written out."""
    (x, y), (z,) = batch["source"], batch["target"]
    source, target = network.features(torch.cat((x, z))).split((len(x), len(z)))
    task = F.cross_entropy(network.classifier(source), y)
    return task + alignment_weight(share) * MMD(source, target)


def finetuner(network: Network) -> L.LightningModule:
    return FineTuner(
        network.features,
        CLASSES,
        head=network.classifier,
        in_features=FEATURES,
        optimizer=torch.optim.AdamW,
        lr=RATE,
        scheduler=annealing,
    )


def classification(network: Network, batch: Any, share: float) -> Tensor:
    """The fine-tuner's objective, written out."""
    x, y = batch
    return F.cross_entropy(network.classifier(network.features(x)), y)


MMD = fm.MMDLoss()
SUBJECTS = {
    "Aligner": Subject(aligner, alignment, two_domains, lambda item: item[0]),
    "FineTuner": Subject(finetuner, classification, one_domain),
}


class Bare(L.LightningModule):
    """The step and nothing else: what Lightning itself adds."""

    def __init__(self, network: Network, subject: Subject) -> None:
        super().__init__()
        self.network = network
        self.subject = subject

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.subject.objective(self.network, batch, batch_idx / STEPS)

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.parameters())
        return [optimizer], [{"scheduler": annealing(optimizer, STEPS), "interval": "step"}]


class Relay:
    """Threads of which one runs at a time, each in its turn."""

    def __init__(self, lanes: Iterable[str]) -> None:
        self._order = deque(lanes)
        self._changed = Condition()

    def wait(self, lane: str) -> None:
        """Until it is this lane's turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._order[0] == lane)

    def hand_on(self) -> None:
        """The next one's turn."""
        with self._changed:
            self._order.rotate(-1)
            self._changed.notify_all()

    def leave(self, lane: str) -> None:
        """The others go on without this lane."""
        with self._changed:
            self._order.remove(lane)
            self._changed.notify_all()


class Clock(L.Callback):
    """The seconds of each step but the first, which wait for their turns."""

    def __init__(self, lane: str, relay: Relay) -> None:
        self.steps: list[float] = []
        self._lane, self._relay = lane, relay
        self._start: float | None = None

    def on_train_batch_end(self, *_: Any) -> None:
        """Notes the time of the step, and waits until the others have made theirs."""
        if self._start is not None:
            self.steps.append(time.perf_counter() - self._start)
        self._relay.hand_on()
        self._relay.wait(self._lane)
        self._start = time.perf_counter()


def by_lightning(module: L.LightningModule, subject: Subject, clock: Clock) -> None:
    """An epoch by Lightning."""
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
    trainer.fit(module, subject.loader())


def by_loop(network: Network, subject: Subject, clock: Clock) -> None:
    """The same steps without Lightning."""
    optimizer = make_optimizer(network.parameters())
    scheduler = annealing(optimizer, STEPS)
    for step, item in enumerate(subject.loader()):
        optimizer.zero_grad()
        subject.objective(network, subject.batch(item), step / STEPS).backward()
        optimizer.step()
        scheduler.step()
        clock.on_train_batch_end()


def epoch(networks: dict[str, Network], subject: Subject) -> dict[str, list[float]]:
    """Seconds of the steps of an epoch, by lane; they follow one another in the order given."""
    relay, threads = Relay(networks), torch.get_num_threads()

    def run(lane: str) -> list[float]:
        clock, network = Clock(lane, relay), networks[lane]
        relay.wait(lane)
        try:
            torch.set_num_threads(threads)  # of this thread
            if lane == "loop":
                by_loop(network, subject, clock)
            else:
                of_trainer = lane == "trainer"
                module = subject.trainer(network) if of_trainer else Bare(network, subject)
                by_lightning(module, subject, clock)
        finally:
            relay.leave(lane)
        return clock.steps

    with ThreadPoolExecutor(len(networks)) as pool:
        return dict(zip(networks, pool.map(run, networks), strict=True))


def measure(subject: Subject, kind: str, epochs: int) -> dict[str, Any]:
    """Milliseconds: medians over all steps, and what is added to steps that were made in turn."""
    networks = {lane: Network(kind) for lane in LANES}
    found: dict[str, list[float]] = {lane: [] for lane in LANES}
    for index in range(-1, epochs):
        shift = index % len(LANES)
        order = LANES[shift:] + LANES[:shift]
        if index % 2:  # none always follows the same other
            order = order[::-1]
        for lane, steps in epoch({lane: networks[lane] for lane in order}, subject).items():
            if index >= 0:
                found[lane] += steps
    return {
        "step": {lane: 1e3 * median(steps) for lane, steps in found.items()},
        "added": {lane: added(found[lane], found["loop"]) for lane in LANES[:-1]},
    }


def added(lane: list[float], loop: list[float]) -> dict[str, float]:
    """Median and quartiles of the differences, in milliseconds."""
    differences = [1e3 * (a - b) for a, b in zip(lane, loop, strict=True)]
    return dict(zip(("low", "median", "high"), quantiles(differences, n=4), strict=True))


def table(record: dict[str, Any]) -> str:
    """Of a record, in milliseconds: median steps, and what is added to those of the loop."""
    lines = [
        "| trainer | network | trainer | Lightning | loop | trainer adds | Lightning adds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, of_networks in record["subjects"].items():
        for kind, found in of_networks.items():
            cells = [f"`{name}`", NETWORKS[kind]]
            cells += [f"{found['step'][lane]:.1f}" for lane in LANES]
            cells += [
                "{median:.2f} ({low:.2f} to {high:.2f})".format(**found["added"][lane])
                for lane in LANES[:-1]
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def shares(record: dict[str, Any]) -> str:
    """What trainers add to a step of the demo's network, by what they add to one of a layer."""
    parts = []
    for name, found in record["subjects"].items():
        share = found["layer"]["added"]["trainer"]["median"] / found["demo"]["step"]["loop"]
        parts.append(f"{100 * share:.1f} % (`{name}`)")
    return ", ".join(parts)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/trainer"))
    parser.add_argument(
        "--epochs", type=int, default=20, help="of 11 steps each, 1 or more (default: 20)"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    commit, others = commit_of(ROOT), Disturbance()
    with quiet_lightning():
        subjects = {
            name: {kind: measure(subject, kind, options.epochs) for kind in NETWORKS}
            for name, subject in SUBJECTS.items()
        }
    record = {
        "machine": describe(),
        "commit": commit,
        "command": f"python -m benchmarks.trainer --threads {options.threads}"
        f" --epochs {options.epochs}",
        "taken_by_others": others.since_last(),
        "steps": options.epochs * (STEPS - 1),
        "images_of_a_step": BATCH,
        "subjects": subjects,
    }
    print(table(record))
    print(f"added to a step of the demo's network: {shares(record)}")
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "trainer.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
