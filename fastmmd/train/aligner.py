"""The LightningModule of domain alignment: task loss on the source + weight x MMD to the target."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from fastmmd.losses import MMDLoss
from fastmmd.train.schedule import Schedule, alignment_weight

__all__ = ["Aligner", "TargetForward"]

TargetForward = Literal["joint", "separate", "none"]

# The order of the validation and test loaders.
DOMAINS = ("source", "target")


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The default optimiser: AdamW at a learning rate of 1e-3."""
    return torch.optim.AdamW(parameters, lr=1e-3)


class Aligner(L.LightningModule):
    r"""Trains a classifier on a labelled source, with features that look alike on the target.

    The objective of a step is

    .. math:: \text{CE}(c(f(x_s)), y_s) + w(p) \, \text{MMD}^2(f(x_s), f(x_t)),

    with f = bottleneck of backbone, c the classifier and p the share of the optimiser steps that
    are done. It is that of Deep Adaptation Networks (Long et al., ICML 2015) on one layer, with the
    weight schedule w of :func:`~fastmmd.train.alignment_weight`.

    A training batch is ``{"source": (inputs, labels), "target": inputs}``, as
    :class:`~fastmmd.train.DomainPair` makes it; a target batch may also be a tuple, of which only
    the first entry is read, so target labels cannot leak into training. Validation and test take
    one loader of ``(inputs, labels)`` for the source and, if there are labels to measure with, a
    second one for the target.

    Logged: ``train_loss``, ``train_task_loss``, ``train_alignment_loss``,
    ``train_alignment_weight``, ``train_source_accuracy`` and, for ``val`` and ``test``,
    ``val_source_loss``, ``val_source_accuracy`` and ``val_target_accuracy``. Choose checkpoints by
    a source metric: ``val_target_accuracy`` is made with target labels.

    With several processes each computes the MMD of its own batch, and the gradients are averaged.

    Args:
        backbone: Maps inputs [n, ...] to something that the bottleneck takes.
        bottleneck: Maps that to the features [n, d] that are aligned.
        classifier: Maps features [n, d] to logits [n, num_classes].
        num_classes: Number of classes.
        loss: Module called with source features [n, d] and target features [m, d] that returns a
            scalar. Default ``MMDLoss()``, five Gaussians at the mean bandwidth.
        weight: Maximum of the weight of that loss. 0 leaves the joint forward pass alone to adapt
            the batch normalisation; the loss is then logged, but has no gradient.
        schedule: ``"dann"`` (0 at the first step, rising) or ``"constant"``.
        target_forward: ``"joint"`` (default): source and target pass through backbone and
            bottleneck as one batch, so batch normalisation sees both domains at once; inputs of
            both must have one shape. ``"separate"``: one pass per domain, each normalised by its
            own batch statistics. ``"none"``: the target is not looked at, which is the source-only
            baseline.
        optimizer: Called with the parameters. Default AdamW at a learning rate of 1e-3.
        scheduler: Called as ``scheduler(optimizer, total_steps)`` and stepped after each optimiser
            step; ``torch.optim.lr_scheduler.CosineAnnealingLR`` fits as it is. Default: none.

    Raises:
        ValueError: ``weight`` is negative, infinite or NaN, ``num_classes`` is less than 2, or
            ``schedule`` or ``target_forward`` is unknown.

    Example:
        >>> aligner = Aligner(nn.Flatten(), nn.Linear(64, 16), nn.Linear(16, 10), num_classes=10)
        >>> aligner(torch.zeros(2, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        backbone: nn.Module,
        bottleneck: nn.Module,
        classifier: nn.Module,
        num_classes: int,
        *,
        loss: nn.Module | None = None,
        weight: float = 1.0,
        schedule: Schedule = "dann",
        target_forward: TargetForward = "joint",
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = adam,
        scheduler: Callable[[torch.optim.Optimizer, int], Any] | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2; got {num_classes!r}")
        if target_forward not in get_args(TargetForward):
            accepted = ", ".join(get_args(TargetForward))
            raise ValueError(f"target_forward must be one of {accepted}; got {target_forward!r}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"weight must be a finite number that is not negative; got {weight!r}")
        alignment_weight(0.0, schedule)  # rejects an unknown schedule now and not at the first step
        # The modules and callables are left out: a checkpoint then holds plain numbers
        # and tensors only.
        self.save_hyperparameters("num_classes", "weight", "schedule", "target_forward")
        self.backbone = backbone
        self.bottleneck = bottleneck
        self.classifier = classifier
        self.loss = MMDLoss() if loss is None else loss
        self.weight = float(weight)
        self.schedule: Schedule = schedule
        self.target_forward: TargetForward = target_forward
        self.optimizer = optimizer
        self.scheduler = scheduler
        names = ["train_source", *(f"{stage}_{d}" for stage in ("val", "test") for d in DOMAINS)]
        self.accuracies = nn.ModuleDict(
            {name: MulticlassAccuracy(num_classes, average="micro") for name in names}
        )
        self._total_steps: int | None = None

    def features(self, inputs: Tensor) -> Tensor:
        """Bottleneck features [n, d] of inputs [n, ...]: what the alignment loss sees."""
        return self.bottleneck(self.backbone(inputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [n, num_classes] of inputs [n, ...]."""
        return self.classifier(self.features(inputs))

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Returns task loss + weight x alignment loss of one batch of both domains, a scalar."""
        inputs, labels = batch["source"]
        source, target = self._domain_features(inputs, batch)
        logits = self.classifier(source)
        task_loss = F.cross_entropy(logits, labels)
        accuracy = self.accuracies["train_source"]
        accuracy(logits, labels)

        total = task_loss
        logged: dict[str, Any] = {"train_task_loss": task_loss, "train_source_accuracy": accuracy}
        if target is not None:
            weight = alignment_weight(self.progress(), self.schedule, self.weight)
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.weight > 0):
                alignment_loss = self.loss(source, target)
            if self.weight > 0:
                total = task_loss + weight * alignment_loss
            logged["train_alignment_loss"] = alignment_loss
            logged["train_alignment_weight"] = weight
        self.log("train_loss", total, prog_bar=True, batch_size=len(labels))
        self.log_dict(logged, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(labels))
        return total

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measures one batch of (inputs, labels); loader 0 is the source, loader 1 the target."""
        self._evaluate("val", batch, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As ``validation_step``, logged under ``test``."""
        self._evaluate("test", batch, dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Logits [n, num_classes] of a batch of inputs, or of a tuple that begins with them."""
        return self(inputs_of(batch))

    def configure_optimizers(self) -> Any:
        """The optimiser and, if there is one, its schedule by steps."""
        optimizer = self.optimizer(self.parameters())
        if self.scheduler is None:
            return optimizer
        scheduler = self.scheduler(optimizer, self._steps())
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def setup(self, stage: str) -> None:
        """Forgets the length of an earlier fit; a resumed one may have another."""
        self._total_steps = None

    def progress(self) -> float:
        """Share of the optimiser steps of this fit that are done, in [0, 1].

        Raises:
            ValueError: The trainer has no end (``max_epochs=-1``) and the schedule is not constant.
        """
        if self.schedule == "constant":
            return 0.0
        return min(self.global_step / self._steps(), 1.0)

    def _steps(self) -> int:
        if self._total_steps is None:
            steps = self.trainer.estimated_stepping_batches
            if not math.isfinite(steps) or steps < 1:
                raise ValueError(
                    "a schedule needs a training with an end: set max_epochs or max_steps of the"
                    f" Trainer (max_epochs={self.trainer.max_epochs},"
                    f" max_steps={self.trainer.max_steps})"
                )
            self._total_steps = int(steps)
        return self._total_steps

    def _domain_features(
        self, source: Tensor, batch: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        if self.target_forward == "none":
            return self.features(source), None
        target = inputs_of(batch["target"])
        if self.target_forward == "separate":
            return self.features(source), self.features(target)
        both = self.features(torch.cat((source, target)))
        return both[: len(source)], both[len(source) :]

    def _evaluate(self, stage: str, batch: Any, dataloader_idx: int) -> None:
        if dataloader_idx >= len(DOMAINS):
            raise ValueError(
                f"{stage} takes a loader for the source and one for the target;"
                f" got one of index {dataloader_idx}"
            )
        if isinstance(batch, Tensor) or len(batch) < 2:
            raise ValueError(f"{stage} needs batches of (inputs, labels); got inputs alone")
        domain = DOMAINS[dataloader_idx]
        inputs, labels = batch[0], batch[1]
        logits = self(inputs)
        accuracy = self.accuracies[f"{stage}_{domain}"]
        accuracy(logits, labels)
        logged: dict[str, Any] = {f"{stage}_{domain}_accuracy": accuracy}
        if domain == "source":
            logged[f"{stage}_source_loss"] = F.cross_entropy(logits, labels)
        self.log_dict(
            logged,
            on_epoch=True,
            prog_bar=True,
            sync_dist=True,
            add_dataloader_idx=False,
            batch_size=len(labels),
        )


def inputs_of(batch: Any) -> Tensor:
    """The inputs of a batch that is either them alone or a sequence that begins with them."""
    return batch if isinstance(batch, Tensor) else batch[0]
