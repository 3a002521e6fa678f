"""Counts that do not depend on who else uses the machine: ``python -m benchmarks.counters``.

- instructions: what a pass retires, value and gradients, AVX2 code on one thread, in callgrind;
- allocations, bytes at peak: of torch in one forward + backward;
- module bytes: size of the native module, without debugging information;
- import: instructions of ``import fastmmd`` once torch is imported, in callgrind.

They are compared where all else is the same: base and head are built by one compiler in one job; a
committed baseline holds for one compiler and version, and for one Python and torch.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from fastmmd.bench.builds import BuildError, build, checked_out

BASELINE = Path(__file__).with_suffix(".json")
GATE = 0.02
SIZES = (  # n = m, d
    (64, 256),  # a batch: what is done once weighs most
    (256, 64),  # narrow rows: exponentials weigh most
    (512, 256),  # a large batch: products weigh most
)
_INSIDE = """
import ctypes, json, sys
import numpy, torch
sys.path.insert(0, sys.argv[2])
from worker import isolate, load
isolate(sys.argv[1])
if sys.argv[3] != "-":
    counter = ctypes.CDLL(sys.argv[3])
    counter.start()
    import fastmmd
    counter.stop()
    sys.exit()
import fastmmd as fm

_, told = load(sys.argv[1])
torch.set_num_threads(1)
found = {}
for n, d in json.loads(sys.argv[4]):
    x, y = (t.requires_grad_() for t in torch.randn(2, n, d))
    loss = fm.MMDLoss()

    def step():
        torch.autograd.grad(loss(x, y), (x, y))

    step()
    sizes = told.allocations(step)
    found[f"{n}, {d}"] = [sum(size > 0 for size in sizes), told.peak_bytes(step)]
