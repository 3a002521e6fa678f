from __future__ import annotations

import math
import subprocess
import sys
from importlib.util import find_spec

import geomloss
import originals
import pytest
import torch
from originals import check, features
from torch import Tensor

from fastmmd.compat.geomloss import SamplesLoss

DTYPES = (torch.float32, torch.float64)
LOSSES = ("gaussian", "laplacian", "energy")
LEAST = 1e-4


def weights(size: int, seed: int, dtype: torch.dtype, signed: bool = False) -> Tensor:
    """Weights that do not sum to 1."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.rand(size, generator=generator, dtype=torch.float64) / size * 3
    return (w - 1 / size if signed else w).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_points(loss: str, corrected: bool, dtype: torch.dtype) -> None:
    ours = SamplesLoss(loss, blur=1.5, corrected=corrected)
    theirs = geomloss.SamplesLoss(loss, blur=1.5, backend="tensorized")
    # In float32 the |x|^2 - |x|^2 of its diagonals is more than the square of its least distance.
    comparable = dtype == torch.float64 and not corrected
    check(
        lambda x, y: ours(x[0], y[0]),
        originals.geomloss(loss, 1.5, least=0.0 if corrected else LEAST),
        features(12, 9),
        dtype,
        library=(lambda x, y: theirs(x[0], y[0])) if comparable else None,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_weights_are_taken_as_they_are(loss: str, signed: bool, dtype: torch.dtype) -> None:
    a, b = weights(12, 1, dtype, signed), weights(9, 2, dtype, signed)
    assert abs(a.sum() - 1) > 0.1
    ours = SamplesLoss(loss, blur=1.5)
    theirs = geomloss.SamplesLoss(loss, blur=1.5, backend="tensorized")
    check(
        lambda x, y: ours(a, x[0], b, y[0]),
        originals.geomloss(loss, 1.5, a, b, LEAST),
        features(12, 9),
        dtype,
        library=(lambda x, y: theirs(a, x[0], b, y[0])) if dtype == torch.float64 else None,
    )


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_of_the_weights(loss: str, corrected: bool) -> None:
    x, y = (t[0] for t in features(12, 9)(0, torch.float64))
    tensors = [
        t.requires_grad_()
        for t in (weights(12, 1, torch.float64), x, weights(9, 2, torch.float64), y)
    ]
    if corrected:
        assert torch.autograd.gradcheck(SamplesLoss(loss, blur=1.5, corrected=True), tensors)
        return
    ours = torch.autograd.grad(SamplesLoss(loss, blur=1.5)(*tensors), tensors)
    theirs = torch.autograd.grad(geomloss.SamplesLoss(loss, blur=1.5)(*tensors), tensors)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_batches(loss: str, weighted: bool) -> None:
    made = [features(12, 9)(seed, torch.float64) for seed in range(3)]
    x, y = (torch.stack([m[side][0] for m in made]).requires_grad_() for side in (0, 1))
    arguments = [x, y]
    if weighted:
        a, b = (torch.stack([weights(k, s, torch.float64) for s in range(3)]) for k in (12, 9))
        arguments = [a.requires_grad_(), x, b.requires_grad_(), y]
    incoming = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    ours = SamplesLoss(loss, blur=1.5)(*arguments)
    theirs = geomloss.SamplesLoss(loss, blur=1.5)(*arguments)
    assert ours.shape == (3,)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, arguments, incoming),
        torch.autograd.grad(theirs, arguments, incoming),
    )


def test_weights_of_rank_two() -> None:
    x, y = (t[0] for t in features(12, 9)(0, torch.float64))
    a, b = weights(12, 1, torch.float64), weights(9, 2, torch.float64)
    ours = SamplesLoss("energy")
    assert ours(a[:, None], x, b[:, None], y) == ours(a, x, b, y)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_potentials(loss: str, weighted: bool, batch: bool) -> None:
    x, y = (t[0] for t in features(12, 9)(0, torch.float64))
    a, b = weights(12, 1, torch.float64), weights(9, 2, torch.float64)
    if batch:
        a, x, b, y = (torch.stack([t, 2 * t]) for t in (a, x, b, y))
    arguments = (a, x, b, y) if weighted else (x, y)
    ours = SamplesLoss(loss, blur=1.5, potentials=True)(*arguments)
    theirs = geomloss.SamplesLoss(loss, blur=1.5, potentials=True)(*arguments)
    torch.testing.assert_close(ours, theirs)  # shapes too
    corrected = SamplesLoss(loss, blur=1.5, potentials=True, corrected=True)(*arguments)
    assert corrected[0].shape == a.shape


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_samples(loss: str) -> None:
    x = features(12, 9)(0, torch.float64)[0][0]
    assert SamplesLoss(loss, corrected=True)(x, x.clone()).abs() <= 1e-15
    assert SamplesLoss(loss, backend="online")(x, x.clone()).abs() <= 1e-15
    # The least distance counts for the diagonals alone.
    excess = {"gaussian": 0.0, "laplacian": math.expm1(-LEAST), "energy": -LEAST}[loss]
    value = float(SamplesLoss(loss)(x, 10 * x) - SamplesLoss(loss, corrected=True)(x, 10 * x))
    assert value == pytest.approx(excess / 12, abs=1e-14)


@pytest.mark.skipif(not find_spec("pykeops"), reason="pykeops is not installed")
def test_online_backend() -> None:
    """KeOps compiles its formulas first, and prints: in a process of its own."""
    code = """
