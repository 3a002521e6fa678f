"""Runs that were never made: records with simulated times."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fastmmd.bench import record as records
from fastmmd.bench.interleave import Rounds, fastest
from fastmmd.bench.record import Series

MACHINE = {
    "device": "cpu",
    "cpu": "a processor",
    "instruction_set": "avx2",
    "threads": 2,
    "torch": "2.13.0",
    "compiler": "GCC 12",
}


def series(
    seed: int, factor: float = 1.0, noise: float = 0.02, rounds: int = 30, time: float = 1e-3
) -> Series:
    """Times of a machine whose speed wanders: log-normal, correlated from round to round."""
    draw = np.random.default_rng(seed)
    drift = np.cumsum(0.05 * draw.standard_normal(rounds))
    lanes = (
        tuple(t * np.exp(drift + noise * draw.standard_normal(rounds)))
        for t in (time * factor, 5 * time)
    )
    return Series("row", *lanes)


def content(of: dict[str, Series], **changes: Any) -> dict[str, Any]:
    entries = []
    for name, s in of.items():
        rounds = Rounds(
            {"fastmmd": [*s.subject], "reference": [*s.reference]},
            dict.fromkeys(("fastmmd", "reference"), 1),
        )
        entries += [records.entry(name, lane, rounds, lane, {}) for lane in rounds.seconds]
    made = records.content(MACHINE, {"id": "0" * 40}, entries)
    return made | changes


def write(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


class SharedMachine:
    """Four cores, each of which others make slow at times, and no clock but its own.

    Args:
        seed: Of all that is drawn.
        slow: Mean seconds for which a core is slow.
        quiet: Mean seconds for which it is not.
        factor: How much longer everything takes meanwhile.
    """

    CORES = 4

    def __init__(self, seed: int, slow: float, quiet: float, factor: float) -> None:
        self.draw = np.random.default_rng(seed)
        self._means, self._factor = (quiet, slow), factor
        self.now = 0.0
        self._is_slow = [bool(self.draw.random() < slow / (slow + quiet)) for _ in range(4)]
        self._until = [self._length(is_slow) for is_slow in self._is_slow]

    def _length(self, is_slow: bool) -> float:
        return float(self.draw.exponential(self._means[is_slow]))

    def run(self, cores: Sequence[int], work: float) -> float:
        """Seconds for work that takes so long on quiet cores; the slowest core sets the pace."""
        start = self.now
        while work > 0:
            for core in cores:
                while self._until[core] <= self.now:
                    self._is_slow[core] ^= True
                    self._until[core] += self._length(self._is_slow[core])
            pace = self._factor if any(self._is_slow[core] for core in cores) else 1.0
            step = min(work * pace, min(self._until[core] for core in cores) - self.now)
            self.now += step
            work -= step / pace
        return self.now - start


class SimulatedWorker:
    """A worker of a build whose calls take 2.4 ms, or longer by a plant, on a shared machine.

    Processes of one build differ by their spread, and calls by their jitter.
    """

    machine: ClassVar[SharedMachine]
    plant: ClassVar[dict[str, float]] = {}
    spread: ClassVar[float] = 0.007

    def __init__(self, name: str, folder: Path) -> None:
        draw = self.machine.draw
        own = (1 + self.plant[name]) * np.exp(self.spread * draw.standard_normal())
        self._work = {"fastmmd": 2.4e-3 * own, "reference": 12e-3}
        self._time = fastest(self._calls)
        self.machine.now += 3.0  # it starts

    def __enter__(self) -> SimulatedWorker:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def prepare(self, row: str, device: str, threads: int) -> dict[str, float]:
        return {"error": 0.0}

    def seconds(self, lane: str, calls: int, cores: Sequence[int]) -> float:
        self._cores = cores
        return self._time(lane, calls)

    def _calls(self, lane: str, calls: int) -> float:
        jitter = np.exp(np.abs(0.01 * self.machine.draw.standard_normal()))
        return self.machine.run(self._cores, calls * self._work[lane] * jitter)
