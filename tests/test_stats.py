"""Two-sample tests: the statistics against brute force, p-values, ties, level and power."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tolerance import threads
from torch import Tensor

import fastmmd as fm
from fastmmd import ops, stats
from fastmmd.stats import (
    bandwidth_grid,
    contributions,
    kernel_collection,
    mmd_aggregated_test,
    two_sample_test,
    witness,
)
from fastmmd.stats._forms import exact, statistics

KERNELS: dict[str, Callable[[], fm.Kernel]] = {
    "gaussian": lambda: fm.Gaussian("mean"),
    "laplacian": lambda: fm.Laplacian("median"),
    "energy": fm.Energy,
    "polynomial": lambda: fm.Polynomial(2),
    "linear": fm.Linear,
    "sum": lambda: fm.Gaussian(1.5) + 0.5 * fm.Energy() + fm.Linear(),
}


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    with threads(2):
        yield


def labellings(n: int, m: int, method: str, seed: int, count: int) -> Tensor:
    """The sign vectors v [count + 1, n + m] that a seed stands for, found from outside.

    One feature, and kernel values k(z_i, z_i) = z_i^4 that are powers of 2: the sum of those with a
    label names the labels, as digits do.
    """
    assert n + m <= 24
    powers = 2.0 ** torch.arange(n + m, dtype=torch.float64)
    z = powers[:, None] ** 0.25
    terms = fm.Polynomial(2, gamma=1.0, coef0=0.0).terms()
    if method == "permutation":
        forms = ops.sign_forms(z[:n], z[n:], terms, 0, seed, count)
        sums = torch.round((n * m * forms.diagonal + n * powers.sum()) / (n + m))
        of_x = (torch.floor(sums[:, None] / powers) % 2).double()
        assert bool((of_x.sum(1) == n).all())
        return of_x / n - (1 - of_x) / m
    forms = ops.sign_forms(z[:n], torch.zeros_like(z[:n]), terms, 1, seed, count)
    sums = torch.round((forms.diagonal * n + powers[:n].sum()) / 2)
    signs = 2 * (torch.floor(sums[:, None] / powers[:n]) % 2).double() - 1
    return torch.cat([signs, -signs], 1) / n


def brute_force(
    x: Tensor, y: Tensor, kernel: fm.Kernel, v: Tensor, method: str, estimator: str
) -> tuple[Tensor, Tensor]:
    """Statistics of all labellings from the whole matrix, and S of the tolerance rule."""
    n, m = len(x), len(y)
    z = torch.cat([x, y])
    matrix = gram(z, kernel, x, y)
    off = matrix - matrix.diag().diag()
    found = []
    for row in v.to(z):
        if estimator == "biased":
            found.append(row @ matrix @ row)
        elif method == "permutation":
            p, q = (row > 0).to(z), (row < 0).to(z)
            found.append(
                p @ off @ p / (n * (n - 1))
                + q @ off @ q / (m * (m - 1))
                - 2 * (p @ matrix @ q) / (n * m)
            )
        else:
            w = row[:n] * n
            cross = matrix[:n, n:]
            h = off[:n, :n] + off[n:, n:] - (cross + cross.T)
            h = h - h.diag().diag()
            found.append(w @ h @ w / (n * (n - 1)))
    size = (v[0].to(z).abs() @ matrix.abs() @ v[0].to(z).abs()).double()
    return torch.stack(found).double(), size


def gram(z: Tensor, kernel: fm.Kernel, x: Tensor, y: Tensor) -> Tensor:
    """The kernel matrix in the precision of z, with heuristic bandwidths from x and y.

    Column j is K e_j.
    """
    terms = kernel.terms()
    factors = fm.reference.resolve(terms, x.double(), y.double())
    terms = terms._replace(scales=factors, units=(0,) * len(terms.units))
    distances = fm.reference.direct_squared_distances  # 0 on the diagonal
    return fm.reference.kernel_sum(
        z, z, torch.eye(len(z), dtype=z.dtype), terms, distances=distances
    )


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize(
    ("method", "n", "m"),
    [("permutation", 11, 13), ("permutation", 8, 8), ("permutation", 2, 9),
     ("wild_bootstrap", 9, 9), ("wild_bootstrap", 2, 2)],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_statistics_are_those_of_the_whole_matrix(
    name: str, estimator: str, method: str, n: int, m: int, dtype: torch.dtype
) -> None:
    kernel, count = KERNELS[name](), 20
    v = labellings(n, m, method, 5, count)
    errors, plain, size = [], [], 0.0
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(n, 3, generator=generator, dtype=torch.float64).to(dtype)
        y = (torch.randn(m, 3, generator=generator, dtype=torch.float64) + 0.5).to(dtype)
        exact, scale = brute_force(x.double(), y.double(), kernel, v, method, estimator)
        in_dtype, _ = brute_force(x, y, kernel, v, method, estimator)
        result = two_sample_test(x, y, kernel, count, method, estimator, seed=5)
        assert isinstance(result.null, Tensor)
        found = torch.cat([torch.tensor([result.statistic], dtype=torch.float64), result.null])
        errors.append(float((found - exact).abs().max()))
        plain.append(float((in_dtype - exact).abs().max()))
        # The U-statistic divides by n - 1 where S has n.
        factor = 1.0 if estimator == "biased" else max(n / (n - 1), m / (m - 1))
        size = max(size, float(scale) * factor)
    eps = torch.finfo(dtype).eps
    assert max(errors) <= 2 * max(plain) + 8 * eps * size


def test_statistic_is_mmd2() -> None:
    x, y = points(40, 3), points(30, 3, seed=1)
    for estimator in ("biased", "unbiased"):
        expected = fm.reference.mmd2(x.double(), y.double(), estimator=estimator)
        found = two_sample_test(x, y, estimator=estimator, num_permutations=1).statistic
        assert found == pytest.approx(float(expected), abs=1e-5)


def points(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("method", ["permutation", "wild_bootstrap"])
def test_labellings_differ_and_are_fair(method: str) -> None:
    v = labellings(10, 10, method, 1, 2000)
    assert v[0].tolist() == [0.1] * 10 + [-0.1] * 10
    assert len({tuple(row) for row in v.tolist()}) > 800  # of the 1024 wild ones 880 are expected
    # Each point has each label half of the time: six standard deviations of a mean of 2000 signs.
    assert float((10 * v[1:]).mean(0).abs().max()) < 6 / math.sqrt(2000)


def test_pvalue_counts() -> None:
    x, y = points(12, 2), points(15, 2, seed=1)
    for shift in (0.0, 0.3, 3.0):
        result = two_sample_test(x, y + shift, num_permutations=99)
        assert isinstance(result.null, Tensor)
        as_large = int((result.null >= result.statistic).sum())
        assert result.pvalue == (1 + as_large) / 100
        assert type(result.pvalue) is float
        assert type(result.statistic) is float
    assert result.pvalue == 0.01
    assert result.num_permutations == 99
    assert (result.n, result.m) == (12, 15)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", [fm.Gaussian("mean"), fm.Energy(), fm.Laplacian(0.7)])
def test_repeated_labellings_are_ties(
    estimator: str, dtype: torch.dtype, kernel: fm.Kernel
) -> None:
    """Of three and three points there are 20 labellings, two of which give the statistic."""
    x, y = points(3, 2, dtype=dtype), points(3, 2, 1, dtype) + 10
    count = 999
    v = labellings(3, 3, "permutation", 0, count)
    same = int(((v - v[0]).abs().sum(1) == 0).sum() + ((v + v[0]).abs().sum(1) == 0).sum()) - 1
    assert same > 50
    result = two_sample_test(x, y, kernel, count, estimator=estimator)
    assert result.pvalue == (1 + same) / (1 + count)


@pytest.mark.parametrize(("n", "m"), [(40, 40), (50, 30), (600, 200), (1000, 20)])
@pytest.mark.parametrize("kernel", [fm.Gaussian("mean"), fm.Energy(), fm.Linear()])
def test_equal_statistics_of_discrete_data_are_ties(n: int, m: int, kernel: fm.Kernel) -> None:
    """Of zeros and ones the statistic only knows how many are where: few values, all far apart."""
    generator = torch.Generator().manual_seed(n)
    x = torch.bernoulli(torch.full((n, 1), 0.5), generator=generator) * 1.37
    y = torch.bernoulli(torch.full((m, 1), 0.6), generator=generator) * 1.37
    result = two_sample_test(x, y, kernel, 499)
    exact = two_sample_test(x.double(), y.double(), kernel, 499)
    assert result.pvalue == exact.pvalue
    distinct = {round(value, 9) for value in exact.null.tolist()}
    assert len(distinct) < 60
    ones = round(exact.statistic, 9)
    assert exact.pvalue == (1 + sum(round(v, 9) >= ones for v in exact.null.tolist())) / 500


def test_rounding_is_small_beside_the_null_distribution() -> None:
    """What counts as a tie costs no power, even where many features make distances alike."""
    for n, m, d in ((1000, 1000, 2), (1000, 1000, 200), (2000, 50, 20)):
        x, y = points(n, d), points(m, d, 1)
        for kernel in (fm.Gaussian("mean"), fm.Energy()):
            values, rounding = statistics(x, y, kernel.terms(), "permutation", False, 0, 99)
            assert rounding < 0.02 * float(values.std())


def test_repeated_points_are_compared_in_double_precision() -> None:
    x, y = points(300, 4), points(200, 4, 1)
    for z, w, dtype in (
        (x, y, torch.float32),
        (x.round(), y.round(), torch.float64),
        (x.half()[:, :1], y.half()[:, :1], torch.float16),
        ((4 * x.half()[:, :1]).round(), (4 * y.half()[:, :1]).round(), torch.float64),
        (x[:30].repeat(3, 1), y[:30], torch.float64),
        (x[:50].repeat(2, 1), y, torch.float32),
        (1e6 + x, 1e6 + y, torch.float32),
        (torch.ones(2, 1), torch.ones(2, 1), torch.float64),
        (torch.zeros(1, 1), torch.ones(1, 1), torch.float32),
    ):
        for found, given in zip(exact(z, w), (z, w), strict=True):
            assert found.dtype == dtype
            assert torch.equal(found, given.to(dtype))


def test_all_points_equal() -> None:
    for estimator in ("biased", "unbiased"):
        result = two_sample_test(torch.ones(5, 3), torch.ones(4, 3), estimator=estimator)
        assert result.statistic == pytest.approx(0, abs=1e-6)
        assert result.pvalue == 1.0
    single = two_sample_test(torch.zeros(1, 2), torch.ones(1, 2))
    assert single.pvalue == 1.0  # the only other labelling swaps the two


def test_the_estimators_agree_on_equal_sizes() -> None:
    x, y = points(50, 4), points(50, 4, 1) + 0.1
    for method in ("permutation", "wild_bootstrap"):
        first, second = (
            two_sample_test(x, y, method=method, estimator=e) for e in ("biased", "unbiased")
        )
        assert first.pvalue == second.pvalue


def test_seeds_and_threads() -> None:
    x, y = points(300, 7), points(200, 7, 1)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            results.append(two_sample_test(x, y, seed=3, num_permutations=200))
    for other in results[1:]:
        assert torch.equal(torch.as_tensor(results[0].null), torch.as_tensor(other.null))
        assert results[0].statistic == other.statistic
    different = two_sample_test(x, y, seed=4, num_permutations=200)
    assert different.statistic == results[0].statistic
    assert not torch.equal(torch.as_tensor(different.null), torch.as_tensor(results[0].null))
    largest = two_sample_test(x, y, seed=2**64 - 1, num_permutations=5)
    assert largest.seed == 2**64 - 1


def test_several_threads_of_python() -> None:
    x, y = points(100, 3), points(100, 3, 1)
    expected = two_sample_test(x, y, num_permutations=100)
    found: list[Any] = []

    def work() -> None:
        found.append(two_sample_test(x, y, num_permutations=100))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4
    assert all(torch.equal(result.null, expected.null) for result in found)


def test_result_helpers() -> None:
    x, y = points(30, 2), points(30, 2, 1)
    result = two_sample_test(x, y + 0.4, num_permutations=199)
    for level in (0.01, 0.05, 0.3, 0.7, 0.999):
        assert result.rejects(level) == (result.pvalue <= level)
        # Away from ties the critical value says the same.
        assert (result.statistic > result.critical_value(level)) == result.rejects(level)
    assert result.critical_value(0.004) == math.inf
    null = np.asarray(result.null)
    assert result.zscore == pytest.approx((result.statistic - null.mean()) / null.std())
    assert math.isnan(two_sample_test(torch.ones(2, 1), torch.ones(2, 1)).zscore)
    assert "null" not in repr(result)
    for level in (0, 1, -0.1, math.nan):
        with pytest.raises(ValueError, match="level must be between 0 and 1"):
            result.rejects(level)
    with pytest.raises(TypeError, match="level must be a number"):
        result.rejects("0.05")  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_in_the_data_gives_nan(bad: float) -> None:
    x, y = points(10, 3), points(10, 3, 1)
    x[2, 1] = bad
    for estimator in ("biased", "unbiased"):
        result = two_sample_test(x, y, estimator=estimator, num_permutations=20)
        assert math.isnan(result.statistic)
        assert math.isnan(result.pvalue)
        with pytest.raises(ValueError, match="NaN"):
            result.rejects()
    aggregated = mmd_aggregated_test(x, y, num_permutations=20, num_corrections=20)
    assert math.isnan(aggregated.pvalue)
    assert not aggregated.reject
    assert not np.asarray(aggregated.rejecting).any()


def test_the_kernel_may_have_parameters() -> None:
    bandwidth = torch.nn.Parameter(torch.tensor(1.0))
    x, y = points(10, 3).requires_grad_(), points(10, 3, 1)
    result = two_sample_test(x, y, fm.Gaussian(bandwidth), num_permutations=9)
    assert isinstance(result.null, Tensor)
    assert not result.null.requires_grad


# --- NumPy ---------------------------------------------------------------------------------------


def test_numpy_in_numpy_out() -> None:
    x, y = points(20, 3), points(25, 3, 1)
    tensors = two_sample_test(x, y)
    arrays = two_sample_test(x.numpy(), y.numpy())
    assert isinstance(tensors.null, Tensor)
    assert isinstance(arrays.null, np.ndarray)
    np.testing.assert_array_equal(arrays.null, tensors.null.numpy())
    assert arrays.pvalue == tensors.pvalue
    mixed = two_sample_test(x, y.numpy())
    assert isinstance(mixed.null, Tensor)

    at = points(4, 3, 2)
    found = witness(x.numpy(), y.numpy(), at.numpy())
    assert isinstance(found, np.ndarray)
    assert isinstance(witness(x, y, at), Tensor)
    np.testing.assert_array_equal(found, fm.witness(x, y, at).numpy())
    weights = np.linspace(1, 2, 20)
    np.testing.assert_array_equal(
        witness(x.numpy(), y.numpy(), at.numpy(), x_weights=weights),
        fm.witness(x, y, at, x_weights=torch.from_numpy(weights)).numpy(),
    )
    parts = contributions(x.numpy(), y.numpy())
    assert isinstance(parts.x, np.ndarray)
    assert parts.x.shape == (20,)
    assert parts.y.shape == (25,)
    whole = float(fm.mmd2(x, y))
    assert parts.x.sum() + parts.y.sum() == pytest.approx(whole, rel=1e-4)
    weighted = contributions(x.numpy(), y.numpy(), fm.Energy(), x_weights=weights)
    whole = float(fm.mmd2(x, y, fm.Energy(), x_weights=torch.from_numpy(weights)))
    assert weighted.x.sum() + weighted.y.sum() == pytest.approx(whole, rel=1e-4)
    v = points(25, 2, 3)
    sums = stats.kernel_sum(x.numpy(), y.numpy(), v.numpy())
    assert isinstance(sums, np.ndarray)
    np.testing.assert_array_equal(sums, fm.kernel_sum(x, y, v).numpy())


@pytest.mark.parametrize(
    ("dtype", "as_if"),
    [
        (np.float16, np.float16), (np.float32, np.float32), (np.float64, np.float64),
        (np.longdouble, np.float64), (">f4", np.float32), (np.int8, np.float32),
        (np.uint8, np.float32), (np.int16, np.float32), (np.uint16, np.float64),
        (np.int32, np.float64), (np.int64, np.float64), (np.uint64, np.float64),
        (np.bool_, np.float32),
    ],
)  # fmt: skip
def test_dtypes_of_numpy(dtype: Any, as_if: Any) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, (12, 3)), rng.integers(1, 6, (9, 3))
    found = two_sample_test(x.astype(dtype), y.astype(dtype), num_permutations=19)
    expected = two_sample_test(
        x.astype(dtype).astype(as_if), y.astype(dtype).astype(as_if), num_permutations=19
    )
    np.testing.assert_array_equal(found.null, expected.null)


def test_dtypes_of_tensors() -> None:
    x, y = points(10, 2), points(10, 2, 1)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        result = two_sample_test(x.to(dtype), y.to(dtype), num_permutations=9)
        expected = two_sample_test(x.to(dtype).double(), y.to(dtype).double(), num_permutations=9)
        assert result.statistic == pytest.approx(expected.statistic, abs=1e-5)
    wider = two_sample_test(x, y.double(), num_permutations=9)
    assert wider.statistic == two_sample_test(x.double(), y.double(), num_permutations=9).statistic
    integers = two_sample_test(torch.arange(6).reshape(3, 2), torch.arange(4).reshape(2, 2))
    assert isinstance(integers.statistic, float)


def test_layouts_of_numpy() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 6)).astype(np.float32), rng.normal(size=(20, 6)).astype(np.float32)
    expected = two_sample_test(x[::-1, ::2].copy(), y.copy()[:, :3], num_permutations=9)
    readonly = y[:, :3]
    readonly.flags.writeable = False
    found = two_sample_test(x[::-1, ::2], readonly, num_permutations=9)
    np.testing.assert_array_equal(found.null, expected.null)
    fortran = two_sample_test(
        np.asfortranarray(x[::-1, ::2]), np.asfortranarray(y[:, :3]), num_permutations=9
    )
    np.testing.assert_array_equal(fortran.null, expected.null)


# --- bad input -----------------------------------------------------------------------------------

X, Y = torch.zeros(4, 2), torch.ones(5, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"x": [[1.0]]}, TypeError, "x must be a numpy.ndarray or a torch.Tensor, got list"),
        ({"y": None}, TypeError, "y must be a numpy.ndarray or a torch.Tensor, got NoneType"),
        ({"x": np.array([["a"]])}, TypeError, "x must hold real numbers, got an array of dtype"),
        ({"x": np.ones((2, 2), complex)}, TypeError, "x must hold real numbers"),
        ({"y": torch.ones(2, 2, dtype=torch.complex64)}, TypeError, "y must hold real numbers"),
        ({"x": np.ones(4)}, ValueError, r"x must be of rank 2.*got shape \[4\]; x\[:, None\]"),
        ({"y": torch.ones(2, 2, 2)}, ValueError, r"y must be of rank 2.*got shape \[2, 2, 2\]"),
        ({"x": torch.ones(0, 2)}, ValueError, r"x must not be empty, got shape \[0, 2\]"),
        ({"x": torch.ones(2, 0), "y": torch.ones(2, 0)}, ValueError, "x must not be empty"),
        ({"x": torch.ones(4, 3)}, ValueError, "x and y must be of one width"),
        ({"x": torch.ones(1, 2), "estimator": "unbiased"}, ValueError, "x must have at least 2"),
        ({"y": torch.ones(1, 2), "estimator": "unbiased"}, ValueError, "y must have at least 2"),
        ({"estimator": "linear"}, ValueError, "estimator must be 'biased' or 'unbiased', got 'li"),
        ({"estimator": None}, ValueError, "estimator must be 'biased' or 'unbiased', got None"),
        ({"method": "bootstrap"}, ValueError, "method must be 'permutation' or 'wild_bootstrap'"),
        ({"method": "wild_bootstrap"}, ValueError, "equally many points.*got 4 and 5"),
        ({"num_permutations": 0}, ValueError, "num_permutations must be at least 1, got 0"),
        ({"num_permutations": -3}, ValueError, "num_permutations must be at least 1, got -3"),
        ({"num_permutations": 9.0}, TypeError, "num_permutations must be an integer, got 9.0"),
        ({"num_permutations": True}, TypeError, "num_permutations must be an integer, got True"),
        ({"seed": -1}, ValueError, r"seed must be at least 0 and below 2\^64, got -1"),
        ({"seed": 2**64}, ValueError, r"seed must be at least 0 and below 2\^64"),
        ({"seed": "a"}, TypeError, "seed must be an integer, got 'a'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("function", [two_sample_test, mmd_aggregated_test])
def test_bad_input(
    function: Callable[..., Any], arguments: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        function(**{"x": X, "y": Y, **arguments})


def test_bad_kernels() -> None:
    with pytest.raises(TypeError, match=r"kernel must be a fastmmd\.Kernel"):
        two_sample_test(X, Y, "gaussian")  # type: ignore[arg-type]
    for kernels in (fm.Energy(), "energy", 3):
        with pytest.raises(TypeError, match=r"kernels must be a sequence of fastmmd\.Kernel"):
            mmd_aggregated_test(X, Y, kernels)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kernels must hold at least one kernel"):
        mmd_aggregated_test(X, Y, [])
    with pytest.raises(TypeError, match=r"kernels must hold fastmmd\.Kernel only, got 'energy'"):
        mmd_aggregated_test(X, Y, [fm.Energy(), "energy"])  # type: ignore[list-item]
    two = [fm.Energy(), fm.Linear()]
    with pytest.raises(ValueError, match="weights must hold 2 numbers, one per kernel, got 1"):
        mmd_aggregated_test(X, Y, two, weights=[1.0])
    for weight in (0.0, -1.0, math.nan, math.inf, "a"):
        with pytest.raises(ValueError, match="weights must be positive and finite"):
            mmd_aggregated_test(X, Y, two, weights=[1.0, weight])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="weights must be a sequence"):
        mmd_aggregated_test(X, Y, two, weights=1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        mmd_aggregated_test(X, Y, level=1.5)
    with pytest.raises(ValueError, match="num_corrections must be at least 1, got 0"):
        mmd_aggregated_test(X, Y, num_corrections=0)
    with pytest.raises(ValueError, match="num_bandwidths must be at least 1, got 0"):
        bandwidth_grid(X, Y, 0)


# --- the aggregated test -------------------------------------------------------------------------


def test_aggregation_by_its_definition() -> None:
    x, y = points(11, 2), points(13, 2, 1) + 0.8
    kernels = [fm.Gaussian(0.3, multipliers=(1,)), fm.Laplacian(1.0), fm.Gaussian(3.0)]
    weights = np.array([0.5, 0.2, 0.3])
    b1, b2 = 60, 40
    result = mmd_aggregated_test(
        x, y, kernels, weights.tolist(), level=0.1, num_permutations=b1, num_corrections=b2, seed=7
    )
    v = labellings(11, 13, "permutation", 7, b1 + b2)
    all_pvalues = []
    for kernel, statistic in zip(kernels, np.asarray(result.statistics), strict=True):
        values, _ = brute_force(x.double(), y.double(), kernel, v, "permutation", "unbiased")
        values = values.numpy()
        assert statistic == pytest.approx(values[0], abs=1e-5)
        tested = np.append(values[:1], values[1 + b1 :])
        ranks = 1 + (values[1 : 1 + b1] >= tested[:, None]).sum(1)
        all_pvalues.append(ranks / (1 + b1))
    pvalues = np.array(all_pvalues)
    np.testing.assert_allclose(np.asarray(result.pvalues), pvalues[:, 0])
    scores = pvalues / weights[:, None]
    null = scores[:, 1:].min(0)
    adjusted = np.array([(1 + (null <= s * (1 + 1e-9)).sum()) / (1 + b2) for s in scores[:, 0]])
    np.testing.assert_allclose(np.asarray(result.adjusted_pvalues), adjusted)
    assert result.pvalue == pytest.approx(adjusted.min())
    assert result.reject == (result.pvalue <= 0.1)
    np.testing.assert_array_equal(np.asarray(result.rejecting), adjusted <= 0.1)
    np.testing.assert_allclose(np.asarray(result.weights), weights)
    assert result.kernels == tuple(kernels)


def test_aggregation_of_one_kernel_is_its_test() -> None:
    x, y = points(40, 2), points(40, 2, 1) + 0.35
    result = mmd_aggregated_test(x, y, [fm.Energy()], num_permutations=499, num_corrections=499)
    alone = two_sample_test(x, y, fm.Energy(), 499, estimator="unbiased")
    assert float(result.pvalues[0]) == alone.pvalue
    assert abs(result.pvalue - alone.pvalue) < 0.05


def test_aggregated_types_and_repeats() -> None:
    x, y = points(30, 2).numpy(), points(30, 2, 1).numpy()
    first, second = (
        mmd_aggregated_test(x, y, num_permutations=50, num_corrections=50, seed=1) for _ in "ab"
    )
    for name in ("weights", "statistics", "pvalues", "adjusted_pvalues", "rejecting"):
        value = getattr(first, name)
        assert isinstance(value, np.ndarray)
        assert value.shape == (20,)
        np.testing.assert_array_equal(value, getattr(second, name))
    assert first.rejecting.dtype == bool
    assert type(first.pvalue) is float
    assert type(first.reject) is bool
    assert isinstance(
        mmd_aggregated_test(torch.from_numpy(x), y, num_permutations=5, num_corrections=5).pvalues,
        Tensor,
    )


def test_bandwidth_grid() -> None:
    x, y = points(60, 3), points(50, 3, 1)
    z = torch.cat([x, y]).double()
    distances = torch.pdist(z).sort().values
    grid = bandwidth_grid(x, y, 7)
    assert len(grid) == 7
    assert grid[0] == pytest.approx(0.5 * float(torch.quantile(distances, 0.05)), rel=1e-2)
    assert grid[-1] == pytest.approx(2 * float(torch.quantile(distances, 0.95)), rel=1e-2)
    ratios = np.diff(np.log(grid))
    np.testing.assert_allclose(ratios, ratios[0])
    # The labels do not matter, so relabelling changes nothing and the level holds.
    np.testing.assert_allclose(bandwidth_grid(y, x, 7), grid)
    assert bandwidth_grid(x, y, 1)[0] == pytest.approx(math.sqrt(grid[0] * grid[-1]))
    assert bandwidth_grid(torch.ones(3, 2), torch.ones(4, 2), 2) == (1.0, 1.0)
    kernels = kernel_collection(x, y, 7)
    assert [type(k) for k in kernels] == [fm.Gaussian] * 7 + [fm.Laplacian] * 7
    assert kernels[7].bandwidth == grid[0]
    # exp(-r^2 / b^2)
    assert kernels[2].terms().scales.item() == pytest.approx(grid[2] ** -2)


def test_bandwidth_grid_of_many_points_looks_at_some() -> None:
    x, y = points(3000, 2), points(2000, 2, 1)
    grid = bandwidth_grid(x, y)
    assert grid == bandwidth_grid(x, y)
    assert grid != bandwidth_grid(x, y, seed=1)
    np.testing.assert_allclose(grid, bandwidth_grid(x, y, seed=1), rtol=0.15)


# --- level and power -----------------------------------------------------------------------------

DRAWS = 500


def rejections(
    test: Callable[[Tensor, Tensor, int], bool],
    n: int,
    m: int,
    shift: float = 0.0,
    draws: int = DRAWS,
) -> float:
    """How often the test rejects, in percent of the draws."""
    torch.set_num_threads(1)  # for so few points
    generator = torch.Generator().manual_seed(12345)
    count = 0
    for draw in range(draws):
        x = torch.randn(n, 2, generator=generator)
        y = torch.randn(m, 2, generator=generator) + shift
        count += test(x, y, draw)
    return 100 * count / draws


@pytest.mark.parametrize(
    ("method", "estimator", "n", "m"),
    [
        ("permutation", "biased", 30, 20),
        ("permutation", "unbiased", 30, 20),
        ("permutation", "unbiased", 10, 60),
        ("wild_bootstrap", "unbiased", 25, 25),
    ],
)
def test_level_and_power(method: str, estimator: str, n: int, m: int) -> None:
    def test(x: Tensor, y: Tensor, seed: int) -> bool:
        return two_sample_test(x, y, None, 199, method, estimator, seed).rejects(0.05)

    assert 3 <= rejections(test, n, m) <= 7.5
    assert rejections(test, n, m, shift=1.0) >= 75


@pytest.mark.parametrize("method", ["permutation", "wild_bootstrap"])
def test_level_and_power_of_the_aggregated_test(method: str) -> None:
    def test(x: Tensor, y: Tensor, seed: int) -> bool:
        return mmd_aggregated_test(
            x, y, num_permutations=399, num_corrections=199, method=method, seed=seed
        ).reject

    assert 3 <= rejections(test, 25, 25) <= 7.5
    assert rejections(test, 25, 25, shift=1.0, draws=50) >= 75


def test_aggregation_finds_what_one_bandwidth_misses() -> None:
    """A fine structure that the mean distance as bandwidth smooths away."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (300, 1))
    y = (rng.integers(0, 20, (300, 1)) + rng.uniform(0, 0.5, (300, 1))) / 20
    assert two_sample_test(x, y, fm.Gaussian("mean", multipliers=(1,))).pvalue > 0.05
    assert mmd_aggregated_test(x, y, kernel_collection(x / 30, y / 30)).reject


# --- memory --------------------------------------------------------------------------------------


def test_memory_is_far_from_the_matrix() -> None:
    """n = m = 2000, d = 50, B = 1000 takes less than 100 MiB; the matrix of doubles takes 122."""
    code = """if True:
        import torch
        from pathlib import Path
        from fastmmd.stats import two_sample_test
        def peak():  # KiB
            status = Path("/proc/self/status").read_text()
            return int(status.split("VmHWM:")[1].split()[0])
        torch.set_num_threads(4)
        x, y = torch.randn(2000, 50), torch.randn(2000, 50)
        two_sample_test(x[:50], y[:50], num_permutations=10)
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        before = peak()
        two_sample_test(x, y, num_permutations=1000)
        print((peak() - before) / 1024)
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 100
