"""What holds of the CUDA roads wherever they run: on a GPU, or on the emulator.

The modules that run these tests give a ``backend``.
"""

from __future__ import annotations

import pytest
import tolerance
import torch
from cuda_backend import (
    FEW,
    PLAIN,
    Backend,
    cases,
    check,
    clustered,
    exactly,
    forced,
    gradients_of,
    needs,
    on,
    precision,
)
from tolerance import FAMILIES, KERNELS, make_case, make_kernel

import fastmmd as fm
from fastmmd.ops._roads import BFLOAT16, CLUSTERS, FLOAT16, FLOAT32, MMA, SIMT, TF32, TF32X3, WGMMA

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
    needs(backend, MMA)
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
    needs(backend, MMA)
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
    needs(backend, MMA)
    for n, m in ((8, 9), (40, 130)):
        made = [clustered(c, i, 4e-3) for i, c in enumerate(cases(n, m, 70, kernel, dtype=dtype))]
        with precision("high"), forced(mode="panels", products=MMA, operand=operand):
            check(backend, made, operand)


@pytest.mark.parametrize(("d", "first"), [(1, 48), (1, 360), (3, 384)])
@pytest.mark.parametrize("mode", ["panels", "fused"])
def test_short_rows(backend: Backend, mode: str, d: int, first: int) -> None:
    """Few products of three of TF32 hide none of their rounding from narrow Gaussians."""
    needs(backend, MMA)
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
    needs(backend, products)
    with exactly(operand), forced(mode="panels", products=products, operand=operand):
        check(backend, cases(150, 37, 40, kernel, estimator, weighted=weighted), operand)


# Rows of one, two and three tiles, and with an odd one at the edge; steps that fill no ring, and
# several rounds of it.
@pytest.mark.parametrize(("n", "m", "d"), [(300, 130, 200), (90, 260, 97), (256, 384, 30)])
@pytest.mark.parametrize("operand", [TF32, BFLOAT16, FLOAT16])
def test_clusters(backend: Backend, operand: int, n: int, m: int, d: int) -> None:
    needs(backend, CLUSTERS)
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
    needs(backend, products)
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
    needs(backend, MMA)
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
