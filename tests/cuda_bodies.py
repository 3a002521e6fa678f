"""What holds of the CUDA kernels wherever they run: on a GPU, or on the emulator.

The modules that run these tests give a ``backend``. Results are held to the tolerance rule at the
precision of the operands: inputs are rounded to them once they are centred, and all else is made of
the rounded ones.
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
from tolerance import (
    FAMILIES,
    KERNELS,
    SEEDS,
    WITH_AND_WITHOUT_WEIGHTS,
    Case,
    Results,
    make_case,
    make_kernel,
    make_product,
    native,
)
from torch import Tensor

import fastmmd as fm
from fastmmd import ops, reference
from fastmmd.checks import BIASED
from fastmmd.ops import _cuda, _roads
from fastmmd.ops._roads import (
    BFLOAT16,
    CLUSTERS,
    FLOAT16,
    FLOAT32,
    MMA,
    SIMT,
    TF32,
    TF32X3,
    WGMMA,
    Road,
)

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


# --- the general road ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "estimator", "weighted"),
    [(k, *e) for k in FAMILIES for e in PLAIN]
    + [(k, "biased", False) for k in KERNELS if k not in FAMILIES],
)
def test_panels(backend: Backend, kernel: str, estimator: str, weighted: bool) -> None:
    with forced(mode="panels", products=SIMT, operand=FLOAT32, panel_rows=128):
        check(backend, cases(46, 131, 5, kernel, estimator, weighted=weighted))


def test_panels_of_narrow_kernels(backend: Backend) -> None:
    """A narrow Gaussian tells what inner products leave of a distance."""
    with forced(mode="panels", products=SIMT, operand=FLOAT32):
        check(backend, cases(150, 37, 5, "wide"))


@pytest.mark.parametrize("operand", [TF32X3, TF32, BFLOAT16])
@pytest.mark.parametrize("kernel", ["cosine", "polynomial", "polynomial width", "mixture"])
def test_products_far_from_zero(backend: Backend, kernel: str, operand: int) -> None:
    """Little is left of gradients whose parts are large; least where rows point the same way."""
    if not backend.has(MMA):
        pytest.skip("no tensor cores")
    estimators = ("biased", "cross")
    made = [
        cases(20, 13, 33, kernel, estimator, weighted=weighted, offset=100.0)
        for estimator in estimators
        for weighted in (False, True)
    ]
    with exactly(operand), forced(mode="panels", products=MMA, operand=operand):
        for each in made:
            check(backend, each, operand)
    if kernel == "polynomial width":
        with exactly(operand), forced(mode="fused", products=MMA, operand=operand):
            for estimator in estimators:
                check(backend, cases(20, 13, 33, kernel, estimator, offset=100.0), operand)


@pytest.mark.parametrize("kernel", ["cosine", "polynomial width"])
@pytest.mark.parametrize("operand", [TF32X3, TF32])
def test_padding_far_from_zero(backend: Backend, kernel: str, operand: int) -> None:
    """Rows of weight 0 do not take the others' digits, wherever they are and however many."""
    if not backend.has(MMA):
        pytest.skip("no tensor cores")
    made = cases(40, 33, 17, kernel, weighted=True)
    for case in made:
        for samples, weights in ((case.x, case.x_weights), (case.y, case.y_weights)):
            samples.data[5:] = 100.0
            weights.data[5:] = 0
    with exactly(operand), forced(mode="panels", products=MMA, operand=operand):
        check(backend, made, operand)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kernel", [fm.Linear(), fm.Polynomial(2), fm.Cosine()])
def test_a_bad_row_is_one_row(backend: Backend, kernel: fm.Kernel, bad: float) -> None:
    case = make_case(0, 30, 40, 6)
    x = case.x.clone().to(backend.device)
    x[3, 2] = bad
    ones = torch.ones(40, 1, device=backend.device)
    sums = fm.kernel_sum(x, case.y.to(backend.device), ones, kernel)
    assert not sums[3].isfinite().all()
    assert sums[torch.arange(30) != 3].isfinite().all()


def test_cosines_of_subnormal_rows(backend: Backend) -> None:
    case = make_case(0, 20, 13, 5, dtype=torch.float64)
    x, y = (t.to(backend.device) for t in (case.x, case.y))
    expected = fm.mmd2(x, y, fm.Cosine())
    tiny = fm.mmd2(x * 2.0**-1020, y * 2.0**-1020, fm.Cosine())
    torch.testing.assert_close(tiny, expected, rtol=1e-2, atol=0)


