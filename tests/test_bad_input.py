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
    "rank 4": (X[None, None], Y, ValueError, ("x must be of rank 2", "got shape [1, 1, 5, 3]")),
    "ranks": (X[None], Y, ValueError, ("x and y", "one rank", "[1, 5, 3]", "[4, 3]")),
    "batches": (X.expand(2, 5, 3), Y.expand(3, 4, 3), ValueError, ("batches of one size", "[3, 4")),
    "no batch": (X.expand(0, 5, 3), Y.expand(0, 4, 3), ValueError, ("not be empty", "[0, 5, 3]")),
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


ESTIMATORS = ("biased", "unbiased", "linear", "block", "incomplete")
LABELS, TARGETS = torch.tensor([0, 1, 2, 0, 1]), torch.eye(3)[[0, 1, 2, 2]]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", POINTS)
def test_points(name: str, estimator: str) -> None:
    x, y, error, parts = POINTS[name]
    refused(error, parts, lambda: fm.mmd2(x, y, estimator=estimator))
    refused(error, parts, lambda: fm.MMDLoss(fm.Energy(), estimator)(x, y))
    refused(error, parts, lambda: fm.energy_distance(x, y, estimator))


@pytest.mark.parametrize("name", POINTS)
def test_points_of_other_functions(name: str) -> None:
    x, y, error, parts = POINTS[name]
    for call in (
        lambda: fm.coral(x, y),
        lambda: fm.local_mmd2(x, y, LABELS, TARGETS, 3),
        lambda: fm.ClassConditionalMMDLoss(3)(x, y, LABELS, TARGETS),
        lambda: fm.kernel_sum(x, y, torch.ones(4)),
        lambda: fm.witness(x, y, X),
        lambda: fm.contributions(x, y),
        lambda: fm.mmd2_variance(x, y),
        lambda: fm.power_criterion(x, y),
    ):
        refused(error, parts, call)


def test_no_batches() -> None:
    x, y = X[None], Y[None]
    for call in (
        lambda: fm.kernel_sum(x, y, torch.ones(1, 4)),
        lambda: fm.witness(x, y, x),
        lambda: fm.contributions(x, y),
        lambda: fm.mmd2_variance(x, y),
    ):
        refused(ValueError, ("x must be of rank 2, [points, width], got shape [1, 5, 3]",), call)


@pytest.mark.parametrize("estimator", ESTIMATORS[1:])
def test_one_point_has_one_estimate(estimator: str) -> None:
    parts = ("must have at least 2 points", estimator, "[1, 3]")
    refused(ValueError, ("x", *parts), lambda: fm.mmd2(X[:1], Y, estimator=estimator))
    refused(ValueError, ("y", *parts), lambda: fm.mmd2(X, Y[:1], estimator=estimator))
    assert fm.mmd2(X[:1], Y[:1]).isfinite()


@pytest.mark.parametrize("estimator", ["quadratic", "Biased", "", None, 3, ["biased"]])
def test_estimator(estimator: object) -> None:
    names = "'biased', 'unbiased', 'linear', 'block' or 'incomplete'"
    parts = (f"estimator must be {names}", repr(estimator))
    refused(ValueError, parts, lambda: fm.mmd2(X, Y, estimator=estimator))
    refused(ValueError, parts, lambda: fm.energy_distance(X, Y, estimator))
    refused(ValueError, parts, lambda: fm.joint_mmd2((X, X), (Y, Y), estimator=estimator))
    for loss in (fm.MMDLoss, fm.JointMMDLoss, fm.EnergyDistanceLoss):
        refused(ValueError, parts, lambda loss=loss: loss(estimator=estimator))


@pytest.mark.parametrize("estimator", ESTIMATORS[2:])
def test_estimators_without_weights(estimator: str) -> None:
    parts = ("must be None", repr(estimator), "takes no weights", "[5]")
    p = torch.ones(5)
    refused(ValueError, ("x_weights", *parts), lambda: fm.mmd2(X, Y, None, estimator, p))
    refused(ValueError, ("y_weights", *parts), lambda: fm.mmd2(Y, X, None, estimator, None, p))
    joint = fm.JointMMDLoss(None, estimator)
    refused(ValueError, ("x_weights", *parts), lambda: joint((X, X), (Y, Y), p))


