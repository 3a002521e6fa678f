"""What this installation is and runs on: the first thing to look at, and to put into a report."""

from __future__ import annotations

import platform
from importlib import import_module

import torch

import fastmmd
from fastmmd import ops

__all__ = ["info"]


def info() -> dict[str, str]:
    """Version, instruction set, threads, CUDA build and device, torch, Python, compiler.

    Returns:
        What ``fastmmd info`` prints, under the names it prints.

    Example:
        >>> list(info())[:2]
        ['fastmmd', 'instruction set']
    """
    native = ops.native
    build = native.build_info()
    available = ", ".join(native.instruction_sets())
    return {
        "fastmmd": fastmmd.__version__,
        "instruction set": f"{native.instruction_set()} (this machine runs: {available})",
        "threads": f"{torch.get_num_threads()} (OpenMP: {build['openmp']})",
        "CUDA": cuda_state(),
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "compiler": build["compiler"],
        "platform": platform.platform(),
    }


def cuda_state() -> str:
    """Whether the CUDA module was built, and what it finds."""
    try:
        cuda = import_module("fastmmd._cuda")
    except ImportError:
        return "not built"
    built = f"built for {cuda.architectures()} with CUDA {cuda_version(cuda.runtime_version())}"
    driver = cuda.driver_version()
    if driver == 0:
        return f"{built}; no driver"
    devices = cuda.device_count()
    return (
        f"{built}; driver for CUDA {cuda_version(driver)}, {devices} device{'s' * (devices != 1)}"
    )


def cuda_version(number: int) -> str:
    """CUDA's 1000 major + 10 minor in the usual form."""
    return f"{number // 1000}.{number % 1000 // 10}"
