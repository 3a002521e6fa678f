"""Cases of random features, and what their results may be off by."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from tolerance import INCOMING, errors, threads
from torch import Tensor

import fastmmd as fm
from fastmmd import reference_features

FORMS = ("phase", "pair")


def samples(
    n: int, m: int, d: int, dtype: torch.dtype = torch.float32, seed: int = 0, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = 1.2 * torch.randn(m, d, generator=generator, dtype=torch.float64) + 0.3
    return (x + offset).to(dtype), (y + offset).to(dtype)


class Case(NamedTuple):
    x: Tensor
    y: Tensor
    x_weights: Tensor | None
    y_weights: Tensor | None
    w: Tensor  # [d, F]
    b: Tensor | None  # [F]
    bandwidths: Tensor
    coefficients: Tensor
    multipliers: tuple[float, ...]

    def inputs(self) -> dict[str, Tensor]:
        skipped = ("multipliers",)
        return {k: v for k, v in self._asdict().items() if v is not None and k not in skipped}


class Kind(NamedTuple):
    n: int
    m: int
    d: int
    count: int
    multipliers: tuple[float, ...] = (1.0,)
    bandwidths: tuple[float, ...] = (1.3,)
    offset: float = 0.0
    weighted: bool = False


BANK = (0.25, 0.5, 1.0, 2.0, 4.0)
KINDS = {
    "plain": Kind(40, 33, 7, 50),
    "one row": Kind(1, 30, 3, 17),
    "one feature": Kind(20, 9, 5, 1),
    "bank": Kind(37, 50, 19, 45, BANK, (1.0, 2.9), weighted=True),
    "offset": Kind(60, 45, 12, 40, BANK, offset=300.0),
    "blocks": Kind(420, 60, 30, 150, (1.0, 2.0), weighted=True),
}


def make_case(kind: Kind, form: str, dtype: torch.dtype, seed: int) -> Case:
    x, y = samples(kind.n, kind.m, kind.d, dtype, seed, kind.offset)
    generator = torch.Generator().manual_seed(100 + seed)

    def uniform(count: int) -> Tensor:
        return torch.rand(count, generator=generator, dtype=torch.float64)

    result = torch.float64 if dtype == torch.float64 else torch.float32
    w = torch.randn(kind.d, kind.count, generator=generator, dtype=torch.float64).to(result)
    size = len(kind.multipliers) * len(kind.bandwidths)
    return Case(
        x,
        y,
        uniform(kind.n) + 0.1 if kind.weighted else None,
        uniform(kind.m) if kind.weighted else None,
        w,
        2 * math.pi * uniform(kind.count) if form == "phase" else None,
        math.sqrt(kind.d) * torch.tensor(kind.bandwidths, dtype=torch.float64),
        uniform(size) + 0.5,
        kind.multipliers,
    )


Results = dict[str, Tensor]


def differentiate(case: Case, value: Callable[[Case], Tensor]) -> Results:
    """The value and its gradients, INCOMING times."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in case.inputs().items()}
    result = value(case._replace(**leaves))
    gradients = torch.autograd.grad(result, list(leaves.values()), result.new_tensor(INCOMING))
    return {"value": result.detach(), **dict(zip(leaves, gradients, strict=True))}


def native(case: Case) -> Results:
    if case.x.dtype in (torch.float16, torch.bfloat16):  # whose gradients would be rounded
        case = case._replace(x=case.x.float(), y=case.y.float())

    def value(c: Case) -> Tensor:
        kernel = fm.Gaussian(c.bandwidths, c.multipliers, c.coefficients)
        form = "pair" if c.b is None else "phase"
        return fm.random_feature_mmd2(
            c.x,
            c.y,
            kernel=kernel,
            frequencies=c.w,
            form=form,
            x_weights=c.x_weights,
            y_weights=c.y_weights,
            phases=c.b,
        )

    return differentiate(case, value)


def rates_of(case: Case) -> Tensor:
    roots = torch.tensor(case.multipliers, dtype=torch.float64).rsqrt()
    return (roots / case.bandwidths[:, None]).reshape(-1)


