"""The sums of features of a sketch, by frequencies that sketches of one kind share."""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from fastmmd import ops
from fastmmd.frequencies import RATES, Frequencies, draw
from fastmmd.terms import Terms

__all__ = ["Features"]


class Features:
    """Random features of a kernel, whose frequencies are drawn when they are first needed.

    Args:
        terms: the kernel.
        scheme: one of :data:`fastmmd.frequencies.SCHEMES`.
        dim: d, the width of the points.
        count: F, the number of frequencies.
        seed: of them.
        pairs: whether there is a cosine and a sine of each, or a cosine with a phase.
    """

    def __init__(
        self, terms: Terms, scheme: int, dim: int, count: int, seed: int, pairs: bool
    ) -> None:
        self._groups = _groups(terms)
        self._scheme, self._dim, self._count = scheme, dim, count
        self._seed, self._pairs = seed, pairs
        self._drawn: list[_Drawn] | None = None

    def sums(self, x: Tensor, weights: Tensor | None) -> Tensor:
        """``sum_i w_i phi_kj(x_i)``, [K, D], float64, of points [n, d] and weights [n]."""
        if self._drawn is None:
            self._drawn = [self._draw(group) for group in self._groups]
        terms = sum(len(group.positions) for group in self._groups)
        features = 2 * self._count if self._pairs else self._count
        sums = torch.empty((terms, features), dtype=torch.float64, device=x.device)
        for group, drawn in zip(self._groups, self._drawn, strict=True):
            w, signs, drawn_phases = drawn.on(x.device)
            phases = None if self._pairs else drawn_phases
            means = ops.feature_mean(x, weights, w, signs, phases, group.rates.to(x.device))
            sums[list(group.positions)] = means if weights is not None else means * len(x)
        return sums

    def __getstate__(self) -> dict[str, Any]:
        # The frequencies are many, and soon made again.
        return {**self.__dict__, "_drawn": None}

    def _draw(self, group: _Group) -> _Drawn:
        key = (group.family, group.shape, self._scheme, self._dim, self._count, self._seed)
        drawn = _DRAWN.get(key)
        if drawn is None:
            drawn = _DRAWN[key] = _Drawn(draw(*key))
        return drawn


class _Group(NamedTuple):
    """Terms of a kernel that share their frequencies."""

    family: int
    shape: float
    positions: tuple[int, ...]
    rates: Tensor


class _Drawn:
    """Frequencies that sketches share as long as one of them needs them."""

    def __init__(self, frequencies: Frequencies) -> None:
        self._kept = {torch.device("cpu"): frequencies}

    def on(self, device: torch.device) -> Frequencies:
        """On a device; those of the last one are kept there."""
        if device not in self._kept:
            of_cpu = self._kept[torch.device("cpu")]
            self._kept = {torch.device("cpu"): of_cpu, device: of_cpu.to(device)}
        return self._kept[device]


_DRAWN: WeakValueDictionary[tuple[Any, ...], _Drawn] = WeakValueDictionary()


def _groups(terms: Terms) -> list[_Group]:
    found: dict[tuple[int, float], list[int]] = {}
    for t, family in enumerate(terms.families):
        found.setdefault((family, terms.shapes[2 * t]), []).append(t)
    size, scales = ops.MAX_RATES, terms.scales.detach()
    return [
        _Group(family, shape, tuple(part), (RATES[family] * scales[part]).sqrt())
        for (family, shape), of in found.items()
        for part in (of[i : i + size] for i in range(0, len(of), size))
    ]
