"""Error, time and memory of the ways to an MMD: `python -m benchmarks.tradeoff -o DIR`.

Samples of two Gaussians whose MMD is known, in growing sizes; value and gradients by every
estimator. Writes tradeoff.json, tradeoff.md and tradeoff.png, in three to four minutes on 4 cores.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import StrMethodFormatter
from torch import Tensor

import fastmmd as fm
from benchmarks.memory import give_back, peak_of_call
from benchmarks.picture import STYLE
from fastmmd.bench.machine import Disturbance, describe

WIDTH = 32
SHIFT = 1.0  # between the means, in standard deviations
BANDWIDTH = math.sqrt(WIDTH)
SIZES = tuple(1000 * 4**k for k in range(6))
MOST_SECONDS = 12.0  # of one evaluation: larger samples are left to others
REPEATS, LEAST_REPEATS = 16, 6
CELL_SECONDS = 12.0  # after which a way has enough repeats of a size
TARGETS = (0.2, 0.1, 0.05, 0.02)  # relative errors that the advice is about
EXACT = "exact"
COLOURS = ("#d55e00", "#0072b2", "#56b4e9", "#009e73", "#cc79a7", "#555555")
MARKERS = "osD^vX"
AXES = {
    "seconds": "time of value and gradients, s",
    "relative_error": "relative error, %",
    "n": "points in each sample, n = m",
    "peak_bytes": "extra memory, MiB",
}
UNITS = {"relative_error": 100.0, "peak_bytes": 2.0**-20}
LEAST_SHOWN = {"peak_bytes": 1 << 20}  # below which the system's count is no measure


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
        Way(EXACT, partial(exact, estimator="unbiased"), target),
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
    active = ways()
    for n in sizes:
        found: dict[str, list[tuple[float, float]]] = {way.name: [] for way in active}
        for seed in range(repeats):
            x, y = samples(n, seed)
            for way in active:
                own = found[way.name]
                if len(own) >= LEAST_REPEATS and sum(s for s, _ in own) > CELL_SECONDS:
                    continue
                start = time.perf_counter()
                value = step(way, x, y, seed)
                own.append((time.perf_counter() - start, value))
        for way in active:
            times, values = zip(*found[way.name], strict=True)
            row: dict[str, Any] = {
                "way": way.name,
                "n": n,
                "seconds": median(times),
                "relative_error": math.sqrt(fmean((v / way.target - 1) ** 2 for v in values)),
                "repeats": len(values),
            }
            print(json.dumps(row), flush=True)
            rows.append(row)
        # The next size is four times as large, and exact in the square of it.
        slower = {way.name: 16 if way.name == EXACT else 4 for way in active}
        latest = {row["way"]: row["seconds"] for row in rows}
        active = [w for w in active if slower[w.name] * latest[w.name] <= MOST_SECONDS]
    give_back()  # which costs time, so that it comes last
    by_name = {way.name: way for way in ways()}
    for row in rows:
        x, y = samples(row["n"], 0)
        call = partial(step, by_name[row["way"]], x, y, 0)
        call()  # frequencies are drawn once, and kept
        x.grad = y.grad = None  # they count
        row["peak_bytes"] = peak_of_call(call)
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """Three tables: from which n an estimate is worth it, what reaches an error, all numbers."""
    return "\n\n".join("\n".join(t) for t in (_worth(rows), _reaching(rows), _all(rows))) + "\n"


def _of(rows: list[dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    """The rows by way and size, in the order in which they were measured."""
    result: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        result.setdefault(row["way"], {})[row["n"]] = row
    return result


def _worth(rows: list[dict[str, Any]]) -> list[str]:
    """Each way beside the exact one: where their times cross, and what it is like beyond.

    Errors are compared at the largest n of which the exact one had all its repeats.
    """
    ways = _of(rows)
    exact = ways.pop(EXACT)
    repeats = max(row["repeats"] for row in exact.values())
    largest = max(n for n, row in exact.items() if row["repeats"] == repeats)
    lines = [
        f"| way | faster than exact from n = | times faster, n = {largest} | times its error |",
        "|---|---|---|---|",
    ]
    for name, own in ways.items():
        ratios = {n: exact[n]["seconds"] / own[n]["seconds"] for n in exact if n in own}
        error = own[largest]["relative_error"] / exact[largest]["relative_error"]
        faster = _rounded(ratios[largest])
        lines.append(f"| {name} | {_crossing(ratios)} | {faster} | {error:.1f} |")
    return lines


def _crossing(ratios: dict[int, float]) -> str:
    """The n at which a ratio passes 1, on a straight line between sizes in logarithms."""
    sizes = sorted(ratios)
    below = [n for n in sizes if ratios[n] < 1]
    if not below:
        return f"less than {sizes[0]}"
    first, after = below[-1], [n for n in sizes if n > below[-1]]
    if not after:
        return f"more than {sizes[-1]}"
    a, b = math.log(ratios[first]), math.log(ratios[after[0]])
    n = first * (after[0] / first) ** (-a / (b - a))
    return f"{float(f'{n:.1g}'):.0f}"


def _reaching(rows: list[dict[str, Any]]) -> list[str]:
    """The first measured n, and the time, at which a way reaches an error; the soonest in bold."""
    ways = _of(rows)
    lines = ["| way | " + " | ".join(f"{100 * t:g} %" for t in TARGETS) + " |"]
    lines.append("|---" * (1 + len(TARGETS)) + "|")
    cells: dict[str, list[dict[str, Any] | None]] = {
        name: [
            next((r for _, r in sorted(own.items()) if r["relative_error"] <= target), None)
            for target in TARGETS
        ]
        for name, own in ways.items()
    }
    for name, own in cells.items():
        entries = []
        for i, row in enumerate(own):
            if row is None:
                entries.append("—")
                continue
            soonest = min(c[i]["seconds"] for c in cells.values() if c[i])  # type: ignore[index]
            text = f"{_time(row['seconds'])}, n = {row['n']}"
            entries.append(f"**{text}**" if row["seconds"] == soonest else text)
        lines.append(f"| {name} | " + " | ".join(entries) + " |")
    return lines


def _time(seconds: float) -> str:
    return f"{_rounded(seconds)} s" if seconds >= 1 else f"{_rounded(1000 * seconds)} ms"


def _rounded(x: float) -> str:
    return f"{float(f'{x:.2g}'):g}"


def _all(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| way | n = m | time | relative error | of draws | extra memory |",
        "|---|---|---|---|---|---|",
    ]
    for own in _of(rows).values():
        for n, row in sorted(own.items()):
            peak = row["peak_bytes"]
            memory = "" if peak is None else _memory(peak)
            error = f"{100 * row['relative_error']:.1f} % | {row['repeats']}"
            lines.append(f"| {row['way']} | {n} | {_time(row['seconds'])} | {error} | {memory} |")
    return lines


def _memory(peak: int) -> str:
    mebibytes = peak / 2**20
    return "below 1 MiB" if mebibytes < 1 else f"{mebibytes:.0f} MiB"


def draw(rows: list[dict[str, Any]], caption: str, path: Path) -> None:
    """Error against time and memory, and all three against n."""
    panels = (
        ("seconds", "relative_error", "Error against time"),
        ("peak_bytes", "relative_error", "Error against memory"),
        ("n", "seconds", "Time against n"),
        ("n", "peak_bytes", "Memory against n"),
    )
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(9.5, 7.4), layout="constrained")
        for axis, (across, up, title) in zip(axes.flat, panels, strict=True):
            looks = zip(_of(rows).items(), COLOURS, MARKERS, strict=True)
            for (name, own), colour, marker in looks:
                points = [
                    tuple(
                        UNITS.get(q, 1) * max(row[q], LEAST_SHOWN.get(q, 0)) for q in (across, up)
                    )
                    for row in own.values()
                    if row[across] is not None and row[up] is not None
                ]
                axis.plot(
                    *zip(*points, strict=True),
                    marker=marker,
                    color=colour,
                    markersize=5,
                    linewidth=1.4,
                    label=name,
                )
            axis.set(xscale="log", yscale="log", xlabel=AXES[across], ylabel=AXES[up])
            for side, quantity in ((axis.xaxis, across), (axis.yaxis, up)):
                if quantity in ("relative_error", "peak_bytes"):
                    side.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_title(title)
            axis.grid(alpha=0.3)
        handles, entries = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, entries, loc="outside upper center", ncols=3)
        figure.supxlabel(caption, fontsize=8)
        figure.savefig(path, dpi=130)
        plt.close(figure)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="small samples only")
    options = parser.parse_args()
    sizes, repeats = (SIZES[:2], 2) if options.quick else (SIZES, REPEATS)
    disturbance = Disturbance()
    rows = measure(options.threads, sizes, repeats)
    taken = disturbance.since_last()
    machine = describe()
    options.output.mkdir(parents=True, exist_ok=True)
    result = {
        "machine": machine,
        "torch": torch.__version__,
        "width": WIDTH,
        "taken_by_others": taken,
    }
    result["rows"] = rows
    (options.output / "tradeoff.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.output / "tradeoff.md").write_text(markdown(rows))
    threads = f"{options.threads} thread{'s' * (options.threads != 1)}"
    caption = f"{WIDTH} features, float32, value and gradients; {machine['cpu']}, {threads}"
    draw(rows, caption, options.output / "tradeoff.png")


if __name__ == "__main__":
    main()
