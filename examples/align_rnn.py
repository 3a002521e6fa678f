"""A recurrent network that tells rhythms apart, taught by one sensor and used on another.

    python examples/align_rnn.py

The second sensor is weaker, noisier and has an offset, and its recordings have no labels. Joint MMD
of features and class probabilities (JAN) beside the source alone. Seconds.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fastmmd.train import Aligner, DomainPair

STEPS, CLASSES = 32, 3


def recordings(
    n: int, seed: int, gain: float = 1.0, offset: float = 0.0, noise: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Waves [n, 32, 1] of two, three or five periods and random phase, and their classes [n]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    phase = torch.rand(n, 1, generator=generator)
    periods = torch.tensor([2.0, 3.0, 5.0])[labels].unsqueeze(1)
    waves = torch.sin(2 * torch.pi * (periods * torch.arange(STEPS) / STEPS + phase))
    waves = gain * waves + offset + noise * torch.randn(n, STEPS, generator=generator)
    return waves.unsqueeze(2), labels


class LastState(nn.Module):
    """A GRU, of which the state after the last step is kept: [n, t, 1] to [n, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(1, width, batch_first=True)

    def forward(self, series: Tensor) -> Tensor:
        """The state."""
        return self.gru(series)[1][-1]


def accuracy(epochs: int, **options: Any) -> float:
    """On the second sensor, in percent; no label of its recordings is looked at in training."""
    x, y = recordings(1024, seed=0)
    z, z_labels = recordings(1024, seed=1, gain=0.6, offset=0.5, noise=0.2)
    torch.manual_seed(0)
    aligner = Aligner(
        LastState(48),
        nn.Sequential(nn.Linear(48, 32), nn.BatchNorm1d(32), nn.ReLU()),
        nn.Linear(32, CLASSES),
        num_classes=CLASSES,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=5e-3),
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR,
        **options,
    )
    data = DomainPair(TensorDataset(x, y), TensorDataset(z), batch_size=128, seed=0)
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        gradient_clip_val=1.0,
    )
    trainer.fit(aligner, data)
    with torch.no_grad():
        return 100 * float((aligner.eval()(z).argmax(1) == z_labels).float().mean())


def main(epochs: int = 15) -> dict[str, float]:
    """Both trainings."""
    found = {
        "source only": accuracy(epochs, target_forward="none"),
        "aligned": accuracy(epochs, alignment="jan"),
    }
    for name, value in found.items():
        print(f"{name:12s} {value:5.1f} % of the second sensor's recordings")
    return found


if __name__ == "__main__":
    main()
