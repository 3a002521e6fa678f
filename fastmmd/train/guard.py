"""The guard against negative transfer: a source-only twin beside the model, and a verdict."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from fastmmd.train.batches import row_count
from fastmmd.train.checkpoints import check_architecture
from fastmmd.train.evaluation import IGNORED, collect, inputs_and_labels, labels_of_task
from fastmmd.train.history import domain_loaders, first_outputs, state_key, undisturbed
from fastmmd.train.twin import TwinTraining, check_trainable, copy_of
from fastmmd.train.verdict import LEAST_SAMPLES, Verdict, check_max_samples, judge

__all__ = ["TransferGuard"]


class TransferGuard(L.Callback):
    """Trains a source-only twin alongside a model, and judges at the end whether alignment helped.

    The twin begins with the same weights, sees the same source batches (and the few labelled target
    samples, if there are any) in the same order, and descends ``source_only_loss(batch)`` of the
    module with the optimiser and schedule that its ``configure_optimizers`` gives: of an
    :class:`~fastmmd.train.Aligner` the objective of ``target_forward="none"``, weights of sources
    and of labelled target samples included; of a :class:`~fastmmd.train.FineTuner` the losses of
    its tasks, without L2-SP and distillation. For a module without ``source_only_loss`` it is the
    mean cross-entropy of ``forward`` over all labelled samples of the batch. It never sees the
    unlabelled target, so its batch normalisation knows the source alone. It takes the time and
    memory of a second model. The training of the model itself is not changed, not even its random
    numbers. Precision, accumulation and clipping of gradients are the trainer's, and with several
    processes (``DDPStrategy``) the twin is a ``DistributedDataParallel`` of its own.

    Its weights, optimiser, schedule and random numbers are part of the checkpoints, so a resumed
    training resumes it.

    Args:
        twin: A trained source-only model, or the path of its checkpoint, to compare with in place
            of one that is trained alongside. A checkpoint is one of the same architecture. With
            :class:`~fastmmd.train.Aligner`, ``target_forward="none"`` makes one.
        source: Loader of held-out source samples with labels. Default: the first validation loader.
        target: Loader of target samples; their labels, if they have any, are used for the true
            difference alone. Default: the second validation loader or, without one, the data
            module's ``predict_dataloader``. With several processes both must be given.
        max_samples: As for :func:`~fastmmd.train.judge`.
        task: Of a module of several tasks, the one that is judged by, as for
            :func:`~fastmmd.train.collect`.

    Attributes:
        verdict: The :class:`~fastmmd.train.Verdict`, once the training is over; None, with a
            warning, if there is nothing to judge by then.
        twin: The source-only model.

    Raises:
        InputError: When the training starts: the checkpoint is not there, damaged or of another
            architecture.
        ValueError: ``max_samples`` is less than 20. When the training starts: no loader for the
            source or for the target, or several processes and not both are given; fewer than 20
            samples in a loader, of the source with labels; or as :func:`~fastmmd.train.collect` of
            their first batches. With a twin to be trained also manual optimisation, several
            optimisers, a schedule that follows a metric, or processes that do not each hold the
            whole model.

    Example:
        >>> trainer = L.Trainer(callbacks=[TransferGuard()])  # doctest: +SKIP
    """

    def __init__(
        self,
        twin: L.LightningModule | str | Path | None = None,
        *,
        source: Iterable[Any] | None = None,
        target: Iterable[Any] | None = None,
        max_samples: int = 2000,
        task: str | None = None,
    ) -> None:
        check_max_samples(max_samples)
        self.twin = twin if isinstance(twin, L.LightningModule) else None
        self.checkpoint = twin if isinstance(twin, str | Path) else None
        self.trains = twin is None
        self.source = source
        self.target = target
        self.max_samples = max_samples
        self.task = task
        self.verdict: Verdict | None = None
        self._training: TwinTraining | None = None
        self._loaded: dict[str, Any] = {}

    @property
    def state_key(self) -> str:
        """The name of the state in a checkpoint; there may be a guard for each task."""
        return state_key(self, self.task)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Makes the twin, before a checkpoint changes the weights of the model."""
        if stage != "fit":
            return
        if self.checkpoint is not None:
            state = check_architecture(self.checkpoint, pl_module)
            self.twin = copy_of(trainer, pl_module)
            self.twin.load_state_dict(state)
        if not self.trains:
            return
        check_trainable(trainer, pl_module)
        self._training, self._loaded = None, {}
        self.twin = copy_of(trainer, pl_module)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Makes the twin's optimiser, and resumes both if there is a checkpoint."""
        if not self.trains:
            return
        assert self.twin is not None
        self._training = TwinTraining(self.twin, pl_module, trainer, self._loaded)
        self.twin, self._loaded = self._training.twin, {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Finds out before the training that there is nothing to compare on after it."""
        given = self.source, self.target
        self.verdict = None
        first_outputs(trainer, pl_module, *given, task=self.task)
        source, target = domain_loaders(trainer, *given)
        with undisturbed((source, target)):
            _check_enough("source", source, self.task, labelled=True)
            _check_enough("target", target, self.task, labelled=False)
        if self._training is not None:
            self._training.steps_done = trainer.global_step  # restored only after on_fit_start

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """One step of the twin on the source of the batch."""
        if self._training is not None:
            self._training.step(batch, index, pl_module, trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A step of a schedule by epochs."""
        if self._training is not None:
            self._training.end_epoch(trainer.current_epoch)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compares the two and says what came of it."""
        if trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        try:
            self.verdict = self.compare(trainer, pl_module)
        except ValueError as error:
            # What comes after the training, a report say, is still to be had.
            rank_zero_warn(f"TransferGuard has no verdict: {error}")
            return
        print(f"\n{self.verdict}\n")

    def compare(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Verdict:
        """The verdict as of now."""
        assert self.twin is not None
        source, target = domain_loaders(trainer, self.source, self.target)
        self.twin.to(pl_module.device)
        found = []
        for model in (pl_module, self.twin):
            with undisturbed((source, target)):  # and so in one order, where loaders shuffle
                found.append([collect(model, part, task=self.task) for part in (source, target)])
        (a, b), (c, d) = found
        return judge((a, b), (c, d), max_samples=self.max_samples)

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser, schedule and seed of a twin that is trained alongside."""
        return {} if self._training is None else self._training.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Those of the training that is resumed, taken up when the fit starts."""
        self._loaded = state_dict


def _check_enough(name: str, loader: Iterable[Any], task: str | None, labelled: bool) -> None:
    """Reads a loader until there is enough to judge by, which is seldom more than a batch."""
    found, what = 0, "samples with labels" if labelled else "samples"
    for batch in loader:
        inputs, labels = inputs_and_labels(batch)
        count = row_count(inputs)
        if labelled:
            of_task = labels_of_task(labels, task, count)
            if of_task is None:
                raise ValueError(f"{name} must be a loader of samples with labels; it gives none")
            count = int((of_task != IGNORED).sum())
        found += count
        if found >= LEAST_SAMPLES:
            return
    raise ValueError(
        f"{name} must be a loader that gives at least {LEAST_SAMPLES} {what} to judge by; got"
        f" {found}: give one of more data, or whose sampler draws more of it"
    )
