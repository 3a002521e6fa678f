"""Memory of `fastmmd sketch` on a file far longer than it: `python -m benchmarks.sketch_memory`.

Anonymous memory (``RssAnon``) above what the process has once its modules are imported, looked at
every 2 ms: pages of the mapped file itself are the system's to take back, and do not count. Writes
the file to a temporary folder first, in parts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import ROOT
from benchmarks.memory import status_bytes
from fastmmd import cli
from fastmmd.bench.builds import commit_of
from fastmmd.bench.machine import describe

RESULT = Path(__file__).parent / "results" / "sketch-memory.json"
NUM_FEATURES = (1024, 4096)
IMPORTED = ("rich.console", "fastmmd.compare.sketches", "fastmmd.sketch")  # by the command
PART = 100_000  # rows that are written at a time
SECONDS = 0.002  # between two looks


def write_points(path: Path, rows: int, columns: int) -> None:
    """Standard normal points in float32, as an .npy file."""
    generator = np.random.default_rng(0)
    values = np.lib.format.open_memmap(path, "w+", np.float32, (rows, columns))
    for start in range(0, rows, PART):
        size = min(PART, rows - start)
        values[start : start + size] = generator.standard_normal((size, columns), np.float32)
    values.flush()


def of_commands(commands: Sequence[Sequence[str]]) -> dict[str, Any]:
    """What commands of ``fastmmd`` take in a new process, one after another.

    Returns:
        ``status`` of each; ``bytes``, the peak of anonymous memory above that of the imports, and
        ``seconds`` of all together.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.sketch_memory", "--watch", json.dumps(commands)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _watched(commands: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The same in this process."""
    for module in IMPORTED:
        import_module(module)
    before = peak = status_bytes("RssAnon")
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(SECONDS):
            peak = max(peak, status_bytes("RssAnon"))

    thread = threading.Thread(target=watch)
    start = time.perf_counter()
    thread.start()
    try:
        status = [cli.main(list(command)) for command in commands]
    finally:
        done.set()
        thread.join()
    return {"status": status, "bytes": peak - before, "seconds": time.perf_counter() - start}


def measure(rows: int, columns: int, threads: int) -> list[dict[str, Any]]:
    """A sketch of each size."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        points = Path(folder) / "points.npy"
        write_points(points, rows, columns)
        for size in NUM_FEATURES:
            sketch = str(Path(folder) / "sketch.npz")
            command = ["sketch", str(points), "-o", sketch, "--num-features", str(size)]
            taken = of_commands([[*command, "--threads", str(threads)]])
            if taken["status"] != [0]:
                raise RuntimeError(f"the sketch of {size} features failed")
            found.append(
                {
                    "num_features": size,
                    "anonymous_mib": round(taken["bytes"] / 2**20, 1),
                    "seconds": round(taken["seconds"], 1),
                }
            )
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=10_000_000, help="rows")
    parser.add_argument("-d", type=int, default=64, help="columns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("-o", "--output", type=Path, help=f"JSON file to write, such as {RESULT}")
    parser.add_argument("--watch", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        print(json.dumps(_watched(json.loads(options.watch))))
        return
    torch.set_num_threads(options.threads)
    record = {
        "machine": describe(),
        "commit": commit_of(ROOT),
        "command": f"python -m benchmarks.sketch_memory -n {options.n} -d {options.d}"
        f" --threads {options.threads}",
        "rows": options.n,
        "columns": options.d,
        "file_mib": round(4 * options.n * options.d / 2**20),
        "sketches": measure(options.n, options.d, options.threads),
    }
    text = json.dumps(record, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
