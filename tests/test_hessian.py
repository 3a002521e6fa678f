"""Second derivatives, by the operators and by what they are made of, against the reference's."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import pytest
import torch
from tolerance import (
    ESTIMATORS,
    FAMILIES,
    WITH_AND_WITHOUT_WEIGHTS,
    Case,
    make_case,
    make_kernel,
    make_product,
)
from torch import Tensor

from fastmmd import hessian, ops, reference

Derivatives = list[Tensor]


def derivatives(case: Case, function: Callable[..., Tensor], seed: int = 0) -> Derivatives:
    """The gradients of a random linear form of all gradients of the value."""
    names = ("x", "y", "x_weights", "y_weights")
    samples = [getattr(case, name) for name in names]
    samples = [None if t is None else t.detach().requires_grad_() for t in samples]
    inputs = [t for t in samples if t is not None] + list(case.kernel.parameters())
    value = function(*samples, case.terms(), case.number(), case.size(), case.widths)
    first = torch.autograd.grad(1.3 * value, inputs, create_graph=True)
    generator = torch.Generator().manual_seed(seed)
    form = sum(
        (torch.randn(g.shape, generator=generator, dtype=torch.float64) * g).sum() for g in first
    )
    second = torch.autograd.grad(form, inputs, allow_unused=True)
    return [torch.zeros_like(i) if g is None else g for g, i in zip(second, inputs, strict=True)]


def by_reference(*args: object) -> Tensor:
    return reference.pair_sum(*args, distances=reference.direct_squared_distances)


def check(case: Case) -> None:
    tested, expected = derivatives(case, ops.mmd2), derivatives(case, by_reference)
    scale = max(float(e.abs().max()) for e in expected)
    for t, e in zip(tested, expected, strict=True):
        # rounding errors of sums of some thousand terms, each of which may cancel in part
        torch.testing.assert_close(t, e, rtol=0, atol=1e-11 * max(float(e.abs().max()), scale))


@pytest.fixture(params=["one block", "many blocks", "as on a GPU"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many blocks":
        monkeypatch.setattr(hessian, "_BLOCK", 7)
        monkeypatch.setattr(hessian, "_LEAST_BLOCK", 4)
        monkeypatch.setattr(hessian, "_NEAR_NUMBERS", 9)
    if request.param == "as on a GPU":  # where no number of points may be asked for
        monkeypatch.setattr(hessian, "_can_count", lambda x: False)
        monkeypatch.setattr(hessian, "_ALL_NUMBERS", 99)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(("estimator", "weighted"), WITH_AND_WITHOUT_WEIGHTS)
@pytest.mark.parametrize("kernel", [*FAMILIES, "heuristics", "mixture"])
def test_families_and_estimators(kernel: str, estimator: str, weighted: bool) -> None:
    case = make_case(0, 23, 26, 4, kernel, "biased", torch.float64, weighted)
    case.estimator = estimator
    case.options = {"block": {"block_size": 5}, "incomplete": {"num_superdiagonals": 9}}.get(
        estimator, {}
    )
    check(case)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("estimator", [*ESTIMATORS, "cross"])
def test_products(estimator: str) -> None:
    case = make_case(0, 19, 21, 9, dtype=torch.float64, weighted=estimator in ("biased", "cross"))
    case.estimator = estimator
    product = make_product(case, ("gaussian", "polynomial", "cosine", "matern52"), (2, 3, 3, 1))
    product.estimator = estimator
    check(product)


def test_product_with_a_factor_that_is_zero() -> None:
    """A product is not divided by its factors."""
    case = make_case(0, 6, 5, 5, dtype=torch.float64)
    product = make_product(case, ("linear", "gaussian", "cosine"), (2, 2, 1))
    product.x[:3, :2] = 0
    product.y[1, 4] = 0
    check(product)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("kernel", FAMILIES)
def test_near_duplicates(kernel: str) -> None:
    """Equal points, and points whose distance is lost in their norms."""
    case = make_case(0, 17, 15, 4, kernel, "unbiased", torch.float64, True)
    case.x[8] = case.x[2]
    case.y[3] = case.x[2]
    if kernel not in ("laplacian", "energy", "matern32"):  # whose second derivatives have poles
        case.y[5] = case.x[4] + 1e-4
    if kernel == "cosine":
        case.x[1] = 0
        case.y[2] = 0
    check(case)


@pytest.mark.parametrize("kernel", ["gaussian", "laplacian", "matern32", "matern52", "rational"])
def test_offset(kernel: str) -> None:
    case = make_case(0, 17, 15, 4, kernel, dtype=torch.float64)
    expected = derivatives(case, ops.mmd2)
    case.x += 2.0**20
    case.y += 2.0**20  # costs 20 bits of the input
    for tested, e in zip(derivatives(case, ops.mmd2), expected, strict=True):
        torch.testing.assert_close(tested, e, rtol=0, atol=1e-8 * max(float(e.abs().max()), 1.0))


def test_scale_of_zero() -> None:
    """Where a unit is 0 nothing comes; a fixed scale of 0 has derivatives like any other."""
    case = make_case(0, 6, 5, 3, "mean", dtype=torch.float64)
    case.x[:], case.y[:] = 1.0, 1.0
    assert all(torch.equal(d, torch.zeros_like(d)) for d in derivatives(case, ops.mmd2))
    case = make_case(0, 6, 5, 3, make_kernel("linear", 3), dtype=torch.float64)
    scales = torch.zeros(1, dtype=torch.float64, requires_grad=True)

    def run(function: Callable[..., Tensor]) -> Tensor:
        x = case.x.detach().requires_grad_()
        value = function(x, case.y, None, None, case.terms()._replace(scales=scales), 0, 0, None)
        (first,) = torch.autograd.grad(value, scales, create_graph=True)
        return torch.autograd.grad(first.sum(), x)[0]

    torch.testing.assert_close(run(ops.mmd2), run(by_reference))


@pytest.mark.parametrize("estimator", ["linear", "block", "incomplete"])
def test_linear_time(estimator: str) -> None:
    """Blocks without a pair that counts are not visited."""
    pairs = hessian.Pairs((0,), (0.0, 0.0), (0,), (), *_number(estimator))
    few, many = (
        sum(1 for _ in hessian._blocks(pairs, n, n, torch.device("cpu"))) for n in (2000, 20000)
    )
    assert many < 11 * few
    case = make_case(0, 20000, 20000, 2, "bank", dtype=torch.float64)
    case.estimator, case.options = estimator, {"": pairs.size}
    start = time.process_time()
    derivatives(case, ops.mmd2)
    assert time.process_time() - start < 60  # all pairs take many minutes


def _number(estimator: str) -> tuple[int, int]:
    return {"linear": (2, 0), "block": (3, 8), "incomplete": (4, 3)}[estimator]


@pytest.mark.parametrize("estimator", [*ESTIMATORS, "cross"])
def test_blocks_cover_each_pair_once(estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hessian, "_BLOCK", 7)
    monkeypatch.setattr(hessian, "_LEAST_BLOCK", 4)
    n, m = 23, 26
    case = Case(torch.empty(n, 1), torch.empty(m, 1), make_kernel("bank", 1), estimator)
    pairs = hessian.Pairs((0,), (0.0, 0.0), (0,), (), case.number(), case.size())
    weights = torch.zeros(2, 2, m, m, dtype=torch.float64)
    for (a, b), i, j, multiple, counted in hessian._blocks(pairs, n, m, torch.device("cpu")):
        shape = i.stop - i.start, j.stop - j.start
        block = multiple * torch.ones(shape, dtype=torch.float64)
        block *= 1 if counted is None else counted
        weights[a, b, i, j] += block
        if a == b and i != j:
            weights[a, b, i, j] -= block / 2
            weights[a, b, j, i] += block.T / 2
    assert torch.equal(weights[0, 0], weights[0, 0].T)
    assert torch.equal(weights[1, 1], weights[1, 1].T)
    if estimator in ("biased", "unbiased", "cross"):
        assert torch.equal(
            weights[0, 1, :n], weights.new_full((n, m), 1 - 3 * (estimator != "cross"))
        )
        ones = torch.ones(m, m) - (torch.eye(m) if estimator == "unbiased" else 0)
        assert torch.equal(weights[1, 1], (ones * (estimator != "cross")).double())
    else:
        # each of the four sums is a mean
        assert float(weights[0, 0].sum()) == pytest.approx(1)
        assert float(weights[1, 1].sum()) == pytest.approx(1)
        assert float(weights[0, 1].sum()) == pytest.approx(-2)
        own = weights.diagonal(dim1=2, dim2=3)
        assert not own[[0, 1], [0, 1]].any()
        assert own[0, 1].any() == (estimator == "block")
        assert math.isclose(float(weights.sum()), 0, abs_tol=1e-12)
