from __future__ import annotations

import originals
import pytest
import torch
from originals import check, features
from torch import Tensor, nn

from fastmmd import ops
from fastmmd.compat.tllib import (
    CorrelationAlignmentLoss,
    GaussianKernel,
    JointMultipleKernelMaximumMeanDiscrepancy,
    MultipleKernelMaximumMeanDiscrepancy,
)

ALPHAS = [("alpha", 2.0**k) for k in range(-3, 2)]  # those of TLlib's own examples
DTYPES = (torch.float32, torch.float64)


def make_kernel(name: str, value: float) -> GaussianKernel:
    if name == "sigma":
        return GaussianKernel(sigma=value, track_running_stats=False)
    return GaussianKernel(alpha=value, corrected=name == "distinct")


def make_kernels(bandwidths: list[tuple[str, float]]) -> list[GaussianKernel]:
    return [make_kernel(*b) for b in bandwidths]


class Foreign(nn.Module):
    """A kernel that is not ours, with the same values as one that is."""

    def __init__(self, kernel: GaussianKernel) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, z: Tensor) -> Tensor:
        return self.kernel(z)


@pytest.fixture
def no_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*_: object) -> Tensor:
        raise AssertionError("a kernel was called for its matrix")

    monkeypatch.setattr(GaussianKernel, "forward", forward)


BANKS = {
    "one": [("alpha", 1.0)],
    "five": ALPHAS,
    "fixed": [("sigma", 1.5)],
    "mixed": [("sigma", 1.5), ("alpha", 0.5), ("distinct", 0.7)],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("bank", BANKS)
def test_multiple_kernels(bank: str, linear: bool, corrected: bool, dtype: torch.dtype) -> None:
    loss = MultipleKernelMaximumMeanDiscrepancy(
        make_kernels(BANKS[bank]), linear=linear, corrected=corrected
    )
    foreign = MultipleKernelMaximumMeanDiscrepancy(
        [Foreign(k) for k in make_kernels(BANKS[bank])], linear=linear, corrected=corrected
    )
    original = originals.tllib([BANKS[bank]], linear, corrected)
    check(
        lambda x, y: loss(x[0], y[0]),
        original,
        features(13, 13),
        dtype,
        # The matrices of our kernel are plain PyTorch in float32: they are the reference there.
        [lambda x, y: foreign(x[0], y[0])] if dtype == torch.float64 else [],
    )


@pytest.mark.parametrize("sizes", [(2, 2), (3, 3), (4, 4), (31, 31)])
@pytest.mark.parametrize("corrected", [False, True])
def test_linear_of_few_points(sizes: tuple[int, int], corrected: bool) -> None:
    """The original's index matrix holds an entry twice at n = 2; the last pairs with the first."""
    loss = MultipleKernelMaximumMeanDiscrepancy(
        make_kernels(ALPHAS), linear=True, corrected=corrected
    )
    original = originals.tllib([ALPHAS], True, corrected)
    check(lambda x, y: loss(x[0], y[0]), original, features(*sizes), torch.float64)


@pytest.mark.parametrize("corrected", [False, True])
def test_batches_of_two_sizes(corrected: bool) -> None:
    loss = MultipleKernelMaximumMeanDiscrepancy(make_kernels(ALPHAS), corrected=corrected)
    original = originals.tllib([ALPHAS], False, corrected)
    check(lambda x, y: loss(x[0], y[0]), original, features(9, 14), torch.float64)


LAYERS = [ALPHAS, [("alpha", 1.0)], [("sigma", 1.0), ("alpha", 2.0)]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_joint(layers: int, linear: bool, corrected: bool, dtype: torch.dtype) -> None:
    bandwidths, widths = LAYERS[:layers], (6, 3, 4)[:layers]
    loss = JointMultipleKernelMaximumMeanDiscrepancy(
        [make_kernels(b) for b in bandwidths], linear, corrected=corrected
    )
    make = features(12, 12, widths, probabilities=layers > 1)
    check(loss, originals.tllib(bandwidths, linear, corrected), make, dtype)


def test_defaults_of_linear() -> None:
    kernels = make_kernels(ALPHAS)
    assert MultipleKernelMaximumMeanDiscrepancy(kernels).linear is False
    assert JointMultipleKernelMaximumMeanDiscrepancy([kernels]).linear is True


@pytest.mark.parametrize("linear", [False, True])
def test_joint_with_foreign_kernels(linear: bool) -> None:
    bandwidths = LAYERS[:2]
    kernels = [make_kernels(bandwidths[0]), [Foreign(make_kernel("alpha", 1.0))]]
    loss = JointMultipleKernelMaximumMeanDiscrepancy(kernels, linear)
    make = features(12, 12, (6, 3))
    check(loss, originals.tllib(bandwidths, linear), make, torch.float64)


@pytest.mark.parametrize("linear", [False, True])
def test_thetas_see_both_domains_as_one_batch(linear: bool) -> None:
    torch.manual_seed(0)
    theta = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)).double()
    thetas = [theta, nn.Identity()]
    loss = JointMultipleKernelMaximumMeanDiscrepancy(
        [make_kernels(b) for b in LAYERS[:2]], linear, thetas
    )
    x, y = features(8, 8, (6, 3))(0, torch.float64)
    value = loss(x, y)
    z = theta(torch.cat([x[0], y[0]]))
    expected = originals.tllib(LAYERS[:2], linear)([z[:8], x[1]], [z[8:], y[1]], originals.direct)
    torch.testing.assert_close(value, expected.value())
    value.backward()
    assert all(p.grad is not None for p in theta.parameters())


