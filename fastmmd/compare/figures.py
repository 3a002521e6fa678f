"""The picture of a comparison: the null distribution, the witness, the columns and the rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.lines import Line2D

from fastmmd._figures import new_figure, save
from fastmmd.compare.comparison import Comparison
from fastmmd.compare.report import verdict

__all__ = ["picture"]

BLUE, ORANGE, GREY, DARK = "#2b6ca3", "#d9822b", "#a9b0b7", "#2f3640"
# From "B denser" to "A denser".
DIVERGING = LinearSegmentedColormap.from_list(
    "witness", ["#8a4a07", ORANGE, "#f7f7f5", "#6fa3cf", "#123f66"]
)
_MOST_POINTS = 2000  # of each table in the scatter plot: more hide each other


def picture(path: Path, comparison: Comparison) -> None:
    """Draws the four panels to a PNG file."""
    figure = new_figure(10.0, 7.8)
    figure.set_layout_engine("constrained", h_pad=0.09)
    (null, witness), (columns, plane) = figure.subplots(2, 2)
    draw_null(null, comparison)
    draw_witness(witness, comparison)
    draw_columns(columns, comparison)
    draw_plane(plane, comparison)
    a, b = Path(comparison.a.path).name, Path(comparison.b.path).name
    figure.suptitle(
        f"A: {short(a)}   B: {short(b)}", x=0.012, ha="left", fontsize=12, weight="bold"
    )
    save(figure, path)


def draw_null(panel: Axes, comparison: Comparison) -> None:
    """The statistic beside what it is without a difference."""
    test, alpha = comparison.test, comparison.settings.alpha
    values = np.asarray(test.null)
    critical = test.critical_value(alpha)
    # Bars of a visible width, however far away the statistic is.
    shown = np.append(values, test.statistic)
    width = max(np.ptp(values) / min(40, max(10, len(values) // 20)), np.ptp(shown) / 110)
    bins = max(1, round(float(np.ptp(values) / width))) if width > 0 else 1
    panel.hist(values, bins=bins, color=GREY, alpha=0.85, label="labels drawn at random")
    panel.set_ylim(0, 1.4 * panel.get_ylim()[1])  # room for the legend above the bars
    if np.isfinite(critical):
        label = f"critical value at the {100 * alpha:g} % level"
        panel.axvline(critical, color=DARK, lw=1.2, ls=(0, (4, 3)), label=label)
    panel.axvline(test.statistic, color=ORANGE, lw=2.4, label="labels as given")
    panel.set_xlabel("MMD²")
    panel.set_ylabel("relabellings")
    panel.set_title(
        f"p = {comparison.pvalue:.3g}: {verdict(comparison.different, comparison.settings.alpha)}",
        loc="left",
        fontsize=11,
    )
    tidy(panel)
    panel.legend(loc="upper center", fontsize=8.5, framealpha=0.9, edgecolor="none")


def draw_witness(panel: Axes, comparison: Comparison) -> None:
    """The witness function over the one column, or its values at the rows of both tables."""
    if comparison.shown_a.shape[1] == 1:
        draw_witness_function(panel, comparison)
    else:
        values = np.concatenate([comparison.witness_a, comparison.witness_b])
        bins = np.histogram_bin_edges(values, bins=40).tolist()
        for sample, colour, label in (
            (comparison.witness_a, BLUE, "rows of A"),
            (comparison.witness_b, ORANGE, "rows of B"),
        ):
            weights = np.full(len(sample), 100 / len(sample))
            panel.hist(sample, bins=bins, weights=weights, color=colour, alpha=0.35, lw=0)
            panel.hist(sample, bins=bins, weights=weights, color=colour, histtype="step", lw=1.5,
                       label=label)  # fmt: skip
        panel.axvline(0, color=DARK, lw=0.8)
        panel.set_xlabel("witness    (← B denser,   A denser →)")
        panel.set_ylabel("% of the rows")
    tidy(panel)
    entitle(panel, "Witness: where each file has more", panel.get_legend_handles_labels()[0])


def draw_witness_function(panel: Axes, comparison: Comparison) -> None:
    """The witness as a curve over the histograms of the single column."""
    a, b = comparison.shown_a[:, 0], comparison.shown_b[:, 0]
    pooled = np.concatenate([a, b])
    bins = np.histogram_bin_edges(pooled, bins=40).tolist()
    for sample, colour, label in ((a, BLUE, "A"), (b, ORANGE, "B")):
        weights = np.full(len(sample), 100 / len(sample))
        panel.hist(sample, bins=bins, weights=weights, color=colour, alpha=0.35, lw=0, label=label)
    panel.set_xlabel(short(comparison.a.labels[0]))
    panel.set_ylabel("% of the rows")
    curve = panel.twinx()
    order = np.argsort(pooled, kind="stable")
    values = np.concatenate([comparison.witness_a, comparison.witness_b])[order]
    curve.plot(pooled[order], values, color=DARK, lw=1.6)
    curve.axhline(0, color=DARK, lw=0.6, ls=":")
    reach = 1.15 * max(np.abs(values).max(), 1e-300)
    curve.set_ylim(-reach, reach)
    curve.set_ylabel("witness  (+ A denser, − B denser)")
    curve.spines[["top"]].set_visible(False)
    panel.plot([], [], color=DARK, lw=1.6, label="witness")


def draw_columns(panel: Axes, comparison: Comparison, most: int = 12) -> None:
    """The columns that differ most, as bars."""
    features = comparison.features[:most]
    places = np.arange(len(features))
    values = [feature.difference for feature in features]
    panel.barh(places, values, color=BLUE, alpha=0.85, height=0.68)
    panel.set_yticks(places, [short(feature.name) for feature in features], fontsize=9)
    panel.set_ylim(max(len(features), 4) - 0.4, -0.6)
    panel.set_xlim(0, max(0.02, 1.18 * max(values)))  # trifles shall look like trifles
    for place, feature in zip(places, features, strict=True):
        panel.annotate(
            f"{feature.difference:.3f}",
            (feature.difference, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=DARK,
        )
    more = len(comparison.features) - len(features)
    title = "Columns that differ most, each by itself"
    panel.set_title(title + (f" (of {more + most})" if more > 0 else ""), loc="left", fontsize=11)
    panel.set_xlabel("energy coefficient, 0 to 1")
    tidy(panel, "x")
    panel.tick_params(axis="y", length=0)


def draw_plane(panel: Axes, comparison: Comparison) -> None:
    """The rows in the plane of the two most different columns, coloured by the witness."""
    a, b = comparison.shown_a, comparison.shown_b
    chosen = [feature.column for feature in comparison.features[:2]]
    generator = np.random.default_rng(0)
    values = np.concatenate([comparison.witness_a, comparison.witness_b])
    # A few extreme rows would leave no colour to the others.
    reach = max(float(np.quantile(np.abs(values), 0.98)), 1e-300)
    colours = ScalarMappable(Normalize(-reach, reach), DIVERGING)
    handles = []
    for sample, witness, marker, label in (
        (a, comparison.witness_a, "o", "A"),
        (b, comparison.witness_b, "^", "B"),
    ):
        handles.append(Line2D([], [], ls="", marker=marker, color=DARK, mfc="white", label=label))
        rows = np.arange(len(sample))
        if len(rows) > _MOST_POINTS:
            rows = generator.choice(rows, _MOST_POINTS, replace=False)
        x, y = plane(sample, chosen, label, generator)
        panel.scatter(
            x[rows], y[rows], color=colours.to_rgba(witness[rows]), marker=marker, s=17,
            linewidths=0.35, edgecolors="#6b727a", alpha=0.9,
        )  # fmt: skip
    labels = comparison.a.labels
    panel.set_xlabel(short(labels[chosen[0]]))
    if len(chosen) == 2:
        panel.set_ylabel(short(labels[chosen[1]]))
        title = "Rows in the two columns that differ most"
    else:
        panel.set_yticks([0, 1], ["A", "B"])
        panel.set_ylim(1.6, -0.6)
        title = "Rows, coloured by the witness"
    tidy(panel)
    entitle(panel, title, handles)
    bar = panel.figure.colorbar(colours, ax=panel, pad=0.02, aspect=30)
    bar.set_ticks([-reach, 0, reach], labels=["B denser", "0", "A denser"])
    bar.ax.tick_params(labelsize=8)
    bar.ax.spines[:].set_visible(False)


def plane(
    sample: npt.NDArray[Any], chosen: list[int], label: str, generator: np.random.Generator
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Coordinates of the rows; of a single column, its values over a jittered line."""
    x = sample[:, chosen[0]]
    if len(chosen) == 2:
        return x, sample[:, chosen[1]]
    return x, (label == "B") + generator.uniform(-0.3, 0.3, len(x))


def short(text: str, most: int = 28) -> str:
    """A name that fits, without what would be read as mathematics."""
    text = text if len(text) <= most else text[: most - 1] + "…"
    return text.replace("$", r"\$")


def entitle(panel: Axes, title: str, handles: Sequence[Artist]) -> None:
    """A title, and between that and the panel a legend, where no data lies."""
    panel.set_title(title, loc="left", fontsize=11, pad=20)
    panel.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(handles),
                 frameon=False, fontsize=8.5, borderaxespad=0, borderpad=0.2)  # fmt: skip


def tidy(panel: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    """The look of all panels."""
    panel.grid(axis=grid, alpha=0.22)
    panel.locator_params(axis="x", nbins=6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
