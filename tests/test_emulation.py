"""The emulator that CUDA kernels run on where there is no GPU: its own tests, written in C++."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from emulation.build import CSRC, CXX, HERE, build_program

pytestmark = [
    pytest.mark.xdist_group("emulation"),
    pytest.mark.skipif(not shutil.which(CXX), reason="needs a C++ compiler"),
]


CASES = HERE / "cases"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Builds a case, once."""
    directory = tmp_path_factory.mktemp("emulation")

    @functools.cache
    def build(name: str, sanitize: str = "") -> Path:
        output = directory / (sanitize or "plain")
        return build_program(CASES / f"{name}.cu", output, sanitize=sanitize)

    return build


def run(
    program: Path, *arguments: str, seed: int = 0, timeout: float = 100
) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"FASTMMD_EMULATION_SEED": str(seed)}
    try:
        return subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=timeout, env=env
        )
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"over {timeout:.0f} s, after {(error.stdout or b'')[-400:]!r}")


# The order of threads and blocks changes nothing.
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_instructions(programs: Callable[..., Path], seed: int) -> None:
    done = run(programs("instructions"), seed=seed)
    assert done.returncode == 0, done.stdout + done.stderr


def test_faults_are_reported(programs: Callable[..., Path]) -> None:
    done = run(programs("faults"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_race_where_there_is_none(programs: Callable[..., Path]) -> None:
    done = run(programs("instructions", "thread"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["shared", "cluster", "global", "reuse", "wgmma"])
def test_races_are_reported(programs: Callable[..., Path], kind: str) -> None:
    done = run(programs("faults", "thread"), kind)
    assert "WARNING: ThreadSanitizer: data race" in done.stderr
    assert done.returncode == 66


@pytest.mark.parametrize("kind", ["past-shared", "past-global"])
def test_wrong_addresses_are_reported(programs: Callable[..., Path], kind: str) -> None:
    done = run(programs("faults", "address"), kind)
    assert "ERROR: AddressSanitizer" in done.stderr
    assert done.returncode == 1


@pytest.mark.gpu
@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs the CUDA compiler")
def test_instructions_of_the_device(tmp_path: Path) -> None:
    """The same on hardware: that the emulator does what it stands for."""
    major, minor = torch.cuda.get_device_capability()
    target = f"sm_{major}{minor}" + ("a" if major == 9 else "")
    program = tmp_path / "instructions"
    sources = [CASES / "instructions.cu", CSRC / "cuda" / "tensor_map.cu"]
    command = ["nvcc", "-std=c++17", f"-arch={target}", f"-I{CSRC}", *map(str, sources)]
    subprocess.run([*command, "-o", str(program)], check=True)
    done = run(program, timeout=15)
    assert done.returncode == 0, done.stdout + done.stderr
