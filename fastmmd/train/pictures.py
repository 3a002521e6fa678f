"""The pictures of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from sklearn.decomposition import PCA
from torch import Tensor

from fastmmd._figures import new_figure, save
from fastmmd.compare.figures import BLUE, DARK, ORANGE, short, tidy
from fastmmd.train.evaluation import IGNORED, Outputs
from fastmmd.train.page import Embedding

__all__ = ["confusion", "embedded", "features", "gap", "samples", "training"]

_MOST_POINTS = 1000  # of each domain: more hide each other
# Legends have a fixed place: to look for the best one takes long, of which Matplotlib warns.
_STYLES = ("-", "--", ":", "-.")


def training(
    path: Path, mmd2: Mapping[str, Sequence[float]], accuracy: Mapping[str, Sequence[float]]
) -> None:
    """MMD^2 per layer, and the accuracies, over the epochs; 0 is before the first."""
    figure = new_figure(10.0, 3.6)
    left, right = figure.subplots(1, 2)
    colours = palette(len(mmd2))
    for i, (name, values) in enumerate(mmd2.items()):
        left.plot(values, color=colours[i], ls=_STYLES[i % 4], marker=".", ms=4, label=short(name))
    left.axhline(0, color=DARK, lw=0.6)
    left.set_ylabel("MMD², unbiased")
    for name, colour in (("source", BLUE), ("target", ORANGE)):
        if name in accuracy:
            shares = 100 * np.asarray(accuracy[name])
            right.plot(shares, color=colour, marker=".", ms=4, label=name)
    right.set_ylabel("accuracy in %")
    right.set_ylim(0, 103)
    for panel, title, place in (
        (left, "Distance of the domains by layer", "upper right"),
        (right, "Accuracy", "lower right"),
    ):
        panel.set_title(title, loc="left", fontsize=11)
        panel.set_xlabel("epochs")
        panel.xaxis.get_major_locator().set_params(integer=True)
        tidy(panel, "y")
        if panel.get_legend_handles_labels()[0]:
            panel.legend(frameon=False, fontsize=8.5, loc=place)
    save(figure, path)


def embedded(
    source: Tensor, target: Tensor, method: Embedding, seed: int = 0
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], str]:
    """Coordinates [n, 2] and [m, 2] of features in a plane that is fitted to both domains."""
    points = np.concatenate([source.double().numpy(), target.double().numpy()])
    if method == "pca":
        width = min(2, points.shape[1])
        plane = PCA(width, random_state=seed)
        found = np.pad(plane.fit_transform(points), ((0, 0), (0, 2 - width)))
        label = f"PCA, {100 * plane.explained_variance_ratio_.sum():.0f} % of the variance"
    elif method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(points) - 1) / 3)
        found = TSNE(2, perplexity=perplexity, random_state=seed).fit_transform(points)
        label = f"t-SNE, perplexity {perplexity:.3g}"
    else:
        from umap import UMAP

        found, label = UMAP(random_state=seed).fit_transform(points), "UMAP"
    return found[: len(source)], found[len(source) :], label


def features(
    path: Path,
    stages: Mapping[str, tuple[Outputs, Outputs]],
    classes: Sequence[str],
    method: Embedding,
) -> None:
    """A row for each stage: its features by domain and by class.

    Classes are labels where they are known, else predictions.
    """
    figure = new_figure(10.0, 4.3 * len(stages))
    rows = figure.subplots(len(stages), 2, squeeze=False)
    colours = palette(len(classes))
    for (name, (source, target)), (by_domain, by_class) in zip(stages.items(), rows, strict=True):
        source, target = _thinned(source), _thinned(target)
        x, y, label = embedded(source.features, target.features, method)
        for points, colour, marker in ((x, BLUE, "o"), (y, ORANGE, "^")):
            _scatter(by_domain, points, colour, marker)
        kinds = []
        for points, outputs, marker in ((x, source, "o"), (y, target, "^")):
            known = outputs.labels is not None
            numbers = outputs.predictions
            if known:
                labels = outputs.known_labels()
                numbers = torch.where(labels == IGNORED, numbers, labels)
            kinds.append("labels" if known else "predictions")
            _scatter(by_class, points, [colours[int(c)] for c in numbers], marker)
        by_domain.set_title(f"{name}: by domain", loc="left", fontsize=11)
        by_class.set_title(
            f"{name}: by class ({kinds[0]} of the source, {kinds[1]} of the target)",
            loc="left",
            fontsize=11,
        )
        for panel in (by_domain, by_class):
            panel.set_xlabel(label, fontsize=9)
            panel.set_xticks([])
            panel.set_yticks([])
            panel.spines[["top", "right"]].set_visible(False)
        marks = _domain_marks(BLUE, ORANGE)
        by_domain.legend(handles=marks, frameon=False, fontsize=8.5, loc="upper right")
        marks = _domain_marks(DARK, DARK)
        if len(classes) <= 20:
            marks += [
                Line2D([], [], ls="", marker="s", color=colours[c], label=short(text, 16))
                for c, text in enumerate(classes)
            ]
        by_class.legend(
            handles=marks, frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5)
        )
    save(figure, path)


def confusion(path: Path, matrices: Mapping[str, Tensor], classes: Sequence[str]) -> None:
    """Confusion matrices [C, C] with shares of each true class, side by side."""
    figure = new_figure(4.8 * len(matrices) + 0.4, 4.4)
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    many = len(classes) > 12
    for panel, (name, counts) in zip(panels, matrices.items(), strict=True):
        totals = counts.sum(1, keepdim=True).clamp(min=1)
        shares = (counts / totals).numpy()
        panel.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        panel.set_title(name, loc="left", fontsize=11)
        panel.set_xlabel("predicted")
        panel.set_ylabel("true")
        if not many:
            ticks = range(len(classes))
            panel.set_xticks(ticks, [short(c, 10) for c in classes], fontsize=8, rotation=90)
            panel.set_yticks(ticks, [short(c, 10) for c in classes], fontsize=8)
            for i in ticks:
                for j in ticks:
                    if counts[i, j]:
                        colour = "white" if shares[i, j] > 0.5 else DARK
                        panel.text(j, i, int(counts[i, j]), ha="center", va="center", fontsize=7,
                                   color=colour)  # fmt: skip
    save(figure, path)


def gap(
    path: Path, differences: Sequence[tuple[str, float]], witness: tuple[Tensor, Tensor]
) -> None:
    """The features that differ most, and the witness at the samples of both domains."""
    figure = new_figure(10.0, 3.8)
    bars, values = figure.subplots(1, 2)
    places = np.arange(len(differences))
    bars.barh(places, [value for _, value in differences], color=BLUE, alpha=0.85, height=0.68)
    bars.set_yticks(places, [short(name) for name, _ in differences], fontsize=9)
    bars.set_ylim(max(len(differences), 4) - 0.4, -0.6)
    bars.set_xlim(0, max(0.02, 1.1 * max(value for _, value in differences)))
    bars.set_xlabel("energy coefficient, 0 to 1")
    bars.set_title("Features that differ most, each by itself", loc="left", fontsize=11)
    tidy(bars, "x")
    pooled = np.concatenate([part.numpy() for part in witness])
    bins = np.histogram_bin_edges(pooled, bins=40).tolist()
    for part, colour, name in zip(witness, (BLUE, ORANGE), ("source", "target"), strict=True):
        weights = np.full(len(part), 100 / len(part))
        values.hist(part.numpy(), bins=bins, weights=weights, color=colour, alpha=0.4, label=name)
    values.axvline(0, color=DARK, lw=0.8)
    values.set_xlabel("witness    (← target denser,   source denser →)")
    values.set_ylabel("% of the samples")
    values.set_title("Witness at the samples", loc="left", fontsize=11)
    tidy(values)
    values.legend(frameon=False, fontsize=8.5, loc="upper right")
    save(figure, path)


def samples(path: Path, images: Mapping[str, Sequence[tuple[Tensor, str]]]) -> None:
    """A row of images [c, h, w] with titles for each domain."""
    columns = max(map(len, images.values()))
    figure = new_figure(1.25 * columns + 0.4, 1.75 * len(images))
    rows = figure.subplots(len(images), columns, squeeze=False)
    for row, (name, shown) in zip(rows, images.items(), strict=True):
        for panel in row:
            panel.set_axis_off()
        for panel, (image, title) in zip(row, shown, strict=False):
            image = image.float()
            low, high = float(image.min()), float(image.max())
            pixels = ((image - low) / max(high - low, 1e-12)).permute(1, 2, 0).numpy()
            panel.imshow(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels, cmap="gray")
            panel.set_title(title, fontsize=7.5)
        row[0].text(-0.12, 0.5, name, rotation=90, ha="right", va="center", fontsize=9,
                    transform=row[0].transAxes)  # fmt: skip
    save(figure, path)


def palette(count: int) -> list[Any]:
    """Colours that can be told apart, as far as there are so many."""
    if count <= 10:
        return [matplotlib.colormaps["tab10"](i) for i in range(count)]
    if count <= 20:
        return [matplotlib.colormaps["tab20"](i) for i in range(count)]
    return [matplotlib.colormaps["turbo"](i / (count - 1)) for i in range(count)]


def _scatter(panel: Axes, points: npt.NDArray[Any], colours: Any, marker: str) -> None:
    panel.scatter(points[:, 0], points[:, 1], c=colours, marker=marker, s=13, alpha=0.6, lw=0)


def _domain_marks(source: str, target: str) -> list[Any]:
    return [
        Line2D([], [], ls="", marker="o", color=source, label="source"),
        Line2D([], [], ls="", marker="^", color=target, label="target"),
    ]


def _thinned(outputs: Outputs) -> Outputs:
    if len(outputs) <= _MOST_POINTS:
        return outputs
    rows = np.random.default_rng(0).choice(len(outputs), _MOST_POINTS, replace=False)
    return outputs.subset(torch.from_numpy(rows))
