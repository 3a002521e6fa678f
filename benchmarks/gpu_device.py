"""The device that is measured: its clock, its memory, its own rates. Without a GPU, a stand-in.

The stand-in is the CPU with an ordinary clock, so that everything which is not about the GPU itself
can be run anywhere; what it times means nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from fastmmd.bench.clock import sets_beyond, stopwatch_of

Lane = Callable[[], object]


class Device:
    """The current CUDA device, or the stand-in.

    Args:
        dry: whether it is the stand-in.
    """

    def __init__(self, dry: bool) -> None:
        self.dry = dry
        self.torch = torch.device("cpu" if dry else "cuda")
        # Of an H100, where torch does not tell.
        self.l2_bytes = 1 << 16 if dry else getattr(self._properties(), "L2_cache_size", 50 << 20)
        # Written between calls, it leaves nothing of them in the cache.
        self._cold = torch.empty(2 * self.l2_bytes, dtype=torch.uint8, device=self.torch)

    @staticmethod
    def _properties() -> Any:
        return torch.cuda.get_device_properties(torch.cuda.current_device())

    def facts(self) -> dict[str, Any]:
        """What figures hold for."""
        if self.dry:
            return {"name": "none (dry run)", "capability": "", "l2_bytes": self.l2_bytes}
        found = self._properties()
        return {
            "name": found.name,
            "capability": f"{found.major}.{found.minor}",
            "multiprocessors": found.multi_processor_count,
            "memory_bytes": found.total_memory,
            "l2_bytes": self.l2_bytes,
        }

    def synchronize(self) -> None:
        """Wait for all that was launched."""
        if not self.dry:
            torch.cuda.synchronize()

    def stopwatch(self, lane: Lane, calls: int) -> float:
        """Seconds on the device for calls back to back, by its events."""
        return stopwatch_of("cpu" if self.dry else "cuda")(lane, calls)

    def wall(self, lane: Lane, calls: int) -> float:
        """Seconds until the last of the calls is done: where launching binds."""
        self.synchronize()
        start = perf_counter()
        for _ in range(calls):
            lane()
        self.synchronize()
        return perf_counter() - start

    def cold(self, lane: Lane, calls: int) -> float:
        """Seconds on the device of calls that find nothing in the cache, without what is between.

        Clearing the cache takes the device longer than launching takes the host: what is measured
        is not the launch.
        """
        total = 0.0
        for _ in range(calls):
            self._cold.zero_()
            total += self.stopwatch(lane, 1)
        return total

    def sets(self, size: int) -> int:
        """How many inputs of so many bytes are more than the cache holds, used in turn."""
        return sets_beyond(self.l2_bytes, size)

    def peak_memory(self, call: Lane) -> int | None:
        """Bytes that a call needs at one time beyond what was there, results included."""
        if self.dry:
            call()
            return None
        self.release()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        self.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        del result
        return peak

    def release(self) -> None:
        """Hand back what nobody holds."""
        gc.collect()
        if not self.dry:
            torch.cuda.empty_cache()

    def captured(self, call: Callable[[], tuple[Tensor, ...]]) -> tuple[Lane, tuple[Tensor, ...]]:
        """A replay of a call, and where its results lie."""
        if self.dry:
            return call, call()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = call()
        return graph.replay, results


@contextmanager
def precision(name: str) -> Iterator[None]:
    """``torch.get_float32_matmul_precision`` for a while."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
