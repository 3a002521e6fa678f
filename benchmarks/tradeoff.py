"""Error, time and memory of the ways to an MMD: `python -m benchmarks.tradeoff -o DIR`.

Samples of two Gaussians whose MMD is known, in sizes that double; value and gradients by every
estimator. Writes tradeoff.json, tradeoff.md and tradeoff.png.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

import fastmmd as fm
from benchmarks.memory import give_back, peak_of_call
from benchmarks.picture import STYLE
from fastmmd.bench.machine import describe

WIDTH = 32
SHIFT = 1.0  # between the means, in standard deviations
BANDWIDTH = math.sqrt(WIDTH)
SIZES = tuple(1000 * 4**k for k in range(6))
MOST_SECONDS = 12.0  # of one evaluation: larger samples are left to others
REPEATS = 12
COLOURS = ("#d55e00", "#0072b2", "#56b4e9", "#009e73", "#cc79a7", "#999999")


class Way(NamedTuple):
    """An estimate, as a function of two samples, and what it estimates."""

    name: str
    estimate: Callable[[Tensor, Tensor, int], Tensor]  # of x, y and a seed
    target: float


def gaussian_mmd2() -> float:
    """Of N(0, I) and N(SHIFT e, I), with the kernel exp(-r^2 / (2 s^2)).

    A difference of two points is N(delta, 2 I), over which the kernel has the mean
    ``(s^2 / (s^2 + 2))^(d/2) exp(-|delta|^2 / (2 (s^2 + 2)))``.
    """
    s2 = BANDWIDTH**2
    return 2 * (s2 / (s2 + 2)) ** (WIDTH / 2) * (1 - math.exp(-(SHIFT**2) / (2 * (s2 + 2))))


def sliced_energy() -> float:
    """The mean over lines of the energy distance of N(0, 1) and N(SHIFT cos, 1).

    ``E|N(a, 2)| = 2 exp(-a^2 / 4) / sqrt(pi) + a erf(a / 2)``.
    """
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(1_000_000, WIDTH, generator=generator, dtype=torch.float64)
    a = SHIFT * theta[:, 0] / torch.linalg.vector_norm(theta, dim=1)
    across = 2 * torch.exp(-a.square() / 4) / math.sqrt(math.pi) + a * torch.erf(a / 2)
    return float((2 * across - 4 / math.sqrt(math.pi)).mean())


def ways() -> list[Way]:
    """All of them."""
    kernel = fm.Gaussian(BANDWIDTH, multipliers=(1,))
    target = gaussian_mmd2()

    def exact(x: Tensor, y: Tensor, _: int, estimator: str) -> Tensor:
        return fm.mmd2(x, y, kernel, estimator)

    def features(x: Tensor, y: Tensor, seed: int, count: int) -> Tensor:
        return fm.random_feature_mmd2(x, y, count, kernel, seed)

    def lines(x: Tensor, y: Tensor, seed: int, count: int) -> Tensor:
        return fm.sliced_mmd2(x, y, count, estimator="unbiased", seed=seed)

    return [
        Way("exact (unbiased)", partial(exact, estimator="unbiased"), target),
        Way("random features, D = 1024", partial(features, count=1024), target),
        Way("random features, D = 8192", partial(features, count=8192), target),
        Way("random lines, L = 64", partial(lines, count=64), sliced_energy()),
        Way("block, B = sqrt(n)", partial(exact, estimator="block"), target),
        Way("linear", partial(exact, estimator="linear"), target),
    ]


def samples(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two samples of n points."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, WIDTH, generator=generator)
    y = torch.randn(n, WIDTH, generator=generator)
    y[:, 0] += SHIFT
    return x.requires_grad_(), y.requires_grad_()


def step(way: Way, x: Tensor, y: Tensor, seed: int) -> float:
    """Value and gradients."""
    x.grad = y.grad = None
    value = way.estimate(x, y, seed)
    value.backward()
    return float(value.detach())


def measure(threads: int, sizes: tuple[int, ...], repeats: int) -> list[dict[str, Any]]:
    """A row for each way and size; in rounds, in which every way has its turn."""
    torch.set_num_threads(threads)
    rows = []
    too_slow: set[str] = set()
    for n in sizes:
        found: dict[str, list[tuple[float, float]]] = {}
        active = [way for way in ways() if way.name not in too_slow]
        for seed in range(repeats):
            x, y = samples(n, seed)
            for way in active:
                start = time.perf_counter()
                value = step(way, x, y, seed)
                seconds = time.perf_counter() - start
                if seconds < MOST_SECONDS / 4 or seed < 4:
                    found.setdefault(way.name, []).append((seconds, value))
        for way in active:
            times, values = zip(*found[way.name], strict=True)
            error = math.sqrt(sum((v / way.target - 1) ** 2 for v in values) / len(values))
            row: dict[str, Any] = {
                "way": way.name,
                "n": n,
                "seconds": sorted(times)[len(times) // 2],
                "relative_error": error,
                "repeats": len(values),
            }
            print(json.dumps(row), flush=True)
            rows.append(row)
            if 16 * row["seconds"] > MOST_SECONDS * (1 if "exact" in way.name else 4):
                too_slow.add(way.name)
    give_back()  # which costs time, so that it comes last
    by_name = {way.name: way for way in ways()}
    for row in rows:
        x, y = samples(row["n"], 0)
        row["peak_bytes"] = peak_of_call(partial(step, by_name[row["way"]], x, y, 0))
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """One table."""
    lines = [
        "| way | n = m | time, ms | relative error | extra memory, MiB |",
        "|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda r: (r["way"], r["n"])):
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}"
        lines.append(
            f"| {row['way']} | {row['n']} | {1000 * row['seconds']:.1f}"
            f" | {100 * row['relative_error']:.1f} % | {peak} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], caption: str, path: Path) -> None:
    """Error against time, and both against n."""
    names = list(dict.fromkeys(row["way"] for row in rows))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(11, 3.9), layout="constrained")
        panels = (
            ("seconds", "relative_error", "Error against time"),
            ("n", "seconds", "Time against n"),
            ("n", "peak_bytes", "Memory against n"),
        )
        labels = {
            "seconds": "value and gradients, s",
            "relative_error": "relative error",
            "n": "n = m",
            "peak_bytes": "extra memory, MiB",
        }
        for axis, (across, up, title) in zip(axes, panels, strict=True):
            for name, colour in zip(names, COLOURS, strict=True):
                own = [r for r in rows if r["way"] == name and r[up] is not None]
                scale = 2**-20 if up == "peak_bytes" else 1
                axis.plot(
                    [r[across] for r in own],
                    [max(scale * r[up], 1e-2 if scale < 1 else 0) for r in own],
                    "o-",
                    color=colour,
                    markersize=4,
                    linewidth=1.2,
                    label=name,
                )
            axis.set(xscale="log", yscale="log", xlabel=labels[across], ylabel=labels[up])
            axis.set_title(title)
            axis.grid(alpha=0.3)
        handles, entries = axes[0].get_legend_handles_labels()
        figure.legend(handles, entries, loc="outside lower center", ncols=len(names))
        figure.suptitle(caption, fontsize=8, x=0.01, ha="left")
        figure.savefig(path, dpi=150)
        plt.close(figure)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="small samples only")
    options = parser.parse_args()
    sizes, repeats = (SIZES[:2], 2) if options.quick else (SIZES, REPEATS)
    rows = measure(options.threads, sizes, repeats)
    machine = describe()
    options.output.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine, "torch": torch.__version__, "width": WIDTH, "rows": rows}
    (options.output / "tradeoff.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.output / "tradeoff.md").write_text(markdown(rows))
    threads = f"{options.threads} thread{'s' * (options.threads != 1)}"
    caption = f"{WIDTH} features, float32, value and gradients; {machine['cpu']}, {threads}"
    draw(rows, caption, options.output / "tradeoff.png")


if __name__ == "__main__":
    main()
