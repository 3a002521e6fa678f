"""What runs CUDA passes on the emulator: a module of tests imports these fixtures."""

from __future__ import annotations

import fcntl
import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch
from emulation.build import build
from tolerance import threads

from fastmmd.ops import _cuda, _roads
from fastmmd.ops._roads import Device

HOPPER = Device((9, 0), "80 90a", 227 << 10, 50 << 20)


@pytest.fixture(scope="session", name="module")
def emulated_module(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> ModuleType:
    """The native module, its objects kept from run to run; one worker builds, the others wait."""
    cache = getattr(pytestconfig, "cache", None)
    folder = Path(cache.mkdir("emulation") if cache else tmp_path_factory.mktemp("emulation"))
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = build(folder)
    return load(path)


@functools.cache
def load(path: Path) -> ModuleType:
    """Once, however many modules of tests ask for it."""
    spec = importlib.util.spec_from_file_location("_cuda", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


class Emulator:
    device = torch.device("cpu")
    most = 2
    eps = 2.0**-23

    def has(self, products: int) -> bool:
        return True


def add_product(v: torch.Tensor, w: torch.Tensor, z: torch.Tensor) -> None:
    """As a GPU does: of float32 factors TF32 is left, cut off at worst, if the setting is such."""
    if w.dtype == torch.float32 and _roads.precision() != _roads.HIGHEST:
        w, z = ((t.view(torch.int32) & -(1 << 13)).view(torch.float32) for t in (w, z))
    _add_product(v, w, z)


_add_product = _cuda.add_product


@contextmanager
def emulation(module: ModuleType) -> Iterator[Emulator]:
    """CPU tensors are taken for those of a Hopper GPU. Memory that nobody writes to holds NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    with pytest.MonkeyPatch.context() as monkeypatch, threads(2):
        monkeypatch.setattr(_cuda, "module", lambda: module)
        monkeypatch.setattr(_cuda, "device_of", lambda index: HOPPER)
        monkeypatch.setattr(_cuda, "stream_of", lambda x: (0, 0))
        monkeypatch.setattr(_cuda, "serves", lambda x: True)
        monkeypatch.setattr(_cuda, "add_product", add_product)
        yield Emulator()
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True, name="backend")
def emulated_backend(module: ModuleType) -> Iterator[Emulator]:
    with emulation(module) as backend:
        yield backend
