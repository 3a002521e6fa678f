"""What holds of random features on CUDA wherever they run: on a GPU, or on the emulator.

The modules that run these tests give a ``backend``, as for :mod:`cuda_bodies`. Results are held to
the tolerance rule at the precision of the operands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import feature_cases
import pytest
import torch
from cuda_backend import Backend, bits, needs, precision
from feature_cases import BANK, FORMS, Case, Kind, Results, make_case, samples
from tolerance import SEEDS, errors
from torch import Tensor, nn

import fastmmd as fm
from fastmmd import ops
from fastmmd.frequencies import SCHEMES, STRUCTURED, dense, draw
from fastmmd.ops import _features_cuda, _roads
from fastmmd.ops._roads import BFLOAT16, FLOAT32, FLOAT64, MMA, SIMT, TF32, TF32X3, WGMMA, Road
from fastmmd.terms import GAUSSIAN, LAPLACIAN

ROADS = [
    (SIMT, FLOAT32),
    (MMA, TF32X3),
    (MMA, TF32),
    (MMA, BFLOAT16),
    (WGMMA, TF32),
    (WGMMA, BFLOAT16),
]


@contextmanager
def forced(**road: Any) -> Iterator[None]:
    """A road for all passes in a block; nothing but what is named is changed."""
    before, taken = _features_cuda.choose, []

    def choose(*facts: Any) -> Road:
        taken.append(facts)
        return _roads.feature_road(*facts)._replace(**road)

    _features_cuda.choose = choose
    try:
        yield
    finally:
        _features_cuda.choose = before
    assert taken


def at(backend: Backend, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.to(backend.device) for t in tensors)


def on(backend: Backend) -> Callable[[Case], Results]:
    """What is under test, on the device of the backend."""

    def run(case: Case) -> Results:
        moved = {name: t.to(backend.device) for name, t in case.inputs().items()}
        return {k: t.cpu() for k, t in feature_cases.native(case._replace(**moved)).items()}

    return run


def rounding(operand: int) -> dict[str, Any]:
    """Options of :func:`feature_cases.check` for projections of operands of fewer bits."""
    if operand not in bits:
        return {}
    steps = 2.0 ** bits[operand]

    def rounded(t: Tensor) -> Tensor:
        mantissa, exponent = torch.frexp(t.detach())
        return t + (torch.ldexp((mantissa * steps).round() / steps, exponent) - t.detach())

    return {"rounded": rounded, "eps": 1 / steps}


def check(
    backend: Backend, kind: Kind, form: str, dtype: torch.dtype, operand: int, **road: Any
) -> None:
    cases = [make_case(kind, form, dtype, seed) for seed in SEEDS]
    with forced(operand=operand, panel_rows=128, **road):
        feature_cases.check(cases, on(backend), most=backend.most, **rounding(operand))


KINDS = {
    **feature_cases.KINDS,
    "rates": Kind(30, 20, 9, 33, (0.3, 1.0, 1.9, 4.0), (1.0, 1.7, 2.0)),
    "panels": Kind(150, 20, 34, 140, (1.0, 4.0), weighted=True),
}
del KINDS["blocks"]


@pytest.mark.parametrize(("products", "operand"), ROADS)
@pytest.mark.parametrize("name", KINDS)
def test_tolerance(backend: Backend, name: str, products: int, operand: int) -> None:
    needs(backend, products)
    form = FORMS[(len(name) + products) % 2]
    check(backend, KINDS[name], form, torch.float32, operand, products=products)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["plain", "bank", "offset", "panels"])
def test_tolerance_of_float64(backend: Backend, name: str, form: str) -> None:
    check(backend, KINDS[name], form, torch.float64, FLOAT64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("setting", ["highest", "medium"])
def test_half_inputs(backend: Backend, dtype: torch.dtype, setting: str) -> None:
    x, y = samples(60, 45, 12, dtype)
    w = draw(GAUSSIAN, 0.0, SCHEMES["iid"], 12, 70, 3).w
    made, exact = [], []
    for into, as_double in ((made, False), (exact, True)):
        z = x.double() if as_double else x.to(backend.device)
        other, v = (y.double(), w.double()) if as_double else at(backend, y, w)
        z.requires_grad_()
        with precision(setting):
            value = fm.random_feature_mmd2(z, other, kernel=fm.Gaussian(5.0), frequencies=v)
            (gradient,) = torch.autograd.grad(value, z)
        into += [value.detach().cpu(), gradient.cpu()]
    assert made[0].dtype == torch.float32
    assert made[1].dtype == dtype
    eps = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11
    assert abs(float(made[0] - exact[0])) <= 8 * eps
    error = float((made[1].double() - exact[1]).abs().max())
    assert error <= 8 * eps * float(exact[1].abs().max())


# --- structured frequencies ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("n", "d", "count"), [(1, 1, 5), (20, 5, 70), (33, 64, 64), (19, 130, 300)]
)
def test_structured_is_its_dense_matrix(
    backend: Backend, n: int, d: int, count: int, dtype: torch.dtype
) -> None:
    """The means, and all gradients, with the matrix of the same signs and radii written out."""
    x, _ = samples(n, 1, d, dtype, offset=2.0)
    radii, signs, b = draw(GAUSSIAN, 0.0, STRUCTURED, d, count, 5)
    generator = torch.Generator().manual_seed(2)
    masses = torch.rand(n, generator=generator, dtype=torch.float64)
    rates = torch.tensor([0.2, 0.1, 0.4, 0.15], dtype=torch.float64)
    into = torch.randn(4, count, generator=generator, dtype=torch.float64)
    assert signs is not None

    def run(x: Tensor, w: Tensor, signs: Tensor | None, *others: Tensor) -> Results:
        leaves = [t.detach().clone().requires_grad_() for t in (x, *others[:3])]
        mean = ops.feature_mean(leaves[0], leaves[1], w, signs, *leaves[2:])
        names = ("x", "masses", "b", "rates")
        made = torch.autograd.grad(mean, leaves, others[3])
        results = {"mean": mean.detach(), **dict(zip(names, made, strict=True))}
        return {name: t.cpu() for name, t in results.items()}

    others = (masses, b, rates, into)
    exact = run(*at(backend, x.double(), dense(radii, signs, d)), None, *at(backend, *others))
    found = run(*at(backend, x, radii, signs), *at(backend, *others))
    eps = torch.finfo(dtype).eps
    for name, error in errors(found, exact).items():
        # Angles are as large as they are, and what is added up is of the size of the inputs.
        scale = 8 * d**0.5 * (1 + float(exact[name].abs().max())) * (n if name == "rates" else 1)
        assert error <= 8 * eps * scale, f"{name}: {error:.3g}"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_as_on_the_cpu(backend: Backend, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seed is the same frequencies; and the standard error is made of the same."""
    x, y = samples(50, 40, 6)
    kernel = fm.Gaussian(2.0) + 0.5 * fm.Laplacian(1.5)
    found = fm.random_feature_mmd2(
        *at(backend, x, y), 300, kernel, 7, scheme, "pair", return_error=True
    )
    with monkeypatch.context() as patch:
        patch.setattr(ops._cuda, "serves", lambda x: not x.is_cpu)
        exact = fm.random_feature_mmd2(
            x.double(), y.double(), 300, kernel, 7, scheme, "pair", return_error=True
        )
    for a, b in zip(found, exact, strict=True):
        assert abs(float(a) - float(b)) <= 2e-6


