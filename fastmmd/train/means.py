"""Means over an epoch of what each step has, at next to no cost in the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor

__all__ = ["AGREED", "EpochMeans", "means_of_all"]

# Logging of values that are the same on all processes already; without it Lightning warns that they
# might not be. The largest of equal numbers is that number to the last bit.
AGREED: dict[str, Any] = {"sync_dist": True, "reduce_fx": "max"}

PENDING = 64  # steps that are kept until they are added up at once


class EpochMeans:
    """Weighted means of scalars over steps: adding them up costs less than logging each step.

    Nothing is synchronised on a GPU.

    Args:
        names: Of the scalars, where a process may come to the end of an epoch without a step.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names = names
        self.samples: Tensor | int = 0
        self._pending: list[tuple[Mapping[str, Tensor | float], Tensor | int]] = []
        self._sums: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor | float], samples: Tensor | int) -> None:
        """Takes in the values of a step, detached, which were means over so many samples.

        Their number may be a scalar on the device, of samples that have a label.
        """
        self.samples = self.samples + samples
        self._pending.append((values, samples))
        if len(self._pending) == PENDING:
            self._fold()

    def sums(self, device: torch.device) -> dict[str, Tensor]:
        """The sums over samples, float32 scalars, of which the means are shares of ``samples``."""
        self._fold()
        return {name: value.to(device) for name, value in self._sums.items()}

    def _fold(self) -> None:
        columns: dict[str, tuple[list[Tensor | float], list[Tensor | int]]] = {}
        for values, samples in self._pending:
            for name, value in values.items():
                column, weights = columns.setdefault(name, ([], []))
                column.append(value)
                weights.append(samples)
        for name, (column, weights) in columns.items():
            tensors = [v for v in column if isinstance(v, Tensor)]
            rows = torch.stack(tensors).float() if tensors else torch.tensor(column)
            counts = [w for w in weights if isinstance(w, Tensor)]
            total = rows @ (torch.stack(counts).to(rows) if counts else rows.new_tensor(weights))
            self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._pending = []


def means_of_all(parts: Sequence[EpochMeans], strategy: Strategy) -> dict[str, Tensor]:
    """The means over the samples of all processes, by name; none of what has no sample.

    All processes must come here, with the same names.
    """
    device = strategy.root_device
    zero = torch.zeros((), device=device)
    names: list[str] = []
    sums: list[Tensor] = []
    counts: list[Tensor] = []
    for part in parts:
        found = part.sums(device)
        of_part = part.names or list(found)
        names += of_part
        sums += [found.get(name, zero) for name in of_part]
        counts += [zero + part.samples] * len(of_part)
    if not names:
        return {}
    both = torch.stack((torch.stack(sums), torch.stack(counts)))
    both = strategy.reduce(both, reduce_op="sum")
    means = zip(names, both[0] / both[1], both[1].tolist(), strict=True)
    return {name: mean for name, mean, count in means if count}
