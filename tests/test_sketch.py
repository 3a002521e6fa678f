"""Sketches: what they estimate, that they merge, that files of them are whole or refused."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastmmd as fm
from fastmmd.frequencies import RATES, SCHEMES, Stream, dense, draw
from fastmmd.reference_features import random_feature_mmd2
from fastmmd.sketch import files

KERNELS = {
    "gaussian": fm.Gaussian(2.0, multipliers=(1,)),
    "bank": fm.Gaussian(2.0),
    "laplacian": fm.Laplacian(2.0),
    "matern32": fm.Matern(1.5, 2.0),
    "matern52": fm.Matern(2.5, 2.0),
    "inverse multiquadric": fm.InverseMultiquadric(2.0),
    "rational quadratic": fm.RationalQuadratic(0.4, 2.0),
    "sum": fm.Gaussian(torch.tensor([1.0, 3.0]), (1,), (0.5, 2.0)) + 0.5 * fm.Laplacian(2.0),
}
SUFFIXES = [".npz", ".safetensors"]


def samples(n: int = 300, m: int = 200, d: int = 4, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator)
    return x + offset, torch.randn(m, d, generator=generator) * 1.2 + 0.4 + offset


def sketches(*args: Any, **options: Any) -> tuple[fm.MeanEmbedding, fm.MeanEmbedding]:
    x, y = samples()
    a = fm.MeanEmbedding(*args, **options)
    return a.update(x), a.empty().update(y)


@pytest.fixture
def pair() -> tuple[fm.MeanEmbedding, fm.MeanEmbedding]:
    return sketches(256, fm.Gaussian(2.0), 4)


# --- what it estimates ---------------------------------------------------------------------------


@pytest.mark.parametrize("frequencies", SCHEMES)
@pytest.mark.parametrize("form", ["pair", "phase"])
@pytest.mark.parametrize("name", KERNELS)
def test_near_the_exact_value(name: str, form: str, frequencies: str) -> None:
    x, y = samples()
    kernel = KERNELS[name]
    exact = {e: float(fm.mmd2(x.double(), y.double(), kernel, e)) for e in ("biased", "unbiased")}
    a, b = sketches(2048, kernel, 4, 3, form, frequencies)
    for estimator, value in exact.items():
        error = a.standard_error(b, estimator)
        assert 0 < error < 0.2 * value
        assert abs(a.mmd2(b, estimator) - value) < 4 * error


@pytest.mark.parametrize("form", ["pair", "phase"])
def test_standard_error_is_calibrated(form: str) -> None:
    x, y = samples()
    exact = float(fm.mmd2(x, y, fm.Gaussian(2.0)))
    scores = []
    for seed in range(100):
        a, b = sketches(128, fm.Gaussian(2.0), 4, seed, form)
        scores.append((a.mmd2(b) - exact) / a.standard_error(b))
    assert abs(np.mean(scores)) < 0.4
    assert 0.8 < np.std(scores) < 1.25


@pytest.mark.parametrize("weighted", [False, True], ids=["even", "weighted"])
@pytest.mark.parametrize("form", ["pair", "phase"])
@pytest.mark.parametrize("frequencies", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_against_written_out_features(
    dtype: torch.dtype, frequencies: str, form: str, weighted: bool
) -> None:
    x, y = (z.to(dtype) for z in samples(90, 70, 5, offset=10.0))
    kernel = fm.Gaussian(2.0) + 0.5 * fm.Matern(1.5, torch.tensor([1.0, 2.0]))
    weights = [torch.rand(len(z), dtype=torch.float64) + 0.1 if weighted else None for z in (x, y)]
    empty = fm.MeanEmbedding(64, kernel, 5, 7, form, frequencies)
    a, b = (empty.empty().update(z, w) for z, w in zip((x, y), weights, strict=True))
    terms, expected = kernel.terms(), 0.0
    for family in set(terms.families):
        of = [i for i, f in enumerate(terms.families) if f == family]
        count = 64 if form == "phase" else 32
        w, signs, phases = draw(family, 0.0, SCHEMES[frequencies], 5, count, 7)
        w = w.double() if signs is None else dense(w, signs, 5)
        rates = (RATES[family] * terms.scales[of]).sqrt()
        shown = phases if form == "phase" else None
        expected += float(
            random_feature_mmd2(
                x.double(), y.double(), w, shown, rates, terms.coefficients[of], *weights
            )
        )
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    assert a.mmd2(b) == pytest.approx(expected, abs=tolerance * float(terms.coefficients.sum()))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("form", ["pair", "phase"])
def test_the_same_features_as_one_call_makes(form: str, scheme: str) -> None:
    """One seed, one set of frequencies: two sketches, and both samples at once."""
    x, y = (z.double() for z in samples(30, 20))
    kernel = fm.Gaussian(2.0) + 0.5 * fm.Laplacian(1.5) + fm.RationalQuadratic(0.7, 1.0)
    empty = fm.MeanEmbedding(64, kernel, 4, 5, form, scheme)
    a, b = (empty.empty().update(z) for z in (x, y))
    value, error = fm.random_feature_mmd2(x, y, 64, kernel, 5, scheme, form, return_error=True)
    assert float(value) == pytest.approx(a.mmd2(b), rel=1e-12)
    assert float(error) == pytest.approx(a.standard_error(b), rel=1e-10)


def test_unbiased_leaves_the_diagonal_out() -> None:
    """The features of pairs make a kernel of their own, whose U-statistic it is."""
    x, y = (z.double() for z in samples(30, 20))
    u, v = torch.rand(2, 30, dtype=torch.float64)[0], torch.rand(20, dtype=torch.float64)
    empty = fm.MeanEmbedding(64, fm.Gaussian(2.0, (1,)), 4)
    a, b = empty.empty().update(x, u), empty.empty().update(y, v)
    w = draw(0, 0.0, 0, 4, 32, 0).w.double() / 2.0
    p, q = u / u.sum(), v / v.sum()

    def gram(s: Tensor, t: Tensor) -> Tensor:
        return ((s[:, None] - t) @ w).cos().mean(-1)

    def within(z: Tensor, r: Tensor) -> Tensor:
        mass = r.outer(r).fill_diagonal_(0)
        return (mass * gram(z, z)).sum() / mass.sum()

    expected = within(x, p) + within(y, q) - 2 * p @ gram(x, y) @ q
    assert a.mmd2(b, "unbiased") == pytest.approx(float(expected), abs=1e-12)


def test_error_falls_with_the_number_of_features() -> None:
    errors = []
    for features in (256, 1024, 4096, 16384):
        a, b = sketches(features, fm.Gaussian(2.0), 4)
        errors.append(a.standard_error(b))
    slope = np.polyfit(np.log([256, 1024, 4096, 16384]), np.log(errors), 1)[0]
    assert -0.6 < slope < -0.4


def test_pvalue_bound() -> None:
    rng = np.random.default_rng(0)
    empty = fm.MeanEmbedding(64, fm.Gaussian(1.0, (1,)), 2)
    bounds, values = [], []
    for _ in range(300):
        a, b = (empty.empty().update(rng.normal(size=(n, 2))) for n in (12, 20))
        bounds.append(a.pvalue_bound(b))
        values.append(a.mmd2(b))
    for level in (0.01, 0.1, 0.3, 0.6):
        assert np.mean(np.array(bounds) <= level) <= level
    assert np.mean(values) == pytest.approx(a.expected_mmd2(b), rel=0.15)
    near, far = (empty.empty().update(rng.normal(size=(400, 2)) + s) for s in (0.0, 2.0))
    scale = 2 / 400
    excess = math.sqrt(near.mmd2(far) / scale) - 1
    assert near.pvalue_bound(far) == pytest.approx(math.exp(-(excess**2) / 2))
    assert near.pvalue_bound(far) < 1e-9
    assert near.pvalue_bound(near) == 1


# --- merging -------------------------------------------------------------------------------------


def close(a: fm.MeanEmbedding, b: fm.MeanEmbedding, rel: float = 1e-14) -> bool:
    one, other = a.state(), b.state()
    return bool((one - other).abs().max() <= rel * max(1.0, float(one.abs().max())))


@pytest.mark.parametrize("name", ["bank", "sum"])
def test_merging(name: str) -> None:
    x = samples(1000)[0].double()
    empty = fm.MeanEmbedding(128, KERNELS[name], 4)
    a, b, c = (empty.empty().update(part) for part in x.split([100, 1, 899]))
    before = a.state()
    assert torch.equal((a + b).state(), (b + a).state())
    assert close((a + b) + c, a + (b + c))
    assert close(a + b + c, empty.empty().update(x), 1e-12)
    assert torch.equal(sum([a, b, c]).state(), (a + b + c).state())
    assert torch.equal((a + empty).state(), a.state())
    assert torch.equal(a.state(), before)
    assert a.merge(b) is not a
    assert (a + b + c).count == 1000
    assert (a + b + c).weight == 1000.0
    assert empty.count == 0


def test_weights_count_as_repetitions() -> None:
    x = samples(20)[0].double()
    times = torch.arange(20) % 4
    empty = fm.MeanEmbedding(64, fm.Gaussian(1.0), 4)
    weighted = empty.empty().update(x, times.double())
    repeated = empty.empty().update(x.repeat_interleave(times, 0))
    assert weighted.weight == repeated.weight == float(times.sum())
    assert torch.allclose(weighted.state()[6:], repeated.state()[6:], atol=1e-12)
    assert weighted.mmd2(repeated) < 1e-24
    assert empty.empty().update(x, torch.zeros(20)).weight == 0.0


def test_what_batches_may_be(pair: tuple[fm.MeanEmbedding, fm.MeanEmbedding]) -> None:
    empty = pair[0].empty()
    values = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float16).astype(np.float64)
    expected = empty.empty().update(values)
    frozen = values.copy()
    frozen.flags.writeable = False
    wide = np.zeros((20, 8))
    wide[::2, ::2] = values
    for batch in (
        values.astype(np.float16),
        values.astype(np.float32),
        values.astype(">f8"),
        values.astype(">f4"),
        frozen,
        np.asfortranarray(values),
        values[::-1],
        wide[::2, ::2],
        torch.from_numpy(values).requires_grad_(),
        torch.from_numpy(values).half(),
        torch.from_numpy(wide)[::2, ::2],
    ):
        for weights in (None, np.ones(10), torch.ones(10, dtype=torch.bfloat16)):
            found = empty.empty().update(batch, weights)
            assert close(found, expected, 1e-6)
            assert not found.state().requires_grad
    assert empty.update(np.empty((0, 4))).update(torch.empty(0, 4), torch.empty(0)).count == 0
    with torch.inference_mode():
        inside = empty.empty().update(values)
    assert torch.equal(inside.update(values).state()[6:], 2 * expected.state()[6:])


def test_nan_gives_nan(pair: tuple[fm.MeanEmbedding, fm.MeanEmbedding]) -> None:
    a, b = pair
    broken = a.empty().update(torch.tensor([[1.0, math.nan, 0.0, 0.0]]))
    assert math.isnan(broken.mmd2(b))
    assert math.isnan(broken.pvalue_bound(b))


def test_state(pair: tuple[fm.MeanEmbedding, fm.MeanEmbedding]) -> None:
    a, b = pair
    merged = a.empty().from_state(a.state() + b.state())
    assert torch.equal(merged.state(), (a + b).state())
    assert merged.mmd2(b) == (a + b).mmd2(b)
    assert torch.equal(a.from_state(a.state()).state(), a.state())
    other = fm.MeanEmbedding(256, fm.Gaussian(2.5), 4).update(samples()[0])
    for state, error, said in (
        (a.state() + other.state(), ValueError, "made with the same kernel"),
        (other.state(), ValueError, "made with the same kernel"),
        (0 * a.state(), ValueError, "made with the same kernel"),
        (a.state()[:-1], ValueError, "must be of shape"),
        (a.state().float(), TypeError, "float64, got torch.float32"),
        ([1.0], TypeError, "float64, got list"),
    ):
        with pytest.raises(error, match=said):
            a.from_state(state)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"num_features": 128}, r"num_features \(256 and 128\)"),
        ({"kernel": fm.Gaussian(2.1)}, r"kernel \(Gaussian\(.*2\.0.* and Gaussian\(.*2\.1"),
        ({"kernel": fm.Gaussian(2.0, (1,))}, r"kernel \("),
        ({"kernel": fm.Laplacian(2.0)}, r"kernel \("),
        ({"dim": 5}, r"dim \(4 and 5\)"),
        ({"seed": 1}, r"seed \(0 and 1\)"),
        ({"form": "phase"}, r"form \('pair' and 'phase'\)"),
        ({"frequencies": "orthogonal"}, r"frequencies \('iid' and 'orthogonal'\)"),
        ({"columns": ("a", "b", "c", "e")}, r"columns \(\['a', 'b', 'c', 'd'\] and"),
    ],
)
def test_sketches_that_do_not_match(changed: dict[str, Any], said: str) -> None:
    made: dict[str, Any] = {"num_features": 256, "kernel": fm.Gaussian(2.0), "dim": 4}
    a = fm.MeanEmbedding(**made, columns=None if "dim" in changed else list("abcd"))
    b = fm.MeanEmbedding(**{**made, **changed})
    for method in (a.merge, a.mmd2, a.standard_error, a.pvalue_bound, a.expected_mmd2, a.__add__):
        with pytest.raises(ValueError, match=said):
            method(b)
    with pytest.raises(TypeError, match="must be a MeanEmbedding, got int"):
        a.merge(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        a + 3  # type: ignore[operator]


def test_columns_are_kept(tmp_path: Path) -> None:
    named = fm.MeanEmbedding(2, fm.Gaussian(1.0), 2, columns=["x", "y"]).update(torch.ones(1, 2))
    bare = fm.MeanEmbedding(2, fm.Gaussian(1.0), 2)
    assert (bare + named).columns == (named + bare).columns == ("x", "y")
    named.save(tmp_path / "s.npz")
    assert fm.MeanEmbedding.load(tmp_path / "s.npz").columns == ("x", "y")


def test_kernels_are_taken_as_they_are() -> None:
    s = fm.Learnable(2.0)
    sketch = fm.MeanEmbedding(2, fm.Gaussian(s), 2)
    assert sketch.kernel.bandwidth == pytest.approx(2.0)
    with torch.no_grad():
        s.log_value += 1
    assert sketch.kernel.bandwidth == pytest.approx(2.0)
    with pytest.raises(ValueError, match="kernel"):
        sketch.merge(fm.MeanEmbedding(2, fm.Gaussian(s), 2))
    running = fm.RunningBandwidth("mean")
    with pytest.raises(ValueError, match="has seen no data"):
        fm.MeanEmbedding(2, fm.Gaussian(running), 2)
    x, y = samples()
    running.update(x, y)
    kernel = fm.MeanEmbedding(2, fm.Gaussian(running), 4).kernel
    assert float(fm.mmd2(x, y, kernel)) == pytest.approx(float(fm.mmd2(x, y)), rel=1e-5)
    constant = fm.RunningBandwidth("mean")
    constant.update(torch.ones(3, 2), torch.ones(3, 2))
    with pytest.raises(ValueError, match="were equal"):
        fm.MeanEmbedding(2, fm.Gaussian(constant), 2)


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"num_features": 0}, ValueError, "num_features must be at least 1, got 0"),
        ({"num_features": 3}, ValueError, "num_features must be even for form='pair', got 3"),
        ({"num_features": 2.0}, TypeError, "num_features must be an integer, got 2.0"),
        ({"num_features": True}, TypeError, "num_features must be an integer"),
        ({"dim": 0}, ValueError, "dim must be at least 1, got 0"),
        ({"seed": -1}, ValueError, "seed must be at least 0 and below 2.64, got -1"),
        ({"seed": 2**64}, ValueError, "seed must be at least 0 and below 2.64"),
        ({"seed": None}, TypeError, "seed must be an integer, got None"),
        ({"form": "triple"}, ValueError, "form must be 'pair' or 'phase', got 'triple'"),
        ({"frequencies": "dense"}, ValueError, "frequencies must be 'iid', .* got 'dense'"),
        ({"frequencies": torch.ones(4, 2)}, ValueError, "frequencies must be 'iid'"),
        ({"kernel": "gaussian"}, TypeError, "kernel must be a fastmmd.Kernel"),
        ({"kernel": fm.Gaussian("mean")}, ValueError, r"bandwidth in numbers, got 'mean'.*Running"),
        ({"kernel": fm.Laplacian("median") + fm.Gaussian(1.0)}, ValueError, "got 'median'"),
        ({"kernel": fm.Energy()}, ValueError, r"no means of cosines, got Energy\(\)"),
        ({"kernel": 2 * fm.Polynomial()}, ValueError, "no means of cosines"),
        ({"columns": ["a"]}, ValueError, "columns must be 4 names"),
        ({"columns": [1, 2, 3, 4]}, TypeError, "columns must be names"),
        ({"columns": "abcd"}, TypeError, "columns must be names"),
    ],
)
def test_bad_settings(changed: dict[str, Any], error: type[Exception], said: str) -> None:
    made: dict[str, Any] = {"num_features": 2, "kernel": fm.Gaussian(1.0), "dim": 4, **changed}
    with pytest.raises(error, match=said):
        fm.MeanEmbedding(**made)


@pytest.mark.parametrize(
    ("batch", "weights", "error", "said"),
    [
        (torch.ones(3), None, ValueError, r"batch must be of shape \[n, 4\], got \[3\]"),
        (torch.ones(3, 5), None, ValueError, r"batch must be of shape \[n, 4\], got \[3, 5\]"),
        (np.ones((2, 3, 4)), None, ValueError, "batch must be of shape"),
        (torch.ones(3, 4).long(), None, TypeError, "float64, got torch.int64"),
        (np.ones((3, 4), int), None, TypeError, "up to float64, got int64"),
        (np.ones((3, 4), np.longdouble), None, TypeError, "up to float64"),
        ([[1.0]], None, TypeError, "batch must be a torch.Tensor or a NumPy array, got list"),
        (torch.ones(3, 4).to_sparse(), None, TypeError, "batch must be dense"),
        (torch.ones(3, 4), torch.ones(2), ValueError, r"weights must be of shape \[3\]"),
        (torch.ones(3, 4), torch.tensor([1, -1, 1.0]), ValueError, "and not negative"),
        (torch.ones(3, 4), np.array([1, np.nan, 1]), ValueError, "finite and not negative"),
        (torch.ones(3, 4), np.array([1, np.inf, 1]), ValueError, "finite and not negative"),
        (torch.ones(3, 4), torch.ones(3, dtype=int), TypeError, "floating dtype"),
        (torch.ones(3, 4), [1.0, 1.0, 1.0], TypeError, "weights must be a torch.Tensor"),
        (torch.ones(3, 4), torch.ones(3, device="meta"), ValueError, "weights must be on"),
    ],
)
def test_bad_batches(
    batch: Any,
    weights: Any,
    error: type[Exception],
    said: str,
    pair: tuple[fm.MeanEmbedding, fm.MeanEmbedding],
) -> None:
    sketch = pair[0]
    before = sketch.state()
    with pytest.raises(error, match=said):
        sketch.update(batch, weights)
    assert torch.equal(sketch.state(), before)


def test_too_few_rows(pair: tuple[fm.MeanEmbedding, fm.MeanEmbedding]) -> None:
    a, _ = pair
    for one in (a.empty(), a.empty().update(torch.ones(2, 4), torch.zeros(2))):
        for method in (a.mmd2, a.standard_error, a.pvalue_bound, a.expected_mmd2):
            with pytest.raises(ValueError, match="must have seen rows of positive weight"):
                method(one)
    with pytest.raises(ValueError, match="at least 2 rows of positive weight"):
        a.mmd2(a.empty().update(torch.ones(1, 4)), "unbiased")
    with pytest.raises(ValueError, match="estimator must be 'biased' or 'unbiased', got 'linear'"):
        a.mmd2(a, "linear")
    one, other = sketches(2, fm.Gaussian(1.0), 4)
    assert math.isnan(one.standard_error(other))


# --- the same everywhere -------------------------------------------------------------------------


def philox(key: tuple[int, int], counter: int) -> list[int]:
    """Philox4x64-10 as its paper defines it."""
    mask = (1 << 64) - 1
    x, k = [counter, 0, 0, 0], list(key)
    for _ in range(10):
        products = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
        (h0, l0), (h1, l1) = ((p >> 64, p & mask) for p in products)
        x = [h1 ^ x[1] ^ k[0], l1, h0 ^ x[3] ^ k[1], l0]
        k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
    return x


def test_bits_are_those_of_philox() -> None:
    seed, stream = 2**64 - 3, 17
    expected = [word for block in (1, 2, 3) for word in philox((seed, stream), block)]
    assert Stream(seed, stream).bits(12).tolist() == expected
    # A known answer of the authors' own library, Random123.
    assert philox((0, 0), 0)[0] == 0x16554D9ECA36314C


def test_normals_are_as_they_are_written_down() -> None:
    words = Stream(5, 8).bits(12)
    u = [((int(word) >> 11) + 0.5) / 2**53 for word in words]
    rows = []
    for i in (0, 4, 8):
        length = [math.sqrt(-2 * math.log(v)) for v in u[i : i + 2]]
        angle = [2 * math.pi * v for v in u[i + 2 : i + 4]]
        rows.append([v * math.cos(t) for v, t in zip(length, angle, strict=True)])
        rows[-1].append(length[0] * math.sin(angle[0]))  # the row is of 3
    stream = Stream(5, 8)
    found = np.concatenate([stream.normal(1, 3), stream.normal(2, 3)])
    np.testing.assert_allclose(found, rows, rtol=1e-13, atol=1e-15)


GOLDEN = {
    "iid": [-1.3077497, 0.88849664, 0.7360062, -0.43668085, 0.037824761, -0.10915217],
    "orthogonal": [-1.1758494, 0.44415852, 1.6434447, -0.73132437, 0.03352638, -0.18479919],
    "structured": [0.034846611, 0.039301544, 0.030536495, 0.034151547, 0.0082143079, 0.018029258],
}  # by family, in the order of RATES


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_same_frequencies_as_ever(scheme: str) -> None:
    """Files of sketches outlive releases: these numbers must never change."""
    found = [float(draw(family, 0.5, SCHEMES[scheme], 5, 12, 3).w.flatten()[7]) for family in RATES]
    np.testing.assert_allclose(found, GOLDEN[scheme], rtol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", KERNELS)
def test_frequencies_are_those_of_the_kernel(name: str, scheme: str) -> None:
    """By the means of cosines at several distances."""
    terms = KERNELS[name].terms()
    d, count = 6, 4096
    for t in {f: t for t, f in enumerate(terms.families)}.values():
        family, shape, scale = terms.families[t], terms.shapes[2 * t], float(terms.scales[t])
        w, signs, phases = draw(family, shape, SCHEMES[scheme], d, count, 1)
        w = w.double() if signs is None else dense(w, signs, d)
        rate = math.sqrt(RATES[family] * scale)
        for distance in (0.5, 1.0, 3.0):
            v = torch.zeros(1, d)
            v[0, :2] = distance / math.sqrt(2)
            k = fm.kernel_sum(v, torch.zeros(1, d), torch.ones(1), KERNELS[name])
            if len(terms.families) == 1:
                found = (rate * (v.double() @ w)).cos().mean()
                assert abs(float(found) - float(k)) < 4 / math.sqrt(count)
        assert abs(float(phases.cos().mean())) < 4 / math.sqrt(2 * count)
        assert float(phases.min()) > 0
        assert float(phases.max()) < 2 * math.pi


def test_orthogonal_blocks() -> None:
    w = draw(0, 0.0, SCHEMES["orthogonal"], 5, 12, 0).w.double()
    product = w.T @ w
    for i in (0, 5, 10):
        block = product[i : i + 5, i : i + 5]
        assert torch.allclose(block, block.diagonal().diag(), atol=1e-6)


def test_frequencies_are_shared_and_let_go() -> None:
    from fastmmd.sketch import features

    a, b = (fm.MeanEmbedding(64, fm.Gaussian(s), 4, 99).update(samples()[0]) for s in (1.0, 2.0))
    kept = [key for key in features._DRAWN if key[-1] == 99]
    assert len(kept) == 1
    del a, b
    assert [key for key in features._DRAWN if key[-1] == 99] == []


def test_copies(pair: tuple[fm.MeanEmbedding, fm.MeanEmbedding]) -> None:
    a, b = pair
    blob = pickle.dumps(a)
    assert len(blob) < 8 * len(a.state()) + 8000
    for twin in (pickle.loads(blob), copy.copy(a), copy.deepcopy(a)):
        assert torch.equal(twin.state(), a.state())
        assert twin.mmd2(b) == a.mmd2(b)
        before = a.state()
        twin.update(samples()[1])
        assert torch.equal(a.state(), before)
    assert repr(a).startswith("MeanEmbedding(256, Gaussian(bandwidth=2.0")
    assert repr(a).endswith("dim=4, seed=0, form='pair', frequencies='iid'): 300 rows")


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", KERNELS)
def test_saved_and_loaded(name: str, suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    a, b = sketches(64, KERNELS[name], 4, 2**64 - 1, "phase", "orthogonal")
    a = a.update(samples()[1], torch.rand(200))
    path = tmp_path / f"s{suffix}"
    a.save(path)
    loaded = fm.MeanEmbedding.load(str(path))
    assert torch.equal(loaded.state(), a.state())
    assert repr(loaded) == repr(a)
    assert loaded.mmd2(b) == a.mmd2(b)
    x = samples()[0]
    assert torch.equal(loaded.update(x).state(), a.update(x).state())
    assert os.listdir(tmp_path) == [path.name]
    loaded.save(path)  # over the old one
    assert fm.MeanEmbedding.load(path).count == loaded.count


def damages(blob: bytes) -> dict[str, bytes]:
    made = {f"cut at {n}": blob[:n] for n in (0, 1, 7, 60, len(blob) // 2, len(blob) - 1)}
    for n in range(0, len(blob), max(1, len(blob) // 60)):
        made[f"bit at {n}"] = blob[:n] + bytes([blob[n] ^ 16]) + blob[n + 1 :]
    return made


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_files(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    path = tmp_path / f"s{suffix}"
    a, _ = sketches(16, fm.Gaussian(1.0), 4)
    a.save(path)
    whole = path.read_bytes()
    for blob in damages(whole).values():
        path.write_bytes(blob)
        try:
            found = fm.MeanEmbedding.load(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:  # what no one reads, as the time of day in an archive
            assert torch.equal(found.state(), a.state())
            assert repr(found) == repr(a)


def rewritten(path: Path, change: Callable[[dict[str, Any]], None], honest: bool = True) -> None:
    """A file with another header, and the checksum that belongs to it."""
    header, sums = files.read(path)
    change(header)
    text = {k: v for k, v in header.items() if k != "sha256"}
    if honest:
        text["sha256"] = files._digest(text, sums)
    np.savez(path, header=np.frombuffer(json.dumps(text).encode(), np.uint8), sums=sums)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "a sketch of format 2, and this fastmmd reads format 1"),
        ({"format": "other"}, "is not a file of a sketch"),
        ({"generator": 2}, "frequencies are drawn in a way 2"),
        ({"num_features": 10**12}, "do not fit together"),
        ({"num_features": 8}, "do not fit together"),
        ({"num_features": "16"}, "is damaged"),
        ({"num_features": 1.5}, "num_features must be an integer"),
        ({"dim": 0}, "dim must be at least 1"),
        ({"count": -1}, "do not fit together"),
        ({"kernel": {"family": "Energy"}}, "known family, got 'Energy'"),
        ({"kernel": [1]}, "kernel must be a table"),
        ({"kernel": {"family": "Gaussian", "bandwidth": "mean", "weights": None}}, "damaged"),
        ({"kernel": {"family": "Laplacian", "bandwidth": -1.0, "weights": None}}, "positive"),
        ({"columns": ["a"]}, "columns must be 4 names"),
        ({"seed": None}, "seed must be an integer"),
    ],
)
def test_headers_that_make_no_sense(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    sketches(16, fm.Gaussian(1.0), 4)[0].save(path)
    rewritten(path, lambda header: header.update(change))
    with pytest.raises(ValueError, match=said) as raised:
        fm.MeanEmbedding.load(path)
    assert str(path) in str(raised.value)


def test_checksum(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    sketches(16, fm.Gaussian(1.0), 4)[0].save(path)
    rewritten(path, lambda header: header.update(seed=1), honest=False)
    with pytest.raises(ValueError, match="its checksum is not that of what it holds"):
        fm.MeanEmbedding.load(path)


def test_foreign_files(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "s.npz"
    objects = np.array([{"a": 1}], dtype=object)
    for arrays, said in (
        ({"x": np.ones(3)}, "is not a file of a sketch"),
        ({"header": np.ones(3), "sums": np.ones(3)}, "is damaged: its header is no JSON"),
        ({"header": objects, "sums": np.ones(3)}, "is no .npz file, or is damaged"),
    ):
        np.savez(path, **arrays)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=said):
            fm.MeanEmbedding.load(path)
    text = np.frombuffer(b"[1, 2]", np.uint8)
    np.savez(path, header=text, sums=np.ones(3))
    with pytest.raises(ValueError, match="is not a file of a sketch"):
        fm.MeanEmbedding.load(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"is no \.npz file"):
        fm.MeanEmbedding.load(path)
    with open(path, "wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(ValueError, match="is not a file of a sketch"):
        fm.MeanEmbedding.load(path)
    path = tmp_path / "s.safetensors"
    path.write_bytes(safetensors.save({"weight": np.ones(3)}))
    with pytest.raises(ValueError, match="is not a file of a sketch"):
        fm.MeanEmbedding.load(path)
    for suffix in SUFFIXES:
        with pytest.raises(FileNotFoundError):
            fm.MeanEmbedding.load(tmp_path / f"none{suffix}")
    for name in ("s.pt", "s", "s.npy"):
        with pytest.raises(ValueError, match=r"ends in \.npz or \.safetensors"):
            fm.MeanEmbedding.load(name)
        with pytest.raises(ValueError, match=r"ends in \.npz or \.safetensors"):
            fm.MeanEmbedding(2, fm.Gaussian(1.0), 2).save(tmp_path / name)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_write_changes_nothing(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = sketches(16, fm.Gaussian(1.0), 4)
    path = tmp_path / "s.npz"
    a.save(path)
    before = path.read_bytes()
    real = np.savez

    def half(file: Any, **arrays: Any) -> None:
        real(file, **arrays)
        raise error

    monkeypatch.setattr(np, "savez", half)
    with pytest.raises(error):
        b.save(path)
    with pytest.raises(error):
        b.save(tmp_path / "new.npz")
    assert os.listdir(tmp_path) == ["s.npz"]
    assert path.read_bytes() == before


def test_without_safetensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)  # type: ignore[arg-type]
    sketch = fm.MeanEmbedding(2, fm.Gaussian(1.0), 2)
    for call in (sketch.save, fm.MeanEmbedding.load):
        with pytest.raises(ImportError, match=r"pip install 'fastmmd\[sketch\]'"):
            call("s.safetensors")
