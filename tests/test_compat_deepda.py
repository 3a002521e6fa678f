from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import originals
import pytest
import torch
from originals import check, features

import fastmmd as fm
from fastmmd import ops
from fastmmd.compat.deepda import LMMD_loss, LMMDLoss, MMD_loss, MMDLoss

DTYPES = (torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(12, 12), (1, 1), (7, 15)])
@pytest.mark.parametrize(("mul", "num"), [(2.0, 5), (2.0, 1), (3.0, 4)])
def test_mmd(mul: float, num: int, sizes: tuple[int, int], dtype: torch.dtype) -> None:
    loss = MMDLoss(kernel_mul=mul, kernel_num=num)
    original = originals.deepda(mul, num)
    check(lambda x, y: loss(x[0], y[0]), original, features(*sizes), dtype)


@pytest.mark.parametrize(
    ("pair", "published"),
    [
        (("caltech10", "amazon"), 0.039517512),
        (("amazon", "webcam"), 0.093051252),
        (("webcam", "dslr"), 0.050461746),
    ],
)
def test_published_data(real_data: Path, pair: tuple[str, str], published: float) -> None:
    """SURF features, rows of norm 1, whole domains of unequal sizes."""
    with np.load(real_data / "office_caltech_surf.npz", allow_pickle=False) as file:
        names = [str(name) for name in file["domain_names"]]
        points = file["X"].astype(np.float64)
        domains = file["domain"]
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    x, y = (torch.from_numpy(points[domains == names.index(name)]) for name in pair)
    assert f"{float(MMDLoss()(x, y)):.9f}" == f"{published:.9f}"
    single = float(MMDLoss()(x.float(), y.float()))
    assert abs(single - published) <= 1e-6 * published  # to 6 digits


def test_defaults_are_ours() -> None:
    x, y = (t[0] for t in features(9, 9)(0, torch.float32))
    assert torch.equal(MMDLoss()(x, y), fm.mmd2(x, y))
    assert MMD_loss is MMDLoss


def test_fix_sigma_goes_unused_unless_corrected() -> None:
    x, y = (t[0] for t in features(9, 9)(0, torch.float32))
    assert torch.equal(MMDLoss(fix_sigma=3.0)(x, y), MMDLoss()(x, y))
    loss = MMDLoss(fix_sigma=3.0, corrected=True)
    original = originals.deepda(fixed=3.0)
    check(lambda x, y: loss(x[0], y[0]), original, features(9, 9), torch.float64)
    single = MMDLoss(fix_sigma=3.0, kernel_num=1, corrected=True)(x, y)
    torch.testing.assert_close(single, fm.mmd2(x, y, fm.Gaussian(math.sqrt(1.5), (1,))))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
def test_linear(dtype: torch.dtype) -> None:
    x, y = (t[0] for t in features(9, 14)(0, dtype))
    value = MMDLoss("linear")(x.requires_grad_(), y)
    expected = (x.double().mean(0) - y.double().mean(0)).square().sum()
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    value.backward()
    assert x.grad.dtype == dtype


def test_unused_arguments_are_taken() -> None:
    assert MMDLoss(num_class=31, max_iter=100).kernel_num == 5
    assert LMMDLoss(31, something=1).max_iter == 1000


def test_a_changed_attribute_counts() -> None:
    x, y = features(9, 9)(0, torch.float64)
    loss = MMDLoss()
    loss(x[0], y[0])
    loss.kernel_num = 3
    expected = originals.deepda(num=3)(x, y, originals.direct).value()
    torch.testing.assert_close(loss(x[0], y[0]), expected)


def test_degenerate_data_is_no_nan() -> None:
    x = torch.ones(5, 3, requires_grad=True)
    loss = MMDLoss()(x, torch.ones(5, 3))
    loss.backward()
    assert loss == 0
    assert not x.grad.any()


CLASSES = 4
LABELS = torch.tensor([0, 1, 1, 3, 0, 1, 0, 3, 1, 0])  # class 2 is absent from the source


