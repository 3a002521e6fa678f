"""A small network, samples and a trainer for the tests of fine-tuning."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fastmmd.train import (
    FineTuner,
    Task,
)

CLASSES = 3


def network() -> nn.Sequential:
    """Three stages with batch normalisation, [n, 4] to [n, 8]; the same at each call."""
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU()),
        nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Tanh()),
        nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8, affine=False)),
    )


def tuner(**options: Any) -> FineTuner:
    defaults = {"num_classes": CLASSES} if "tasks" not in options else {}
    backbone = options.pop("backbone", None) or network()
    torch.manual_seed(8)
    return FineTuner(backbone, **{**defaults, "in_features": 8, **options})


def samples(n: int = 48, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points [n, 4] whose first entries show their class, and the classes [n]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    return F.one_hot(labels, 4) + 0.5 * torch.randn(n, 4, generator=generator), labels


def trainer(**options: Any) -> L.Trainer:
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(**{**defaults, **options})


def loader(n: int = 48, seed: int = 0) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*samples(n, seed)), batch_size=16)


def fit(module: FineTuner, data: Any = None, **options: Any) -> L.Trainer:
    run = trainer(**{"max_epochs": 1, **options})
    run.fit(module, loader() if data is None else data)
    return run


def moved(module: FineTuner, before: dict[str, Tensor]) -> set[str]:
    """Names of the backbone's state that is no longer what it was."""
    return {
        name for name, v in module.backbone.state_dict().items() if not torch.equal(v, before[name])
    }


class ByTask(Dataset[Any]):
    def __init__(self, n: int = 48) -> None:
        self.x, y = samples(n)
        self.labels = {
            "kind": y,
            "flags": torch.stack((y == 0, self.x[:, 3] > 0), 1).long(),
            "size": self.x.sum(1),
        }

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return self.x[i], {task: labels[i] for task, labels in self.labels.items()}


def several() -> dict[str, Task]:
    return {
        "kind": Task(CLASSES, class_weights="balanced"),
        "flags": Task(2, "multilabel", weight=0.5, class_weights="balanced"),
        "size": Task(1, "regression", weight=2.0, head=nn.Linear(8, 1)),
    }
