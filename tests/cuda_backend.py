"""Where CUDA passes run in tests, by which road, and what their results are held to.

Results are held to the tolerance rule at the precision of the operands: inputs are rounded to them
once they are centred, and all else is made of the rounded ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pytest
import tolerance
import torch
from tolerance import SEEDS, WITH_AND_WITHOUT_WEIGHTS, Case, Results, make_case, native
from torch import Tensor

import fastmmd as fm
from fastmmd.ops import _cuda, _roads
from fastmmd.ops._roads import BFLOAT16, FLOAT16, FLOAT32, MMA, TF32, Road

PLAIN = [(e, w) for e, w in WITH_AND_WITHOUT_WEIGHTS if e in ("biased", "unbiased", "cross")]
FEW = ("linear", "block", "incomplete")


class Backend(Protocol):
    """Where the kernels run."""

    device: torch.device

    most: int  # cases that are tried, of those that differ in their seed
    eps: float  # of a sum of exact products that PyTorch makes where it multiplies as TF32

    def has(self, products: int) -> bool:
        """Whether there are such products."""


class Refused(AssertionError):
    """The native side does not take a road."""


@dataclass
class Forced:
    """What is put in the place of the road that would be chosen."""

    mode: str | None = None
    products: int | None = None
    operand: int | None = None
    panel_rows: int | None = None
    taken: int = 0

    def __call__(self, *facts: Any) -> Road:
        *facts, modes = facts
        if self.mode is not None:
            if self.mode not in modes:
                raise Refused(self.mode)
            modes = (self.mode,)
        self.taken += 1
        road = _roads.road(*facts, modes)
        if self.mode in ("small", "fused"):
            road = road._replace(mode=self.mode)
        names = ("products", "operand", "panel_rows")
        return road._replace(**{k: v for k in names if (v := getattr(self, k)) is not None})


@contextmanager
def forced(**road: Any) -> Iterator[Forced]:
    """A road for all passes in a block; nothing but what is named is changed."""
    before, choice = _cuda.choose, Forced(**road)
    _cuda.choose = choice
    try:
        yield choice
    finally:
        _cuda.choose = before
    assert choice.taken


@contextmanager
def precision(setting: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def exactly(operand: int) -> AbstractContextManager[None]:
    """PyTorch multiplies panels no worse than this operand is multiplied."""
    return precision("high" if operand in bits else "highest")


def on(backend: Backend, held: Collection[str] = ()) -> Callable[[Case], Results]:
    """What is under test, on the device of the backend; no gradient to what is ``held``."""

    def run(case: Case) -> Results:
        moved = replace(
            case,
            kernel=copy.deepcopy(case.kernel).to(backend.device),
            **{
                name: t.to(backend.device)
                for name in ("x", "y", "x_weights", "y_weights")
                if (t := getattr(case, name)) is not None
            },
        )
        return {name: t.cpu() for name, t in native(moved, held).items()}

    return run


def needs(backend: Backend, products: int) -> None:
    """Skips a test where there are no such products."""
    if not backend.has(products):
        pytest.skip("no such products")


def road_of(backend: Backend, mode: str, operand: int) -> dict[str, Any]:
    """For :func:`forced`, with "tensor cores" for panels by them, which have this operand then."""
    if mode not in ("tensor cores", "fused"):
        return {"mode": mode}
    needs(backend, MMA)
    mode = "panels" if mode == "tensor cores" else mode
    return {"mode": mode, "products": MMA, "operand": operand}


bits = {TF32: 11, FLOAT16: 11, BFLOAT16: 8}  # of the operands' significands, the hidden one too


def to_operand(t: Tensor, operand: int) -> Tensor:
    """Rounded to its bits, where it has fewer than the compute precision; the gradient passes."""
    if operand not in bits:
        return t
    steps = 2.0 ** bits[operand]
    mantissa, exponent = torch.frexp(t.detach())
    return t + (torch.ldexp((mantissa * steps).round() / steps, exponent) - t.detach())


def rounded(operand: int) -> dict[str, Any]:
    """Options of :func:`tolerance.check` for results that are made of operands of fewer bits."""
    if operand not in bits:
        return {}

    def centre(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x, y = tolerance.centred_in_double(x, y)
        return to_operand(x, operand), to_operand(y, operand)

    return {"centre": centre, "eps": 2.0 ** -bits[operand]}


def cases(n: int, m: int, d: int, *args: Any, **options: Any) -> list[Case]:
    return [make_case(seed, n, m, d, *args, **options) for seed in SEEDS]


def check(backend: Backend, made: list[Case], operand: int = FLOAT32, **options: Any) -> None:
    tolerance.check(made, on(backend), most=backend.most, **rounded(operand), **options)


def clustered(case: Case, seed: int, width: float = 2e-4) -> Case:
    """All points in three clusters, thousands of times narrower than they are apart; some twice."""
    centres = 2 * torch.randn(3, case.x.shape[1], generator=torch.Generator().manual_seed(seed))
    x, y = (
        (centres[torch.arange(len(t)) % 3] + width * t.to(centres)).to(t) for t in (case.x, case.y)
    )
    y[:5] = x[:5]
    return replace(case, x=x, y=y)


def gradients_of(backend: Backend, case: Case, wanted: tuple[str, ...]) -> Results:
    tensors = {
        name: t.to(backend.device).requires_grad_(name in wanted)
        for name in ("x", "y", "x_weights", "y_weights")
        if (t := getattr(case, name)) is not None
    }
    kernel = copy.deepcopy(case.kernel).to(backend.device)
    for parameter in kernel.parameters():
        parameter.requires_grad_("kernel" in wanted)
    weights = tensors.get("x_weights"), tensors.get("y_weights")
    value = fm.mmd2(tensors["x"], tensors["y"], kernel, case.estimator, *weights)
    tensors |= dict(kernel.named_parameters())
    moving = {name: t for name, t in tensors.items() if t.requires_grad}
    if not moving:
        return {"value": value}
    found = torch.autograd.grad(value, list(moving.values()))
    return {"value": value.detach(), **dict(zip(moving, found, strict=True))}
