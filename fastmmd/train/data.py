"""Two domains, one batch of each per step."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import DataLoader, Dataset

from fastmmd.train.shuffling import EpochShuffle, first_epoch, new_seed

__all__ = ["DomainPair"]


class DomainPair(L.LightningDataModule):
    """Pairs a labelled source with an unlabelled target by Lightning's ``CombinedLoader``.

    A training batch is ``{"source": ..., "target": ...}``. An epoch is one pass over the longer of
    the two; the shorter starts again, newly shuffled (mode ``"max_size_cycle"``). Incomplete last
    batches are left out, so every MMD is over ``batch_size`` points of each domain.

    Args:
        source: Map-style dataset of ``(inputs, label)``.
        target: Map-style dataset of ``inputs``, or of tuples whose first entry is read.
        source_val: Labelled source to validate on.
        target_val: Labelled target to measure on. Needs ``source_val``, which comes first.
        batch_size: Samples per domain and step.
        num_workers: Worker processes per loader.
        seed: Seed of the shuffling. Source and target have a random stream each, so the order of
            one does not depend on the other, and each epoch its own, so a resumed training sees
            the batches of an uninterrupted one. Default: drawn from torch's global random numbers.
            With several processes Lightning's ``DistributedSampler`` takes over, seeded by
            ``lightning.seed_everything``.

    Raises:
        ValueError: ``batch_size`` is less than 1 or larger than one of the training sets, or there
            is a ``target_val`` without ``source_val``.
    """

    def __init__(
        self,
        source: Dataset[Any],
        target: Dataset[Any],
        *,
        source_val: Dataset[Any] | None = None,
        target_val: Dataset[Any] | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        for name, dataset in (("source", source), ("target", target)):
            if not 1 <= batch_size <= len(dataset):  # type: ignore[arg-type]
                raise ValueError(
                    f"batch_size must lie between 1 and the {len(dataset)} samples of {name}; "  # type: ignore[arg-type]
                    f"got {batch_size!r}"
                )
        if target_val is not None and source_val is None:
            raise ValueError(
                "target_val is given but source_val is not: the source is validated first"
            )
        self.source = source
        self.target = target
        self.source_val = source_val
        self.target_val = target_val
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = new_seed() if seed is None else seed

    def train_dataloader(self) -> CombinedLoader:
        """One batch of each domain per step."""
        loaders = {
            "source": self._train_loader(self.source, 0),
            "target": self._train_loader(self.target, 1),
        }
        return CombinedLoader(loaders, mode="max_size_cycle")

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """The source loader, then that of the target, as far as they are given."""
        return [
            DataLoader(dataset, batch_size=self.batch_size, num_workers=self.num_workers)
            for dataset in (self.source_val, self.target_val)
            if dataset is not None
        ]

    def _train_loader(self, dataset: Dataset[Any], stream: int) -> DataLoader[Any]:
        sampler = EpochShuffle(
            dataset,  # type: ignore[arg-type]
            self.seed,
            stream,
            epoch=first_epoch(self.trainer),
        )
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=True,
            num_workers=self.num_workers,
            generator=sampler.generator,
        )

    def state_dict(self) -> dict[str, Any]:
        """The seed, for the checkpoint."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The seed of the training that is resumed."""
        self.seed = state_dict["seed"]
