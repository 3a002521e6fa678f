"""The picture of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, PercentFormatter

from benchmarks.figures import FASTER, SHARE_OF_PEAK, Figure, costs, family_faster
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
    """Speed-up by size, share of peak and peak memory, side by side; below them the family."""
    m = run.machine
    rows = [
        _possible(
            run, 4.1, (_speed, "compare", 1.9), (_share, "limit", 1), (_memory, "compare", 1.25)
        ),
        _possible(run, 3.6, (_family, "family", 1.9), (_costs, "family", 1.0)),
    ]
    rows = [row for row in rows if row.panels]
    with plt.rc_context(STYLE):
        height = 0.5 + sum(row.height for row in rows)
        figure = plt.figure(figsize=(14.5, height), layout="constrained")
        parts = figure.subfigures(
            len(rows), 1, squeeze=False, height_ratios=[row.height for row in rows]
        )
        for row, part in zip(rows, parts[:, 0], strict=True):
            axes = part.subplots(
                1, len(row.panels), squeeze=False, width_ratios=[w for _, w in row.panels]
            )
            if row.panels[0][0] is not _family:
                _legend(part, run)
            for (draw_panel, _), ax in zip(row.panels, axes[0], strict=True):
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


class _PanelRow(NamedTuple):
    height: float
    panels: list[tuple[Callable[[Run, Axes], None], float]]  # with their widths


def _possible(
    run: Run, height: float, *panels: tuple[Callable[[Run, Axes], None], str, float]
) -> _PanelRow:
    """The panels of a row for which there is something to show."""
    return _PanelRow(height, [(draw, width) for draw, kind, width in panels if run.find(kind)])


def _size_ticks(axes: Axes, sizes: list[tuple[int, int]]) -> None:
    axes.set_xticks(range(len(sizes)), [f"n = {n}\nd = {d}" for n, d in sizes])
    axes.tick_params(axis="x", length=0)


def _legend(figure: FigureBase, run: Run) -> None:
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


def _family(run: Run, axes: Axes) -> None:
    found = list(family_faster(run))
    colours = [COLOURS["deepda" if "differences" in f.name else "reference"] for f in found]
    _bars(axes, found, colours, 1)
    axes.set_xscale("log")
    axes.set_xlim(left=min([0.8, *(0.8 * f.spread.median for f in found)]))
    axes.axvline(1, color="#333333", lw=0.8)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} x"))
    axes.set_title("Times faster, in the family")


def _costs(run: Run, axes: Axes) -> None:
    found = list(costs(run))
    _bars(axes, found, [COLOURS["fastmmd"]] * len(found), 0)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} x"))
    axes.set_title("Time over that of plain losses")


def _bars(axes: Axes, figures: Sequence[Figure], colours: Sequence[str], start: float) -> None:
    """One horizontal bar for each figure, with its quartiles and what is asked of it."""
    for at, (figure, colour) in enumerate(zip(figures, colours, strict=True)):
        spread = figure.spread
        axes.barh(at, spread.median - start, 0.7, left=start, color=colour)
        axes.plot([spread.low, spread.high], [at, at], color="#333333", lw=0.8)
        axes.annotate(
            f"{spread.median:.2f}" if spread.median < 3 else _times_label(spread.median),
            (max(spread.high, spread.median, figure.must or 0), at),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            color="#333333",
        )
        if figure.must is not None:
            axes.plot([figure.must] * 2, [at - 0.4, at + 0.4], color="black", lw=1.6)
    # The name is what is measured and what it is beside.
    names = [f.name.replace(", faster", "\nfaster").replace(" / ", "\nover ") for f in figures]
    axes.set_yticks(range(len(figures)), names)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.grid(axis="x", color="#e5e5e5")
    axes.margins(x=0.08)
