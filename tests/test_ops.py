"""The operators: their registration, the two roads to them, and what torch does with them."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import textwrap
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tolerance import (
    DTYPES,
    ESTIMATORS,
    FAMILIES,
    WITH_AND_WITHOUT_WEIGHTS,
    Case,
    differentiate,
    make_case,
    make_kernel,
    threads,
)
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import fastmmd as fm
from fastmmd import ops, reference
from fastmmd.ops import _cuda
from fastmmd.ops._core import parts

# Torch warns of its own modules as it loads them.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script.*:DeprecationWarning")


def arguments(case: Case, needs: bool | list[bool] = True) -> tuple[Any, ...]:
    """A case as the operator takes it."""
    t = case.terms()
    constants = t.families, t.shapes, t.units, t.factors, case.widths or ()
    inputs = (case.x, case.y, case.x_weights, case.y_weights, t.scales, t.coefficients)
    if isinstance(needs, bool):
        needs = [needs and i is not None for i in inputs]
    return (*inputs, *map(list, constants), case.number(), case.size(), 0, needs)


def registered(*case: Any, **options: int) -> Tensor:
    """mmd2 by the registered operator."""
    return torch.ops.fastmmd.mmd2(*arguments(Case(*case, options=options)))[0]


def batch_of(kernel: str, sizes: tuple[int, int, int, int], **options: Any) -> list[Case]:
    """Cases that differ in their numbers, with one kernel."""
    first, *others = (make_case(seed, *sizes[1:], kernel, **options) for seed in range(sizes[0]))
    return [first, *(replace(case, kernel=first.kernel) for case in others)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of the native core, by name, as they are made."""
    made: list[str] = []

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any) -> None:
            made.append(name)
            function(*args)

        return call

    for name in ("mmd2", "kernel_sum", "sign_forms"):
        monkeypatch.setattr(ops.native, name, counted(name, getattr(ops.native, name)))
    return made


def two_way(function: Any, inputs: list[Tensor], incoming: Tensor) -> list[Tensor]:
    """A value, its gradients, and the gradients of a linear form of those."""
    value = function(*inputs)
    first = torch.autograd.grad(value, inputs, incoming, create_graph=True)
    generator = torch.Generator("cpu").manual_seed(5)
    form = sum(
        (torch.randn(g.shape, generator=generator, device="cpu").to(g) * g).sum() for g in first
    )
    second = torch.autograd.grad(form, inputs, allow_unused=True)
    return [t.detach() for t in (value, *first, *second) if t is not None]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kernel", ["gaussian", "median", "polynomial"])
def test_both_roads_give_the_same_bits(kernel: str, weighted: bool, dtype: torch.dtype) -> None:
    check_both_roads(make_case(0, 40, 33, 17, kernel, "unbiased", dtype, weighted))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", FAMILIES)
def test_both_roads_of_families_and_estimators(kernel: str, estimator: str) -> None:
    check_both_roads(make_case(0, 40, 33, 17, kernel, estimator))


def check_both_roads(case: Case) -> None:
    short, long = differentiate(case, fm.mmd2), differentiate(case, registered)
    assert short.keys() == long.keys()
    for name, result in short.items():
        assert result.dtype == long[name].dtype
        assert torch.equal(result, long[name]), name


def test_which_road() -> None:
    x, y = torch.randn(5, 3, requires_grad=True), nn.Parameter(torch.randn(4, 3))
    assert "ShortRoad" in fm.mmd2(x, y).grad_fn.name()

    class Subclass(torch.Tensor):
        pass

    result = fm.mmd2(x.as_subclass(Subclass), y)
    assert isinstance(result, Subclass)
    assert torch.equal(result.as_subclass(Tensor), fm.mmd2(x, y))
    with torch.device("meta"):  # a mode of torch functions, as set_default_device sets
        value = fm.mmd2(x, y)
        assert value.device.type == "cpu"
        assert "ShortRoad" not in value.grad_fn.name()
        (gradient,) = torch.autograd.grad(value, x)
    assert torch.equal(gradient, torch.autograd.grad(fm.mmd2(x, y), x)[0])


