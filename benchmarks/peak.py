"""The rate of fused multiply-adds that the machine reaches, sampled through a run.

A share of peak is worth no more than the peak. This one is compiled for each instruction set with
the flags of the kernels, runs beside what it is compared with, and counts its best short slice on
each core. Should anything else in the run go faster, it was not the peak, and the run is void.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from benchmarks import ROOT

SOURCE = Path(__file__).with_name("fma_peak.cpp")
FLAGS = {  # those of cmake/FastmmdCore.cmake that matter here
    "baseline": (),
    "avx2": ("-mavx2", "-mfma"),
    "avx512": ("-mavx512f", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"),
}


class CompilerError(RuntimeError):
    """The microbenchmark cannot be compiled."""


def program(instruction_set: str) -> Path:
    """The microbenchmark, compiled for an instruction set unless it already is.

    Raises:
        CompilerError: no C++ compiler, or it fails.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler:
        raise CompilerError("no C++ compiler: put c++ or g++ on PATH, or name one in CXX")
    flags = ("-O3", "-ffp-contract=fast", "-pthread", *FLAGS[instruction_set])
    key = hashlib.sha256(repr((compiler, flags, SOURCE.read_bytes())).encode()).hexdigest()[:12]
    path = ROOT / "build" / "benchmarks" / f"fma_peak-{instruction_set}-{key}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        command = [*compiler.split(), *flags, str(SOURCE), "-o", str(partial)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CompilerError(f"{' '.join(command)}\n{done.stderr}")
        partial.rename(path)
    return path


class Peak:
    """The highest rate seen so far, in FLOP/s, float32, by instruction set and threads."""

    def __init__(self) -> None:
        self.samples: dict[tuple[str, int], list[float]] = {}

    def sample(self, instruction_set: str, threads: int, seconds: float = 0.2) -> None:
        """Measure once more."""
        command = [str(program(instruction_set)), "float", str(threads), str(seconds)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        self.samples.setdefault((instruction_set, threads), []).append(1e9 * float(output))

    def highest(self) -> dict[tuple[str, int], float]:
        """By instruction set and threads."""
        return {key: max(rates) for key, rates in self.samples.items()}
