"""Orders of samples that depend on a seed and the epoch, and on nothing that went before."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from itertools import cycle, islice
from typing import Any, Generic, Protocol, TypeVar

import lightning as L
import numpy as np
import torch
from torch.utils.data import DistributedSampler, RandomSampler

__all__ = [
    "EpochOrder",
    "EpochSeed",
    "EpochShuffle",
    "ProcessShare",
    "common_seed",
    "first_epoch",
    "new_seed",
    "of_process",
    "seed_of",
]


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


class EpochOrder(Protocol):
    """A sampler whose draws follow from a seed and the epoch, such as :class:`EpochShuffle`."""

    epoch: int
    generator: Any

    def set_epoch(self, epoch: int) -> None:
        """Begins an epoch."""

    def __iter__(self) -> Iterator[int]: ...

    def __len__(self) -> int: ...


Order = TypeVar("Order", bound=EpochOrder)


class ProcessShare(DistributedSampler[int], Generic[Order]):
    """What one of several processes draws: each ``num_replicas``-th of an order that all share.

    Lightning leaves a ``DistributedSampler`` as it is, and puts its own, of one seed, in the place
    of any other. Under that, domains of equal size are drawn index by index together.

    Args:
        order: The same in all processes. It begins again where its length is no multiple of the
            number of processes, as each has to draw equally often.
        num_replicas: Number of processes.
        rank: Number of this process, from 0.

    Attributes:
        generator: For the loader: the seeds of worker processes, of this process alone.
    """

    def __init__(self, order: Order, num_replicas: int, rank: int) -> None:
        self.order = order
        self.generator = torch.Generator()
        self.share(num_replicas, rank)

    def share(self, num_replicas: int, rank: int) -> None:
        """Shares the order out among another number of processes."""
        order: Any = self.order  # of which len is all that is read
        super().__init__(order, num_replicas, rank)
        self._seed()

    def set_epoch(self, epoch: int) -> None:
        """Begins an epoch; nothing for the current one."""
        if epoch != self.order.epoch:
            self.order.set_epoch(epoch)
            self._seed()

    def _seed(self) -> None:
        self.generator.manual_seed(seed_of(self.order.generator.initial_seed(), self.rank))

    def __iter__(self) -> Iterator[int]:
        # All of it: what an order has drawn must not depend on how far a process reads.
        whole = list(self.order)
        return islice(cycle(whole), self.rank, self.total_size, self.num_replicas)


def of_process(order: EpochOrder, trainer: L.Trainer | None) -> Any:
    """The order, or the share of this process where Lightning would share samples out."""
    connector: Any = getattr(trainer, "_accelerator_connector", None)
    if trainer is None or not (connector.is_distributed and connector.use_distributed_sampler):
        return order
    return ProcessShare(order, **(trainer.distributed_sampler_kwargs or {}))


def common_seed(seed: int, trainer: L.Trainer | None) -> int:
    """The seed of the first process."""
    return seed if trainer is None else int(trainer.strategy.broadcast(seed))


class EpochSeed(L.Callback):
    """Seeds torch's global random numbers at the start of each epoch, from a seed and the epoch.

    With it what else is random in a training (dropout, augmentation) goes on after a resume as it
    would have gone on without. Each process has its own.

    Args:
        seed: A whole number that is not negative. Default: drawn at the first epoch, and kept in
            the checkpoint.

    Raises:
        ValueError: The seed is negative.
    """

    def __init__(self, seed: int | None = None) -> None:
        if seed is not None and seed < 0:
            raise ValueError(f"seed must not be negative; got {seed!r}")
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