def strangers(t: Tensor) -> list[Tensor]:
    """The same numbers at other addresses: not contiguous, and last in a larger tensor."""
    wide = torch.full((*t.shape[:-1], 2 * t.shape[-1]), torch.nan, dtype=t.dtype)
    wide[..., ::2] = t
    padded = torch.full((t.shape[0] + 3, *t.shape[1:]), torch.nan, dtype=t.dtype)
    padded[3:] = t
    return [wide[..., ::2], t.mT.contiguous().mT, padded[3:]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(dtype: torch.dtype) -> None:
    cases = batch_of("bank", (3, 12, 9, 5), dtype=dtype)
    x, y = (torch.stack([getattr(case, name) for case in cases]) for name in ("x", "y"))
    terms = cases[0].terms()
    v = torch.randn(9, 2).to(ops.kernel_sum(x[0], y[0], torch.ones(9, 2), terms))
    single = ops.mmd2(x[0], y[0], None, None, terms)
    several = ops.mmd2(x, y, None, None, terms)
    sums = ops.kernel_sum(x[0], y[0], v, terms)
    forms = ops.sign_forms(x[0], y[0], terms, ops.PERMUTATION, 3, 4)
    for i in range(3):
        a, b = strangers(x[0])[i], strangers(y[0])[i]
        assert torch.equal(ops.mmd2(a, b, None, None, terms), single)
        assert torch.equal(ops.kernel_sum(a, b, strangers(v)[i], terms), sums)
        assert torch.equal(ops.sign_forms(a, b, terms, ops.PERMUTATION, 3, 4).forms, forms.forms)
        a, b = strangers(x)[i], strangers(y)[i]
        assert torch.equal(ops.mmd2(a, b, None, None, terms), several)
    same = ops.mmd2(x[0].expand(3, -1, -1), y[0].expand(3, -1, -1), None, None, terms)
    assert torch.equal(same, single.expand(3))
    # strides are never negative in torch, but a minus sign may be pending
    minus = torch.complex(torch.zeros_like(x[0].double()), -x[0].double()).conj().imag
    assert minus.is_neg()
    assert torch.equal(
        ops.mmd2(minus, y[0].double(), None, None, terms),
        ops.mmd2(x[0].double(), y[0].double(), None, None, terms),
    )


def test_default_device() -> None:
    case = make_case(0, 12, 9, 5, "mean", dtype=torch.float64, weighted=True)
    terms, v = case.terms(), torch.randn(9, 2, dtype=torch.float64)
    tensors = [case.x.requires_grad_(), case.y]
    expected = differentiate(case, fm.mmd2)
    torch.set_default_device("meta")
    try:
        results = differentiate(case, fm.mmd2)
        second = two_way(lambda x: fm.mmd2(x, case.y), tensors[:1], case.x.new_ones(()))
        sums = ops.kernel_sum(*tensors, v, terms)
        (gradient,) = torch.autograd.grad(sums.sum(), case.x)
        forms = ops.sign_forms(*tensors, terms, ops.WILD - 1, 3, 4)
        resolved = ops.resolve(*tensors, terms)
    finally:
        torch.set_default_device(None)
    for name, result in results.items():
        assert torch.equal(result, expected[name])
    for t in (*second, sums, gradient, forms.forms, resolved):
        assert t.device.type == "cpu"


def test_autocast_and_scaler() -> None:
    """Under autocast the points are taken as they are, and no operator of ours becomes half."""
    case = make_case(0, 12, 9, 5, "bank")
    x, terms, v = case.x.requires_grad_(), case.terms(), torch.randn(9, 2)
    weight = torch.eye(5).requires_grad_()

    def run() -> list[Tensor]:
        value = ops.mmd2(x, case.y, None, None, terms) + ops.kernel_sum(x, case.y, v, terms).sum()
        (first,) = torch.autograd.grad(value, x, create_graph=True)
        return [value, first, *torch.autograd.grad(first.square().sum(), x)]

    expected = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))
        features = x @ weight
        assert features.dtype == torch.bfloat16
        value = ops.mmd2(features, case.y.bfloat16(), None, None, terms)
    assert value.dtype == torch.float32
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaler.scale(value).backward()
    scaled = weight.grad.clone()
    assert scaled.isfinite().all()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(weight.detach(), torch.eye(5) - 0.1 * scaled / 2.0**16)


def test_half_gradients_are_scaled_before_they_are_rounded() -> None:
    case = make_case(0, 500, 400, 3, fm.Gaussian(30.0), dtype=torch.float16)
    terms, v = case.terms(), torch.full((400, 1), 1e-6)
    factor = 2.0**16

    def gradient(dtype: torch.dtype, run: Any, factor: float) -> Tensor:
        x = case.x.to(dtype).requires_grad_()
        return torch.autograd.grad(run(x, case.y.to(dtype)) * factor, x)[0].double() / factor

    for run in (
        lambda x, y: ops.mmd2(x, y, None, None, terms),
        lambda x, y: ops.kernel_sum(x, y, v, terms).sum(),
    ):
        exact = gradient(torch.float64, run, 1.0)
        error, unscaled = (
            (gradient(torch.float16, run, f) / exact - 1).abs().median() for f in (factor, 1.0)
        )
        assert error < 2.0**-11 < unscaled


# --- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("estimator", "weighted"), WITH_AND_WITHOUT_WEIGHTS)
@pytest.mark.parametrize("kernel", ["gaussian", "median", "polynomial", "cosine"])
def test_batch(calls: list[str], kernel: str, estimator: str, weighted: bool) -> None:
    """One native call, and the bits of single pairs; the kernel's gradients are summed."""
    cases = batch_of(kernel, (4, 13, 9, 5), dtype=torch.float64, weighted=weighted)
    cases = [replace(case, estimator=estimator) for case in cases]
    names = ["x", "y"] + ["x_weights", "y_weights"] * weighted
    stacked = [torch.stack([getattr(c, name) for c in cases]).requires_grad_() for name in names]
    parameters = list(cases[0].kernel.parameters())
    incoming = torch.randn(4, dtype=torch.float64)
    number, size = cases[0].number(), cases[0].size()

    def run(*inputs: Tensor) -> Tensor:
        samples = (*inputs, None, None)[:4]
        return ops.mmd2(*samples, cases[0].terms(), number, size)

    value = run(*stacked)
    assert calls == ["mmd2"]
    gradients = torch.autograd.grad(value, [*stacked, *parameters], incoming)
    assert calls == ["mmd2"]
    singles = [run(*(t[b] for t in stacked)) for b in range(4)]
    assert torch.equal(value, torch.stack(singles))
    expected = torch.autograd.grad(torch.stack(singles), [*stacked, *parameters], incoming)
    for i, (g, e) in enumerate(zip(gradients, expected, strict=True)):
        if i < len(stacked):
            assert torch.equal(g, e)
        else:  # summed in another order
            torch.testing.assert_close(g, e, rtol=1e-13, atol=1e-13 * e.abs().max().item())
    second = two_way(lambda *a: run(*a), stacked, incoming)
    each = two_way(
        lambda *a: torch.stack([run(*(t[b] for t in a)) for b in range(4)]), stacked, incoming
    )
    for s, e in zip(second, each, strict=True):
        torch.testing.assert_close(s, e, rtol=0, atol=1e-14 * e.abs().max().item())


