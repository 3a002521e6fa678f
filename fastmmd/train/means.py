"""Means over an epoch of what each step has, at next to no cost in the step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["EpochMeans"]

PENDING = 64  # steps that are kept until they are added up at once


class EpochMeans:
    """Weighted means of scalars over steps: adding them up costs less than logging each step.

    Nothing is synchronised on a GPU.
    """

    def __init__(self) -> None:
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