def guesses(size: int) -> torch.Tensor:
    """Probabilities of which class 3 is never the most probable."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(size, CLASSES, generator=generator, dtype=torch.float64)
    logits[:, 3] -= 8
    return logits.softmax(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(10, 10), (10, 7)])
def test_local(sizes: tuple[int, int], dtype: torch.dtype) -> None:
    p = guesses(sizes[1])
    assert 3 not in p.argmax(1)
    loss = LMMD_loss(CLASSES, corrected=True)
    original = originals.deepda_local(LABELS, p.to(dtype), CLASSES)
    check(
        lambda x, y: loss.get_loss(x[0], y[0], LABELS, p.to(dtype)),
        original,
        features(*sizes),
        dtype,
    )


def test_local_of_deepda_grows_with_the_steps() -> None:
    x, y = features(10, 10)(0, torch.float64)
    p = guesses(10)
    full = originals.deepda_local(LABELS, p, CLASSES)(x, y, originals.direct).value()
    loss = LMMDLoss(CLASSES, gamma=10.0, max_iter=3)
    for step in (0, 1, 2, 3, 3):
        assert loss.curr_iter == step
        factor = 2 / (1 + math.exp(-10 * step / 3)) - 1
        assert loss.lamb() == pytest.approx(factor, abs=1e-15)
        value = loss(x[0], y[0], LABELS, p)
        assert value.shape == (1,)
        torch.testing.assert_close(value, (full * factor).reshape(1))


def test_local_corrected() -> None:
    x, y = features(10, 7)(0, torch.float64)
    p = guesses(7)
    loss = LMMDLoss(CLASSES, fix_sigma=4.0, corrected=True)
    loss.curr_iter = 500
    full = originals.deepda_local(LABELS, p, CLASSES, fixed=4.0)(x, y, originals.direct).value()
    loss.eval()
    value = loss(x[0], y[0], LABELS, p)
    assert value.shape == ()
    assert loss.curr_iter == 500
    torch.testing.assert_close(value, full * loss.lamb())
    loss.train()
    loss(x[0], y[0], LABELS, p)
    assert loss.curr_iter == 501
    x[0][0, 0] = math.nan
    assert loss(x[0], y[0], LABELS, p).isnan()


def test_nan_is_nothing_in_the_original() -> None:
    x, y = features(10, 10)(0, torch.float32)
    x[0][0, 0] = math.nan
    loss = LMMDLoss(CLASSES)
    value = loss(x[0].requires_grad_(), y[0], LABELS, guesses(10))
    assert value.tolist() == [0.0]
    assert not value.requires_grad
    assert loss.curr_iter == 0
    assert LMMD_loss(CLASSES).get_loss(x[0], y[0], LABELS, guesses(10)).tolist() == [0.0]


def test_no_class_in_common() -> None:
    x, y = (t[0] for t in features(10, 10)(0, torch.float32))
    p = torch.zeros(10, CLASSES)
    p[:, 2] = 1  # the class that the source lacks
    value = LMMD_loss(CLASSES)(x.requires_grad_(), y, LABELS, p)
    value.backward()
    assert value.tolist() == [0.0]
    assert not x.grad.any()


def test_probabilities_get_no_gradient() -> None:
    x, y = (t[0] for t in features(10, 10)(0, torch.float64))
    p = guesses(10).requires_grad_()
    value = LMMD_loss(CLASSES, corrected=True)(x.requires_grad_(), y, LABELS, p)
    value.backward()
    assert p.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_probabilities_pass(dtype: torch.dtype) -> None:
    x, y = (t[0] for t in features(10, 10)(0, dtype))
    p = (3 * torch.randn(10, 31)).to(dtype).softmax(1)
    value = LMMD_loss(31)(x.requires_grad_(), y, LABELS, p)
    assert value.dtype == torch.float32
    value.backward()
    assert x.grad.dtype == dtype


def test_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, original = [], ops.mmd2
    monkeypatch.setattr(ops, "mmd2", lambda *args: calls.append(args) or original(*args))
    x, y = (t[0] for t in features(10, 10)(0, torch.float32))
    LMMDLoss(CLASSES)(x, y, LABELS, guesses(10))
    assert len(calls) == 1


X, Y, P = torch.randn(10, 3), torch.randn(10, 3), guesses(10)
L = LMMDLoss(CLASSES)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: MMDLoss("cosine"), ValueError, "kernel_type must be 'rbf' or 'linear'"),
        (lambda: MMDLoss(kernel_mul=0), ValueError, "kernel_mul must be positive"),
        (lambda: MMDLoss(kernel_num=0), ValueError, "kernel_num must be a whole number"),
        (lambda: MMDLoss(kernel_num=2.0), TypeError, "kernel_num must be a whole number"),
        (lambda: MMDLoss(fix_sigma=-1.0, corrected=True), ValueError, "fix_sigma must be positive"),
        (lambda: MMDLoss()(X, [1]), TypeError, "target must be a torch.Tensor, got list"),
        (lambda: MMDLoss()(X, Y[:, :2]), ValueError, "source and target must be of one width"),
        (lambda: MMDLoss()(X[0], Y), ValueError, r"source must be of shape \[points, width\]"),
        (lambda: MMDLoss()(X[:0], Y), ValueError, "source must not be empty"),
        (lambda: LMMDLoss(0), ValueError, "num_class must be a whole number"),
        (lambda: LMMDLoss(1), ValueError, "num_class must be at least 2"),
        (lambda: LMMDLoss(4, "linear"), NotImplementedError, "kernel_type must be 'rbf'"),
        (lambda: LMMDLoss(4, gamma=0), ValueError, "gamma must be positive"),
        (lambda: LMMDLoss(4, max_iter=0), ValueError, "max_iter must be positive"),
        (
            lambda: L(X, Y, LABELS + 1, P),
            ValueError,
            "source_label must lie between 0 and 3, got 4",
        ),
        (lambda: L(X, Y, LABELS - 1, P), ValueError, "source_label must lie .* got -1"),
        (lambda: L(X, Y, LABELS.float(), P), TypeError, "source_label must be of an integer dtype"),
        (lambda: L(X, Y, LABELS[:9], P), ValueError, r"source_label must be of shape \[10\]"),
        (lambda: L(X, Y, LABELS, 2 * P), ValueError, "target_logits must hold .* sum to 1"),
        (lambda: L(X, Y, LABELS, P - 1), ValueError, "target_logits must hold .* got -"),
        (lambda: L(X, Y, LABELS, P * math.nan), ValueError, "target_logits must hold .* got nan"),
        (
            lambda: L(X, Y, LABELS, P[:, :3]),
            ValueError,
            r"target_logits must be of shape \[10, 4\]",
        ),
        (lambda: L(X, Y, LABELS, P.long()), TypeError, "target_logits must be of a floating dtype"),
        (lambda: LMMD_loss(4)(X, Y, LABELS, 2 * P), ValueError, "t_label must hold"),
        (lambda: LMMD_loss(4)(X, Y, LABELS + 1, P), ValueError, "s_label must lie"),
    ],
)
def test_bad_input(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
