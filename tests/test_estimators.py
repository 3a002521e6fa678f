"""The estimators, batches, kernel sums and what is made of them, written out with whole matrices.

What each family and dtype does under each estimator stands in ``test_functional.py``; here is what
the estimators are.
"""

from __future__ import annotations

import itertools
import math

import oracles
import pytest
import torch
from torch import Tensor

import fastmmd as fm
from fastmmd import reference

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script.*:DeprecationWarning")

ESTIMATORS = ("biased", "unbiased", "linear", "block", "incomplete")
HALVES = (torch.float16, torch.bfloat16)
KERNELS = {
    "mean": lambda: fm.Gaussian("mean"),
    "median": lambda: fm.Laplacian("median"),
    "polynomial": lambda: fm.Polynomial(2, coef0=0.5),
    "mixed": lambda: fm.Matern(nu=1.5, bandwidth=2.0) + 0.5 * fm.Cosine() + 0.2 * fm.Energy(),
}


def make(
    seed: int, n: int, m: int, d: int = 5, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = 1.2 * torch.randn(m, d, generator=generator, dtype=torch.float64) + 0.3
    return {"x": x.to(dtype), "y": y.to(dtype)}


PLAIN = {
    "linear": (oracles.linear, {}),
    "block 2": (lambda k, n: oracles.block(k, n, 2), {"block_size": 2}),
    "block 5": (lambda k, n: oracles.block(k, n, 5), {"block_size": 5}),
    "incomplete 1": (lambda k, n: oracles.incomplete(k, n, 1), {"num_superdiagonals": 1}),
    "incomplete 7": (lambda k, n: oracles.incomplete(k, n, 7), {"num_superdiagonals": 7}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", PLAIN)
def test_definition(name: str, kernel: str, dtype: torch.dtype) -> None:
    function, options = PLAIN[name]
    k = KERNELS[kernel]()
    for n, m in ((33, 20), (11, 23), (8, 8)):  # odd, unequal, with and without a rest
        oracles.hold(
            lambda seed, n=n, m=m: make(seed, n, m, dtype=dtype),
            lambda t: fm.mmd2(t["x"], t["y"], k, name.split()[0], **options),
            lambda t, n=n: function(oracles.matrix(t["x"], t["y"], k), n),
        )


@pytest.mark.parametrize("paired", [2, 3, 4, 8, 9, 150])
def test_defaults(paired: int) -> None:
    t, kernel = make(0, paired, paired + 3), fm.Gaussian("mean")
    size = max(2, math.isqrt(paired))
    value = fm.mmd2(t["x"], t["y"], kernel, "block")
    assert torch.equal(value, fm.mmd2(t["x"], t["y"], kernel, "block", block_size=size))
    count = min(100, paired - 1)
    value = fm.mmd2(t["x"], t["y"], kernel, "incomplete")
    other = fm.mmd2(t["x"], t["y"], kernel, "incomplete", num_superdiagonals=count)
    assert torch.equal(value, other)


def test_extremes_are_the_u_statistic() -> None:
    # One block of all points is the unbiased estimate; all superdiagonals are the same without the
    # pairs (x_i, y_i).
    t, kernel = make(0, 12, 12), fm.Gaussian(1.0)
    value = fm.mmd2(t["x"], t["y"], kernel, "block", block_size=12)
    assert torch.allclose(value, fm.mmd2(t["x"], t["y"], kernel, "unbiased"), rtol=1e-12)
    k = oracles.matrix(t["x"], t["y"], kernel)
    pairs = itertools.permutations(range(12), 2)
    h = [k[i, j] + k[12 + i, 12 + j] - k[i, 12 + j] - k[j, 12 + i] for i, j in pairs]
    value = fm.mmd2(t["x"], t["y"], kernel, "incomplete", num_superdiagonals=11)
    assert torch.allclose(value, torch.stack(h).mean(), rtol=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS[2:])
def test_points_without_a_partner(estimator: str) -> None:
    # count for a heuristic bandwidth, and for nothing else
    t = make(0, 9, 14)
    x, y = t["x"], t["y"].requires_grad_()
    value = fm.mmd2(x, y, fm.Gaussian(1.0), estimator)
    assert torch.allclose(value, fm.mmd2(x, y[:9], fm.Gaussian(1.0), estimator), rtol=1e-12)
    both = (fm.mmd2(x, b, fm.Gaussian("mean"), estimator) for b in (y, y[:9]))
    assert not torch.allclose(*both, rtol=1e-8)
    (gradient,) = torch.autograd.grad(value, y)
    assert torch.equal(gradient[9:], torch.zeros(5, 5, dtype=torch.float64))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_mean_is_the_mmd_of_the_distributions(estimator: str) -> None:
    # All samples of two distributions with two values, with their probabilities: unbiased means so.
    points = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    kernel = fm.Gaussian(1.0) + fm.Linear()
    total = torch.zeros((), dtype=torch.float64)
    for choice in itertools.product((0, 1), repeat=8):
        ones_x, ones_y = sum(choice[:4]), sum(choice[4:])
        probability = 0.3**ones_x * 0.7 ** (4 - ones_x) * 0.6**ones_y * 0.4 ** (4 - ones_y)
        x, y = points[list(choice[:4])], points[list(choice[4:])]
        total += probability * fm.mmd2(x, y, kernel, estimator)
    p, q = torch.tensor([0.7, 0.3]), torch.tensor([0.4, 0.6])
    exact = fm.mmd2(points, points, kernel, x_weights=p.double(), y_weights=q.double())
    if estimator == "biased":
        assert total > exact + 0.05
    else:
        assert abs(total - exact) <= 1e-7 * exact  # the weights are those of float32


def test_linear_kernel_is_the_difference_of_means() -> None:
    t = make(0, 13, 9)
    expected = (t["x"].mean(0) - t["y"].mean(0)).square().sum()
    assert torch.allclose(fm.mmd2(t["x"], t["y"], fm.Linear()), expected, rtol=1e-12)


def test_published_values() -> None:
    a = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=torch.float64)
    b = torch.tensor([[7.0, 6, 5], [4, 3, 2], [1, 1, 8], [0, 2, 5]], dtype=torch.float64)
    assert abs(fm.mmd2(a, b, fm.Linear()) - 6.0) <= 1e-12
    assert abs(fm.mmd2(a, b, fm.Gaussian(0.5**0.5, (1,))) - 0.582206862) <= 5e-10
    assert abs(fm.mmd2(a, b, fm.Polynomial(2, gamma=1.0, coef0=0.0)) - 2436.5) <= 1e-9


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_order_of_points(estimator: str) -> None:
    t = make(0, 40, 33)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    values = [fm.mmd2(x, t["y"], None, estimator) for x in (t["x"], t["x"][order])]
    assert torch.allclose(*values, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_batch_is_a_loop(estimator: str, kernel: str, dtype: torch.dtype) -> None:
    pairs = [make(seed, 21, 17, dtype=dtype) for seed in range(4)]
    x, y = (torch.stack([t[name] for t in pairs]).requires_grad_() for name in "xy")
    k = KERNELS[kernel]()
    value = fm.mmd2(x, y, k, estimator)
    loop = torch.stack([fm.mmd2(a, b, k, estimator) for a, b in zip(x, y, strict=True)])
    assert value.shape == (4,)
    assert torch.equal(value, loop)
    incoming = torch.tensor([1.0, -2.0, 0.0, 0.5], dtype=dtype)
    gradients = torch.autograd.grad(value, (x, y), incoming)
    for found, expected in zip(gradients, torch.autograd.grad(loop, (x, y), incoming), strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(fm.MMDLoss(k, estimator)(x, y), value)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_weighted_batch_is_a_loop(estimator: str) -> None:
    pairs = [make(seed, 7, 9) for seed in range(3)]
    x, y = (torch.stack([t[name] for t in pairs]) for name in "xy")
    p, q = torch.rand(3, 7), torch.rand(3, 9)
    p[0, 3:] = 0
    value = fm.mmd2(x, y, None, estimator, p, q)
    rows = zip(x, y, p, q, strict=True)
    loop = [fm.mmd2(a, b, None, estimator, u, w) for a, b, u, w in rows]
    assert torch.equal(value, torch.stack(loop))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_vmap_is_a_batch(estimator: str) -> None:
    pairs = [make(seed, 9, 8) for seed in range(3)]
    x, y = (torch.stack([t[name] for t in pairs]) for name in "xy")
    run = lambda x, y: fm.mmd2(x, y, fm.Gaussian("mean"), estimator)  # noqa: E731
    assert torch.equal(torch.func.vmap(run)(x, y), run(x, y))
    gradient = torch.func.vmap(torch.func.grad(run))(x, y)
    x.requires_grad_()
    assert torch.equal(gradient, torch.autograd.grad(run(x, y).sum(), x)[0])


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradients(estimator: str, batched: bool) -> None:
    t = make(0, 6, 5, 2)
    s = torch.tensor([0.8, 1.7], dtype=torch.float64)
    w = torch.tensor([1.0, 0.4], dtype=torch.float64)
    x, y = t["x"], t["y"]
    if batched:
        x, y = torch.stack([x, x.flip(0) * 1.1]), torch.stack([y, y + 0.5])

    def run(x: Tensor, y: Tensor, s: Tensor, w: Tensor) -> Tensor:
        kernel = fm.Gaussian(s, (1,), weights=w) + 0.2 * fm.Polynomial(2) + fm.Cosine()
        return fm.mmd2(x, y, kernel, estimator)

    inputs = [a.requires_grad_() for a in (x, y, s, w)]
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_compiled(estimator: str) -> None:
    t = make(0, 20, 24, dtype=torch.float32)
    x = t["x"].requires_grad_()
    loss = fm.MMDLoss(fm.Gaussian("mean"), estimator)
    values = [f(x, t["y"]) for f in (loss, torch.compile(loss, fullgraph=True))]
    assert torch.equal(*values)
    assert torch.equal(*(torch.autograd.grad(v, x)[0] for v in values))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_bad_data_is_no_error(estimator: str) -> None:
    t = make(0, 6, 7)
    t["x"][1, 2] = math.nan
    assert fm.mmd2(t["x"], t["y"], None, estimator).isnan()


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", ["mean", "median"])
def test_all_points_equal(kernel: str, estimator: str) -> None:
    x, y = torch.ones(6, 3, requires_grad=True), torch.ones(5, 3)
    value = fm.mmd2(x, y, KERNELS[kernel](), estimator)
    (gradient,) = torch.autograd.grad(value, x)
    assert value == 0
    assert torch.equal(gradient, torch.zeros(6, 3))


def test_linear_time() -> None:
    # 10^12 pairs would take minutes.
    x, y = torch.randn(1_000_000, 2), torch.randn(1_000_000, 2)
    assert fm.mmd2(x, y, fm.Gaussian(1.0), "linear").abs() < 0.05


# Energy distance, kernel sums, witness and contributions


def test_energy_distance_in_one_dimension() -> None:
    # twice the integral of the squared difference of the distribution functions
    x, y = torch.tensor([0.0, 1.0, 4.0]), torch.tensor([1.0, 2.0])
    # |F - G| is 1/3, 1/6, 1/3, 0 between 0, 1, 2, 4 and beyond
    expected = 2 * (1 / 9 + 1 / 36 + 2 / 9)
    assert abs(fm.energy_distance(x[:, None], y[:, None]) - expected) <= 1e-6


def test_energy_distance_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    t = make(0, 30, 41, 1)
    p, q = torch.rand(30).double(), torch.rand(41).double()
    samples = t["x"][:, 0], t["y"][:, 0]
    value = fm.energy_distance(t["x"], t["y"], x_weights=p, y_weights=q)
    assert abs(value - stats.energy_distance(*samples, p, q) ** 2) <= 1e-12
    value = fm.energy_distance(t["x"], t["y"])
    assert abs(value - stats.energy_distance(*samples) ** 2) <= 1e-12


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_energy_distance_is_an_mmd(estimator: str) -> None:
    t = make(0, 12, 15)
    expected = fm.mmd2(t["x"], t["y"], fm.Energy(), estimator)
    assert torch.equal(fm.energy_distance(t["x"], t["y"], estimator), expected)
    assert torch.equal(fm.EnergyDistanceLoss(estimator)(t["x"], t["y"]), expected)


def with_rows(seed: int, n: int, m: int, p: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed + 100)
    v = torch.randn(m, p, generator=generator, dtype=torch.float64)
    u = torch.randn(n, p, generator=generator, dtype=torch.float64)
    return make(seed, n, m, dtype=dtype) | {"v": v.to(dtype), "u": u.to(dtype)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_sum(kernel: str, dtype: torch.dtype) -> None:
    k = KERNELS[kernel]()

    def plain(t: dict[str, Tensor]) -> oracles.Sized:
        n = len(t["x"])
        cross = oracles.matrix(t["x"], t["y"], k)[:n, n:]
        sizes = (t["u"].abs() * (cross.abs() @ t["v"].abs())).sum()
        return (t["u"] * (cross @ t["v"])).sum(), float(sizes.detach())

    for n, m, p in ((33, 20, 3), (1, 1, 1), (5, 70, 17)):
        oracles.hold(
            lambda seed, n=n, m=m, p=p: with_rows(seed, n, m, p, dtype),
            lambda t: (t["u"] * fm.kernel_sum(t["x"], t["y"], t["v"], k)).sum(),
            plain,
            ("x", "y", "v"),
        )


def test_kernel_sum_of_one_column() -> None:
    t = with_rows(0, 6, 9, 1, torch.float32)
    column = fm.kernel_sum(t["x"], t["y"], t["v"])
    assert column.shape == (6, 1)
    assert torch.equal(fm.kernel_sum(t["x"], t["y"], t["v"][:, 0]), column[:, 0])


def test_kernel_sum_gradients() -> None:
    t = with_rows(0, 4, 5, 2, torch.float64)
    s = torch.tensor(0.8, dtype=torch.float64)

    def run(x: Tensor, y: Tensor, v: Tensor, s: Tensor) -> Tensor:
        return fm.kernel_sum(x, y, v, fm.Laplacian(s) + fm.Linear() + fm.Cosine())

    inputs = [a.requires_grad_() for a in (t["x"], t["y"], t["v"], s)]
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("weighted", [False, True])
def test_witness(kernel: str, weighted: bool) -> None:
    t, k = make(0, 12, 17), KERNELS[kernel]()
    p, q = (torch.rand(12), torch.rand(17)) if weighted else (None, None)
    matrix = oracles.matrix(t["x"], t["y"], k)
    a = oracles.signed(
        *(w.double() if weighted else torch.ones(s).double() for w, s in ((p, 12), (q, 17)))
    )
    f = fm.witness(t["x"], t["y"], torch.cat([t["x"], t["y"]]), k, p, q)
    assert torch.allclose(f, matrix @ a, rtol=1e-10, atol=1e-12)
    of_x, of_y = fm.contributions(t["x"], t["y"], k, p, q)
    assert torch.allclose(torch.cat([of_x, of_y]), a * (matrix @ a), rtol=1e-10, atol=1e-12)
    assert torch.allclose(
        of_x.sum() + of_y.sum(), fm.mmd2(t["x"], t["y"], k, "biased", p, q), rtol=1e-10, atol=1e-12
    )


def test_witness_takes_its_bandwidth_from_the_samples() -> None:
    t = make(0, 12, 17)
    at = 100 * torch.ones(3, 5, dtype=torch.float64)
    both = fm.witness(t["x"], t["y"], torch.cat([t["x"], at]), fm.Gaussian("median"))
    alone = fm.witness(t["x"], t["y"], t["x"], fm.Gaussian("median"))
    assert torch.allclose(both[:12], alone, rtol=1e-12)


def test_witness_has_a_sign() -> None:
    x, y = torch.zeros(5, 1), torch.full((4, 1), 3.0)
    f = fm.witness(x, y, torch.tensor([[-1.0], [1.5], [4.0]]), fm.Gaussian(1.0))
    assert f[0] > 0
    assert abs(f[1]) < 1e-6
    assert f[2] < 0


def test_witness_gradients() -> None:
    t = make(0, 4, 5, 2)
    p = torch.rand(4, dtype=torch.float64) + 0.1
    at = torch.randn(3, 2, dtype=torch.float64)
    inputs = [a.requires_grad_() for a in (t["x"], t["y"], at, p)]
    assert torch.autograd.gradcheck(
        lambda x, y, at, p: fm.witness(x, y, at, fm.Gaussian(0.8), p), inputs
    )


@pytest.mark.parametrize("bandwidth", ["number", "mean"])
@pytest.mark.parametrize(("estimator", "size"), [("linear", 2), ("block", 300)])
def test_large_samples(estimator: str, size: int, bandwidth: str) -> None:
    """Of so many groups that they are worked on in slices; some points belong to none."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5003, 3, generator=generator, dtype=torch.float64).requires_grad_()
    y = torch.randn(4299, 3, generator=generator, dtype=torch.float64).requires_grad_()
    weights = torch.nn.Parameter(torch.tensor([0.5, 2.0], dtype=torch.float64))
    s = torch.nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
    kernel = fm.Gaussian(s if bandwidth == "number" else "mean", (1, 3), weights)
    parameters = [x, y, *kernel.parameters()]

    options = {"block_size": size} if estimator == "block" else {}
    value = fm.mmd2(x, y, kernel, estimator, **options)
    used = len(y) // size * size
    groups = [t[:used].unflatten(0, (-1, size)) for t in (x, y)]
    factors = reference.resolve(kernel.terms(), x, y)
    if estimator == "block":
        each = torch.stack(
            [
                reference.mmd2(a, b, kernel, "unbiased", factors=factors)
                for a, b in zip(*groups, strict=True)
            ]
        )
    else:
        (x_0, x_1), (y_0, y_1) = (g.unbind(1) for g in groups)
        k = lambda a, b: sum(  # noqa: E731
            w * torch.exp(-c * (a - b).square().sum(1))
            for c, w in zip(factors, weights, strict=True)
        )
        each = k(x_0, x_1) + k(y_0, y_1) - k(x_0, y_1) - k(x_1, y_0)
    expected = torch.autograd.grad(each.mean(), parameters)
    torch.testing.assert_close(value, each.mean(), rtol=1e-11, atol=1e-15)
    for found, want in zip(torch.autograd.grad(value, parameters), expected, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-11, atol=1e-15)
