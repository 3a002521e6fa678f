"""The picture of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, PercentFormatter

from benchmarks.figures import FASTER, SHARE_OF_PEAK
from benchmarks.peers import PEERS
from benchmarks.results import Run, ratio

# Told apart in grey and by the colour-blind (Okabe and Ito); fastmmd has one colour throughout.
COLOURS = {
    "fastmmd": "#d55e00",
    "reference": "#0072b2",
    "compile": "#56b4e9",
    "blocked": "#009e73",
    "deepda": "#999999",
}
TICK, LABEL = 8, 9
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": LABEL,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "xtick.labelsize": TICK,
    "ytick.labelsize": TICK,
    "legend.frameon": False,
    "legend.fontsize": TICK,
}


def draw(run: Run, path: Path) -> None:
    """Speed-up by size, share of peak and peak memory, side by side."""
    m = run.machine
    possible = ((_speed, "compare", 1.9), (_share, "limit", 1.0), (_memory, "compare", 1.25))
    panels = [panel for panel in possible if run.find(panel[1])]
    widths = [width for _, _, width in panels]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1,
            len(panels),
            figsize=(3.5 * sum(widths), 4.6),
            layout="constrained",
            width_ratios=widths,
            squeeze=False,
        )
        _legend(figure, run)
        for (draw_panel, _, _), ax in zip(panels, axes[0], strict=True):
            draw_panel(run, ax)
        kind = f"{m['cpu']} family {m['cpu_family']}" if m["cpu_family"] else m["cpu"]
        caption = (
            f"float32, five Gaussians, value and gradients, n = m. {kind},"
            f" {m['threads']} threads, {m['instruction_set']}, torch {m['torch']},"
            f" commit {run.commit['id'][:7]}, {run.when[:10]}"
        )
        if run.void:
            caption = f"VOID: something was faster than the measured peak. {caption}"
        figure.supxlabel(caption, fontsize=TICK, color="#555555", x=0.01, ha="left")
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _size_ticks(axes: Axes, sizes: list[tuple[int, int]]) -> None:
    axes.set_xticks(range(len(sizes)), [f"n = {n}\nd = {d}" for n, d in sizes])
    axes.tick_params(axis="x", length=0)


def _legend(figure: Figure, run: Run) -> None:
    """What the colours of all panels mean, once."""
    shown = [p for p in COLOURS if p == "fastmmd" or run.find("compare", peer=p)]
    entries: list[Artist] = [Patch(color=COLOURS[p], label=PEERS[p].title) for p in shown]
    entries += [
        Line2D([], [], color="black", lw=1.6, label="asked for"),
        Line2D([], [], color="black", lw=1, ls=":", label="aim; right: size of x and y"),
    ]
    figure.legend(handles=entries, loc="outside upper left", ncols=len(entries))


def _times_label(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _speed(run: Run, axes: Axes) -> None:
    here = {"mode": "gradients", "threads": run.threads}
    ours = {row.size: row for row in run.select("compare", peer="fastmmd", **here)}
    sizes = list(ours)
    peers = [p for p in COLOURS if p != "fastmmd" and run.find("compare", peer=p, **here)]
    width = 0.84 / max(len(peers), 1)
    for k, peer in enumerate(peers):
        rows = {row.size: row for row in run.select("compare", peer=peer, **here)}
        for i, size in enumerate(sizes):
            if size not in rows:
                continue
            found = ratio(rows[size], ours[size])
            at = i + (k - (len(peers) - 1) / 2) * width
            axes.bar(
                at,
                found.median - 1,
                0.9 * width,
                bottom=1,
                color=COLOURS[peer],
            )
            axes.plot([at, at], [found.low, found.high], color="#333333", lw=0.8)
            axes.annotate(
                _times_label(found.median),
                (at, max(found.high, found.median)),
                (0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=7,
                color="#333333",
            )
            asked = FASTER.get(peer, {}).get(size)
            if asked:
                half = 0.45 * width
                axes.plot([at - half, at + half], [asked[0]] * 2, color="black", lw=1.6)
    axes.set_yscale("log")
    axes.set_ylim(bottom=1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} x"))
    axes.grid(axis="y", color="#e5e5e5")
    _size_ticks(axes, sizes)
    axes.set_title("Times faster than")
    axes.margins(y=0.06)


def _share(run: Run, axes: Axes) -> None:
    sizes = run.sizes("limit", lambda row: row.info["peer"] == "fastmmd")
    sets = list(
        dict.fromkeys(r.info["instruction_set"] for r in run.select("limit", peer="fastmmd"))
    )[::-1]
    names = {"avx512": "AVX-512", "avx2": "AVX2", "baseline": "baseline"}
    width = 0.8 / max(len(sets), 1)
    for k, name in enumerate(sets):
        for i, (n, d) in enumerate(sizes):
            row = run.find("limit", peer="fastmmd", n=n, d=d, instruction_set=name)
            if row is None:
                continue
            share = run.share(row)
            at = i + (k - (len(sets) - 1) / 2) * width
            axes.bar(
                at,
                share.median,
                0.92 * width,
                color=COLOURS["fastmmd"],
                alpha=1 if k == 0 else 0.5,
                label=f"{names[name]}: {run.peak(row) / 1e9:.0f} GFLOP/s" if i == 0 else None,
            )
            axes.plot([at, at], [share.low, share.high], color="#333333", lw=0.8)
            axes.annotate(
                f"{100 * share.median:.0f}",
                (at, max(share.high, share.median)),
                (0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=7,
                color="#333333",
            )
    for bound, style in zip(SHARE_OF_PEAK, ("-", ":"), strict=True):
        axes.axhline(bound, color="black", lw=1.2, ls=style)
    axes.set_ylim(0, 1.05)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlim(-0.6, len(sizes) - 0.4)
    axes.grid(axis="y", color="#e5e5e5")
    _size_ticks(axes, sizes)
    axes.set_title("Share of the FMA peak of the run")
    axes.legend(loc="upper left", ncols=2, columnspacing=1.2, handlelength=1.2)


def _memory(run: Run, axes: Axes) -> None:
    here = {"mode": "gradients", "threads": run.threads}
    sizes = run.sizes("compare", lambda row: row.info["threads"] == run.threads)
    for peer, colour in COLOURS.items():
        points = [
            (sizes.index(row.size), row.info["peak_memory"] / 2**20)
            for row in run.select("compare", peer=peer, **here)
            if row.info["peak_memory"] is not None
        ]
        if points:
            axes.plot(
                [at for at, _ in points],
                [mebibytes for _, mebibytes in points],
                marker="o",
                ms=4,
                lw=1.8 if peer == "fastmmd" else 1.2,
                color=colour,
                zorder=3 if peer == "fastmmd" else 2,
            )
    samples = [2 * n * d * 4 / 2**20 for n, d in sizes]
    axes.plot(range(len(sizes)), samples, color="black", lw=1, ls=":")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(
        FuncFormatter(
            lambda v, _: (
                f"{v / 1024:g} GiB"
                if v >= 1024
                else f"{v:g} MiB"
                if v >= 1
                else f"{v * 1024:g} KiB"
            )
        )
    )
    axes.set_yticks([2**k for k in range(-6, 15, 2)], minor=False)
    axes.minorticks_off()
    axes.grid(axis="y", color="#e5e5e5")
    _size_ticks(axes, sizes)
    axes.set_title("Peak memory above that of the samples")
