"""The MMD between two data sets of which each process holds a part.

Each process sketches its own rows; all that travels is the sum of the sketches, 8 bytes for each
feature and bandwidth. With two processes on this machine:

    torchrun --standalone --nproc-per-node 2 examples/sketch_distributed.py
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

import fastmmd as fm

# The same on every process, as only sketches that were made with the same can be added up.
FEATURES, KERNEL, WIDTH = 2048, fm.Gaussian(4.0), 16


def own_rows(rank: int, processes: int) -> tuple[Tensor, Tensor]:
    """Stands for whatever lies on this machine; the second data set is shifted a little."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, WIDTH, generator=generator)
    y = torch.randn(2001, WIDTH, generator=generator) + 0.2
    return x[rank::processes], y[rank::processes]


def sketch_of_all(rows: Tensor) -> fm.MeanEmbedding:
    """The sketch of the rows of all processes, on each of them."""
    sketch = fm.MeanEmbedding(FEATURES, KERNEL, WIDTH).update(rows)
    state = sketch.state()
    dist.all_reduce(state)
    return sketch.from_state(state)


def main() -> None:
    """One of the processes."""
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    a, b = map(sketch_of_all, own_rows(rank, processes))
    if rank == 0:
        print(f"{a.count} and {b.count} rows, on {processes} processes")
        print(f"MMD^2 = {a.mmd2(b):.9f} +- {a.standard_error(b):.6f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
