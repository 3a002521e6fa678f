"""The report of a training: one page of figures and pictures about both domains."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, get_args

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
from fastmmd._extras import MissingExtraError, require_extra
from fastmmd._output import OutputFolder
from fastmmd.functional import contributions
from fastmmd.kernels import Gaussian
from fastmmd.train.evaluation import Outputs, collect, inputs_and_labels
from fastmmd.train.guard import TransferGuard
from fastmmd.train.history import LayerHistory, domain_loaders, layer_distances
from fastmmd.train.page import Embedding, Format, Page
from fastmmd.train.verdict import Verdict

__all__ = ["WriteReport", "report", "scores"]

_DOMAINS = ("source", "target")
_Callback = TypeVar("_Callback", bound=L.Callback)


def scores(outputs: Outputs) -> dict[str, Any]:
    """Accuracy and macro precision, recall and F1, and the same per class, by torchmetrics.

    The macro means are over the classes that occur as a label or as a prediction.

    Args:
        outputs: n samples with labels, of C classes.

    Returns:
        ``accuracy``, ``precision``, ``recall`` and ``f1``, numbers; ``per_class`` with the last
        three, each [C]; ``confusion`` [C, C], counts with true classes in rows.

    Raises:
        ValueError: There are no labels.
    """
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


def report(
    module: nn.Module,
    source: Iterable[Any],
    target: Iterable[Any],
    output: str | os.PathLike[str],
    *,
    before: nn.Module | None = None,
    history: LayerHistory | None = None,
    verdict: Verdict | None = None,
    layers: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    embedding: Embedding = "pca",
    form: Format = "html",
    title: str = "Transfer report",
    top: int = 8,
) -> Path:
    r"""Writes a page about a model on both domains.

    It shows accuracy, macro precision, recall and F1 with confusion matrices (torchmetrics); MMD
    per layer, over the training if there is a history; the features in a plane; what drives the
    remaining gap; the guard's verdict; settings and versions. The gap is taken apart in two ways:

    - by sample: the terms of :func:`fastmmd.contributions`, which sum to the biased MMD^2 of the
      features, with the witness function at the sample, n times the term in the source and -m times
      in the target;
    - by feature: the energy coefficient of each, 0 for equal and 1 for disjoint distributions
      (Szekely and Rizzo, 2013).

    Args:
        module: Has ``features(inputs)`` and ``forward(inputs)``, as :func:`collect` needs.
        source: Loader of held-out source samples, with labels.
        target: Loader of target samples; what needs labels is left out if they have none.
        output: Folder, made if need be. ``report.html`` with its pictures inside, or ``report.md``
            with its pictures beside it, appears when it is complete.
        before: The model to show the features of for comparison: a source-only twin, or a copy from
            before the training.
        history: MMD per layer and accuracies over the training.
        verdict: The guard's.
        layers: Names of submodules whose MMD is shown, beside ``features`` and ``logits``.
        classes: Names of the classes. Default: their numbers.
        settings: Shown as a table. Default: the ``hparams`` of the module, if it has them.
        embedding: ``pca``, ``tsne``, or ``umap``, which needs the package umap-learn.
        form: ``html`` or ``md``.
        title: Heading of the page.
        top: How many samples of each domain, and features, are listed.

    Returns:
        The page.

    Raises:
        ValueError: ``form`` or ``embedding`` is unknown, the number of ``classes`` is not that of
            the logits, features or logits are infinite or NaN, or as :func:`collect`.
        OutputError: The folder cannot be written to; found out before any work.
        MissingExtraError: Matplotlib, scikit-learn or umap-learn is not there.
    """
    _check_options(embedding, form)
    folder = OutputFolder(output)
    domains = {
        name: collect(module, loader, layers=layers)
        for name, loader in zip(_DOMAINS, (source, target), strict=True)
    }
    names = _names(classes, domains["source"])
    first, last = ("before", "after") if verdict is None else ("source only", "aligned")
    stages = {last: domains}
    if before is not None:
        earlier = {
            name: collect(before, loader)
            for name, loader in zip(_DOMAINS, (source, target), strict=True)
        }
        stages = {first: earlier, last: domains}
    for stage, found in stages.items():
        for name, outputs in found.items():
            if not outputs.is_finite():
                raise ValueError(
                    f"features and logits must be finite; on the {name} some of those {stage} are"
                    " not, as after a training that diverged"
                )
    if settings is None:
        settings = dict(getattr(module, "hparams", {}))
    with folder.filling() as path:
        page = Page(title, path)
        if verdict is not None:
            page.text(verdict.sentence(), key=True)
        _metrics(page, stages, names)
        _layers(page, domains, history)
        _features(page, stages, names, embedding)
        _gap(page, domains, names, (source, target), top)
        _verdict(page, verdict)
        _settings(page, settings, module, domains)
        name = page.write(form)
    return folder.path / name


class WriteReport(L.Callback):
    """Writes the :func:`report` when a training ends.

    The history and the verdict are those of a :class:`LayerHistory` and a :class:`TransferGuard`
    among the trainer's callbacks; the guard's twin is what the features are compared with. The
    samples are those of the loaders that the history was given, else of those that the guard was,
    else of the trainer's, as :class:`TransferGuard` chooses them.

    Args:
        output: Folder. Default: ``report`` in the trainer's ``default_root_dir``.
        classes: Names of the classes. Default: those of the data module, if it has any.
        embedding: As for :func:`report`.
        form: As for :func:`report`.
        title: As for :func:`report`.

    Raises:
        ValueError: ``form`` or ``embedding`` is unknown. When the training starts: there is no
            loader for a domain, several processes have a share of it each, the number of classes
            is not that of the logits, or as :func:`collect` of a batch.
        OutputError: When the training starts: the folder cannot be written to.
        MissingExtraError: Matplotlib, scikit-learn or umap-learn is not there.
    """

    def __init__(
        self,
        output: str | None = None,
        *,
        classes: Sequence[str] | None = None,
        embedding: Embedding = "pca",
        form: Format = "html",
        title: str = "Transfer report",
    ) -> None:
        _check_options(embedding, form)
        self.output = output
        self.classes = classes
        self.options: dict[str, Any] = {"embedding": embedding, "form": form, "title": title}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Finds out before the training what would keep the report from being written after it."""
        OutputFolder(self._folder(trainer))
        history = _first(trainer, LayerHistory)
        layers = history.layers if history else ()
        with torch.random.fork_rng([]):  # loaders draw seeds, and those are the training's
            for loader in domain_loaders(trainer, *self._given(trainer)):
                outputs = collect(pl_module, islice(loader, 1), layers=layers)
                _names(self._classes(trainer), outputs)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes it."""
        if trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        guard, history = _first(trainer, TransferGuard), _first(trainer, LayerHistory)
        source, target = domain_loaders(trainer, *self._given(trainer))
        page = report(
            pl_module,
            source,
            target,
            self._folder(trainer),
            before=None if guard is None else guard.twin,
            history=history,
            verdict=None if guard is None else guard.verdict,
            layers=history.layers if history else (),
            classes=self._classes(trainer),
            settings={**pl_module.hparams, "max_epochs": trainer.max_epochs},
            **self.options,
        )
        print(f"report: {page}")

    def _folder(self, trainer: L.Trainer) -> str:
        return self.output or os.path.join(trainer.default_root_dir, "report")

    def _classes(self, trainer: L.Trainer) -> Sequence[str] | None:
        known = getattr(getattr(trainer, "datamodule", None), "classes", None)
        return known if self.classes is None else self.classes

    def _given(self, trainer: L.Trainer) -> tuple[Iterable[Any] | None, Iterable[Any] | None]:
        others = [c for c in (_first(trainer, LayerHistory), _first(trainer, TransferGuard)) if c]
        source = next((c.source for c in others if c.source is not None), None)
        return source, next((c.target for c in others if c.target is not None), None)


def _check_options(embedding: str, form: str) -> None:
    require_extra("report", "train", "matplotlib", "sklearn")
    for argument, value, kind in (("form", form, Format), ("embedding", embedding, Embedding)):
        if value not in get_args(kind):
            raise ValueError(
                f"{argument} must be one of {', '.join(get_args(kind))}; got {value!r}"
            )
    if embedding == "umap" and find_spec("umap") is None:
        raise MissingExtraError("embedding 'umap' needs umap-learn: pip install umap-learn")


def _names(classes: Sequence[str] | None, outputs: Outputs) -> list[str]:
    width = outputs.logits.shape[1]
    names = [str(c) for c in (range(width) if classes is None else classes)]
    if len(names) != width:
        raise ValueError(f"classes must be the names of {width} classes; got {len(names)}")
    return names


def _first(trainer: L.Trainer, kind: type[_Callback]) -> _Callback | None:
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((c for c in callbacks if isinstance(c, kind)), None)


def _metrics(page: Page, stages: Mapping[str, Mapping[str, Outputs]], names: list[str]) -> None:
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


def _layers(page: Page, domains: Mapping[str, Outputs], history: LayerHistory | None) -> None:
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


def _features(
    page: Page, stages: Mapping[str, Mapping[str, Outputs]], names: list[str], embedding: Embedding
) -> None:
    from fastmmd.train import pictures

    page.heading("Features")
    shown = {stage: (found["source"], found["target"]) for stage, found in stages.items()}
    pictures.features(page.folder / "features.png", shown, names, embedding)
    page.picture("features.png", "The features of both domains in a plane fitted to both.")


def _gap(
    page: Page,
    domains: Mapping[str, Outputs],
    names: list[str],
    loaders: tuple[Iterable[Any], Iterable[Any]],
    top: int,
) -> None:
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
            label = "-" if outputs.labels is None else names[int(outputs.labels[row])]
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


def _verdict(page: Page, verdict: Verdict | None) -> None:
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


def _settings(
    page: Page, settings: Mapping[str, Any], module: nn.Module, domains: Mapping[str, Outputs]
) -> None:
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
