"""The rounds of a set of lanes, to be handed to pytest-benchmark one lane at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastmmd.bench.interleave import Rounds, replay


@dataclass
class Measured:
    """The rounds of a set of lanes, and what else is known of each lane."""

    group: str
    rounds: Rounds
    info: dict[str, dict[str, Any]] = field(default_factory=dict)

    def record(self, benchmark: Any, lane: str) -> None:
        benchmark.group = self.group
        benchmark.extra_info |= self.info[lane]
        replay.record(benchmark, self.rounds.seconds[lane], self.rounds.calls[lane])
