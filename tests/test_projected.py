"""The MMD behind a linear map against the map and the MMD, one after the other."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from tolerance import threads
from torch import Tensor

import fastmmd as fm
from fastmmd import ops, reference
from fastmmd.ops._projected import SMALL

ACTIVATIONS = [None, "relu", "tanh", "gelu"]
INCOMING = -1.7
# One row, one image, and more than a block of points, of rows of the map and of features.
SIZES = [(1, 1, 3, 2), (7, 5, 4, 1), (64, 64, 100, 33), (33, 80, 20, 40), (120, 10, 500, 40)]
# Plain float64 is its own oracle, without an error: that is no measure of long sums.
CASES = [(size, torch.float32) for size in SIZES] + [(size, torch.float64) for size in SIZES[:4]]


def arguments(
    n: int, m: int, d: int, p: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = torch.randn(m, d, generator=generator, dtype=torch.float64) + 0.4
    weight = torch.randn(p, d, generator=generator, dtype=torch.float64) / d**0.5
    bias = torch.randn(p, generator=generator, dtype=torch.float64) / 4
    return [t.to(dtype) for t in (x, y, weight, bias)]


def composed(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any
) -> Tensor:
    """In plain PyTorch, with the bandwidth of the images held fixed."""
    act = ops.ACTIVATIONS[options.pop("activation", None)]
    images = (act(torch.nn.functional.linear(z, weight, bias)) for z in (x, y))
    return reference.mmd2(*images, **options)


def derived(function: Any, inputs: list[Tensor], **options: Any) -> list[Tensor]:
    roots = [i.detach().requires_grad_() for i in inputs]
    value = function(*roots, **options)
    return [value.detach(), *torch.autograd.grad(INCOMING * value, roots)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("size", "dtype"), CASES)
def test_tolerance(
    size: tuple[int, int, int, int], dtype: torch.dtype, activation: str | None
) -> None:
    kernel = fm.Gaussian(2.0)
    worst: list[float] = []
    options = {"kernel": kernel, "activation": activation}
    for seed in range(8):
        inputs = arguments(*size, dtype, seed)
        exact = derived(composed, [i.double() for i in inputs], **options)
        plain = derived(composed, inputs, **options)
        errors = [float((a.double() - b).abs().max()) for a, b in zip(plain, exact, strict=True)]
        worst = [max(a, b) for a, b in zip(worst or errors, errors, strict=True)]
    inputs = arguments(*size, dtype)
    exact = derived(composed, [i.double() for i in inputs], **options)
    ours = derived(fm.projected_mmd2, inputs, **options)
    eps = torch.finfo(dtype).eps
    for i, (a, b, error) in enumerate(zip(ours, exact, worst, strict=True)):
        scale = float(b.abs().max()) if i else 4 * 5.0  # five kernels of at most 1
        if i == 4:  # a sum of what may cancel altogether: the MMD feels no shift
            scale = float(sum(g.abs().sum() for g in exact[1:3]))
        assert float((a.double() - b).abs().max()) <= 2 * error + 8 * eps * scale, i


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_same_as_one_after_the_other(activation: str | None) -> None:
    """With our own MMD: options, weights, heuristics, no bias."""
    x, y, weight, _ = arguments(30, 20, 6, 5)
    a, b = (torch.rand(k, dtype=torch.float64) + 0.1 for k in (30, 20))
    act = ops.ACTIVATIONS[activation]

    def both(x: Tensor, y: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
        images = (act(z @ weight.T) for z in (x, y))
        return fm.mmd2(*images, fm.Laplacian("median"), "unbiased", a, b)

    def ours(x: Tensor, y: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return fm.projected_mmd2(
            x, y, weight, None, activation, fm.Laplacian("median"), "unbiased", a, b
        )

    for found, expected in zip(
        derived(ours, [x, y, weight, a, b]), derived(both, [x, y, weight, a, b]), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("estimator", ["linear", "block", "incomplete"])
def test_estimators(estimator: str) -> None:
    x, y, weight, bias = arguments(30, 20, 6, 5)
    images = (torch.nn.functional.linear(z, weight, bias) for z in (x, y))
    expected = fm.mmd2(*images, estimator=estimator)
    found = fm.projected_mmd2(x, y, weight, bias, estimator=estimator)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("wanted", range(4))
def test_one_gradient(wanted: int) -> None:
    inputs = arguments(9, 8, 5, 4)
    every = derived(fm.projected_mmd2, inputs, activation="tanh")
    inputs[wanted].requires_grad_()
    value = fm.projected_mmd2(*inputs, activation="tanh")
    (grad,) = torch.autograd.grad(INCOMING * value, inputs[wanted])
    torch.testing.assert_close(grad, every[1 + wanted])


@pytest.mark.parametrize("activation", [None, "tanh", "gelu"])
def test_derivatives(activation: str | None) -> None:
    inputs = [i.requires_grad_() for i in arguments(4, 5, 3, 2)]
    bandwidth = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, y: Tensor, w: Tensor, b: Tensor, s: Tensor) -> Tensor:
        return fm.projected_mmd2(x, y, w, b, activation, fm.Gaussian(s, (0.5, 1, 2)))

    assert torch.autograd.gradcheck(call, (*inputs, bandwidth))
    assert torch.autograd.gradgradcheck(call, (*inputs, bandwidth))


def test_learned_bandwidths() -> None:
    x, y, weight, bias = arguments(20, 10, 6, 5, torch.float32)
    kernel = fm.Gaussian(fm.RunningBandwidth())
    fm.projected_mmd2(x, y, weight, bias, "relu", kernel)
    images = (torch.relu(torch.nn.functional.linear(z, weight, bias)) for z in (x, y))
    other = fm.Gaussian(fm.RunningBandwidth())
    other.terms_for(*images)
    torch.testing.assert_close(kernel.terms().scales, other.terms().scales)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves(dtype: torch.dtype) -> None:
    inputs = arguments(12, 9, 6, 5, dtype)
    found = derived(fm.projected_mmd2, inputs)
    images = (torch.nn.functional.linear(z, *inputs[2:]) for z in inputs[:2])
    torch.testing.assert_close(found[0], fm.mmd2(*images))
    assert [g.dtype for g in found] == [torch.float32, *[dtype] * 4]


def test_autocast() -> None:
    x, y, weight, bias = arguments(12, 9, 6, 5, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        value = fm.projected_mmd2(x, y, weight, bias)
    images = (
        torch.nn.functional.linear(z.bfloat16(), weight.bfloat16(), bias.bfloat16()) for z in (x, y)
    )
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, fm.mmd2(*images))


def test_compiles() -> None:
    inputs = arguments(12, 9, 6, 5, torch.float32)
    compiled = torch.compile(fm.projected_mmd2, fullgraph=True, backend="aot_eager")
    for a, b in zip(derived(compiled, inputs), derived(fm.projected_mmd2, inputs), strict=True):
        torch.testing.assert_close(a, b)


def test_module() -> None:
    x, y, *_ = arguments(12, 9, 6, 5, torch.float32)
    loss = fm.ProjectedMMDLoss(6, 5, activation="gelu", kernel=fm.Laplacian("mean"))
    loss(x, y).backward()
    assert {name for name, _ in loss.named_parameters()} == {"weight", "bias"}
    assert loss.weight.grad.shape == (5, 6)
    expected = fm.mmd2(loss.project(x), loss.project(y), fm.Laplacian("mean"))
    torch.testing.assert_close(loss(x, y), expected)
    assert fm.ProjectedMMDLoss(6, 5, bias=False).bias is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": torch.zeros(5, 4)}, ValueError, r"weight must be of shape \[p, 3\]"),
        ({"weight": torch.zeros(3)}, ValueError, r"weight must be of shape \[p, 3\]"),
        ({"weight": [[1.0]]}, TypeError, "weight must be a torch.Tensor"),
        (
            {"weight": torch.zeros(2, 3, dtype=torch.float64)},
            TypeError,
            "weight must be torch.float32",
        ),
        ({"bias": torch.zeros(3)}, ValueError, r"bias must be of shape \[2\]"),
        ({"activation": "selu"}, ValueError, "activation must be 'relu', 'tanh', 'gelu' or None"),
        ({"estimator": "none"}, ValueError, "estimator must be"),
        ({"y": torch.zeros(4, 2)}, ValueError, "one width"),
        ({"x": torch.zeros(1, 4, 3), "y": torch.zeros(1, 4, 3)}, ValueError, "rank 2"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"x": torch.zeros(5, 3), "y": torch.zeros(4, 3), "weight": torch.zeros(2, 3)}
    with pytest.raises(error, match=message):
        fm.projected_mmd2(**{**given, **change})


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"in_features": 0}, ValueError),
        ({"out_features": 1.5}, TypeError),
        ({"activation": "x"}, ValueError),
    ],
)
def test_bad_module(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        fm.ProjectedMMDLoss(**{"in_features": 3, "out_features": 2, **options})


def test_nothing_to_differentiate() -> None:
    inputs = arguments(5, 4, 3, 2, torch.float32)
    with contextlib.suppress(AttributeError), torch.no_grad():
        assert not fm.projected_mmd2(*inputs).requires_grad


@pytest.mark.parametrize("name", ops.native.instruction_sets())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_threads_and_layouts(dtype: torch.dtype, name: str) -> None:
    """The same bits on any number of threads, and of rows that are no rows in memory."""
    inputs = arguments(200, 130, 230, 70, dtype)
    before = ops.native.instruction_set()
    ops.native.use_instruction_set(name)
    try:
        with threads(1):
            alone = derived(fm.projected_mmd2, inputs, activation="gelu")
        with threads(3):
            turned = [t.T.contiguous().T if t.ndim == 2 else t for t in inputs]
            for given in (inputs, turned):
                found = derived(fm.projected_mmd2, given, activation="gelu")
                assert all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))
    finally:
        ops.native.use_instruction_set(before)


def test_large_batches() -> None:
    """As a layer and its loss."""
    x, y, weight, bias = arguments(SMALL, 50, 12, 7)
    images = (torch.nn.functional.linear(z, weight, bias).relu() for z in (x, y))
    torch.testing.assert_close(fm.projected_mmd2(x, y, weight, bias, "relu"), fm.mmd2(*images))
