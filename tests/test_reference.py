"""The oracle against loops over pairs, and its own derivatives."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch
from tolerance import make_case

import fastmmd as fm
from fastmmd import reference


def loop_mmd2(x, y, kernel, unbiased, p=None, q=None) -> float:
    p, q = p or [1 / len(x)] * len(x), q or [1 / len(y)] * len(y)
    p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]

    def within(points, w):
        pairs = itertools.product(range(len(points)), repeat=2)
        total = sum(
            w[i] * w[j] * kernel(math.dist(points[i], points[j]))
            for i, j in pairs
            if not unbiased or i != j
        )
        return total / (1 - sum(v * v for v in w)) if unbiased else total

    cross = sum(
        a * b * kernel(math.dist(u, v))
        for u, a in zip(x, p, strict=True)
        for v, b in zip(y, q, strict=True)
    )
    return within(x, p) + within(y, q) - 2 * cross


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["gaussian", "laplacian", "energy", "mean", "median"])
def test_loops(name: str, weighted: bool, estimator: str) -> None:
    case = make_case(0, 7, 5, 3, dtype=torch.float64, weighted=weighted)
    x, y = case.x.tolist(), case.y.tolist()
    squares = [math.dist(a, b) ** 2 for a, b in itertools.combinations(x + y, 2)]
    mean, median = statistics.mean(squares), statistics.median_low(squares)
    kernel, function = {
        "gaussian": (
            fm.Gaussian(1.5, (0.5, 3), weights=(1, 2)),
            lambda r: math.exp(-r * r / (1 * 1.5**2)) + 2 * math.exp(-r * r / (6 * 1.5**2)),
        ),
        "laplacian": (fm.Laplacian(1.5), lambda r: math.exp(-r / 1.5)),
        "energy": (0.5 * fm.Energy(), lambda r: -0.5 * r),
        "mean": (
            fm.Gaussian("mean", (2,)) + fm.Laplacian("mean"),
            lambda r: math.exp(-r * r / (2 * mean)) + math.exp(-r / math.sqrt(mean / 2)),
        ),
        "median": (fm.Gaussian("median", (2,)), lambda r: math.exp(-r * r / (2 * median))),
    }[name]
    p = case.x_weights.tolist() if weighted else None
    q = case.y_weights.tolist() if weighted else None
    expected = loop_mmd2(x, y, function, estimator == "unbiased", p, q)
    arguments = (case.x, case.y, kernel, estimator, case.x_weights, case.y_weights)
    for distances in (reference.squared_distances, reference.direct_squared_distances):
        result = reference.mmd2(*arguments, distances=distances)
        assert float(result) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("count", [2, 3, 4, 31])
def test_statistics(count: int) -> None:
    z = torch.randn(count, 5, dtype=torch.float64) + 3
    squares = [math.dist(a, b) ** 2 for a, b in itertools.combinations(z.tolist(), 2)]
    mean, median = statistics.mean(squares), statistics.median_low(squares)
    assert float(reference.mean_squared_distance(z)) == pytest.approx(mean, rel=1e-12)
    assert float(reference.median_squared_distance(z)) == pytest.approx(median, rel=1e-12)
    z.requires_grad_()
    assert not reference.mean_squared_distance(z).requires_grad
    assert not reference.median_squared_distance(z).requires_grad


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("name", ["gaussian", "laplacian", "energy"])
def test_derivatives(name: str, estimator: str, check) -> None:
    case = make_case(0, 4, 3, 2, name, estimator, torch.float64, weighted=True)

    def function(x, y, p, q, *_):
        return reference.mmd2(x, y, case.kernel, estimator, p, q)

    inputs = [case.x, case.y, torch.rand(4).double() + 0.1, torch.rand(3).double() + 0.1]
    assert check(function, [t.requires_grad_() for t in inputs] + list(case.kernel.parameters()))


@pytest.mark.parametrize("family", range(len(reference.PROFILES)))
def test_profile_derivatives(family: int) -> None:
    t = torch.tensor([1e-3, 0.3, 1.0, 7.0], dtype=torch.float64, requires_grad=True)
    phi = reference.PROFILES[family](t)
    (first,) = torch.autograd.grad(phi.sum(), t, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), t)
    derivatives = reference.PROFILE_DERIVATIVES[family](t.detach())
    for result, expected in zip(derivatives, (phi, first, second), strict=True):
        torch.testing.assert_close(result, expected.detach(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("family", [1, 2])
def test_roots_have_no_derivative_at_zero(family: int) -> None:
    t = torch.zeros(1, requires_grad=True)
    (first,) = torch.autograd.grad(reference.PROFILES[family](t), t, create_graph=True)
    assert first.item() == 0
    value, *derivatives = reference.PROFILE_DERIVATIVES[family](torch.zeros(1))
    assert value.item() == {1: 1, 2: 0}[family]
    assert not any(derivatives)


@pytest.mark.parametrize("family", range(len(reference.PROFILES)))
def test_profiles_keep_nan(family: int) -> None:
    nan = torch.tensor(math.nan)
    assert reference.PROFILES[family](nan).isnan()
    assert all(v.isnan() for v in reference.PROFILE_DERIVATIVES[family](nan))


def test_half_inputs_are_computed_in_float32() -> None:
    x, y = torch.randn(9, 4).half(), torch.randn(8, 4).half()
    assert torch.equal(reference.mmd2(x, y), reference.mmd2(x.float(), y.float()))


# by torch itself, as it loads its formulas for forward mode
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_forward_mode() -> None:
    # what a user of forward mode is sent to
    case = make_case(0, 6, 5, 3, "energy", dtype=torch.float64)
    x = case.x.requires_grad_()
    direction = torch.randn_like(x)
    function = lambda x: reference.mmd2(x, case.y, case.kernel)  # noqa: E731
    _, derivative = torch.func.jvp(function, (x.detach(),), (direction,))
    (gradient,) = torch.autograd.grad(function(x), x)
    torch.testing.assert_close(derivative, (gradient * direction).sum())
