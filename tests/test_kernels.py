from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import fastmmd as fm
from fastmmd.kernels import ENERGY, GAUSSIAN, LAPLACIAN


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


def test_sums_and_multiples() -> None:
    a, b, c = fm.Gaussian("mean", (1, 2)), fm.Laplacian(2.0), fm.Energy()
    terms = (2 * (a + 0.5 * b) + c * 3.0).terms()
    assert terms.families == (GAUSSIAN, GAUSSIAN, LAPLACIAN, ENERGY)
    assert torch.equal(terms.coefficients, doubles(2, 2, 1, 3))
    assert torch.equal(terms.scales, doubles(1, 0.5, 0.25, 1))
    assert terms.units == (1, 1, 0, 0)
    assert len(terms.shapes) == 4
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
