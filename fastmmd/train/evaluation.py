"""What a trained module says of a data set, collected once for all that measures it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from fastmmd.train.layers import check_layers, kept_outputs, rows_of

__all__ = ["IGNORED", "Outputs", "collect", "evaluating", "inputs_and_labels", "labels_of_task"]

IGNORED = -100  # the label of a sample without one, as torch's cross-entropy has it


@dataclass(frozen=True, eq=False)
class Outputs:
    """Features, logits and, where they are known, labels of n samples, on the CPU.

    Args:
        features: [n, d], floating.
        logits: [n, C], floating, C at least 2.
        labels: [n], whole numbers in [0, C), -100 of a sample whose label is not known; or None.
        layers: Further activations [n, d_l] by the name of their module.

    Raises:
        ValueError: No samples, another rank, numbers of samples that differ, fewer than two
            classes, or another label.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor | None = None
    layers: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        matrices = {"features": self.features, "logits": self.logits, **self.layers}
        for name, value in matrices.items():
            if value.ndim != 2 or not len(value):
                raise ValueError(f"{name} must be of shape [n, d] with n > 0; got {_shape(value)}")
            if len(value) != len(self.logits):
                raise ValueError(
                    f"{name} must have the {len(self.logits)} rows of logits; got {_shape(value)}"
                )
        classes = self.logits.shape[1]
        if classes < 2:
            raise ValueError(f"logits must have at least 2 columns; got {_shape(self.logits)}")
        if self.labels is None:
            return
        if self.labels.shape != (len(self.logits),):
            raise ValueError(
                f"labels must be of shape [{len(self.logits)}]; got {_shape(self.labels)}"
            )
        known = self.labels[self.labels != IGNORED]
        if not len(known):
            return
        low, high = int(known.min()), int(known.max())
        if low < 0 or high >= classes:
            raise ValueError(
                f"labels must lie in [0, {classes}), as there are {classes} logits; got"
                f" {low} to {high}"
            )

    def __len__(self) -> int:
        return len(self.logits)

    @cached_property
    def log_probabilities(self) -> Tensor:
        """Logarithms of the class probabilities [n, C], float64."""
        return F.log_softmax(self.logits.double(), dim=1)

    @cached_property
    def probabilities(self) -> Tensor:
        """Class probabilities [n, C], float64."""
        return self.log_probabilities.exp()

    @property
    def predictions(self) -> Tensor:
        """The most probable classes [n]."""
        return self.logits.argmax(1)

    def losses(self) -> Tensor:
        """Cross-entropy of each sample [n], float64; 0 of one whose label is not known.

        Raises:
            ValueError: There are no labels.
        """
        return F.nll_loss(
            self.log_probabilities, self.known_labels(), reduction="none", ignore_index=IGNORED
        )

    def is_finite(self) -> bool:
        """Whether all features and logits are; they are not after a training that diverged."""
        return bool(self.features.isfinite().all() and self.logits.isfinite().all())

    def accuracy(self) -> float:
        """Share of the samples with a label whose most probable class it is.

        Raises:
            ValueError: There are no labels.
        """
        part = self.labelled()
        return float((part.predictions == part.known_labels()).double().mean())

    def labelled(self) -> Outputs:
        """The samples whose label is known.

        Raises:
            ValueError: There are none.
        """
        known = self.known_labels() != IGNORED
        if not known.any():
            raise ValueError("labels are needed, and these outputs have none")
        return self if known.all() else self.subset(known)

    def known_labels(self) -> Tensor:
        """The labels [n], int64, -100 where one is not known.

        Raises:
            ValueError: There are none.
        """
        if self.labels is None:
            raise ValueError("labels are needed, and these outputs have none")
        return self.labels.long()

    def subset(self, rows: Tensor) -> Outputs:
        """Those rows alone; by index, or by a mask [n]."""
        return Outputs(
            self.features[rows],
            self.logits[rows],
            None if self.labels is None else self.labels[rows],
            {name: value[rows] for name, value in self.layers.items()},
        )


