"""One of several processes that train on parts of one batch: what the tests start.

``python distributed_worker.py WHAT RANK WORLD FOLDER`` meets the others through a file in the
folder and leaves what it found in ``FOLDER/RANK.pt``.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tolerance import FAMILIES, Case, Results, differentiate, make_case
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fastmmd as fm
from fastmmd.train import Activations, Aligner, JointAlignment, LayerwiseAlignment
from fastmmd.train.distributed import gather_rows, global_discrepancy

CLASSES = 3

# Rows of each process, by the number of processes: of the first domain and of the second.
ROWS = {1: ([11], [9]), 2: ([10, 1], [2, 7]), 4: ([1, 5, 2, 3], [4, 1, 1, 3])}

ALIGNMENTS: dict[str, Any] = {
    "unbiased": lambda: fm.MMDLoss(fm.Laplacian("median"), "unbiased"),
    "polynomial": lambda: fm.MMDLoss(fm.Polynomial(2) + fm.Energy(), "unbiased"),
    "learnable": lambda: fm.MMDLoss(fm.Learnable(0.5) * fm.Laplacian(fm.Learnable(2.0))),
    "linear": lambda: fm.MMDLoss(estimator="linear"),
    "joint": lambda: JointAlignment(
        fm.Laplacian(fm.Learnable(2.0)) + fm.Polynomial(2), fm.Gaussian("median"), "unbiased"
    ),
    **{
        name: lambda name=name: name
        for name in ("ddc", "dan", "jan", "dsan", "can", "coral", "energy", "random_features")
    },
    "dann": lambda: "dann",
    "cdan": lambda: "cdan",
}


def build(name: str) -> Aligner:
    """A small network in float64, the same at each call."""
    torch.manual_seed(3)
    return Aligner(
        nn.Sequential(nn.Linear(4, 8), nn.Tanh()),
        nn.Sequential(nn.Linear(8, 6), nn.Tanh()),
        nn.Linear(6, CLASSES),
        CLASSES,
        alignment=ALIGNMENTS[name](),
        layers=["backbone.1"],
        weight=0.7,
        schedule="constant",
        source_weights=[2.0, 1.0],
        global_batch=True,
    ).double()


def batch_of(rows: tuple[list[int], list[int]], rank: int | None) -> dict[str, Any]:
    """Two sources, a target and labelled target samples: of one process, or of all for None."""
    generator = torch.Generator().manual_seed(5)

    def part(counts: list[int], shift: float) -> tuple[Tensor, Tensor]:
        n = sum(counts)
        inputs = torch.randn(n, 4, generator=generator, dtype=torch.float64) + shift
        labels = torch.randint(CLASSES, (n,), generator=generator)
        if rank is None:
            return inputs, labels
        return inputs.split(counts)[rank], labels.split(counts)[rank]

    first, second = rows
    return {
        "source": [part(first, 0.0), part(second, 0.3)],
        "target": part(second, 1.0)[0],
        "target_labelled": part(first, 1.0),
    }


class Step(nn.Module):
    """The objective of a training step as a module, for ``DistributedDataParallel``."""

    def __init__(self, aligner: Aligner) -> None:
        super().__init__()
        self.aligner = aligner
        aligner._log_step = lambda *_: None  # there is no trainer
        aligner.progress = lambda: 0.0

    def forward(self, batch: Any) -> Tensor:
        return self.aligner.training_step(batch, 0)


def one_step(name: str, batch: Any, parallel: bool) -> dict[str, Tensor]:
    """The objective, the discrepancy and the gradient of each parameter."""
    aligner = build(name)
    step = Step(aligner)
    module = DistributedDataParallel(step) if parallel else step  # it has to outlive backward
    objective = module(batch)
    objective.backward()
    logged = aligner.means.sums(torch.device("cpu"))["train_alignment_loss"] / aligner.means.samples
    found = {"objective": objective.detach(), "alignment": logged}
    return found | {k: p.grad for k, p in aligner.named_parameters()}


def gathered(rank: int) -> list[Tensor]:
    """Rows of two dtypes from all processes, of some of them none."""
    rows = [torch.full((rank, 2), float(rank)), torch.arange(3 - rank % 3).half()]
    return [torch.cat(parts) for parts in gather_rows(rows)]


def empty(rank: int) -> str:
    """What is said where the second process has no row of the source."""
    source, target = (
        Activations({"features": torch.ones(n, 2)}, torch.ones(n, 2)) for n in (3 - 3 * rank, 3)
    )
    try:
        global_discrepancy(LayerwiseAlignment(), source, target)
    except ValueError as error:
        return str(error)
    return "nothing"


CASES = [
    (kernel, estimator, dtype)
    for kernel in (*FAMILIES, "mean", "median", "mixture")
    for estimator in ("biased", "unbiased")
    for dtype in (torch.float32, torch.float64)
]
SEEDS_RUN = 2


def case_of(index: int, seed: int) -> Case:
    kernel, estimator, dtype = CASES[index]
    return make_case(seed, 11, 9, 5, kernel, estimator, dtype, offset=3.0)


def of_all_processes(case: Case, rank: int, world: int) -> Results:
    """The MMD of a case whose rows are spread over processes, averaged as DDP does."""
    of_x, of_y = ROWS[world]

    def function(x: Tensor, y: Tensor, kernel: fm.Kernel, estimator: str, *_: Any) -> Tensor:
        own = [part.split(rows)[rank] for part, rows in ((x, of_x), (y, of_y))]
        source, target = (Activations({"features": t}, t.detach()) for t in own)
        return global_discrepancy(LayerwiseAlignment(fm.MMDLoss(kernel, estimator)), source, target)

    results = differentiate(case, function)
    for name, value in results.items():
        if name != "value":
            dist.all_reduce(value)
            value /= world
    return results


def looks(rank: int, world: int) -> dict[str, Any]:
    """All that is asked of processes that live on."""
    batch = batch_of(ROWS[world], rank)
    return {
        "steps": {name: one_step(name, batch, True) for name in ALIGNMENTS},
        "values": {
            str((index, seed)): of_all_processes(case_of(index, seed), rank, world)
            for index in range(len(CASES))
            for seed in range(SEEDS_RUN)
        },
        "gathered": gathered(rank),
        "empty": empty(rank) if world == 2 else "",
    }


def lost(rank: int, world: int, how: str) -> dict[str, Any]:
    """The last process does not come to a step; the others tell how that ends."""
    dist.barrier()
    if rank == world - 1:
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    start = time.monotonic()
    try:
        one_step("ddc", batch_of(ROWS[world], rank), parallel=False)
    except RuntimeError as error:
        return {"error": str(error), "seconds": time.monotonic() - start}
    return {"error": "none", "seconds": 0.0}


def main() -> None:
    what, rank, world, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    warnings.simplefilter("error", UserWarning)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=5 if what == "hangs" else 60),
    )
    if what == "looks":
        torch.save(looks(rank, world), folder / f"{rank}.pt")
    if what == "hangs" or world == 4:
        found = lost(rank, world, "hangs" if what == "hangs" else "dies")
        torch.save(found, folder / f"{rank}.lost.pt")
    else:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
