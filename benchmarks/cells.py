"""What is measured: the sizes, each with its reason, the data and the arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# What a lane computes: the value under no_grad, or the value and the gradients of both samples.
MODES = ("value", "gradients")


@dataclass(frozen=True)
class Cell:
    """Two samples of n points each in d dimensions, float32, five Gaussians of fixed bandwidth."""

    n: int
    d: int
    threads: int

    @property
    def id(self) -> str:
        return f"n={self.n} d={self.d} threads={self.threads}"

    @property
    def bandwidth(self) -> float:
        """That at which the kernel varies most over the data: 2 s^2 is the mean of |x - y|^2."""
        return math.sqrt(self.d)

    def samples(self) -> tuple[Tensor, Tensor]:
        """Two samples, [n, d] each: normal, the second shifted and wider."""
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(2, self.n, self.d, generator=generator)
        return x.requires_grad_(), (1.1 * y + 0.1).requires_grad_()

    def flop(self, mode: str) -> float:
        """The multiplications and additions of the matrix products that cannot be left out.

        The inner products of all pairs, each once, 2d (2n^2); for the gradients the product of the
        symmetric matrix of weights with the points, another 2d (4n^2). Exponentials not counted.
        """
        value = 2 * self.d * 2 * self.n**2
        return float(value if mode == "value" else value + 2 * self.d * 4 * self.n**2)

    @property
    def sample_bytes(self) -> int:
        return 2 * self.n * self.d * 4

    def bytes(self, mode: str) -> int:
        """Bytes that must be moved: the samples in, their gradients out."""
        return self.sample_bytes if mode == "value" else 2 * self.sample_bytes


def comparisons(threads: int, quick: bool) -> list[Cell]:
    """The cells in which everything is compared with everything."""
    sizes = [
        (32, 256),  # the batch and bottleneck of DeepDA's examples: overhead of the call
        (128, 256),  # a usual batch on one device
        (512, 256),  # the largest batch at which a (2n, 2n, d) tensor is still made
        (2048, 256),  # a batch gathered over devices: the matrix of kernel values leaves the cache
        (2048, 1024),  # wide features, as of a backbone without bottleneck: products alone bind
        (8192, 64),  # a two-sample test on narrow data: exponentials bind
        (8192, 256),  # the matrices of plain PyTorch near the memory of a workstation
    ]
    cells = [Cell(n, d, threads) for n, d in sizes if not quick or (n <= 2048 and d <= 256)]
    # A data loader or a user has taken the other cores.
    return [Cell(32, 256, 1), *cells] if threads > 1 else cells


def near_the_limit(threads: int, quick: bool) -> list[Cell]:
    """The cells whose share of the machine's peak is asked for, on each instruction set."""
    sizes = [(2048, 256), (2048, 1024), (8192, 256)]
    return [Cell(n, d, threads) for n, d in (sizes[:1] if quick else sizes)]


def doublings(threads: int, quick: bool) -> list[Cell]:
    """The cells over which time may grow with n^2 and no faster."""
    sizes = (1024, 2048) if quick else (4096, 8192, 16384)
    return [Cell(n, 64, threads) for n in sizes]
