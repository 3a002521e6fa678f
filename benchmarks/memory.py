"""Peak memory of a call, above what the process held before it, results included.

Measured in a process of its own from the high-water mark that Linux keeps of resident memory. What
is freed goes back to the system at once there, so that the mark does not hide behind memory that
the allocator had kept, and a number means bytes that were in use at one time.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks import ROOT
from benchmarks.cells import Cell
from benchmarks.contests import Contest, contests
from benchmarks.peers import PEERS, run

# Blocks of this size and above are mapped one by one, and unmapped when freed.
MAPPED = 1 << 17
RESET_MARK = "5"
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1


def give_back() -> None:
    """From now on freed memory goes back to the system at once, in this process."""
    library = ctypes.CDLL(None)
    library.mallopt(_M_MMAP_THRESHOLD, MAPPED)
    library.mallopt(_M_TRIM_THRESHOLD, MAPPED)


def of_peers(cell: Cell, lanes: Sequence[tuple[str, str]]) -> dict[tuple[str, str], int | None]:
    """Peak bytes of each (peer, mode) in a cell; None where the system keeps no such mark."""
    peaks = _elsewhere(["cell", cell.n, cell.d, cell.threads, list(lanes)])
    return dict(zip(lanes, peaks, strict=True))


def of_contest(contest: Contest, quick: bool) -> dict[str, int | None]:
    """Peak bytes of the contestants that ask for it; None where the system keeps no such mark."""
    names = [c.id for c in contest.contestants if c.remember]
    if not names:
        return {}
    peaks = _elsewhere(["contest", contest.subject, contest.threads, quick])
    return dict(zip(names, peaks, strict=True))


def _elsewhere(request: list[object]) -> list[int | None]:
    """The answer of a new process."""
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": str(MAPPED),
        "MALLOC_TRIM_THRESHOLD_": str(MAPPED),
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", json.dumps(request)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    peaks: list[int | None] = json.loads(done.stdout.splitlines()[-1])
    return peaks


def status_bytes(field: str) -> int:
    """Bytes of this process that Linux counts under a name, such as ``VmHWM``.

    Raises:
        OSError: The system keeps no such count.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise OSError(f"/proc/self/status has no {field}")


def peak_of_call(call: Callable[[], object]) -> int | None:
    """Peak bytes of a call, in a process that gives memory back as above."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text(RESET_MARK)
        before = status_bytes("VmRSS")
    except OSError:
        return None
    result = call()
    peak = status_bytes("VmHWM")
    del result
    return max(0, peak - before)


def _measured_peers(n: int, d: int, threads: int, lanes: list[tuple[str, str]]) -> list[int | None]:
    cell = Cell(n, d, threads)
    torch.set_num_threads(threads)
    x, y = cell.samples()
    few = Cell(min(n, 64), d, threads).samples()
    measured = []
    for name, mode in lanes:
        objective = PEERS[name].make(cell.bandwidth)
        # Libraries are loaded and threads started before; a compiled function is compiled.
        run(objective, *(few if PEERS[name].eager else (x, y)), mode)
        measured.append(peak_of_call(partial(run, objective, x, y, mode)))
    return measured


def _measured_contest(name: str, threads: int, quick: bool) -> list[int | None]:
    contest = next(c for c in contests(threads, quick) if c.subject == name)
    torch.set_num_threads(threads)
    measured = []
    for contestant in contest.contestants:
        if contestant.remember:
            lane = contestant.prepare()
            lane.call()
            measured.append(peak_of_call(lane.call))
    return measured


if __name__ == "__main__":
    what, *arguments = json.loads(sys.argv[1])
    measure = _measured_contest if what == "contest" else _measured_peers
    print(json.dumps(measure(*arguments)))
