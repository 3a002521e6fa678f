from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import fastmmd as fm
from fastmmd import reference
from fastmmd.terms import (
    COSINE,
    ENERGY,
    FIXED,
    GAUSSIAN,
    GEOMETRY,
    INVERSE_MULTIQUADRIC,
    LAPLACIAN,
    LINEAR,
    MATERN_3_2,
    MATERN_5_2,
    MEAN,
    MEDIAN,
    POLYNOMIAL,
    RATIONAL_QUADRATIC,
    WIDTH,
)


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_gaussian_terms() -> None:
    # k = exp(-r^2 / (2 m s^2)), so the scale is 1 / (2 m s^2)
    terms = fm.Gaussian(2.0, (0.5, 3), weights=(1, 4)).terms()
    assert terms.families == (GAUSSIAN, GAUSSIAN)
    assert torch.equal(terms.scales, 1 / (2 * doubles(0.5, 3) * 4))
    assert torch.equal(terms.coefficients, doubles(1, 4))
    assert terms.units == (0, 0)


@pytest.mark.parametrize(("bandwidth", "unit"), [("mean", 1), ("median", 2)])
def test_heuristics(bandwidth: str, unit: int) -> None:
    # the unit is 2 s^2
    gaussian = fm.Gaussian(bandwidth, (0.5, 4)).terms()
    assert torch.equal(gaussian.scales, doubles(2, 0.25))
    assert gaussian.units == (unit, unit)
    laplacian = fm.Laplacian(bandwidth).terms()
    assert laplacian.families == (LAPLACIAN,)
    assert torch.equal(laplacian.scales, doubles(2))
    assert laplacian.units == (unit,)


def test_bank_of_bandwidths_goes_by_bandwidth_first() -> None:
    s = torch.tensor([1.0, 3.0])
    terms = fm.Gaussian(s, (1, 2, 5)).terms()
    assert torch.allclose(1 / terms.scales, doubles(2, 4, 10, 18, 36, 90))
    assert torch.equal(terms.coefficients, torch.ones(6, dtype=torch.float64))
    assert torch.allclose(fm.Laplacian(s).terms().scales, doubles(1, 1 / 9))


def test_energy_terms() -> None:
    terms = fm.Energy().terms()
    assert terms.families == (ENERGY,)
    assert torch.equal(terms.scales, doubles(1))


@pytest.mark.parametrize(
    ("kernel", "family", "scale", "shape", "unit"),
    [
        (fm.InverseMultiquadric(2.0), INVERSE_MULTIQUADRIC, 0.25, (0, 0), FIXED),
        (fm.InverseMultiquadric(), INVERSE_MULTIQUADRIC, 2, (0, 0), MEAN),
        (fm.RationalQuadratic(0.3, 2.0), RATIONAL_QUADRATIC, 0.125, (0.3, 0), FIXED),
        (fm.RationalQuadratic(bandwidth="median"), RATIONAL_QUADRATIC, 1, (1, 0), MEDIAN),
        (fm.Matern(0.5, 2.0), LAPLACIAN, 0.25, (0, 0), FIXED),
        (fm.Matern(1.5, 2.0), MATERN_3_2, 0.25, (0, 0), FIXED),
        (fm.Matern(2.5, "median"), MATERN_5_2, 2, (0, 0), MEDIAN),
        (fm.Polynomial(), POLYNOMIAL, 1, (3, 1), WIDTH),
        (fm.Polynomial(2, 0.5, 0), POLYNOMIAL, 0.5, (2, 0), FIXED),
        (fm.Linear(), LINEAR, 1, (0, 0), FIXED),
        (fm.Cosine(), COSINE, 1, (0, 0), FIXED),
    ],
    ids=repr,
)
def test_terms_of_one(kernel, family, scale, shape, unit) -> None:
    terms = kernel.terms()
    assert terms.families == (family,)
    assert torch.equal(terms.scales, doubles(scale))
    assert torch.equal(terms.coefficients, doubles(1))
    assert terms.shapes == shape
    assert terms.units == (unit,)
    assert terms.factors == (0,)
    assert kernel.terms() is terms
    assert terms.scales.dtype == terms.coefficients.dtype == torch.float64


