from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


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


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
