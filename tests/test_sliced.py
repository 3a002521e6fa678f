"""The MMD on random lines against the energy kernel, pair by pair."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fastmmd as fm
from fastmmd import ops, reference
from fastmmd.sliced import directions, projected_length

SIZES = [(1, 1), (1, 4), (2, 3), (37, 50), (65, 64), (400, 300)]
INCOMING = -1.7


def samples(
    n: int, m: int, d: int = 3, dtype: torch.dtype = torch.float64, offset: float = 0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) + offset
    y = torch.randn(m, d, generator=generator, dtype=torch.float64) * 1.3 + 0.4 + offset
    return x.to(dtype), y.to(dtype)


def derived(function: Any, inputs: list[Tensor], **options: Any) -> list[Tensor]:
    """The value and its gradients to all inputs, times the gradient that arrives."""
    roots = [i.detach().requires_grad_() for i in inputs]
    value = function(*roots, **options)
    return [value.detach(), *torch.autograd.grad(INCOMING * value, roots)]


def by_lines(function: Any, weighted: bool, estimator: str) -> Any:
    def call(x: Tensor, y: Tensor, projections: Tensor, *weights: Tensor) -> Tensor:
        pair = dict(zip(("x_weights", "y_weights"), weights, strict=True)) if weighted else {}
        return function(x, y, projections=projections, estimator=estimator, **pair)

    return call


@pytest.mark.parametrize("weighted", [False, True], ids=["even", "weighted"])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "m"), SIZES)
def test_against_pairs(
    n: int, m: int, dtype: torch.dtype, offset: float, estimator: str, weighted: bool
) -> None:
    if estimator == "unbiased" and min(n, m) < 2:
        with pytest.raises(ValueError, match="at least 2 points"):
            fm.sliced_mmd2(*samples(n, m), estimator="unbiased")
        return
    ours, oracle = (
        by_lines(f, weighted, estimator) for f in (fm.sliced_mmd2, reference.sliced_mmd2)
    )
    worst = None
    for seed in range(8):
        x, y = samples(n, m, 3, dtype, offset, seed)
        p = directions(3, 5, seed, dtype, x.device)
        generator = torch.Generator().manual_seed(seed)
        w = [torch.rand(k, generator=generator, dtype=torch.float64) + 0.1 for k in (n, m)]
        inputs = [x, y, p, *(w if weighted else [])]
        exact = derived(oracle, [i.double() for i in inputs])
        # In the other order, as plain PyTorch may add up as well.
        middle = torch.cat([x, y]).double().mean(0)
        centred = [(z.double() - middle).to(dtype).flip(0) for z in (x, y)]
        plain = derived(oracle, [*centred, p, *(v.flip(0) for v in inputs[3:])])
        plain = [v if i in (0, 3) else v.flip(0) for i, v in enumerate(plain)]
        errors = [float((a.double() - b).abs().max()) for a, b in zip(plain, exact, strict=True)]
        worst = errors if worst is None else [max(a, b) for a, b in zip(worst, errors, strict=True)]
        found = derived(ours, inputs)
        if seed:
            continue
        first, target = found, exact
    assert worst is not None
    eps = torch.finfo(dtype).eps
    z = torch.cat([x, y]).double()
    size = float((torch.cdist(z, z)).mean()) * 4
    for i, (a, b, error) in enumerate(zip(first, target, worst, strict=True)):
        scale = float(b.abs().max()) if i else size
        scale = max(scale, size * math.sqrt(3) * 4) if i > 1 else scale
        assert float((a.double() - b).abs().max()) <= 2 * error + 8 * eps * scale, i


def test_constant() -> None:
    """The mean over many directions is c_d times the energy distance."""
    x, y = samples(40, 50, 6)
    energy = float(fm.energy_distance(x, y))
    each = torch.stack([fm.sliced_mmd2(x, y, 500, seed=s, normalized=True) for s in range(20)])
    error = float(each.std()) / math.sqrt(len(each))
    assert abs(float(each.mean()) - energy) < 4 * error < 0.05 * energy
    ratio = float(fm.sliced_mmd2(x, y, 64) / fm.sliced_mmd2(x, y, 64, normalized=True))
    assert ratio == pytest.approx(projected_length(6))


def test_length() -> None:
    """On the circle the mean of |cos| is 2 / pi, on the sphere 1/2, in one dimension 1."""
    assert [projected_length(d) for d in (1, 2, 3)] == pytest.approx([1, 2 / math.pi, 0.5])


def test_one_feature_is_the_energy_distance() -> None:
    x, y = samples(30, 20, 1)
    for estimator in ("biased", "unbiased"):
        exact = fm.energy_distance(x, y, estimator)
        assert float(fm.sliced_mmd2(x, y, 3, estimator=estimator)) == pytest.approx(float(exact))


def test_derivatives() -> None:
    x, y = samples(6, 5, 2)
    p = directions(2, 3, 1, torch.float64, x.device)
    w = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    roots = [t.requires_grad_() for t in (x, y, p, w)]

    def call(x: Tensor, y: Tensor, p: Tensor, w: Tensor) -> Tensor:
        return fm.sliced_mmd2(x, y, projections=p, x_weights=w, estimator="unbiased")

    assert torch.autograd.gradcheck(call, roots)
    assert torch.autograd.gradgradcheck(call, roots)


def test_ties_have_no_slope() -> None:
    x = torch.tensor([[0.0], [1.0], [1.0]], requires_grad=True)
    y = torch.tensor([[1.0], [2.0]], requires_grad=True)
    fm.sliced_mmd2(x, y, 1).backward()
    expected = [t.grad for t in (x, y)]
    x2, y2 = (t.detach().requires_grad_() for t in (x, y))
    fm.energy_distance(x2, y2).backward()
    for a, b in zip(expected, (x2.grad, y2.grad), strict=True):
        torch.testing.assert_close(a, b)


def test_equal_samples() -> None:
    x, _ = samples(50, 1)
    y = x.clone().requires_grad_()
    value = fm.sliced_mmd2(x, y)
    value.backward()
    assert float(value.detach()) == 0
    assert float(y.grad.abs().max()) < 1e-15
    same = torch.full((5, 2), 3.0, requires_grad=True)
    fm.sliced_mmd2(same, same.detach()[:3]).backward()
    assert not same.grad.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_number(bad: float) -> None:
    x, y = samples(20, 70)
    x[3, 1] = bad
    x.requires_grad_()
    value = fm.sliced_mmd2(x, y, 4)
    value.backward()
    assert not math.isfinite(float(value.detach()))
    if math.isnan(bad):
        assert x.grad.isnan().any()


def test_threads_and_batches_of_lines() -> None:
    """The same bits for any number of threads."""
    x, y = samples(3000, 2000, 4, torch.float32)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            s, t = (
                torch.randn(9, k, generator=torch.Generator().manual_seed(k)) for k in (3000, 2000)
            )
            found.append(
                derived(
                    lambda s, t: ops.line_energy(
                        s, t, None, None, torch.ones(2, dtype=torch.float64)
                    ).sum(),
                    [s, t],
                )
            )
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b)
    assert x.isfinite().all()
    assert y.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves(dtype: torch.dtype) -> None:
    x, y = samples(30, 20, 3, dtype)
    x.requires_grad_()
    value = fm.sliced_mmd2(x, y, 8)
    value.backward()
    exact = fm.sliced_mmd2(x.detach().double(), y.double(), 8)
    assert value.dtype == torch.float32
    assert x.grad.dtype == dtype
    assert float(value.detach()) == pytest.approx(float(exact), rel=1e-5)


def test_sorting_of_torch_agrees() -> None:
    """What CUDA tensors take, here on the CPU."""
    from fastmmd.ops._lines import _anywhere, _cpu

    s, t = (
        torch.randn(4, k, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
        for k in (7, 5)
    )
    a, b = (torch.rand(k, dtype=torch.float64) + 0.1 for k in (7, 5))
    q = torch.tensor([1.2, 1.0], dtype=torch.float64)
    args = (s, t, a / a.sum(), b / b.sum(), q, [True] * 4)
    found = [list(f(*args)) for f in (_cpu, _anywhere)]
    for of in found:  # weights keep their sum: a constant gradient says nothing
        of[4:] = [v - (v * w).sum(1, keepdim=True) for v, w in zip(of[4:], args[2:4], strict=True)]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_operator() -> None:
    s, t = (torch.randn(3, k, dtype=torch.float64).requires_grad_() for k in (6, 4))
    q = torch.ones(2, dtype=torch.float64)
    torch.library.opcheck(
        torch.ops.fastmmd.line_energy, (s, t, None, None, q, [True, True, False, False])
    )


def test_compiles() -> None:
    x, y = samples(20, 30, 3, torch.float32)
    compiled = torch.compile(fm.sliced_mmd2, fullgraph=True, backend="aot_eager")
    roots = [t.detach().requires_grad_() for t in (x, y)]
    p = directions(3, 4, 0, torch.float32, x.device)
    a, b = (
        derived(lambda x, y, f=f: f(x, y, projections=p), roots) for f in (compiled, fm.sliced_mmd2)
    )
    for ours, theirs in zip(a, b, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_module() -> None:
    x, y = samples(20, 30, 3, torch.float32)
    loss = fm.SlicedMMDLoss(16, seed=3)
    assert torch.equal(loss(x, y), fm.sliced_mmd2(x, y, 16, seed=3))
    fresh = fm.SlicedMMDLoss(16)
    assert not torch.equal(fresh(x, y), fresh(x, y))
    assert "16" in repr(loss)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_projections": 0}, ValueError, "num_projections must be at least 1, got 0"),
        ({"num_projections": 2.5}, TypeError, "num_projections must be an integer"),
        ({"seed": "x"}, TypeError, "seed must be an integer"),
        ({"estimator": "linear"}, ValueError, "'biased' or 'unbiased'"),
        ({"estimator": "none"}, ValueError, "estimator must be"),
        ({"projections": torch.zeros(2, 4)}, ValueError, r"projections must be of shape \[3, L\]"),
        ({"projections": torch.zeros(3, 0)}, ValueError, r"projections must be of shape \[3, L\]"),
        ({"projections": [1]}, TypeError, "projections must be a torch.Tensor"),
        (
            {"x_weights": torch.tensor([-1.0] * 5)},
            ValueError,
            "x_weights must be finite and non-neg",
        ),
        ({"y_weights": torch.ones(3)}, ValueError, "y_weights must be of shape"),
    ],
)
def test_bad_input(options: dict[str, Any], error: type[Exception], message: str) -> None:
    x, y = samples(5, 4)
    with pytest.raises(error, match=message):
        fm.sliced_mmd2(x, y, **options)
    with pytest.raises(ValueError, match="rank 2"):
        fm.sliced_mmd2(x[None], y[None])
