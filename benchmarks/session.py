"""What the measurements of one run share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from benchmarks.cells import Cell
from fastmmd.bench.interleave import Budget
from fastmmd.bench.machine import Disturbance, native
from fastmmd.bench.peak import Peak


class Session:
    """One run: its budget per cell, the peak that it samples, and what disturbs it."""

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self.budget = Budget(1.0 if quick else 8.0)
        self.threads = torch.get_num_threads()
        self.instruction_set: str = native.instruction_set()
        self.peak = Peak()
        self.whole = Disturbance()

    def info(self, cell: Cell, mode: str, instruction_set: str | None = None) -> dict[str, Any]:
        """What is recorded with the times of every lane of a cell."""
        return {
            "n": cell.n,
            "m": cell.n,
            "d": cell.d,
            "dtype": "float32",
            "kernel": "five Gaussians, fixed bandwidths",
            "mode": mode,
            "threads": cell.threads,
            "instruction_set": instruction_set or self.instruction_set,
            "torch": torch.__version__,
            "flop": cell.flop(mode),
            "bytes": cell.bytes(mode),
        }


SESSION = pytest.StashKey[Session]()


@contextmanager
def running(threads: int | None = None, instruction_set: str | None = None) -> Iterator[None]:
    """Threads and instruction set for a while, those before afterwards."""
    before = torch.get_num_threads(), native.instruction_set()
    try:
        torch.set_num_threads(threads or before[0])
        native.use_instruction_set(instruction_set or before[1])
        yield
    finally:
        torch.set_num_threads(before[0])
        native.use_instruction_set(before[1])
