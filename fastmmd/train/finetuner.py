"""The LightningModule of fine-tuning: a pretrained backbone and new heads on top."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastmmd.train.backbones import (
    Pooling,
    feature_width,
    load_backbone,
    pooled,
    remove_last_layer,
)
from fastmmd.train.balance import training_labels
from fastmmd.train.batches import Inputs, inputs_of, labelled, row_count
from fastmmd.train.distillation import L2SP, Distillation, teacher_names
from fastmmd.train.freezing import Stages
from fastmmd.train.means import AGREED, EpochMeans, means_of_all
from fastmmd.train.measures import LOADERS, TaskMeasures, measured_briefly, prefix_of
from fastmmd.train.module import TransferModule
from fastmmd.train.optimizers import (
    OPTIMIZERS,
    SCHEDULES,
    make_optimizer,
    make_scheduler,
    total_steps,
)
from fastmmd.train.tasks import ONLY, Task, TaskLoss, as_tasks

__all__ = ["FineTuner"]


class FineTuner(TransferModule):
    r"""Trains a pretrained backbone, or part of it, with new heads.

    The objective of a step is

    .. math:: \sum_t \lambda_t \left[ (1 - \mu) \, \ell_t(h_t(f(x)), y_t)
              + \mu \, \text{distillation}_t \right] + \text{L2-SP},

    with f the backbone, h_t and ℓ_t head and loss of a task and λ_t its weight; μ is the weight of
    ``distillation``. With ``num_classes`` there is one task, cross-entropy over classes, of weight
    1. Several tasks share the backbone (Caruana, "Multitask Learning", Machine Learning 28, 1997).

    A batch is ``(inputs, labels)``. Inputs are a tensor or, for transformers, a mapping of tensors;
    labels of several tasks are a mapping by task, from which a task may be missing. A batch of two
    domains, ``{"source": (inputs, labels), "target": ...}``, is read as its source. Validation and
    test take one loader of such pairs, and a second one for a target domain.

    Logged: ``train_loss`` by steps, as often as the trainer logs, and over each epoch
    ``train_task_loss``, ``train_accuracy``, ``train_l2_sp`` and ``train_distillation_loss``;
    ``val_loss`` (without L2-SP and distillation), ``val_accuracy`` and ``val_f1`` (macro), of a
    second loader ``val_target_loss`` and so on, and the same for ``test``. With several tasks the
    name of the task stands before that of the metric, ``val_colour_accuracy``; numbers have ``mae``
    and ``rmse``.

    Args:
        backbone: Maps inputs to features, as :class:`~fastmmd.train.Pooled` takes it; or a name for
            :func:`~fastmmd.train.load_backbone`.
        num_classes: Number of classes C of a single task.
        tasks: Several tasks, by name, in place of it.
        head: Maps features [n, d] to logits [n, C]. Default: one linear layer.
        in_features: Width d of the features. Default: that of the replaced layer, of the trial
            pass, or what the network states.
        replace: Name of the backbone's last layer, which becomes ``nn.Identity`` (``"fc"``).
        example_inputs: Inputs for a trial pass that shows the width.
        pooling: ``"mean"`` or ``"cls"``: how tokens become one row.
        pretrained: Of a backbone by name: with its weights.
        stages: Names of the backbone's submodules that make its stages, see
            :class:`~fastmmd.train.Stages`.
        freeze: What never trains: the first k stages, ``"all"`` for a linear probe, or names of
            stages. Their batch normalisation stays in eval mode.
        layer_decay: The i-th of K stages from the input learns at ``lr`` x layer_decay^(K - i),
            i from 0; the heads at ``lr``.
        optimizer: ``"sgd"``, ``"adam"``, ``"rmsprop"``, ``"adamw"``, or what is called with the
            parameter groups, each of which has its ``lr``.
        lr: Learning rate of the heads.
        weight_decay: Default: the optimiser's own, and 0 beside ``l2_sp``.
        optimizer_options: Further arguments of the optimiser, such as ``{"momentum": 0.9}``.
        scheduler: ``"constant"``, ``"linear"`` or ``"cosine"`` down to 0 over the training, or what
            is called as ``scheduler(optimizer, total_steps)``; stepped after each optimiser step.
        warmup: Share of the steps over which a named schedule rises first; 0 for any other.
        class_weights: Of a single task, as :class:`~fastmmd.train.Task` has them.
        loss: Of a single task, called as ``loss(logits, labels)``.
        l2_sp: Pull to the weights that the backbone has now.
        distillation: A teacher of the tasks.
        all_classes: As for :class:`~fastmmd.train.Aligner`, of each task of classes of which there
            are labels.

    Raises:
        ValueError: An argument is out of range or unknown, both or none of ``num_classes`` and
            ``tasks`` are given, or the width of the features is not known. In training: a batch
            without labels, labels that do not fit a task, or a class that no batch of the first
            whole epoch holds.
        MissingExtraError: The library of a named backbone is missing.

    Example:
        >>> tuner = FineTuner(nn.Sequential(nn.Flatten(), nn.Linear(64, 16)), 10, in_features=16)
        >>> tuner(torch.zeros(2, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        backbone: nn.Module | str,
        num_classes: int | None = None,
        *,
        tasks: Mapping[str, Task] | None = None,
        head: nn.Module | None = None,
        in_features: int | None = None,
        replace: str | None = None,
        example_inputs: Any = None,
        pooling: Pooling = "mean",
        pretrained: bool = True,
        stages: Sequence[str | Sequence[str]] | None = None,
        freeze: int | Literal["all"] | Sequence[str] = 0,
        layer_decay: float = 1.0,
        optimizer: str | Callable[..., Optimizer] = "adamw",
        lr: float = 1e-3,
        weight_decay: float | None = None,
        optimizer_options: Mapping[str, Any] | None = None,
        scheduler: str | Callable[[Optimizer, int], Any] | None = None,
        warmup: float = 0.0,
        class_weights: Sequence[float] | Tensor | Literal["balanced"] | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        l2_sp: L2SP | None = None,
        distillation: Distillation | None = None,
        all_classes: bool = True,
    ) -> None:
        super().__init__(all_classes, ignored=True)
        _check(optimizer, OPTIMIZERS, "optimizer")
        _check(scheduler, SCHEDULES, "scheduler")
        _check(pooling, get_args(Pooling), "pooling")
        _within("lr", lr, 0, math.inf)
        _within("layer_decay", layer_decay, 0, 1)
        if weight_decay is not None:
            _within("weight_decay", weight_decay, 0, math.inf, low_too=True)
        _within("warmup", warmup, 0, 1, low_too=True)
        if warmup and not isinstance(scheduler, str):
            raise ValueError(
                f"warmup is that of a named schedule ({', '.join(SCHEDULES)}); got {warmup!r} and"
                f" scheduler={scheduler!r}"
            )
        single = {"head": head, "class_weights": class_weights, "loss": loss}
        self.tasks = as_tasks(num_classes, tasks, single)
        # Plain numbers and names only, so that a checkpoint loads with weights_only=True.
        plain = ["num_classes", "pooling", "layer_decay", "lr", "weight_decay", "warmup"]
        plain += ["scheduler"] if isinstance(scheduler, str) else []
        self.save_hyperparameters(*plain, "all_classes")
        if isinstance(backbone, str):
            backbone = load_backbone(backbone, pretrained=pretrained)
        if replace is not None:
            in_features = remove_last_layer(backbone, replace)
        if in_features is None and any(task.head is None for task in self.tasks.values()):
            in_features = feature_width(backbone, example_inputs, pooling)
        self.backbone = backbone
        self.heads = nn.ModuleDict(
            {
                name: task.head or nn.Linear(in_features or 0, task.num_outputs)
                for name, task in self.tasks.items()
            }
        )
        self.losses = nn.ModuleDict({name: TaskLoss(task) for name, task in self.tasks.items()})
        self.pooling: Pooling = pooling
        self.stages = Stages(backbone, stages)
        self.always_frozen = self.stages.numbers(freeze)
        self.layer_decay = layer_decay
        self.optimizer = optimizer
        self.lr = lr
        self.weight_decay = 0.0 if weight_decay is None and l2_sp is not None else weight_decay
        self.optimizer_options = dict(optimizer_options or {})
        self.scheduler = scheduler
        self.warmup = warmup
        self.l2_sp = l2_sp
        if l2_sp is not None:
            l2_sp.start(backbone)
        self.distillation = distillation
        self.measures = TaskMeasures(self.tasks, dict(self.losses.items()))
        # What a step reports; the names are the same in all processes, whatever tasks their batches
        # have labels of.
        self._reported = {("l2_sp", ""): "train_l2_sp"}
        for name, task in self.tasks.items():
            prefix = f"train_{prefix_of(name)}"
            self._reported["soft", name] = f"{prefix}distillation_loss"
            measure = "mae" if task.kind == "regression" else "accuracy"
            self._reported["hard", name] = f"{prefix}task_loss"
            self._reported["measure", name] = prefix + measure
        self._counted = 0  # the loader whose labels have been counted, by its id
        self._begin_training_means()
        self.set_frozen(self.always_frozen)
        self.train()  # pretrained networks come in eval mode, and Lightning leaves the mode alone

    def features(self, inputs: Inputs) -> Tensor:
        """Features [n, d] of inputs."""
        return pooled(self.backbone, inputs, self.pooling)

    def forward(self, inputs: Inputs) -> Any:
        """Logits [n, C] of inputs; a mapping of tasks to outputs if there are several."""
        return self.from_features(self.features(inputs))

    def from_features(self, features: Tensor) -> Any:
        """What ``forward`` gives of inputs that have these features [n, d]."""
        outputs = self._of_tasks(features)
        return outputs[ONLY] if self._is_single() else outputs

    def set_frozen(self, stages: set[int]) -> None:
        """Makes these stages of the backbone, by number from 0, constant and all others train."""
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(self.stages.of(name) not in stages)
        self.frozen = set(stages)
        self.train(self.training)

    def train(self, mode: bool = True) -> FineTuner:
        """As of any module, but batch normalisation of frozen stages stays in eval mode."""
        super().train(mode)
        for norm in self.stages.batch_norms(self.frozen):
            norm.eval()
        return self

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Returns the objective of a batch, a scalar."""
        inputs, labels = labelled(batch)
        outputs = self._of_tasks(self.features(inputs))
        soft = {} if self.distillation is None else self.distillation(inputs, outputs)
        mixing = 0.0 if self.distillation is None else self.distillation.weight
        if labels is None and mixing < 1.0:
            raise ValueError("train needs batches of (inputs, labels); got inputs alone")
        count = row_count(inputs)
        terms: list[Tensor] = []
        for name, task in self.tasks.items():
            if name in soft:
                terms.append(task.weight * mixing * soft[name])
                self._report("soft", name, soft[name], count)
            share = 1.0 - mixing if name in soft else 1.0
            of_task = self._labels(labels, name)
            if of_task is None or share == 0.0:
                continue
            loss: Any = self.losses[name]
            hard = loss(outputs[name], of_task)
            if task.kind == "classification":
                self._saw(of_task, self._task_name(name))
            terms.append(task.weight * share * hard)
            measure, with_label = measured_briefly(task, outputs[name], of_task)
            self._report("hard", name, hard, loss.share(of_task))
            self._report("measure", name, measure, with_label)
        if not terms:
            raise ValueError(f"a batch has labels of none of the tasks {', '.join(self.tasks)}")
        objective = torch.stack(terms).sum() if len(terms) > 1 else terms[0]
        if self.l2_sp is not None:
            penalty = self.l2_sp(self.backbone, self.heads.parameters())
            self._report("l2_sp", "", penalty, count)
            objective = objective + penalty
        self._log_step(objective, batch_idx)
        return objective

    def source_only_loss(self, batch: Any) -> Tensor:
        """The objective without L2-SP and distillation, a scalar: what a twin descends.

        Raises:
            ValueError: As in training.
        """
        self._count_labels()
        inputs, labels = labelled(batch)
        outputs = self._of_tasks(self.features(inputs))
        terms = [
            task.weight * self.losses[name](outputs[name], of_task)
            for name, task in self.tasks.items()
            if (of_task := self._labels(labels, name)) is not None
        ]
        if not terms:
            raise ValueError(f"a batch has labels of none of the tasks {', '.join(self.tasks)}")
        return torch.stack(terms).sum()

    def class_counts(self) -> dict[str, int]:
        """Numbers of classes by task, of those that have classes."""
        tasks = self.tasks.items()
        return {self._task_name(n): t.num_outputs for n, t in tasks if t.kind == "classification"}

    def on_train_epoch_start(self) -> None:
        """Begins the means of the epoch.

        Raises:
            ValueError: No batch of the first whole epoch held a sample of some class.
        """
        super().on_train_epoch_start()
        self._begin_training_means()

    def on_train_epoch_end(self) -> None:
        """Logs them, over the samples of all processes."""
        super().on_train_epoch_end()
        self.log_dict(means_of_all([*self._means.values()], self.trainer.strategy), **AGREED)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """What ``forward`` makes of a batch of inputs, or of a tuple that begins with them."""
        return self(inputs_of(batch))

    def on_train_start(self) -> None:
        """Counts the labels where class weights are to be balanced."""
        super().on_train_start()
        self._count_labels()

    def configure_optimizers(self) -> Any:
        """An optimiser of one group for the heads and one per stage, and its schedule by steps."""
        depth = len(self.stages)
        heads: dict[str, Any] = {
            "params": list(self.heads.parameters()),
            "lr": self.lr,
            "name": "heads",
        }
        groups = [heads] + [
            {
                "params": self.stages.parameters(i),
                "lr": self.lr * self.layer_decay ** (depth - i),
                "name": self.stages.names[i],
            }
            for i in range(depth)
        ]
        for group in groups:
            group["params"] = [p for p in group["params"] if p.requires_grad]
            if self.weight_decay is not None:
                group["weight_decay"] = self.weight_decay
        groups = [group for group in groups if group["params"]]
        optimizer = make_optimizer(self.optimizer, groups, self.optimizer_options)
        if self.scheduler is None:
            return optimizer
        steps = total_steps(self.trainer)
        scheduler = make_scheduler(self.scheduler, optimizer, steps, self.warmup)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves the teacher out."""
        super().on_save_checkpoint(checkpoint)
        for name in teacher_names(self):
            checkpoint["state_dict"].pop(name, None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the teacher that is there."""
        own = self.state_dict()
        checkpoint["state_dict"] |= {name: own[name] for name in teacher_names(self)}

    def _report(self, what: str, task: str, value: Tensor, samples: Tensor | int) -> None:
        self._means[what, task].add({self._reported[what, task]: value.detach()}, samples)

    def _count_labels(self) -> None:
        """Counts the labels of the trainer's loader, once, where class weights are balanced."""
        if not any(loss.counted for loss in self.losses.values()):
            return
        loader = self.trainer.train_dataloader
        if self._counted == id(loader):
            return
        labels = training_labels(loader)
        for name, loss in self.losses.items():
            of_task = self._labels(labels, name)
            if of_task is not None:
                loss.count(of_task)  # type: ignore[operator]
        self._counted = id(loader)

    def _begin_training_means(self) -> None:
        self._means = {key: EpochMeans([name]) for key, name in self._reported.items()}

    def _is_single(self) -> bool:
        return ONLY in self.tasks

    def _task_name(self, task: str) -> str:
        return "" if self._is_single() else task

    def _labels(self, labels: Any, task: str) -> Tensor | None:
        if not self._is_single() and not isinstance(labels, Mapping) and labels is not None:
            raise ValueError("labels of several tasks must be a mapping of tasks to tensors")
        return labels.get(task) if isinstance(labels, Mapping) else labels

    def _of_tasks(self, features: Tensor) -> dict[str, Tensor]:
        return {name: head(features) for name, head in self.heads.items()}

    def _evaluate(self, stage: str, batch: Any, dataloader_idx: int) -> None:
        if dataloader_idx >= len(LOADERS):
            raise ValueError(
                f"{stage} takes one loader, and one of a target domain; got one of index"
                f" {dataloader_idx}"
            )
        inputs, labels = labelled(batch)
        if labels is None:
            raise ValueError(f"{stage} needs batches of (inputs, labels); got inputs alone")
        by_task = {name: self._labels(labels, name) for name in self.tasks}
        known = {name: of_task for name, of_task in by_task.items() if of_task is not None}
        self.measures.add(LOADERS[dataloader_idx], self._of_tasks(self.features(inputs)), known)


def _check(value: Any, known: Iterable[str], name: str) -> None:
    if isinstance(value, str) and value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")


def _within(name: str, value: float, low: float, high: float, *, low_too: bool = False) -> None:
    if not (low < value <= high or (low_too and value == low)) or math.isinf(value):
        bounds = f"{'[' if low_too else '('}{low}, {high}{')' if math.isinf(high) else ']'}"
        raise ValueError(f"{name} must lie in {bounds}; got {value!r}")
