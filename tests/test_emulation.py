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


@pytest.fixture(scope="module")
def self_test(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_program(HERE / "self_test.cu", tmp_path_factory.mktemp("emulation"))


@pytest.fixture(scope="module")
def race_test(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_program(HERE / "self_test.cu", tmp_path_factory.mktemp("races"), races=True)


def run(program: Path, *arguments: str, seed: int = 0) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"FASTMMD_EMULATION_SEED": str(seed)}
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=100, env=env
    )


# The order of threads and blocks changes nothing.
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_emulator(self_test: Path, seed: int) -> None:
    done = run(self_test, seed=seed)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_race_where_there_is_none(race_test: Path) -> None:
    done = run(race_test)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["shared", "global", "reuse", "wgmma"])
def test_race_is_reported(race_test: Path, kind: str) -> None:
    done = run(race_test, kind)
    assert "WARNING: ThreadSanitizer: data race" in done.stderr
    assert done.returncode == 66
