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

__all__ = ["Outputs", "collect", "evaluating", "inputs_and_labels"]


@dataclass(frozen=True, eq=False)
class Outputs:
    """Features, logits and, where they are known, labels of n samples, on the CPU.

    Args:
        features: [n, d], floating.
        logits: [n, C], floating, C at least 2.
        labels: [n], whole numbers in [0, C), or None.
        layers: Further activations [n, d_l] by the name of their module.

    Raises:
        ValueError: No samples, another rank, numbers of samples that differ, fewer than two
            classes, or a label outside [0, C).
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
        low, high = int(self.labels.min()), int(self.labels.max())
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
        """Cross-entropy of each sample [n], float64.

        Raises:
            ValueError: There are no labels.
        """
        return F.nll_loss(self.log_probabilities, self.known_labels(), reduction="none")

    def is_finite(self) -> bool:
        """Whether all features and logits are; they are not after a training that diverged."""
        return bool(self.features.isfinite().all() and self.logits.isfinite().all())

    def accuracy(self) -> float:
        """Share of the samples whose most probable class is their label.

        Raises:
            ValueError: There are no labels.
        """
        return float((self.predictions == self.known_labels()).double().mean())

    def known_labels(self) -> Tensor:
        """The labels [n], int64.

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
) -> Outputs:
    """Passes a loader through a module in evaluation mode, without gradients.

    Args:
        module: Has ``features(inputs)`` -> [n, d] and ``forward(inputs)`` -> logits [n, C], as
            :class:`~fastmmd.train.Aligner` and :class:`~fastmmd.train.FineTuner` have.
        loader: Gives batches of ``(inputs, labels)``, or of inputs alone; inputs are a tensor or a
            mapping of tensors.
        device: Where to compute. Default: where the parameters of the module are.
        layers: Names of submodules, as in ``named_modules()``, whose outputs are kept as well,
            flattened to [n, d_l].

    Returns:
        The outputs in the order of the loader, on the CPU. The module is left in the modes it had.

    Raises:
        ValueError: The loader is empty, labels are in some batches only, a name in ``layers`` is
            no submodule, or a layer does not give one row for each sample.
        TypeError: The module has no ``features``, a layer gives no tensor, or ``layers`` is a
            string.
    """
    if not callable(getattr(module, "features", None)):
        raise TypeError(
            f"module must have features(inputs) and forward(inputs); {type(module).__name__} has"
            " no features"
        )
    check_layers(module, layers)
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
            logits = module(inputs)
            features = module.features(inputs)  # type: ignore[operator]
            rows = rows_of(found, layers, len(logits))
            for name, value in {**rows, "features": features, "logits": logits}.items():
                parts[name].append(value.cpu().to(torch.promote_types(value.dtype, torch.float32)))
            if of_batch is not None:
                labels.append(torch.as_tensor(of_batch).cpu())
    if not batches:
        raise ValueError("loader must give at least one batch; it gave none: an empty domain?")
    if len(labels) not in (0, batches):
        raise ValueError(f"loader gave labels in {len(labels)} of {batches} batches; all or none")
    joined = {name: torch.cat(values) for name, values in parts.items()}
    return Outputs(
        joined.pop("features"), joined.pop("logits"), torch.cat(labels) if labels else None, joined
    )


def inputs_and_labels(batch: Any) -> tuple[Any, Any]:
    """The inputs of a batch, and its labels or None if it is inputs alone."""
    if isinstance(batch, Tensor | Mapping):
        return batch, None
    return batch[0], batch[1] if len(batch) > 1 else None


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
