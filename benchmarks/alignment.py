"""Digits read by a network that was taught on digits of other origin: `-m benchmarks.alignment`.

The network, the batches and the number of steps are the same for all. Learning rate and weight are
chosen first, for each direction, from a grid by the validators of ``fastmmd.train.rank``, with a
seed that does not count; target labels are looked at once, after the last step of the trainings
with the chosen setting. Prints a table and writes alignment.json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import ROOT
from fastmmd.bench.builds import commit_of
from fastmmd.bench.machine import describe
from fastmmd.demo.experiment import quiet_lightning
from fastmmd.train import Aligner, DomainPair, EpochSeed, Outputs, Ranking, collect, rank

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


# What the validators choose from, for each direction, by trainings of "aligned".
WEIGHTS = (0.3, 1.0, 3.0)
LEARNING_RATES = (1e-3, 3e-3)
SELECTION_SEED = 1000  # of a training to choose by; none that counts has it
HELD_OUT = 0.2  # the share of the source that such a training does not see


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


def grid(settings: Settings) -> list[Settings]:
    """The settings to choose from. Of those that tie, the first is taken."""
    return [
        replace(settings, learning_rate=rate, weight=weight)
        for rate in LEARNING_RATES
        for weight in WEIGHTS
    ]


def candidate(
    source: tuple[Tensor, Tensor], target: Tensor, settings: Settings
) -> tuple[Outputs, Outputs]:
    """What the validators look at: outputs of held-out source and of target images."""
    images, labels = source
    generator = torch.Generator().manual_seed(SELECTION_SEED)
    order = torch.randperm(len(images), generator=generator)
    held_out, seen = order.tensor_split([round(HELD_OUT * len(order))])
    part = images[seen], labels[seen]
    aligner = train(part, target, SELECTION_SEED, settings, **METHODS["aligned"])
    sets = TensorDataset(images[held_out], labels[held_out]), TensorDataset(target)
    of_source, of_target = (collect(aligner, DataLoader(s, settings.batch_size)) for s in sets)
    return of_source, of_target


def select(
    source: tuple[Tensor, Tensor],
    target: Tensor,
    choices: Sequence[Settings],
    through: Callable[..., Iterable[tuple[Outputs, Outputs]]] = map,
) -> tuple[Settings, Ranking]:
    """The setting of the best mean rank, and how all were ranked. Target labels do not come here.

    Args:
        source: Images and labels.
        target: Images.
        choices: What to choose from.
        through: As ``map``, such as the one of a pool of processes.
    """
    count = len(choices)
    found = through(candidate, [source] * count, [target] * count, choices)
    runs = {name_of(c): outputs for c, outputs in zip(choices, found, strict=True)}
    ranking = rank(runs)
    return choices[ranking.runs.index(ranking.best[0])], ranking


def name_of(settings: Settings) -> str:
    """What tells the settings of the grid apart."""
    return f"learning rate {settings.learning_rate:g}, weight {settings.weight:g}"


@torch.no_grad()
def accuracy(aligner: Aligner, domain: tuple[Tensor, Tensor]) -> float:
    """In percent."""
    aligner.eval()
    images, labels = domain
    return 100 * float((aligner(images).argmax(1) == labels).float().mean())


def measure(
    folder: Path, seeds: int, settings: Settings, others: bool, jobs: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What was chosen and why; a row for each direction, method and seed.

    The methods that are no part of the comparison have the first seed alone.
    """
    plan = [(name, seed) for seed in range(seeds) for name in METHODS]
    plan += [(name, 0) for name in OTHERS if others]
    chosen, selection, rows = {}, {}, []
    # Networks this small gain nothing from threads: each training has one, and a process.
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for source, target in DIRECTIONS:
            domains = load(folder)
            images, _ = domains[target]
            setting, ranking = select(domains[source], images, grid(settings), pool.map)
            chosen[source, target] = setting
            selection[f"{source} to {target}"] = {
                "chosen": asdict(setting),
                "seed": SELECTION_SEED,
                "held_out": HELD_OUT,
                "runs": ranking.runs,
                "scores": ranking.scores,
                "mean_ranks": ranking.mean_ranks,
                "best": ranking.best,
            }
            print(f"{source} to {target}\n\n{ranking}\n", flush=True)
        tasks = [
            pool.submit(row, folder, *direction, name, seed, chosen[direction])
            for name, seed in plan
            for direction in DIRECTIONS
        ]
        for task in tasks:
            rows.append(task.result())
            print(json.dumps(rows[-1]), flush=True)
    return selection, rows


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


def gains(rows: list[dict[str, Any]]) -> str:
    """What "aligned" has above the others of a seed: mean, least and greatest over the seeds."""
    lines = ["| aligned less | " + " | ".join(f"{s} to {t}" for s, t in DIRECTIONS) + " |"]
    lines.append("|---" * (len(DIRECTIONS) + 1) + "|")
    for method in (m for m in METHODS if m != "aligned"):
        cells = []
        for direction in DIRECTIONS:
            both = zip(of(rows, direction, "aligned"), of(rows, direction, method), strict=True)
            found = [a - b for a, b in both]
            cells.append(f"{mean(found):.1f} ({min(found):.1f} to {max(found):.1f})")
        lines.append(f"| {method} | {' | '.join(cells)} |")
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
    settings, commit = Settings(epochs=options.epochs), commit_of(ROOT)
    selection, rows = measure(
        options.data, options.seeds, settings, not options.no_others, options.jobs
    )
    print(f"{table(rows)}\n\n{gains(rows)}")
    options.output.mkdir(parents=True, exist_ok=True)
    record = {
        "machine": describe(),
        "commit": commit,
        "command": f"python -m benchmarks.alignment --seeds {options.seeds} --epochs"
        f" {options.epochs}" + " --no-others" * options.no_others,
        "selection": selection,
        "rows": rows,
    }
    (options.output / "alignment.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