def test_every_family_has_a_geometry() -> None:
    assert len(GEOMETRY) == COSINE + 1


def test_banks_of_every_radial_kernel() -> None:
    s = torch.tensor([1.0, 2.0])
    for make in (
        fm.Laplacian,
        fm.InverseMultiquadric,
        lambda *a: fm.RationalQuadratic(0.4, *a),
        lambda *a: fm.Matern(1.5, *a),
    ):
        terms, first = make(s, (3, 5)).terms(), make(1.0).terms()
        assert terms.families == first.families * 2
        assert torch.equal(terms.scales, first.scales * doubles(1, 0.25))
        assert torch.equal(terms.coefficients, doubles(3, 5))
        assert terms.shapes == first.shapes * 2
        with pytest.raises(ValueError, match=r"weights must be of shape \[2\], .* got \[3\]"):
            make(s, torch.ones(3))


def test_sums_and_multiples() -> None:
    a, b, c = fm.Gaussian("mean", (1, 2)), fm.Laplacian(2.0), fm.Energy()
    terms = (2 * (a + 0.5 * b) + c * 3.0).terms()
    assert terms.families == (GAUSSIAN, GAUSSIAN, LAPLACIAN, ENERGY)
    assert torch.equal(terms.coefficients, doubles(2, 2, 1, 3))
    assert torch.equal(terms.scales, doubles(1, 0.5, 0.25, 1))
    assert terms.units == (1, 1, 0, 0)
    assert len(terms.shapes) == 8
    assert terms.factors == (0, 0, 0, 0)
    assert repr((a + b) + c) == repr(a + (b + c))


def test_numbers_are_worked_out_once() -> None:
    for kernel in (fm.Gaussian(1.5), 0.5 * fm.Laplacian() + fm.Energy()):
        assert kernel.terms() is kernel.terms()


def test_tensors_reach_the_terms_with_their_graph() -> None:
    s = nn.Parameter(torch.tensor([0.5, 2.0]))
    factor = torch.tensor(2.0, requires_grad=True)
    weights = torch.rand(3, requires_grad=True)
    kernel = factor * fm.Gaussian(s.exp()[:1], (1, 2, 4), weights=weights) + fm.Laplacian(s)
    terms = kernel.terms()
    assert terms.scales.dtype == terms.coefficients.dtype == torch.float64
    (terms.scales.sum() + terms.coefficients.sum()).backward()
    for t in (s, factor, weights):
        assert t.grad is not None
        assert t.grad.all()


def test_parameters_and_buffers() -> None:
    s, w = nn.Parameter(torch.tensor(1.0)), torch.ones(5)
    kernel = fm.Gaussian(s, weights=w) + 0.5 * fm.Laplacian(torch.tensor([1.0, 2.0]))
    assert dict(kernel.named_parameters()) == {"kernels.0.bandwidth": s}
    buffers = dict(kernel.named_buffers())
    assert set(buffers) == {"kernels.0.weights", "kernels.1.kernel.bandwidth"}
    assert set(kernel.state_dict()) == {"kernels.0.bandwidth", *buffers}
    assert kernel.half().terms().scales.dtype == torch.float64
    assert s.dtype == torch.float16
    assert not fm.Gaussian(1.0).state_dict()


def test_weights_of_any_stride() -> None:
    w = torch.arange(1.0, 11.0, dtype=torch.float64)[::2]
    x, y = torch.randn(8, 3), torch.randn(9, 3)
    result = fm.mmd2(x, y, fm.Gaussian(1.0, weights=w))
    assert torch.equal(result, fm.mmd2(x, y, fm.Gaussian(1.0, weights=w.tolist())))