import torch, geomloss
from originals import features
from fastmmd.compat.geomloss import SamplesLoss
x, y = (t[0].requires_grad_() for t in features(30, 20)(0, torch.float64))
for loss in ("gaussian", "laplacian"):
    classes = SamplesLoss, geomloss.SamplesLoss
    values = [c(loss, blur=1.5, backend="online")(x, y) for c in classes]
    torch.testing.assert_close(*values)
    if loss == "gaussian":  # those of a root at 0 are NaN there
        torch.testing.assert_close(*(torch.autograd.grad(v, (x, y)) for v in values))
print("as expected")
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=originals.__file__.rsplit("/", 1)[0],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.stdout.endswith("as expected\n"), run.stdout + run.stderr


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_give_single_losses(dtype: torch.dtype) -> None:
    x, y = (t[0] for t in features(8, 8)(0, dtype))
    for arguments in ((x, y), (weights(8, 1, dtype), x, weights(8, 2, dtype), y)):
        value = SamplesLoss("energy")(*(t.requires_grad_() for t in arguments))
        assert value.dtype == torch.float32
        value.backward()
        assert x.grad.dtype == dtype


X, Y, A = torch.randn(4, 3), torch.randn(5, 3), torch.ones(4) / 4


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (SamplesLoss, ValueError, "loss must be .* got 'sinkhorn', which is optimal transport"),
        (lambda: SamplesLoss("hausdorff"), ValueError, "got 'hausdorff', which is optimal"),
        (lambda: SamplesLoss("rbf"), ValueError, "loss must be 'gaussian' or 'laplacian'"),
        (lambda: SamplesLoss("energy", blur=0), ValueError, "blur must be positive"),
        (lambda: SamplesLoss("energy", blur="1"), TypeError, "blur must be a positive number"),
        (lambda: SamplesLoss("energy", backend="keops"), ValueError, "backend must be 'auto'"),
        (lambda: SamplesLoss("energy", kernel=max), NotImplementedError, "kernel must be None"),
        (lambda: SamplesLoss("energy")(X), ValueError, "the arguments must be"),
        (lambda: SamplesLoss("energy")(A, A, X, A, A, X), ValueError, "cluster labels l_x and l_y"),
        (lambda: SamplesLoss("energy")(X, 3), TypeError, "y must be a torch.Tensor"),
        (lambda: SamplesLoss("energy")(X, Y[:, :2]), ValueError, "x and y must be of one width"),
        (lambda: SamplesLoss("energy")(X, Y[None]), ValueError, "x and y must be of one rank"),
        (
            lambda: SamplesLoss("energy")(X[None], torch.stack([Y, Y])),
            ValueError,
            "x and y must hold the same number of samples",
        ),
        (lambda: SamplesLoss("energy")(X[:0], Y), ValueError, "x must not be empty"),
        (lambda: SamplesLoss("energy")(A, X, A, Y), ValueError, r"b must be of shape \[5\]"),
        (lambda: SamplesLoss("energy")(1, X, A, Y), TypeError, "a must be a torch.Tensor"),
        (lambda: SamplesLoss("energy")(A.long(), X, A, X), TypeError, "a must be of a floating"),
    ],
)
def test_bad_input(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
