"""The guard against negative transfer: a source-only twin beside the model, and a verdict."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmmd.train.batches import labelled
from fastmmd.train.checkpoints import check_architecture
from fastmmd.train.evaluation import collect
from fastmmd.train.history import domain_loaders
from fastmmd.train.shuffling import new_seed, seed_of
from fastmmd.train.verdict import Verdict, judge

__all__ = ["TransferGuard"]


class TransferGuard(L.Callback):
    """Trains a source-only twin alongside a model, and judges at the end whether alignment helped.

    The twin begins with the same weights, sees the same source batches (and the few labelled target
    samples, if there are any) in the same order, and descends ``source_only_loss(batch)`` of the
    module with the optimiser and schedule that its ``configure_optimizers`` gives: of an
    :class:`~fastmmd.train.Aligner` the objective of ``target_forward="none"``, weights of sources
    and of labelled target samples included. For a module without ``source_only_loss`` it is the
    mean cross-entropy of ``forward`` over all labelled samples of the batch. It never sees the
    unlabelled target, so its batch normalisation knows the source alone. It takes the time and
    memory of a second model. The training of the model itself is not changed, not even its random
    numbers.

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

    Attributes:
        verdict: The :class:`~fastmmd.train.Verdict`, once the training is over.
        twin: The source-only model.

    Raises:
        InputError: When the training starts: the checkpoint is not there, damaged or of another
            architecture.
        ValueError: When the training starts: precision ``16-mixed``, several processes, manual
            optimisation or several optimisers, and a twin to be trained; no loader for the
            source or for the target, or several processes and not both are given.

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
    ) -> None:
        self.twin = twin if isinstance(twin, L.LightningModule) else None
        self.checkpoint = twin if isinstance(twin, str | Path) else None
        self.trains = twin is None
        self.source = source
        self.target = target
        self.max_samples = max_samples
        self.verdict: Verdict | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._schedule: dict[str, Any] | None = None
        self._steps_done = 0
        self._seed = 0
        self._loaded: dict[str, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Makes the twin, before a checkpoint changes the weights of the model."""
        if stage != "fit":
            return
        if self.checkpoint is not None:
            state = check_architecture(self.checkpoint, pl_module)
            self.twin = _copy(trainer, pl_module)
            self.twin.load_state_dict(state)
        if not self.trains:
            return
        for trouble, found in (
            ("precision 16-mixed, which scales gradients", trainer.precision == "16-mixed"),
            (f"{trainer.world_size} processes", trainer.world_size > 1),
            ("manual optimization", not pl_module.automatic_optimization),
        ):
            if found:
                raise ValueError(
                    f"TransferGuard cannot train a twin with {trouble}; train one apart and give"
                    " it as twin"
                )
        self._loaded = {}
        self.twin = _copy(trainer, pl_module)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Makes the twin's optimiser, and resumes both if there is a checkpoint."""
        if not self.trains:
            return
        assert self.twin is not None
        self.twin.to(pl_module.device)
        self.twin.trainer = trainer
        self._optimizer, self._schedule = _single(self.twin.configure_optimizers())
        if self._loaded:
            self._seed = self._loaded["seed"]
        else:
            with torch.random.fork_rng([]):  # what is drawn here is the training's to draw
                self._seed = new_seed()
        if self._loaded:
            self.twin.load_state_dict(self._loaded["twin"])
            self._optimizer.load_state_dict(self._loaded["optimizer"])
            if self._schedule is not None:
                self._schedule["scheduler"].load_state_dict(self._loaded["scheduler"])
            self._loaded = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Finds out before the training that there is nothing to compare on after it."""
        domain_loaders(trainer, self.source, self.target)
        self._steps_done = trainer.global_step  # restored only after on_fit_start

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """One step of the twin on the source of the batch."""
        if not self.trains:
            return
        assert self.twin is not None
        assert self._optimizer is not None
        self.twin.train(pl_module.training)
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        with torch.random.fork_rng(devices), trainer.precision_plugin.forward_context():
            torch.manual_seed(seed_of(self._seed, trainer.current_epoch, index))
            loss = _source_loss(self.twin, batch)
        (loss / trainer.accumulate_grad_batches).backward()
        if trainer.global_step == self._steps_done:
            return  # gradients are still gathered
        self._steps_done = trainer.global_step
        self._clip(trainer)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._schedule is not None and self._schedule["interval"] == "step":
            self._schedule["scheduler"].step()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A step of a schedule by epochs."""
        if self.trains and self._schedule is not None and self._schedule["interval"] == "epoch":
            self._schedule["scheduler"].step()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compares the two and says what came of it."""
        if trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        self.verdict = self.compare(trainer, pl_module)
        print(f"\n{self.verdict}\n")

    def compare(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Verdict:
        """The verdict as of now."""
        assert self.twin is not None
        source, target = domain_loaders(trainer, self.source, self.target)
        self.twin.to(pl_module.device)
        with torch.random.fork_rng([]):  # loaders draw seeds
            aligned, twin = (
                (collect(model, source), collect(model, target)) for model in (pl_module, self.twin)
            )
        return judge(aligned, twin, max_samples=self.max_samples)

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser, schedule and seed of a twin that is trained alongside."""
        if not self.trains or self.twin is None or self._optimizer is None:
            return {}
        scheduler = self._schedule["scheduler"].state_dict() if self._schedule else {}
        return {
            "twin": self.twin.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": scheduler,
            "seed": self._seed,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Those of the training that is resumed, taken up when the fit starts."""
        self._loaded = state_dict

    def _clip(self, trainer: L.Trainer) -> None:
        assert self.twin is not None
        limit = trainer.gradient_clip_val
        if limit is None:
            return
        by_value = trainer.gradient_clip_algorithm == "value"
        clip = nn.utils.clip_grad_value_ if by_value else nn.utils.clip_grad_norm_
        clip(self.twin.parameters(), limit)


def _copy(trainer: L.Trainer, module: L.LightningModule) -> L.LightningModule:
    # None in the place of the trainer: a copy of that would be a copy of everything.
    return copy.deepcopy(module, {id(trainer): None})


def _source_loss(module: L.LightningModule, batch: Any) -> Tensor:
    objective = getattr(module, "source_only_loss", None)
    if objective is not None:
        return objective(batch)
    inputs, labels = labelled(batch)
    return F.cross_entropy(module(inputs), labels)


def _single(configured: Any) -> tuple[torch.optim.Optimizer, dict[str, Any] | None]:
    """The one optimiser of what ``configure_optimizers`` returned, and its schedule if any."""
    if isinstance(configured, torch.optim.Optimizer):
        return configured, None
    if isinstance(configured, Mapping):
        schedule = configured.get("lr_scheduler")
        if schedule is not None and not isinstance(schedule, Mapping):
            schedule = {"scheduler": schedule}
        if schedule is not None:
            schedule = {"interval": "epoch", **schedule}
        return configured["optimizer"], schedule
    if isinstance(configured, tuple | list) and len(configured) == 2:
        optimizers, schedules = configured
        if isinstance(optimizers, list) and len(optimizers) == 1 and len(schedules) <= 1:
            schedule = schedules[0] if schedules else None
            return _single({"optimizer": optimizers[0], "lr_scheduler": schedule})
    if isinstance(configured, list) and len(configured) == 1:
        return _single(configured[0])
    raise ValueError("TransferGuard trains a twin with one optimizer; the module has several")