@pytest.mark.parametrize(
    "kernel",
    [
        fm.Gaussian(2.0, weights=(1, 2, 3, 4, 5)),
        fm.Gaussian(nn.Parameter(torch.tensor(1.5))) + 2 * fm.Energy(),
        torch.tensor(0.5) * fm.Laplacian("median"),
        fm.Learnable(0.5) * fm.Matern(2.5, fm.Learnable([1.0, 2.0])) + fm.Polynomial(),
        fm.RationalQuadratic(0.5) + fm.Cosine() + fm.Linear() + fm.InverseMultiquadric(2.0),
        fm.Gaussian(fm.RunningBandwidth()),
    ],
    ids=repr,
)
def test_copies(kernel: fm.Kernel) -> None:
    x, y = torch.randn(8, 3), torch.randn(9, 3)
    for other in (copy.deepcopy(kernel), pickle.loads(pickle.dumps(kernel))):
        assert repr(other) == repr(kernel)
        assert torch.equal(fm.mmd2(x, y, other), fm.mmd2(x, y, kernel))
        for mine, theirs in zip(kernel.parameters(), other.parameters(), strict=True):
            assert mine is not theirs


def test_repr() -> None:
    assert repr(fm.Gaussian()) == "Gaussian(bandwidth='mean', multipliers=(0.25, 0.5, 1, 2, 4))"
    kernel = 2.0 * (fm.Laplacian(1.5, weights=[2]) + fm.Energy())
    assert repr(kernel) == "2.0 * (Laplacian(bandwidth=1.5, weights=(2.0,)) + Energy())"


def test_numbers_stay_as_they_were_given() -> None:
    # as a cached kernel would not follow
    kernel = fm.Gaussian(1.0)
    for name, value in {"bandwidth": 2.0, "multipliers": (1,), "weights": [1.0]}.items():
        with pytest.raises(AttributeError, match=f"{name} of a Gaussian is fixed"):
            setattr(kernel, name, value)
    with pytest.raises(AttributeError, match="factor of a Scaled is fixed"):
        (2.0 * kernel).factor = 3.0


def test_a_parameter_may_be_replaced() -> None:
    kernel = fm.Laplacian(nn.Parameter(torch.tensor(1.0)))
    kernel.bandwidth = nn.Parameter(torch.tensor(2.0))
    assert torch.equal(kernel.terms().scales, doubles(0.25))


def test_a_kernel_adds_and_multiplies_its_own_kind_only() -> None:
    with pytest.raises(TypeError):
        fm.Energy() + 1.0
    with pytest.raises(TypeError):
        fm.Energy() * fm.Energy()


def test_learnable() -> None:
    for value in (0.5, [0.5, 2.0], torch.tensor([3.0, 1.0], dtype=torch.float64)):
        learnable = fm.Learnable(value)
        expected = torch.as_tensor(value)
        torch.testing.assert_close(learnable().detach(), expected)
        assert learnable.log_value.requires_grad
        assert learnable.log_value.dtype == expected.dtype
    assert repr(fm.Learnable([0.5, 2.0])) == "Learnable(tensor([0.5000, 2.0000]))"


def test_learnable_arguments() -> None:
    kernel = (
        fm.Learnable(0.5) * fm.Gaussian(fm.Learnable(2.0), (1, 2), weights=fm.Learnable([1, 3]))
        + fm.Matern(1.5, fm.Learnable([1.0, 4.0]), weights=fm.Learnable([2.0, 0.5]))
        + fm.Polynomial(2, fm.Learnable(0.25))
    )
    names = {
        "kernels.0.kernel.bandwidth.log_value",
        "kernels.0.kernel.weights.log_value",
        "kernels.0.factor.log_value",
        "kernels.1.bandwidth.log_value",
        "kernels.1.weights.log_value",
        "kernels.2.gamma.log_value",
    }
    assert {name for name, _ in kernel.named_parameters()} == names
    assert set(kernel.state_dict()) == names
    terms = kernel.terms()
    torch.testing.assert_close(terms.scales.detach(), doubles(1 / 8, 1 / 16, 1, 1 / 16, 0.25))
    torch.testing.assert_close(terms.coefficients.detach(), doubles(0.5, 1.5, 2, 0.5, 1))
    (terms.scales.sum() + terms.coefficients.sum()).backward()
    assert all(p.grad.all() for p in kernel.parameters())
    numbers = (
        0.5 * fm.Gaussian(2.0, (1, 2), weights=(1, 3))
        + fm.Matern(1.5, 1.0, (2,))
        + fm.Matern(1.5, 4.0, (0.5,))
        + fm.Polynomial(2, 0.25)
    )
    x, y = torch.randn(8, 3), torch.randn(9, 3)
    torch.testing.assert_close(fm.mmd2(x, y, kernel).detach(), fm.mmd2(x, y, numbers))