def test_batches_of_one_and_none() -> None:
    case = make_case(0, 6, 5, 4)
    terms = case.terms()
    one = ops.mmd2(case.x[None], case.y[None], None, None, terms)
    assert torch.equal(one, ops.mmd2(case.x, case.y, None, None, terms)[None])
    x = case.x.new_empty(0, 6, 4).requires_grad_()
    none = ops.mmd2(x, case.y.new_empty(0, 5, 4), None, None, terms)
    assert none.shape == (0,)
    assert torch.autograd.grad(none.sum(), x)[0].shape == x.shape


# --- kernels in parts ----------------------------------------------------------------------------


def test_parts() -> None:
    radial, dot, cosine = 0, 7, 9
    assert parts((radial,) * 128, (0,) * 128) is None
    assert parts((radial,) * 129, (0,) * 129) == [tuple(range(128)), (128,)]
    assert parts((radial,) * 128, (0,) * 128, 127) == [tuple(range(127)), (127,)]
    assert parts((radial, dot, radial, cosine), (0,) * 4) == [(0, 2), (1,), (3,)]
    # (a + b) (c + d) with a, c radial and b, d not: four products
    assert parts((radial, dot, radial, dot), (0, 0, 1, 1)) == [(0, 2), (0, 3), (1, 2), (1, 3)]
    assert parts((dot, radial), (0, 1)) is None
    many = parts((radial,) * 200, (0,) * 100 + (1,) * 100)
    assert many is not None
    assert all(len(part) <= 128 for part in many)
    assert sum(sum(t < 100 for t in p) * sum(t >= 100 for t in p) for p in many) == 100 * 100
    assert parts((radial,) * 8, tuple(range(8))) is None
    with pytest.raises(ValueError, match="at most 8 kernels is supported, got one of 9"):
        parts((radial,) * 9, tuple(range(9)))


def test_native_calls(calls: list[str]) -> None:
    """One for all of one geometry, and of a product one for each choice of geometries."""
    case = make_case(0, 12, 12, 6, fm.Gaussian("mean") + fm.Matern(1.5, "median") + fm.Energy())
    x, y = case.x.requires_grad_(), case.y

    def count(function: Any) -> int:
        calls.clear()
        function().backward()
        return len(calls)

    def of(kernel: fm.Kernel, **options: Any) -> Any:
        return lambda: ops.mmd2(x, y, None, None, kernel.terms(), **options)

    assert count(of(case.kernel)) == 1
    assert count(of(case.kernel + fm.Polynomial() + 2 * fm.Linear())) == 2
    assert count(of(case.kernel + fm.Polynomial() + 2 * fm.Linear() + fm.Cosine())) == 3
    product = Case(x, y, nn.ModuleList([case.kernel, case.kernel + fm.Cosine()]), widths=(2, 4))
    terms = product.terms()
    assert count(lambda: ops.mmd2(x, y, None, None, terms, 0, 0, (2, 4))) == 2
    ops.sign_forms(x, y, terms, ops.WILD, 0, 3, (2, 4))
    assert calls[-2:] == ["sign_forms"] * 2
    # K' G is all that v asks for
    v = torch.randn(12, 2, requires_grad=True)
    x, y = x.detach(), y.detach()
    assert count(lambda: ops.kernel_sum(x, y, v, case.terms()).sum()) == 2
    assert calls == ["kernel_sum"] * 2


# --- opcheck --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("kernel", "estimator"),
    [
        ("gaussian", "unbiased"),
        ("mean", "biased"),
        ("laplacian", "block"),
        ("polynomial", "linear"),
        ("cosine", "incomplete"),
    ],
)
def test_opcheck(kernel: str, estimator: str, dtype: torch.dtype) -> None:
    weighted = estimator in ("biased", "unbiased")
    case = make_case(0, 6, 5, 4, kernel, estimator, dtype, weighted)
    *inputs, families, shapes, units, factors, widths, number, size, constant, needs = arguments(
        case
    )
    inputs = [None if t is None else t.detach().requires_grad_() for t in inputs]
    constants = families, shapes, units, factors, widths, number, size, constant
    torch.library.opcheck(torch.ops.fastmmd.mmd2.default, (*inputs, *constants, needs))
    # without weights, and with a gradient to x alone
    inputs = [inputs[0], case.y, None, None, *(t.detach() for t in inputs[4:])]
    needs = [True, False, False, False, False, False]
    torch.library.opcheck(torch.ops.fastmmd.mmd2.default, (*inputs, *constants, needs))


def product_case(dtype: torch.dtype = torch.float64) -> Case:
    case = make_case(0, 6, 5, 7, dtype=dtype, weighted=True)
    kernels = nn.ModuleList(make_kernel(name, 3) for name in ("gaussian", "polynomial", "cosine"))
    return replace(case, kernel=kernels, widths=(2, 4, 1))


