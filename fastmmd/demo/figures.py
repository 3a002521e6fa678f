"""The pictures of the demo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from sklearn.decomposition import PCA
from torch import Tensor

from fastmmd._figures import new_figure, save
from fastmmd.demo.data import TEST_PATCHES, Domains
from fastmmd.demo.experiment import CLASSES, Run, heldout_features
from fastmmd.demo.summary import STYLES

__all__ = ["accuracy", "features", "samples"]

COLOURS = [
    "#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f",
    "#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#6b6b6b",
]  # fmt: skip


def samples(path: Path, domains: Domains, rows: int = 2) -> None:
    """Evaluation digits of both domains, a column for each class."""
    titles = {
        "Source: clean digits, labelled in training": domains.source_test,
        "Target: other digits over photographs, not labelled in training": domains.target_test,
    }
    figure = new_figure(9.0, 4.4)
    panels = figure.subplots(len(titles), 1)
    for panel, (title, data) in zip(panels, titles.items(), strict=True):
        images, labels = data.tensors
        panel.imshow(mosaic(images, labels, rows).numpy(), cmap="gray", vmin=0, vmax=1)
        panel.set_title(title, loc="left", fontsize=11)
        panel.axis("off")
    save(figure, path)


def mosaic(images: Tensor, labels: Tensor, rows: int, gap: int = 3) -> Tensor:
    """The first images [n, 1, side, side] of each class, a column for each, on white."""
    pitch = images.shape[-1] + gap
    canvas = images.new_ones(rows * pitch - gap, CLASSES * pitch - gap)
    for digit in range(CLASSES):
        for row, image in enumerate(images[labels == digit][:rows, 0]):
            top, left = row * pitch, digit * pitch
            canvas[top : top + len(image), left : left + len(image)] = image
    return canvas


def accuracy(path: Path, summary: dict[str, Any]) -> None:
    """Accuracy on held-out digits of both domains by epoch, with the range over the seeds."""
    figure = new_figure(9.0, 3.8)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, domain in zip(panels, ("source", "target"), strict=True):
        for name, colour in STYLES.items():
            histories = np.array(
                [
                    run["history"][f"{domain}_accuracy"]
                    for run in summary["runs"]
                    if run["model"] == name
                ]
            )
            epochs = np.arange(1, histories.shape[1] + 1)
            panel.fill_between(
                epochs, histories.min(axis=0), histories.max(axis=0), color=colour, alpha=0.18, lw=0
            )
            panel.plot(epochs, histories.mean(axis=0), color=colour, lw=2, label=name)
        panel.set_title(f"{domain.capitalize()} digits, held out", fontsize=11, loc="left")
        panel.set_xlabel("epoch")
        panel.grid(alpha=0.25)
        panel.set_ylim(0, 102)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("accuracy, %")
    panels[1].legend(frameon=False, loc="lower right")
    save(figure, path)


def features(path: Path, before: Run, after: Run, domains: Domains) -> None:
    """Held-out features of both domains in the plane of their first two principal components.

    Each model has a feature space of its own, so each panel has axes of its own, fitted to source
    and target together.
    """
    figure = new_figure(9.6, 5.0)
    panels = figure.subplots(1, 2)
    once = len(domains.target_test) // TEST_PATCHES
    source_labels = domains.source_test.tensors[1].numpy()
    target_labels = domains.target_test.tensors[1][:once].numpy()
    for panel, run in zip(panels, (before, after), strict=True):
        source, target = (f.numpy() for f in heldout_features(run.aligner, domains))
        pca = PCA(2, svd_solver="full").fit(np.concatenate((source, target)))
        for points, labels, marker in ((source, source_labels, "o"), (target, target_labels, "x")):
            plane = pca.transform(points)
            panel.scatter(
                *plane.T,
                c=[COLOURS[label] for label in labels],
                marker=marker,
                s=26 if marker == "x" else 22,
                linewidths=1.2 if marker == "x" else 0,
                alpha=0.85,
            )
        panel.set_title(
            f"{run.model}: target accuracy {run.target_accuracy:.1f} %, MMD² {run.mmd2:.3f}",
            fontsize=11,
            loc="left",
        )
        panel.set_xticks([])
        panel.set_yticks([])
        first, second = 100 * pca.explained_variance_ratio_
        panel.set_xlabel(f"first principal component ({first:.0f} % of the variance)")
        panel.set_ylabel(f"second ({second:.0f} %)")
    handles: Sequence[Line2D] = [
        Line2D([], [], ls="", marker="o", color="#333333", markersize=5, label="source"),
        Line2D([], [], ls="", marker="x", color="#333333", markersize=5, label="target"),
        *(
            Line2D([], [], ls="", marker="s", color=colour, markersize=6, label=str(digit))
            for digit, colour in enumerate(COLOURS)
        ),
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        frameon=False,
        handletextpad=0.1,
        columnspacing=1.1,
    )
    save(figure, path)
