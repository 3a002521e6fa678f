"""Which road a call took, and the arithmetic that its matrix products execute on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from fastmmd.checks import BIASED
from fastmmd.ops import _cuda, _roads
from fastmmd.ops._roads import FUSED, PANELS, SMALL, Device, Road

PRODUCTS = {
    _roads.SIMT: "multiply-adds",
    _roads.MMA: "mma.sync",
    _roads.WGMMA: "wgmma",
    _roads.CLUSTERS: "wgmma in clusters",
}
OPERANDS = {
    _roads.FLOAT32: "float32",
    _roads.FLOAT64: "float64",
    _roads.FLOAT16: "float16",
    _roads.BFLOAT16: "bfloat16",
    _roads.TF32: "tf32",
    _roads.TF32X3: "3 x tf32",
}
# A Hopper GPU, for a run without one.
STAND_IN = Device((9, 0), "90a", 227 << 10, 50 << 20)


class Work(NamedTuple):
    """What the matrix products of a pass come to."""

    road: str
    executed: float  # FLOP, of padded tiles too
    symmetric: str  # which products make use of symmetry


@contextmanager
def choosing(choose: Callable[..., Road]) -> Iterator[None]:
    """Let another function choose the roads for a while."""
    before, _cuda.choose = _cuda.choose, choose
    try:
        yield
    finally:
        _cuda.choose = before


def taken(call: Callable[[], object]) -> Road | None:
    """The road that a call of ours takes; None if it takes none, as on a CPU."""
    roads: list[Road] = []
    make = _cuda._Call.make

    def recording(self: _cuda._Call, road: Road, *args: int) -> Any:
        roads.append(road)
        return make(self, road, *args)

    _cuda._Call.make = recording  # type: ignore[method-assign]
    try:
        call()
    finally:
        _cuda._Call.make = make  # type: ignore[method-assign]
    return roads[-1] if roads else None


@contextmanager
def avoiding(*modes: str) -> Iterator[None]:
    """Let a choice be made among the other modes."""
    before = _cuda.choose

    def choose(*args: Any) -> Road:
        return before(*args[:-1], tuple(mode for mode in args[-1] if mode not in modes))

    with choosing(choose):
        yield


@contextmanager
def fusing() -> Iterator[None]:
    """Let the fused road be taken wherever it can be."""
    before = _cuda.choose

    def choose(*args: Any) -> Road:
        road = before(*args)
        return road._replace(mode=FUSED, products=_roads.MMA) if FUSED in args[-1] else road

    with choosing(choose):
        yield


@contextmanager
def without_clusters(*modes: str) -> Iterator[None]:
    """Let thread blocks load all of their rows themselves; without these modes, too."""
    before = _cuda.choose

    def choose(*args: Any) -> Road:
        road = before(*args)
        shared = road.products == _roads.CLUSTERS
        return road._replace(products=_roads.WGMMA) if shared else road

    with choosing(choose), avoiding(*modes):
        yield


def stand_in(
    n: int, d: int, dtype: Any, precision: str, families: list[int], gradients: bool
) -> Road:
    """The road that a Hopper GPU would take."""
    needs = (gradients, gradients, False, False, False, False)
    return _roads.road(n, n, (d,), dtype, precision, STAND_IN, families, BIASED, False, needs)


def work(n: int, d: int, road: Road, gradients: bool) -> Work:
    """Of two samples of n points."""
    rows = 2 * _roads.round_up(n, _roads.BLOCK_ROWS)
    depth = _roads.round_up(d, _roads.DEPTH_UNIT)
    # Tiles on the diagonal are made whole.
    triangle = rows * (rows + _roads.BLOCK_ROWS) / 2
    inner, outer = 2.0 * depth * triangle, 2.0 * d * rows**2
    symmetric = "inner products"
    if road.mode == FUSED:
        inner, outer = (2.0 * depth * rows**2,) * 2
        symmetric = "none"
    if road.mode == SMALL:
        inner, outer = (2.0 * d * (2 * n) ** 2,) * 2
        symmetric = "none"
    if road.operand == _roads.TF32X3:
        inner *= 3
        # Of panels, a product of float32 matrices.
        outer *= 1 if road.mode == PANELS else 3
    executed = inner + outer * gradients
    name = f"{road.mode}, {PRODUCTS[road.products]} of {OPERANDS[road.operand]}"
    return Work(name, executed, symmetric)
