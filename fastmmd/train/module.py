"""What the LightningModules of this package share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.plugins.precision import DoublePrecision
from torch import Tensor

from fastmmd.train.means import AGREED
from fastmmd.train.presence import (
    ClassesSeen,
    absent_classes,
    check_labels,
    passes_over_all,
)

__all__ = ["TransferModule"]


class TransferModule(L.LightningModule):
    """Finds out classes without a sample, and logs the objective and what is measured.

    Where the labels of all samples are known, that is before the training. Of other data it is the
    first whole epoch that shows it: the training ends then, but only once checkpoints of the epoch
    are made and, if it was the only one, callbacks have had their ``on_fit_end``. An epoch is not
    whole if it is cut short or resumed in its middle, if loaders are combined by ``"min_size"``, or
    if a sampler draws fewer labelled samples than there are.

    Args:
        all_classes: Whether a class without a sample is an error.
        ignored: Whether samples to train on may have the label -100, which is none.
    """

    measures: Any  # which the subclass makes: DomainMeasures or TaskMeasures

    def __init__(self, all_classes: bool, ignored: bool) -> None:
        super().__init__()
        self.all_classes = all_classes
        self._ignored = ignored
        self._labels_checked = False
        self._seen: dict[str, ClassesSeen] = {}
        self._first_batch: int | None = None  # of the epoch that is watched
        self._absent: dict[str, list[int]] = {}
        self._saved_at = -1  # the step of the last checkpoint

    def class_counts(self) -> Mapping[str, int]:
        """Numbers of classes by task; ``""`` is the name of an only one."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Checks the labels that are known, and takes the precision ``64-true``.

        Raises:
            ValueError: A label of the source is no class, or a class has no sample.
        """
        if isinstance(self.trainer.precision_plugin, DoublePrecision):
            # Lightning does so only after it has read a checkpoint, which rounds it to float32.
            self.trainer.precision_plugin.convert_module(self)
        self._labels_checked = False
        data = getattr(self.trainer, "datamodule", None) if stage == "fit" else None
        classes = self.class_counts().get("")
        if classes is None or data is None or not hasattr(data, "source_labels"):
            return
        labels = data.source_labels()
        if labels is not None:
            check_labels(labels, classes, self.all_classes, self._ignored)
            self._labels_checked = True

    def on_train_start(self) -> None:
        """Begins to note which classes have samples, unless that is known."""
        self._absent, self._saved_at, self._first_batch = {}, -1, None
        watches = self.all_classes and not self._labels_checked and passes_over_all(self.trainer)
        counts = self.class_counts() if watches else {}
        self._seen = {task: ClassesSeen(count) for task, count in counts.items()}

    def on_train_epoch_start(self) -> None:
        """Ends a training whose first whole epoch lacked a class.

        Raises:
            ValueError: No batch held a sample of some class.
        """
        self._refuse_absent()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Notices an epoch that is resumed in its middle."""
        if self._first_batch is None:
            self._first_batch = batch_idx

    def on_train_epoch_end(self) -> None:
        """Looks for classes that the epoch had no sample of, if it was the first whole one."""
        if not self._seen:
            return
        absent = absent_classes(self._seen, self.trainer, not self._first_batch)
        self._first_batch = None
        if absent is not None:
            self._absent, self._seen = absent, {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes that there is a checkpoint."""
        self._saved_at = self.global_step

    def on_fit_end(self) -> None:
        """As ``on_train_epoch_start``, of a training that has no second epoch.

        Raises:
            ValueError: No batch held a sample of some class.
        """
        self._refuse_absent()

    def on_validation_epoch_start(self) -> None:
        """Begins the measures of the loaders."""
        self.measures.begin()

    def on_validation_epoch_end(self) -> None:
        """Logs them, over the samples of all processes that have a label."""
        self._log_measures("val")

    def on_test_epoch_start(self) -> None:
        """As ``on_validation_epoch_start``."""
        self.measures.begin()

    def on_test_epoch_end(self) -> None:
        """As ``on_validation_epoch_end``."""
        self._log_measures("test")

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measures one batch of (inputs, labels); loader 0 is the source, loader 1 the target."""
        self._evaluate("val", batch, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As ``validation_step``, logged under ``test``."""
        self._evaluate("test", batch, dataloader_idx)

    def _evaluate(self, stage: str, batch: Any, dataloader_idx: int) -> None:
        raise NotImplementedError

    def _log_measures(self, stage: str) -> None:
        found = self.measures.results(self.trainer.strategy)
        named = {f"{stage}_{name}": value for name, value in found.items()}
        self.log_dict(named, prog_bar=True, **AGREED)

    def _saw(self, labels: Tensor, task: str = "") -> None:
        if task in self._seen:
            self._seen[task].add(labels)

    def _refuse_absent(self) -> None:
        if not self._absent:
            return
        counts = self.class_counts()
        found = "; ".join(
            f"{absent} of the {counts[task]} classes{f' of {task}' * bool(task)}"
            for task, absent in self._absent.items()
        )
        kept = " The epoch is in a checkpoint." * (self._saved_at == self.global_step)
        raise ValueError(
            f"no batch of the first whole epoch holds a sample of {found}.{kept}"
            " all_classes=False trains without them, or where an epoch may by chance not show all"
            " of the data"
        )

    def _log_step(self, objective: Tensor, batch_idx: int) -> None:
        every = max(self.trainer.log_every_n_steps, 1)  # type: ignore[attr-defined]
        if batch_idx == 0 or (self.global_step + 1) % every == 0:
            self.log("train_loss", objective, prog_bar=True)
