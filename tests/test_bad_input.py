"""Wrong arguments: an error that names the argument, what was given and what is accepted."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastmmd as fm

X, Y = torch.randn(5, 3), torch.randn(4, 3)
NAN, INF = math.nan, math.inf


def refused(error: type[Exception], parts: tuple[str, ...], call: Callable[[], object]) -> None:
    """``call`` raises, and the message has all of the parts, in order."""
    with pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, parts))):
        call()


POINTS = {
    "no tensor": ([[1.0]], Y, TypeError, ("x must be a torch.Tensor", "list")),
    "array": (X, Y.numpy(), TypeError, ("y must be a torch.Tensor", "ndarray")),
    "rank 0": (torch.tensor(1.0), Y, ValueError, ("x must be of rank 2", "got shape []")),
    "rank 1": (X, Y[0], ValueError, ("y must be of rank 2", "got shape [3]")),
    "rank 3": (X[None], Y[None], ValueError, ("x must be of rank 2", "got shape [1, 5, 3]")),
    "widths": (X, torch.randn(4, 2), ValueError, ("x and y", "one width", "[5, 3]", "[4, 2]")),
    "dtypes": (X, Y.double(), TypeError, ("x and y", "one dtype", "float32", "float64")),
    "devices": (X, Y.to("meta"), ValueError, ("x and y", "one device", "cpu", "meta")),
    "integers": (X.long(), Y.long(), TypeError, ("x must be float16", "got torch.int64")),
    "booleans": (X, Y > 0, TypeError, ("y must be float16", "got torch.bool")),
    "complex": (X.cfloat(), Y.cfloat(), TypeError, ("x must be float16", "got torch.complex64")),
    "no points": (X, Y[:0], ValueError, ("y must not be empty", "[0, 3]")),
    "no width": (X[:, :0], Y[:, :0], ValueError, ("x must not be empty", "[5, 0]")),
    "sparse": (X, Y.to_sparse(), TypeError, ("y must be a dense tensor", "sparse_coo")),
}


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("name", POINTS)
def test_points(name: str, estimator: str) -> None:
    x, y, error, parts = POINTS[name]
    refused(error, parts, lambda: fm.mmd2(x, y, estimator=estimator))
    refused(error, parts, lambda: fm.MMDLoss(fm.Energy(), estimator)(x, y))


def test_one_point_has_no_unbiased_estimate() -> None:
    parts = ("must have at least 2 points", "unbiased", "[1, 3]")
    refused(ValueError, ("x", *parts), lambda: fm.mmd2(X[:1], Y, estimator="unbiased"))
    refused(ValueError, ("y", *parts), lambda: fm.mmd2(X, Y[:1], estimator="unbiased"))
    assert fm.mmd2(X[:1], Y[:1]).isfinite()


@pytest.mark.parametrize("estimator", ["linear", "Biased", "", None, 3, ["biased"]])
def test_estimator(estimator: object) -> None:
    parts = ("estimator must be 'biased' or 'unbiased'", repr(estimator))
    refused(ValueError, parts, lambda: fm.mmd2(X, Y, estimator=estimator))
    refused(ValueError, parts, lambda: fm.MMDLoss(estimator=estimator))


@pytest.mark.parametrize("kernel", ["gaussian", 1.0, fm.Gaussian, nn.Linear(3, 3)], ids=repr)
def test_kernel(kernel: object) -> None:
    parts = ("kernel must be a fastmmd.Kernel", repr(kernel))
    refused(TypeError, parts, lambda: fm.mmd2(X, Y, kernel))
    refused(TypeError, parts, lambda: fm.MMDLoss(kernel))


WEIGHTS = {
    "no tensor": ([1.0] * 5, TypeError, ("must be a torch.Tensor or None", "list")),
    "integers": (torch.ones(5).int(), TypeError, ("must be of a floating dtype", "torch.int32")),
    "number": (torch.tensor(1.0), ValueError, ("must be of shape [5]", "got shape []")),
    "too few": (torch.ones(4), ValueError, ("must be of shape [5]", "got shape [4]")),
    "rank 2": (torch.ones(5, 1), ValueError, ("must be of shape [5]", "got shape [5, 1]")),
    "device": (torch.ones(5, device="meta"), ValueError, ("on the device", "cpu", "got meta")),
    "negative": (torch.tensor([1, -1, 1, 1, 1.0]), ValueError, ("non-negative", "-1.")),
    "nan": (torch.tensor([1, NAN, 1, 1, 1.0]), ValueError, ("finite", "nan")),
    "infinite": (torch.tensor([1, INF, 1, 1, 1.0]), ValueError, ("finite", "inf")),
    "zero": (torch.zeros(5), ValueError, ("a positive sum", "0.")),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_sample_weights(name: str) -> None:
    weights, error, parts = WEIGHTS[name]
    refused(error, ("x_weights", *parts), lambda: fm.mmd2(X, Y, x_weights=weights))
    refused(error, ("y_weights", *parts), lambda: fm.mmd2(Y, X, y_weights=weights))


def test_one_weight_has_no_unbiased_estimate() -> None:
    one = torch.tensor([0, 0, 2.0, 0, 0])
    parts = ("x_weights must be", "at least two positive")
    refused(ValueError, parts, lambda: fm.mmd2(X, Y, None, "unbiased", x_weights=one))
    assert torch.allclose(
        fm.mmd2(X, Y, fm.Energy(), x_weights=one), fm.mmd2(X[2:3], Y, fm.Energy())
    )


BAD_NUMBERS = [0, -1.0, NAN, INF, -INF]


@pytest.mark.parametrize("kernel", [fm.Gaussian, fm.Laplacian])
@pytest.mark.parametrize("value", BAD_NUMBERS)
def test_bandwidth_values(kernel: type[fm.Kernel], value: float) -> None:
    parts = ("bandwidth must be positive and finite, got",)
    refused(ValueError, (*parts, repr(value)), lambda: kernel(value))
    for tensor in (torch.tensor(float(value)), torch.tensor([1.0, value])):
        refused(ValueError, parts, lambda tensor=tensor: kernel(tensor))
        refused(ValueError, parts, lambda tensor=tensor: kernel(nn.Parameter(tensor)))


@pytest.mark.parametrize("kernel", [fm.Gaussian, fm.Laplacian])
def test_bandwidth(kernel: type[fm.Kernel]) -> None:
    accepted = "a positive number, a tensor, 'mean' or 'median'"
    refused(ValueError, ("bandwidth", accepted, "'meen'"), lambda: kernel("meen"))
    refused(TypeError, ("bandwidth", accepted, "None"), lambda: kernel(None))
    refused(TypeError, ("bandwidth", accepted, "[1.0]"), lambda: kernel([1.0]))
    refused(ValueError, ("bandwidth", "shape [1, 1]"), lambda: kernel(torch.ones(1, 1)))
    refused(ValueError, ("bandwidth", "shape [0]"), lambda: kernel(torch.ones(0)))
    refused(TypeError, ("bandwidth", "torch.int64"), lambda: kernel(torch.tensor(1)))
    for extreme in (1e-200, 1e200):
        refused(ValueError, ("bandwidth", "in range", repr(extreme)), lambda e=extreme: kernel(e))


@pytest.mark.parametrize("kernel", [fm.Gaussian, fm.Laplacian])
def test_bandwidth_that_training_has_spoilt(kernel: type[fm.Kernel]) -> None:
    s = nn.Parameter(torch.tensor(1.0))
    loss = fm.MMDLoss(kernel(s))
    loss(X, Y)
    with torch.no_grad():
        s.neg_()
    refused(ValueError, ("bandwidth must be positive", "-1."), lambda: loss(X, Y))


def test_multipliers() -> None:
    refused(TypeError, ("multipliers", "2.0"), lambda: fm.Gaussian(1.0, 2.0))
    refused(TypeError, ("multipliers", "'mean'"), lambda: fm.Gaussian(1.0, "mean"))
    refused(TypeError, ("multipliers", "tensor"), lambda: fm.Gaussian(1.0, torch.ones(2)))
    refused(TypeError, ("multipliers", "'1'"), lambda: fm.Gaussian(1.0, (1, "1")))
    refused(ValueError, ("multipliers", "at least one"), lambda: fm.Gaussian(1.0, ()))
    for value in BAD_NUMBERS:
        refused(ValueError, ("multipliers", repr(value)), lambda v=value: fm.Gaussian(1.0, (1, v)))


def test_kernel_weights() -> None:
    for make in (lambda w: fm.Gaussian(1.0, (1, 2), weights=w), two_laplacians):
        refused(TypeError, ("weights", "2.0"), lambda make=make: make(2.0))
        refused(TypeError, ("weights", "'11'"), lambda make=make: make("11"))
        refused(TypeError, ("weights", "torch.int64"), lambda make=make: make(torch.ones(2).long()))
        refused(ValueError, ("weights", "2", "got 3"), lambda make=make: make((1, 2, 3)))
        refused(ValueError, ("weights", "[2]", "[3]"), lambda make=make: make(torch.ones(3)))
        refused(ValueError, ("weights", "[2]", "[1, 2]"), lambda make=make: make(torch.ones(1, 2)))
        for bad in ([1, -1.0], [1, NAN], [INF, 1], [0, 0.0]):
            parts = ("weights must be non-negative, finite and not all zero, got",)
            refused(ValueError, parts, lambda make=make, bad=bad: make(bad))
            refused(ValueError, parts, lambda make=make, bad=bad: make(torch.tensor(bad)))


def two_laplacians(weights: object) -> fm.Kernel:
    return fm.Laplacian(torch.tensor([1.0, 2.0]), weights=weights)


def test_kernel_weights_that_training_has_spoilt() -> None:
    w = nn.Parameter(torch.ones(2))
    loss = fm.MMDLoss(fm.Gaussian(1.0, (1, 2), weights=w))
    loss(X, Y)
    with torch.no_grad():
        w[1] = NAN
    refused(ValueError, ("weights must be non-negative", "nan"), lambda: loss(X, Y))


def test_factor() -> None:
    for value in BAD_NUMBERS:
        refused(ValueError, ("factor", repr(value)), lambda v=value: v * fm.Energy())
        tensor = torch.tensor(float(value))
        refused(ValueError, ("factor", "positive"), lambda t=tensor: t * fm.Energy())
    refused(ValueError, ("factor", "[2]"), lambda: torch.ones(2) * fm.Energy())
    refused(TypeError, ("factor", "int64"), lambda: torch.tensor(2) * fm.Energy())
    refused(TypeError, ("factor", "'2'"), lambda: fm.Scaled(fm.Energy(), "2"))
    refused(TypeError, ("kernel", "3"), lambda: fm.Scaled(3, 2.0))


def test_sum() -> None:
    refused(ValueError, ("kernels", "got none"), lambda: fm.Sum())
    refused(TypeError, ("kernels", "'energy'"), lambda: fm.Sum(fm.Energy(), "energy"))


@pytest.mark.parametrize("bad", [NAN, INF])
def test_bad_data_is_no_error(bad: float) -> None:
    x: Tensor = X.clone()
    x[2, 1] = bad
    assert fm.mmd2(x, Y).isnan()
