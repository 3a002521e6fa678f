"""Correlation alignment against NumPy's covariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import fastmmd as fm

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script.*:DeprecationWarning")

SCALES = {"deep_coral": 0.25, "mean": 1.0, "frobenius": None, 1 / 3: 1 / 3}


def samples(n: int, m: int, d: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = torch.randn(m, d, generator=generator, dtype=torch.float64) * 1.5 + 2
    return [x.to(dtype), y.to(dtype)]


def expected(x: torch.Tensor, y: torch.Tensor, scaling: str | float, mean_scaling: float) -> float:
    a, b = x.double().numpy(), y.double().numpy()
    covariances = [np.cov(t, rowvar=False).reshape(a.shape[1], -1) for t in (a, b)]
    squared = np.square(covariances[0] - covariances[1])
    scale = SCALES[scaling]
    value = squared.sum() if scale is None else scale * squared.mean()
    return float(value + mean_scaling * np.square(a.mean(0) - b.mean(0)).mean())


@pytest.mark.parametrize("mean_scaling", [0.0, 1.0, 1 / 3])
@pytest.mark.parametrize("scaling", SCALES)
@pytest.mark.parametrize(("n", "m", "d"), [(30, 21, 5), (2, 2, 1), (4, 9, 40)])
def test_formula(n: int, m: int, d: int, scaling: str | float, mean_scaling: float) -> None:
    x, y = samples(n, m, d)
    value = fm.CORALLoss(scaling, mean_scaling)(x, y)
    assert float(value) == pytest.approx(expected(x, y, scaling, mean_scaling), rel=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_precision(dtype: torch.dtype) -> None:
    # 100 roundings of float32 at most, in a sum of products of 30
    x, y = samples(30, 21, 5, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = fm.coral(x, y)
    assert value.dtype == torch.float32
    assert torch.equal(value, fm.coral(x.float(), y.float()))
    assert float(value) == pytest.approx(expected(x, y, "deep_coral", 0), rel=100 * 2**-24)


def test_large_half_values() -> None:
    x, y = (300 * t for t in samples(30, 21, 5, torch.float16))  # squares are beyond float16
    assert fm.coral(x, y).isfinite()


def test_batch_is_a_loop() -> None:
    x, y = samples(12, 8, 5)
    x, y = x.reshape(3, 4, 5), y.reshape(2, 4, 5)[[0, 1, 0]]
    value = fm.coral(x, y, "mean", 1.0)
    loop = [fm.coral(a, b, "mean", 1.0) for a, b in zip(x, y, strict=True)]
    assert torch.allclose(value, torch.stack(loop), rtol=1e-12)


def test_gradients() -> None:
    inputs = [t.requires_grad_() for t in samples(5, 4, 3)]
    run = lambda x, y: fm.coral(x, y, "mean", 0.5)  # noqa: E731
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_compiled() -> None:
    x, y = samples(20, 24, 6, torch.float32)
    loss = fm.CORALLoss()
    assert torch.allclose(torch.compile(loss, fullgraph=True)(x, y), loss(x, y), rtol=1e-5)


def test_never_nan() -> None:
    x, y = torch.ones(2, 3, requires_grad=True), torch.ones(3, 3)
    value = fm.coral(x, y, mean_scaling=1.0)
    (gradient,) = torch.autograd.grad(value, x)
    assert value == 0
    assert torch.equal(gradient, torch.zeros(2, 3))


def test_bad_data_is_no_error() -> None:
    x, y = samples(6, 7, 3)
    x[1, 2] = math.nan
    assert fm.coral(x, y).isnan()