# --- numbers that are none, and large ones -------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scheme", ["iid", "structured"])
def test_huge_angles_stay_finite(backend: Backend, scheme: str, dtype: torch.dtype) -> None:
    x, y = at(backend, *samples(20, 30, 3, dtype))
    for scale in (1e5, 1e12, 1e30):
        z = (scale * x).requires_grad_()
        value = fm.random_feature_mmd2(z, scale * y, 64, fm.Gaussian(1.0), 0, scheme)
        (gradient,) = torch.autograd.grad(value, z)
        assert 0 <= float(value.detach()) < 25
        assert gradient.isfinite().all()


@pytest.mark.parametrize("products", [SIMT, MMA, WGMMA])
def test_large_angles_are_those_of_the_rounded_projection(backend: Backend, products: int) -> None:
    """Exactly representable products: the reduction of the angle is all that can err."""
    needs(backend, products)
    generator = torch.Generator().manual_seed(0)
    t = torch.randint(-1024, 1025, (40, 1), generator=generator).float()
    x = torch.cat([t, -t])  # about 0
    w = torch.tensor([[1.0, 512.0, 2.0**16, 2.0**30]])
    rates = torch.ones(1, dtype=torch.float64)
    operand = FLOAT32 if products == SIMT else TF32
    with forced(products=products, operand=operand):
        made = ops.feature_mean(
            *at(backend, x), None, *at(backend, w), None, None, *at(backend, rates)
        )
    angles = x.double() @ w.double()
    exact = torch.cat([angles.cos(), angles.sin()], 1).mean(0)
    bound = 2.0**-20 if products == SIMT else 2.0**-17
    assert float((made[0].cpu() - exact).abs().max()) <= bound


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("scheme", ["iid", "structured"])
@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_not_a_number(backend: Backend, scheme: str, bad: float, setting: str) -> None:
    x, y = samples(20, 30, 3)
    x[7, 1] = bad
    x, y = at(backend, x, y)
    x.requires_grad_()
    with precision(setting):
        value = fm.random_feature_mmd2(x, y, 64, fm.Gaussian(1.0), 0, scheme)
        value.backward()
    assert value.isnan()
    assert x.grad is not None
    assert x.grad.isnan().any()


