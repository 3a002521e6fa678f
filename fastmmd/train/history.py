"""How far apart the domains are, layer by layer, as a training goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from fastmmd.functional import mmd2
from fastmmd.kernels import Gaussian, Kernel
from fastmmd.train.evaluation import Outputs, collect

__all__ = [
    "LayerHistory",
    "domain_loaders",
    "first_outputs",
    "layer_distances",
    "state_key",
    "undisturbed",
]


def domain_loaders(
    trainer: L.Trainer, source: Iterable[Any] | None, target: Iterable[Any] | None
) -> tuple[Iterable[Any], Iterable[Any]]:
    """The loaders to measure on: those given, else those of the trainer.

    The source is the first validation loader; the target is the second or, without one, the data
    module's ``predict_dataloader``.

    Raises:
        ValueError: One of them is nowhere, or there are several processes and not both are given:
            of the trainer's loaders each process has its share of the samples alone.
    """
    if trainer.world_size > 1 and (source is None or target is None):
        raise ValueError(
            f"the domains cannot be measured on the trainer's loaders, of which each of the"
            f" {trainer.world_size} processes has a share: give source and target"
        )
    if source is not None and target is not None:
        return source, target
    # Lightning asks for them at the first validation, which may be long after the start.
    if trainer.enable_validation:
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
    found: Any = trainer.val_dataloaders
    data: Any = getattr(trainer, "datamodule", None)
    if found is None and trainer.limit_val_batches and _has(data, "val_dataloader"):
        found = data.val_dataloader()  # of a module that has no validation_step
    measured = list(found) if isinstance(found, list | tuple) else [found] if found else []
    if source is None and measured:
        source = measured[0]
    if target is None and len(measured) > 1:
        target = measured[1]
    if target is None and _has(data, "predict_dataloader"):
        target = data.predict_dataloader()
    for name, loader in (("source", source), ("target", target)):
        if loader is None:
            raise ValueError(f"there is no {name} loader: give {name}, or validate on the {name}")
    assert source is not None
    assert target is not None
    return source, target


@contextmanager
def undisturbed(loaders: Iterable[Any]) -> Iterator[None]:
    """Leaves random numbers as they were: loaders draw some, and those are the training's.

    Torch's global ones, and those of generators of the loaders and their samplers, which loaders of
    the training may share.
    """
    parts = [*loaders]
    for name in ("batch_sampler", "sampler"):  # a sampler may be that of the batch sampler
        parts += [getattr(part, name, None) for part in parts]
    generators = {getattr(part, "generator", None) for part in parts}
    states = [(g, g.get_state()) for g in generators if isinstance(g, torch.Generator)]
    with torch.random.fork_rng([]):
        try:
            yield
        finally:
            for generator, state in states:
                generator.set_state(state)


def first_outputs(
    trainer: L.Trainer,
    module: L.LightningModule,
    source: Iterable[Any] | None,
    target: Iterable[Any] | None,
    layers: Sequence[str] = (),
    task: str | None = None,
) -> tuple[Outputs, Outputs]:
    """Of the first batches: what keeps a module from being measured shows before the training.

    Raises:
        TypeError: As :func:`collect`.
        ValueError: As :func:`domain_loaders` or :func:`collect`.
    """
    loaders = domain_loaders(trainer, source, target)
    with undisturbed(loaders):
        first, second = (
            collect(module, islice(loader, 1), layers=layers, task=task) for loader in loaders
        )
    return first, second


def state_key(callback: L.Callback, task: str | None) -> str:
    """The name of a callback's state, of which there may be one for each task."""
    return type(callback).__qualname__ + ("" if task is None else f" of {task}")


def _has(data: Any, loader: str) -> bool:
    """Whether there is a data module, and it has this loader of its own."""
    return data is not None and is_overridden(loader, data)


def layer_distances(
    source: Outputs, target: Outputs, kernel: Kernel | None = None, max_samples: int = 1000
) -> dict[str, float]:
    """Unbiased MMD^2 between the domains in each layer, then in ``features`` and ``logits``.

    Args:
        source: n samples.
        target: m samples, with the same layers.
        kernel: ``Gaussian("mean")`` by default: the mean distance as bandwidth takes out the scale
            of a layer, so that layers and epochs can be compared.
        max_samples: Of more, so many are looked at, evenly spaced in their order.

    Returns:
        By layer; around 0 where the domains look alike.
    """
    kernel = Gaussian("mean") if kernel is None else kernel

    def layers(outputs: Outputs) -> Mapping[str, Tensor]:
        rows = torch.linspace(0, len(outputs) - 1, min(len(outputs), max_samples)).long()
        part = outputs.subset(rows)
        return {**part.layers, "features": part.features, "logits": part.logits}

    x, y = layers(source), layers(target)
    return {name: float(mmd2(x[name].float(), y[name].float(), kernel, "unbiased")) for name in x}


class LayerHistory(L.Callback):
    """Records, before the training and after each epoch, MMD^2 per layer and the accuracies.

    The record is part of the checkpoints, so a resumed training goes on with it.

    Args:
        layers: Names of submodules, as in ``named_modules()``. ``features`` and ``logits`` are
            always recorded.
        source: Loader of held-out source samples with labels. Default: as :class:`TransferGuard`.
        target: Loader of target samples. With several processes both must be given.
        kernel: As for :func:`layer_distances`.
        max_samples: Samples per domain that MMD^2 looks at.
        task: Of a module of several tasks, the one whose logits and accuracy are recorded, as for
            :func:`collect`.

    Attributes:
        mmd2: By layer, a value before the training and one after each epoch.
        accuracy: By domain, shares in [0, 1]; the target's only if it has labels.

    Raises:
        ValueError: ``max_samples`` is less than 2. When the training starts: no loader for the
            source or for the target, or several processes and not both are given; or as
            :func:`collect`.
    """

    def __init__(
        self,
        layers: Sequence[str] = (),
        *,
        source: Iterable[Any] | None = None,
        target: Iterable[Any] | None = None,
        kernel: Kernel | None = None,
        max_samples: int = 1000,
        task: str | None = None,
    ) -> None:
        if max_samples < 2:
            raise ValueError(f"max_samples must be at least 2; got {max_samples!r}")
        self.layers = tuple(layers)
        self.source = source
        self.target = target
        self.kernel = kernel
        self.max_samples = max_samples
        self.task = task
        self.mmd2: dict[str, list[float]] = {}
        self.accuracy: dict[str, list[float]] = {}

    @property
    def state_key(self) -> str:
        """The name of the record in a checkpoint; there may be one for each task."""
        return state_key(self, self.task)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Records the untrained model, unless a training is resumed."""
        if not self.mmd2:
            self._record(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Records the model after the epoch."""
        self._record(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The record, as plain numbers."""
        return {"mmd2": self.mmd2, "accuracy": self.accuracy}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The record so far."""
        self.mmd2, self.accuracy = state_dict["mmd2"], state_dict["accuracy"]

    def _record(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        loaders = domain_loaders(trainer, self.source, self.target)
        with undisturbed(loaders):
            source, target = (
                collect(module, loader, layers=self.layers, task=self.task) for loader in loaders
            )
        for name, value in layer_distances(source, target, self.kernel, self.max_samples).items():
            self.mmd2.setdefault(name, []).append(value)
        for name, outputs in (("source", source), ("target", target)):
            if outputs.labels is not None:
                self.accuracy.setdefault(name, []).append(outputs.accuracy())