def test_learnable_stays_positive() -> None:
    # steps that would take the bandwidth itself below 0
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator)
    y = 1.5 * torch.randn(40, 3, generator=generator)
    kernel = fm.Learnable(2.0) * fm.Laplacian(fm.Learnable(0.05), weights=fm.Learnable([1.0]))
    optimizer = torch.optim.SGD(kernel.parameters(), lr=20.0)
    before = fm.mmd2(x, y, kernel).item()
    for _ in range(10):
        optimizer.zero_grad()
        loss = fm.mmd2(x, y, kernel)
        loss.backward()
        optimizer.step()
    assert 0 < fm.mmd2(x, y, kernel).item() < before
    assert kernel.kernel.bandwidth() > 0


def test_a_learnable_that_is_shared() -> None:
    s = fm.Learnable(2.0)
    kernel = fm.Gaussian(s) + fm.Laplacian(s)
    assert len(list(kernel.parameters())) == 1
    kernel.terms().scales.sum().backward()
    assert s.log_value.grad


@pytest.mark.parametrize("momentum", [0.3, 1, None])
@pytest.mark.parametrize("heuristic", ["mean", "median"])
def test_running_bandwidth(heuristic: str, momentum: float | None) -> None:
    running = fm.RunningBandwidth(heuristic, momentum)
    loss = fm.MMDLoss(fm.Gaussian(running, (0.5, 2), weights=(1, 3)) + fm.Matern(1.5, running))
    generator = torch.Generator().manual_seed(0)
    average = None
    for step in range(4):
        x, y = torch.randn(2, 12, 3, generator=generator).unbind()
        x, y = x * (step + 1), y[:7]
        scale = fm.Gaussian(heuristic, (1,)).terms()
        unit = 1 / reference.resolve(scale, x.double(), y.double()).item()
        if average is None:
            average = unit
        else:
            average += (1 / (step + 1) if momentum is None else momentum) * (unit - average)
        result = loss(x, y)
        assert running.num_batches_tracked == step + 1
        assert running.value.item() == pytest.approx(average, rel=1e-6)
        s = (average / 2) ** 0.5
        fixed = fm.Gaussian(s, (0.5, 2), weights=(1, 3)) + fm.Matern(1.5, s)
        torch.testing.assert_close(result, fm.mmd2(x, y, fixed))
    loss.eval()
    frozen = loss(5 * x, y)
    torch.testing.assert_close(frozen, fm.mmd2(5 * x, y, fixed))
    assert running.num_batches_tracked == 4


def test_running_bandwidth_in_a_checkpoint() -> None:
    x, y = torch.randn(8, 3), torch.randn(9, 3)

    def make() -> fm.MMDLoss:
        return fm.MMDLoss(0.5 * fm.Laplacian(fm.RunningBandwidth()) + fm.Energy())

    loss = make()
    for scale in (1, 4):
        loss(scale * x, y)
    names = ["value", "num_batches_tracked"]
    state = loss.state_dict()
    assert list(state) == [f"kernel.kernels.0.kernel.bandwidth.{name}" for name in names]
    other = make()
    other.load_state_dict(state)
    copied = copy.deepcopy(loss)
    expected = loss.eval()(x, y)
    assert torch.equal(other.eval()(x, y), expected)
    other.train()(2 * x, y)
    copied(2 * x, y)
    assert all(map(torch.equal, other.state_dict().values(), copied.state_dict().values()))
    first = next(iter(state))
    assert not torch.equal(copied.state_dict()[first], state[first])
    assert torch.equal(loss.to(torch.float64)(x, y), expected)
    assert loss.double().state_dict()[first].dtype == torch.float64


