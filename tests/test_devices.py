"""Tensors that are not on the CPU: no step looks at a number of them, and none mixes devices.

The meta device stands for a GPU: it has shapes and no numbers, and refuses to be asked for one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from tolerance import KERNELS, make_case, make_kernel, make_product
from torch import Tensor, nn

import fastmmd as fm
from fastmmd import ops
from fastmmd.compat import deepda, pytorch_adapt, tllib
from fastmmd.ops import _mmd2
from fastmmd.terms import numbers, on_device

META = torch.device("meta")


def many() -> fm.Kernel:  # more terms than are taken at a time, and constants among them
    bank = fm.Gaussian("mean", [1 + k / 9 for k in range(150)])
    return bank + 0.3 * fm.Laplacian("median", weights=(2.0,)) + fm.Polynomial() + fm.Energy()


def parameter(value: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(value, device=META))


def softmax(x: Tensor) -> Tensor:
    return x.softmax(1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "default": fm.mmd2,
    "many terms": lambda x, y: fm.mmd2(x, y, many()),
    "polynomial": lambda x, y: fm.mmd2(x, y, fm.Polynomial(3, parameter(1.0)) + fm.Linear()),
    "scaled": lambda x, y: fm.mmd2(x, y, fm.Learnable(2.0).to(META) * fm.Gaussian()),
    "factor": lambda x, y: fm.mmd2(x, y, parameter(2.0) * (fm.Gaussian(1.0) + fm.Cosine())),
    "kernel weights": lambda x, y: fm.mmd2(
        x, y, fm.Gaussian("mean", (1, 2), weights=torch.ones(2, device=META))
    ),
    "running": lambda x, y: fm.mmd2(x, y, fm.Gaussian(fm.RunningBandwidth("median")).to(META)),
    "weights": lambda x, y: fm.mmd2(x, y, x_weights=x[:, 0], y_weights=y[:, 1]),
    "linear": lambda x, y: fm.mmd2(x, y, estimator="linear"),
    "batch": lambda x, y: fm.mmd2(x.reshape(2, 10, 6), y.reshape(2, 15, 6)).sum(),
    "energy": fm.energy_distance,
    "joint": lambda x, y: fm.joint_mmd2((x, x[:, :3]), (y, y[:, :3])),
    "local": lambda x, y: fm.local_mmd2(
        x, y, softmax(x), softmax(y), 6, differentiate_classes=True
    ),
    "conditional": lambda x, y: fm.class_conditional_mmd2(
        x, y, softmax(x).detach(), softmax(y).detach(), 6
    ),
    "kernel sum": lambda x, y: fm.kernel_sum(x, y, y[:, :3], many()).sum(),
    "witness": lambda x, y: fm.witness(x, y, x[:5]).sum(),
    "contributions": lambda x, y: sum(t.sum() for t in fm.contributions(x, y)),
    "power": lambda x, y: fm.power_criterion(x, y, fm.Gaussian(parameter(1.0)) + fm.Polynomial()),
    "second": lambda x, y: sum(
        g.square().sum()
        for g in torch.autograd.grad(fm.mmd2(x, y, many()), (x, y), create_graph=True)
    ),
    "DeepDA": lambda x, y: deepda.MMDLoss()(x, y[:20]),
    "TLlib": lambda x, y: tllib.MultipleKernelMaximumMeanDiscrepancy([tllib.GaussianKernel()])(
        x, y[:20]
    ),
    "PyTorch Adapt": lambda x, y: pytorch_adapt.MMDLoss()(x, y[:20]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str, dtype: torch.dtype) -> None:
    x, y = (torch.empty(n, 6, dtype=dtype, device=META).requires_grad_() for n in (20, 30))
    value = LOSSES[name](x, y)
    assert value.device == META
    for t, g in zip((x, y), torch.autograd.grad(value, (x, y)), strict=True):
        assert (g.device, g.dtype, g.shape) == (META, dtype, t.shape)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels(name: str) -> None:
    kernel = copy.deepcopy(make_kernel(name, 6)).to(META)
    x, y = (torch.empty(n, 6, device=META).requires_grad_() for n in (20, 30))
    wanted = [x, y, *kernel.parameters()]
    for g, t in zip(torch.autograd.grad(fm.mmd2(x, y, kernel), wanted), wanted, strict=True):
        assert (g.device, g.shape) == (META, t.shape)


# What a GPU runs for second derivatives: it is ordinary PyTorch.
@pytest.mark.parametrize("estimator", ["biased", "unbiased", "linear", "block", "incomplete"])
def test_second_derivatives(estimator: str) -> None:
    for kernel in ("gaussian", "mean", "product"):
        case = make_case(0, 20, 30, 6, "mean", estimator)
        if kernel == "product":
            case = make_product(case, ("laplacian", "polynomial", "cosine"), (3, 2, 1))
        else:
            case = make_case(0, 20, 30, 6, kernel, estimator)
        terms = case.terms()
        inputs = [case.x, case.y, None, None, terms.scales.detach(), terms.coefficients.detach()]
        inputs = [None if t is None else t.to(META) for t in inputs]
        constants = terms.families, terms.shapes, terms.units, terms.factors, case.widths or ()
        resolved = torch.empty(len(terms.families), dtype=torch.float64, device=META)
        tangents = [None if t is None else torch.empty_like(t) for t in inputs]
        results = _mmd2._mmd2_backward(
            *inputs, *constants, case.number(), case.size(), 0, resolved, *tangents
        )
        for v, t in zip(results, inputs, strict=True):
            if t is not None:
                assert (v.device, v.shape) == (META, t.shape)


def test_kernels_elsewhere_are_an_error() -> None:
    x = torch.empty(5, 3, device=META)
    message = r"{} must be on the device of the points, meta, got cpu: move the kernel"
    with pytest.raises(ValueError, match=message.format("bandwidth")):
        fm.mmd2(x, x, fm.Gaussian(torch.tensor(1.0)))
    with pytest.raises(ValueError, match=message.format("bandwidth")):
        fm.mmd2(x, x, fm.Gaussian() + fm.Laplacian(fm.Learnable(1.0)))
    with pytest.raises(ValueError, match=message.format("weights")):
        fm.mmd2(x, x, fm.Laplacian(weights=torch.ones(1)))
    with pytest.raises(ValueError, match=message.format("factor")):
        fm.mmd2(x, x, torch.tensor(2.0) * fm.Gaussian())
    with pytest.raises(ValueError, match=message.format("gamma")):
        fm.mmd2(x, x, fm.Polynomial(2, torch.tensor(2.0)))
    # below the surface
    terms = fm.Gaussian(torch.nn.Parameter(torch.tensor(1.0))).terms()
    message = "the kernel's tensors must be on the device of x, meta, got cpu"
    for call in (
        lambda: ops.mmd2(x, x, None, None, terms),
        lambda: ops.kernel_sum(x, x, x, terms),
        lambda: ops.resolve(x, x, terms),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_numbers_are_made_once() -> None:
    assert numbers([1.0, 2.0], META) is numbers((1.0, 2.0), META)
    assert numbers([1.0, 2.0], META) is not numbers([1.0, 3.0], META)
    assert on_device(torch.tensor([1.0, 2.0], dtype=torch.float64), META) is numbers([1, 2], META)
    with torch.inference_mode():
        assert not numbers([4.0, 5.0], META).is_inference()
    for kernel in (fm.Gaussian(), fm.Gaussian() + 0.5 * fm.Energy()):
        assert kernel.terms(META).scales is kernel.terms(META).scales


@pytest.mark.parametrize("values", [(1.5,), (2.0, 2.0, 2.0), (1.0, 1.0, 2.0, 3.0, 3.0)])
def test_numbers(values: tuple[float, ...]) -> None:
    from fastmmd.terms import _filled

    expected = torch.tensor(values, dtype=torch.float64)
    assert torch.equal(numbers(values), expected)
    assert torch.equal(_filled(values, torch.device("cpu")), expected)
