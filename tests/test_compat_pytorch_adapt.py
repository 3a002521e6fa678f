from __future__ import annotations

import math

import originals
import pytest
import torch
import torch.nn.functional as F
from originals import check, features
from torch import Tensor, nn

from fastmmd import ops
from fastmmd.compat.pytorch_adapt import MMDBatchedLoss, MMDLoss, get_kernel_scales

DTYPES = (torch.float32, torch.float64)
SCALES = {"one": 1, "half": 0.5, "three": torch.tensor([0.3, 1.0, 5.0]), "33": get_kernel_scales()}


class LpDistance:
    """What ours is told of pytorch-metric-learning's distance of this name."""

    is_inverted = False

    def __init__(self, normalize_embeddings: bool = True, p: int = 2, power: int = 1) -> None:
        self.normalize_embeddings, self.p, self.power = normalize_embeddings, p, power

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        if self.normalize_embeddings:
            x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
        return (
            torch.cdist(x, y, p=self.p, compute_mode="donot_use_mm_for_euclid_dist") ** self.power
        )


def foreign(x: Tensor, y: Tensor) -> Tensor:
    """The default distance, but not known as such."""
    return (x.unsqueeze(1) - y).square().sum(-1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("kind", ["linear", "quadratic"])
@pytest.mark.parametrize("scales", SCALES)
def test_mmd(scales: str, kind: str, corrected: bool, dtype: torch.dtype) -> None:
    loss = MMDLoss(SCALES[scales], kind, corrected=corrected)
    matrices = MMDLoss(SCALES[scales], kind, foreign, corrected=corrected)
    check(
        lambda x, y: loss(x[0], y[0]),
        originals.pytorch_adapt(SCALES[scales], kind, corrected=corrected),
        features(13, 13),  # odd: the last point has no partner in the linear form
        dtype,
        [lambda x, y: matrices(x[0], y[0])] if dtype == torch.float64 else [],
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("kind", ["linear", "quadratic"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_joint(layers: int, kind: str, corrected: bool, dtype: torch.dtype) -> None:
    """Each layer with a median of its own, and the mean over its scales."""
    loss = MMDLoss(SCALES["three"], kind, corrected=corrected)
    matrices = MMDLoss(SCALES["three"], kind, foreign, corrected=corrected)
    check(
        loss,
        originals.pytorch_adapt(SCALES["three"], kind, corrected=corrected),
        features(12, 12, (6, 3, 4)[:layers]),
        dtype,
        [matrices] if dtype == torch.float64 else [],
    )


@pytest.mark.parametrize("kind", ["linear", "quadratic"])
@pytest.mark.parametrize("dist_func", [None, foreign])
def test_bandwidth(kind: str, dist_func: object) -> None:
    loss = MMDLoss(SCALES["three"], kind, dist_func, bandwidth=3.0)
    original = originals.pytorch_adapt(SCALES["three"], kind, bandwidth=3.0)
    check(loss, original, features(12, 12, (6, 3)), torch.float64)


@pytest.mark.parametrize(("kind", "corrected"), [("quadratic", False), ("linear", True)])
def test_batches_of_two_sizes(kind: str, corrected: bool) -> None:
    loss = MMDLoss(SCALES["three"], kind, corrected=corrected)
    original = originals.pytorch_adapt(SCALES["three"], kind, corrected=corrected)
    check(loss, original, features(9, 14, (6, 3)), torch.float64)


@pytest.mark.parametrize("bandwidth", [None, 2.5])
@pytest.mark.parametrize("kind", ["linear", "quadratic"])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("normalize", [False, True])
def test_known_distances(normalize: bool, power: int, kind: str, bandwidth: float | None) -> None:
    dist_func = LpDistance(normalize, power=power)
    ours = MMDLoss(SCALES["three"], kind, dist_func, bandwidth)
    known = MMDLoss(SCALES["three"], kind, lambda x, y: dist_func(x, y), bandwidth)
    original = originals.pytorch_adapt(SCALES["three"], kind, power, bandwidth)

    def normalized(x: list[Tensor], y: list[Tensor], distances: object) -> originals.Pairs:
        if normalize:
            x, y = ([F.normalize(t, dim=1) for t in layers] for layers in (x, y))
        return original(x, y, distances)

    # The direction of a point is not what it is about another centre: no plain form to compare.
    x, y = features(12, 12)(0, torch.float64)
    truth = originals.differentiate(lambda a, b: normalized(a, b, originals.direct).value(), x, y)
    for loss in (ours, known):
        torch.testing.assert_close(originals.differentiate(loss, x, y), truth)


def test_known_distances_make_no_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = (t[0] for t in features(6, 6)(0, torch.float32))
    called = []
    monkeypatch.setattr(LpDistance, "__call__", lambda *_: called.append(1) or torch.ones(6, 6))
    MMDLoss(dist_func=LpDistance())(x, y)
    assert not called
    MMDLoss(dist_func=LpDistance(p=1))(x, y)
    inverted = LpDistance()
    inverted.is_inverted = True
    MMDLoss(dist_func=inverted)(x, y)
    assert len(called) == 6


@pytest.mark.parametrize("block", [4, 5, 12, 100])
@pytest.mark.parametrize("corrected", [False, True])
def test_batched(block: int, corrected: bool) -> None:
    """Beyond a block the bandwidth is the median of the medians of blocks of rows."""
    options = {"kernel_scales": SCALES["three"], "mmd_type": "quadratic", "corrected": corrected}
    loss = MMDBatchedLoss(batch_size=block, **options)
    matrices = MMDBatchedLoss(batch_size=block, dist_func=foreign, **options)
    check(
        lambda x, y: loss(x[0], y[0]),
        originals.pytorch_adapt(SCALES["three"], "quadratic", corrected=corrected, block=block),
        features(12, 9),
        torch.float64,
        [lambda x, y: matrices(x[0], y[0])],
    )


def test_scales_of_the_original() -> None:
    scales = get_kernel_scales()
    assert scales.shape == (33,)
    torch.testing.assert_close(scales, 2.0 ** torch.arange(-8, 8.5, 0.5, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["linear", "quadratic"])
def test_gradient_of_the_scales(kind: str) -> None:
    x, y = features(6, 6)(0, torch.float64)
    scales = nn.Parameter(torch.tensor([0.5, 2.0], dtype=torch.float64))
    assert dict(MMDLoss(scales).named_parameters())
    (ours,) = torch.autograd.grad(MMDLoss(scales, kind)(x, y), scales)
    (theirs,) = torch.autograd.grad(MMDLoss(scales, kind, foreign)(x, y), scales)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", ["linear", "quadratic"])
def test_one_call(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, original = [], ops.mmd2
    monkeypatch.setattr(ops, "mmd2", lambda *args: calls.append(args) or original(*args))
    MMDLoss(get_kernel_scales(), kind)(*features(6, 6, (4, 3))(0, torch.float32))
    assert len(calls) == 1


def test_the_median_of_the_original_sees_x_alone() -> None:
    x, y = (t[0] for t in features(12, 12)(0, torch.float64))
    assert MMDLoss()(x, 10 * y) != MMDLoss()(10 * y, x)
    corrected = MMDLoss(corrected=True)
    torch.testing.assert_close(corrected(x, 10 * y), corrected(10 * y, x))


@pytest.mark.parametrize("kind", ["linear", "quadratic"])
@pytest.mark.parametrize("size", [2, 5])
def test_degenerate_data_is_no_nan(kind: str, size: int) -> None:
    """Of two points half of the distances are 0, and so is their lower median."""
    x = torch.ones(size, 3) if size > 2 else torch.randn(size, 3)
    y = x.clone().requires_grad_()
    value = MMDLoss(mmd_type=kind)(x, y)
    value.backward()
    assert value.abs() <= 8 * torch.finfo(torch.float32).eps * 4
    assert not y.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_give_single_losses(dtype: torch.dtype) -> None:
    x, y = (t[0] for t in features(8, 8)(0, dtype))
    value = MMDLoss(get_kernel_scales())(x.requires_grad_(), y)
    assert value.dtype == torch.float32
    value.backward()
    assert x.grad.dtype == dtype


X, Y = torch.randn(4, 3), torch.randn(4, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: MMDLoss(mmd_type="cubic"), ValueError, "mmd_type must be 'linear' or 'quadratic'"),
        (lambda: MMDLoss(0), ValueError, "kernel_scales must be positive"),
        (lambda: MMDLoss("1"), TypeError, "kernel_scales must be a positive number"),
        (lambda: MMDLoss(torch.tensor([1.0, -1.0])), ValueError, "kernel_scales must be positive"),
        (lambda: MMDLoss(torch.tensor([math.nan])), ValueError, "kernel_scales must be positive"),
        (lambda: MMDLoss(torch.ones(2, 2)), ValueError, r"kernel_scales must be a number or of"),
        (lambda: MMDLoss(torch.tensor([1, 2])), TypeError, "kernel_scales must be of a floating"),
        (lambda: MMDLoss(dist_func=3), TypeError, "dist_func must be a function"),
        (lambda: MMDLoss(bandwidth=0.0), ValueError, "bandwidth must be positive"),
        (lambda: get_kernel_scales(num_kernels=0), ValueError, "num_kernels must be"),
        (lambda: MMDLoss()(X, Y[:3]), ValueError, "x and y must have as many points"),
        (lambda: MMDLoss()([X], [Y[:3]]), ValueError, "x and y must have as many points"),
        (lambda: MMDLoss()(X, [Y]), TypeError, "x must be a list or tuple"),
        (lambda: MMDLoss()([X, X], [Y]), ValueError, "x has 2, y has 1"),
        (lambda: MMDLoss()([], []), ValueError, "x has 0, y has 0"),
        (lambda: MMDLoss()([X, X[:3]], [Y, Y]), ValueError, r"x\[1\] and x\[0\] must have as many"),
        (lambda: MMDLoss()([X], [3]), TypeError, r"y\[0\] must be a torch.Tensor"),
        (lambda: MMDLoss()(X[:1], Y[:1]), ValueError, "x must have at least 2 points"),
        (lambda: MMDLoss()(X, Y[:, :2]), ValueError, "x and y must be of one width"),
        (lambda: MMDLoss()(X.long(), Y.long()), TypeError, "x must be float16"),
        (lambda: MMDLoss(dist_func=lambda x, y: x)(X, Y), ValueError, "dist_func must return"),
        (lambda: MMDBatchedLoss(), ValueError, "mmd_type must be 'quadratic', got 'linear'"),
        (
            lambda: MMDBatchedLoss(0, mmd_type="quadratic"),
            ValueError,
            "batch_size must be a whole number",
        ),
        (lambda: MMDBatchedLoss(mmd_type="quadratic")([X], [Y]), TypeError, "x must be a torch.T"),
    ],
)
def test_bad_input(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
