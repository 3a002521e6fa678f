"""Gradual unfreezing in one process or in two that Lightning starts: run by the tests as a script.

``python distributed_unfreezing.py PROCESSES FOLDER`` leaves the parameters that it ends in, and
which of them had a gradient in each epoch, as ``FOLDER/PROCESSES-RANK.pt``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fastmmd.train import FineTuner, GradualUnfreezing

ROWS, EPOCHS = 32, 4


class Gradients(L.Callback):
    """Which parameters of the backbone had a gradient, by epochs."""

    def __init__(self) -> None:
        self.epochs: list[list[bool]] = []

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        parameters = module.backbone.parameters()
        self.epochs.append([p.grad is not None and bool(p.grad.any()) for p in parameters])


def train(processes: int) -> dict[str, Any]:
    torch.manual_seed(0)
    tuner = FineTuner(
        nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8)),
        3,
        in_features=8,
        optimizer="sgd",
        lr=0.1,
        layer_decay=0.5,
        scheduler="linear",
    )
    data = TensorDataset(torch.randn(ROWS, 4), torch.arange(ROWS) % 3)
    gradients = Gradients()
    trainer = L.Trainer(
        devices=processes,
        strategy="ddp_find_unused_parameters_true" if processes > 1 else "auto",
        accelerator="cpu",
        precision="64-true",
        max_epochs=EPOCHS,
        callbacks=[GradualUnfreezing(1), gradients],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # A step has all samples, whatever their order.
    trainer.fit(tuner, DataLoader(data, batch_size=ROWS // processes))
    return {"gradients": gradients.epochs, "parameters": tuner.state_dict()}


def main() -> None:
    torch.set_num_threads(1)
    processes, folder = int(sys.argv[1]), Path(sys.argv[2])
    rank = int(os.environ.get("LOCAL_RANK", 0))
    torch.save(train(processes), folder / f"{processes}-{rank}.pt")


if __name__ == "__main__":
    main()
