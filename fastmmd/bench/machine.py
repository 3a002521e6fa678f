"""The machine a run was made on, and how much of it others took meanwhile."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from fastmmd import ops

__all__ = ["Disturbance", "describe", "native", "second_level_cache"]

native: Any = ops.native


def describe() -> dict[str, Any]:
    """What a figure holds for. Names neither the host nor any path."""
    cpu = _cpu()
    build = native.build_info()
    return {
        "cpu": cpu.get("model name", platform.processor() or platform.machine()),
        "cpu_family": cpu.get("cpu family", ""),
        "cpu_model": cpu.get("model", ""),
        "cores": len(os.sched_getaffinity(0)),
        "l2_bytes": second_level_cache(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.system(),
        "instruction_set": native.instruction_set(),
        "threads": torch.get_num_threads(),
        "fastmmd": build["version"],
        "compiler": build["compiler"],
        "openmp": build["openmp"],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cpu() -> dict[str, str]:
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def second_level_cache() -> int:
    """Bytes of the second-level cache of a core, 1 MiB where the system does not tell."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text().strip()
    except OSError:
        return 1 << 20
    unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1], 1)
    return int(text.rstrip("KM")) * unit


class Disturbance:
    """The share of the machine's processor time that other processes and other guests take."""

    def __init__(self) -> None:
        self._last = self._read()

    def since_last(self) -> float | None:
        """The share since the last call, 0 to 1; None where the system does not tell."""
        before, self._last = self._last, self._read()
        if before is None or self._last is None:
            return None
        total, busy, own = (now - then for now, then in zip(self._last, before, strict=True))
        return min(1.0, max(0.0, (busy - own) / total)) if total > 0 else None

    @staticmethod
    def _read() -> tuple[float, float, float] | None:
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        except OSError:
            return None
        user, nice, system, idle, waiting, hard, soft, stolen = map(float, fields)
        busy = user + nice + system + hard + soft + stolen
        times = os.times()
        own = times.user + times.system + times.children_user + times.children_system
        return busy + idle + waiting, busy, own * os.sysconf("SC_CLK_TCK")
