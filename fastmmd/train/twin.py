"""The training of a source-only twin, step by step beside that of the model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ReduceLROnPlateau

from fastmmd.train.batches import labelled
from fastmmd.train.distillation import teacher_names
from fastmmd.train.shuffling import common_seed, new_seed, seed_of

__all__ = ["TwinTraining", "check_trainable", "copy_of", "optimizer_and_schedule"]


def copy_of(trainer: L.Trainer, module: L.LightningModule) -> L.LightningModule:
    """A copy of a module that a trainer has."""
    # None in the place of the trainer: a copy of that would be a copy of everything.
    return copy.deepcopy(module, {id(trainer): None})


def check_trainable(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Checks that a twin can be trained as the module is.

    Raises:
        ValueError: It optimises by itself, or several processes do not hold whole models.
    """
    strategy = type(trainer.strategy).__name__
    for trouble, found in (
        (
            f"strategy {strategy}; of several processes it knows DDPStrategy",
            trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy),
        ),
        ("manual optimization", not module.automatic_optimization),
    ):
        if found:
            raise ValueError(
                f"TransferGuard cannot train a twin with {trouble}; train one apart and give it as"
                " twin"
            )


class TwinTraining:
    """Trains a copy of a module on the source of the batches that the module is trained on.

    As the trainer would: its precision, with a loss scale of its own under ``16-mixed``, its
    accumulation and clipping of gradients and, with several processes, ``DistributedDataParallel``.
    What is frozen in the module is frozen in the copy.

    Args:
        twin: The copy.
        module: The module, which the strategy of the trainer has set up.
        trainer: Trains the module.
        state: Of a training that is resumed, or empty.

    Raises:
        ValueError: The module has several optimisers, or a schedule that follows a metric.
    """

    def __init__(
        self,
        twin: L.LightningModule,
        module: L.LightningModule,
        trainer: L.Trainer,
        state: Mapping[str, Any],
    ) -> None:
        plugin: Any = trainer.precision_plugin
        if any(isinstance(part, nn.SyncBatchNorm) for part in module.modules()):
            twin = nn.SyncBatchNorm.convert_sync_batchnorm(twin)
        twin = plugin.convert_module(twin).to(module.device)
        twin.trainer = trainer
        self.twin = twin
        self.objective: nn.Module = _Objective(twin)
        strategy: Any = trainer.strategy
        if trainer.world_size > 1:
            # Parameters of the discrepancy have no part in it.
            self.objective = DistributedDataParallel(
                self.objective,
                device_ids=strategy.determine_ddp_device_ids(),
                find_unused_parameters=True,
            )
        self.optimizer, self.schedule = optimizer_and_schedule(twin.configure_optimizers())
        scaler = getattr(plugin, "scaler", None) or torch.amp.GradScaler(enabled=False)
        self.scaler: torch.amp.GradScaler = copy.deepcopy(scaler)
        self.steps_done = 0
        if state:
            self.seed = state["seed"]
            own, of_twin = twin.state_dict(), state["twin"]
            for name in teacher_names(twin):
                of_twin.setdefault(name, own[name])
            twin.load_state_dict(of_twin)
            self.optimizer.load_state_dict(state["optimizer"])
            if state["scaler"]:
                self.scaler.load_state_dict(state["scaler"])
            if self.schedule is not None:
                self.schedule["scheduler"].load_state_dict(state["scheduler"])
            return
        with torch.random.fork_rng([]):  # what is drawn here is the training's to draw
            self.seed = common_seed(new_seed(), trainer)

    def step(self, batch: Any, index: int, module: L.LightningModule, trainer: L.Trainer) -> None:
        """What the module has just done with the batch of this number in the epoch."""
        steps = trainer.global_step != self.steps_done  # otherwise gradients are still gathered
        self.steps_done = trainer.global_step
        _mirror(module, self.twin)
        devices = [module.device] if module.device.type == "cuda" else []
        alone = not steps and isinstance(self.objective, DistributedDataParallel)
        with self.objective.no_sync() if alone else nullcontext():  # type: ignore[operator]
            with torch.random.fork_rng(devices), trainer.precision_plugin.forward_context():
                numbers = (self.seed, trainer.current_epoch, index, trainer.global_rank)
                torch.manual_seed(seed_of(*numbers))
                loss = self.objective(batch) / trainer.accumulate_grad_batches
            self.scaler.scale(loss).backward()
        if not steps:
            return
        self.scaler.unscale_(self.optimizer)
        self._clip(trainer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self._advance("step", index)

    def end_epoch(self, epoch: int) -> None:
        """After the epoch of this number."""
        self._advance("epoch", epoch)

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser, schedule, loss scale and seed, as tensors and plain objects.

        A teacher of the module, which the twin has but does not hear, is left out.
        """
        of_twin = self.twin.state_dict()
        for name in teacher_names(self.twin):
            del of_twin[name]
        return {
            "twin": of_twin,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.schedule["scheduler"].state_dict() if self.schedule else {},
            "scaler": self.scaler.state_dict(),
            "seed": self.seed,
        }

    def _advance(self, interval: str, number: int) -> None:
        schedule = self.schedule
        if schedule is None or schedule["interval"] != interval:
            return
        if (number + 1) % schedule["frequency"] == 0:
            schedule["scheduler"].step()

    def _clip(self, trainer: L.Trainer) -> None:
        limit = trainer.gradient_clip_val
        if not limit or limit <= 0:  # which is off, as the trainer has it
            return
        by_value = trainer.gradient_clip_algorithm == "value"
        clip = nn.utils.clip_grad_value_ if by_value else nn.utils.clip_grad_norm_
        clip(self.twin.parameters(), limit)


def _mirror(module: nn.Module, twin: nn.Module) -> None:
    """Gives a copy the modes of the original: callbacks and schedules may freeze parts of it."""
    for of_module, of_twin in zip(module.modules(), twin.modules(), strict=True):
        of_twin.training = of_module.training
    for parameter, copied in zip(module.parameters(), twin.parameters(), strict=True):
        if copied.requires_grad != parameter.requires_grad:
            copied.requires_grad_(parameter.requires_grad)


class _Objective(nn.Module):
    """The loss on the source as a forward pass: what ``DistributedDataParallel`` wraps."""

    def __init__(self, module: L.LightningModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Any) -> Tensor:
        objective = getattr(self.module, "source_only_loss", None)
        if objective is not None:
            return objective(batch)
        inputs, labels = labelled(batch)
        return F.cross_entropy(self.module(inputs), labels)


def optimizer_and_schedule(
    configured: Any,
) -> tuple[torch.optim.Optimizer, dict[str, Any] | None]:
    """The one optimiser of what ``configure_optimizers`` returned, and its schedule if any.

    Raises:
        ValueError: There are several, or the schedule follows a metric.
    """
    if isinstance(configured, torch.optim.Optimizer):
        return configured, None
    if isinstance(configured, Mapping):
        schedule = configured.get("lr_scheduler")
        if schedule is None:
            return configured["optimizer"], None
        given = schedule if isinstance(schedule, Mapping) else {"scheduler": schedule}
        if isinstance(given["scheduler"], ReduceLROnPlateau):
            raise ValueError(
                "TransferGuard cannot train a twin with ReduceLROnPlateau, as it has no metric of"
                " its own; train one apart and give it as twin"
            )
        return configured["optimizer"], {"interval": "epoch", "frequency": 1, **given}
    if isinstance(configured, tuple | list) and len(configured) == 2:
        optimizers, schedules = configured
        if isinstance(optimizers, list) and len(optimizers) == 1 and len(schedules) <= 1:
            schedule = schedules[0] if schedules else None
            return optimizer_and_schedule({"optimizer": optimizers[0], "lr_scheduler": schedule})
    if isinstance(configured, list) and len(configured) == 1:
        return optimizer_and_schedule(configured[0])
    raise ValueError("TransferGuard trains a twin with one optimizer; the module has several")
