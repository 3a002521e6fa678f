"""Local and class-conditional MMD against loops over the classes."""

from __future__ import annotations

import math
from typing import Any

import oracles
import pytest
import torch
from torch import Tensor

import fastmmd as fm

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script.*:DeprecationWarning")

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
KERNELS = {
    "mean": lambda: fm.Gaussian("mean"),
    "median": lambda: fm.Laplacian("median"),
    "energy": lambda: fm.Energy(),
    "polynomial": lambda: fm.Polynomial(2, coef0=0.5),
    "mixed": lambda: fm.RationalQuadratic(alpha=1.5, bandwidth="mean") + 0.3 * fm.Cosine(),
}
FUNCTIONS = {"local": fm.local_mmd2, "contrastive": fm.class_conditional_mmd2}
LOSSES = {"local": fm.LocalMMDLoss, "contrastive": fm.ClassConditionalMMDLoss}
PLAIN = {"local": oracles.local, "contrastive": oracles.contrastive}


def make(
    seed: int, n: int, m: int, classes: int, dtype: torch.dtype = torch.float64, d: int = 5
) -> dict[str, Tensor]:
    """Features that depend on their class; labels of x, probabilities of y."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, d, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (n,), generator=generator)
    hidden = torch.randint(0, classes, (m,), generator=generator)
    x = centres[labels] + torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = centres[hidden] + 0.5 + torch.randn(m, d, generator=generator, dtype=torch.float64)
    logits = 2 * torch.nn.functional.one_hot(hidden, classes).double()
    logits += torch.randn(m, classes, generator=generator, dtype=torch.float64)
    p = logits.softmax(1)
    return {
        "x": x.to(dtype),
        "y": y.to(dtype),
        "s": labels,
        "t": p.to(torch.float64 if dtype == torch.float64 else torch.float32),
    }


def plain(name: str, kernel: fm.Kernel, classes: int) -> Any:
    def run(tensors: dict[str, Tensor]) -> oracles.Sized:
        k = oracles.matrix(tensors["x"], tensors["y"], kernel)
        s, t = (oracles.memberships(tensors[n], classes) for n in "st")
        return PLAIN[name](k, s, t)

    return run


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_oracle(name: str, kernel: str, dtype: torch.dtype) -> None:
    k = KERNELS[kernel]()
    for n, m, classes in ((33, 20, 4), (8, 30, 2), (20, 9, 31)):  # the last with classes missing
        oracles.hold(
            lambda seed, n=n, m=m, c=classes: make(seed, n, m, c, dtype),
            lambda t, c=classes: LOSSES[name](c, k)(t["x"], t["y"], t["s"], t["t"]),
            plain(name, k, classes),
        )


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("soft", ["neither", "source", "target", "both"])
def test_labels_and_probabilities(name: str, soft: str) -> None:
    t = make(0, 21, 17, 5)
    source = (torch.rand(21, 5).double() * 3).softmax(1) if soft in ("source", "both") else t["s"]
    target = t["t"] if soft in ("target", "both") else t["t"].argmax(1)
    value = FUNCTIONS[name](t["x"], t["y"], source, target, 5)
    exact, _ = plain(name, fm.Gaussian("mean"), 5)(t | {"s": source, "t": target})
    assert torch.allclose(value, exact, rtol=1e-10)
    for dtype in (torch.uint8, torch.int32):
        if not source.is_floating_point():
            again = FUNCTIONS[name](t["x"], t["y"], source.to(dtype), target, 5)
            assert torch.equal(again, value)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_half_gradients_are_rounded_last(name: str) -> None:
    t = make(0, 21, 17, 3, torch.float16)
    gradients = []
    for dtype in (torch.float16, torch.float32):
        x = t["x"].to(dtype).requires_grad_()
        value = FUNCTIONS[name](x, t["y"].to(dtype), t["s"], t["t"], 3)
        assert value.dtype == torch.float32
        gradients.append(torch.autograd.grad(value, x)[0])
    assert torch.equal(gradients[0], gradients[1].half())


def test_original_program() -> None:
    # Weights as Zhu et al. make them, with one n x n matrix of weights for each block.
    t, classes = make(3, 16, 16, 7), 7
    one_hot = torch.nn.functional.one_hot(t["s"], classes).double()
    s, p = (a / torch.where(a.sum(0) == 0, 100.0, a.sum(0)) for a in (one_hot, t["t"]))
    index = sorted(set(t["s"].tolist()) & set(t["t"].argmax(1).tolist()))
    mask = torch.zeros(classes).double()
    mask[index] = 1
    s, p = s * mask, p * mask
    assert 0 < len(index) < classes
    k = oracles.matrix(t["x"], t["y"], fm.Gaussian("mean"))
    ss, tt, st = (a @ b.T / len(index) for a, b in ((s, s), (p, p), (s, p)))
    expected = (ss * k[:16, :16] + tt * k[16:, 16:] - 2 * st * k[:16, 16:]).sum()
    value = fm.local_mmd2(t["x"], t["y"], t["s"], t["t"], classes)
    assert torch.allclose(value, expected, rtol=1e-10)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_class_in_common_is_an_mmd(name: str) -> None:
    t = make(0, 9, 7, 4)
    s = torch.tensor([0, 0, 1, 1, 1, 2, 1, 0, 1])
    p = torch.tensor([1, 1, 3, 1, 3, 3, 1])
    value = FUNCTIONS[name](t["x"], t["y"], s, p, 4, fm.Gaussian(2.0))
    expected = fm.mmd2(t["x"][s == 1], t["y"][p == 1], fm.Gaussian(2.0))
    assert torch.allclose(value, expected, rtol=1e-10)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_class_in_common(name: str) -> None:
    t = make(0, 6, 7, 3)
    x, y = t["x"].requires_grad_(), t["y"].requires_grad_()
    s, p = torch.zeros(6).long(), torch.eye(3).double()[[1, 2, 1, 2, 1, 2, 1]]
    value = FUNCTIONS[name](x, y, s, p, 3)
    assert value == 0
    for gradient in torch.autograd.grad(value, (x, y)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_presence() -> None:
    # No target point has class 2 as its most probable one, but some mass is there.
    t = make(0, 6, 3, 3)
    s = torch.tensor([0, 1, 2, 0, 1, 2])
    p = torch.tensor([[0.6, 0.1, 0.3], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1]]).double()
    k = oracles.matrix(t["x"], t["y"], fm.Gaussian("mean"))
    one_hot = oracles.memberships(s, 3)
    parts = [
        oracles.squared_norm(k, torch.cat([oracles.part(one_hot, c), -oracles.part(p, c)]))[0]
        for c in range(3)
    ]
    value = fm.local_mmd2(t["x"], t["y"], s, p, 3)
    assert torch.allclose(value, (parts[0] + parts[1]) / 2, rtol=1e-10)
    value = fm.LocalMMDLoss(3, presence="mass")(t["x"], t["y"], s, p)
    assert torch.allclose(value, sum(parts) / 3, rtol=1e-10)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_weights_of_points(name: str) -> None:
    # Integer weights are repetitions, and zeros are as if the points were not there.
    t = make(0, 12, 10, 3)
    counts = [torch.tensor(c) for c in ([1, 2, 0, 3, 1, 1, 0, 2, 1, 1, 0, 1], [1, 0, 2, 1] * 3)]
    p, q = counts[0], counts[1][:10]
    kernel = fm.Gaussian(1.5)
    value = FUNCTIONS[name](
        t["x"], t["y"], t["s"], t["t"], 3, kernel, x_weights=p.double(), y_weights=q.double()
    )
    x, s = (t[n].repeat_interleave(p, 0) for n in "xs")
    y, probabilities = (t[n].repeat_interleave(q, 0) for n in "yt")
    assert torch.allclose(value, FUNCTIONS[name](x, y, s, probabilities, 3, kernel), rtol=1e-10)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_class_of_padding_only_is_absent(name: str) -> None:
    t = make(0, 5, 4, 3)
    s = torch.tensor([0, 1, 0, 1, 2])
    p = torch.tensor([0, 1, 2, 2])
    padding = torch.tensor([1.0, 1, 1, 1, 0])
    value = FUNCTIONS[name](t["x"], t["y"], s, p, 3, fm.Gaussian(1.0), x_weights=padding)
    expected = FUNCTIONS[name](t["x"][:4], t["y"], s[:4], p, 3, fm.Gaussian(1.0))
    assert torch.allclose(value, expected, rtol=1e-10)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_order_of_points_and_classes(name: str) -> None:
    t = make(0, 21, 17, 5)
    generator = torch.Generator().manual_seed(0)
    rows, columns, names = (torch.randperm(k, generator=generator) for k in (21, 17, 5))
    value = FUNCTIONS[name](t["x"], t["y"], t["s"], t["t"], 5)
    again = FUNCTIONS[name](
        t["x"][rows],
        t["y"][columns],
        names.argsort()[t["s"][rows]],
        t["t"][columns][:, names],
        5,
    )
    assert torch.allclose(value, again, rtol=1e-10)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_batch_is_a_loop(name: str) -> None:
    pairs = [make(seed, 13, 11, 6, torch.float32) for seed in range(4)]
    x, y, s, p = (torch.stack([t[n] for t in pairs]) for n in "xyst")
    s[1] = 2  # one class at most in common
    x.requires_grad_()
    u = torch.rand(4, 13)
    value = FUNCTIONS[name](x, y, s, p, 6, x_weights=u)
    loop = [
        FUNCTIONS[name](a, b, c, e, 6, x_weights=f)
        for a, b, c, e, f in zip(x, y, s, p, u, strict=True)
    ]
    assert value.shape == (4,)
    assert torch.allclose(value, torch.stack(loop), rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(v, x)[0] for v in (value.sum(), sum(loop))]
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients(name: str) -> None:
    t = make(0, 6, 5, 3, d=2)
    s = torch.tensor([0.8, 1.7], dtype=torch.float64)
    u = torch.rand(6, dtype=torch.float64) + 0.1

    def run(x: Tensor, y: Tensor, p: Tensor, s: Tensor, u: Tensor) -> Tensor:
        # rows that gradcheck has moved are brought back to sums of 1
        p = p / p.sum(1, keepdim=True)
        kernel = fm.Gaussian(s, (1,)) + 0.2 * fm.Linear()
        return FUNCTIONS[name](
            x, y, t["s"], p, 3, kernel, presence="mass", x_weights=u, differentiate_classes=True
        )

    inputs = [a.requires_grad_() for a in (t["x"], t["y"], t["t"], s, u)]
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_probabilities_are_constants_unless_asked_for(name: str) -> None:
    t = make(0, 12, 10, 3)
    y = t["y"].requires_grad_()
    logits = t["t"].log().requires_grad_()
    for loss in (LOSSES[name](3), LOSSES[name](3, differentiate_classes=True)):
        value = loss(t["x"], y, t["s"], logits.softmax(1))
        _, gradient = torch.autograd.grad(value, (y, logits), allow_unused=True)
        assert (gradient is not None) == loss.differentiate_classes


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("common", [0, 1, 3])
def test_compiled(name: str, common: int) -> None:
    t = make(0, 20, 24, 3, torch.float32)
    p = t["t"] if common == 3 else torch.eye(3)[torch.full((24,), 2)]
    s = t["s"] if common else t["s"].clamp(max=1)
    x = t["x"].requires_grad_()
    loss = LOSSES[name](3)
    values = [f(x, t["y"], s, p) for f in (loss, torch.compile(loss, fullgraph=True))]
    assert torch.allclose(*values, rtol=1e-5, atol=1e-7)
    gradients = [torch.autograd.grad(v, x)[0] for v in values]
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bad_data_is_no_error(name: str) -> None:
    t = make(0, 6, 7, 2)
    t["x"][1, 2] = math.nan
    assert FUNCTIONS[name](t["x"], t["y"], t["s"], t["t"], 2).isnan()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_all_points_equal(name: str) -> None:
    x, y = torch.ones(6, 3, requires_grad=True), torch.ones(5, 3)
    s, p = torch.tensor([0, 1, 0, 1, 2, 2]), torch.tensor([0, 1, 2, 0, 1])
    value = FUNCTIONS[name](x, y, s, p, 3)
    (gradient,) = torch.autograd.grad(value, x)
    assert abs(value) <= 1e-6
    assert torch.equal(gradient, torch.zeros(6, 3))


def test_repr() -> None:
    assert repr(fm.LocalMMDLoss(31, fm.Energy(), presence="mass")) == (
        "LocalMMDLoss(\n  num_classes=31, presence='mass'\n  (kernel): Energy()\n)"
    )
    assert repr(fm.ClassConditionalMMDLoss(2, fm.Energy(), differentiate_classes=True)) == (
        "ClassConditionalMMDLoss(\n  num_classes=2, differentiate_classes=True\n"
        "  (kernel): Energy()\n)"
    )