@pytest.mark.usefixtures("no_matrices")
@pytest.mark.parametrize("linear", [False, True])
def test_our_kernels_make_no_matrix(linear: bool) -> None:
    x, y = features(6, 6, (4, 3))(0, torch.float32)
    kernels = make_kernels(ALPHAS)
    MultipleKernelMaximumMeanDiscrepancy(kernels, linear)(x[0], y[0])
    JointMultipleKernelMaximumMeanDiscrepancy([kernels, kernels], linear)(x, y)
    with pytest.raises(AssertionError, match="called for its matrix"):
        MultipleKernelMaximumMeanDiscrepancy([*kernels, Foreign(kernels[0])])(x[0], y[0])


@pytest.mark.parametrize("linear", [False, True])
def test_one_call(linear: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, original = [], ops.mmd2
    monkeypatch.setattr(ops, "mmd2", lambda *args: calls.append(args) or original(*args))
    x, y = features(6, 6, (4, 3))(0, torch.float32)
    kernels = make_kernels(ALPHAS)
    JointMultipleKernelMaximumMeanDiscrepancy([kernels, kernels], linear)(x, y)
    assert len(calls) == 1


def test_a_changed_attribute_counts() -> None:
    x, y = features(6, 6)(0, torch.float64)
    kernel = GaussianKernel(alpha=1.0)
    loss = MultipleKernelMaximumMeanDiscrepancy([kernel])
    before = loss(x[0], y[0])
    kernel.alpha = 3.0
    expected = originals.tllib([[("alpha", 3.0)]], False)(x, y, originals.direct).value()
    torch.testing.assert_close(loss(x[0], y[0]), expected)
    assert loss(x[0], y[0]) != before
    x, y = features(9, 9)(0, torch.float64)
    expected = originals.tllib([[("alpha", 3.0)]], False)(x, y, originals.direct).value()
    torch.testing.assert_close(loss(x[0], y[0]), expected)


def test_the_constant_is_right_for_one_kernel_and_corrected_for_more() -> None:
    """Batches of one distribution: the original goes below 0, and below the biased MMD^2."""
    torch.manual_seed(0)
    lowest = {}
    for count in (1, 5):
        for corrected in (False, True):
            loss = MultipleKernelMaximumMeanDiscrepancy(
                make_kernels(ALPHAS[:count]), corrected=corrected
            )
            values = [loss(torch.randn(16, 2), torch.randn(16, 2)) for _ in range(50)]
            lowest[count, corrected] = min(map(float, values))
    assert lowest[1, False] >= 0
    assert lowest[1, True] >= 0
    assert lowest[5, False] < 0
    assert lowest[5, True] >= 0


def test_degenerate_data_is_no_nan() -> None:
    x = torch.ones(5, 3, requires_grad=True)
    loss = MultipleKernelMaximumMeanDiscrepancy(make_kernels(ALPHAS))(x, torch.ones(5, 3))
    loss.backward()
    assert loss == 0.5
    assert not x.grad.any()
    assert (GaussianKernel()(torch.ones(5, 3)) == 1).all()


@pytest.mark.parametrize("name", ["alpha", "distinct", "sigma"])
def test_kernel_matrix(name: str) -> None:
    z = features(9, 9)(0, torch.float64)[0][0]
    d2, kernel = originals.direct(z), make_kernel(name, 0.7)
    square = {"alpha": 0.7 * d2.mean(), "distinct": 0.7 * d2.sum() / 72, "sigma": 0.49}[name]
    torch.testing.assert_close(kernel(z), torch.exp(-d2 / (2 * square)))
    assert float(kernel.sigma_square) == pytest.approx(float(square))
    assert torch.autograd.gradcheck(
        kernel if name == "sigma" else GaussianKernel(3.0, False), (z.requires_grad_(),)
    )


def test_sigma_that_goes_unused() -> None:
    """As ``GaussianKernel(1.)`` in TLlib's own example, which stands for alpha = 1."""
    z = features(9, 9)(0, torch.float64)[0][0]
    assert torch.equal(GaussianKernel(0.3)(z), GaussianKernel()(z))
    fixed = GaussianKernel(0.3, track_running_stats=False)
    assert torch.equal(GaussianKernel(0.3, corrected=True)(z), fixed(z))


@pytest.mark.parametrize("dtype", DTYPES)
def test_coral(dtype: torch.dtype) -> None:
    x, y = (t[0].double() for t in features(9, 14, (5,))(0, dtype))
    means = (x.mean(0) - y.mean(0)).square().mean()
    covariances = (torch.cov(x.T) - torch.cov(y.T)).square().mean()
    x, y = x.to(dtype), y.to(dtype)
    torch.testing.assert_close(CorrelationAlignmentLoss()(x, y), (means + covariances).to(dtype))
    corrected = CorrelationAlignmentLoss(corrected=True)(x, y)
    torch.testing.assert_close(corrected, (covariances / 4).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_give_single_losses(dtype: torch.dtype) -> None:
    x, y = features(8, 8)(0, dtype)
    loss = MultipleKernelMaximumMeanDiscrepancy(make_kernels(ALPHAS))
    value = loss(x[0].requires_grad_(), y[0])
    assert value.dtype == torch.float32
    value.backward()
    assert x[0].grad.dtype == dtype
    assert CorrelationAlignmentLoss()(x[0], y[0]).dtype == torch.float32


def test_state_dict_is_empty_as_the_original_s() -> None:
    assert not MultipleKernelMaximumMeanDiscrepancy(make_kernels(ALPHAS)).state_dict()
    assert not JointMultipleKernelMaximumMeanDiscrepancy([make_kernels(ALPHAS)]).state_dict()


X, Y = torch.randn(4, 3), torch.randn(4, 3)
MK, JMK = MultipleKernelMaximumMeanDiscrepancy, JointMultipleKernelMaximumMeanDiscrepancy
K = GaussianKernel()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: GaussianKernel(track_running_stats=False), ValueError, "sigma must be a positive"),
        (lambda: GaussianKernel(sigma=-1.0), ValueError, "sigma must be positive"),
        (lambda: GaussianKernel(sigma="1"), TypeError, "sigma must be a positive number"),
        (lambda: GaussianKernel(alpha=0), ValueError, "alpha must be positive"),
        (lambda: K(torch.randn(4)), ValueError, r"X must be of shape \[points, width\]"),
        (lambda: MK([]), ValueError, "kernels has 0"),
        (lambda: MK(K), TypeError, "kernels must be a list or tuple"),
        (lambda: MK([3]), TypeError, "kernels must be functions of a batch"),
        (lambda: MK([K])(X, None), TypeError, "z_t must be a torch.Tensor, got NoneType"),
        (lambda: MK([K])(X.int(), Y.int()), TypeError, "z_s must be float16"),
        (lambda: MK([K])(X, Y.double()), TypeError, "z_s and z_t must be of one dtype"),
        (lambda: MK([K])(X, Y[:, :2]), ValueError, "z_s and z_t must be of one width"),
        (lambda: MK([K])(X, Y[:1]), ValueError, "z_t must have at least 2 points"),
        (lambda: MK([K])(X, Y[:0]), ValueError, "z_t must not be empty"),
        (lambda: MK([K], linear=True)(X, Y[:3]), ValueError, "z_s and z_t must have as many"),
        (lambda: MK([lambda z: z])(X, Y), ValueError, "kernels must return a matrix"),
        (lambda: JMK([K]), TypeError, r"kernels\[0\] must be a list or tuple"),
        (lambda: JMK([[K]], thetas=[K, K]), ValueError, "kernels has 1, thetas has 2"),
        (lambda: JMK([[K]])(X, Y), TypeError, "z_s must be a list or tuple"),
        (lambda: JMK([[K]])((X, X), (Y, Y)), ValueError, "kernels has 1, z_s has 2, z_t has 2"),
        (lambda: JMK([[K], [K]])((X, X), (Y,)), ValueError, "z_s has 2, z_t has 1"),
        (lambda: JMK([[K], [K]])((X, X[:3]), (Y, Y)), ValueError, r"z_s\[1\] and z_s\[0\]"),
        (
            lambda: JMK([[K]])((X,), (Y[:3],)),
            ValueError,
            r"z_s\[0\] and z_t\[0\] must have as many",
        ),
        (lambda: CorrelationAlignmentLoss()(X, Y[:1]), ValueError, "f_t must have at least 2"),
    ],
)
def test_bad_input(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
