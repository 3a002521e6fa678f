"""What holds for all drop-ins."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import geomloss
import pytest
import torch
from originals import features
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastmmd as fm
from fastmmd import compat
from fastmmd.compat import deepda, pytorch_adapt, tllib
from fastmmd.compat.geomloss import SamplesLoss

ALPHAS = [2.0**k for k in range(-3, 2)]
LABELS = torch.arange(200) % 3
PROBABILITIES = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)).softmax(1)


def kernels() -> list[tllib.GaussianKernel]:
    return [tllib.GaussianKernel(alpha=a) for a in ALPHAS]


class First(nn.Module):
    """A loss of the first layers."""

    def __init__(self, loss: nn.Module, *further: Tensor) -> None:
        super().__init__()
        self.loss, self.further = loss, further

    def forward(self, x: list[Tensor], y: list[Tensor]) -> Tensor:
        return self.loss(x[0], y[0], *self.further)


LOSSES: dict[str, Callable[..., nn.Module]] = {
    "tllib": lambda **o: First(tllib.MultipleKernelMaximumMeanDiscrepancy(kernels(), **o)),
    "tllib linear": lambda **o: First(
        tllib.MultipleKernelMaximumMeanDiscrepancy(kernels(), True, **o)
    ),
    "tllib joint": lambda **o: tllib.JointMultipleKernelMaximumMeanDiscrepancy(
        [kernels(), kernels()[:1]], False, **o
    ),
    "tllib joint linear": lambda **o: tllib.JointMultipleKernelMaximumMeanDiscrepancy(
        [kernels(), kernels()[:1]], **o
    ),
    "deepda": lambda **o: First(deepda.MMDLoss(**o)),
    "deepda linear": lambda **o: First(deepda.MMDLoss("linear", **o)),
    "deepda local": lambda **o: First(deepda.LMMDLoss(3, **o), LABELS, PROBABILITIES),
    "dsan local": lambda **o: First(deepda.LMMD_loss(3, **o), LABELS, PROBABILITIES),
    "pytorch-adapt": lambda **o: pytorch_adapt.MMDLoss(pytorch_adapt.get_kernel_scales(), **o),
    "pytorch-adapt quadratic": lambda **o: pytorch_adapt.MMDLoss(mmd_type="quadratic", **o),
    "pytorch-adapt batched": lambda **o: First(
        pytorch_adapt.MMDBatchedLoss(mmd_type="quadratic", **o)
    ),
    "geomloss": lambda **o: First(SamplesLoss("laplacian", blur=2.0, **o)),
}


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operator returns."""

    size = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(t, Tensor):
                self.size = max(self.size, t.numel())
        return result


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_nothing_is_as_large_as_a_matrix(name: str, corrected: bool) -> None:
    loss = LOSSES[name](corrected=corrected)
    x, y = features(200, 200, (5, 4))(0, torch.float32)
    x = [t.requires_grad_() for t in x]
    with Largest() as largest:
        loss(x, y).sum().backward()
    # All that there is, features, kernels and classes, is less than a tenth of n m = 40000.
    assert 200 <= largest.size <= 4000


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_copies(name: str, corrected: bool) -> None:
    loss = LOSSES[name](corrected=corrected)
    x, y = features(200, 200, (5, 4))(0, torch.float32)
    assert not list(loss.parameters())
    first = copy.deepcopy(loss)(x, y)
    assert torch.equal(pickle.loads(pickle.dumps(loss))(x, y), first)
    loss(x, y)
    again = copy.deepcopy(loss).to(torch.float64)
    again([t.double() for t in x], [t.double() for t in y])
    assert repr(loss)