def test_equal_points(backend: Backend) -> None:
    x, y = (torch.full((k, 3), 2.5, device=backend.device) for k in (5, 4))
    x.requires_grad_()
    for scheme in ("iid", "structured"):
        value = fm.random_feature_mmd2(x, y, 64, fm.Gaussian("mean"), 0, scheme)
        (gradient,) = torch.autograd.grad(value, x)
        assert value == 0
        assert float(gradient.abs().max()) < 1e-6


# --- the rest ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["iid", "structured"])
@pytest.mark.parametrize("setting", ["highest", "high"])
def test_deterministic(backend: Backend, scheme: str, setting: str) -> None:
    x, y = at(backend, *samples(150, 140, 20))

    def run() -> list[Tensor]:
        z = x.clone().requires_grad_()
        scale = torch.tensor(3.0, dtype=torch.float64, device=x.device, requires_grad=True)
        value = fm.random_feature_mmd2(z, y, 200, fm.Gaussian(scale), 1, scheme)
        return [value.detach(), *torch.autograd.grad(value, (z, scale))]

    with precision(setting):
        first = run()
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_strides(backend: Backend) -> None:
    x, y = at(backend, *samples(30, 20, 5))
    w = torch.randn(40, 5, generator=torch.Generator().manual_seed(1)).to(backend.device)
    plain = fm.random_feature_mmd2(x, y, frequencies=w.T.contiguous())
    wide = torch.zeros(20, 10, device=backend.device)
    wide[:, ::2] = y
    for a, b, c in ((x.T.contiguous().T, y, w.T), (x, wide[:, ::2], w.T)):
        assert torch.equal(plain, fm.random_feature_mmd2(a, b, frequencies=c))
    row = x[:1].expand(7, 5)
    assert torch.equal(
        fm.random_feature_mmd2(row, y, 64), fm.random_feature_mmd2(row.contiguous(), y, 64)
    )


def test_many_rates(backend: Backend) -> None:
    """More than one group of them, and chains of every length."""
    x, y = samples(9, 7, 3, torch.float64)
    bandwidths = 2 ** torch.linspace(-2, 2, 100, dtype=torch.float64)
    w, _, b = draw(GAUSSIAN, 0.0, SCHEMES["iid"], 3, 9, 0)
    w = w.double()
    one = torch.ones(200, dtype=torch.float64)
    case = Case(x, y, None, None, w, b, bandwidths, one, (0.25, 1.0))
    found, exact = on(backend)(case)["value"], feature_cases.exactly(case)
    assert abs(float(found) - float(exact)) <= 1e-12 * float(exact)