def test_opcheck_product_and_batch() -> None:
    case = product_case()
    tensors = ("x", "y", "x_weights", "y_weights")
    stacked = {name: torch.stack([getattr(case, name)] * 3) for name in tensors}
    for c in (case, replace(case, **stacked)):
        *inputs, families, shapes, units, factors, widths, number, size, constant, needs = (
            arguments(c)
        )
        inputs = [t.detach().requires_grad_() for t in inputs]
        constants = families, shapes, units, factors, widths, number, size, constant
        torch.library.opcheck(torch.ops.fastmmd.mmd2.default, (*inputs, *constants, needs))
        full = torch.ops.fastmmd.mmd2(*(t.detach() for t in inputs), *constants, needs)
        tangents = [torch.randn_like(v) for v in full[1:7]]
        torch.library.opcheck(
            torch.ops.fastmmd.mmd2_backward.default,
            (*inputs, *constants, full[7], *tangents),
            test_utils=NO_GRADIENT,
        )


# Third derivatives raise, and statistics have no derivative.
NO_GRADIENT = ("test_schema", "test_faketensor", "test_autograd_registration")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_opcheck_backward(dtype: torch.dtype) -> None:
    case = make_case(0, 6, 5, 4, "bank", dtype=dtype, weighted=True)
    *inputs, families, shapes, units, factors, widths, number, size, constant, _ = arguments(case)
    constants = families, shapes, units, factors, widths, number, size, constant
    resolved = torch.rand(5, dtype=torch.float64)
    for g_x in (torch.randn(6, 4), None):
        tangents = (g_x, None, torch.randn(6).double(), None, None, torch.randn(5).double())
        for weights in ((case.x_weights, case.y_weights), (None, None)):
            inputs[2:4] = weights
            torch.library.opcheck(
                torch.ops.fastmmd.mmd2_backward.default,
                (*inputs, *constants, resolved, *tangents),
                test_utils=NO_GRADIENT,
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", ["gaussian", "mean", "polynomial"])
def test_opcheck_kernel_sum(kernel: str, dtype: torch.dtype) -> None:
    case = make_case(0, 6, 5, 4, kernel, dtype=dtype)
    t = case.terms()
    result = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = [case.x, case.y, torch.randn(5, 3, dtype=result), t.scales, t.coefficients]
    constants = [*map(list, (t.families, t.shapes, t.units, t.factors)), []]
    for flags in ([True] * 5, [False, False, True, False, False]):
        inputs = [i.detach().requires_grad_(f) for i, f in zip(inputs, flags, strict=True)]
        torch.library.opcheck(torch.ops.fastmmd.kernel_sum.default, (*inputs, *constants))


def test_opcheck_statistics() -> None:
    case = product_case()
    t = case.terms()
    scales, coefficients = t.scales.detach(), t.coefficients.detach()
    kernel = [*map(list, (t.families, t.shapes, t.units, t.factors)), [2, 4, 1]]
    samples = case.x, case.y
    torch.library.opcheck(
        torch.ops.fastmmd.resolve.default, (*samples, scales, *kernel[2:]), test_utils=NO_GRADIENT
    )
    torch.library.opcheck(
        torch.ops.fastmmd.sign_forms.default,
        (*samples, scales, coefficients, *kernel, 0, -1, 4),
        test_utils=NO_GRADIENT,
    )


def test_outputs_are_made_as_asked_for() -> None:
    case = make_case(0, 6, 5, 4, "bank", weighted=True)
    full = torch.ops.fastmmd.mmd2(*arguments(case))
    shapes = [(6, 4), (5, 4), (6,), (5,), (5,), (5,)]
    for i, shape in enumerate(shapes):
        outputs = torch.ops.fastmmd.mmd2(*arguments(case, [j == i for j in range(6)]))
        assert torch.equal(outputs[0], full[0])
        for j, v in enumerate(outputs[1:7]):
            assert v.shape == (shape if i == j else (0,))
            assert i != j or torch.equal(v, full[1 + j])
    resolved = full[7]
    assert torch.equal(resolved, case.kernel.terms().scales)


def test_a_flag_that_was_left_out_is_no_zero_gradient() -> None:
    case = make_case(0, 6, 5, 4)
    case.x.requires_grad_()
    value = torch.ops.fastmmd.mmd2(*arguments(case, False))[0]
    with pytest.raises(RuntimeError, match="x needs a gradient"):
        value.backward()


def test_resolved_factors() -> None:
    case = make_case(0, 30, 21, 4, fm.Gaussian("mean") + fm.Laplacian("median") + fm.Energy())
    resolved = torch.ops.fastmmd.mmd2(*arguments(case))[7]
    z = torch.cat([case.x, case.y]).double()
    expected = fm.reference.resolve(case.kernel.terms(), *z.split([30, 21]))
    torch.testing.assert_close(resolved, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode) -> None:
    case = make_case(0, 20, 15, 4, "gaussian")
    case.x.requires_grad_()
    expected = fm.mmd2(case.x, case.y, case.kernel).detach()
    with mode():
        assert not fm.mmd2(case.x, case.y, case.kernel).requires_grad
        assert torch.equal(fm.mmd2(case.x, case.y, case.kernel), expected)
        assert torch.equal(registered(case.x, case.y, case.kernel, "biased"), expected)
        inside = torch.randn(4, 3)
    with mode():
        assert fm.mmd2(inside, inside).item() == pytest.approx(0, abs=1e-6)


# --- kernel sums and statistics ------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [*FAMILIES, "mixture", "heuristics"])
def test_kernel_sum(kernel: str) -> None:
    """Value, gradients and their gradients, also with respect to what arrives at the sum."""
    case = make_case(0, 14, 11, 4, kernel, dtype=torch.float64)
    case.x[3] = case.y[2]
    inputs = [case.x, case.y, torch.randn(11, 3).double(), *case.kernel.parameters()]
    inputs = [t.requires_grad_() for t in inputs]
    incoming = torch.randn(14, 3).double().requires_grad_()

    def run(function: Any, **options: Any) -> list[Tensor]:
        out = function(*inputs[:3], case.terms(), **options)
        first = torch.autograd.grad(out, inputs, incoming, create_graph=True)
        generator = torch.Generator().manual_seed(5)
        form = sum((torch.randn(g.shape, generator=generator).to(g) * g).sum() for g in first)
        second = torch.autograd.grad(form, [*inputs, incoming])
        return [out, *first, *second]

    expected = run(reference.kernel_sum, distances=reference.direct_squared_distances)
    for tested, e in zip(run(ops.kernel_sum), expected, strict=True):
        torch.testing.assert_close(tested, e, rtol=0, atol=1e-12 * e.abs().max().item() + 1e-14)
    # v alone
    inputs = [t.detach() for t in inputs]
    v = inputs[2].requires_grad_()
    value = ops.kernel_sum(*inputs[:3], case.terms())
    (gradient,) = torch.autograd.grad(value, v, incoming.detach())
    e = expected[3]
    torch.testing.assert_close(gradient, e, rtol=0, atol=1e-12 * e.abs().max().item())


def test_kernel_sum_of_a_product() -> None:
    case = product_case()
    v = torch.randn(5, 3).double().requires_grad_()
    inputs = [case.x.requires_grad_(), case.y.requires_grad_(), v, *case.kernel.parameters()]
    incoming = torch.randn(6, 3).double()

    def run(function: Any) -> list[Tensor]:
        return two_way(
            lambda *_: function(*inputs[:3], case.terms(), case.widths), inputs, incoming
        )

    for tested, e in zip(run(ops.kernel_sum), run(reference.kernel_sum), strict=True):
        torch.testing.assert_close(tested, e, rtol=0, atol=1e-12 * e.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_kernel_sum_of_half_points_is_float32(dtype: torch.dtype) -> None:
    case = make_case(0, 40, 30, 4, "gaussian", dtype=dtype)
    x, v = case.x.requires_grad_(), torch.randn(30, 2, requires_grad=True)
    out = ops.kernel_sum(x, case.y, v, case.terms())
    out.sum().backward()
    wide, w = x.detach().double().requires_grad_(), v.detach().double().requires_grad_()
    exact = reference.kernel_sum(wide, case.y.double(), w, case.terms())
    exact.sum().backward()
    assert (out.dtype, x.grad.dtype, v.grad.dtype) == (torch.float32, dtype, torch.float32)
    for tested, e in ((out, exact), (v.grad, w.grad)):
        assert (tested - e).abs().max() < 2.0**-20 * e.abs().max()
    assert (x.grad - wide.grad).abs().max() <= torch.finfo(dtype).eps * wide.grad.abs().max()


def test_kernel_sum_has_no_third_derivatives() -> None:
    case = make_case(0, 6, 5, 3, dtype=torch.float64)
    x = case.x.requires_grad_()
    out = ops.kernel_sum(x, case.y, torch.ones(5, 1).double(), case.terms()).square().sum()
    for _ in range(2):
        (first,) = torch.autograd.grad(out, x, create_graph=True)
        out = first.square().sum()
    with pytest.raises(NotImplementedError, match=r"third derivatives of fastmmd\.mmd2 and"):
        torch.autograd.grad(out, x)


@pytest.mark.parametrize("kernel", ["mean", "median", "mixture", "polynomial width"])
def test_resolve(kernel: str) -> None:
    cases = batch_of(kernel, (3, 30, 21, 4), dtype=torch.float64)
    terms = cases[0].terms()
    x, y = (torch.stack([getattr(case, name) for case in cases]) for name in ("x", "y"))
    found = ops.resolve(x, y, terms)
    expected = torch.stack([reference.resolve(terms, a, b) for a, b in zip(x, y, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert not found.requires_grad
    assert torch.equal(ops.resolve(x[1], y[1], terms), found[1])
    mapped = torch.func.vmap(lambda a, b: ops.resolve(a, b, terms))(x, y)
    assert torch.equal(mapped, found)


def test_resolve_many_terms_and_factors() -> None:
    names = [f"{name}" for name in ("mean", "median", "polynomial width")]
    case = make_case(0, 9, 8, 6, dtype=torch.float64)
    kernels = nn.ModuleList(
        fm.kernels.Sum(*(make_kernel(name, 2) for _ in range(30))) for name in names
    )
    case = replace(case, kernel=kernels, widths=(1, 2, 3))
    terms = case.terms()
    assert len(terms.units) > 128
    found = ops.resolve(case.x, case.y, terms, case.widths)
    expected = reference.resolve(terms, case.x, case.y, case.widths)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("scheme", [ops.PERMUTATION, ops.WILD])
@pytest.mark.parametrize("kernel", ["gaussian", "polynomial", "cosine", "median", "mixture"])
def test_sign_forms(kernel: str, scheme: int) -> None:
    m = 12 if scheme == ops.WILD else 9
    case = make_case(0, 12, m, 4, kernel, dtype=torch.float64)
    if kernel == "mixture":  # less its linear term, see SignForms
        case.kernel = fm.Gaussian("mean") + 0.1 * fm.Polynomial(2) + fm.Cosine()
    terms = case.terms()
    forms = ops.sign_forms(case.x, case.y, terms, scheme, 2**64 - 1, 6)
    labels = torch.full((12 + m,), -1 / m, dtype=torch.float64)
    labels[:12] = 1 / 12
    expected = reference.sign_forms(case.x, case.y, terms, labels[None])
    found = (forms.forms[:1], forms.linear[:1], forms.diagonal[:1], forms.total, forms.trace)
    for f, e in zip(found, expected, strict=True):
        assert f == pytest.approx(float(e), rel=1e-11, abs=1e-11)
    assert forms.forms.shape == (7,)
    assert len(set(forms.forms.tolist())) == 7
    again = ops.sign_forms(case.x, case.y, terms, scheme, 2**64 - 1, 6)
    other = ops.sign_forms(case.x, case.y, terms, scheme, 0, 6)
    assert torch.equal(again.forms, forms.forms)
    assert not torch.equal(other.forms[1:], forms.forms[1:])


def test_sign_forms_draw_the_same_for_every_kernel() -> None:
    """The forms of a kernel of rank one give away the vectors, up to their sign."""
    case = make_case(0, 7, 7, 1, fm.Polynomial(1, 1.0, 0.0), dtype=torch.float64)
    for scheme in (ops.PERMUTATION, ops.WILD):
        one = ops.sign_forms(case.x, case.y, case.terms(), scheme, 5, 20)
        two = ops.sign_forms(2 * case.x, 2 * case.y, case.terms(), scheme, 5, 20)
        assert torch.equal(4 * one.forms, two.forms)


def test_threads_give_the_same_bits() -> None:
    case = make_case(0, 400, 300, 24, "mixture")
    terms, v = case.terms(), torch.randn(300, 3)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            x = case.x.detach().requires_grad_()
            out = ops.kernel_sum(x, case.y, v, terms)
            (gradient,) = torch.autograd.grad(out.sum(), x)
            forms = ops.sign_forms(x, case.y, terms, ops.PERMUTATION, 1, 50)
            resolved = ops.resolve(x, case.y, fm.Gaussian("median").terms())
            batch = ops.mmd2(x.detach().view(4, 100, 24), case.y.view(4, 75, 24), None, None, terms)
            results.append([out, gradient, *forms[:3], resolved, batch])
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


# --- torch.compile and export --------------------------------------------------------------------


@pytest.fixture
def compiled():
    torch._dynamo.reset()
    yield lambda f, **options: torch.compile(f, fullgraph=True, **options)
    torch._dynamo.reset()


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("kernel", ["gaussian", "mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compile(compiled, dtype: torch.dtype, kernel: str, dynamic: bool | None) -> None:
    case = make_case(0, 20, 15, 6, kernel, "unbiased", dtype, weighted=True)
    # a parameter inside a product is no parameter of the compiled function
    inner = lambda *a: 3 * fm.mmd2(a[0] * 2, *a[1:])  # noqa: E731
    expected = differentiate(case, inner)
    for name, result in differentiate(case, compiled(inner, dynamic=dynamic)).items():
        assert torch.equal(result, expected[name]), name


def test_compile_loss(compiled) -> None:
    s = nn.Parameter(torch.tensor([1.0, 2.0]))
    loss = fm.MMDLoss(fm.Gaussian(s) + 0.5 * fm.Laplacian("mean"), "unbiased")
    x, y = torch.randn(9, 4, requires_grad=True), torch.randn(8, 4)
    expected = torch.autograd.grad(loss(x, y), [x, s])
    faster = compiled(loss)
    for _ in range(2):
        result = torch.autograd.grad(faster(x, y), [x, s])
        assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))
    with torch.no_grad():
        assert torch.equal(faster(x, y), loss(x, y))


def test_compile_below_the_surface(compiled) -> None:
    """Batches, products in parts, kernel sums and statistics, each in one graph."""
    cases = batch_of("mixture", (3, 12, 9, 5), dtype=torch.float64)
    x, y = (torch.stack([getattr(case, name) for case in cases]) for name in ("x", "y"))
    v = torch.randn(9, 2, dtype=torch.float64)
    terms = cases[0].terms()._replace(coefficients=torch.ones(4, dtype=torch.float64))

    def run(x: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        values = ops.mmd2(2 * x, y, None, None, terms, estimator=3, size=4)
        sums = ops.kernel_sum(3 * x[0], y[0], v, terms)
        return values.sum() + sums.square().sum(), ops.resolve(x, y, terms)

    x, v = x.requires_grad_(), v.requires_grad_()
    results = []
    for function in (run, compiled(run)):
        value, resolved = function(x, v)
        results.append([value, resolved, *torch.autograd.grad(value, [x, v])])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=0)


def test_compile_sees_errors(compiled) -> None:
    with pytest.raises(Exception, match="x and y must be of one width"):
        compiled(fm.mmd2)(torch.randn(5, 3), torch.randn(5, 4))


def test_compile_does_not_look_at_values(compiled) -> None:
    x = torch.randn(5, 3)
    w = torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0])
    assert compiled(fm.mmd2)(x, x + 1, x_weights=w).isfinite().logical_not()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, on its way
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_export(strict: bool) -> None:
    loss = fm.MMDLoss(fm.Gaussian(nn.Parameter(torch.tensor(1.5))) + fm.Laplacian("mean"))
    x, y = torch.randn(9, 4, requires_grad=True), torch.randn(8, 4)
    n, m = torch.export.Dim("n", min=2, max=512), torch.export.Dim("m", min=2, max=512)
    program = torch.export.export(loss, (x, y), dynamic_shapes=({0: n}, {0: m}), strict=strict)
    assert "fastmmd.mmd2" in program.graph_module.code
    x, y = torch.randn(30, 4, requires_grad=True), torch.randn(20, 4)
    result, expected = program.module()(x, y), loss(x, y)
    assert torch.equal(result, expected)
    (g,) = torch.autograd.grad(result, x)
    assert torch.equal(g, torch.autograd.grad(expected, x)[0])
    # y did not require a gradient as the program was made
    with pytest.raises(RuntimeError, match="y must require one then"):
        program.module()(x, y.requires_grad_()).backward()


def test_make_fx() -> None:
    x, y = torch.randn(5, 3), torch.randn(4, 3)
    graph = make_fx(lambda x, y: fm.mmd2(x, y))(x, y)
    assert torch.equal(graph(x + 1, y), fm.mmd2(x + 1, y))  # nothing is baked in


def test_meta() -> None:
    x, y = torch.empty(1 << 20, 512, device="meta"), torch.empty(1 << 21, 512, device="meta")
    x.requires_grad_()
    value = fm.mmd2(x, y, fm.Gaussian(1.0))
    assert value.shape == ()
    assert value.dtype == torch.float32
    (g,) = torch.autograd.grad(value, x)
    assert g.shape == x.shape


# --- torch.func and forward mode -----------------------------------------------------------------


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(3, 7, 5, dtype=torch.float64), torch.randn(9, 5, dtype=torch.float64)


def gradient(x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(fm.mmd2(x, y), x)[0]


def test_func_grad(batch) -> None:
    x, y = batch[0][0], batch[1]
    result, value = torch.func.grad_and_value(fm.mmd2, argnums=(0, 1))(x, y)
    assert torch.equal(value, fm.mmd2(x, y))
    assert torch.equal(result[0], gradient(x, y))
    w = torch.rand(7, dtype=torch.float64)
    by_weights = torch.func.grad(lambda w: fm.mmd2(x, y, x_weights=w))(w)
    v = w.requires_grad_()
    assert torch.equal(by_weights, torch.autograd.grad(fm.mmd2(x, y, x_weights=v), v)[0])


def test_vmap(batch) -> None:
    x, y = batch
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = torch.func.vmap(fm.mmd2, (0, None))(x, y)
        gradients = torch.func.vmap(torch.func.grad(fm.mmd2), (0, None))(x, y)
        total = torch.func.grad(lambda x: torch.func.vmap(fm.mmd2, (0, None))(x, y).sum())(x)
    assert torch.equal(values, torch.stack([fm.mmd2(a, y) for a in x]))
    expected = torch.stack([gradient(a, y) for a in x])
    assert torch.equal(gradients, expected)
    assert torch.equal(total, expected)


@pytest.mark.parametrize("weighted", [False, True])
def test_vmap_is_one_native_call(calls: list[str], weighted: bool) -> None:
    cases = batch_of("gaussian", (4, 12, 9, 5), dtype=torch.float64, weighted=True)
    x, y, p, q = (
        torch.stack([getattr(case, name) for case in cases])
        for name in ("x", "y", "x_weights", "y_weights")
    )
    kernel = cases[0].kernel
    inputs, in_dims = (x, y[0]), (0, None)
    if weighted:
        inputs, in_dims = (x.movedim(0, 1), y[0], p[0], q.T), (1, None, None, 1)

    def run(*inputs: Tensor) -> Tensor:
        x, y, p, q = (*inputs, None, None)[:4]
        return fm.mmd2(x, y, kernel, "unbiased", p, q)

    values = torch.func.vmap(run, in_dims)(*inputs)
    assert calls == ["mmd2"]
    gradients = torch.func.vmap(torch.func.grad(run, argnums=(0, 1)), in_dims)(*inputs)
    assert calls == ["mmd2"] * 2
    for b in range(4):
        single = (x[b], y[0], p[0], q[b])[: len(inputs)]
        assert torch.equal(values[b], run(*single))
        expected = torch.func.grad(run, argnums=(0, 1))(*single)
        assert all(torch.equal(g[b], e) for g, e in zip(gradients, expected, strict=True))


def test_vmap_of_batches_and_of_kernels(calls: list[str]) -> None:
    x, y = torch.randn(2, 3, 8, 4).double(), torch.randn(2, 3, 7, 4).double()
    mapped = torch.func.vmap(fm.mmd2)(x, y)
    assert calls == ["mmd2"]
    assert torch.equal(mapped, torch.stack([fm.mmd2(a, b) for a, b in zip(x, y, strict=True)]))
    twice = torch.func.vmap(torch.func.vmap(fm.mmd2))(x, y)
    assert torch.equal(twice, mapped)
    # a kernel for each element: one call for each
    calls.clear()
    terms = fm.Gaussian(1.0, (1,)).terms()
    scales = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)

    def of_scale(s: Tensor) -> Tensor:
        return ops.mmd2(x[0, 0], y[0, 0], None, None, terms._replace(scales=s[None]))

    values, slopes = torch.func.vmap(torch.func.grad_and_value(of_scale))(scales)[::-1]
    assert calls == ["mmd2"] * 3
    for i, s in enumerate(scales):
        slope, value = torch.func.grad_and_value(of_scale)(s)
        assert torch.equal(values[i], value)
        assert torch.equal(slopes[i], slope)


def test_func_of_kernel_sums(batch) -> None:
    x, y = batch
    v = torch.randn(9, 2, dtype=torch.float64)
    terms = fm.Matern(2.5, 2.0).terms()

    def form(x: Tensor, v: Tensor) -> Tensor:
        return ops.kernel_sum(x, y, v, terms).square().sum()

    def plain(x: Tensor, v: Tensor) -> Tensor:
        return reference.kernel_sum(x, y, v, terms).square().sum()

    for transform in (
        lambda f: torch.func.vmap(f, (0, None)),
        lambda f: torch.func.vmap(torch.func.grad(f, argnums=(0, 1)), (0, None)),
        lambda f: lambda x, v: torch.func.jacrev(torch.func.jacrev(f))(x[0], v),
        lambda f: lambda x, v: torch.func.jacrev(torch.func.grad(f, argnums=1), argnums=1)(x[0], v),
    ):
        results, expected = transform(form)(x, v), transform(plain)(x, v)
        if isinstance(results, Tensor):
            results, expected = (results,), (expected,)
        for r, e in zip(results, expected, strict=True):
            torch.testing.assert_close(r, e, rtol=0, atol=1e-12 * e.abs().max().item())
    with pytest.raises(NotImplementedError, match=r"forward-mode.*kernel_sum"):
        torch.func.jvp(lambda x: form(x, v), (x[0],), (x[0],))


def test_hessians(batch) -> None:
    x, y = batch[0][0], batch[1]
    function = lambda x: fm.mmd2(x, y, fm.Gaussian(2.0))  # noqa: E731
    hessian = torch.func.jacrev(torch.func.jacrev(function))(x)
    assert torch.equal(hessian, torch.autograd.functional.hessian(function, x))
    plain = lambda x: fm.reference.mmd2(x, y, fm.Gaussian(2.0))  # noqa: E731
    expected = torch.autograd.functional.hessian(plain, x)
    torch.testing.assert_close(hessian, expected, rtol=0, atol=1e-13 * expected.abs().max())
    third = torch.func.grad(lambda x: torch.func.jacrev(torch.func.jacrev(function))(x).sum())
    with pytest.raises(NotImplementedError, match="third derivatives"):
        third(x)


def test_forward_mode_raises_by_name(batch) -> None:
    import torch.autograd.forward_ad as forward_ad

    x, y = batch[0][0], batch[1]
    message = "forward-mode differentiation of fastmmd.mmd2 is not implemented: use reverse mode"
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=message):
        fm.mmd2(forward_ad.make_dual(x, x), y)
    for transform in (torch.func.jacfwd, torch.func.hessian):
        with pytest.raises(NotImplementedError, match=message):
            transform(fm.mmd2)(x, y)
    with pytest.raises(NotImplementedError, match=message):
        torch.func.jvp(fm.mmd2, (x, y), (x, y))


# --- what is missing -----------------------------------------------------------------------------


def test_cuda_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastmmd._cuda", None)  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match=r"no CUDA kernels.*FASTMMD_CUDA=ON.*CPU.*ref"):
        _cuda.module.__wrapped__()
    for name in ("mmd2", "mmd2_backward", "kernel_sum", "resolve", "sign_forms"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastmmd::{name}", "CUDA")


def test_missing_native_module_says_what_to_do(repository: Path) -> None:
    code = f"""
        import importlib.abc, sys

        class Missing(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name == "fastmmd._native":
                    raise ImportError("undefined symbol: no such thing")

        sys.path.insert(0, {str(repository)!r})
        sys.meta_path.insert(0, Missing())
        import fastmmd
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "ImportError: the native module of fastmmd cannot be imported" in run.stderr
    assert "undefined symbol: no such thing" in run.stderr
    assert "pip install" in run.stderr


def test_import_from_the_sources(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").touch()
    shutil.copytree(repository / "fastmmd", tmp_path / "fastmmd")
    for built in (tmp_path / "fastmmd").glob("*.so"):
        built.unlink()
    code = f"import sys; sys.meta_path = sys.meta_path[-3:]; sys.path.insert(0, {str(tmp_path)!r})"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}; import fastmmd"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "holds the sources of fastmmd" in run.stderr


def test_constant_factors() -> None:
    case = product_case()
    tensors = [t.requires_grad_() for t in (case.x, case.y)]
    run = functools.partial(ops.mmd2, *tensors, case.x_weights, case.y_weights, case.terms())
    options = case.number(), case.size(), case.widths
    every, some = run(*options), run(*options, 2)
    assert torch.equal(every, some)
    moving = case.widths[0]
    first = [torch.autograd.grad(v, tensors, create_graph=True) for v in (every, some)]
    for full, part in zip(*first, strict=True):
        assert torch.equal(full[:, :moving], part[:, :moving])
        assert not part[:, moving:].any()
    # second derivatives of the features that move
    penalties = [sum(g[:, :moving].square().sum() for g in gradients) for gradients in first]
    second = [torch.autograd.grad(p, tensors) for p in penalties]
    for full, part in zip(*second, strict=True):
        torch.testing.assert_close(full[:, :moving], part[:, :moving])
        assert not part[:, moving:].any()
