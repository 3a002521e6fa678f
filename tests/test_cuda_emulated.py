"""The CUDA kernels and their passes, run by the emulator on CPU tensors."""

from __future__ import annotations

import fcntl
import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from cuda_bodies import *  # noqa: F403
from cuda_bodies import forced, precision
from emulation.build import CXX, build
from tolerance import threads

from fastmmd.checks import ESTIMATORS
from fastmmd.ops import _cuda, _mmd2, _roads
from fastmmd.ops._roads import Device

pytestmark = pytest.mark.skipif(not shutil.which(CXX), reason="needs a C++ compiler")

HOPPER = Device((9, 0), "80 90a", 227 << 10, 50 << 20)


@pytest.fixture(scope="session")
def module(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> ModuleType:
    """The native module, its objects kept from run to run; one worker builds, the others wait."""
    cache = getattr(pytestconfig, "cache", None)
    folder = Path(cache.mkdir("emulation") if cache else tmp_path_factory.mktemp("emulation"))
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = build(folder)
    spec = importlib.util.spec_from_file_location("_cuda", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


class Emulator:
    device = torch.device("cpu")
    most = 2

    def has(self, products: int) -> bool:
        return True


@pytest.fixture(autouse=True)
def backend(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """CPU tensors are taken for those of a Hopper GPU. Memory that nobody writes to holds NaN."""
    monkeypatch.setattr(_cuda, "module", lambda: module)
    monkeypatch.setattr(_cuda, "device_of", lambda index: HOPPER)
    monkeypatch.setattr(_cuda, "stream_of", lambda x: (0, 0))
    monkeypatch.setattr(_cuda, "serves", lambda x: True)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    with threads(2):
        yield Emulator()
    torch.use_deterministic_algorithms(before)


def test_module_is_the_emulator(module: ModuleType) -> None:
    assert module.architectures() == "emulation"
    assert module.device_count() == 1
    assert module.compute_capability(0) == (9, 0)
    assert module.BLOCK_ROWS == _roads.BLOCK_ROWS
    assert module.DEPTH_UNIT == _roads.DEPTH_UNIT
    assert "_cuda" not in sys.modules


# A GPU is asked for its peak; here the sizes are added up of all that a pass allocates, on a device
# that has sizes alone.
@pytest.mark.parametrize("estimator", ["biased", "linear"])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 3), (torch.bfloat16, 4.5)])
def test_memory(
    module: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    estimator: str,
    dtype: torch.dtype,
    most: float,
) -> None:
    class Idle(module.Mmd2):  # type: ignore[name-defined, misc]
        def begin(self, *args: int) -> None:
            pass

        panel = pairs = finish = begin

    sizes = []

    def empty(*args: object, **options: object) -> torch.Tensor:
        made = allocate(*args, **options)
        sizes.append(made.numel() * made.element_size())
        return made

    allocate = torch.empty
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(_cuda, "module", lambda: SimpleNamespace(Mmd2=Idle))
    monkeypatch.setattr(_cuda, "add_product", lambda *tensors: None)
    n = m = 32768
    x, y = (allocate(k, 256, dtype=dtype, device="meta").requires_grad_() for k in (n, m))
    one = allocate(1, dtype=torch.float64, device="meta")
    constants = ((0,), (0.0, 0.0), (0,), (0,), (), ESTIMATORS[estimator], 0, 0)
    with precision("high"), forced(mode="panels" if estimator == "biased" else "pairs"):
        _mmd2.run((x, y, None, None, one, one), constants, (True, True, *[False] * 4))
    inputs = 2 * x.numel() * x.element_size()
    assert sum(sizes) <= most * inputs, [size / inputs for size in sizes]
