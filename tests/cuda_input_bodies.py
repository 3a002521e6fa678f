"""What holds of CUDA passes for any input, wherever they run, as of :mod:`cuda_bodies`."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import tolerance
import torch
from cuda_backend import (
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
    road_of,
)
from tolerance import KERNELS, make_case, make_kernel, make_product

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
    needs(backend, products)
    for kernel in ("bank", "multiquadric"):
        made = cases(90, 101, 20, kernel, estimator, offset=100.0)
        with exactly(operand), forced(mode="panels", products=products, operand=operand):
            check(backend, made, operand)


@pytest.mark.parametrize("exponent", [-60, -30, 30, 60])
@pytest.mark.parametrize("operand", [FLOAT32, TF32, BFLOAT16, FLOAT16])
def test_magnitudes(backend: Backend, operand: int, exponent: int) -> None:
    """Powers of two change the gradient by their inverse, and nothing else."""
    products = SIMT if operand == FLOAT32 else MMA
    needs(backend, products)
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
    road = road_of(backend, mode, TF32X3)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3, n, d, generator=generator).to(backend.device) for n in (20, 31))
    k = make_kernel(kernel, d).to(backend.device)
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
    road = road_of(backend, mode, TF32X3)
    if mode in ("panels", "values"):
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
    needs(backend, products)
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
    needs(backend, products)
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
    road = road_of(backend, mode, TF32)
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
    road = road_of(backend, mode, TF32)
    case = make_case(0, 150, 140, 9, "mean")
    with precision("high"), forced(**road):
        runs = [on(backend)(case) for _ in range(3)]
    for other in runs[1:]:
        for name, t in runs[0].items():
            assert torch.equal(t, other[name])
