"""The emulator that CUDA kernels run on where there is no GPU: its own tests, written in C++."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from emulation.build import CXX, HERE, build_program

pytestmark = [
    pytest.mark.xdist_group("emulation"),
    pytest.mark.skipif(not shutil.which(CXX), reason="needs a C++ compiler"),
]


@pytest.fixture(scope="session")
def self_test(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_program(HERE / "self_test.cu", tmp_path_factory.mktemp("emulation"))


# The order of threads and blocks, and how many blocks run at a time, change nothing.
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_emulator(self_test: Path, seed: int) -> None:
    env = os.environ | {"FASTMMD_EMULATION_SEED": str(seed)}
    done = subprocess.run([self_test], capture_output=True, text=True, timeout=100, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
