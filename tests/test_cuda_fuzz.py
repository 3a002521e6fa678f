"""A few of the random cases of ``fuzz_cuda.py``, which runs as many as are asked for."""

from __future__ import annotations

import shutil

import pytest
from emulation.build import CXX
from emulation.fixtures import Emulator, emulated_backend, emulated_module  # noqa: F401
from fuzz_cuda import ROADS, draw, try_case

pytestmark = pytest.mark.skipif(not shutil.which(CXX), reason="needs a C++ compiler")


@pytest.mark.parametrize("road", ROADS)
def test_random_cases(backend: Emulator, road: str) -> None:
    tried = [try_case(number, draw((road,), 8, number), backend) for number in range(12)]
    for outcome in tried:
        assert outcome.narrow_ratio <= 1, str(outcome)
    assert sum(bool(outcome.found) for outcome in tried) >= 10  # the others were refused
