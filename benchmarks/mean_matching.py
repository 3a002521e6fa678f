"""Kernel mean matching of many rows: `python -m benchmarks.mean_matching -o FILE`.

Time, memory and certified gap of `fastmmd.transfer.KernelMeanMatching`, and the MMD before and
after: rows of a standard Gaussian as the source, of a narrower one beside its mean as the target,
the median heuristic for the bandwidth.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastmmd as fm
from benchmarks.memory import give_back, peak_of_call
from fastmmd.bench.machine import describe
from fastmmd.transfer import KernelMeanMatching

WIDTH = 20
RESULT = Path(__file__).parent / "results" / "mean-matching.json"


def measure(n: int, threads: int) -> dict[str, Any]:
    """Of n source rows and a quarter as many target rows."""
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    m = n // 4
    x = np.concatenate([rng.normal(size=(n, WIDTH)), 0.7 * rng.normal(size=(m, WIDTH)) + 0.5])
    domain = np.concatenate([np.zeros(n, int), np.full(m, -1)])
    few = slice(n - 200, n + 200)
    KernelMeanMatching().fit(x[few], sample_domain=domain[few])  # starts threads, loads modules
    matching = KernelMeanMatching()
    give_back()
    start = time.perf_counter()
    peak = peak_of_call(lambda: matching.fit(x, sample_domain=domain))
    seconds = time.perf_counter() - start
    source, target = (torch.from_numpy(half) for half in (x[:n], x[n:]))
    kernel, weights = fm.Gaussian("median", multipliers=(1,)), torch.from_numpy(matching.weights_)
    return {
        "source_rows": n,
        "target_rows": m,
        "width": WIDTH,
        "threads": threads,
        "seconds": round(seconds, 1),
        "extra_mib": None if peak is None else round(peak / 2**20),
        "relative_gap": matching.duality_gap_ / abs(matching.objective_),
        "products": matching.n_iter_,
        "positive_weights": int((weights > 0).sum()),
        "mmd2_unweighted": float(fm.mmd2(source, target, kernel)),
        "mmd2_weighted": float(fm.mmd2(source, target, kernel, x_weights=weights)),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=20_000, help="source rows")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("-o", "--output", type=Path, help=f"JSON file to write, such as {RESULT}")
    options = parser.parse_args()
    record = {"machine": describe(), "torch": torch.__version__}
    record |= measure(options.n, options.threads)
    text = json.dumps(record, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
