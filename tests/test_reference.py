"""The oracle against loops over pairs, and its own derivatives."""

from __future__ import annotations

import itertools
import math
import operator
import statistics

import pytest
import tolerance
import torch
from tolerance import FAMILIES, make_case

import fastmmd as fm
from fastmmd import reference
from fastmmd.terms import (
    ENERGY,
    GAUSSIAN,
    GEOMETRY,
    INVERSE_MULTIQUADRIC,
    LAPLACIAN,
    MATERN_3_2,
    MATERN_5_2,
    POLYNOMIAL,
    RADIAL,
    RATIONAL_QUADRATIC,
    Terms,
)


def loop_mmd2(x, y, kernel, estimator="biased", size=0, p=None, q=None) -> float:
    """The estimators, spelled out for a kernel of two points."""
    p, q = p or [1 / len(x)] * len(x), q or [1 / len(y)] * len(y)
    p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
    paired = min(len(x), len(y))

    def h(i, j):
        return kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j]) - kernel(x[j], y[i])

    if estimator == "linear":
        return statistics.mean(h(2 * i, 2 * i + 1) for i in range(paired // 2))
    if estimator == "incomplete":
        return statistics.mean(
            h(i, j) for i in range(paired) for j in range(paired) if 1 <= j - i <= size
        )
    if estimator == "block":
        starts = range(0, paired - size + 1, size)
        blocks = [(x[i : i + size], y[i : i + size]) for i in starts]
        return statistics.mean(loop_mmd2(a, b, kernel, "unbiased") for a, b in blocks)

    def within(points, w):
        pairs = itertools.product(range(len(points)), repeat=2)
        total = sum(
            w[i] * w[j] * kernel(points[i], points[j])
            for i, j in pairs
            if estimator == "biased" or i != j
        )
        return total / (1 - sum(v * v for v in w)) if estimator == "unbiased" else total

    cross = sum(
        a * b * kernel(u, v) for u, a in zip(x, p, strict=True) for v, b in zip(y, q, strict=True)
    )
    return within(x, p) + within(y, q) - 2 * cross


def dot(a, b) -> float:
    return sum(map(operator.mul, a, b))


def cosine(a, b) -> float:
    norms = math.hypot(*a) * math.hypot(*b)
    return dot(a, b) / norms if norms else 0.0


def of_distance(function):
    return lambda a, b: function(math.dist(a, b))


SIZES = {"block": {"block_size": 2}, "incomplete": {"num_superdiagonals": 3}}


@pytest.mark.parametrize(
    ("estimator", "weighted"),
    [("biased", False), ("biased", True), ("unbiased", False), ("unbiased", True)]
    + [(name, False) for name in ("linear", "block", "incomplete")],
)
@pytest.mark.parametrize("name", [*FAMILIES, "mean", "median", "mixture"])
def test_loops(name: str, estimator: str, weighted: bool) -> None:
    case = make_case(0, 7, 5, 3, dtype=torch.float64, weighted=weighted)
    case.x[3] = 0  # without a direction
    x, y = case.x.tolist(), case.y.tolist()
    squares = [math.dist(a, b) ** 2 for a, b in itertools.combinations(x + y, 2)]
    mean, median = statistics.mean(squares), statistics.median_low(squares)
    kernel, function = {
        "gaussian": (
            fm.Gaussian(1.5, (0.5, 3), weights=(1, 2)),
            of_distance(
                lambda r: math.exp(-r * r / (1 * 1.5**2)) + 2 * math.exp(-r * r / (6 * 1.5**2))
            ),
        ),
        "laplacian": (fm.Laplacian(1.5), of_distance(lambda r: math.exp(-r / 1.5))),
        "energy": (0.5 * fm.Energy(), of_distance(lambda r: -0.5 * r)),
        "mean": (
            fm.Gaussian("mean", (2,)) + fm.Laplacian("mean"),
            of_distance(
                lambda r: math.exp(-r * r / (2 * mean)) + math.exp(-r / math.sqrt(mean / 2))
            ),
        ),
        "median": (
            fm.Gaussian("median", (2,)),
            of_distance(lambda r: math.exp(-r * r / (2 * median))),
        ),
        "multiquadric": (
            fm.InverseMultiquadric(1.5) + fm.InverseMultiquadric("mean"),
            of_distance(
                lambda r: 1 / math.sqrt(1 + (r / 1.5) ** 2) + 1 / math.sqrt(1 + 2 * r * r / mean)
            ),
        ),
        "rational": (
            fm.RationalQuadratic(0.3, 1.5) + fm.RationalQuadratic(2),
            of_distance(
                lambda r: (1 + r * r / (2 * 0.3 * 1.5**2)) ** -0.3 + (1 + r * r / (2 * mean)) ** -2
            ),
        ),
        "matern32": (
            fm.Matern(1.5, 1.5),
            of_distance(lambda r: (1 + math.sqrt(3) * r / 1.5) * math.exp(-math.sqrt(3) * r / 1.5)),
        ),
        "matern52": (
            fm.Matern(2.5, 1.5) + fm.Matern(0.5, 2.0),
            of_distance(
                lambda r: (
                    (1 + math.sqrt(5) * r / 1.5 + 5 / 3 * (r / 1.5) ** 2)
                    * math.exp(-math.sqrt(5) * r / 1.5)
                    + math.exp(-r / 2)
                )
            ),
        ),
        "polynomial": (
            fm.Polynomial() + fm.Polynomial(2, 0.7, 0),
            lambda a, b: (dot(a, b) / 3 + 1) ** 3 + (0.7 * dot(a, b)) ** 2,
        ),
        "linear": (2 * fm.Linear(), lambda a, b: 2 * dot(a, b)),
        "cosine": (fm.Cosine(), cosine),
        "mixture": (
            fm.Energy() + fm.Polynomial(1, 2, 3) + fm.Linear() + 0.1 * fm.Cosine(),
            lambda a, b: -math.dist(a, b) + 2 * dot(a, b) + 3 + dot(a, b) + 0.1 * cosine(a, b),
        ),
    }[name]
    p = case.x_weights.tolist() if weighted else None
    q = case.y_weights.tolist() if weighted else None
    options = SIZES.get(estimator, {"": 0})
    expected = loop_mmd2(x, y, function, estimator, next(iter(options.values())), p, q)
    arguments = (case.x, case.y, kernel, estimator, case.x_weights, case.y_weights)
    for distances in (reference.squared_distances, reference.direct_squared_distances):
        result = reference.mmd2(*arguments, **SIZES.get(estimator, {}), distances=distances)
        assert float(result) == pytest.approx(expected, rel=1e-11)


def test_sizes_by_default() -> None:
    # of 11 and 17 points: blocks of 3, and all superdiagonals
    x, y = torch.randn(11, 2, dtype=torch.float64), torch.randn(17, 2, dtype=torch.float64)
    for estimator, size in (("block", 3), ("incomplete", 10)):
        name = {"block": "block_size", "incomplete": "num_superdiagonals"}[estimator]
        expected = reference.mmd2(x, y, estimator=estimator, **{name: size})
        assert torch.equal(reference.mmd2(x, y, estimator=estimator), expected)


def test_all_superdiagonals_are_the_unbiased_estimate_without_the_paired_points() -> None:
    # sum over i != j of h, and h is symmetric
    x, y = torch.randn(2, 9, 3, dtype=torch.float64).unbind()
    kernel = fm.Gaussian(1.5)
    k = lambda a, b: reference.kernel_sum(a, b, torch.eye(9).double(), kernel.terms())  # noqa: E731
    h = k(x, x) + k(y, y) - k(x, y) - k(y, x)
    expected = (h.sum() - h.trace()) / 72
    result = reference.mmd2(x, y, kernel, "incomplete")
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("paired", [2, 3, 4, 9])
def test_default_size_of_blocks(paired: int) -> None:
    case = make_case(0, paired, paired + 3, 2, dtype=torch.float64)
    value = reference.mmd2(case.x, case.y, case.kernel, "block")
    size = max(2, math.isqrt(paired))
    assert torch.equal(value, reference.mmd2(case.x, case.y, case.kernel, "block", block_size=size))
    assert float(value) == pytest.approx(float(fm.mmd2(case.x, case.y, case.kernel, "block")))


def product(*kernels: fm.Kernel) -> Terms:
    case = tolerance.Case(*torch.empty(2, 0), torch.nn.ModuleList(kernels), widths=())
    return case.terms()


@pytest.mark.parametrize("estimator", ["biased", "unbiased", "linear", "block", "incomplete"])
def test_products(estimator: str) -> None:
    case = make_case(0, 7, 5, 6, dtype=torch.float64)
    x, y = case.x.tolist(), case.y.tolist()
    squares = [math.dist(a[:3], b[:3]) ** 2 for a, b in itertools.combinations(x + y, 2)]
    mean = statistics.mean(squares)

    def function(a, b):
        first = math.exp(-(math.dist(a[:3], b[:3]) ** 2) / mean) - math.dist(a[:3], b[:3])
        return first * dot(a[3:4], b[3:4]) * (dot(a[4:], b[4:]) / 2 + 1) ** 3

    terms = product(fm.Gaussian("mean", (1,)) + fm.Energy(), fm.Linear(), fm.Polynomial())
    size = next(iter(SIZES.get(estimator, {"": 0}).values()))
    number = reference.ESTIMATORS[estimator]
    result = reference.pair_sum(case.x, case.y, None, None, terms, number, size, (3, 1, 2))
    expected = loop_mmd2(x, y, function, estimator, size)
    assert float(result) == pytest.approx(expected, rel=1e-11)
    batch = (case.x.expand(2, -1, -1), torch.stack([case.y, case.y + 1]), None, None)
    results = reference.pair_sum(*batch, terms, number, size, (3, 1, 2))
    assert results.shape == (2,)
    torch.testing.assert_close(results[0], result)


def test_kernel_sum_and_cross() -> None:
    case = make_case(0, 7, 5, 3, "mixture", dtype=torch.float64, weighted=True)
    terms, x, y = case.terms(), case.x, case.y
    v = torch.randn(5, 2, dtype=torch.float64)
    k = reference.kernel_sum(x, y, torch.eye(5, dtype=torch.float64), terms)
    torch.testing.assert_close(reference.kernel_sum(x, y, v, terms), k @ v)
    torch.testing.assert_close(reference.kernel_sum(x, y, v[:, 0], terms), k @ v[:, 0])
    p, q = (w / w.sum() for w in (case.x_weights, case.y_weights))
    cross = reference.pair_sum(x, y, case.x_weights, case.y_weights, terms, reference.CROSS)
    torch.testing.assert_close(cross, p @ k @ q)
    # the linear kernel changes with a translation of both here, as the MMD does not
    terms = fm.Linear().terms()
    moved = reference.pair_sum(x + 1, y + 1, None, None, terms, reference.CROSS)
    expected = (x.mean(0) + 1) @ (y.mean(0) + 1)
    torch.testing.assert_close(moved, expected)


@pytest.mark.parametrize("wild", [False, True])
def test_sign_forms(wild: bool) -> None:
    n, m = (6, 6) if wild else (6, 4)
    case = make_case(0, n, m, 3, "mixture", dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    v = reference.sign_vectors(n, m, wild, 20, generator)
    assert v.shape == (21, n + m)
    assert torch.equal(v[0], torch.tensor([1 / n] * n + [-1 / m] * m, dtype=torch.float64))
    for row in v:
        if wild:
            assert torch.equal(row[:n], -row[n:])
            assert torch.equal(row.abs() * n, torch.ones(2 * n, dtype=torch.float64))
        else:
            assert torch.equal(row.sort().values, v[0].sort().values)
    assert len(v.unique(dim=0)) > 10
    forms, linear, diagonal, total, trace = reference.sign_forms(case.x, case.y, case.terms(), v)
    # v' K v of the labels is the biased estimate
    biased = reference.mmd2(case.x, case.y, case.kernel).detach()
    labels = v[0].square()
    kappa = diagonal[0]  # v' kappa, not v^2' kappa: these differ
    z = torch.cat([case.x, case.y])
    one = torch.eye(n + m, dtype=torch.float64)
    factors = reference.resolve(case.terms(), case.x, case.y)
    terms = case.terms()._replace(scales=factors, units=(0,) * len(factors))
    k = reference.kernel_sum(z, z, one, terms).detach()
    torch.testing.assert_close(forms[0] + labels @ k.diagonal(), biased)
    torch.testing.assert_close(kappa, v[0] @ k.diagonal())
    k0 = k - k.diagonal().diag()
    torch.testing.assert_close(forms, torch.stack([row @ k0 @ row for row in v]))
    torch.testing.assert_close(linear, v @ k0.sum(1))
    assert total == pytest.approx(float(k0.sum()))
    assert trace == pytest.approx(float(k.trace()))


@pytest.mark.parametrize("count", [2, 3, 4, 31])
def test_statistics(count: int) -> None:
    z = torch.randn(count, 5, dtype=torch.float64) + 3
    squares = [math.dist(a, b) ** 2 for a, b in itertools.combinations(z.tolist(), 2)]
    mean, median = statistics.mean(squares), statistics.median_low(squares)
    assert float(reference.mean_squared_distance(z)) == pytest.approx(mean, rel=1e-12)
    assert float(reference.median_squared_distance(z)) == pytest.approx(median, rel=1e-12)
    everything = statistics.median_low(2 * squares + [0.0] * count)
    result = reference.full_median_squared_distance(z)
    assert float(result) == pytest.approx(everything, rel=1e-12)
    torch.testing.assert_close(result, torch.median(reference.direct_squared_distances(z)))
    z.requires_grad_()
    assert not reference.mean_squared_distance(z).requires_grad
    assert not reference.median_squared_distance(z).requires_grad


def test_units() -> None:
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    terms = Terms(
        (0,) * 7,
        torch.full((7,), 3.0),
        torch.ones(7),
        (0.0,) * 14,
        (0, 1, 2, 3, 4, 1, 4),
        (0,) * 5 + (1,) * 2,
    )
    factors = reference.resolve(terms, x, y, (3, 2))
    z = torch.cat([x, y])
    units = [
        1,
        float(reference.mean_squared_distance(z[:, :3])),
        float(reference.median_squared_distance(z[:, :3])),
        float(reference.full_median_squared_distance(x[:, :3])),
        3,
        float(reference.mean_squared_distance(z[:, 3:])),
        2,
    ]
    torch.testing.assert_close(factors, torch.tensor([3 / u for u in units], dtype=torch.float64))
    equal = torch.ones(3, 5, dtype=torch.float64)
    assert reference.resolve(terms, equal, equal, (3, 2)).tolist() == [3, 0, 0, 0, 1, 0, 1.5]


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize("estimator", ["biased", "unbiased", "linear", "block", "incomplete"])
@pytest.mark.parametrize("name", FAMILIES)
def test_derivatives(name: str, estimator: str, check) -> None:
    weighted = estimator in ("biased", "unbiased")
    case = make_case(0, 4, 4, 2, name, estimator, torch.float64, weighted=weighted)

    def function(x, y, p=None, q=None, *_):
        return reference.mmd2(x, y, case.kernel, estimator, p, q)

    inputs = [case.x, case.y]
    if weighted:
        inputs += [torch.rand(4).double() + 0.1, torch.rand(4).double() + 0.1]
    parameters = list(case.kernel.parameters())
    if not weighted:
        function_ = function
        function = lambda x, y, *_: function_(x, y)  # noqa: E731
    assert check(function, [t.requires_grad_() for t in inputs] + parameters)


# A shape for each family: alpha of the rational quadratic, degree and coef0 of the polynomial.
SHAPES = [(0.0, 0.0)] * 10
SHAPES[RATIONAL_QUADRATIC], SHAPES[POLYNOMIAL] = (0.7, 0.0), (3.0, 0.5)
PROFILES = [(family, *SHAPES[family]) for family in range(len(reference.PROFILES))]
PROFILES += [(POLYNOMIAL, 1.0, 0.5), (POLYNOMIAL, 2.0, 0.0), (RATIONAL_QUADRATIC, 3.0, 0.0)]


@pytest.mark.parametrize(("family", "p", "q"), PROFILES)
def test_profile_derivatives(family: int, p: float, q: float) -> None:
    t = torch.tensor([1e-3, 0.3, 1.0, 7.0], dtype=torch.float64, requires_grad=True)
    if GEOMETRY[family] != RADIAL:  # inner products have any sign
        t = torch.cat([t, -t, t.new_zeros(1)]).detach().requires_grad_()
    phi = reference.PROFILES[family](t, p, q)
    (first,) = torch.autograd.grad(phi.sum(), t, create_graph=True)
    second = torch.zeros_like(t)
    if first.requires_grad:
        (second,) = torch.autograd.grad(first.sum(), t)
    derivatives = reference.PROFILE_DERIVATIVES[family](t.detach(), p, q)
    for result, expected in zip(derivatives, (phi, first, second), strict=True):
        # autograd takes the difference of what cancels in a Matern kernel
        torch.testing.assert_close(result, expected.detach(), rtol=1e-11, atol=0)


@pytest.mark.parametrize(
    ("family", "value", "slope", "curvature"),
    [
        # an infinite derivative of a root is taken as 0
        (LAPLACIAN, 1, 0, 0),
        (ENERGY, 0, 0, 0),
        (MATERN_3_2, 1, -1.5, 0),
        # these are finite
        (GAUSSIAN, 1, -1, 1),
        (INVERSE_MULTIQUADRIC, 1, -0.5, 0.75),
        (RATIONAL_QUADRATIC, 1, -1, 1 + 1 / 0.7),
        (MATERN_5_2, 1, -5 / 6, 25 / 12),
    ],
)
def test_profiles_at_zero(family: int, value: float, slope: float, curvature: float) -> None:
    t = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    phi = reference.PROFILES[family](t, *SHAPES[family])
    (first,) = torch.autograd.grad(phi, t, create_graph=True)
    (second,) = torch.autograd.grad(first, t)
    derivatives = reference.PROFILE_DERIVATIVES[family](t.detach(), *SHAPES[family])
    expected = pytest.approx([value, slope, curvature], rel=1e-14)
    assert [float(v) for v in derivatives] == expected
    assert [v.item() for v in (phi, first, second)] == expected


def test_cosine_of_a_point_without_direction() -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    cosines = reference.cosines(x)
    assert cosines.tolist() == [[0, 0], [0, 1]]
    (gradient,) = torch.autograd.grad(reference.cosines(x, torch.ones(1, 2)).sum(), x)
    assert gradient[0].tolist() == [0, 0]
    assert gradient[1].any()


@pytest.mark.parametrize("family", range(len(reference.PROFILES)))
def test_profiles_keep_nan(family: int) -> None:
    nan = torch.tensor(math.nan)
    assert reference.PROFILES[family](nan, *SHAPES[family]).isnan()
    assert all(v.isnan() for v in reference.PROFILE_DERIVATIVES[family](nan, *SHAPES[family]))


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
