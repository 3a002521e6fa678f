"""Orders of samples that depend on a seed and the epoch, and on nothing that went before."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import RandomSampler

__all__ = ["EpochSeed", "EpochShuffle", "first_epoch", "new_seed", "seed_of"]


def seed_of(*numbers: int) -> int:
    """A seed in [0, 2^63) for each tuple of whole numbers that are not negative."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def new_seed() -> int:
    """A seed in [0, 2^31) drawn from torch's global random numbers."""
    return int(torch.randint(2**31, ()))


def first_epoch(trainer: L.Trainer | None) -> int:
    """The epoch that the next training loader begins with: later than 0 in a resumed training."""
    if trainer is None:
        return 0
    # A schedule of the learning rate makes Lightning ask for loaders before it has restored its
    # own progress. Not current_epoch: at the end of an epoch, in a checkpoint, it is still that.
    connector: Any = getattr(trainer, "_checkpoint_connector", None)
    loops = getattr(connector, "_loaded_checkpoint", {}).get("loops")
    if loops:
        return int(loops["fit_loop"]["epoch_progress"]["current"]["processed"])
    progress: Any = trainer.fit_loop.epoch_progress.current
    return int(progress.processed)


class EpochShuffle(RandomSampler):
    """A permutation of the data, and what its loader draws, from a seed and the epoch.

    Lightning calls ``set_epoch`` at the start of each epoch, so a training that is resumed after an
    epoch sees the batches that an uninterrupted one does, without a random state in the checkpoint.
    Give ``generator`` to the loader as well: the seeds of worker processes then follow.

    Args:
        data: What is sampled; its length is read.
        *seed: Whole numbers that are not negative.
        epoch: The epoch to begin with.
    """

    def __init__(self, data: Sized, *seed: int, epoch: int = 0) -> None:
        super().__init__(data, generator=torch.Generator())
        self.seed = seed
        self.epoch = -1
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Begins an epoch. Nothing for the current one: its iterator may be there already."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.generator.manual_seed(seed_of(*self.seed, epoch))


class EpochSeed(L.Callback):
    """Seeds torch's global random numbers at the start of each epoch, from a seed and the epoch.

    With it what else is random in a training (dropout, augmentation) goes on after a resume as it
    would have gone on without. Each process has its own.

    Args:
        seed: A whole number that is not negative. Default: drawn at the first epoch, and kept in
            the checkpoint.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Seeds."""
        if self.seed is None:
            self.seed = new_seed()
        torch.manual_seed(seed_of(self.seed, trainer.current_epoch, trainer.global_rank))

    def state_dict(self) -> dict[str, int | None]:
        """The seed."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, int | None]) -> None:
        """The seed."""
        self.seed = state_dict["seed"]