SIZES = {  # name: the estimator it is for, what is out of range for the four points of Y
    "block_size": ("block", (5, 100), (1, 0, -2)),
    "num_superdiagonals": ("incomplete", (4, 100), (0, -1)),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name: str) -> None:
    owner, beyond, below = SIZES[name]
    for value in beyond:
        parts = (f"{name} must be from", "min(n, m)", f"got {value}")
        refused(ValueError, parts, lambda v=value: fm.mmd2(X, Y, None, owner, **{name: v}))
        loss = fm.MMDLoss(None, owner, **{name: value})
        refused(ValueError, parts, lambda loss=loss: loss(X, Y))
        joint = fm.JointMMDLoss(None, owner, **{name: value})
        refused(ValueError, parts, lambda joint=joint: joint((X, X), (Y, Y)))
    for value in below:
        parts = (f"{name} must be at least", f"got {value}")
        refused(ValueError, parts, lambda v=value: fm.mmd2(X, Y, None, owner, **{name: v}))
        refused(ValueError, parts, lambda v=value: fm.MMDLoss(None, owner, **{name: v}))
    for value in (2.0, "2", True, torch.tensor(2)):
        parts = (f"{name} must be an integer or None", repr(value))
        refused(TypeError, parts, lambda v=value: fm.mmd2(X, Y, None, owner, **{name: v}))
        refused(TypeError, parts, lambda v=value: fm.MMDLoss(None, owner, **{name: v}))
    for estimator in set(ESTIMATORS) - {owner}:
        parts = (f"{name} is for estimator={owner!r} only", "got 2")
        refused(ValueError, parts, lambda e=estimator: fm.mmd2(X, Y, None, e, **{name: 2}))
        refused(ValueError, parts, lambda e=estimator: fm.MMDLoss(None, e, **{name: 2}))


@pytest.mark.parametrize("kernel", ["gaussian", 1.0, fm.Gaussian, nn.Linear(3, 3)], ids=repr)
def test_kernel(kernel: object) -> None:
    parts = ("kernel must be a fastmmd.Kernel", repr(kernel))
    refused(TypeError, parts, lambda: fm.mmd2(X, Y, kernel))
    refused(TypeError, parts, lambda: fm.MMDLoss(kernel))
    refused(TypeError, parts, lambda: fm.LocalMMDLoss(3, kernel))
    refused(TypeError, parts, lambda: fm.ClassConditionalMMDLoss(3, kernel))
    refused(TypeError, parts, lambda: fm.kernel_sum(X, Y, torch.ones(4), kernel))
    refused(TypeError, parts, lambda: fm.witness(X, Y, X, kernel))
    refused(TypeError, parts, lambda: fm.contributions(X, Y, kernel))
    refused(TypeError, parts, lambda: fm.mmd2_variance(X, Y, kernel))
    refused(TypeError, parts, lambda: fm.power_criterion(X, Y, kernel))


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
    refused(error, ("x_weights", *parts), lambda: fm.witness(X, Y, Y, x_weights=weights))
    refused(error, ("y_weights", *parts), lambda: fm.contributions(Y, X, y_weights=weights))
    joint, local = fm.JointMMDLoss(), fm.LocalMMDLoss(3)
    refused(error, ("x_weights", *parts), lambda: joint((X, X), (Y, Y), weights))
    refused(error, ("x_weights", *parts), lambda: local(X, Y, LABELS, TARGETS, weights))


def test_sample_weights_of_a_batch() -> None:
    x, y = X.expand(2, 5, 3), Y.expand(2, 4, 3)
    parts = ("x_weights must be of shape [2, 5]", "got shape [5]")
    refused(ValueError, parts, lambda: fm.mmd2(x, y, x_weights=torch.ones(5)))
    good = torch.tensor([[1.0, 0, 0, 0, 1], [2, 0, 1, 0, 0]])
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert fm.mmd2(x, y, None, "unbiased", x_weights=good.to(dtype)).isfinite().all()
        for value in (0, -1, NAN, INF):
            bad = torch.ones(2, 5, dtype=dtype)
            bad[1, 2:] = value
            bad[1, :2] = 0
            parts = ("x_weights[1] must be", "a positive sum", "got tensor([", str(value))
            refused(ValueError, parts, lambda bad=bad: fm.mmd2(x, y, x_weights=bad))
    good[0, 0] = 0
    parts = ("x_weights[0] must be", "at least two positive")
    refused(ValueError, parts, lambda: fm.mmd2(x, y, None, "unbiased", x_weights=good))


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
    accepted = "a positive number, a tensor, 'mean', 'median', a Learnable or a RunningBandwidth"
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


