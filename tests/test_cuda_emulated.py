"""The CUDA kernels and their passes, run by the emulator on CPU tensors."""

from __future__ import annotations

import ctypes
import shutil
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest
import torch
from cuda_bodies import *  # noqa: F403
from cuda_bodies import WIDE, cases, check, forced, gradients_of, on, precision
from emulation.build import CXX
from emulation.fixtures import Emulator, emulated_backend, emulated_module  # noqa: F401
from tolerance import make_case

from fastmmd.checks import ESTIMATORS
from fastmmd.ops import _cuda, _mmd2, _roads

pytestmark = pytest.mark.skipif(not shutil.which(CXX), reason="needs a C++ compiler")


def test_module_is_the_emulator(module: ModuleType) -> None:
    assert module.architectures() == "emulation"
    assert module.device_count() == 1
    assert module.compute_capability(0) == (9, 0)
    assert module.BLOCK_ROWS == _roads.BLOCK_ROWS
    assert module.DEPTH_UNIT == _roads.DEPTH_UNIT
    assert "_cuda" not in sys.modules


# --- small samples -------------------------------------------------------------------------------


def test_small_takes_two_launches(module: ModuleType, backend: Emulator) -> None:
    """Whatever the sizes and what is wanted."""
    launches = ctypes.CDLL(module.__file__).fastmmd_emulation_launches
    launches.restype = ctypes.c_uint64
    for size in (*WIDE.values(), (1, 1, 1), (64, 64, 256), (130, 126, 2000)):
        case = make_case(0, *size, "mean", weighted=True)
        for wanted in ((), ("x", "y", "x_weights", "y_weights")):
            before = launches()
            with forced(mode="small"):
                gradients_of(backend, case, wanted)
            assert launches() == before + 2


@pytest.mark.parametrize("size", ["4 x 4", "16 x 2"])
def test_order_of_blocks_changes_no_bit(
    backend: Emulator, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    case, runs = make_case(0, *WIDE[size], "mean"), []
    for seed in (0, 1, 2):
        monkeypatch.setenv("FASTMMD_EMULATION_SEED", str(seed))
        with forced(mode="small"):
            runs.append(on(backend)(case))
    for other in runs[1:]:
        for name, t in runs[0].items():
            assert torch.equal(t, other[name])


@pytest.mark.parametrize("size", WIDE)
def test_small_without_clusters(
    backend: Emulator, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    """As on GPUs before 9.0, where thread blocks cannot share products."""
    monkeypatch.setenv("FASTMMD_EMULATION_MAJOR", "8")
    with forced(mode="small"):
        check(backend, cases(*WIDE[size], "mean"))
        case = make_case(0, *WIDE[size], "mean")
        full = gradients_of(backend, case, ("x", "y"))
        for wanted in ((), ("y",)):
            for name, t in gradients_of(backend, case, wanted).items():
                assert torch.equal(t, full[name])


# --- memory --------------------------------------------------------------------------------------


@pytest.fixture
def allocated(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int, int, torch.dtype, str], int]:
    """Bytes of all that a pass allocates, on a device that has sizes alone, for n = m and d."""

    class Idle(module.Mmd2):  # type: ignore[name-defined, misc]
        def begin(self, *args: int) -> None:
            pass

        panel = pairs = finish = small = begin

    sizes: list[int] = []

    def empty(*args: object, **options: object) -> torch.Tensor:
        made = allocate(*args, **options)
        sizes.append(made.numel() * made.element_size())
        return made

    allocate = torch.empty
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(_cuda, "module", lambda: SimpleNamespace(Mmd2=Idle))
    monkeypatch.setattr(_cuda, "add_product", lambda *tensors: None)

    def run(n: int, d: int, dtype: torch.dtype, mode: str) -> int:
        sizes.clear()
        x, y = (allocate(n, d, dtype=dtype, device="meta").requires_grad_() for _ in range(2))
        one = allocate(1, dtype=torch.float64, device="meta")
        estimator = ESTIMATORS["linear" if mode == "pairs" else "biased"]
        constants = ((0,), (0.0, 0.0), (0,), (0,), (), estimator, 0, 0)
        with precision("high"), forced(mode=mode):
            _mmd2.run((x, y, None, None, one, one), constants, (True, True, *[False] * 4))
        return sum(sizes)

    return run


# A GPU is asked for its peak.
@pytest.mark.parametrize("mode", ["panels", "pairs"])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 3), (torch.bfloat16, 4.5)])
def test_memory(
    allocated: Callable[[int, int, torch.dtype, str], int],
    mode: str,
    dtype: torch.dtype,
    most: float,
) -> None:
    n, d = 32768, 256
    inputs = 2 * n * d * dtype.itemsize
    assert allocated(n, d, dtype, mode) <= most * inputs


@pytest.mark.parametrize("d", [8, 256, 2048])
def test_memory_of_small(allocated: Callable[[int, int, torch.dtype, str], int], d: int) -> None:
    """Two copies of the rows, the gradients, and a few numbers of each row: nothing of n x m."""
    for n in (8, 128, 512):
        rows = 2 * n * d * 4
        assert allocated(n, d, torch.float32, "small") <= 3 * rows + 64 * (2 * n + d) + 4096