FEW_POINTS = {
    "median": {},
    "laplacian": {"weighted": True},
    "cosine": {},
    "polynomial width": {"estimator": "unbiased"},
}


@pytest.mark.parametrize("kernel", FEW_POINTS)
@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_few_points(backend: Backend, setting: str, kernel: str) -> None:
    """They do not lose the digits that PyTorch is told to do without."""
    eps = 2.0**-23 if setting == "highest" else backend.eps
    for n, m, d in ((7, 8, 300), (150, 37, 40)):
        made = [clustered(c, i) for i, c in enumerate(cases(n, m, d, kernel, **FEW_POINTS[kernel]))]
        with precision(setting):
            tolerance.check(made, on(backend), most=backend.most, eps=eps)


def test_panels_of_single_threads_are_exact(backend: Backend) -> None:
    made = [clustered(c, i) for i, c in enumerate(cases(44, 131, 20, "polynomial"))]
    with precision("high"), forced(mode="panels", products=SIMT, operand=FLOAT32):
        tolerance.check(made, on(backend), most=backend.most, eps=backend.eps)


@pytest.mark.parametrize(("operand", "dtype"), [(TF32, torch.float16), (BFLOAT16, torch.bfloat16)])
@pytest.mark.parametrize("kernel", ["polynomial", "polynomial width"])
def test_inner_products_of_clusters(
    backend: Backend, kernel: str, operand: int, dtype: torch.dtype
) -> None:
    """Nearly all of a gradient cancels: weights are not rounded."""
    if not backend.has(MMA):
        pytest.skip("no tensor cores")
    for n, m in ((8, 9), (40, 130)):
        made = [clustered(c, i, 4e-3) for i, c in enumerate(cases(n, m, 70, kernel, dtype=dtype))]
        with precision("high"), forced(mode="panels", products=MMA, operand=operand):
            check(backend, made, operand)


@pytest.mark.parametrize(("d", "first"), [(1, 48), (1, 360), (3, 384)])
@pytest.mark.parametrize("mode", ["panels", "fused"])
def test_short_rows(backend: Backend, mode: str, d: int, first: int) -> None:
    """Few products of three of TF32 hide none of their rounding from narrow Gaussians."""
    if not backend.has(MMA):
        pytest.skip("no tensor cores")
    made = [make_case(seed, 17, 3, d, "wide") for seed in range(first, first + 8)]
    with forced(mode=mode, products=MMA, operand=TF32X3):
        tolerance.check(made, on(backend))


@pytest.mark.parametrize(("kernel", "offset"), [("polynomial", 0.0), ("polynomial width", 100.0)])
def test_long_rows(backend: Backend, kernel: str, offset: float) -> None:
    """The rounding of a long sum does not add up; what is left of large values tells."""
    made = cases(20, 13, 1500, kernel, weighted=True, offset=offset)
    with forced(mode="panels", products=SIMT, operand=FLOAT32):
        check(backend, made)


@pytest.mark.parametrize(("estimator", "weighted"), [("biased", True), ("unbiased", False)])
@pytest.mark.parametrize("kernel", FAMILIES)
def test_panels_of_float64(backend: Backend, kernel: str, estimator: str, weighted: bool) -> None:
    with forced(panel_rows=128):
        check(backend, cases(31, 140, 6, kernel, estimator, dtype=torch.float64, weighted=weighted))


PRODUCTS = [
    (MMA, TF32X3),
    (MMA, TF32),
    (MMA, BFLOAT16),
    (MMA, FLOAT16),
    (WGMMA, TF32),
    (WGMMA, BFLOAT16),
    (WGMMA, FLOAT16),
    (CLUSTERS, TF32),
]


@pytest.mark.parametrize(
    ("kernel", "estimator", "weighted", "products", "operand"),
    [
        (*case, *made)
        for case in (
            ("bank", "biased", False),
            ("mean", "unbiased", False),
            ("bank", "cross", True),
            ("gaussian", "unbiased", True),
        )
        for made in PRODUCTS
        if not (case[2] and made[1] == FLOAT16)  # which has no range for weights
    ],
)
def test_tensor_cores(
    backend: Backend, kernel: str, estimator: str, weighted: bool, products: int, operand: int
) -> None:
    if not backend.has(products):
        pytest.skip("no such products")
    with exactly(operand), forced(mode="panels", products=products, operand=operand):
        check(backend, cases(150, 37, 40, kernel, estimator, weighted=weighted), operand)