LAYERS = {
    "tensors": (X, Y, TypeError, ("x must be a sequence of tensors", "Tensor")),
    "no tensor": (([1.0], X), (Y, Y), TypeError, ("x[0] must be a torch.Tensor", "list")),
    "one": ((X,), (Y,), ValueError, ("x must hold at least two layers", "got 1")),
    "none": ((), (), ValueError, ("x must hold at least two layers", "got 0")),
    "numbers": ((X, X), (Y, Y, Y), ValueError, ("x and y", "as many layers", "2", "3")),
    "rank": ((X, X[0]), (Y, Y), ValueError, ("x[1] must be of rank 2", "[3]")),
    "widths": ((X, X), (Y, Y[:, :2]), ValueError, ("x[1] and y[1]", "one width", "[4, 2]")),
    "dtypes": ((X, X), (Y, Y.double()), TypeError, ("x[1] and y[1]", "one dtype")),
    "rows of x": (
        (X, X[:4]),
        (Y, Y),
        ValueError,
        ("x must have the same points", "x[1]", "[4, 3]"),
    ),
    "rows of y": (
        (X, X),
        (Y, Y[:3]),
        ValueError,
        ("y must have the same points", "y[1]", "[3, 3]"),
    ),
    "devices": (
        (X, X.to("meta")),
        (Y, Y.to("meta")),
        ValueError,
        ("x must be on one device", "x[1] on meta"),
    ),
    "empty": ((X, X), (Y, Y[:, :0]), ValueError, ("y[1] must not be empty", "[4, 0]")),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    x, y, error, parts = LAYERS[name]
    refused(error, parts, lambda: fm.joint_mmd2(x, y))
    refused(error, parts, lambda: fm.JointMMDLoss()(x, y))


def test_kernels_of_layers() -> None:
    k = fm.Energy()
    for make in (fm.JointMMDLoss, lambda kernels: fm.joint_mmd2((X, X), (Y, Y), kernels)):
        parts = ("kernels must be a sequence of kernels", "Energy()")
        refused(TypeError, parts, lambda make=make: make(k))
        refused(TypeError, ("kernels must hold", "'mean'"), lambda make=make: make([k, "mean"]))
        refused(ValueError, ("kernels", "at least two", "got 1"), lambda make=make: make([k]))
        refused(ValueError, ("kernels", "at least two", "got 0"), lambda make=make: make([]))
    parts = ("kernels must hold one for each of 2 layers", "got 3")
    refused(ValueError, parts, lambda: fm.joint_mmd2((X, X), (Y, Y), [k, k, k]))
    refused(ValueError, parts, lambda: fm.JointMMDLoss([k, k, k])((X, X), (Y, Y)))


def changed(tensor: Tensor, index: tuple[int, ...] | int, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


CLASSES = {
    "no tensor": ([0] * 5, TypeError, ("must be a torch.Tensor", "list")),
    "booleans": (LABELS > 0, TypeError, ("integer labels or floating", "torch.bool")),
    "complex": (LABELS.cfloat(), TypeError, ("integer labels or floating", "torch.complex64")),
    "too few": (LABELS[:4], ValueError, ("of shape [5] as labels", "[4]")),
    "rank": (LABELS[:, None], ValueError, ("of shape [5] as labels", "[5, 1]")),
    "floating labels": (LABELS.float(), ValueError, ("of shape [5, 3] as probabilities", "[5]")),
    "columns": (torch.ones(5, 2) / 2, ValueError, ("of shape [5, 3] as probabilities", "[5, 2]")),
    "too large": (changed(LABELS, 1, 3), ValueError, ("from 0 to 2", "from 0 to 3")),
    "negative": (changed(LABELS, 1, -1), ValueError, ("from 0 to 2", "from -1 to 2")),
    "device": (LABELS.to("meta"), ValueError, ("on the device of its points", "cpu", "meta")),
    "negative probability": (
        torch.tensor([[-0.2, 0.7, 0.5]] * 5),
        ValueError,
        ("none negative or NaN", "-0.2"),
    ),
    "nan": (changed(torch.eye(3)[LABELS], (2, 1), NAN), ValueError, ("negative or NaN", "nan")),
    "sum": (torch.full((5, 3), 0.3), ValueError, ("sum is 1 in each row", "off by 0.1")),
    "logits": (torch.full((5, 3), 4.0), ValueError, ("sum is 1", "off by 11", "softmax")),
    "infinite": (torch.full((5, 3), INF), ValueError, ("sum is 1", "off by inf")),
}


@pytest.mark.parametrize("function", [fm.local_mmd2, fm.class_conditional_mmd2])
@pytest.mark.parametrize("name", CLASSES)
def test_classes(name: str, function: Callable[..., Tensor]) -> None:
    classes, error, parts = CLASSES[name]
    refused(error, ("y_source", *parts), lambda: function(X, Y, classes, TARGETS, 3))
    refused(error, ("p_target", *parts), lambda: function(Y, X, TARGETS, classes, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_probabilities_may_be_rounded(dtype: torch.dtype) -> None:
    p = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)).softmax(1).to(dtype)
    assert fm.local_mmd2(X, Y, LABELS, p, 1000).isfinite()


@pytest.mark.parametrize("loss", [fm.LocalMMDLoss, fm.ClassConditionalMMDLoss])
def test_number_of_classes(loss: type[nn.Module]) -> None:
    refused(TypeError, ("num_classes must be an integer", "3.0"), lambda: loss(3.0))
    refused(TypeError, ("num_classes must be an integer", "None"), lambda: loss(None))
    for value in (1, 0, -1):
        refused(ValueError, ("num_classes must be 2 or more", str(value)), lambda v=value: loss(v))
    parts = ("presence must be 'argmax' or 'mass'", "'softmax'")
    refused(ValueError, parts, lambda: loss(3, presence="softmax"))
    call = lambda: fm.local_mmd2(X, Y, LABELS, TARGETS, 3, presence="softmax")  # noqa: E731
    refused(ValueError, parts, call)


def test_scaling_of_coral() -> None:
    accepted = "'deep_coral', 'mean', 'frobenius' or a positive number"
    for make in (fm.CORALLoss, lambda *a: fm.coral(X, Y, *a)):
        for value in ("sum", 0, -1.0, NAN, INF):
            parts = (f"scaling must be {accepted}", repr(value))
            refused(ValueError, parts, lambda make=make, v=value: make(v))
        for value in (None, True, [1.0]):
            parts = (f"scaling must be {accepted}", repr(value))
            refused(TypeError, parts, lambda make=make, v=value: make(v))
        for value in (-1.0, NAN, INF):
            parts = ("mean_scaling must be finite and not negative", repr(value))
            refused(ValueError, parts, lambda make=make, v=value: make("mean", v))
        parts = ("mean_scaling must be a number", "'1'")
        refused(TypeError, parts, lambda make=make: make("mean", "1"))
    parts = ("at least 2 points for a covariance", "[1, 3]")
    refused(ValueError, ("x", *parts), lambda: fm.coral(X[:1], Y))
    refused(ValueError, ("y", *parts), lambda: fm.coral(X, Y[:1]))


def test_columns_of_a_kernel_sum() -> None:
    refused(TypeError, ("v must be a torch.Tensor", "list"), lambda: fm.kernel_sum(X, Y, [1.0] * 4))
    for v in (torch.ones(4).int(), torch.ones(4).cfloat()):
        parts = ("v must be of a floating dtype", str(v.dtype))
        refused(TypeError, parts, lambda v=v: fm.kernel_sum(X, Y, v))
    for shape in ([5], [3, 4], [4, 1, 1], [4, 0], []):
        parts = ("v must be of shape [4] or [4, p]", f"got shape {shape}")
        refused(ValueError, parts, lambda s=shape: fm.kernel_sum(X, Y, torch.ones(s)))
    parts = ("v must be on the device of x", "cpu", "meta")
    refused(ValueError, parts, lambda: fm.kernel_sum(X, Y, torch.ones(4, device="meta")))


def test_points_of_a_witness() -> None:
    refused(TypeError, ("at must be a torch.Tensor",), lambda: fm.witness(X, Y, [[1.0]]))
    refused(ValueError, ("at must be of rank 2",), lambda: fm.witness(X, Y, X[0]))
    refused(ValueError, ("x and at", "one rank"), lambda: fm.witness(X, Y, X[None]))
    refused(ValueError, ("x and at", "one width"), lambda: fm.witness(X, Y, X[:, :2]))
    refused(TypeError, ("x and at", "one dtype"), lambda: fm.witness(X, Y, X.double()))
    refused(ValueError, ("x and at", "one device"), lambda: fm.witness(X, Y, X.to("meta")))


def test_power() -> None:
    for function in (fm.mmd2_variance, fm.power_criterion):
        parts = ("must have at least 4 points", "variance", "[3, 3]")
        refused(ValueError, ("x", *parts), lambda f=function: f(X[:3], Y))
        refused(ValueError, ("y", *parts), lambda f=function: f(X, Y[:3]))
    for value in (0, -1e-8, NAN, INF):
        parts = ("regularizer must be positive and finite", repr(value))
        refused(ValueError, parts, lambda v=value: fm.power_criterion(X, Y, regularizer=v))
    for value in (None, "1", True, torch.tensor(1.0)):
        parts = ("regularizer must be a positive number", repr(value))
        refused(TypeError, parts, lambda v=value: fm.power_criterion(X, Y, regularizer=v))


@pytest.mark.parametrize("bad", [NAN, INF])
def test_bad_data_is_no_error(bad: float) -> None:
    x: Tensor = X.clone()
    x[2, 1] = bad
    assert fm.mmd2(x, Y).isnan()