def test_running_bandwidth_that_has_seen_nothing() -> None:
    x, y = torch.randn(8, 3), torch.randn(9, 3)
    loss = fm.MMDLoss(fm.Gaussian(fm.RunningBandwidth())).eval()
    with pytest.raises(RuntimeError, match=r"RunningBandwidth has seen no data.*training mode"):
        loss(x, y)


def test_running_bandwidth_passes_over_bad_data() -> None:
    running = fm.RunningBandwidth()
    kernel = fm.Gaussian(running)
    x, y = torch.randn(8, 3), torch.randn(9, 3)
    bad = x.clone()
    bad[2, 1] = torch.nan
    assert fm.mmd2(bad, y, kernel).isnan()
    assert running.num_batches_tracked == 0
    fm.mmd2(x, y, kernel)
    value = running.value.clone()
    assert value.isfinite()
    assert fm.mmd2(bad, y, kernel).isnan()
    assert torch.equal(running.value, value)
    assert running.num_batches_tracked == 1


def test_running_bandwidth_of_equal_points() -> None:
    running = fm.RunningBandwidth(momentum=0.5)
    x = torch.ones(4, 3, requires_grad=True)
    value = fm.mmd2(x, torch.ones(5, 3), fm.Laplacian(running))
    value.backward()
    assert value.item() == 0
    assert not x.grad.any()
    assert running.value == 0
    # A kernel of scale 0 is constant: the masses of the samples cancel in it.
    x, y, mean = torch.randn(6, 3), torch.randn(5, 3), fm.Gaussian("mean")
    both = (mean + fm.Gaussian(running)).eval()
    torch.testing.assert_close(fm.witness(x, y, y, both), fm.witness(x, y, y, mean))
    torch.testing.assert_close(fm.mmd2_variance(x, y, both), fm.mmd2_variance(x, y, mean))
    running.train()
    fm.mmd2(torch.randn(4, 3), torch.ones(5, 3), fm.Laplacian(running))
    assert running.value > 0


def test_running_bandwidth_of_a_batch() -> None:
    x, y = torch.randn(3, 8, 2), torch.randn(3, 9, 2)
    running = fm.RunningBandwidth()
    values = fm.mmd2(x, y, fm.Gaussian(running))
    scale = fm.Gaussian("mean", (1,)).terms()
    pairs = zip(x.double(), y.double(), strict=True)
    units = [1 / reference.resolve(scale, a, b).item() for a, b in pairs]
    assert running.value.item() == pytest.approx(sum(units) / 3, rel=1e-6)
    assert running.num_batches_tracked == 1
    fixed = fm.Gaussian((running.value.item() / 2) ** 0.5)
    torch.testing.assert_close(values, fm.mmd2(x, y, fixed))


def test_running_bandwidth_inside_a_transform() -> None:
    x, y = torch.randn(3, 8, 2), torch.randn(3, 9, 2)
    kernel = fm.Gaussian(fm.RunningBandwidth())
    batch = torch.func.vmap(lambda a, b: fm.mmd2(a, b, kernel))
    gradient = torch.func.grad(lambda a: fm.mmd2(a, y[0], kernel))
    for call in (lambda: batch(x, y), lambda: gradient(x[0])):
        with pytest.raises(NotImplementedError, match=r"RunningBandwidth cannot be updated.*eval"):
            call()
    assert kernel.bandwidth.value.isnan()
    assert kernel.bandwidth.num_batches_tracked == 0
    fm.mmd2(x, y, kernel)
    kernel.eval()
    torch.testing.assert_close(batch(x, y), fm.mmd2(x, y, kernel))
    leaf = x[0].clone().requires_grad_()
    fm.mmd2(leaf, y[0], kernel).backward()
    assert torch.equal(gradient(x[0]), leaf.grad)


