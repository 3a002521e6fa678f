"""Orders of samples, and that a resumed training goes on as if it had never stopped."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fastmmd.train import Aligner, DomainData, DomainPair, Samples
from fastmmd.train.datasets.domains import Domain
from fastmmd.train.shuffling import EpochSeed, EpochShuffle, ProcessShare, seed_of

pytestmark = pytest.mark.training


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


def test_processes_share_an_order() -> None:
    """Equally many draws for each, together all samples, and another order of each pass."""
    shares = [ProcessShare(EpochShuffle(range(21), 3, 0), 2, rank) for rank in range(2)]
    for epoch in range(2):
        passes = []
        for _ in range(2):
            first, second = (list(share) for share in shares)
            assert len(first) == len(second) == len(shares[0]) == 11
            assert set(first) | set(second) == set(range(21))
            assert second[-1] == first[0]  # the one that makes them even
            passes.append(first)
        assert passes[0] != passes[1]
        later = ProcessShare(EpochShuffle(range(21), 3, 0, epoch=epoch), 2, 0)
        assert list(later) == passes[0]
        # A seed of its own for the workers of each process.
        assert len({share.generator.initial_seed() for share in shares}) == 2
        for share in shares:
            share.set_epoch(epoch + 1)


class Corresponding(DomainData):
    """Two domains whose i-th samples are of one class."""

    def read(self) -> tuple[list[Domain], Domain | None]:
        domain = Domain("all", ("a", "b"), *[Samples(torch.arange(48.0), torch.arange(48) % 2)] * 2)
        return [domain], domain


INDICES = TensorDataset(torch.arange(48.0), torch.arange(48) % 2)
DATA: dict[str, Any] = {
    "pair": lambda: DomainPair(INDICES, INDICES, batch_size=8, seed=5),
    "modules": lambda: Corresponding(batch_size=8, val_share=0.0, seed=5),
    "balanced": lambda: Corresponding(batch_size=8, val_share=0.0, seed=5, balanced=True),
}


@pytest.mark.parametrize("name", DATA)
def test_domains_are_not_drawn_together_by_several_processes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaders as Lightning makes them ready in each of two processes, which need not run."""
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # which a rank sets for all that comes after
    drawn: dict[str, list[list[float]]] = {}
    for rank in range(2):
        trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False)
        trainer.strategy.cluster_environment.set_global_rank(rank)  # type: ignore[attr-defined]
        data = DATA[name]()
        data.trainer = trainer
        for domain, loader in data.train_dataloader().iterables.items():
            ready = trainer._data_connector._prepare_dataloader(loader, True, RunningStage.TRAINING)
            for epoch in range(2):
                _set_sampler_epoch(ready, epoch)
                batches = [batch if isinstance(batch, Tensor) else batch[0] for batch in ready]
                assert [len(batch) for batch in batches] == [8, 8, 8]
                drawn.setdefault(f"{domain} {epoch}", []).append(torch.cat(batches).tolist())
    for both in drawn.values():
        assert both[0] != both[1]
    for epoch in range(2):
        source, target = drawn[f"source {epoch}"], drawn[f"target {epoch}"]
        assert sorted(chain(*target)) == list(range(48))
        if name != "balanced":  # which draws with replacement
            assert sorted(chain(*source)) == list(range(48))
        for one, other in zip(source, target, strict=True):
            same = sum(a == b for a, b in zip(one, other, strict=True))
            assert same < 8, "the domains are drawn index by index together"
    assert drawn["source 0"] != drawn["source 1"]
    assert drawn["target 0"] != drawn["target 1"]


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


def test_a_seed_is_not_negative() -> None:
    with pytest.raises(ValueError, match="seed must not be negative; got -1"):
        EpochSeed(-1)
