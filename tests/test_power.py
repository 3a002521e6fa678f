"""The variance of the unbiased estimate, and the criterion of test power."""

from __future__ import annotations

import itertools
import math

import oracles
import pytest
import torch
from torch import Tensor

import fastmmd as fm

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script.*:DeprecationWarning")

KERNELS = {
    "gaussian": lambda: fm.Gaussian(2.0),
    "mean": lambda: fm.Gaussian("mean", (0.5, 1.3)),
    "median": lambda: fm.Laplacian("median"),
    "energy": lambda: fm.Energy(),
    "imq": lambda: fm.InverseMultiquadric(2.0),
    "rq": lambda: fm.RationalQuadratic(alpha=1.5, bandwidth="mean"),
    "matern": lambda: fm.Matern(nu=2.5, bandwidth="mean"),
    "polynomial": lambda: fm.Polynomial(2, coef0=0.5),
    "linear": lambda: fm.Linear(),
    "cosine": lambda: fm.Cosine(),
    "sum": lambda: fm.Gaussian("mean") + 0.5 * fm.Cosine() + 0.1 * fm.Polynomial(2),
}


def make(
    seed: int, n: int, m: int, d: int = 3, dtype: torch.dtype = torch.float64, shift: float = 0.4
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = 1.2 * torch.randn(m, d, generator=generator, dtype=torch.float64) + shift
    return {"x": x.to(dtype), "y": y.to(dtype)}


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("name", KERNELS)
def test_formula(name: str, dtype: torch.dtype) -> None:
    kernel = KERNELS[name]()
    for n, m in ((33, 20), (4, 4), (5, 21)):
        oracles.hold(
            lambda seed, n=n, m=m: make(seed, n, m, dtype=dtype),
            lambda t: fm.mmd2_variance(t["x"], t["y"], kernel),
            lambda t, n=n: oracles.variance(oracles.matrix(t["x"], t["y"], kernel), n),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["narrow", "steep"])
def test_large_diagonal(name: str, dtype: torch.dtype) -> None:
    # The diagonal, which is no part of the result, is far above all of the rest.
    kernel = fm.Gaussian(0.3, (1,)) if name == "narrow" else fm.Polynomial(4, gamma=1.0)
    oracles.hold(
        lambda seed: make(seed, 13, 9, dtype=dtype),
        lambda t: fm.mmd2_variance(t["x"], t["y"], kernel),
        lambda t: oracles.variance(oracles.matrix(t["x"], t["y"], kernel), 13),
    )


def distinct(k: Tensor, n: int) -> Tensor:
    """The estimate as the means over distinct points that it stands for."""

    def average(values: list[Tensor]) -> Tensor:
        return torch.stack(values).mean()

    def within(a: Tensor) -> Tensor:
        size = len(a)
        two = average([a[i, j] ** 2 for i, j in itertools.permutations(range(size), 2)])
        three = average([a[i, j] * a[i, k] for i, j, k in itertools.permutations(range(size), 3)])
        four = average([a[i, j] * a[k, h] for i, j, k, h in itertools.permutations(range(size), 4)])
        return 2 / (size * (size - 1)) * (2 * (size - 2) * (three - four) + two - four)

    def across(a: Tensor) -> Tensor:
        n, m = a.shape
        rows = list(itertools.permutations(range(n), 2))
        columns = list(itertools.permutations(range(m), 2))
        same = a.square().mean()
        by_row = average([a[i, j] * a[i, k] for i in range(n) for j, k in columns])
        by_column = average([a[i, k] * a[j, k] for i, j in rows for k in range(m)])
        apart = average([a[i, k] * a[j, h] for i, j in rows for k, h in columns])
        return ((m - 1) * (by_row - apart) + (n - 1) * (by_column - apart) + same - apart) / (n * m)

    def covariance(a: Tensor, c: Tensor) -> Tensor:
        n, m = c.shape
        shared = average(
            [a[i, j] * c[i, k] for i, j in itertools.permutations(range(n), 2) for k in range(m)]
        )
        apart = average(
            [a[i, j] * c[k, h] for i, j, k in itertools.permutations(range(n), 3) for h in range(m)]
        )
        return 2 / n * (shared - apart)

    kx, ky, kxy = k[:n, :n], k[n:, n:], k[:n, n:]
    both = covariance(kx, kxy) + covariance(ky, kxy.T)
    return within(kx) + within(ky) + 4 * across(kxy) - 4 * both


@pytest.mark.parametrize(("n", "m"), [(4, 4), (5, 4), (4, 6)])
def test_means_over_distinct_points(n: int, m: int) -> None:
    t = make(0, n, m)
    kernel = fm.Gaussian("mean") + fm.Linear()
    exact = distinct(oracles.matrix(t["x"], t["y"], kernel), n)
    value = fm.mmd2_variance(t["x"], t["y"], kernel)
    assert abs(value - exact) <= 1e-11 * abs(exact)


@pytest.mark.parametrize(("n", "m"), [(4, 4), (5, 4)])
def test_unbiased_over_all_samples(n: int, m: int) -> None:
    # From distributions with two values there are 2^(n + m) samples, and their probabilities are
    # known: so are the variance of the estimate and the mean of its estimate, without a draw.
    kernel = fm.Gaussian(1.0) + 0.3 * fm.Linear()
    points = torch.tensor([[0.0], [1.5]], dtype=torch.float64)
    mmd, variance, probability = [], [], []
    for choice in itertools.product((0, 1), repeat=n + m):
        x, y = points[list(choice[:n])], points[list(choice[n:])]
        mmd.append(fm.mmd2(x, y, kernel, "unbiased"))
        variance.append(fm.mmd2_variance(x, y, kernel))
        ones_x, ones_y = sum(choice[:n]), sum(choice[n:])
        probability.append(0.3**ones_x * 0.7 ** (n - ones_x) * 0.6**ones_y * 0.4 ** (m - ones_y))
    p = torch.tensor(probability, dtype=torch.float64)
    mmd_, variance_ = torch.stack(mmd), torch.stack(variance)
    exact = p @ mmd_.square() - (p @ mmd_) ** 2
    assert abs(p @ variance_ - exact) <= 1e-12 * exact
    assert bool((variance_ < 0).any())  # the price of being unbiased


def test_simulation() -> None:
    draws = [make(seed, 12, 20, 2) for seed in range(2000)]
    kernel = fm.Gaussian(1.0, (1,))
    mmd = torch.stack([fm.mmd2(t["x"], t["y"], kernel, "unbiased") for t in draws])
    estimates = torch.stack([fm.mmd2_variance(t["x"], t["y"], kernel) for t in draws])
    # The standard errors of both sides; four of them are exceeded once in 16 000 times.
    empirical = mmd.var()
    error = math.hypot(
        float((mmd - mmd.mean()).square().std()) / len(draws) ** 0.5,
        float(estimates.std()) / len(draws) ** 0.5,
    )
    assert abs(estimates.mean() - empirical) <= 4 * error


def sutherland(k: Tensor, m: int) -> Tensor:
    """Equation (5) of Sutherland et al. 2017, for m points of each sample."""
    kx, ky, kxy = k[:m, :m].clone(), k[m:, m:].clone(), k[:m, m:]
    kx.fill_diagonal_(0)
    ky.fill_diagonal_(0)
    e = torch.ones(m, dtype=k.dtype)
    f = (m * (m - 1)) ** 2
    return (
        2 / f * (2 * (kx @ e).square().sum() - kx.square().sum())
        + 2 / f * (2 * (ky @ e).square().sum() - ky.square().sum())
        - (4 * m - 6) / (m * (m - 1)) ** 3 * (kx.sum() ** 2 + ky.sum() ** 2)
        + 4 * (m - 2) / (m * f) * ((kxy @ e).square().sum() + (kxy.T @ e).square().sum())
        - 4 * (m - 3) / (m * f) * kxy.square().sum()
        - (8 * m - 12) / (m**5 * (m - 1)) * kxy.sum() ** 2
        + 8 / (m**3 * (m - 1)) * (kx.sum() + ky.sum()) / m * kxy.sum()
        - 8 / (m**3 * (m - 1)) * ((e @ kx @ kxy @ e) + (e @ ky @ kxy.T @ e))
    )


def test_comes_near_to_published() -> None:
    # Theirs leaves a bias of a part in n, and is of the estimate without the pairs (x_i, y_i).
    kernel = fm.Gaussian(2.0, (1,))
    gaps = []
    for n in (50, 100, 200):
        t = make(1, n, n, shift=0.6)
        exact = sutherland(oracles.matrix(t["x"], t["y"], kernel), n)
        gaps.append(n * abs(float(fm.mmd2_variance(t["x"], t["y"], kernel) / exact - 1)))
    assert max(gaps) <= 8  # a few parts in n


@pytest.mark.parametrize("name", KERNELS)
def test_criterion_is_the_ratio(name: str) -> None:
    t, kernel = make(0, 30, 41), KERNELS[name]()
    mmd = fm.mmd2(t["x"], t["y"], kernel, "unbiased")
    variance = fm.mmd2_variance(t["x"], t["y"], kernel)
    for least in (1e-8, 10.0):
        expected = mmd / max(float(variance), least) ** 0.5
        value = fm.power_criterion(t["x"], t["y"], kernel, regularizer=least)
        assert abs(value - expected) <= 1e-9 * abs(expected) + 1e-12


def test_negative_variance() -> None:
    # found by looking: two samples of one distribution, of four points each
    t = next(
        t
        for seed in range(200)
        if fm.mmd2_variance(*(t := make(seed, 4, 4, 1, shift=0)).values()) < 0
    )
    x = t["x"].requires_grad_()
    value = fm.power_criterion(x, t["y"], fm.Gaussian("mean"), regularizer=0.04)
    (gradient,) = torch.autograd.grad(value, x)
    (expected,) = torch.autograd.grad(fm.mmd2(x, t["y"], None, "unbiased") / 0.2, x)
    assert value.isfinite()
    assert (gradient - expected).abs().max() <= 1e-12


def test_all_points_equal() -> None:
    x, y = torch.ones(5, 2, requires_grad=True), torch.ones(6, 2)
    for kernel in (None, fm.Gaussian("median"), fm.Energy()):
        value = fm.power_criterion(x, y, kernel)
        (gradient,) = torch.autograd.grad(value, x)
        assert value == 0
        assert torch.equal(gradient, torch.zeros(5, 2))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_data_is_no_error(bad: float) -> None:
    t = make(0, 6, 7)
    t["x"][1, 2] = bad
    assert fm.mmd2_variance(t["x"], t["y"]).isnan()
    assert fm.power_criterion(t["x"], t["y"]).isnan()


@pytest.mark.parametrize("function", [fm.mmd2_variance, fm.power_criterion])
def test_gradients(function) -> None:
    t = make(0, 6, 5, 2)
    s = torch.tensor([0.8, 1.7], dtype=torch.float64)
    w = torch.tensor([1.0, 0.4], dtype=torch.float64)

    def of(x: Tensor, y: Tensor, s: Tensor, w: Tensor) -> Tensor:
        kernel = fm.Gaussian(s, (1,), weights=w) + 0.2 * fm.Polynomial(2)
        return function(x, y, kernel)

    inputs = [a.requires_grad_() for a in (t["x"], t["y"], s, w)]
    assert torch.autograd.gradcheck(of, inputs)
    assert torch.autograd.gradgradcheck(of, inputs)


def test_gradient_through_heuristic_kernel_weights() -> None:
    t = make(0, 7, 6, 2)
    w = torch.tensor([1.0, 0.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda w: fm.mmd2_variance(t["x"], t["y"], fm.Gaussian("mean", (1, 3), weights=w)), [w]
    )


def test_learns_the_bandwidth_of_power() -> None:
    # The samples differ in their spread, of 1 and 1.5: a kernel of width 20 hardly sees it.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 1, generator=generator)
    y = torch.randn(300, 1, generator=generator) * 1.5
    kernel = fm.Gaussian(fm.Learnable(20.0), (1,))
    optimiser = torch.optim.Adam(kernel.parameters(), lr=0.2)
    first = fm.power_criterion(x, y, kernel).item()
    for _ in range(60):
        optimiser.zero_grad()
        (-fm.power_criterion(x, y, kernel)).backward()
        optimiser.step()
    assert 0.2 < kernel.bandwidth().item() < 5
    assert fm.power_criterion(x, y, kernel).item() > first + 1


def test_compiled() -> None:
    t = {n: a.float() for n, a in make(0, 20, 30).items()}
    kernel = fm.Gaussian("mean")
    compiled = torch.compile(fm.power_criterion, fullgraph=True)
    x = t["x"].requires_grad_()
    expected = fm.power_criterion(x, t["y"], kernel)
    value = compiled(x, t["y"], kernel)
    assert torch.allclose(value, expected, rtol=1e-5)
    gradients = [torch.autograd.grad(v, x)[0] for v in (value, expected)]
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-6)
