from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tolerance import threads

# What Lightning says of workers, log intervals and its own dependencies is not ours to mend.
OF_LIGHTNING = (r"ignore:::lightning\..*", r"ignore:::torch\.jit.*")


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Published data sets. Where their folder is named it must be there: no test may skip then."""
    folder = os.environ.get("FASTMMD_TEST_DATA")
    if not folder:
        pytest.skip("FASTMMD_TEST_DATA does not name the folder of published data sets")
    assert Path(folder).is_dir(), f"FASTMMD_TEST_DATA names {folder}, which is no folder"
    return Path(folder)


@pytest.fixture(autouse=True)
def _one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Networks of a training are small and gain nothing from more; tests may run side by side."""
    if request.node.get_closest_marker("training"):
        with threads(1):
            yield
    else:
        yield


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.get_closest_marker("training"):
        item.add_marker(pytest.mark.filterwarnings(*OF_LIGHTNING))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