# Rows of one, two and three tiles, and with an odd one at the edge; steps that fill no ring, and
# several rounds of it.
@pytest.mark.parametrize(("n", "m", "d"), [(300, 130, 200), (90, 260, 97), (256, 384, 30)])
@pytest.mark.parametrize("operand", [TF32, BFLOAT16, FLOAT16])
def test_clusters(backend: Backend, operand: int, n: int, m: int, d: int) -> None:
    if not backend.has(CLUSTERS):
        pytest.skip("no such products")
    made = cases(n, m, d, "bank")[:2]
    with precision("high"):
        with forced(mode="panels", products=CLUSTERS, operand=operand):
            check(backend, made, operand)
            runs = [on(backend)(made[0]) for _ in range(2)]
        with forced(mode="panels", products=WGMMA, operand=operand):
            alone = on(backend)(made[0])
    for name, t in runs[0].items():
        assert torch.equal(t, runs[1][name])
        if name != "value":  # blocks take other tiles, and sums have another order
            assert torch.equal(t, alone[name])


@pytest.mark.parametrize(
    ("products", "operand"), [(MMA, TF32X3), (MMA, TF32), (WGMMA, TF32), (WGMMA, BFLOAT16)]
)
@pytest.mark.parametrize("kernel", FAMILIES)
def test_families_on_tensor_cores(
    backend: Backend, kernel: str, products: int, operand: int
) -> None:
    if not backend.has(products):
        pytest.skip("no such products")
    with (
        exactly(operand),
        forced(mode="panels", products=products, operand=operand, panel_rows=128),
    ):
        check(backend, cases(140, 20, 70, kernel, "biased"), operand)


@pytest.mark.parametrize("operand", [TF32X3, TF32, BFLOAT16, FLOAT16])
@pytest.mark.parametrize("estimator", ["biased", "unbiased", "cross"])
@pytest.mark.parametrize(("n", "m", "d"), [(150, 37, 40), (1, 300, 3), (70, 70, 200)])
def test_fused(backend: Backend, operand: int, estimator: str, n: int, m: int, d: int) -> None:
    if estimator == "unbiased":
        n = max(n, 2)
    if not backend.has(MMA):
        pytest.skip("no tensor cores")
    for kernel in ("bank",) if operand == FLOAT16 else ("mean", "energy"):
        with exactly(operand), forced(mode="fused", products=MMA, operand=operand):
            check(backend, cases(n, m, d, kernel, estimator), operand)


@pytest.mark.parametrize(("estimator", "weighted"), PLAIN)
@pytest.mark.parametrize("kernel", ["bank", "mean", "sqrt2", "laplacian mean", "energy"])
def test_small(backend: Backend, kernel: str, estimator: str, weighted: bool) -> None:
    sizes = [(20, 13, 5)]
    if kernel == "mean":
        sizes += [(2, 70, 33), (130, 150, 3)]
    for n, m, d in sizes:
        with forced(mode="small"):
            check(backend, cases(n, m, d, kernel, estimator, weighted=weighted))


# Sizes by the rows of a thread block and the blocks of a cluster, where there are clusters.
WIDE = {
    "4 x 8": (9, 20, 1100),
    "4 x 4": (40, 40, 1200),
    "8 x 4": (70, 80, 130),
    "16 x 4": (201, 99, 97),
    "16 x 2": (270, 330, 40),
}


@pytest.mark.parametrize("size", WIDE)
@pytest.mark.parametrize("kernel", ["mean", "energy"])
def test_small_and_wide(backend: Backend, kernel: str, size: str) -> None:
    with forced(mode="small"):
        check(backend, cases(*WIDE[size], kernel))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_and_wide_of_half(backend: Backend, dtype: torch.dtype) -> None:
    with forced(mode="small"):
        check(backend, cases(40, 40, 1200, "mean", "unbiased", dtype=dtype, weighted=True))


@pytest.mark.parametrize("size", WIDE)
@pytest.mark.parametrize("wanted", [(), ("x",), ("y",), ("x_weights",)])
def test_needs_of_small_and_wide(backend: Backend, size: str, wanted: tuple[str, ...]) -> None:
    """What is asked for beside it changes no bit."""
    case = make_case(0, *WIDE[size], "mean", weighted=True)
    everything = ("x", "y", "x_weights", "y_weights")
    with forced(mode="small"):
        full = gradients_of(backend, case, everything)
        for name, t in gradients_of(backend, case, wanted).items():
            assert torch.equal(t, full[name])


