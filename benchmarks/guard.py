"""How often the guard's verdict is right: ``python -m benchmarks.guard``.

Handwritten digits (scikit-learn) and a shift of them, of which some can be aligned, some cannot,
and some are none; a small perceptron with and without alignment by MMD; the verdict without target
labels beside what they say. Prints a Markdown table with a line for each shift.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from collections import Counter
from functools import partial

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fastmmd.train import Aligner, DomainPair, TransferGuard, Verdict
from fastmmd.train.quiet import quiet_lightning

CLASSES = 10
FEW = 4  # classes that the target has in the shifts called partial
SHIFTS = {
    "none": "the same distribution",
    "background": "a fixed random background is added, uniform in 0 to 0.6 per pixel",
    "noise": "normal noise of standard deviation 0.4",
    "inverted": "1 - 0.7 x",
    "transposed": "rows and columns change places",
    "partial": f"the first {FEW} classes alone",
    "partial background": f"the first {FEW} classes alone, over a background of 0 to 0.3",
    "heavy weight": "as background, with 30 times the weight",
}


def domains(shift: str, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Source points [900, 64] and labels, target points and labels."""
    digits = load_digits()
    points = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(points), generator=generator)
    source, target = order[:900], order[900:]
    x, y = points[target], labels[target]
    if shift.startswith("partial"):
        x, y = x[y < FEW], y[y < FEW]
    reach = {"background": 0.6, "heavy weight": 0.6, "partial background": 0.3}.get(shift, 0.0)
    if reach:
        x = x + reach * torch.rand(1, 64, generator=generator)
    elif shift == "noise":
        x = x + 0.4 * torch.randn(x.shape, generator=generator)
    elif shift == "inverted":
        x = 1 - 0.7 * x
    elif shift == "transposed":
        x = x.view(-1, 8, 8).transpose(1, 2).reshape(-1, 64)
    return points[source], labels[source], x, y


def verdict(shift: str, seed: int) -> Verdict:
    """That of one training; a third of each domain is held out."""
    x, y, z, of_z = domains(shift, seed)
    m = len(z) * 2 // 3
    data = DomainPair(
        TensorDataset(x[:600], y[:600]),
        TensorDataset(z[:m]),
        source_val=TensorDataset(x[600:], y[600:]),
        target_val=TensorDataset(z[m:], of_z[m:]),
        batch_size=64,
        seed=seed,
        same_labels=False,
    )
    torch.manual_seed(seed)
    aligner = Aligner(
        nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()),
        nn.Sequential(nn.Linear(64, 32), nn.ReLU()),
        nn.Linear(32, CLASSES),
        num_classes=CLASSES,
        weight=30.0 if shift == "heavy weight" else 1.0,
        optimizer=partial(torch.optim.AdamW, lr=3e-3),
    )
    guard = TransferGuard()
    with quiet_lightning(), contextlib.redirect_stdout(io.StringIO()):
        trainer = L.Trainer(
            max_epochs=20,
            accelerator="cpu",
            callbacks=[guard],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            check_val_every_n_epoch=20,
            num_sanity_val_steps=0,
        )
        trainer.fit(aligner, data)
    assert guard.verdict is not None
    return guard.verdict


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=100, help="the first seed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| shift of the target | verdicts | true change in points |\n|---|---|---|")
    for shift in SHIFTS:
        seeds = range(options.first, options.first + options.seeds)
        found = [verdict(shift, seed) for seed in seeds]
        words = ", ".join(f"{n} {word}" for word, n in Counter(v.word for v in found).items())
        gains = [100 * (v.true_gain or 0.0) for v in found]
        print(f"| {shift} | {words} | {min(gains):+.1f} to {max(gains):+.1f} |", flush=True)


if __name__ == "__main__":
    main()
