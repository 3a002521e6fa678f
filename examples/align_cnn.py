"""A convolutional network that learns clean digits and reads soiled ones, without their labels.

    python examples/align_cnn.py

The digits are those of scikit-learn; the soiled ones lie on a sloping background, under noise.
Multi-kernel MMD on the features and the logits (DAN) beside the source alone. Seconds.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fastmmd.train import Aligner, DomainPair


def domains() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images [n, 1, 8, 8] and labels [n] of both; no digit is in both."""
    digits = load_digits()
    images = torch.from_numpy(digits.images.astype(np.float32) / 16).unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(images), generator=generator)
    source, target = order[:900], order[900:]
    slope = torch.linspace(0.0, 1.0, 8)
    soiled = 0.6 * images[target] + 0.5 * slope
    soiled = soiled + 0.15 * torch.randn(soiled.shape, generator=generator)
    return (images[source], labels[source]), (soiled, labels[target])


def network() -> dict[str, nn.Module]:
    """The three parts of a small one."""
    return {
        "backbone": nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
        ),
        "bottleneck": nn.Sequential(nn.Linear(512, 64), nn.ReLU()),
        "classifier": nn.Linear(64, 10),
    }


def accuracy(epochs: int, **options: Any) -> float:
    """On the target, in percent, after a training whose target labels nobody has looked at."""
    (x, y), (z, z_labels) = domains()
    torch.manual_seed(0)
    aligner = Aligner(**network(), num_classes=10, **options)
    data = DomainPair(TensorDataset(x, y), TensorDataset(z), batch_size=128, seed=0)
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(aligner, data)
    with torch.no_grad():
        return 100 * float((aligner.eval()(z).argmax(1) == z_labels).float().mean())


def main(epochs: int = 20) -> dict[str, float]:
    """Both trainings."""
    found = {
        "source only": accuracy(epochs, target_forward="none"),
        "aligned": accuracy(epochs, alignment="dan"),
    }
    for name, value in found.items():
        print(f"{name:12s} {value:5.1f} % of the soiled digits")
    return found


if __name__ == "__main__":
    main()