def test_second_order(backend: Backend) -> None:
    """Where the slopes of the first order are differentiated by torch."""
    x, y = samples(12, 10, 3, torch.float64)
    w, _, b = draw(GAUSSIAN, 0.0, SCHEMES["iid"], 3, 10, 0)
    w = w.double()

    def second(function: Callable[[Tensor, Tensor], Tensor], *given: Tensor) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in given]
        (slope,) = torch.autograd.grad(function(*leaves), leaves[0], create_graph=True)
        return [t.cpu() for t in torch.autograd.grad(slope.square().sum(), leaves)]

    def native(x: Tensor, scale: Tensor) -> Tensor:
        options = {"frequencies": w.to(backend.device), "phases": b.to(backend.device)}
        return fm.random_feature_mmd2(x, y.to(backend.device), kernel=fm.Gaussian(scale), **options)

    def plain(x: Tensor, scale: Tensor) -> Tensor:
        rates = torch.tensor(BANK, dtype=torch.float64).rsqrt() / scale
        one = torch.ones(5, dtype=torch.float64)
        return fm.reference_features.random_feature_mmd2(x, y, w, b, rates, one)

    scale = torch.tensor(1.5, dtype=torch.float64)
    found = second(native, *at(backend, x, scale))
    for a, e in zip(found, second(plain, x, scale), strict=True):
        assert float((a - e).abs().max()) <= 1e-12 * float(e.abs().max())


def test_loss_and_its_parameters(backend: Backend) -> None:
    x, y = at(backend, *samples(40, 30, 3))
    scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    w = nn.Parameter(torch.randn(3, 33, generator=torch.Generator().manual_seed(0)))
    loss = fm.RandomFeatureMMDLoss(kernel=fm.Gaussian(scale), frequencies=w).to(backend.device)
    loss(x, y).backward()
    gradients = [p.grad for p in loss.parameters()]
    assert len(gradients) == 2
    assert all(g is not None and bool((g != 0).all()) for g in gradients)


def test_sketches(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of a device add up to what they do on the CPU, whatever is merged with what."""
    x, y = samples(60, 50, 4)
    made = {"num_features": 64, "kernel": fm.Gaussian(2.0), "dim": 4, "seed": 3}
    for scheme in ("iid", "structured"):
        a, b, on_cpu = (fm.MeanEmbedding(**made, frequencies=scheme) for _ in range(3))
        a.update(*at(backend, x[:25])).update(*at(backend, x[25:]))
        b.update(*at(backend, y))
        with monkeypatch.context() as patch:
            patch.setattr(ops._cuda, "serves", lambda x: not x.is_cpu)
            on_cpu.update(x.double())
        assert float(a.mmd2(on_cpu)) < 1e-10
        assert abs(float(a.mmd2(b)) - float(on_cpu.mmd2(b))) < 1e-6
        weights = torch.full((60,), 2.0, dtype=torch.float64, device=backend.device)
        weighted = fm.MeanEmbedding(**made, frequencies=scheme)
        weighted.update(*at(backend, x), weights=weights)
        assert float(weighted.mmd2(a)) < 1e-10


def test_devices_must_agree(backend: Backend) -> None:
    x, _ = samples(5, 4, 3)
    w, rates = torch.randn(3, 4, device="meta"), torch.ones(1, dtype=torch.float64)
    with pytest.raises(ValueError, match="must be on the device of x"):
        ops._features._forward(*at(backend, x), None, w, None, None, *at(backend, rates), False)


def test_families(backend: Backend) -> None:
    """Heavy tails, whose frequencies are far from 1."""
    x, y = samples(40, 30, 3)
    w, _, b = draw(LAPLACIAN, 0.0, SCHEMES["iid"], 3, 500, 0)
    found = fm.random_feature_mmd2(
        *at(backend, x, y),
        kernel=fm.Laplacian(1.5),
        frequencies=w.to(backend.device),
        phases=b.to(backend.device),
    )
    rates, one = torch.tensor([1 / 1.5]).double(), torch.ones(1).double()
    exact = fm.reference_features.random_feature_mmd2(
        x.double(), y.double(), w.double(), b, rates, one
    )
    assert abs(float(found) - float(exact)) <= 1e-5
