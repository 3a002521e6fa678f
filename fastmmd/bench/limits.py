"""The limits of the machine, measured in the run whose figures are held against them."""

from __future__ import annotations

from functools import partial

import torch

from fastmmd.bench.clock import stopwatch_of
from fastmmd.bench.interleave import Budget, Lane, interleave
from fastmmd.bench.machine import native
from fastmmd.bench.peak import CompilerError, Peak

__all__ = ["Limits", "key"]

_KIND = {"products": "flop_per_second", "multiply-adds": "fma_flop_per_second"}


def key(what: str, dtype: torch.dtype, device: str) -> str:
    """Under which a limit is recorded.

    Args:
        what: ``"products"`` for the rate of torch.mm, ``"multiply-adds"`` for that of FMAs.
        dtype: Of the samples. On the CPU halves are computed with in float32.
        device: ``"cpu"`` or ``"cuda"``.
    """
    if dtype == torch.float32 or (device == "cpu" and dtype != torch.float64):
        return _KIND[what]
    return f"{_KIND[what]}_{str(dtype).removeprefix('torch.')}"


class Limits:
    """What the machine reaches, sampled again and again through a run; the best counts.

    Products of matrices and copies are those of torch, on the device. Fused multiply-adds are those
    of a microbenchmark, on the cores of the processor; without a C++ compiler they are not
    measured, nor on a GPU.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        threads: Of torch and of the microbenchmark.
        dtypes: Of the samples.
    """

    def __init__(self, device: str, threads: int, dtypes: set[torch.dtype]) -> None:
        self._device, self._threads = device, threads
        self._dtypes = {key("products", t, device): t for t in sorted(dtypes, key=str)}
        self._dtypes.setdefault(key("products", torch.float32, device), torch.float32)
        self._rates: dict[str, float] = {}
        self._peaks: dict[str, Peak] = {}
        self.not_measured = "" if device == "cpu" else "of processors alone"

    def sample(self) -> None:
        """Measures once more."""
        side, count = 2048, 1 << 26
        b = torch.empty(count, device=self._device)
        c = torch.empty_like(b)
        lanes: dict[str, Lane] = {"bytes_per_second": lambda: c.copy_(b)}
        work = {"bytes_per_second": 8.0 * count}
        for name, dtype in self._dtypes.items():
            computed = torch.float32 if name == "flop_per_second" else dtype
            a = torch.randn(side, side, device=self._device, dtype=computed)
            lanes[name] = partial(torch.mm, a, a)
            work[name] = 2.0 * side**3
        rounds = interleave(lanes, Budget(0.3, least=3), stopwatch_of(self._device))
        for name, seconds in rounds.seconds.items():
            self._rates[name] = max(self._rates.get(name, 0.0), work[name] / min(seconds))
        if not self.not_measured:
            self._sample_peaks()

    def _sample_peaks(self) -> None:
        instruction_set = native.instruction_set()
        for dtype in self._dtypes.values():
            name = key("multiply-adds", dtype, self._device)
            kind = "float64" if dtype == torch.float64 else "float32"
            peak = self._peaks.setdefault(name, Peak(kind))
            try:
                peak.sample(instruction_set, self._threads, seconds=0.1)
            except CompilerError as error:
                self.not_measured = str(error)
                return
            self._rates[name] = peak.highest()[instruction_set, self._threads]

    @property
    def rates(self) -> dict[str, float]:
        """The highest so far, by :func:`key`, in FLOP/s; ``bytes_per_second`` of a copy."""
        return dict(self._rates)
