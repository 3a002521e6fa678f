"""The sections of a report, and the figures in them."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import (
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

import fastmmd
from fastmmd.functional import contributions
from fastmmd.kernels import Gaussian
from fastmmd.train.evaluation import IGNORED, Outputs, inputs_and_labels
from fastmmd.train.history import LayerHistory, layer_distances
from fastmmd.train.page import Embedding, Page
from fastmmd.train.verdict import Verdict

__all__ = [
    "scores",
    "show_features",
    "show_gap",
    "show_layers",
    "show_metrics",
    "show_settings",
    "show_verdict",
]


def scores(outputs: Outputs) -> dict[str, Any]:
    """Accuracy and macro precision, recall and F1, and the same per class, by torchmetrics.

    The macro means are over the classes that occur as a label or as a prediction.

    Args:
        outputs: n samples of C classes; those with a label are looked at.

    Returns:
        ``accuracy``, ``precision``, ``recall`` and ``f1``, numbers; ``per_class`` with the last
        three, each [C]; ``confusion`` [C, C], counts with true classes in rows.

    Raises:
        ValueError: There are no labels.
    """
    outputs = outputs.labelled()
    labels, predictions = outputs.known_labels(), outputs.predictions
    classes = outputs.logits.shape[1]
    found: dict[str, Any] = {"accuracy": outputs.accuracy(), "per_class": {}}
    for name, metric in (
        ("precision", multiclass_precision),
        ("recall", multiclass_recall),
        ("f1", multiclass_f1_score),
    ):
        found[name] = float(metric(predictions, labels, classes, average="macro"))
        found["per_class"][name] = metric(predictions, labels, classes, average="none")
    found["confusion"] = multiclass_confusion_matrix(predictions, labels, classes)
    return found


def show_metrics(page: Page, stages: Mapping[str, Mapping[str, Outputs]], names: list[str]) -> None:
    """Accuracies of both domains, and the confusion of the last stage."""
    from fastmmd.train import pictures

    page.heading("Accuracy")
    rows, matrices, last = [], {}, list(stages.values())[-1]
    for stage, domains in stages.items():
        for domain, outputs in domains.items():
            label = domain if len(stages) == 1 else f"{domain}, {stage}"
            if outputs.labels is None:
                rows.append([label, len(outputs), *["no labels"] * 4])
                continue
            found = scores(outputs)
            shares = (found[key] for key in ("accuracy", "precision", "recall", "f1"))
            rows.append([label, len(outputs), *(f"{100 * share:.1f} %" for share in shares)])
            if outputs is last[domain]:
                matrices[domain] = found
    header = ["domain", "samples", "accuracy", "macro precision", "macro recall", "macro F1"]
    page.table(header, rows)
    if not matrices:
        return
    counts = {domain: found["confusion"] for domain, found in matrices.items()}
    pictures.confusion(page.folder / "confusion.png", counts, names)
    page.picture("confusion.png", "Confusion of the classes: counts, coloured by share of the row.")
    header = ["class"]
    for domain in matrices:
        header += [f"{domain} {name}" for name in ("precision", "recall", "F1")]
    page.table(
        header,
        [
            [
                name,
                *(
                    f"{100 * float(found['per_class'][key][c]):.1f} %"
                    for found in matrices.values()
                    for key in ("precision", "recall", "f1")
                ),
            ]
            for c, name in enumerate(names)
        ],
    )


def show_layers(page: Page, domains: Mapping[str, Outputs], history: LayerHistory | None) -> None:
    """MMD^2 by layer, over the training if there is a record of it."""
    from fastmmd.train import pictures

    page.heading("Distance of the domains")
    page.text(
        "MMD² between source and target, unbiased, Gaussian kernels at the mean distance: around 0"
        " where a layer cannot tell the domains apart."
    )
    if history is not None and history.mmd2:
        pictures.training(page.folder / "training.png", history.mmd2, history.accuracy)
        page.picture(
            "training.png", "MMD² by layer and accuracy after each epoch; 0 is before the first."
        )
        rows = [
            [name, f"{values[0]:.4f}", f"{values[-1]:.4f}"] for name, values in history.mmd2.items()
        ]
        page.table(["layer", "MMD² before the training", "after it"], rows)
        return
    distances = layer_distances(domains["source"], domains["target"])
    page.table(["layer", "MMD²"], [[name, f"{value:.4f}"] for name, value in distances.items()])


def show_features(
    page: Page, stages: Mapping[str, Mapping[str, Outputs]], names: list[str], embedding: Embedding
) -> None:
    """The features in a plane, of each stage."""
    from fastmmd.train import pictures

    page.heading("Features")
    shown = {stage: (found["source"], found["target"]) for stage, found in stages.items()}
    pictures.features(page.folder / "features.png", shown, names, embedding)
    page.picture("features.png", "The features of both domains in a plane fitted to both.")


def show_gap(
    page: Page,
    domains: Mapping[str, Outputs],
    names: list[str],
    loaders: tuple[Iterable[Any], Iterable[Any]],
    top: int,
) -> None:
    """The features and the samples that drive what is left of MMD^2."""
    from fastmmd.compare.comparison import energy_coefficient
    from fastmmd.train import pictures

    page.heading("What drives the remaining gap")
    points = domains["source"].features.double(), domains["target"].features.double()
    parts = contributions(*points, Gaussian("mean"))
    witness = parts[0] * len(parts[0]), -parts[1] * len(parts[1])
    differences = [
        (f"feature {i}", energy_coefficient(points[0][:, i].numpy(), points[1][:, i].numpy()))
        for i in range(points[0].shape[1])
    ]
    differences.sort(key=lambda item: -item[1])
    pictures.gap(page.folder / "gap.png", differences[: max(top, 4)], witness)
    page.picture("gap.png", "The features that differ most, and where each domain is denser.")
    page.text(
        "The samples that add most to MMD², which is the sum of all contributions: those least like"
        " the other domain."
    )
    images: dict[str, list[tuple[Tensor, str]]] = {}
    for (domain, outputs), part, values, loader in zip(
        domains.items(), parts, witness, loaders, strict=True
    ):
        rows = part.argsort(descending=True)[:top].tolist()
        total = float(parts[0].sum() + parts[1].sum())
        table = []
        for row in rows:
            known = outputs.labels is not None and outputs.labels[row] != IGNORED
            label = names[int(outputs.known_labels()[row])] if known else "-"
            share = f"{100 * float(part[row]) / total:.2f} %" if total > 0 else "-"
            table.append(
                [row, share, f"{float(values[row]):+.3f}", names[outputs.predictions[row]], label]
            )
        page.table([f"{domain} sample", "share of MMD²", "witness", "predicted", "label"], table)
        shown = _images(loader, rows)
        titles = [f"{row}: {predicted} ({label})" for row, _, _, predicted, label in table]
        if shown:
            images[domain] = list(zip(shown, titles, strict=True))
    if images:
        pictures.samples(page.folder / "samples.png", images)
        page.picture("samples.png", "These samples, with number, predicted class and (label).")


def _images(loader: Iterable[Any], rows: Sequence[int]) -> list[Tensor]:
    """Those inputs of a loader, if they are images [c, h, w] of one or three channels."""
    wanted, found, start = set(rows), {}, 0
    for batch in loader:
        inputs, _ = inputs_and_labels(batch)
        if not isinstance(inputs, Tensor) or inputs.ndim != 4 or inputs.shape[1] not in (1, 3):
            return []
        for row in wanted.intersection(range(start, start + len(inputs))):
            found[row] = inputs[row - start]
        start += len(inputs)
    return [found[row] for row in rows]


def show_verdict(page: Page, verdict: Verdict | None) -> None:
    """The verdict and its evidence."""
    page.heading("Did alignment help?")
    if verdict is None:
        page.text("Not judged: there was no source-only twin to compare with.")
        return
    page.text(verdict.sentence())
    page.table(
        ["validator", "aligned", "source only", "gain", "says", "counts"],
        [
            [
                e.validator,
                f"{e.aligned:.4g}",
                f"{e.twin:.4g}",
                f"{e.gain:+.2g} ± {e.error:.1g}",
                e.says,
                "yes" if e.counts else "no",
            ]
            for e in verdict.evidence
        ],
    )


def show_settings(
    page: Page, settings: Mapping[str, Any], module: nn.Module, domains: Mapping[str, Outputs]
) -> None:
    """Settings, numbers of samples, and versions."""
    page.heading("Settings and versions")
    weights = sum(p.numel() for p in module.parameters())
    rows = [
        ["model", f"{type(module).__name__}, {weights:,} parameters"],
        *([name, value] for name, value in settings.items()),
        *([f"{name} samples", len(outputs)] for name, outputs in domains.items()),
        ["fastmmd", fastmmd.__version__],
        ["torch", torch.__version__],
        ["lightning", L.__version__],
        ["Python", platform.python_version()],
    ]
    page.table(["", ""], rows)
