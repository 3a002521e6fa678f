"""Digits read by a network that was taught on digits of other origin: `-m benchmarks.alignment`.

The network, the optimiser, the batches and the number of steps are the same for all; nothing is
chosen by target labels, which are looked at once, after the last step. Prints a table and writes
alignment.json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fastmmd.bench.machine import describe
from fastmmd.demo.experiment import quiet_lightning
from fastmmd.train import Aligner, DomainPair, EpochSeed

FILE = "mnist_usps_long.npz"
DIRECTIONS = (("usps", "mnist"), ("mnist", "usps"))
CLASSES = 10

# What the network is taught by: how the target takes part, the discrepancy and its weight.
METHODS: dict[str, dict[str, Any]] = {
    "source-only": {"target_forward": "none"},
    "control": {"weight": 0.0},  # what joint batch normalisation does alone
    "aligned": {"alignment": "ddc"},
}
OTHERS = ("dan", "jan", "dsan", "can", "coral", "energy", "random_features", "dann", "cdan")


@dataclass(frozen=True)
class Settings:
    """What all trainings share."""

    epochs: int = 20
    batch_size: int = 128  # per domain
    learning_rate: float = 3e-3  # AdamW, annealed to 0 by half a cosine
    weight: float = 1.0
    schedule: str = "dann"


def load(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Images [n, 1, 16, 16] in [0, 1] and labels [n] of each domain."""
    with np.load(folder / FILE, allow_pickle=False) as file:
        images = torch.from_numpy(file["X"]).float().reshape(-1, 1, 16, 16)
        labels = torch.from_numpy(file["y"]).long() - 1
        domain, names = torch.from_numpy(file["domain"]), [str(n) for n in file["domain_names"]]
    return {name: (images[domain == i], labels[domain == i]) for i, name in enumerate(names)}


def network() -> dict[str, nn.Module]:
    """Two convolutions, a bottleneck of 128 features and a linear classifier, newly initialised."""

    def block(channels: int, width: int) -> list[nn.Module]:
        convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]

    return {
        "backbone": nn.Sequential(*block(1, 16), *block(16, 32), nn.Flatten()),
        "bottleneck": nn.Sequential(nn.Linear(512, 128), nn.ReLU()),
        "classifier": nn.Linear(128, CLASSES),
    }


def train(
    source: tuple[Tensor, Tensor], target: Tensor, seed: int, settings: Settings, **options: Any
) -> Aligner:
    """The network after the last step. Target labels do not come here."""
    torch.manual_seed(seed)
    aligner = Aligner(
        **network(),
        num_classes=CLASSES,
        optimizer=partial(torch.optim.AdamW, lr=settings.learning_rate),
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR,
        **{"weight": settings.weight, "schedule": settings.schedule, **options},
    )
    data = DomainPair(
        TensorDataset(*source), TensorDataset(target), batch_size=settings.batch_size, seed=seed
    )
    with quiet_lightning():
        trainer = L.Trainer(
            max_epochs=settings.epochs,
            accelerator="cpu",
            devices=1,
            callbacks=[EpochSeed(seed)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(aligner, data)
    return aligner


@torch.no_grad()
def accuracy(aligner: Aligner, domain: tuple[Tensor, Tensor]) -> float:
    """In percent."""
    aligner.eval()
    images, labels = domain
    return 100 * float((aligner(images).argmax(1) == labels).float().mean())


def measure(
    folder: Path, seeds: int, settings: Settings, others: bool, jobs: int
) -> list[dict[str, Any]]:
    """A row for each direction, method and seed; the other methods with the first seed alone."""
    plan = [(name, seed) for seed in range(seeds) for name in METHODS]
    plan += [(name, 0) for name in OTHERS if others]
    rows = []
    # Networks this small gain nothing from threads: each training has one, and a process.
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        tasks = [
            pool.submit(row, folder, *direction, name, seed, settings)
            for name, seed in plan
            for direction in DIRECTIONS
        ]
        for task in tasks:
            rows.append(task.result())
            print(json.dumps(rows[-1]), flush=True)
    return rows


def row(
    folder: Path, source: str, target: str, method: str, seed: int, settings: Settings
) -> dict[str, Any]:
    """One training and what came of it."""
    start = time.perf_counter()
    domains = load(folder)
    options = METHODS.get(method, {"alignment": method})
    aligner = train(domains[source], domains[target][0], seed, settings, **options)
    return {
        "source": source,
        "target": target,
        "method": method,
        "seed": seed,
        "source_accuracy": round(accuracy(aligner, domains[source]), 2),
        "target_accuracy": round(accuracy(aligner, domains[target]), 2),
        "seconds": round(time.perf_counter() - start, 1),
    }


def of(rows: list[dict[str, Any]], direction: tuple[str, str], method: str) -> list[float]:
    """Target accuracies of a method, by seed."""
    chosen = [r for r in rows if (r["source"], r["target"], r["method"]) == (*direction, method)]
    return [r["target_accuracy"] for r in sorted(chosen, key=lambda r: r["seed"])]


def table(rows: list[dict[str, Any]]) -> str:
    """Target accuracy in percent: mean, least and greatest over the seeds."""
    lines = ["| method | " + " | ".join(f"{s} to {t}" for s, t in DIRECTIONS) + " | seeds |"]
    lines.append("|---" * (len(DIRECTIONS) + 2) + "|")
    for method in dict.fromkeys(r["method"] for r in rows):
        cells, count = [], 0
        for direction in DIRECTIONS:
            found = of(rows, direction, method)
            count = len(found)
            spread = f" ({min(found):.1f} to {max(found):.1f})" if count > 1 else ""
            cells.append(f"{mean(found):.1f}{spread}")
        lines.append(f"| {method} | {' | '.join(cells)} | {count} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    folder = os.environ.get("FASTMMD_TEST_DATA")
    parser.add_argument("--data", type=Path, default=folder, help=f"folder of {FILE}")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/alignment"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=Settings.epochs)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings at a time")
    parser.add_argument("--no-others", action="store_true", help="no other discrepancies")
    options = parser.parse_args()
    if options.data is None or not (options.data / FILE).is_file():
        parser.error(f"--data (or FASTMMD_TEST_DATA) must name a folder with {FILE}")
    settings = Settings(epochs=options.epochs)
    rows = measure(options.data, options.seeds, settings, not options.no_others, options.jobs)
    print(table(rows))
    options.output.mkdir(parents=True, exist_ok=True)
    record = {"machine": describe(), "settings": asdict(settings), "rows": rows}
    (options.output / "alignment.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
