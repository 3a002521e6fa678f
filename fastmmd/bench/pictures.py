"""Pictures of runs: times faster by size, roofline, history."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from fastmmd._figures import new_figure, save
from fastmmd.bench.record import Record, Series
from fastmmd.bench.rows import GRADIENTS

__all__ = ["draw"]


def draw(records: Sequence[Record], folder: Path) -> None:
    """Writes ``speedup``, ``sizes``, ``roofline`` and, of several, ``history``, as PNG and SVG."""
    last = records[-1]
    _speedup(last, folder)
    _sizes(last, folder)
    _roofline(last, folder)
    if len(records) > 1:
        _history(records, folder)


def _both(figure: object, folder: Path, name: str) -> None:
    for ending in ("png", "svg"):
        save(figure, folder / f"{name}.{ending}")  # type: ignore[arg-type]


def _speedup(record: Record, folder: Path) -> None:
    everything = list(record.series.values())
    rows = sorted(
        (s for s in everything if s.info.get("mode", GRADIENTS) == GRADIENTS),
        key=lambda s: s.ratio,
    )
    rows = rows or sorted(everything, key=lambda s: s.ratio)
    figure = new_figure(8, max(2.2, 1.2 + 0.24 * len(rows)))
    axes = figure.add_subplot()
    # From 1 on: a bar to the left is slower.
    lengths = [s.ratio - 1 for s in rows]
    axes.barh([_short(s) for s in rows], lengths, left=1, color="#3b6ea5", height=0.7)
    for i, s in enumerate(rows):
        slower = s.ratio < 1
        at, side = (s.ratio / 1.04, "right") if slower else (s.ratio * 1.04, "left")
        axes.text(at, i, f"{s.ratio:.1f}", va="center", ha=side, fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.15, y=0.01)
    axes.tick_params(axis="y", labelsize=8)
    mode = rows[0].info.get("mode")
    axes.set_xlabel("times faster than plain PyTorch" + (f", {mode}" if mode else ""))
    axes.spines[["top", "right"]].set_visible(False)
    _both(figure, folder, "speedup")


def _sizes(record: Record, folder: Path) -> None:
    """Of what was measured at several sizes: operations of one width, dtype and mode."""
    lines: dict[tuple[str, int, str, str], list[Series]] = {}
    for s in record.series.values():
        if "op" in s.info:
            key = (s.info["op"], s.info["d"], s.info["dtype"], s.info["mode"])
            lines.setdefault(key, []).append(s)
    lines = {key: of for key, of in lines.items() if len(of) > 1}
    if not lines:
        return
    figure = new_figure(7, 4)
    axes = figure.add_subplot()
    for (op, d, dtype, mode), of in lines.items():
        of.sort(key=lambda s: s.info["n"])
        axes.plot(
            [s.info["n"] for s in of],
            [s.ratio for s in of],
            marker="o",
            label=f"{op}, d = {d}, {dtype}, {mode}",
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xlabel("points of each sample")
    axes.set_ylabel("times faster than plain PyTorch")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    _both(figure, folder, "sizes")


def _short(series: Series) -> str:
    info = series.info
    if "op" not in info:
        return series.name
    kind = "" if info["dtype"] == "float32" else f", {info['dtype']}"
    return f"{info['op']}, {info['n']} × {info['d']}{kind}"


def _roofline(record: Record, folder: Path) -> None:
    rows = [s for s in record.series.values() if s.info.get("flop") and s.info.get("bytes")]
    if not rows or not record.limits:
        return
    flops, bandwidth = record.limits["flop_per_second"], record.limits["bytes_per_second"]
    figure = new_figure(7, 5.2)
    axes = figure.add_subplot()
    intensity = [s.info["flop"] / s.info["bytes"] for s in rows]
    corner = flops / bandwidth
    line = [min(*intensity, corner) / 3, corner, max(*intensity, corner) * 3]
    axes.plot(
        line,
        [min(flops, bandwidth * x) / 1e9 for x in line],
        color="black",
        label="torch.mm and copy in this run (float32)",
    )
    if "fma_flop_per_second" in record.limits:
        peak = record.limits["fma_flop_per_second"]
        axes.axhline(
            peak / 1e9,
            color="black",
            linewidth=0.8,
            linestyle="--",
            label="peak of fused multiply-adds in this run (float32)",
        )
    markers = dict(zip(dict.fromkeys(s.info["dtype"] for s in rows), "os^Dv", strict=False))
    colors = dict(zip(dict.fromkeys(s.info["mode"] for s in rows), ("C0", "C1"), strict=False))
    for mode, dtype in dict.fromkeys((s.info["mode"], s.info["dtype"]) for s in rows):
        of = [
            (x, s.info["flop"] / statistics.median(s.subject) / 1e9)
            for x, s in zip(intensity, rows, strict=True)
            if (s.info["mode"], s.info["dtype"]) == (mode, dtype)
        ]
        axes.scatter(
            [x for x, _ in of],
            [y for _, y in of],
            label=f"{mode}, {dtype}",
            marker=markers[dtype],
            color=colors[mode],
            s=28,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOP that must be done / byte that must be moved")
    axes.set_ylabel("GFLOP/s, exponentials not counted")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    # Above the axes: points lie anywhere below the roof.
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize=8)
    _both(figure, folder, "roofline")


def _history(records: Sequence[Record], folder: Path) -> None:
    series = {name: s for record in records for name, s in record.series.items()}
    modes = {name: s.info.get("mode", GRADIENTS) for name, s in series.items()}
    names = [name for name in series if modes[name] == GRADIENTS] or list(series)
    columns = 4
    lines = -(-len(names) // columns)
    figure = new_figure(3.4 * columns, 1.9 * lines)
    ticks = range(len(records))
    labels = [(r.commit.get("id") or str(r.commit.get("version")))[:7] for r in records]
    for i, name in enumerate(names):
        axes = figure.add_subplot(lines, columns, i + 1)
        found = [(t, r.series[name].ratio) for t, r in enumerate(records) if name in r.series]
        axes.plot([t for t, _ in found], [v for _, v in found], marker="o", markersize=3)
        axes.set_ylim(0, 1.15 * max(v for _, v in found))
        axes.set_xlim(-0.5, len(records) - 0.5)
        axes.set_title(_short(series[name]), fontsize=7)
        axes.tick_params(labelsize=6)
        axes.set_xticks(ticks, labels if i >= len(names) - columns else [], rotation=90)
        axes.grid(alpha=0.3)
    figure.supylabel("times faster than plain PyTorch")
    _both(figure, folder, "history")
