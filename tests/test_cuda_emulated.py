"""The CUDA kernels and their passes, run by the emulator on CPU tensors."""

from __future__ import annotations

import ctypes
import shutil
import sys
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from cuda_backend import cases, check, forced, gradients_of, on, precision
from cuda_bodies import *  # noqa: F403
from cuda_bodies import WIDE
from cuda_input_bodies import *  # noqa: F403
from emulation.build import CXX
from emulation.fixtures import Emulator, emulated_backend, emulated_module  # noqa: F401
from tolerance import make_case
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastmmd.checks import ESTIMATORS
from fastmmd.ops import _cuda, _mmd2, _roads
from fastmmd.ops._roads import FLOAT32, SIMT

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


class Peak(TorchDispatchMode):
    """The most bytes of storages that were alive at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), options: Any = None
    ) -> Any:
        made = function(*args, **(options or {}))
        for t in tree_leaves(made):
            if isinstance(t, torch.Tensor):
                storage = t.untyped_storage()
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {k: v for k, v in self.alive.items() if not v[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self.alive.values()))
        return made


@pytest.fixture
def peak(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Bytes that a pass takes, gradients included, on a device that has sizes alone.

    For n = m and d, a Gaussian or a product of one for each width.
    """

    class Idle(module.Mmd2):  # type: ignore[name-defined, misc]
        def begin(self, *args: int) -> None:
            pass

        panel = pairs = finish = small = begin

    monkeypatch.setattr(_cuda, "module", lambda: SimpleNamespace(Mmd2=Idle))
    monkeypatch.setattr(_cuda, "add_product", lambda *tensors: None)

    def run(n: int, d: int, dtype: torch.dtype, widths: Sequence[int] = (), **road: Any) -> int:
        x, y = (torch.empty(n, d, dtype=dtype, device="meta").requires_grad_() for _ in range(2))
        count = max(len(widths), 1)
        scales = torch.empty(count, dtype=torch.float64, device="meta")
        estimator = ESTIMATORS["linear" if road["mode"] == "pairs" else "biased"]
        of_terms = [0] * count, [0.0] * 2 * count, [0] * count, list(range(count)), widths
        torch.use_deterministic_algorithms(False)  # nothing is filled
        with precision("high"), forced(**road), Peak() as found:
            _mmd2.run(
                (x, y, None, None, scales, scales),
                (*of_terms, estimator, 0, 0),
                (True, True, *[False] * 4),
            )
        return found.bytes

    return run


# A GPU is asked for its peak.
@pytest.mark.parametrize("mode", ["panels", "pairs"])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 3), (torch.bfloat16, 4.5)])
def test_memory(peak: Callable[..., int], mode: str, dtype: torch.dtype, most: float) -> None:
    n, d = 32768, 256
    inputs = 2 * n * d * dtype.itemsize
    assert peak(n, d, dtype, mode=mode) <= most * inputs


def test_memory_where_points_are_split(peak: Callable[..., int]) -> None:
    n, d = 32768, 256
    for road in (
        {"widths": (128, 128)},
        {"products": SIMT, "operand": FLOAT32},
    ):
        assert peak(n, d, torch.float32, mode="panels", **road) <= 4 * 2 * n * d * 4
    assert peak(512, 1 << 16, torch.float32, (1 << 15, 1 << 15), mode="panels") <= 4 << 28


@pytest.mark.parametrize("d", [8, 256, 2048])
def test_memory_of_small(peak: Callable[..., int], d: int) -> None:
    """Two copies of the rows, the gradients, and a few numbers of each row: nothing of n x m."""
    for n in (8, 128, 512):
        rows = 2 * n * d * 4
        assert peak(n, d, torch.float32, mode="small") <= 3 * rows + 64 * (2 * n + d) + 4096