@pytest.mark.parametrize("name", [n for n in LOSSES if "local" not in n])
def test_compile(name: str) -> None:
    torch.compiler.reset()
    loss = LOSSES[name]()
    x, y = features(200, 200, (5, 4))(0, torch.float32)
    compiled = torch.compile(loss, backend="aot_eager")
    x = [t.requires_grad_() for t in x]
    torch.testing.assert_close(compiled(x, y), loss(x, y))
    gradients = [
        torch.autograd.grad(f(x, y).sum(), x, allow_unused=True, materialize_grads=True)
        for f in (compiled, loss)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", LOSSES)
def test_transforms_leave_nothing_behind(name: str) -> None:
    """A gradient of torch.func first, vmap next, and the plain call last, of one module."""
    loss = LOSSES[name]()
    x, y = features(200, 200, (5, 4))(0, torch.float64)

    def value(first: Tensor) -> Tensor:
        if name == "deepda local":
            loss.loss.curr_iter = 3
        return loss([first, x[1]], y).sum()

    gradient = torch.func.grad(value)(x[0])
    values = torch.func.vmap(value)(torch.stack([x[0], 2 * x[0]]))
    torch.testing.assert_close(values, torch.stack([value(x[0]), value(2 * x[0])]))
    first = x[0].clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(value(first), first)[0], gradient)


def arguments(function: Callable[..., Any]) -> dict[str, Any]:
    return {
        name: p.default
        for name, p in inspect.signature(function).parameters.items()
        if p.kind == p.POSITIONAL_OR_KEYWORD and name != "self"
    }


EMPTY = inspect.Parameter.empty


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SamplesLoss, arguments(geomloss.SamplesLoss)),
        (tllib.GaussianKernel, {"sigma": None, "track_running_stats": True, "alpha": 1.0}),
        (tllib.MultipleKernelMaximumMeanDiscrepancy, {"kernels": EMPTY, "linear": False}),
        (
            tllib.JointMultipleKernelMaximumMeanDiscrepancy,
            {"kernels": EMPTY, "linear": True, "thetas": None},
        ),
        (tllib.CorrelationAlignmentLoss, {}),
        (
            deepda.MMDLoss,
            {"kernel_type": "rbf", "kernel_mul": 2.0, "kernel_num": 5, "fix_sigma": None},
        ),
        (
            deepda.LMMDLoss,
            {
                "num_class": EMPTY,
                "kernel_type": "rbf",
                "kernel_mul": 2.0,
                "kernel_num": 5,
                "fix_sigma": None,
                "gamma": 1.0,
                "max_iter": 1000,
            },
        ),
        (
            pytorch_adapt.MMDLoss,
            {"kernel_scales": 1, "mmd_type": "linear", "dist_func": None, "bandwidth": None},
        ),
        (pytorch_adapt.MMDBatchedLoss, {"batch_size": 1024}),
    ],
)
def test_constructors(ours: Callable[..., Any], theirs: dict[str, Any]) -> None:
    found = arguments(ours)
    assert found == theirs
    assert list(found) == list(theirs)  # by position too


def test_modules_are_imported_when_asked_for() -> None:
    """Nobody pays for torchmetrics, or for a library that is replaced, who does not ask."""
    code = """
import sys, fastmmd as fm
assert "fastmmd.compat" not in sys.modules
fm.compat.deepda.MMDLoss, fm.compat.tllib.GaussianKernel
fm.compat.pytorch_adapt.MMDLoss, fm.compat.geomloss.SamplesLoss
for name in ("torchmetrics", "geomloss", "pykeops"):
    assert name not in sys.modules, name
fm.compat.torchmetrics.CMMD
assert "torchmetrics" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match=r"fastmmd.compat.* has no attribute 'keras'"):
        compat.keras  # noqa: B018


def test_dropping_in_changes_no_training_step() -> None:
    """The same weights after a step of SGD, with the original and with ours."""
    from originals import deepda as original
    from originals import direct

    def trained(loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        torch.manual_seed(0)
        network = nn.Linear(6, 4).double()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for seed in range(5):
            x, y = features(20, 20)(seed, torch.float64)
            optimizer.zero_grad()
            loss(network(x[0]), network(y[0])).backward()
            optimizer.step()
        return network.weight

    theirs = trained(lambda x, y: original()([x], [y], direct).value())
    torch.testing.assert_close(trained(deepda.MMDLoss()), theirs)
    torch.testing.assert_close(trained(fm.MMDLoss()), theirs)