def test_running_bandwidth_holds_no_gradient() -> None:
    x, y = torch.randn(8, 3, requires_grad=True), torch.randn(9, 3)
    running = fm.RunningBandwidth()
    kernel = fm.Gaussian(running)
    for _ in range(2):
        fm.mmd2(x, y, kernel).backward()
    assert not running.value.requires_grad


def test_running_bandwidth_under_compile() -> None:
    torch.compiler.reset()
    eager = fm.MMDLoss(fm.Gaussian(fm.RunningBandwidth("median"), weights=fm.Learnable([1.0] * 5)))
    loss = copy.deepcopy(eager)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    x, y = torch.randn(8, 3), torch.randn(9, 3)
    for scale in (1, 3, 2):
        torch.testing.assert_close(compiled(scale * x, y), eager(scale * x, y))
        assert list(map(float, loss.buffers())) == list(map(float, eager.buffers()))
    compiled.eval()
    eager.eval()
    torch.testing.assert_close(compiled(x, y), eager(x, y))
    assert loss.kernel.bandwidth.num_batches_tracked == 3


def test_repr_of_the_others() -> None:
    running = "RunningBandwidth('median', momentum=0.1)"
    assert repr(fm.Matern(2.5, fm.RunningBandwidth("median"))) == (
        f"Matern(nu=2.5, bandwidth={running})"
    )
    assert repr(fm.RationalQuadratic(2, 1.5, weights=[2])) == (
        "RationalQuadratic(alpha=2.0, bandwidth=1.5, weights=(2.0,))"
    )
    assert repr(fm.InverseMultiquadric()) == "InverseMultiquadric(bandwidth='mean')"
    assert repr(fm.Polynomial(2)) == "Polynomial(degree=2, gamma=None, coef0=1.0)"
    assert repr(fm.Linear() + 2 * fm.Cosine()) == "Linear() + 2 * Cosine()"


