"""The two domains of the demo: handwritten digits, and other digits over pieces of photographs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from fastmmd.train import DomainPair

__all__ = ["SIDE", "ClutteredDigits", "DigitsPair", "Domains", "make_domains"]

SIDE = 28  # pixels per side of an image, after enlarging the 8 x 8 scans
CONTRAST = 0.7  # brightest possible clutter; a full stroke of a digit is 1
STRIP = 80  # width in pixels of the strips into which the photographs are cut

# Shares of the 1797 digits. Both domains get what they train on and, apart from that, what they
# are measured on.
SHARES = {"source_train": 0.40, "target_train": 0.35, "source_test": 0.10, "target_test": 0.15}
TEST_PATCHES = 4  # each target digit is measured over so many patches, for less noise


@dataclass(frozen=True)
class Domains:
    """What a seed trains on and is measured on. No digit is in two of the four."""

    source_train: TensorDataset  # images [n, 1, 28, 28] in [0, 1], labels [n]
    target_train: ClutteredDigits  # images only, a fresh patch each time
    source_test: TensorDataset
    target_test: TensorDataset  # TEST_PATCHES blocks of the same digits, in the same order

    def sizes(self) -> dict[str, int]:
        """Number of digits in each part."""
        return {
            "source_train": len(self.source_train),
            "target_train": len(self.target_train),
            "source_test": len(self.source_test),
            "target_test": len(self.target_test) // TEST_PATCHES,
        }


class ClutteredDigits(Dataset[Tensor]):
    """Unlabelled target images, each read of which is over a fresh random patch of a photograph.

    Args:
        digits: Digits [n, 1, 28, 28] in [0, 1].
        seed: Seed of the patches.
        held_out: Take the patches from the strips of the photographs that are kept for evaluation.
    """

    def __init__(self, digits: Tensor, seed: int, held_out: bool = False) -> None:
        self.digits = digits
        self.generator = torch.Generator().manual_seed(seed)
        self.photographs = [
            torch.from_numpy(image.astype(np.float32).mean(axis=2) / 255.0)  # [height, width]
            for image in load_sample_images().images
        ]
        self.lefts = left_edges(self.photographs[0].shape[1], held_out)

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> Tensor:
        digit = self.digits[index]
        return digit + (1 - digit) * CONTRAST * self.patch()

    def patch(self) -> Tensor:
        """A random patch [28, 28] in [0, 1]."""
        photograph = self.photographs[self._random(len(self.photographs))]
        top = self._random(photograph.shape[0] - SIDE + 1)
        left = int(self.lefts[self._random(len(self.lefts))])
        return photograph[top : top + SIDE, left : left + SIDE]

    def _random(self, high: int) -> int:
        return int(torch.randint(high, (), generator=self.generator))


def left_edges(width: int, held_out: bool) -> Tensor:
    """Left edges of the patches that lie wholly inside, or wholly outside, the held-out strips.

    Every third strip of the photographs is held out, so that clutter of training and of evaluation
    is of one kind and yet no pixel is in both.
    """
    kept = (torch.arange(width) // STRIP % 3 == 2) == held_out
    return kept.unfold(0, SIDE, 1).all(dim=1).nonzero().flatten()


def make_domains(seed: int) -> Domains:
    """Splits the digits at random, blind to the labels, and makes the fixed evaluation sets.

    Args:
        seed: Seed of the split and of all patches.

    Returns:
        The four parts. Labels of target digits are in ``target_test`` and nowhere else.
    """
    scans = load_digits()
    digits = torch.from_numpy(scans.images.astype(np.float32) / 16.0)[:, None]  # [1797, 1, 8, 8]
    digits = F.interpolate(digits, (SIDE, SIDE), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(scans.target).long()

    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
    counts = [round(share * len(digits)) for share in SHARES.values()]
    counts[-1] = len(digits) - sum(counts[:-1])
    part = dict(zip(SHARES, order.split(counts), strict=True))

    # Streams of patches of a seed: one for training, one for evaluation.
    train_stream, test_stream = 2 * seed, 2 * seed + 1
    clutter = ClutteredDigits(digits[part["target_test"]], test_stream, held_out=True)
    target_test = torch.stack(
        [clutter[i] for _ in range(TEST_PATCHES) for i in range(len(clutter))]
    )
    return Domains(
        source_train=TensorDataset(digits[part["source_train"]], labels[part["source_train"]]),
        target_train=ClutteredDigits(digits[part["target_train"]], train_stream),
        source_test=TensorDataset(digits[part["source_test"]], labels[part["source_test"]]),
        target_test=TensorDataset(target_test, labels[part["target_test"]].repeat(TEST_PATCHES)),
    )


class DigitsPair(DomainPair):
    """The demo's two domains as a data module, for ``fastmmd fit``.

    Args:
        batch_size: Samples per domain and step.
        seed: Seed of the split, of the clutter and of the order.
    """

    def __init__(self, batch_size: int = 128, seed: int = 0) -> None:
        domains = make_domains(seed)
        super().__init__(
            domains.source_train,
            domains.target_train,
            source_val=domains.source_test,
            target_val=domains.target_test,
            batch_size=batch_size,
            seed=seed,
        )
