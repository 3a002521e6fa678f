"""Joint MMD over layers, against products of whole kernel matrices."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from torch import Tensor

import fastmmd as fm

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script.*:DeprecationWarning")

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
KERNELS = {
    "means": lambda: [fm.Gaussian("mean"), fm.Gaussian("mean")],
    "jan": lambda: [fm.Gaussian("mean"), fm.Gaussian(0.92, (1,))],
    "median": lambda: [fm.Laplacian("median"), fm.Matern(nu=2.5, bandwidth="mean")],
    "dots": lambda: [fm.Polynomial(2), fm.Linear()],
    "geometries": lambda: [fm.Cosine(), fm.InverseMultiquadric("mean")],
    "mixed": lambda: [fm.Gaussian(2.0) + 0.5 * fm.Cosine(), fm.Laplacian(1.0) + fm.Linear()],
    "three": lambda: [fm.Gaussian("mean"), fm.RationalQuadratic(bandwidth="mean"), fm.Cosine()],
}
ESTIMATORS = {
    "biased": lambda k, n: oracles.squared_norm(
        k, oracles.signed(torch.ones(n).to(k), torch.ones(len(k) - n).to(k))
    ),
    "unbiased": oracles.unbiased,
    "linear": oracles.linear,
    "block": lambda k, n: oracles.block(k, n, math.isqrt(min(n, len(k) - n))),
    "incomplete": lambda k, n: oracles.incomplete(k, n, 100),
}
WIDTHS = (7, 3, 4)  # of the layers


def make(seed: int, n: int, m: int, count: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Layers x, x1, ... and y, y1, ...; the later ones depend on the first."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    maps = [torch.randn(7, d, generator=generator).double() / 3 for d in WIDTHS]
    for name, size, shift in (("x", n, 0.0), ("y", m, 0.4)):
        first = torch.randn(size, 7, generator=generator, dtype=torch.float64) + shift
        for i in range(count):
            tensors[f"{name}{i or ''}"] = (first if i == 0 else (first @ maps[i]).tanh()).to(dtype)
    return tensors


def layers(tensors: dict[str, Tensor], name: str) -> list[Tensor]:
    return [tensors[key] for key in sorted(tensors) if key.startswith(name)]


def product(tensors: dict[str, Tensor], kernels: list[fm.Kernel]) -> Tensor:
    xs, ys = layers(tensors, "x"), layers(tensors, "y")
    factors = [oracles.matrix(x, y, k) for x, y, k in zip(xs, ys, kernels, strict=True)]
    return math.prod(factors[1:], start=factors[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", KERNELS)
def test_oracle(name: str, estimator: str, dtype: torch.dtype) -> None:
    kernels = KERNELS[name]()
    loss = fm.JointMMDLoss(kernels, estimator)
    tensors = make(0, 33, 20, len(kernels), dtype)
    oracles.hold(
        lambda seed: make(seed, 33, 20, len(kernels), dtype),
        lambda t: loss(layers(t, "x"), layers(t, "y")),
        lambda t: ESTIMATORS[estimator](product(t, kernels), 33),
        list(tensors),
    )


def test_layers_of_different_dtypes() -> None:
    t = make(0, 9, 8, 2, torch.float32)
    xs, ys = layers(t, "x"), layers(t, "y")
    half = [xs[0].half(), xs[1]], [ys[0].half(), ys[1]]
    rounded = [[a.float() for a in side] for side in half]
    assert torch.equal(fm.joint_mmd2(*half), fm.joint_mmd2(*rounded))
    mixed = [half[0][0], xs[1].bfloat16()], [half[1][0], ys[1].bfloat16()]
    rounded = [[a.float() for a in side] for side in mixed]
    assert torch.equal(fm.joint_mmd2(*mixed), fm.joint_mmd2(*rounded))
    double = [xs[0], xs[1].double()], [ys[0], ys[1].double()]
    assert fm.joint_mmd2(*double).dtype == torch.float64


@pytest.mark.parametrize("autocast", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_under_autocast_are_taken_as_they_are(
    autocast: torch.dtype, dtype: torch.dtype
) -> None:
    t = make(0, 9, 8, 2, torch.float32)
    x, y = ([a.to(dtype) for a in layers(t, name)] for name in "xy")
    plain = fm.joint_mmd2(x, y), fm.witness(x[0], y[0], y[0]), *fm.contributions(x[0], y[0])
    with torch.autocast("cpu", autocast):
        cast = fm.joint_mmd2(x, y), fm.witness(x[0], y[0], y[0]), *fm.contributions(x[0], y[0])
    assert all(map(torch.equal, cast, plain))


def test_gradients_of_half_layers_are_of_their_dtype() -> None:
    t = make(0, 9, 8, 2, torch.float32)
    x0, x1 = t["x"].half().requires_grad_(), t["x1"].requires_grad_()
    value = fm.joint_mmd2((x0, x1), (t["y"].half(), t["y1"]))
    gradients = torch.autograd.grad(value, (x0, x1))
    assert [g.dtype for g in gradients] == [torch.float16, torch.float32]
    x2 = x0.detach().float().requires_grad_()
    value = fm.joint_mmd2((x2, x1), (t["y"].half().float(), t["y1"]))
    assert torch.equal(torch.autograd.grad(value, x2)[0].half(), gradients[0])


def test_a_constant_layer_leaves_the_others() -> None:
    t = make(0, 13, 11, 2, torch.float64)
    ones = torch.ones(13, 4).double(), torch.ones(11, 4).double()
    for estimator in ESTIMATORS:
        value = fm.joint_mmd2(
            (t["x"], ones[0]), (t["y"], ones[1]), (fm.Gaussian(1.0), fm.Cosine()), estimator
        )
        expected = fm.mmd2(t["x"], t["y"], fm.Gaussian(1.0), estimator)
        assert torch.allclose(value, expected, rtol=1e-10)


def test_linear_layers_are_a_difference_of_cross_moments() -> None:
    t = make(0, 13, 11, 2, torch.float64)
    moments = [t[f"{n}"].mT @ t[f"{n}1"] / len(t[n]) for n in "xy"]
    value = fm.joint_mmd2((t["x"], t["x1"]), (t["y"], t["y1"]), (fm.Linear(), fm.Linear()))
    assert torch.allclose(value, (moments[0] - moments[1]).square().sum(), rtol=1e-10)


def test_weights() -> None:
    t = make(0, 13, 11, 2, torch.float64)
    p, q = torch.rand(13).double(), torch.rand(11).double()
    kernels = KERNELS["median"]()
    k = product(t, kernels)
    expected, _ = oracles.squared_norm(k, oracles.signed(p, q))
    value = fm.JointMMDLoss(kernels)((t["x"], t["x1"]), (t["y"], t["y1"]), p, q)
    assert torch.allclose(value, expected, rtol=1e-10)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_batch_is_a_loop(estimator: str) -> None:
    pairs = [make(seed, 13, 11, 3, torch.float32) for seed in range(3)]
    xs, ys = (
        [torch.stack(a) for a in zip(*[layers(t, n) for t in pairs], strict=True)] for n in "xy"
    )
    xs[1].requires_grad_()
    loss = fm.JointMMDLoss(KERNELS["three"](), estimator)
    value = loss(xs, ys)
    loop = torch.stack([loss([x[i] for x in xs], [y[i] for y in ys]) for i in range(3)])
    assert torch.equal(value, loop)
    gradients = [torch.autograd.grad(v.sum(), xs[1])[0] for v in (value, loop)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradients(estimator: str) -> None:
    t = make(0, 5, 4, 2, torch.float64)
    s = torch.tensor([0.8, 1.7], dtype=torch.float64)

    def run(x: Tensor, x1: Tensor, y: Tensor, y1: Tensor, s: Tensor) -> Tensor:
        kernels = fm.Gaussian(s, (1,)), fm.Laplacian(s[0]) + 0.5 * fm.Linear()
        return fm.joint_mmd2((x, x1), (y, y1), kernels, estimator)

    inputs = [a.requires_grad_() for a in (t["x"], t["x1"], t["y"], t["y1"], s)]
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_compiled() -> None:
    t = make(0, 20, 24, 2, torch.float32)
    x = t["x"].requires_grad_()
    loss = fm.JointMMDLoss()
    values = [
        f((x, t["x1"]), (t["y"], t["y1"])) for f in (loss, torch.compile(loss, fullgraph=True))
    ]
    assert torch.equal(*values)
    assert torch.equal(*(torch.autograd.grad(v, x)[0] for v in values))


def test_default_kernels_for_any_number_of_layers() -> None:
    for count in (2, 3):
        t = make(0, 9, 8, count, torch.float32)
        kernels = [fm.Gaussian("mean")] * count
        expected = fm.joint_mmd2(layers(t, "x"), layers(t, "y"), kernels)
        assert torch.equal(fm.JointMMDLoss()(layers(t, "x"), layers(t, "y")), expected)
    assert repr(fm.JointMMDLoss()) == "JointMMDLoss(estimator='biased')"


def test_kernels_are_submodules() -> None:
    kernels = [fm.Gaussian(torch.nn.Parameter(torch.tensor(1.0))), fm.Energy()]
    loss = fm.JointMMDLoss(kernels)
    assert list(loss.state_dict()) == ["kernels.0.bandwidth"]
    t = make(0, 6, 7, 2, torch.float32)
    loss(layers(t, "x"), layers(t, "y")).backward()
    assert kernels[0].bandwidth.grad.isfinite()
