"""Whether a pretrained network helps: digits 5 to 9 from a few labels, by one that knows 0 to 4.

Prints the accuracy on the digits that were not trained on, as the mean of some seeds: trained from
scratch, with the pretrained network frozen, and fine-tuned.

    python examples/finetune.py
"""

from __future__ import annotations

import argparse
import copy
import logging
import warnings

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fastmmd.train import FineTuner

LABELS = 5  # per new digit
ROADS = ("scratch", "probe", "tuned")


def convolutional() -> nn.Module:
    """Three convolutions with batch normalisation."""

    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        layer = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())

    return nn.Sequential(block(1, 16, 1), block(16, 32, 2), block(32, 64, 2))


def dense() -> nn.Module:
    """Two dense layers."""
    first = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU())
    return nn.Sequential(first, nn.Sequential(nn.Linear(128, 64), nn.ReLU()))


NETWORKS = {"convolutional": convolutional, "dense": dense}


def train(tuner: FineTuner, images: Tensor, labels: Tensor, epochs: int) -> FineTuner:
    """Fits and returns it."""
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DataLoader(TensorDataset(images, labels), batch_size=32, shuffle=True)
    trainer.fit(tuner, data)
    return tuner.eval()


def accuracies(network: str, epochs: int, seed: int) -> dict[str, float]:
    """Accuracy on the new digits by each road."""
    scans = load_digits()
    images = torch.from_numpy(scans.images).float()[:, None] / 16
    digits = torch.from_numpy(scans.target).long()
    torch.manual_seed(seed)

    def tuner(backbone: nn.Module, freeze: int | str = 0) -> FineTuner:
        return FineTuner(backbone, 5, example_inputs=images[:2], lr=3e-3, freeze=freeze)

    old = digits < 5
    pretrained = train(tuner(NETWORKS[network]()), images[old], digits[old], epochs=5).backbone
    images, digits = images[~old], digits[~old] - 5
    order = torch.randperm(len(digits))
    few = torch.cat([order[digits[order] == digit][:LABELS] for digit in range(5)])
    rest = torch.ones(len(digits), dtype=torch.bool)
    rest[few] = False
    tuners = {
        "scratch": tuner(NETWORKS[network]()),
        "probe": tuner(copy.deepcopy(pretrained), freeze="all"),
        "tuned": tuner(copy.deepcopy(pretrained)),
    }
    found = {}
    for road, module in tuners.items():
        train(module, images[few], digits[few], epochs)
        with torch.no_grad():
            right = module(images[rest]).argmax(dim=1) == digits[rest]
        found[road] = right.float().mean().item()
    return found


def main() -> None:
    """Prints a line for each network and length of training."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    logging.getLogger("lightning.pytorch").setLevel("ERROR")
    warnings.filterwarnings("ignore", module="lightning")
    print(f"{'network':14} epochs  " + "  ".join(f"{road:>7}" for road in ROADS))
    for network in NETWORKS:
        for epochs in (10, 30):
            runs = [accuracies(network, epochs, seed) for seed in range(seeds)]
            means = [sum(run[road] for run in runs) / seeds for road in ROADS]
            print(f"{network:14} {epochs:6}  " + "  ".join(f"{100 * mean:6.1f}%" for mean in means))


if __name__ == "__main__":
    main()