def written_out(case: Case, rounded: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """The features in the dtype of the points, which are centred in float64, as are the phases.

    With ``rounded`` the operands of the projections are rounded by it, once they are centred.
    """
    dtype = case.w.dtype
    to_operand = rounded or (lambda t: t)
    rates = rates_of(case)
    means = []
    for z, weights in ((case.x, case.x_weights), (case.y, case.y_weights)):
        centre = z.double().mean(0).detach()
        shifts = rates[:, None] * (centre @ case.w.double())
        if case.b is not None:
            shifts = shifts + case.b
        shifts = torch.remainder(shifts, 2 * math.pi).to(dtype)
        points = to_operand((z.double() - centre).to(dtype))
        angles = rates.to(dtype)[:, None, None] * (points @ to_operand(case.w))
        angles = angles + shifts[:, None, :]
        parts = [angles.cos()] if case.b is not None else [angles.cos(), angles.sin()]
        a = z.new_ones(len(z), dtype=torch.float64) if weights is None else weights
        means.append((a / a.sum()).to(dtype) @ torch.cat(parts, 2))
    squares = (means[0] - means[1]).square()
    return 2 * (case.coefficients.to(dtype) @ squares).mean()


def exactly(case: Case) -> Tensor:
    """The definition, in float64."""
    return reference_features.random_feature_mmd2(
        case.x.double(),
        case.y.double(),
        case.w.double(),
        case.b,
        rates_of(case),
        case.coefficients,
        case.x_weights,
        case.y_weights,
    )


def sizes(case: Case, exact: Results) -> dict[str, float]:
    """What errors are measured by: the largest entry, or S.

    The gradients of phases, weights, bandwidths and coefficients are numbers that long sums leave,
    as the value is, not rows of many; so they are measured by the sums of the absolute values.
    """
    rates, c = rates_of(case), case.coefficients
    made, slopes, shares = [], [], []
    for z, weights in ((case.x, case.x_weights), (case.y, case.y_weights)):
        a = torch.ones(len(z), dtype=torch.float64) if weights is None else weights
        projected = z.double() @ case.w.double()
        angles = rates[:, None, None] * projected
        if case.b is None:
            of = torch.cat([angles.cos(), angles.sin()], 2).abs()
            turned = torch.cat([angles.sin(), angles.cos()], 2).abs()
            projected = torch.cat([projected, projected], 1)
        else:
            of, turned = (angles + case.b).cos().abs(), (angles + case.b).sin().abs()
        made.append(of)
        slopes.append((turned, projected.abs()))
        shares.append(a / a.sum())
    means = [a @ of for a, of in zip(shares, made, strict=True)]
    total = means[0] + means[1]
    size = total.shape[1]
    pull = abs(INCOMING) * 4 / size * c[:, None] * total
    result = {"value": 2 / size * float((c @ total.square()).sum())}
    for name, gradient in exact.items():
        if name != "value":
            result[name] = float(gradient.abs().max())
    for name, of, given in zip(
        ("x_weights", "y_weights"), made, (case.x_weights, case.y_weights), strict=True
    ):
        if given is not None:
            each = (pull[:, None] * of).sum((0, 2))
            result[name] = float((each + (pull * (given / given.sum() @ of)).sum()).max())
            result[name] /= float(given.sum())
    both = list(zip(shares, slopes, strict=True))
    if case.b is not None:
        result["b"] = float((pull * sum(a @ turned for a, (turned, _) in both)).sum(0).max())
    result["coefficients"] = abs(INCOMING) * 2 / size * float(total.square().sum(1).max())
    of_rates = (pull * sum(a @ (turned * p) for a, (turned, p) in both)).sum(1)
    per_bandwidth = (of_rates * rates).reshape(len(case.bandwidths), -1).sum(1) / case.bandwidths
    result["bandwidths"] = float(per_bandwidth.max())
    return result


def check(
    cases: list[Case],
    function: Callable[[Case], Results] = native,
    eps: float | None = None,
    most: int | None = None,
    rounded: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Hold ``function`` to the tolerance on cases that differ in their seed alone.

    ``eps`` is that of the operands, to which ``rounded`` rounds. What takes its time is tried on
    the first ``most`` cases only; plain PyTorch errs over all of them.
    """
    with threads(1):
        exact = [differentiate(case, exactly) for case in cases]
        worst: dict[str, float] = {}
        for case, truth in zip(cases, exact, strict=True):
            as_floats = case._replace(x=case.x.to(case.w.dtype), y=case.y.to(case.w.dtype))
            plain = differentiate(as_floats, lambda c: written_out(c, rounded))
            for key, error in errors(plain, truth).items():
                worst[key] = max(worst.get(key, 0.0), error)
    eps = eps or torch.finfo(cases[0].w.dtype).eps
    cases, exact = cases[:most], exact[:most]
    with threads(2):
        found = [function(case) for case in cases]
    for case, truth, results in zip(cases, exact, found, strict=True):
        size = sizes(case, truth)
        for key, error in errors(results, truth).items():
            allowed = 2 * worst[key] + 8 * eps * size[key]
            assert error <= allowed, f"{key}: error {error:.3g} > {allowed:.3g}"
