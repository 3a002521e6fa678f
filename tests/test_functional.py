"""mmd2 against the oracle, and the properties that the oracle does not show."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import tolerance
import torch
from tolerance import (
    DTYPES,
    ESTIMATORS,
    FAMILIES,
    KERNELS,
    SEEDS,
    make_case,
    make_kernel,
    make_product,
)
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


# every estimator, with and without the weights that only two of them take
WEIGHINGS = pytest.mark.parametrize(
    ("estimator", "weighted"),
    [(e, w) for e in ESTIMATORS for w in (False, True) if e in ("biased", "unbiased") or not w],
    ids=lambda v: {False: "uniform", True: "weighted"}.get(v, v),
)
HEURISTICS = ("bank", "mean", "median")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@WEIGHINGS
@pytest.mark.parametrize("kernel", KERNELS)
def test_oracle(kernel: str, estimator: str, weighted: bool, dtype: torch.dtype) -> None:
    # unequal, odd, and neither a multiple of a vector nor of a register block
    cases = [make_case(s, 83, 46, 29, kernel, estimator, dtype, weighted) for s in SEEDS]
    tolerance.check(cases)


@pytest.mark.parametrize("kernel", [*FAMILIES, "bank", "median"])
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


@pytest.mark.parametrize("kernel", ["mean", "matern32", "polynomial", "cosine"])
@pytest.mark.parametrize("estimator", ["linear", "block", "incomplete"])
@pytest.mark.parametrize(
    ("n", "m", "d"),
    [
        (2, 2, 1),  # one pair
        (3, 65, 1),  # one pair, and points without a partner
        (5, 7, 700),  # wider than a panel
        (401, 300, 64),  # many blocks and diagonals
    ],
)
def test_oracle_shapes_of_pairs(n: int, m: int, d: int, estimator: str, kernel: str) -> None:
    cases = [make_case(s, n, m, d, kernel, estimator) for s in SEEDS]
    tolerance.check(cases)
    # blocks and bands wider than a tile
    for case in cases:
        paired = min(n, m)
        wide = {
            "block": {"block_size": min(paired, 133)},
            "incomplete": {"num_superdiagonals": min(paired - 1, 133)},
        }
        case.options = wide.get(estimator, {})
    tolerance.check(cases)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", [*FAMILIES, *HEURISTICS, "mixture"])
def test_oracle_far_from_zero(kernel: str, estimator: str, dtype: torch.dtype) -> None:
    # float16 and bfloat16 are so coarse at 100 that many points coincide
    cases = [make_case(s, 61, 34, 9, kernel, estimator, dtype, offset=100.0) for s in SEEDS]
    tolerance.check(cases)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_oracle_instruction_sets(instruction_set: str, kernel: str, dtype: torch.dtype) -> None:
    tolerance.check([make_case(s, 70, 45, 19, kernel, "unbiased", dtype, True) for s in SEEDS])


@pytest.mark.parametrize("kernel", FAMILIES)
@pytest.mark.parametrize("estimator", ["linear", "block", "incomplete"])
def test_oracle_instruction_sets_of_pairs(
    instruction_set: str, estimator: str, kernel: str
) -> None:
    tolerance.check([make_case(s, 70, 45, 19, kernel, estimator) for s in SEEDS])


PRODUCTS = {
    "radial": (("gaussian", "median", "laplacian"), (11, 3, 15)),
    "all geometries": (("matern32", "polynomial", "cosine", "linear"), (7, 12, 4, 6)),
    "local": (("bank", "linear"), (22, 7)),  # of features and classes
    "sums": (("sum", "heuristics"), (19, 10)),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("estimator", "weighted"),
    [(e, w) for e in (*ESTIMATORS, "cross") for w in (e in ("unbiased", "cross"),)],
)
@pytest.mark.parametrize("product", PRODUCTS)
def test_oracle_products(product: str, estimator: str, weighted: bool, dtype: torch.dtype) -> None:
    cases = [
        make_product(
            make_case(s, 83, 46, 29, "bank", estimator, dtype, weighted), *PRODUCTS[product]
        )
        for s in SEEDS
    ]
    tolerance.check(cases)


@pytest.mark.parametrize("kernel", [*FAMILIES, "mixture"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_oracle_cross(kernel: str, dtype: torch.dtype) -> None:
    # one of the sums by itself, as kernel sums are differentiated with
    tolerance.check([make_case(s, 83, 46, 29, kernel, "cross", dtype, True) for s in SEEDS])


def test_hand_computed() -> None:
    x, y = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0]])
    # pairs: xx 0, 5, 5, 0; yy 0; xy 0, 5
    assert float(fm.mmd2(x, y, fm.Energy())) == pytest.approx(-2.5 + 2 * 2.5, rel=1e-6)
    e = math.exp(-2.5)
    for k, kernel in (
        (e, fm.Laplacian(2.0)),
        (e, fm.Matern(0.5, 2.0)),
        (1 / math.sqrt(1 + 25 / 4), fm.InverseMultiquadric(2.0)),
        ((1 + 25 / 24) ** -3, fm.RationalQuadratic(3, 2.0)),
        ((1 + 2.5 * 3**0.5) * math.exp(-2.5 * 3**0.5), fm.Matern(1.5, 2.0)),
        ((1 + 2.5 * 5**0.5 + 125 / 12) * math.exp(-2.5 * 5**0.5), fm.Matern(2.5, 2.0)),
    ):
        value = (2 + 2 * k) / 4 + 1 - (1 + k)
        assert float(fm.mmd2(x, y, kernel)) == pytest.approx(value, rel=1e-6)
    z = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    # mean of squared distances over the pooled pairs: x-x 25; x-z 1, 20, 0, 25, 0, 25; z-z 1, 1, 0
    unit = (25 + 1 + 20 + 25 + 25 + 1 + 1) / 10
    g = lambda t: math.exp(-t / unit)  # noqa: E731
    value = g(25) + (2 * g(1) + g(0)) / 3 - 2 / 6 * (g(1) + g(20) + 2 * g(0) + 2 * g(25))
    result = fm.mmd2(x, z, fm.Gaussian("mean", multipliers=(1,)), "unbiased")
    assert float(result) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_small_whole_numbers(dtype: torch.dtype) -> None:
    x = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]]).to(dtype)
    y = torch.tensor([[7, 6, 5], [4, 3, 2], [1, 1, 8], [0, 2, 5]]).to(dtype)
    # |(4, 5, 6) - (3, 3, 5)|^2
    assert float(fm.mmd2(x, y, fm.Linear())) == pytest.approx(6.0, rel=1e-6)
    gaussian = fm.Gaussian(math.sqrt(0.5), multipliers=(1,))
    assert float(fm.mmd2(x, y, gaussian)) == pytest.approx(0.582206862, abs=1e-7)
    polynomial = fm.Polynomial(2, gamma=1, coef0=0)
    assert float(fm.mmd2(x, y, polynomial)) == pytest.approx(2436.5, rel=1e-6)
    assert float(fm.mmd2(x, y, fm.Polynomial(1, gamma=1, coef0=7))) == pytest.approx(6.0, rel=1e-5)
    # <x_0, x_1> + <y_0, y_1> - <x_0, y_1> - <x_1, y_0>
    value = 32 + 56 - 16 - 88
    assert float(fm.mmd2(x, y, fm.Linear(), "linear")) == pytest.approx(value, rel=1e-5)


def test_cosine_without_a_direction() -> None:
    x = torch.zeros(3, 4, requires_grad=True)
    y = torch.eye(4)[:2].requires_grad_()
    value = fm.mmd2(x, y, fm.Cosine())
    value.backward()
    assert value.item() == 0.5  # that of y with itself: two of four pairs
    assert not x.grad.any()
    # d |sum_j u_j|^2 / 4, less what is along each
    assert torch.equal(y.grad, torch.tensor([[0, 0.5, 0, 0], [0.5, 0, 0, 0]]))
    # however short it is
    tiny = torch.full((1, 4), 1e-18)
    assert fm.mmd2(tiny, torch.ones(1, 4), fm.Cosine()).item() == pytest.approx(0, abs=1e-6)


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


@WEIGHINGS
@pytest.mark.parametrize("kernel", [*FAMILIES, "sum"])
@pytest.mark.parametrize("order", [1, 2])
def test_gradcheck(order: int, kernel: str, estimator: str, weighted: bool) -> None:
    if kernel == "sum":  # of a bandwidth that is none of the heuristics, which count as constants
        s, w = (nn.Parameter(torch.tensor(v).double()) for v in ([0.8, 1.7], 0.6))
        fixed = fm.Gaussian(1.5) + w * (fm.Energy() + fm.Laplacian(s) + fm.Polynomial())
    n, m = (4, 3) if weighted else (5, 4)
    case = make_case(3, n, m, 2, fixed if kernel == "sum" else kernel, estimator, torch.float64)
    options = {"block": {"block_size": 2}, "incomplete": {"num_superdiagonals": 2}}
    case.options = options.get(estimator, {})
    inputs = [case.x, case.y]
    if weighted:
        inputs.append(torch.tensor([0.5, 1.0, 2.0, 0.7], dtype=torch.float64))
        inputs.append(torch.tensor([1.0, 0.4, 0.9], dtype=torch.float64))
    count = len(inputs)

    def function(*tensors: Tensor) -> Tensor:  # the parameters are varied where they are
        x, y, *weights = tensors[:count]
        return fm.mmd2(x, y, case.kernel, estimator, *weights, **case.options)

    check = torch.autograd.gradcheck if order == 1 else torch.autograd.gradgradcheck
    leaves = [t.requires_grad_() for t in inputs] + list(case.kernel.parameters())
    assert check(function, leaves)


def second_order(case: tolerance.Case, function, **options) -> list[Tensor]:
    """The gradients of a function of the gradients, of the kind a gradient penalty is."""
    names = ("x", "y", "x_weights", "y_weights")
    inputs = [t.detach().requires_grad_() for n in names if (t := getattr(case, n)) is not None]
    leaves = inputs + list(case.kernel.parameters())
    arguments = (inputs[0], inputs[1], case.kernel, case.estimator, *inputs[2:])
    value = function(*arguments, **case.options, **options)
    gradients = torch.autograd.grad(value, leaves, create_graph=True)
    penalty = sum(
        (g.square() * torch.linspace(1, 2, g.numel()).view_as(g)).sum() for g in gradients
    )
    return list(torch.autograd.grad(penalty, leaves))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@WEIGHINGS
@pytest.mark.parametrize("kernel", ["gaussian", "mean", "laplacian", "matern32", "mixture"])
def test_second_order_in_blocks(
    kernel: str,
    estimator: str,
    weighted: bool,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hessian, "_BLOCK", 16)
    monkeypatch.setattr(hessian, "_NEAR_NUMBERS", 50)
    case = make_case(1, 37, 33, 6, kernel, estimator, dtype, weighted)
    case.x[5] = case.x[17]  # duplicates, within and across the samples
    case.y[3] = case.x[30]
    exact = replace(case, x=case.x.double(), y=case.y.double())
    expected = second_order(
        exact,
        reference.mmd2,
        factors=tolerance.resolve(exact),
        distances=reference.direct_squared_distances,
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
@pytest.mark.parametrize("kernel", [*FAMILIES, *HEURISTICS, "mixture"])
def test_duplicates(kernel: str, dtype: torch.dtype) -> None:
    x = (torch.randn(130, 64, generator=torch.Generator().manual_seed(0)) + 5).to(dtype)
    case = tolerance.Case(x, x.clone(), make_kernel(kernel, 64))
    near = tolerance.native(case)
    scale = tolerance.absolute_sums(case)["value"] / 4  # the mean of |k|: x and y meet four times
    assert near["value"].abs() <= 1e-6 * scale
    # beside the gradient of two samples that do differ
    far = tolerance.native(replace(case, y=x.flip(1).clone()))
    for name in ("x", "y"):
        assert near[name].abs().max() <= 1e-5 * far[name].abs().max()


RADIAL_KERNELS = [k for k in FAMILIES if k not in ("polynomial", "linear", "cosine")]


@pytest.mark.parametrize("scale", [1e-3, 1e-5])
@pytest.mark.parametrize("kernel", [*RADIAL_KERNELS, "bank"])
def test_near_duplicates_keep_their_distance(kernel: str, scale: float) -> None:
    # y is x moved by little: what there is to say is in distances that |x|^2 + |y|^2 - 2xy loses
    cases = []
    for seed in SEEDS:
        case = make_case(seed, 40, 40, 12, kernel)
        case.y = case.x + scale * torch.randn(40, 12, generator=torch.Generator().manual_seed(seed))
        cases.append(case)
    tolerance.check(cases)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", KERNELS)
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
@pytest.mark.parametrize("kernel", [*FAMILIES, *HEURISTICS])
def test_not_finite_gives_nan(kernel: str, dtype: torch.dtype, bad: float) -> None:
    for where in ("x", "y"):
        case = make_case(0, 40, 50, 7, kernel, dtype=dtype)
        getattr(case, where)[13, 2] = bad
        assert fm.mmd2(case.x, case.y, case.kernel).isnan()
        case.x.requires_grad_()
        value = fm.mmd2(case.x, case.y, case.kernel)
        value.backward()
        assert value.isnan()
        assert not case.x.grad.isfinite().all()  # infinity in y is infinity in x, here and there


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
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", ["mean", "mixture"])
def test_layouts_give_the_same_bits(kernel: str, estimator: str, dtype: torch.dtype) -> None:
    case = make_case(0, 51, 34, 23, kernel, estimator, dtype)
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


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", ["sum", "median", "mixture"])
def test_threads_give_the_same_bits(kernel: str, estimator: str) -> None:
    case = make_case(0, 700, 450, 40, kernel, estimator, weighted=estimator == "unbiased")
    case.options = {"block": {"block_size": 90}, "incomplete": {"num_superdiagonals": 70}}.get(
        estimator, {}
    )
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
