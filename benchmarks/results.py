"""What a recorded run says: ratios within rounds, shares of peak, and whether it counts at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median, quantiles
from typing import Any


@dataclass(frozen=True)
class Spread:
    """A quantity over the rounds: its median and quartiles, and that of the best round each."""

    median: float
    low: float
    high: float
    best: float


def spread(values: list[float], best: float) -> Spread:
    low, middle, high = quantiles(values, n=4, method="inclusive") if values[1:] else 3 * values
    return Spread(middle, low, high, best)


@dataclass(frozen=True)
class Row:
    """One lane: all that was recorded of it."""

    kind: str  # compare, limit, growth, family or import
    info: dict[str, Any]
    seconds: list[float]

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def least(self) -> float:
        return min(self.seconds)

    @property
    def size(self) -> tuple[int, int]:
        return self.info["n"], self.info["d"]


def ratio(numerator: Row, *denominators: Row) -> Spread:
    """The time of a lane over that of another, or of several together, within rounds."""
    sums = map(sum, zip(*(row.seconds for row in denominators), strict=True))
    pairs = zip(numerator.seconds, sums, strict=True)
    least = sum(row.least for row in denominators)
    return spread([a / b for a, b in pairs], numerator.least / least)


class Run:
    """A recorded run.

    Args:
        record: the contents of the file.

    Raises:
        ValueError: no such file.
    """

    def __init__(self, record: dict[str, Any]) -> None:
        try:
            self.machine: dict[str, Any] = record["machine_info"]
            self.commit: dict[str, Any] = record["commit_info"]
            self.when: str = record["datetime"]
            self.quick: bool = record["quick"]
            self.disturbance: float | None = record["disturbance"]
            self.peaks = {
                (p["instruction_set"], p["threads"]): float(p["flop_per_second"])
                for p in record["fma_peak"]
            }
            self.rows = [
                Row(b["group"].split()[0], b["extra_info"], b["stats"]["data"])
                for b in record["benchmarks"]
            ]
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a record of this suite: {error!r} is missing in it") from error

    @classmethod
    def load(cls, path: Path) -> Run:
        """Read a file that pytest-benchmark has written."""
        return cls(json.loads(path.read_text()))

    @property
    def threads(self) -> int:
        return int(self.machine["threads"])

    def select(self, kind: str, **info: Any) -> Iterator[Row]:
        """Rows of a kind with such entries, in the order of measurement."""
        for row in self.rows:
            if row.kind == kind and info.items() <= row.info.items():
                yield row

    def find(self, kind: str, **info: Any) -> Row | None:
        """The first such row, if there is one."""
        return next(self.select(kind, **info), None)

    def sizes(
        self, kind: str, where: Callable[[Row], bool] = lambda row: True
    ) -> list[tuple[int, int]]:
        """The sizes (n, d) that rows of a kind have, once each."""
        return list(dict.fromkeys(r.size for r in self.rows if r.kind == kind and where(r)))

    def peak(self, row: Row) -> float:
        """FLOP/s of fused multiply-adds with the instruction set and threads of a row."""
        return self.peaks[row.info["instruction_set"], row.info["threads"]]

    def share(self, row: Row) -> Spread:
        """The arithmetic that must be done, over what the peak would do in the time taken."""
        shares = [row.info["flop"] / t / self.peak(row) for t in row.seconds]
        return spread(shares, max(shares))

    @cached_property
    def void(self) -> list[str]:
        """Why the run does not count: everything that was faster than the measured peak."""
        return [
            f"{row.info['peer']} at n = {row.info['n']} ran at {rate / 1e9:.0f} GFLOP/s, the peak"
            f" of {row.info['instruction_set']} on {row.info['threads']} threads was measured as"
            f" {self.peak(row) / 1e9:.0f}"
            for row in self.rows
            if "flop" in row.info and (rate := row.info["flop"] / row.least) >= self.peak(row)
        ]