def test_numbers_of_the_others_stay_too() -> None:
    for kernel, name in (
        (fm.Matern(), "nu"),
        (fm.RationalQuadratic(), "alpha"),
        (fm.Polynomial(), "degree"),
        (fm.Polynomial(), "coef0"),
        (fm.Polynomial(gamma=2), "gamma"),
        (fm.InverseMultiquadric(2.0), "bandwidth"),
    ):
        with pytest.raises(AttributeError, match=f"{name} of a {type(kernel).__name__} is fixed"):
            setattr(kernel, name, 1)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fm.InverseMultiquadric(-1.0), ValueError, r"bandwidth must be positive.*-1\.0"),
        (lambda: fm.InverseMultiquadric("max"), ValueError, "bandwidth must be .*'max'"),
        (lambda: fm.RationalQuadratic(0), ValueError, "alpha must be positive and finite, got 0"),
        (lambda: fm.RationalQuadratic(float("nan")), ValueError, "alpha must be positive.*nan"),
        (lambda: fm.RationalQuadratic("mean"), TypeError, "alpha must be a positive number.*'mean"),
        (lambda: fm.RationalQuadratic(torch.ones(())), TypeError, "alpha must be a positive num"),
        (lambda: fm.RationalQuadratic(1, 0.0), ValueError, "bandwidth must be positive"),
        (lambda: fm.Matern(1), ValueError, r"nu must be 0\.5, 1\.5 or 2\.5, got 1"),
        (lambda: fm.Matern("mean"), TypeError, r"nu must be 0\.5, 1\.5 or 2\.5, got 'mean'"),
        (lambda: fm.Matern(1.5, torch.ones(2, 2)), ValueError, r"bandwidth .*shape \[2, 2\]"),
        (lambda: fm.Matern(1.5, 1.0, (1, 2)), ValueError, "weights must hold 1 numbers.*got 2"),
        (lambda: fm.Polynomial(0), ValueError, "degree must be at least 1, got 0"),
        (lambda: fm.Polynomial(2.5), TypeError, r"degree must be a positive integer, got 2\.5"),
        (lambda: fm.Polynomial(True), TypeError, "degree must be a positive integer, got True"),
        (lambda: fm.Polynomial(gamma=0.0), ValueError, "gamma must be positive and finite"),
        (lambda: fm.Polynomial(gamma="scale"), TypeError, "gamma must be a positive number, a ten"),
        (lambda: fm.Polynomial(gamma=torch.ones(2)), ValueError, r"gamma .*scalar.*shape \[2\]"),
        (lambda: fm.Polynomial(gamma=-torch.ones(())), ValueError, "gamma must be positive"),
        (lambda: fm.Polynomial(coef0=-1), ValueError, "coef0 must be non-negative.*got -1"),
        (lambda: fm.Polynomial(coef0=torch.ones(())), TypeError, "coef0 must be a non-negative"),
        (lambda: fm.Polynomial(coef0=float("inf")), ValueError, "coef0 must be non-negative"),
        (lambda: fm.Learnable(0.0), ValueError, r"value must be positive and finite, got 0\.0"),
        (lambda: fm.Learnable([1.0, -1.0]), ValueError, r"value must be positive.*-1\.0"),
        (lambda: fm.Learnable([]), ValueError, r"value must be of shape .* got shape \[0\]"),
        (lambda: fm.Learnable(torch.ones(2, 2)), ValueError, r"value .* got shape \[2, 2\]"),
        (lambda: fm.Learnable(torch.ones(2).long()), TypeError, "value must be of a floating"),
        (lambda: fm.Learnable("mean"), TypeError, "value must be positive numbers.*'mean'"),
        (
            lambda: fm.Gaussian(fm.Learnable(1.0), weights=fm.Learnable([1.0])),
            ValueError,
            r"weights must be of shape \[5\], one for each term, got \[1\]",
        ),
        (lambda: fm.Learnable([1.0]) * fm.Energy(), ValueError, r"factor .*scalar.*shape \[1\]"),
        (lambda: fm.RunningBandwidth(2.0), ValueError, "heuristic must be 'mean' or 'median'"),
        (lambda: fm.RunningBandwidth("max"), ValueError, "heuristic must be 'mean' or.*'max'"),
        (lambda: fm.RunningBandwidth(momentum=0), ValueError, "momentum must be above 0 and at"),
        (lambda: fm.RunningBandwidth(momentum=1.5), ValueError, r"momentum must be .* got 1\.5"),
        (lambda: fm.RunningBandwidth(momentum="a"), TypeError, "momentum must be a number or No"),
        (lambda: fm.RunningBandwidth() * fm.Energy(), TypeError, "unsupported operand"),
        (lambda: fm.Scaled(fm.Energy(), fm.RunningBandwidth()), TypeError, "factor must be a pos"),
        (lambda: fm.Polynomial(gamma=fm.RunningBandwidth()), TypeError, "gamma must be a positive"),
        (lambda: fm.Gaussian(weights=fm.RunningBandwidth()), TypeError, "weights must be numbers"),
    ],
)
def test_bad_arguments(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_parameter_that_went_out_of_range() -> None:
    gamma = nn.Parameter(torch.tensor(1.0))
    kernel = fm.Polynomial(gamma=gamma)
    with torch.no_grad():
        gamma.neg_()
    with pytest.raises(ValueError, match=r"gamma must be positive and finite, got -1\."):
        kernel.terms()
    learnable = fm.Learnable(1.0)
    with torch.no_grad():
        learnable.log_value.fill_(torch.nan)
    with pytest.raises(ValueError, match="bandwidth must be positive and finite, got nan"):
        fm.Matern(1.5, learnable).terms()