print(json.dumps(found))
"""
_SWITCH = """
#include <valgrind/callgrind.h>
extern "C" void start() { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_TOGGLE_COLLECT; }
extern "C" void stop() { CALLGRIND_TOGGLE_COLLECT; CALLGRIND_STOP_INSTRUMENTATION; }
"""


class CounterError(RuntimeError):
    """A tool is missing, or fails."""


def measure(tree: Path, package: Path) -> dict[str, dict[str, float]]:
    """The counters of a checkout, and of what was built from it.

    Args:
        tree: The checkout.
        package: Folder from which its fastmmd is imported.

    Returns:
        Counters by name, under the key of what they depend on beside the code.
    """
    native = next((package / "fastmmd").glob("_native*.so"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        by_compiler = {
            f"instructions, n = {n}, d = {d}": count
            for (n, d), count in zip(SIZES, _passes(tree, folder), strict=True)
        }
        stripped = folder / "module.so"
        _run("strip", "-o", stripped, native)
        by_compiler["module bytes"] = stripped.stat().st_size
        by_python: dict[str, float] = {}
        for size, (count, peak) in _allocations(package).items():
            by_python[f"allocations, {size}"] = count
            by_python[f"bytes at peak, {size}"] = peak
        by_python["import"] = _import(package, folder)
    return {_compiler(): by_compiler, _python(): by_python}


def _run(*command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    if shutil.which(words[0]) is None:
        raise CounterError(f"{words[0]} is needed to count, and was not found")
    done = subprocess.run(words, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise CounterError(f"{' '.join(words)}:\n{(done.stdout + done.stderr)[-2000:]}")
    return done


def _compiler() -> str:
    told = _run(os.environ.get("CXX", "c++"), "--version").stdout.splitlines()[0]
    version = re.search(r"\d+\.\d+\.\d+", told)
    return f"{'clang' if 'clang' in told else 'GCC'} {version[0] if version else '?'}"


def _python() -> str:
    import numpy
    import torch

    python = ".".join(map(str, sys.version_info[:2]))
    return f"Python {python}, torch {torch.__version__.split('+')[0]}, numpy {numpy.__version__}"


def _passes(tree: Path, folder: Path) -> list[float]:
    at = folder / "counters"
    options = ["-DFASTMMD_COUNTERS=ON", "-DCMAKE_BUILD_TYPE=Release", "-G", "Ninja"]
    _run("cmake", "-S", tree, "-B", at, *options)
    _run("cmake", "--build", at, "--target", "counters")
    return [_callgrind(["--toggle-collect=counted_pass"], at / "counters", *s) for s in SIZES]


def _callgrind(options: Sequence[str], *command: Any) -> float:
    environment = os.environ | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    tool = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    told = _run(*tool, *options, *command, env=environment).stderr
    found = re.search(r"Collected : (\d+)", told)
    if not found:
        raise CounterError(f"callgrind counted nothing:\n{told[-2000:]}")
    return float(found[1])


def _inside(package: Path, *more: Any) -> list[Any]:
    import fastmmd.bench

    return [sys.executable, "-c", _INSIDE, package, Path(fastmmd.bench.__file__).parent, *more]


def _allocations(package: Path) -> Mapping[str, tuple[int, int]]:
    told = _run(*_inside(package, "-", json.dumps(SIZES))).stdout
    counts: Mapping[str, tuple[int, int]] = json.loads(told.splitlines()[-1])
    return counts


def _import(package: Path, folder: Path) -> float:
    source, switch = folder / "switch.cpp", folder / "switch.so"
    source.write_text(_SWITCH)
    _run(os.environ.get("CXX", "c++"), "-O1", "-shared", "-fPIC", source, "-o", switch)
    _run(*_inside(package, switch))  # compiles to byte code
    options = ["--instr-atstart=no", "--collect-atstart=no"]
    return _callgrind(options, *_inside(package, switch))


def worse(
    base: Mapping[str, Mapping[str, float]], head: Mapping[str, Mapping[str, float]]
) -> list[tuple[str, float, float, bool]]:
    """(counter, before, after, whether it grew by more than the gate), for what both have."""
    return [
        (name, before, head[key][name], head[key][name] > before * (1 + GATE))
        for key, counters in base.items()
        for name, before in counters.items()
        if key in head and name in head[key]
    ]


def table(rows: Sequence[tuple[str, float, float, bool]]) -> str:
    """The comparison as Markdown."""
    lines = ["| counter | base | head | change | |", "| --- | ---: | ---: | ---: | --- |"]
    for name, before, after, grew in rows:
        change = f"{100 * (after / before - 1):+.2f} %" if before else ""
        mark = "**more**" if grew else ""
        lines.append(f"| {name} | {before:,.0f} | {after:,.0f} | {change} | {mark} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Counts, compares.

    Returns:
        0; 1 if a counter grew by more than 2 %; 2 for what the user has to mend.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counters", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("-o", "--output", type=Path, help="JSON file to write")
    parser.add_argument("--base", metavar="REVISION", help="built and counted too, to compare with")
    parser.add_argument(
        "--update", action="store_true", help=f"write {BASELINE.name}, the committed baseline"
    )
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            build(str(ROOT), ROOT, Path(folder))
            head = measure(ROOT, Path(folder))
        if options.base:
            with tempfile.TemporaryDirectory() as folder, checked_out(options.base, ROOT) as tree:
                build(str(tree), ROOT, Path(folder))
                base = measure(tree, Path(folder))
        else:
            base = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    except (BuildError, CounterError) as error:
        print(f"counters: {error}", file=sys.stderr)
        return 2
    if options.output:
        options.output.write_text(json.dumps({"base": base, "head": head}, indent=1) + "\n")
    if options.update:
        known = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
        BASELINE.write_text(json.dumps(known | head, indent=1, sort_keys=True) + "\n")
    rows = worse(base, head)
    for key in head.keys() - base.keys():
        print(f"no baseline for {key}: nothing to compare with")
    print(table(rows))
    return int(any(grew for *_, grew in rows))


if __name__ == "__main__":
    sys.exit(main())
