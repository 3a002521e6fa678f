from __future__ import annotations

import pytest
import torch

from fastmmd.ops import _cuda, _roads


class Gpu:
    """Where the tests of other modules run that the emulator runs, too."""

    most = 4
    eps = 2.0**-19  # tensor cores cut sums off, bit by bit

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())

    def has(self, products: int) -> bool:
        code = _roads.target(_cuda.device_of(self.device.index))
        if products in (_roads.WGMMA, _roads.CLUSTERS):
            return code == "90a"
        return int(code.rstrip("af")) >= {_roads.SIMT: 75, _roads.MMA: 80}[products]


@pytest.fixture
def backend() -> Gpu:
    return Gpu()


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())
