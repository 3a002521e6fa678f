"""What is measured of the tasks of a training: by the batch, and over a loader."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MultilabelAccuracy,
    MultilabelF1Score,
)
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError

from fastmmd.train.evaluation import IGNORED
from fastmmd.train.means import EpochMeans, means_of_all
from fastmmd.train.tasks import ONLY, Task, as_outputs

__all__ = [
    "DOMAINS",
    "LOADERS",
    "DomainMeasures",
    "TaskMeasures",
    "measured_briefly",
    "prefix_of",
]

# Prefixes of what is logged of the first loader and of the second.
LOADERS = ("", "target_")

# The order of an Aligner's loaders.
DOMAINS = ("source", "target")


class TaskMeasures(nn.Module):
    """Losses and metrics of tasks on the loaders of a validation or a test.

    Args:
        tasks: By name.
        losses: Their losses, by name.
    """

    def __init__(self, tasks: Mapping[str, Task], losses: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.tasks = dict(tasks)
        self.losses = dict(losses)  # modules of the one who asks
        self.metrics = nn.ModuleDict(
            {
                loader + name: _task_metrics(task)
                for loader in LOADERS
                for name, task in self.tasks.items()
            }
        )
        self.begin()

    def begin(self) -> None:
        """Forgets what has been measured."""
        self._means = {name: EpochMeans([name]) for name in self.metrics}
        for metric in self.modules():
            if isinstance(metric, Metric):
                metric.reset()

    def add(self, loader: str, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> None:
        """Takes in a batch of a loader, of those tasks of which there are labels."""
        for name, of_task in labels.items():
            loss: Any = self.losses[name]
            value = loss(outputs[name], of_task).detach()
            self._means[loader + name].add({loader + name: value}, loss.share(of_task))
            values = _measured(self.tasks[name], outputs[name], of_task)
            of_loader: Any = self.metrics[loader + name]
            for metric in of_loader.values():
                metric.update(*values)

    def results(self, strategy: Strategy) -> dict[str, Tensor]:
        """The metrics of each task and loader, and the weighted sum of the means of the losses.

        Over the rows of all processes that have a label, of which some may have none; nothing of a
        task without any. All processes must come here.
        """
        means = means_of_all([*self._means.values()], strategy)
        found: dict[str, Tensor] = {}
        for loader in LOADERS:
            tasks = {n: task for n, task in self.tasks.items() if loader + n in means}
            if tasks:
                terms = [task.weight * means[loader + name] for name, task in tasks.items()]
                found[f"{loader}loss"] = torch.stack(terms).sum()
            for name in tasks:
                of_loader: Any = self.metrics[loader + name]
                for measure, metric in of_loader.items():
                    with warnings.catch_warnings():  # of a process that has no row
                        warnings.filterwarnings("ignore", "The ``compute`` method of metric")
                        found[f"{loader}{prefix_of(name)}{measure}"] = metric.compute()
        return found


class DomainMeasures:
    """The loss on the source and the accuracies on both domains, of a validation or a test."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forgets what has been measured."""
        names = ("source_loss", *(f"{domain}_accuracy" for domain in DOMAINS))
        self._means = {name: EpochMeans([name]) for name in names}

    def add(self, domain: str, logits: Tensor, labels: Tensor, loss: Tensor | None) -> None:
        """Takes in a batch of a domain: logits [n, C], labels [n], -100 where one is not known."""
        if loss is not None:
            self._means[f"{domain}_loss"].add({f"{domain}_loss": loss.detach()}, len(labels))
        name = f"{domain}_accuracy"
        accuracy, count = _accuracy(logits.detach(), labels)
        self._means[name].add({name: accuracy}, count)

    def results(self, strategy: Strategy) -> dict[str, Tensor]:
        """Over the samples of all processes that have a label; nothing of a domain without any.

        All processes must come here.
        """
        return means_of_all([*self._means.values()], strategy)


def prefix_of(task: str) -> str:
    """What stands before the names of what is logged of a task: nothing for a single one."""
    return "" if task == ONLY else f"{task}_"


def _task_metrics(task: Task) -> nn.ModuleDict:
    """What is measured of a task, by name."""
    size = task.num_outputs
    found: dict[str, Metric]
    if task.kind == "classification":
        found = {
            "accuracy": MulticlassAccuracy(size, average="micro", ignore_index=IGNORED),
            "f1": MulticlassF1Score(size, average="macro", ignore_index=IGNORED),
        }
    elif task.kind == "multilabel":
        found = {
            "accuracy": MultilabelAccuracy(size, average="micro"),
            "f1": MultilabelF1Score(size, average="macro"),
        }
    else:
        found = {"mae": MeanAbsoluteError(), "rmse": MeanSquaredError(squared=False)}
    return nn.ModuleDict(dict(found))


def _measured(task: Task, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and labels as those metrics take them."""
    outputs = outputs.detach()
    if task.kind == "classification":
        return outputs, labels
    if task.kind == "multilabel":
        return outputs.sigmoid(), labels.long()
    return outputs, as_outputs(labels, outputs)


def _accuracy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of a batch, the share of the rows with a label that are right, and their number."""
    count = (labels != IGNORED).sum()
    right = logits.argmax(dim=1) == labels  # which IGNORED is never
    return right.sum() / count.clamp(min=1), count


def measured_briefly(task: Task, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | int]:
    """The first metric, of a batch alone: what a step of a training can afford.

    And the number of rows that have a label.
    """
    outputs = outputs.detach()
    if task.kind == "classification":
        return _accuracy(outputs, labels)
    if task.kind == "multilabel":
        return ((outputs > 0) == (labels > 0)).float().mean(), len(outputs)
    return (outputs - as_outputs(labels, outputs)).abs().mean(), len(outputs)
