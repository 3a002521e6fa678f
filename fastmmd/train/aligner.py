"""The LightningModule of domain alignment: task loss on the source + weight x discrepancy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from fastmmd.train.alignments import Activations, as_alignment, total
from fastmmd.train.batches import (
    Inputs,
    TrainingBatch,
    inputs_of,
    joined,
    read_batch,
    row_count,
)
from fastmmd.train.distributed import global_discrepancy, global_mean
from fastmmd.train.gradients import scale_gradients
from fastmmd.train.layers import check_layers, kept_outputs, rows_of
from fastmmd.train.means import AGREED, EpochMeans, means_of_all
from fastmmd.train.measures import DOMAINS, DomainMeasures
from fastmmd.train.module import TransferModule
from fastmmd.train.optimizers import total_steps
from fastmmd.train.schedule import Schedule, alignment_weight
from fastmmd.train.tasks import check_classes

__all__ = ["Aligner", "TargetForward"]

TargetForward = Literal["joint", "separate", "none"]

LABELLED_LOSS = "train_target_labelled_loss"
NEVER = torch.iinfo(torch.int64).min  # a label that no sample has


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The default optimiser: AdamW at a learning rate of 1e-3."""
    return torch.optim.AdamW(parameters, lr=1e-3)


class Aligner(TransferModule):
    r"""Trains a classifier on a labelled source, with features that look alike on the target.

    The objective of a step is

    .. math:: \text{CE}(c(f(x_s)), y_s) + w(p) \, D(f(x_s), f(x_t)),

    with f = bottleneck of backbone, c the classifier, D the discrepancy, an MMD^2 by default, and p
    the share of the optimiser steps that are done; w is :func:`~fastmmd.train.alignment_weight`.
    The weight is that of the gradient which reaches the network; what the discrepancy itself
    learns, such as a discriminator, it learns at the full rate.

    A training batch is ``{"source": (inputs, labels), "target": inputs}``, as
    :class:`~fastmmd.train.DomainPair` makes it; a target batch may also be a tuple, of which only
    the first entry is read, so target labels cannot leak into training. Inputs are a tensor or a
    mapping of tensors, such as transformers tokenisers make, which the backbone is called with.
    Of several sources, ``"source"`` is a list of pairs: cross-entropy and discrepancy to the target
    are weighted means over the sources. An entry ``"target_labelled": (inputs, labels)`` adds its
    cross-entropy. Validation and test take one loader of ``(inputs, labels)`` for the source and,
    if there are labels to measure with, a second one for the target, in which a label of -100 says
    that it is not known.

    Logged: ``train_loss``, by steps, and over each epoch ``train_task_loss``,
    ``train_alignment_loss``, ``train_alignment_weight``, ``train_source_accuracy``, with labelled
    targets ``train_target_labelled_loss``, and, for ``val`` and ``test``, ``val_source_loss``,
    ``val_source_accuracy`` and, if a target label is known, ``val_target_accuracy``. Choose
    checkpoints by a source metric: ``val_target_accuracy`` is made with target labels.

    Args:
        backbone: Maps inputs to something that the bottleneck takes.
        bottleneck: Maps that to the features [n, d] that are aligned.
        classifier: Maps features [n, d] to logits [n, num_classes].
        num_classes: Number of classes.
        alignment: The discrepancy: a name, ``"ddc"`` (default), ``"dan"``, ``"jan"``, ``"dsan"``,
            ``"can"``, ``"coral"``, ``"energy"``, ``"random_features"``, ``"dann"`` or ``"cdan"``;
            an :class:`~fastmmd.train.Alignment`; or any module called as ``loss(x, y)`` with the
            features [n, d] of the source and [m, d] of the target, of which the sum over the
            aligned layers is taken.
        loss: The same as ``alignment``, for a module.
        layers: Names of further modules whose outputs are aligned, such as ``"backbone.4"``, beside
            the features; outputs of more than two dimensions are flattened to [n, d].
        source_weights: Weights of several sources, divided by their sum. Default: equal ones.
        target_label_weight: Weight of the cross-entropy of labelled target samples.
        weight: Maximum of the weight of the discrepancy. 0 leaves the joint forward pass alone to
            adapt the batch normalisation; it is then logged, but has no gradient, and what it alone
            could learn stays as it is.
        schedule: A name that :func:`~fastmmd.train.alignment_weight` knows, ``"dann"`` by default
            (0 at the first step, rising), or a function of p.
        target_forward: ``"joint"`` (default): all domains pass through the network as one batch, so
            batch normalisation sees them at once; their inputs must have one shape. ``"separate"``:
            one pass per domain, each normalised by its own batch statistics. ``"none"``: the
            unlabelled target is not looked at, which is the source-only baseline.
        global_batch: Whether the losses are those of the batch of all processes together, exactly,
            see :func:`~fastmmd.train.global_discrepancy`. Otherwise each process has its own, and
            the gradients are averaged.
        all_classes: Whether a class without a sample is an error: before the training where the
            data module tells its labels, otherwise after the first whole epoch, whose checkpoint
            has been made then.
        optimizer: Called with the parameters. Default AdamW at a learning rate of 1e-3.
        scheduler: Called as ``scheduler(optimizer, total_steps)`` and stepped after each optimiser
            step; ``torch.optim.lr_scheduler.CosineAnnealingLR`` fits as it is. Default: none.

    Raises:
        ValueError: A weight is negative, infinite or NaN, ``num_classes`` is less than 2, an
            alignment, schedule, ``target_forward`` or layer is unknown, or both ``alignment`` and
            ``loss`` are given. In training: a batch without labels, an empty one, a domain whose
            loader has ended, labels that do not fit ``num_classes``, or a class that no batch of
            the first whole epoch holds.
        TypeError: An alignment that is none, or a layer whose output is no tensor.

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
        alignment: str | nn.Module | None = None,
        loss: nn.Module | None = None,
        layers: Sequence[str] = (),
        source_weights: Sequence[float] | None = None,
        target_label_weight: float = 1.0,
        weight: float = 1.0,
        schedule: Schedule | Callable[[float], float] = "dann",
        target_forward: TargetForward = "joint",
        global_batch: bool = False,
        all_classes: bool = True,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = adam,
        scheduler: Callable[[torch.optim.Optimizer, int], LRScheduler] | None = None,
    ) -> None:
        super().__init__(all_classes, ignored=False)
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2; got {num_classes!r}")
        if target_forward not in get_args(TargetForward):
            accepted = ", ".join(get_args(TargetForward))
            raise ValueError(f"target_forward must be one of {accepted}; got {target_forward!r}")
        weights = {"weight": weight, "target_label_weight": target_label_weight}
        for name, value in weights.items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(
                    f"{name} must be a finite number that is not negative; got {value!r}"
                )
        if alignment is not None and loss is not None:
            raise ValueError("alignment and loss are the same thing: give one of them")
        alignment_weight(0.0, schedule)  # rejects an unknown schedule now and not at the first step
        # Modules and callables are left out: a checkpoint then holds plain numbers and tensors.
        plain = {
            "num_classes": num_classes,
            "alignment": alignment,
            "layers": list(layers),
            "source_weights": None if source_weights is None else list(source_weights),
            "target_label_weight": target_label_weight,
            "weight": weight,
            "schedule": schedule,
            "target_forward": target_forward,
            "global_batch": global_batch,
            "all_classes": all_classes,
        }
        self.save_hyperparameters(
            {k: v for k, v in plain.items() if not isinstance(v, nn.Module) and not callable(v)}
        )
        self.backbone = backbone
        self.bottleneck = bottleneck
        self.classifier = classifier
        self.alignment = as_alignment(alignment if loss is None else loss, classifier, num_classes)
        self.num_classes = num_classes
        self.layers = check_layers(self, layers)
        self.source_weights = _checked_source_weights(source_weights)
        self.target_label_weight = float(target_label_weight)
        self.weight = float(weight)
        self.schedule = schedule
        self.target_forward: TargetForward = target_forward
        self.global_batch = global_batch
        self.optimizer = optimizer
        self.scheduler = scheduler
        self._total_steps: int | None = None
        self._withheld: list[nn.Parameter] = []
        self._begin_training_means()
        self.measures = DomainMeasures()

    def features(self, inputs: Inputs) -> Tensor:
        """Bottleneck features [n, d] of n inputs: what the classifier sees and is aligned."""
        return self.bottleneck(self.backbone(inputs))

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits [n, num_classes] of n inputs."""
        return self.from_features(self.features(inputs))

    def from_features(self, features: Tensor) -> Tensor:
        """Logits [n, num_classes] of inputs that have these features [n, d]."""
        return self.classifier(features)

    def layer_features(self, inputs: Inputs) -> dict[str, Tensor]:
        """The layers that are aligned, each [n, d_l], then ``"features"``, then ``"logits"``.

        Raises:
            TypeError: The output of a layer is no tensor.
            ValueError: A layer is not used by the network or has not one row for each sample, or
                the features are not [n, d].
        """
        with kept_outputs(self, self.layers) as found:
            features = self.features(inputs)
            logits = self.classifier(features)
        layers = rows_of(found, self.layers, len(logits))
        for name, output in (("features", features), ("logits", logits)):
            if output.ndim != 2:
                raise ValueError(f"{name} must be of shape [n, d], got {list(output.shape)}")
        return {**layers, "features": features, "logits": logits}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Returns task loss + weight x alignment loss of one batch of all domains, a scalar."""
        parts = read_batch(batch, target=self.target_forward != "none")
        *sources, target, labelled = self._activations(parts)
        objective, losses = self._supervised(sources, labelled)
        for part in (*sources, *filter(None, [labelled])):
            self._saw(part.labels)
        samples = sum(map(len, sources))
        if labelled is not None:
            self._labelled_means.add({LABELLED_LOSS: losses.pop(LABELLED_LOSS)}, samples)
        logged = {**losses, "train_source_accuracy": _accuracy(sources)}
        if target is not None:
            weight = alignment_weight(self.progress(), self.schedule, self.weight)
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.weight > 0):
                alignment_loss = self._discrepancy(sources, target, weight)
            if self.weight > 0:
                # The gradient has its weight already, the value has not.
                rest = (weight - 1) * alignment_loss.detach()
                objective = objective + (alignment_loss + rest)
            logged["train_alignment_loss"] = alignment_loss.detach()
            logged["train_alignment_weight"] = weight
        self.means.add(logged, samples)
        self._log_step(objective, batch_idx)
        return objective

    def source_only_loss(self, batch: Any) -> Tensor:
        """The objective that ``target_forward="none"`` has of a training batch, a scalar.

        Raises:
            ValueError: As in training.
        """
        *sources, _, labelled = self._activations(read_batch(batch, target=False))
        return self._supervised(sources, labelled)[0]

    def class_counts(self) -> dict[str, int]:
        """The number of classes."""
        return {"": self.num_classes}

    def on_train_epoch_start(self) -> None:
        """Begins the means of the epoch.

        Raises:
            ValueError: No batch of the first whole epoch held a sample of some class.
        """
        super().on_train_epoch_start()
        self._begin_training_means()

    def on_train_epoch_end(self) -> None:
        """Logs the means of the epoch, over the samples of all processes."""
        super().on_train_epoch_end()
        means = means_of_all([self.means, self._labelled_means], self.trainer.strategy)
        self.log_dict(means, **AGREED)

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
        """Checks the labels that are known, and forgets the length of an earlier fit.

        Raises:
            ValueError: A label of the source is no class, or a class has no sample.
        """
        super().setup(stage)
        self._total_steps = None
        if stage == "fit" and (self.weight == 0 or self.target_forward == "none"):
            # With several processes torch waits for a gradient of each parameter that may have one
            # when it wraps the module. Each has one name: that of the network if it is there, too.
            self._withheld = [
                parameter
                for name, parameter in self.named_parameters()
                if name.startswith("alignment.") and parameter.requires_grad
            ]
            for parameter in self._withheld:
                parameter.requires_grad_(False)

    def on_fit_start(self) -> None:
        """Gives back what was frozen for the wrapping alone: another training may share it."""
        for parameter in self._withheld:
            parameter.requires_grad_(True)
        self._withheld = []

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
            self._total_steps = total_steps(self.trainer)
        return self._total_steps

    def _activations(self, batch: TrainingBatch) -> list[Any]:
        """Activations of each source, of the target and of labelled targets, or None."""
        labels: list[Tensor | None] = [labels for _, labels in batch.sources]
        inputs: list[Inputs | None] = [inputs for inputs, _ in batch.sources]
        labels += [None, None if batch.labelled is None else batch.labelled[1]]
        inputs += [batch.target, None if batch.labelled is None else batch.labelled[0]]
        given = [part for part in inputs if part is not None]
        if self.target_forward == "joint" and batch.target is not None:
            sizes = [row_count(part) for part in given]
            both = self.layer_features(joined(given))
            split = {name: t.split(sizes) for name, t in both.items()}
            outputs = [{name: t[i] for name, t in split.items()} for i in range(len(sizes))]
        else:
            outputs = [self.layer_features(part) for part in given]
        found = iter(outputs)
        activations: list[Any] = []
        for part, of_part in zip(inputs, labels, strict=True):
            if part is None:
                activations.append(None)
                continue
            layers = dict(next(found))
            activations.append(Activations(layers, layers.pop("logits"), of_part))
        return activations

    def _supervised(
        self, sources: Sequence[Activations], labelled: Activations | None
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The objective without the alignment, and the losses that it is made of."""
        losses = [self._cross_entropy(source) for source in sources]
        task_loss = _mean(losses, self._weights_of(sources))
        if labelled is None:
            return task_loss, {"train_task_loss": task_loss.detach()}
        labelled_loss = self._cross_entropy(labelled)
        return task_loss + self.target_label_weight * labelled_loss, {
            "train_task_loss": task_loss.detach(),
            LABELLED_LOSS: labelled_loss.detach(),
        }

    def _discrepancy(
        self, sources: Sequence[Activations], target: Activations, weight: float
    ) -> Tensor:
        discrepancy = global_discrepancy if self.global_batch else _own_discrepancy
        sides = [*sources, target]
        scaled = iter(scale_gradients([t for side in sides for t in side.tensors()], weight))
        *sources, target = (
            side.replace(list(islice(scaled, len(side.tensors()))), side.labels) for side in sides
        )
        values = [discrepancy(self.alignment, s, target) for s in sources]
        return _mean(values, self._weights_of(sources))

    def _cross_entropy(self, of: Activations) -> Tensor:
        assert of.labels is not None
        if self.global_batch:
            return global_mean(_cross_entropy(of.logits, of.labels, "none"))
        return _cross_entropy(of.logits, of.labels)

    def _weights_of(self, sources: Sequence[Activations]) -> list[float]:
        weights = self.source_weights or [1 / len(sources)] * len(sources)
        if len(weights) != len(sources):
            raise ValueError(
                f"source_weights must hold one for each source, got {len(weights)} and a batch of"
                f" {len(sources)} sources"
            )
        return weights

    def _evaluate(self, stage: str, batch: Any, dataloader_idx: int) -> None:
        if dataloader_idx >= len(DOMAINS):
            raise ValueError(
                f"{stage} takes a loader for the source and one for the target;"
                f" got one of index {dataloader_idx}"
            )
        if isinstance(batch, Tensor | Mapping) or len(batch) < 2:
            raise ValueError(f"{stage} needs batches of (inputs, labels); got inputs alone")
        domain = DOMAINS[dataloader_idx]
        inputs, labels = batch[0], batch[1]
        logits = self(inputs)
        check_classes(labels, self.num_classes)
        loss = _cross_entropy(logits, labels) if domain == "source" else None
        self.measures.add(domain, logits, labels, loss)

    def _begin_training_means(self) -> None:
        # The names are the same in all processes, also in one that has no step.
        names = ["train_task_loss", "train_source_accuracy"]
        if self.target_forward != "none":
            names += ["train_alignment_loss", "train_alignment_weight"]
        self.means = EpochMeans(names)
        self._labelled_means = EpochMeans([LABELLED_LOSS])


