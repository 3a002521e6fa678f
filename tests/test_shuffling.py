"""Orders of samples, and that a resumed training goes on as if it had never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fastmmd.train import Aligner, DomainPair
from fastmmd.train.shuffling import EpochSeed, EpochShuffle, seed_of

# What Lightning says of workers, log intervals and its own dependencies is not ours to mend.
pytestmark = pytest.mark.filterwarnings(r"ignore:::lightning\..*", r"ignore:::torch\.jit.*")


def orders(shuffle: EpochShuffle, epochs: int) -> list[list[int]]:
    loader = DataLoader(range(20), 20, sampler=shuffle, generator=shuffle.generator)  # type: ignore[arg-type]
    found = []
    for epoch in range(shuffle.epoch, epochs):
        shuffle.set_epoch(epoch)
        found += [next(iter(loader)).tolist() for _ in range(2)]
    return found


def test_an_order_depends_on_seed_and_epoch_alone() -> None:
    whole = orders(EpochShuffle(range(20), 3, 0), 3)
    assert all(sorted(order) == list(range(20)) for order in whole)
    assert len({tuple(order) for order in whole}) == 6  # a second pass in an epoch is another one
    assert orders(EpochShuffle(range(20), 3, 0, epoch=1), 3) == whole[2:]
    assert orders(EpochShuffle(range(20), 3, 1), 1) != whole[:2]


def test_seeds_of_neighbours_differ() -> None:
    seeds = {seed_of(a, b, c) for a in range(5) for b in range(5) for c in range(5)}
    assert len(seeds) == 125
    assert all(0 <= seed < 2**63 for seed in seeds)


class Noisy(Dataset[Any]):
    """Points that are new at each read, as augmented images are."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Tensor:
        return float(index) + torch.randn(2)


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_training_is_that_without_a_stop(workers: int, tmp_path: Path) -> None:
    """With dropout, random inputs, the shorter domain cycled, and no seed given."""

    def fit(start: int, ckpt_path: Path | None = None) -> dict[str, Tensor]:
        torch.manual_seed(start)
        labels = torch.arange(96) % 3
        source = TensorDataset(torch.eye(3)[labels][:, :2], labels)
        network = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 4))
        aligner = Aligner(
            nn.Linear(2, 8),
            network,
            nn.Linear(4, 3),
            num_classes=3,
            # With it Lightning asks for the loaders before it knows the epoch.
            scheduler=torch.optim.lr_scheduler.CosineAnnealingLR,
        )
        data = DomainPair(source, Noisy(), source_val=source, batch_size=32, num_workers=workers)
        trainer = L.Trainer(
            max_epochs=3,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[
                EpochSeed(),
                ModelCheckpoint(
                    tmp_path,
                    "{epoch}",
                    save_top_k=-1,
                    save_on_train_epoch_end=True,
                    enable_version_counter=False,
                ),
            ],
        )
        trainer.fit(aligner, data, ckpt_path=ckpt_path, weights_only=True)
        return aligner.state_dict()

    whole = fit(0)
    resumed = fit(1, tmp_path / "epoch=0.ckpt")
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
