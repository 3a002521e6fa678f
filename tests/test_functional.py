"""mmd2 against the oracle, and the properties that the oracle does not show."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import tolerance
import torch
from tolerance import DTYPES, KERNELS, SEEDS, make_case, make_kernel
from torch import Tensor, nn

import fastmmd as fm
from fastmmd import hessian, reference
from fastmmd.ops import native


@pytest.fixture(params=native.instruction_sets())
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    before = native.instruction_set()
    native.use_instruction_set(request.param)
    yield request.param
    native.use_instruction_set(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["uniform", "weighted"])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_oracle(kernel: str, estimator: str, weighted: bool, dtype: torch.dtype) -> None:
    # unequal, odd, and neither a multiple of a vector nor of a register block
    cases = [make_case(s, 83, 46, 29, kernel, estimator, dtype, weighted) for s in SEEDS]
    tolerance.check(cases)


@pytest.mark.parametrize("kernel", ["gaussian", "bank", "median", "laplacian", "energy"])
@pytest.mark.parametrize(
    ("n", "m", "d"),
    [
        (1, 1, 1),  # the least there is
        (1, 65, 3),  # one row against several vectors of them
        (96, 192, 8),  # whole tiles
        (97, 385, 1),  # just over a tile either way, in one dimension
        (5, 7, 700),  # wider than a panel
        (401, 300, 64),  # several tiles
    ],
)
def test_oracle_shapes(instruction_set: str, n: int, m: int, d: int, kernel: str) -> None:
    tolerance.check([make_case(s, n, m, d, kernel, weighted=s % 2 == 1) for s in SEEDS])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", ["bank", "mean", "median", "laplacian", "energy"])
def test_oracle_far_from_zero(kernel: str, estimator: str, dtype: torch.dtype) -> None:
    # float16 and bfloat16 are so coarse at 100 that many points coincide
    cases = [make_case(s, 61, 34, 9, kernel, estimator, dtype, offset=100.0) for s in SEEDS]
    tolerance.check(cases)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_oracle_instruction_sets(instruction_set: str, kernel: str, dtype: torch.dtype) -> None:
    tolerance.check([make_case(s, 70, 45, 19, kernel, "unbiased", dtype, True) for s in SEEDS])


def test_hand_computed() -> None:
    x, y = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0]])
    # pairs: xx 0, 5, 5, 0; yy 0; xy 0, 5
    assert float(fm.mmd2(x, y, fm.Energy())) == pytest.approx(-2.5 + 2 * 2.5, rel=1e-6)
    e = math.exp(-2.5)
    value = (2 + 2 * e) / 4 + 1 - (1 + e)
    assert float(fm.mmd2(x, y, fm.Laplacian(2.0))) == pytest.approx(value, rel=1e-6)
    z = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    # mean of squared distances over the pooled pairs: x-x 25; x-z 1, 20, 0, 25, 0, 25; z-z 1, 1, 0
    unit = (25 + 1 + 20 + 25 + 25 + 1 + 1) / 10
    g = lambda t: math.exp(-t / unit)  # noqa: E731
    value = g(25) + (2 * g(1) + g(0)) / 3 - 2 / 6 * (g(1) + g(20) + 2 * g(0) + 2 * g(25))
    result = fm.mmd2(x, z, fm.Gaussian("mean", multipliers=(1,)), "unbiased")
    assert float(result) == pytest.approx(value, rel=1e-6)


def test_any_number_of_bandwidths() -> None:
    bank = fm.Gaussian(nn.Parameter(torch.linspace(1, 5, 30)), [1 + k / 20 for k in range(10)])
    case = make_case(0, 20, 17, 3, bank + fm.Energy(), dtype=torch.float64)
    results, exact = tolerance.native(case), tolerance.oracle(case)
    found, allowed = tolerance.errors(results, exact), tolerance.bounds(case, exact, {})
    assert all(found[name] <= allowed[name] for name in found), (found, allowed)


def test_weights_repeat_points() -> None:
    case = make_case(0, 6, 5, 4, dtype=torch.float64)
    counts = torch.tensor([1, 0, 3, 2, 1, 1])
    repeated = case.x.repeat_interleave(counts, 0)
    weighted = fm.mmd2(case.x, case.y, fm.Gaussian(1.0), x_weights=counts.double())
    torch.testing.assert_close(
        weighted, fm.mmd2(repeated, case.y, fm.Gaussian(1.0)), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", ["gaussian", "laplacian", "energy", "sum"])
@pytest.mark.parametrize("order", [1, 2])
def test_gradcheck(order: int, kernel: str, estimator: str) -> None:
    case = make_case(3, 4, 3, 2, estimator=estimator, dtype=torch.float64)

    def function(x: Tensor, y: Tensor, p: Tensor, q: Tensor, s: Tensor, w: Tensor) -> Tensor:
        k = {
            "gaussian": lambda: fm.Gaussian(s, (0.5, 2), weights=w[:4]),
            "laplacian": lambda: fm.Laplacian(s, weights=w[:2]),
            "energy": lambda: w[0] * fm.Energy(),
            "sum": lambda: fm.Gaussian(1.5, weights=w) + w[0] * (fm.Energy() + fm.Laplacian(s)),
        }[kernel]()
        return fm.mmd2(x, y, k, estimator, p, q)

    values = (
        case.x,
        case.y,
        torch.tensor([0.5, 1.0, 2.0, 0.7], dtype=torch.float64),
        torch.tensor([1.0, 0.4, 0.9], dtype=torch.float64),
        torch.tensor([0.8, 1.7], dtype=torch.float64),
        torch.tensor([0.6, 1.1, 0.9, 1.4, 0.5], dtype=torch.float64),
    )
    check = torch.autograd.gradcheck if order == 1 else torch.autograd.gradgradcheck
    assert check(function, [t.requires_grad_() for t in values])


def second_order(case: tolerance.Case, function, **options) -> list[Tensor]:
    """The gradients of a function of the gradients, of the kind a gradient penalty is."""
    names = ("x", "y", "x_weights", "y_weights")
    inputs = [t.detach().requires_grad_() for n in names if (t := getattr(case, n)) is not None]
    leaves = inputs + list(case.kernel.parameters())
    value = function(inputs[0], inputs[1], case.kernel, case.estimator, *inputs[2:], **options)
    gradients = torch.autograd.grad(value, leaves, create_graph=True)
    penalty = sum(
        (g.square() * torch.linspace(1, 2, g.numel()).view_as(g)).sum() for g in gradients
    )
    return list(torch.autograd.grad(penalty, leaves))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", ["gaussian", "mean", "laplacian", "sum"])
def test_second_order_in_blocks(
    kernel: str, estimator: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hessian, "_BLOCK", 16)
    monkeypatch.setattr(hessian, "_NEAR_NUMBERS", 50)
    case = make_case(1, 37, 33, 6, kernel, estimator, dtype, weighted=True)
    case.x[5] = case.x[17]  # duplicates, within and across the samples
    case.y[3] = case.x[30]
    exact = make_case(1, 37, 33, 6, case.kernel, estimator, torch.float64, weighted=True)
    exact.x, exact.y = case.x.double(), case.y.double()
    factors = reference.resolve(case.kernel.terms(), torch.cat([exact.x, exact.y]))
    expected = second_order(
        exact, reference.mmd2, factors=factors, distances=reference.direct_squared_distances
    )
    # the penalty itself is computed in the dtype of the gradients
    rtol = 1e3 * torch.finfo(dtype).eps
    for result, want in zip(second_order(case, fm.mmd2), expected, strict=True):
        error = (result.double() - want.double()).abs().max()
        assert error <= rtol * want.abs().max()


def test_third_order_raises() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    (g,) = torch.autograd.grad(fm.mmd2(x, torch.randn(5, 3)), x, create_graph=True)
    (h,) = torch.autograd.grad(g.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"third derivatives.*reference"):
        h.sum().backward()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", ["gaussian", "mean", "median", "laplacian", "energy"])
def test_duplicates(kernel: str, dtype: torch.dtype) -> None:
    x = (torch.randn(130, 64, generator=torch.Generator().manual_seed(0)) + 5).to(dtype)
    k = make_kernel(kernel, 64)
    z = x.double()
    with torch.no_grad():
        terms = k.terms()
        factors = reference.resolve(terms, torch.cat([z, z]))
        d2 = reference.direct_squared_distances(z)
        scale = (
            reference.kernel_matrix(d2, terms.families, factors, terms.coefficients).abs().mean()
        )
    assert 0 <= fm.mmd2(x, x.clone(), k).abs() <= 1e-6 * scale

    # beside the gradient of two samples that do differ
    _, *near = torch.ops.fastmmd.mmd2(
        x, x.clone(), None, None, *call(k), False, [True] * 2 + [False] * 4
    )
    y = x.flip(1).clone()
    _, *far = torch.ops.fastmmd.mmd2(x, y, None, None, *call(k), False, [True] * 2 + [False] * 4)
    for v, w in zip(near[:2], far[:2], strict=True):
        assert v.abs().max() <= 1e-5 * w.abs().max()


def call(kernel: fm.Kernel) -> tuple[object, ...]:
    """A kernel as the operator takes it, without a graph."""
    t = kernel.terms()
    return t.scales.detach(), t.coefficients.detach(), t.families, t.shapes, t.units


@pytest.mark.parametrize("scale", [1e-3, 1e-5])
@pytest.mark.parametrize("kernel", ["bank", "laplacian", "energy"])
def test_near_duplicates_keep_their_distance(kernel: str, scale: float) -> None:
    # y is x moved by little: what there is to say is in distances that |x|^2 + |y|^2 - 2xy loses
    cases = []
    for seed in SEEDS:
        case = make_case(seed, 40, 40, 12, kernel)
        case.y = case.x + scale * torch.randn(40, 12, generator=torch.Generator().manual_seed(seed))
        cases.append(case)
    tolerance.check(cases)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize(
    "kernel", ["gaussian", "mean", "median", "laplacian mean", "energy", "sum"]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_points_equal(kernel: str, estimator: str, dtype: torch.dtype) -> None:
    x = torch.full((37, 9), 0.1, dtype=dtype, requires_grad=True)
    y = torch.full((21, 9), 0.1, dtype=dtype, requires_grad=True)
    value = fm.mmd2(x, y, make_kernel(kernel, 9), estimator)
    value.backward()
    assert value.item() == 0
    assert not x.grad.any()
    assert not y.grad.any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", ["gaussian", "bank", "mean", "median", "laplacian", "energy"])
def test_not_finite_gives_nan(kernel: str, dtype: torch.dtype, bad: float) -> None:
    for where in ("x", "y"):
        case = make_case(0, 40, 50, 7, kernel, dtype=dtype)
        getattr(case, where)[13, 2] = bad
        assert fm.mmd2(case.x, case.y, case.kernel).isnan()
        case.x.requires_grad_()
        value = fm.mmd2(case.x, case.y, case.kernel)
        value.backward()
        assert value.isnan()
        assert case.x.grad.isnan().any()


def layouts(t: Tensor) -> dict[str, Tensor]:
    """The same matrix, laid out differently in memory."""
    n, d = t.shape
    wide = t.new_zeros(2 * n, 3 * d)
    wide[::2, ::3] = t
    return {
        "transposed": t.T.contiguous().T,
        "strided": wide[::2, ::3],
        "rows apart": torch.cat([t, t], 1)[:, :d],
        "shifted": torch.cat([t.new_zeros(1), t.reshape(-1)])[1:].view(n, d),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts_give_the_same_bits(dtype: torch.dtype) -> None:
    case = make_case(0, 51, 34, 23, "mean", dtype=dtype)
    expected = tolerance.differentiate(case, fm.mmd2)
    for name, x in layouts(case.x).items():
        assert torch.equal(x, case.x)
        case.x, case.y = x, layouts(case.y)[name]
        for key, result in tolerance.differentiate(case, fm.mmd2).items():
            assert torch.equal(result, expected[key]), (name, key)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_expanded(dtype: torch.dtype) -> None:
    y = torch.randn(30, 8).to(dtype)
    row = torch.randn(1, 8).to(dtype).requires_grad_()
    column = torch.randn(20, 1).to(dtype).requires_grad_()
    for leaf in (row, column):
        fm.mmd2(leaf.expand(20, 8), y, fm.Gaussian(2.0)).backward()
        expanded, leaf.grad = leaf.grad, None
        fm.mmd2(leaf.expand(20, 8).contiguous(), y, fm.Gaussian(2.0)).backward()
        assert torch.equal(leaf.grad, expanded)


def test_negated_view() -> None:
    # the imaginary part of a conjugate: its memory holds the opposite sign
    z = torch.complex(torch.randn(9, 4), torch.randn(9, 4))
    x = z.conj().imag
    assert x.is_neg()
    y = torch.randn(7, 4)
    assert torch.equal(fm.mmd2(x, y), fm.mmd2(x.resolve_neg(), y))


@pytest.mark.parametrize("kernel", ["sum", "median"])
def test_threads_give_the_same_bits(kernel: str) -> None:
    case = make_case(0, 700, 450, 40, kernel, "unbiased", weighted=True)
    with tolerance.threads(1):
        expected = tolerance.differentiate(case, fm.mmd2)
    for count in (2, 3, 4):
        with tolerance.threads(count):
            for _ in range(3):
                for name, result in tolerance.differentiate(case, fm.mmd2).items():
                    assert torch.equal(result, expected[name]), (count, name)


def test_gradients_only_where_asked_for() -> None:
    case = make_case(0, 12, 10, 3, "gaussian", weighted=True)
    leaves = [case.x, case.y, case.x_weights, case.y_weights, *case.kernel.parameters()]
    expected = list(tolerance.differentiate(case, fm.mmd2).values())[1:]
    for i, leaf in enumerate(leaves):
        for other in leaves:
            other.requires_grad_(other is leaf)
        value = fm.mmd2(case.x, case.y, case.kernel, "biased", case.x_weights, case.y_weights)
        (gradient,) = torch.autograd.grad(value, leaf, torch.tensor(tolerance.INCOMING))
        assert torch.equal(gradient, expected[i])
    with torch.no_grad():
        assert not fm.mmd2(case.x, case.y, case.kernel).requires_grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_of_any_dtype(dtype: torch.dtype) -> None:
    case = make_case(0, 12, 10, 3)
    w = torch.rand(12).to(dtype).requires_grad_()
    value = fm.mmd2(case.x, case.y, x_weights=w)
    value.backward()
    v = w.detach().double().requires_grad_()
    fm.mmd2(case.x, case.y, x_weights=v).backward()
    assert w.grad.dtype == dtype
    assert torch.equal(w.grad, v.grad.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    x, y = torch.randn(20, 16), torch.randn(25, 16)
    layer = torch.nn.Linear(16, 8)
    with torch.autocast("cpu", dtype):
        f, g = layer(x), layer(y)
        assert f.dtype == dtype
        loss = fm.mmd2(f, g)
    assert loss.dtype == torch.float32
    loss.backward()
    assert layer.weight.grad.isfinite().all()
    assert torch.equal(loss, fm.mmd2(f, g))


def test_grad_scaler_keeps_float16_gradients() -> None:
    # Unscaled, the entries of the gradient are of the order of 1e-7, less than float16 resolves.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1024, 2048, generator=generator).half().requires_grad_()
    y = (torch.randn(1024, 2048, generator=generator) + 0.1).half()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaler.scale(fm.mmd2(x, y)).backward()
    exact = x.detach().float().requires_grad_()
    fm.mmd2(exact, y.float()).backward()
    expected = exact.grad * 2.0**16
    assert exact.grad.abs().max() < torch.finfo(torch.float16).tiny
    # rounded once, to float16
    half = torch.finfo(torch.float16)
    bound = half.eps * expected.abs().clamp(min=half.tiny)
    assert ((x.grad.float() - expected).abs() <= bound).all()