def _cross_entropy(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    try:
        # No label is left out: of a source each has to be a class.
        return F.cross_entropy(logits, labels, reduction=reduction, ignore_index=NEVER)
    except IndexError as error:  # on a GPU it is an assertion of the device
        raise ValueError(
            f"labels must be classes from 0 to {logits.shape[1] - 1}, got values from"
            f" {int(labels.min())} to {int(labels.max())}"
        ) from error


def _own_discrepancy(alignment: Any, source: Activations, target: Activations) -> Tensor:
    value: Tensor = alignment(source, target)
    return value


def _mean(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    if len(values) == 1:
        return values[0]
    return total(w * value for w, value in zip(weights, values, strict=True))


def _accuracy(sources: Sequence[Activations]) -> Tensor:
    """The share of all samples whose largest logit is that of their label."""
    right = [(s.logits.detach().argmax(1) == s.labels).sum() for s in sources]  # type: ignore
    return total(right) / sum(map(len, sources))


def _checked_source_weights(weights: Sequence[float] | None) -> list[float] | None:
    if weights is None:
        return None
    values = [float(w) for w in weights]
    if not values or not all(math.isfinite(w) and w >= 0 for w in values) or not sum(values):
        raise ValueError(
            "source_weights must be finite and not negative, with a positive sum; got"
            f" {list(weights)!r}"
        )
    return [w / sum(values) for w in values]