@pytest.mark.parametrize("exponent", [-60, 0, 60])
@pytest.mark.parametrize("size", ["4 x 8", "16 x 4"])
def test_near_rows_of_small_and_wide(backend: Backend, size: str, exponent: int) -> None:
    """All rows twice: distances are made from differences."""
    n, m, d = WIDE[size]
    x = make_case(0, (n + m) // 2, 3, d).x.to(backend.device) * 2.0**exponent
    for kernel in ("mean", "laplacian mean"):
        k = make_kernel(kernel, d).to(backend.device)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        with forced(mode="small"):
            value = fm.mmd2(a, b, k)
        assert abs(float(value.detach())) <= 1e-6
        for v in torch.autograd.grad(value, (a, b)):
            assert float(v.abs().max()) * 2.0**exponent <= 1e-6


def test_nan_of_small_and_wide(backend: Backend) -> None:
    n, m, d = WIDE["4 x 4"]
    case = make_case(0, n, m, d)
    for column in (0, d // 2, d - 1):
        x = case.x.clone()
        x[3, column] = float("nan")
        x, y = (t.to(backend.device).requires_grad_() for t in (x, case.y))
        with forced(mode="small"):
            value = fm.mmd2(x, y, fm.Gaussian(2.0))
            v_x, _ = torch.autograd.grad(value, (x, y))
        assert value.isnan()
        assert v_x[3].isnan().all()


@pytest.mark.parametrize("estimator", FEW)
@pytest.mark.parametrize("kernel", [*FAMILIES, "sum", "mean"])
def test_few_pairs(backend: Backend, kernel: str, estimator: str) -> None:
    check(backend, cases(46, 51, 5, kernel, estimator))


@pytest.mark.parametrize("estimator", FEW)
@pytest.mark.parametrize(("n", "m"), [(2, 3), (200, 131)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_few_pairs_of_any_size(
    backend: Backend, estimator: str, n: int, m: int, dtype: torch.dtype
) -> None:
    for kernel in ("bank", "polynomial"):
        check(backend, cases(n, m, 7, kernel, estimator, dtype=dtype))


# --- sizes, dtypes, offsets ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "m", "d", "dtype"),
    [(65, 200, 257, torch.float32)]
    + [
        (*size, dtype)
        for size in ((1, 1, 1), (1, 150, 2), (129, 1, 3), (128, 128, 32))
        for dtype in tolerance.DTYPES
    ],
)
def test_sizes(backend: Backend, n: int, m: int, d: int, dtype: torch.dtype) -> None:
    # Of one pair of points gradients may cancel.
    alone = n == 1 or m == 1
    for kernel in ("gaussian", "linear"):
        with forced(mode="panels", products=SIMT, operand=_cuda.plain_operand(dtype)):
            check(backend, cases(n, m, d, kernel, dtype=dtype), degenerate=alone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kernel", ["bank", "gaussian", "laplacian", "polynomial"])
def test_half(backend: Backend, kernel: str, dtype: torch.dtype) -> None:
    for n, m, mode in ((40, 33, "small"), (520, 510, "panels")):
        chosen = []

        def note(*facts: Any, chosen: list[Road] = chosen) -> Road:
            chosen.append(_roads.road(*facts))
            return chosen[-1]

        before, _cuda.choose = _cuda.choose, note
        try:
            made = cases(n, m, 12, kernel, dtype=dtype)
            operand = _roads.operand_of(dtype, "highest", made[0].terms().families, False, 1.0)
            if not backend.has(MMA) or n + m <= _roads.SMALL_ROWS:
                operand = FLOAT32
            check(backend, made, operand)
        finally:
            _cuda.choose = before
        assert chosen[0].mode in (mode, "fused")


@pytest.mark.parametrize("operand", [FLOAT32, TF32X3, TF32, BFLOAT16, FLOAT16])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_offset(backend: Backend, operand: int, estimator: str) -> None:
    products = SIMT if operand == FLOAT32 else MMA
    if not backend.has(products):
        pytest.skip("no such products")
    for kernel in ("bank", "multiquadric"):
        made = cases(90, 101, 20, kernel, estimator, offset=100.0)
        with exactly(operand), forced(mode="panels", products=products, operand=operand):
            check(backend, made, operand)


@pytest.mark.parametrize("exponent", [-60, -30, 30, 60])
@pytest.mark.parametrize("operand", [FLOAT32, TF32, BFLOAT16, FLOAT16])
def test_magnitudes(backend: Backend, operand: int, exponent: int) -> None:
    """Powers of two change the gradient by their inverse, and nothing else."""
    products = SIMT if operand == FLOAT32 else MMA
    if not backend.has(products):
        pytest.skip("no such products")
    case = make_case(0, 50, 40, 6, fm.Gaussian("mean"))
    factor = 2.0**exponent
    scaled = replace(case, x=case.x * factor, y=case.y * factor)
    with exactly(operand), forced(mode="panels", products=products, operand=operand):
        a, b = on(backend)(case), on(backend)(scaled)
    torch.testing.assert_close(b["value"], a["value"], rtol=1e-6, atol=0)
    for name in ("x", "y"):
        torch.testing.assert_close(b[name] * factor, a[name], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("mode", ["panels", "small"])
def test_layouts(backend: Backend, mode: str) -> None:
    case = make_case(0, 40, 33, 6, "mean")
    x, y = case.x.to(backend.device), case.y.to(backend.device)
    wide = torch.randn(80, 13, device=backend.device)
    with forced(mode=mode):
        expected = fm.mmd2(x, y)
        wide[::2, 1::2] = x
        assert torch.equal(fm.mmd2(wide[::2, 1::2], y.T.contiguous().T), expected)
        row = x[:1].expand(40, 6)
        assert torch.equal(fm.mmd2(row, y), fm.mmd2(row.contiguous(), y))


# --- what is asked for ---------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    "wanted",
    [
        (),
        ("x",),
        ("y",),
        ("x_weights",),
        ("x", "y_weights"),
        ("kernel",),
        ("y", "kernel"),
        ("x_weights", "y_weights", "kernel"),
    ],
)
@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_needs(backend: Backend, wanted: tuple[str, ...], kernel: str) -> None:
    """What is asked for beside it changes no gradient."""
    case = make_case(0, 140, 60, 4, kernel, weighted=True, dtype=torch.float64)
    everything = ("x", "y", "x_weights", "y_weights", "kernel")
    with forced(panel_rows=128):
        full = gradients_of(backend, case, everything)
        some = gradients_of(backend, case, wanted)
    for name, t in some.items():
        torch.testing.assert_close(t, full[name], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("estimator", ["biased", "unbiased", "linear", "cross"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_of_kernels(backend: Backend, estimator: str, dtype: torch.dtype) -> None:
    for names, widths in (
        (("bank", "linear"), (5, 3)),
        (("mean", "cosine", "laplacian"), (2, 33, 1)),
        (("multiquadric",) * 8, (1,) * 8),
    ):
        made = [
            make_product(case, names, widths)
            for case in cases(44, 31, sum(widths), "bank", estimator, dtype=dtype)
        ]
        check(backend, made)


@pytest.mark.parametrize("setting", ["high", "medium"])
def test_products_of_kernels_are_exact(backend: Backend, setting: str) -> None:
    """They do not lose the digits that PyTorch is told to do without, either."""
    names, widths = ("bank", "cosine", "rational"), (5, 33, 7)
    for estimator in ("biased", "cross"):
        made = [make_product(case, names, widths) for case in cases(44, 131, 45, "bank", estimator)]
        with precision(setting):
            tolerance.check(made, on(backend), most=backend.most, eps=backend.eps)


def test_weights_of_products_of_kernels(backend: Backend) -> None:
    for estimator in ("biased", "unbiased", "cross"):
        made = [
            make_product(case, ("bank", "laplacian"), (5, 3))
            for case in cases(44, 31, 8, "bank", estimator, weighted=True)
        ]
        check(backend, made)


def test_constant_factors(backend: Backend) -> None:
    case = make_product(make_case(0, 150, 31, 8, "bank"), ("mean", "linear"), (5, 3))
    x, y = (t.to(backend.device).requires_grad_() for t in (case.x, case.y))
    kernel = case.kernel.to(backend.device)
    results = []
    for constant in (0, 1):
        terms = replace(case, kernel=kernel).terms()
        with forced(panel_rows=128):
            value = ops.mmd2(x, y, None, None, terms, BIASED, 0, case.widths, constant)
        results.append([value, *torch.autograd.grad(value, (x, y))])
    (a, a_x, a_y), (b, b_x, b_y) = results
    assert torch.equal(a, b)
    for full, part in ((a_x, b_x), (a_y, b_y)):
        torch.testing.assert_close(part[:, :5], full[:, :5])
        assert not part[:, 5:].any()
        assert full[:, 5:].any()


@pytest.mark.parametrize("mode", ["small", "wide", "panels", "fused"])
@pytest.mark.parametrize("kernel", ["mean", "energy"])
def test_batches(backend: Backend, mode: str, kernel: str) -> None:
    d = 5
    if mode == "wide":
        mode, d = "small", 600
    if mode == "fused" and not backend.has(MMA):
        pytest.skip("no tensor cores")
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3, n, d, generator=generator).to(backend.device) for n in (20, 31))
    k = make_kernel(kernel, d).to(backend.device)
    road = {"mode": mode}
    if mode == "fused":
        road |= {"products": MMA, "operand": TF32X3}
    with precision("high"), forced(**road):
        x.requires_grad_(), y.requires_grad_()
        value = fm.mmd2(x, y, k)
        found = value, *torch.autograd.grad(value, (x, y), torch.tensor([1.0, -2, 3]).to(x))
        each = []
        for b, scale in enumerate((1.0, -2, 3)):
            a, c = (t[b].detach().requires_grad_() for t in (x, y))
            single = fm.mmd2(a, c, k)
            each.append((single, *torch.autograd.grad(single, (a, c), torch.tensor(scale).to(x))))
    for t, parts in zip(found, zip(*each, strict=True), strict=True):
        # What torch multiplies matrices with looks at their alignment; fewer blocks of a batch
        # share the columns of wide rows.
        if mode == "panels" or d > 5:
            torch.testing.assert_close(t, torch.stack(parts), rtol=1e-6, atol=1e-8)
        else:
            assert torch.equal(t, torch.stack(parts))


@pytest.mark.parametrize("name", ["heuristics", "polynomial width", "median", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_resolve(backend: Backend, name: str, dtype: torch.dtype) -> None:
    for n, m in ((1, 2), (40, 33), (130, 150)):
        case = make_case(0, n, m, 6, name, dtype=dtype)
        terms = case.terms()
        expected = reference.resolve(terms, case.x.double(), case.y.double())
        x, y = case.x.to(backend.device), case.y.to(backend.device)
        found = ops.resolve(x, y, terms).cpu()
        rtol = 1e-12 if dtype == torch.float64 else 2e-6
        torch.testing.assert_close(found, expected, rtol=rtol, atol=0)


# --- degenerate data -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["panels", "small", "tensor cores", "fused", "values"])
@pytest.mark.parametrize("kernel", ["bank", "mean", "laplacian mean", "energy"])
def test_equal_samples(backend: Backend, mode: str, kernel: str) -> None:
    road: dict[str, Any] = {"mode": mode}
    if mode in ("tensor cores", "fused"):
        if not backend.has(MMA):
            pytest.skip("no tensor cores")
        road |= {"mode": "panels" if mode == "tensor cores" else mode}
        road |= {"products": MMA, "operand": TF32X3}
    if mode == "panels":
        road |= {"products": SIMT, "operand": FLOAT32}
    if mode == "values":
        road |= {"products": SIMT, "operand": FLOAT32}
    x = make_case(0, 90, 3, 6).x.to(backend.device)
    k = make_kernel(kernel, 6).to(backend.device)
    size = float(fm.mmd2(x, torch.zeros_like(x), k).detach().abs()) + 1
    a, b = x.clone(), x.clone()
    if mode != "values":
        a.requires_grad_(), b.requires_grad_()
    with forced(**road):
        value = fm.mmd2(a, b, k)
    assert abs(float(value.detach())) <= 1e-6 * size
    if mode != "values":
        for v in torch.autograd.grad(value, (a, b)):
            assert float(v.abs().max()) <= 1e-6 * size


def clustered(case: Case, seed: int, width: float = 2e-4) -> Case:
    """All points in three clusters, thousands of times narrower than they are apart; some twice."""
    centres = 2 * torch.randn(3, case.x.shape[1], generator=torch.Generator().manual_seed(seed))
    x, y = (
        (centres[torch.arange(len(t)) % 3] + width * t.to(centres)).to(t) for t in (case.x, case.y)
    )
    y[:5] = x[:5]
    return replace(case, x=x, y=y)


NEAR_ROADS = [
    ("panels", SIMT, FLOAT32),
    ("panels", MMA, TF32X3),
    ("panels", MMA, TF32),
    ("panels", WGMMA, TF32),
    ("panels", WGMMA, BFLOAT16),
    ("panels", CLUSTERS, TF32),
    ("fused", MMA, TF32X3),
    ("fused", MMA, TF32),
    ("fused", MMA, BFLOAT16),
]


@pytest.mark.parametrize(("mode", "products", "operand"), NEAR_ROADS)
@pytest.mark.parametrize("kernel", ["bank", "wide", "laplacian mean", "energy"])
def test_near_pairs(backend: Backend, kernel: str, mode: str, products: int, operand: int) -> None:
    if not backend.has(products):
        pytest.skip("no such products")
    made = [clustered(c, seed) for seed, c in enumerate(cases(90, 40, 5, kernel))]
    with exactly(operand), forced(mode=mode, products=products, operand=operand):
        check(backend, made, operand)
        runs = [on(backend)(made[0]) for _ in range(2)]
    for name, t in runs[0].items():
        assert torch.equal(t, runs[1][name])


@pytest.mark.parametrize(
    ("estimator", "weighted"), [("unbiased", True), ("cross", True), ("block", False)]
)
@pytest.mark.parametrize("kernel", ["bank", "laplacian", "multiquadric"])
def test_near_pairs_of_estimators(
    backend: Backend, kernel: str, estimator: str, weighted: bool
) -> None:
    made = cases(90, 40, 5, kernel, estimator, weighted=weighted)
    made = [clustered(c, seed) for seed, c in enumerate(made)]
    road = {} if estimator == "block" else {"mode": "panels", "panel_rows": 128}
    with forced(products=SIMT, operand=FLOAT32, **road):
        check(backend, made)


@pytest.mark.parametrize(
    ("mode", "products", "operand"),
    [("panels", SIMT, FLOAT32), ("panels", MMA, TF32X3), ("fused", MMA, TF32X3)],
)
def test_twins(backend: Backend, mode: str, products: int, operand: int) -> None:
    """A few points of x have one in y beside them, or in the same place, whose pull is the largest
    weight times next to nothing.
    """
    if not backend.has(products):
        pytest.skip("no such products")
    sets = [(0.0, cases(2, 131, 40, "wide", "cross"))]
    if mode != "fused":
        sets.append((5e-4, cases(46, 3, 2, "gaussian", "unbiased")))
    for width, made in sets:
        for case in made:
            k = min(len(case.x), len(case.y))
            case.y[:k] = case.x[:k] + width * case.y[:k]
        with forced(mode=mode, products=products, operand=operand):
            check(backend, made, operand)


def test_near_pairs_of_products(backend: Backend) -> None:
    """Each factor has near pairs of its own, and more panels than one."""
    made = [clustered(c, seed) for seed, c in enumerate(cases(140, 30, 8, "bank"))]
    made = [make_product(case, ("laplacian", "bank"), (5, 3)) for case in made]
    with forced(panel_rows=128):
        check(backend, made)


@pytest.mark.parametrize("mode", ["panels", "small"])
@pytest.mark.parametrize("kernel", ["mean", "laplacian mean", "bank", "energy"])
def test_all_points_equal(backend: Backend, mode: str, kernel: str) -> None:
    k = make_kernel(kernel, 6).to(backend.device)
    for value in (0.0, 3.7, 1e30):
        x, y = (torch.full((n, 6), value, device=backend.device) for n in (20, 9))
        x.requires_grad_(), y.requires_grad_()
        with forced(mode=mode):
            found = fm.mmd2(x, y, k)
        assert float(found.detach()) == 0
        for v in torch.autograd.grad(found, (x, y)):
            assert not v.any()


@pytest.mark.parametrize("mode", ["panels", "small", "tensor cores", "fused", "pairs"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_in_nan_out(backend: Backend, mode: str, bad: float) -> None:
    road: dict[str, Any] = {"mode": mode}
    if mode in ("tensor cores", "fused"):
        if not backend.has(MMA):
            pytest.skip("no tensor cores")
        road |= {"mode": "panels" if mode == "tensor cores" else mode}
        road |= {"products": MMA, "operand": TF32}
    case = make_case(0, 30, 40, 6)
    estimator = "linear" if mode == "pairs" else "biased"
    for kernel in (fm.Gaussian(2.0), fm.Gaussian("mean"), fm.Laplacian(1.0)):
        for where in ("x", "y"):
            x, y = case.x.clone(), case.y.clone()
            (x if where == "x" else y)[3, 2] = bad
            x, y = (t.to(backend.device).requires_grad_() for t in (x, y))
            with precision("high"), forced(**road):
                value = fm.mmd2(x, y, kernel, estimator)
                v_x, v_y = torch.autograd.grad(value, (x, y))
            assert value.isnan()
            assert (v_x if where == "x" else v_y)[3].isnan().all()


# --- sums and forms ------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernel_sum(backend: Backend, kernel: str, dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    for n, m, p in ((1, 1, 1), (40, 133, 3), (130, 20, 70)):
        found, worst, sizes = [], 0.0, []
        for seed, case in enumerate(cases(n, m, 6, kernel, dtype=dtype)):
            v = torch.randn(m, p, generator=torch.Generator().manual_seed(1), dtype=dtype)
            k = copy.deepcopy(case.kernel).to(backend.device)
            moved = [t.to(backend.device) for t in (case.x, case.y, v)]
            x, y, w, terms = case.x.double(), case.y.double(), v.double(), case.terms()
            with torch.no_grad():
                exact = reference.kernel_sum(x, y, w, terms)
                single = [t.float() for t in (case.x, case.y, v)]
                of_single = [t.double() for t in single]
                plain = reference.kernel_sum(*single, terms)
                plain -= reference.kernel_sum(*of_single, terms)
                # Float64 errs as float32 does, in proportion.
                worst = max(worst, float(plain.abs().max()) * eps / 2**-23)
                if seed >= backend.most:
                    continue
                sizes.append(float(reference.kernel_sum(x, y, w.abs(), terms).abs().max()))
                found.append(float((fm.kernel_sum(*moved, k).cpu() - exact).abs().max()))
        for error, size in zip(found, sizes, strict=True):
            assert error <= 2 * worst + 8 * eps * size


def test_gradients_of_kernel_sum(backend: Backend) -> None:
    case = make_case(0, 30, 41, 6, "gaussian", dtype=torch.float64)
    v = torch.randn(41, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = []
    for device in (backend.device, torch.device("cpu")):
        tensors = [t.to(device).requires_grad_() for t in (case.x, case.y, v)]
        k = copy.deepcopy(case.kernel).to(device)
        if device == backend.device:
            out = fm.kernel_sum(*tensors, k)
        else:
            out = reference.kernel_sum(*tensors, k.terms())
        wanted = [*tensors, *k.parameters()]
        results.append([out, *torch.autograd.grad(out.square().sum(), wanted)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a.cpu(), b.cpu(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kernel", ["bank", "mean", "laplacian", "polynomial", "linear", "cosine"])
@pytest.mark.parametrize("method", ["permutation", "wild_bootstrap"])
def test_two_sample_test(backend: Backend, kernel: str, method: str) -> None:
    """The same relabellings as on the CPU."""
    for n, m in ((20, 20), (70, 70), (150, 37)):
        if method == "wild_bootstrap" and n != m:
            continue
        case = make_case(0, n, m, 5, kernel, dtype=torch.float64)
        k = copy.deepcopy(case.kernel)
        with cpu(backend):
            expected = fm.two_sample_test(case.x, case.y, k, 40, method)
        found = fm.two_sample_test(
            case.x.to(backend.device), case.y.to(backend.device), k.to(backend.device), 40, method
        )
        torch.testing.assert_close(found.statistic, expected.statistic, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.null.cpu(), expected.null, rtol=1e-9, atol=1e-12)
        assert found.pvalue == expected.pvalue


@contextmanager
def cpu(backend: Backend) -> Iterator[None]:
    """The CPU's core for tensors of the CPU, where the emulator takes these."""
    before, _cuda.serves = _cuda.serves, lambda x: not x.is_cpu
    try:
        yield
    finally:
        _cuda.serves = before


# --- derivatives of derivatives ------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["gaussian", "mean", "laplacian", "polynomial"])
@pytest.mark.parametrize("estimator", ["biased", "unbiased", "linear"])
def test_second_derivatives(backend: Backend, kernel: str, estimator: str) -> None:
    case = make_case(0, 9, 12, 3, kernel, estimator, dtype=torch.float64)
    results = []
    for device, function in ((backend.device, fm.mmd2), (torch.device("cpu"), reference.mmd2)):
        x, y = (t.to(device).requires_grad_() for t in (case.x, case.y))
        k = copy.deepcopy(case.kernel).to(device)
        wanted = [x, y, *k.parameters()]
        first = torch.autograd.grad(function(x, y, k, estimator), wanted, create_graph=True)
        form = sum(
            (g * torch.linspace(1, 2, g.numel()).to(g).reshape(g.shape)).sum() for g in first
        )
        results.append([*first, *torch.autograd.grad(form, wanted)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-8, atol=1e-10)


# --- the same bits -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["small", "panels", "tensor cores", "fused"])
def test_same_bits(backend: Backend, mode: str) -> None:
    road: dict[str, Any] = {"mode": mode}
    if mode in ("tensor cores", "fused"):
        if not backend.has(MMA):
            pytest.skip("no tensor cores")
        road |= {"mode": "panels" if mode == "tensor cores" else mode}
        road |= {"products": MMA, "operand": TF32}
    case = make_case(0, 150, 140, 9, "mean")
    with precision("high"), forced(**road):
        runs = [on(backend)(case) for _ in range(3)]
    for other in runs[1:]:
        for name, t in runs[0].items():
            assert torch.equal(t, other[name])