def collect(
    module: nn.Module,
    loader: Iterable[Any],
    device: torch.device | str | None = None,
    layers: Sequence[str] = (),
    task: str | None = None,
) -> Outputs:
    """Passes a loader through a module in evaluation mode, without gradients.

    Args:
        module: Has ``features(inputs)`` -> [n, d] and ``forward(inputs)`` -> logits [n, C], as
            :class:`~fastmmd.train.Aligner` and :class:`~fastmmd.train.FineTuner` have. Where it has
            ``from_features(features)`` too, as they do, that is called in place of ``forward``, so
            that features are computed once.
        loader: Gives batches of ``(inputs, labels)``, or of inputs alone; inputs are a tensor or a
            mapping of tensors.
        device: Where to compute. Default: where the parameters of the module are.
        layers: Names of submodules, as in ``named_modules()``, whose outputs are kept as well,
            flattened to [n, d_l].
        task: Of a module of several tasks, whose ``forward`` returns a mapping, and labels are one:
            the task that is looked at, of classes. A task that is missing from the labels of a
            batch has none there.

    Returns:
        The outputs in the order of the loader, on the CPU, without labels if all are -100. The
        module is left in the modes it had.

    Raises:
        ValueError: The loader is empty, labels are in some batches only, a name in ``layers`` is
            no submodule, a layer does not give one row for each sample, or ``task`` is none of the
            module's, not of classes, or missing.
        TypeError: The module has no ``features``, a layer gives no tensor, or ``layers`` is a
            string.
    """
    if not callable(getattr(module, "features", None)):
        raise TypeError(
            f"module must have features(inputs) and forward(inputs); {type(module).__name__} has"
            " no features"
        )
    check_layers(module, layers)
    features_of: Any = module.features
    head = getattr(module, "from_features", None)
    first = next(module.parameters(), None)
    # As Lightning's precisions "64-true" and "16-true" do in a training.
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
    where = torch.device(device or ("cpu" if first is None else first.device))
    parts: dict[str, list[Tensor]] = {name: [] for name in ("features", "logits", *layers)}
    labels: list[Tensor] = []
    batches = 0
    with evaluating(module), kept_outputs(module, layers) as found:
        for batch in loader:
            batches += 1
            inputs, of_batch = inputs_and_labels(batch)
            inputs = as_floating(move_data_to_device(inputs, where), dtype)
            # A head may change in place what it is given: the last pass of what comes before it
            # is one without.
            if head is None:
                outputs = module(inputs)
                features = features_of(inputs)
            else:
                features = features_of(inputs)
                outputs = head(features.clone())
            logits = _of_task(module, outputs, task)
            rows = rows_of(found, layers, len(logits))
            for name, value in {**rows, "features": features, "logits": logits}.items():
                parts[name].append(value.cpu().to(torch.promote_types(value.dtype, torch.float32)))
            found_labels = labels_of_task(of_batch, task, len(logits))
            if found_labels is not None:
                labels.append(found_labels)
    if not batches:
        raise ValueError(
            "loader must give at least one batch; it gave none: give it samples, or leave drop_last"
            " away where they are fewer than a batch"
        )
    if len(labels) not in (0, batches):
        raise ValueError(f"loader gave labels in {len(labels)} of {batches} batches; all or none")
    joined = {name: torch.cat(values) for name, values in parts.items()}
    known = torch.cat(labels) if labels else None
    if known is not None and bool((known == IGNORED).all()):
        known = None
    return Outputs(joined.pop("features"), joined.pop("logits"), known, joined)


def inputs_and_labels(batch: Any) -> tuple[Any, Any]:
    """The inputs of a batch, and its labels or None if it is inputs alone."""
    if isinstance(batch, Tensor | Mapping):
        return batch, None
    return batch[0], batch[1] if len(batch) > 1 else None


def _of_task(module: nn.Module, outputs: Any, task: str | None) -> Tensor:
    """The logits of a task, or the only ones."""
    if isinstance(outputs, Mapping) != (task is not None):
        tasks = f"the tasks {', '.join(outputs)}" if task is None else "no tasks"
        raise ValueError(f"task must be one of the module's, which has {tasks}; got {task!r}")
    if task is None:
        return outputs
    known: Any = getattr(module, "tasks", {})
    kinds = {name: getattr(known.get(name), "kind", "classification") for name in outputs}
    if task not in outputs or kinds[task] != "classification":
        described = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        raise ValueError(f"task must be one of classification among {described}; got {task!r}")
    return outputs[task]


def labels_of_task(labels: Any, task: str | None, samples: int) -> Tensor | None:
    """The labels of a batch of so many samples, of one task if there are several; or None.

    Raises:
        ValueError: There are several tasks, and labels are no mapping.
    """
    if labels is None:
        return None
    if task is None:
        return torch.as_tensor(labels).cpu()
    if not isinstance(labels, Mapping):
        raise ValueError(
            "labels of several tasks must be a mapping of tasks to tensors; got"
            f" {type(labels).__name__}"
        )
    of_task = labels.get(task)
    return torch.full((samples,), IGNORED) if of_task is None else torch.as_tensor(of_task).cpu()


def as_floating(inputs: Any, dtype: torch.dtype | None) -> Any:
    """The inputs, a tensor or a mapping, with floating tensors of that dtype, if it is given."""
    if isinstance(inputs, Mapping):
        return {name: as_floating(value, dtype) for name, value in inputs.items()}
    if dtype is None or not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        return inputs
    return inputs.to(dtype)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, and back to the mode that each submodule had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def _shape(value: Tensor) -> str:
    return str(tuple(value.shape))
