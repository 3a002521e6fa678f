"""The rate of fused multiply-adds that the machine reaches, sampled through a run.

A share of peak is worth no more than the peak. This one is compiled for each instruction set with
the flags of the kernels, runs beside what it is compared with, and counts its best short slice on
each core. Should anything else in the run go faster, it was not the peak, and the run is void.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

__all__ = ["CompilerError", "Peak", "program"]

SOURCE = Path(__file__).with_name("fma_peak.cpp")
FLAGS = {  # those of cmake/FastmmdCore.cmake that matter here
    "baseline": (),
    "avx2": ("-mavx2", "-mfma"),
    "avx512": ("-mavx512f", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"),
}


class CompilerError(RuntimeError):
    """The microbenchmark cannot be compiled, or does not run."""


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fastmmd-peak-")  # until the process ends


@functools.cache
def program(instruction_set: str) -> Path:
    """The microbenchmark, compiled for an instruction set once in a process.

    Raises:
        CompilerError: no C++ compiler, or it fails.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler:
        raise CompilerError("no C++ compiler: put c++ or g++ on PATH, or name one in CXX")
    if instruction_set not in FLAGS:
        raise CompilerError(f"no flags of a compiler are known for {instruction_set}")
    path = Path(_folder().name) / instruction_set
    flags = ("-O3", "-ffp-contract=fast", "-pthread", *FLAGS[instruction_set])
    command = [*compiler.split(), *flags, str(SOURCE), "-o", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CompilerError(f"{compiler}: {error}") from error
    if done.returncode:
        raise CompilerError(f"{' '.join(command)}\n{done.stderr}")
    return path


class Peak:
    """The highest rates seen so far, in FLOP/s, by instruction set and threads.

    Args:
        dtype: ``"float32"`` or ``"float64"``.
    """

    def __init__(self, dtype: str = "float32") -> None:
        self._type = {"float32": "float", "float64": "double"}[dtype]
        self.samples: dict[tuple[str, int], list[float]] = {}

    def sample(self, instruction_set: str, threads: int, seconds: float = 0.2) -> None:
        """Measures once more.

        Raises:
            CompilerError: As of :func:`program`, or what was compiled does not run.
        """
        try:
            command = [str(program(instruction_set)), self._type, str(threads), str(seconds)]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            rate = 1e9 * float(output)
        except (OSError, subprocess.CalledProcessError, ValueError) as error:
            raise CompilerError(f"the microbenchmark does not run: {error}") from error
        self.samples.setdefault((instruction_set, threads), []).append(rate)

    def highest(self) -> dict[tuple[str, int], float]:
        """By instruction set and threads."""
        return {key: max(rates) for key, rates in self.samples.items()}
