"""The report of a training: one page of figures and pictures about both domains."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar, get_args

import lightning as L
from torch import nn

from fastmmd._extras import MissingExtraError, require_extra
from fastmmd._output import OutputFolder
from fastmmd.train import sections
from fastmmd.train.evaluation import Outputs, collect
from fastmmd.train.guard import TransferGuard
from fastmmd.train.history import LayerHistory, domain_loaders, first_outputs
from fastmmd.train.page import Embedding, Format, Page
from fastmmd.train.verdict import Verdict

__all__ = ["WriteReport", "report"]

_DOMAINS = ("source", "target")
_Callback = TypeVar("_Callback", LayerHistory, TransferGuard)


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
    task: str | None = None,
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
        task: Of a module of several tasks, the one that the page is about, as for :func:`collect`.

    Returns:
        The page.

    Raises:
        ValueError: ``form`` or ``embedding`` is unknown, ``top`` is less than 1, the number of
            ``classes`` is not that of the logits, features or logits are infinite or NaN, or as
            :func:`collect`.
        OutputError: The folder cannot be written to; found out before any work.
        MissingExtraError: Matplotlib, scikit-learn or umap-learn is not there.
    """
    _check_options(embedding, form)
    if top < 1:
        raise ValueError(f"top must be at least 1; got {top!r}")
    folder = OutputFolder(output)
    domains = {
        name: collect(module, loader, layers=layers, task=task)
        for name, loader in zip(_DOMAINS, (source, target), strict=True)
    }
    names = _names(classes, domains["source"])
    first, last = ("before", "after") if verdict is None else ("source only", "aligned")
    stages = {last: domains}
    if before is not None:
        earlier = {
            name: collect(before, loader, task=task)
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
        sections.show_metrics(page, stages, names)
        sections.show_layers(page, domains, history)
        sections.show_features(page, stages, names, embedding)
        sections.show_gap(page, domains, names, (source, target), top)
        sections.show_verdict(page, verdict)
        sections.show_settings(page, settings, module, domains)
        name = page.write(form)
    return folder.path / name


class WriteReport(L.Callback):
    """Writes the :func:`report` when a training ends.

    The history and the verdict are those of a :class:`LayerHistory` and a :class:`TransferGuard` of
    the same task among the trainer's callbacks; the guard's twin is what the features are compared
    with, if there is a verdict. The samples are those of the loaders that the history was given,
    else of those that the guard was, else of the trainer's, as :class:`TransferGuard` chooses them.

    Args:
        output: Folder. Default: ``report``, or ``report-TASK``, in the trainer's
            ``default_root_dir``.
        classes: Names of the classes. Default: those of the data module, if it has any and there
            are not several tasks.
        embedding: As for :func:`report`.
        form: As for :func:`report`.
        title: As for :func:`report`.
        task: As for :func:`report`; a callback for each task writes a page for each.

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
        task: str | None = None,
    ) -> None:
        _check_options(embedding, form)
        self.output = output
        self.classes = classes
        self.task = task
        self.options: dict[str, Any] = {
            "embedding": embedding,
            "form": form,
            "title": title,
            "task": task,
        }

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Finds out before the training what would keep the report from being written after it."""
        OutputFolder(self._folder(trainer))
        history = self._beside(trainer, LayerHistory)
        layers = history.layers if history else ()
        given = self._given(trainer)
        for outputs in first_outputs(trainer, pl_module, *given, layers=layers, task=self.task):
            _names(self._classes(trainer), outputs)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes it."""
        if trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        guard, history = self._beside(trainer, TransferGuard), self._beside(trainer, LayerHistory)
        source, target = domain_loaders(trainer, *self._given(trainer))
        page = report(
            pl_module,
            source,
            target,
            self._folder(trainer),
            before=None if guard is None or guard.verdict is None else guard.twin,
            history=history,
            verdict=None if guard is None else guard.verdict,
            layers=history.layers if history else (),
            classes=self._classes(trainer),
            settings={**pl_module.hparams, "max_epochs": trainer.max_epochs},
            **self.options,
        )
        print(f"report: {page}")

    def _folder(self, trainer: L.Trainer) -> str:
        name = "report" if self.task is None else f"report-{self.task}"
        return self.output or os.path.join(trainer.default_root_dir, name)

    def _classes(self, trainer: L.Trainer) -> Sequence[str] | None:
        if self.classes is not None or self.task is not None:
            return self.classes
        return getattr(getattr(trainer, "datamodule", None), "classes", None)

    def _given(self, trainer: L.Trainer) -> tuple[Iterable[Any] | None, Iterable[Any] | None]:
        found = (self._beside(trainer, LayerHistory), self._beside(trainer, TransferGuard))
        others = [callback for callback in found if callback is not None]
        source = next((c.source for c in others if c.source is not None), None)
        return source, next((c.target for c in others if c.target is not None), None)

    def _beside(self, trainer: L.Trainer, kind: type[_Callback]) -> _Callback | None:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        same = (c for c in callbacks if isinstance(c, kind) and c.task == self.task)
        return next(same, None)


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
