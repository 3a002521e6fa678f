"""Kernel mean matching against the quadratic programme written out, and what it is good for."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.optimize
import torch
from sklearn.exceptions import ConvergenceWarning

import fastmmd as fm
from fastmmd.transfer import InstanceSelector, KernelMeanMatching, _quadratic

Array = npt.NDArray[Any]


def samples(n: int, m: int, d: int = 3) -> tuple[Array, Array, Array]:
    """A source, and a target that covers a part of it."""
    rng = np.random.default_rng(0)
    x = np.r_[rng.normal(size=(n, d)), 0.6 * rng.normal(size=(m, d)) + 0.4]
    return x, x[:n], np.r_[np.zeros(n, int), np.full(m, -1)]


def programme(x: Array, y: Array, s: float) -> tuple[Array, Array]:
    """K and c written out, of a Gaussian of bandwidth s."""

    def gram(a: Array, b: Array) -> Array:
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * s * s))

    return gram(x, x), len(x) * gram(x, y).mean(1)


def true_gap(w: Array, k: Array, c: Array, upper: float, slack: float) -> float:
    """What a linear programme says the value is at most above the minimum."""
    g, n = k @ w - c, len(w)
    best = scipy.optimize.linprog(
        g,
        A_ub=np.stack([np.ones(n), -np.ones(n)]),
        b_ub=[(1 + slack) * n, -(1 - slack) * n],
        bounds=(0, upper),
    )
    return float(g @ w - best.fun)


@pytest.mark.parametrize("s", [0.3, 1.0, 4.0])
@pytest.mark.parametrize(("upper", "slack"), [(1000.0, None), (1.5, 0.1), (2.0, 0.0), (1.0, 0.0)])
def test_the_optimum(s: float, upper: float, slack: float | None) -> None:
    x, source, domain = samples(60, 40)
    k, c = programme(source, x[60:], s)
    kernel = fm.Gaussian(s, multipliers=(1,))
    kmm = KernelMeanMatching(kernel, upper, slack).fit(x, sample_domain=domain)
    w = kmm.weights_
    spread = 1 - 60**-0.5 if slack is None else slack
    assert w.min() >= 0
    assert w.max() <= upper
    assert abs(w.sum() - 60) <= spread * 60 + 1e-9 * 60
    value = 0.5 * w @ k @ w - c @ w
    assert kmm.objective_ == pytest.approx(value, rel=1e-12)
    assert true_gap(w, k, c, upper, spread) <= 1e-6 * abs(value)
    assert 0 <= kmm.duality_gap_ <= 1e-6 * abs(value)
    reference = scipy.optimize.minimize(
        lambda v: 0.5 * v @ k @ v - c @ v,
        np.full(60, min(1.0, upper)),
        jac=lambda v: k @ v - c,
        bounds=[(0, upper)] * 60,
        constraints=[
            {"type": "ineq", "fun": lambda v: (1 + spread) * 60 - v.sum()},
            {"type": "ineq", "fun": lambda v: v.sum() - (1 - spread) * 60},
        ],
        method="SLSQP",
        options={"ftol": 1e-13, "maxiter": 500},
    )
    assert value <= reference.fun + 1e-6 * abs(reference.fun)
    assert value >= reference.fun - 1e-5 * abs(reference.fun)  # which stops early


def test_many_rows_take_both_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 600
    monkeypatch.setattr(_quadratic, "_DENSE", 100)
    monkeypatch.setattr(_quadratic, "_MOST", 400)
    x, source, domain = samples(n, 200)
    k, c = programme(source, x[n:], 1.0)
    kmm = KernelMeanMatching(fm.Gaussian(1.0, multipliers=(1,))).fit(x, sample_domain=domain)
    assert kmm.n_iter_ > 50
    assert true_gap(kmm.weights_, k, c, 1000.0, 1 - n**-0.5) <= 1e-6 * abs(kmm.objective_)
    assert np.count_nonzero(kmm.weights_) <= 400


def test_gradients_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_quadratic, "_DENSE", 0)
    monkeypatch.setattr(_quadratic, "_MOST", 0)
    x, source, domain = samples(300, 100)
    k, c = programme(source, x[300:], 0.1)
    narrow = fm.Gaussian(0.1, multipliers=(1,))
    kmm = KernelMeanMatching(narrow).fit(x, sample_domain=domain)
    assert true_gap(kmm.weights_, k, c, 1000.0, 1 - 300**-0.5) <= 1e-6 * abs(kmm.objective_)
    wide = KernelMeanMatching(fm.Gaussian(5.0), max_iter=60)
    with pytest.warns(ConvergenceWarning, match=r"KernelMeanMatching stopped at a duality gap"):
        wide.fit(x, sample_domain=domain)
    assert wide.duality_gap_ > 1e-6 * abs(wide.objective_)
    with pytest.warns(ConvergenceWarning):  # before the first step, the unweighted mean
        wide.set_params(max_iter=1).fit(x, sample_domain=domain)
    np.testing.assert_allclose(wide.weights_, 1)


@pytest.mark.parametrize("kernel", ["rbf", "laplacian", "polynomial", "linear", "matern"])
def test_lowers_the_discrepancy(kernel: str) -> None:
    x, source, domain = samples(200, 150)
    made = {
        "rbf": fm.Gaussian("median", multipliers=(1,)),
        "laplacian": fm.Laplacian("median"),
        "polynomial": fm.Polynomial(),
        "linear": fm.Linear(),
        "matern": fm.Matern(1.5, "median"),
    }[kernel]
    kmm = KernelMeanMatching(kernel).fit(x, sample_domain=domain)
    a, b, w = (torch.from_numpy(z) for z in (source, x[200:], kmm.weights_))
    assert float(fm.mmd2(a, b, made, x_weights=w)) < 0.3 * float(fm.mmd2(a, b, made))
    np.testing.assert_array_equal(kmm.sample_weight_, np.r_[kmm.weights_, np.zeros(150)])


def test_identical_samples_need_no_weights() -> None:
    x = np.random.default_rng(0).normal(size=(50, 2))
    both, domain = np.r_[x, x], np.r_[np.zeros(50, int), np.full(50, -1)]
    kmm = KernelMeanMatching(fm.Gaussian(0.3, multipliers=(1,)), tol=1e-9)
    np.testing.assert_allclose(kmm.fit(both, sample_domain=domain).weights_, 1, atol=1e-3)


@pytest.mark.parametrize("kernel", ["rbf", "linear", "cosine"])
def test_rows_that_are_all_one(kernel: str) -> None:
    for value in (0.0, 1.0):
        kmm = KernelMeanMatching(kernel).fit(
            np.full((9, 2), value), sample_domain=[0] * 5 + [-1] * 4
        )
        assert np.isfinite(kmm.weights_).all()
        assert kmm.duality_gap_ <= 1e-6 * abs(kmm.objective_)


def test_selector() -> None:
    x, _, domain = samples(100, 50)
    names = [f"row {i}" for i in range(150)]
    kmm = KernelMeanMatching("laplacian").fit(x, sample_domain=domain)
    selector = InstanceSelector(KernelMeanMatching("laplacian"), keep=0.1)
    kept = selector.fit(x, sample_domain=domain).selected_
    order = np.argsort(-kmm.weights_, kind="stable")[:10]
    np.testing.assert_array_equal(kept, np.sort(order))
    rows, labels = selector.select(x, names)
    np.testing.assert_array_equal(rows, x[kept])
    assert labels == [names[i] for i in kept]
    assert torch.equal(selector.select(torch.from_numpy(x)), torch.from_numpy(x[kept]))


CODE = """if True:
    import resource
    import numpy as np
    from fastmmd.transfer import KernelMeanMatching, _quadratic

    _quadratic._MOST = 1000

    def run(n):
        rng = np.random.default_rng(0)
        x = np.r_[rng.normal(size=(n, 8)), 0.6 * rng.normal(size=(n // 4, 8)) + 0.4]
        domain = np.r_[np.zeros(n, int), np.full(n // 4, -1)]
        return KernelMeanMatching(tol=1e-3).fit(x, sample_domain=domain)

    run(300)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(5000)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(1024 * (after - before) / (8 * 5000**2))
"""


def test_far_from_the_matrix() -> None:
    # Of the 200 MB that the kernel matrix would take; that of a thousand rows takes 8.
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.3
