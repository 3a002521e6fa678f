"""Random cases of the CUDA kernels on the emulator, each held to the tolerance rule.

`python tests/fuzz_cuda.py [--cases 2000] [--seed 0] [--roads panels,fused] [--jobs 2]` prints the
cases beyond the rule and how near to it each road comes; `--only NUMBER` runs one of them again. A
case is a function of the seed and its number.

The E of the rule is of plain PyTorch in float32, on the points that are centred and rounded; points
of kernels of inner products, which are not centred, are given rounded. Where the parts of a
gradient cancel (of few points, or of samples of the same clusters), gradient weights rounded to
TF32 or bf16 leave more than that, and so do the rows of a cosine, here and in any matrix product of
such operands. So what is beyond the rule is compared with plain PyTorch whose products round their
operands, forwards and backwards, as well: the second of the two numbers. The exit status is 1 if
one is beyond that too, or if none of a road's cases was taken. Operands of fewer digits than
float32 are not chosen for as few points as most of the cases have; those beyond the rule that
could be chosen are counted once more.
"""

from __future__ import annotations

import argparse
import functools
import math
import multiprocessing
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from cuda_backend import FEW, PLAIN, Refused, bits, exactly, forced, on, rounded, to_operand
from emulation.build import build
from emulation.fixtures import emulation, load
from tolerance import (
    KERNELS,
    SEEDS,
    Case,
    Finding,
    Results,
    allowances,
    findings,
    make_case,
    oracle,
    threads,
)
from torch import Tensor

from fastmmd.ops import _roads
from fastmmd.ops._roads import (
    BFLOAT16,
    CLUSTERS,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    MMA,
    SIMT,
    TF32,
    TF32X3,
    WGMMA,
)
from fastmmd.terms import FIXED, GEOMETRY, MEAN, RADIAL

PRODUCTS = {SIMT: "simt", MMA: "mma", WGMMA: "wgmma", CLUSTERS: "wgmma in clusters"}
OPERANDS = {
    FLOAT32: "float32",
    FLOAT64: "float64",
    FLOAT16: "float16",
    BFLOAT16: "bfloat16",
    TF32: "tf32",
    TF32X3: "3 x tf32",
}
MADE_OF = {
    SIMT: (FLOAT32, FLOAT64),
    MMA: (TF32X3, TF32, BFLOAT16, FLOAT16),
    WGMMA: (TF32, BFLOAT16, FLOAT16),
    CLUSTERS: (TF32, BFLOAT16, FLOAT16),
}
# Half points are what they are, or float32 without loss.
DTYPES = {
    FLOAT32: (torch.float32, torch.float32, torch.float16, torch.bfloat16),
    FLOAT64: (torch.float64,),
    FLOAT16: (torch.float16,),
    BFLOAT16: (torch.bfloat16, torch.float32),
    TF32: (torch.float32, torch.float32, torch.float16),
    TF32X3: (torch.float32, torch.float32, torch.float16),
}
CHUNK = 10  # cases that a process is given at a time
ROADS = ("small", "fused", "panels", "values", "pairs")
# Kernels without numbers that stand for lengths: they take data of any size.
FREE = ("mean", "median", "laplacian mean", "energy", "multiquadric median", "heuristics")
GAUSSIANS = ("gaussian", "bank", "sqrt2", "wide", "mean", "median")


@dataclass(frozen=True)
class Recipe:
    """All of a case but its random numbers."""

    road: str
    products: int
    operand: int
    n: int
    m: int
    d: int
    kernel: str
    estimator: str
    weighted: bool
    dtype: torch.dtype
    exponent: int  # of the size of the data, a power of two
    offset: float
    values: str
    held: tuple[str, ...]  # that no gradient is asked for: x, y, kernel

    def __str__(self) -> str:
        made = f" {PRODUCTS[self.products]} {OPERANDS[self.operand]}"
        weights = " with weights" if self.weighted else ""
        held = f", {' and '.join(self.held)} held" if self.held else ""
        return (
            f"{self.road}{made}, n {self.n}, m {self.m}, d {self.d}, {self.kernel},"
            f" {self.estimator}{weights}, {str(self.dtype).removeprefix('torch.')} {self.values} *"
            f" 2^{self.exponent} + {self.offset:g}{held}"
        )

    @property
    def is_chosen(self) -> bool:
        """Whether a pass of so many points may have this operand."""
        return self.operand not in bits or self.n + self.m > _roads.SMALL_ROWS

    def build(self, seed: int) -> Case:
        shape = (self.n, self.m, self.d)
        case = make_case(seed, *shape, self.kernel, self.estimator, torch.float64, self.weighted)
        centres = 2 * torch.randn(3, self.d, generator=torch.Generator().manual_seed(seed))

        def values(t: Tensor) -> Tensor:
            if self.values == "clusters":
                t = centres[torch.arange(len(t)) % 3] + 2e-3 * t
            elif self.values == "outlier":
                t[-1] += 30
            return (t * 2.0**self.exponent + self.offset).to(self.dtype)

        case = replace(case, x=values(case.x), y=values(case.y))
        for parameter in case.kernel.parameters():
            parameter.requires_grad_("kernel" not in self.held)
        if self.values == "twins":  # rows of y are rows of x, or all but
            k = min(self.n, self.m)
            away = 2.0 ** -(torch.arange(k) * 4 % 24)
            case.y[:k] = case.x[:k] + (case.y[:k] - case.x[:k]) * away.unsqueeze(1).to(self.dtype)
        if not _is_radial(case):
            case = replace(
                case, x=to_operand(case.x, self.operand), y=to_operand(case.y, self.operand)
            )
        return case

    def run(self, case: Case, backend: Any) -> Results:
        road: dict[str, Any] = {"mode": self.road}
        if self.road in ("fused", "panels", "values"):
            road |= {"products": self.products, "operand": self.operand}
        with exactly(self.operand), forced(**road):
            return on(backend, self.held)(case)


def draw(roads: tuple[str, ...], seed: int, number: int) -> Recipe:
    """A case that its road is meant for; whether the native side takes it is seen later."""
    r = random.Random(f"{seed}/{number}")
    while True:
        drawn = _draw(r, r.choice(roads))
        if _is_meant(drawn):
            return drawn


def _draw(r: random.Random, road: str) -> Recipe:
    def count(most: int) -> int:
        return r.choice([r.randint(1, 4), r.randint(1, 40), r.randint(1, most)])

    of_road = {
        "small": [SIMT],
        "pairs": [SIMT],
        "fused": [MMA],
        "values": [SIMT, MMA, WGMMA],
        "panels": list(PRODUCTS),
    }
    products = r.choice(of_road[road])
    operand = FLOAT32 if road == "small" else r.choice(MADE_OF[products])
    dtype = r.choice(DTYPES[operand])
    estimator, weighted = (r.choice(FEW), False) if road == "pairs" else r.choice(PLAIN)
    exponent, offset = r.choice([(0, 0)] * 4 + [(0, 100)] * 2 + [(r.choice([-60, -20, 20, 60]), 0)])
    if dtype == torch.float16:
        exponent = 0
    held: tuple[str, ...] = ()
    if road == "values":
        held = ("x", "y")
    elif dtype in (torch.float32, torch.float64):
        held = r.choice([(), (), (), ("x",), ("y",)])
    kernels = FREE if exponent else KERNELS
    shares = products == CLUSTERS  # which others than Gaussians of points do without
    if shares:
        weighted, kernels = False, tuple(k for k in kernels if k in GAUSSIANS)
    if shares or road in ("small", "fused") or r.random() < 0.2:
        held += ("kernel",)
    n, m = count(200), count(200)
    if operand in bits and r.random() < 0.2:
        n, m = r.randint(400, 900), r.randint(700, 900)
    return Recipe(
        *(road, products, operand, n, m, count(300)),
        r.choice(kernels),
        *(estimator, weighted, dtype, exponent, float(offset)),
        r.choice(["normal"] * 4 + ["clusters", "outlier", "twins"]),
        held,
    )


def _is_radial(case: Case) -> bool:
    return all(GEOMETRY[family] == RADIAL for family in case.terms().families)


def _is_meant(drawn: Recipe) -> bool:
    n, m = drawn.n, drawn.m
    if min(n, m) == 1 and drawn.estimator not in ("biased", "cross"):
        return False
    if drawn.road == "fused" and (drawn.d > _roads.FUSED_WIDTH or drawn.weighted):
        return False
    case = drawn.build(0)
    terms = case.terms()
    if drawn.road == "small":
        return _is_radial(case) and set(terms.units) in ({FIXED}, {MEAN})
    if drawn.road == "fused" and drawn.operand in bits and not _is_radial(case):
        return False
    if drawn.operand != FLOAT16:
        return True
    facts = terms.families, drawn.weighted, max(n, m) / min(n, m)
    return _roads.operand_of(torch.float16, "high", *facts) == FLOAT16


class NarrowProduct(torch.autograd.Function):
    """``x y'`` as PyTorch makes it of operands of fewer bits, and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, operand: int) -> Tensor:
        x, y = to_operand(x, operand), to_operand(y, operand)
        ctx.save_for_backward(x, y)
        ctx.operand = operand
        return x @ y.mT

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, y = ctx.saved_tensors
        grad = to_operand(grad, ctx.operand)
        return grad @ y, grad.mT @ x, None


def errors_of_narrow_products(cases: list[Case], operand: int) -> dict[str, float]:
    """The worst errors of plain PyTorch, on the same rounded points, with such products."""

    def products(x: Tensor, y: Tensor | None = None) -> Tensor:
        return NarrowProduct.apply(x, x if y is None else y, operand)

    def distances(x: Tensor, y: Tensor | None = None) -> Tensor:
        other = x if y is None else y
        norms = x.square().sum(-1, keepdim=True) + other.square().sum(-1).unsqueeze(-2)
        squared = (norms - 2 * products(x, y)).clamp(min=0)
        if y is not None:
            return squared
        return squared.masked_fill(torch.eye(x.shape[-2], dtype=torch.bool), 0)

    options = rounded(operand) | {"distances": distances, "products": products}
    options.pop("eps", None)
    return allowances(cases, [oracle(case) for case in cases], **options)


@dataclass
class Outcome:
    """What came of a case."""

    number: int
    recipe: Recipe
    found: list[Finding]  # nothing where the native side does not take the road
    narrow: dict[str, float]  # errors of plain PyTorch with products of the operands' precision

    @property
    def ratio(self) -> float:
        """The largest error, in what the rule allows."""
        return max((_ratio(f.error, f.allowed) for f in self.found), default=0.0)

    @property
    def narrow_ratio(self) -> float:
        """The same, if plain PyTorch multiplies as narrowly."""
        extra = {f.name: 2 * max(self.narrow.get(f.name, 0) - f.plain, 0) for f in self.found}
        return max((_ratio(f.error, f.allowed + extra[f.name]) for f in self.found), default=0.0)

    def __str__(self) -> str:
        lines = [f"{self.number}: {self.ratio:.3g}, {self.narrow_ratio:.3g} {self.recipe}"]
        for f in self.found:
            if f.error > f.allowed:
                narrow = self.narrow.get(f.name, math.nan)
                lines.append(f"    {f}, with narrow products by {narrow:.3g}")
        return "\n".join(lines)


def _ratio(error: float, allowed: float) -> float:
    return error / allowed if error > 0 and allowed > 0 else math.inf if error > 0 else 0.0


def try_case(number: int, recipe: Recipe, backend: Any) -> Outcome:
    made = [recipe.build(number * len(SEEDS) + i) for i in SEEDS]
    try:
        found = findings(
            made,
            lambda case: recipe.run(case, backend),
            most=1,
            held=recipe.held,
            **rounded(recipe.operand),
        )
    except Refused:
        found = []
    beyond = any(f.error > f.allowed for f in found)
    with threads(1):
        narrow = errors_of_narrow_products(made, recipe.operand) if beyond else {}
    return Outcome(number, recipe, found, narrow)


def try_cases(folder: str, roads: tuple[str, ...], seed: int, numbers: list[int]) -> list[Outcome]:
    """In a process of its own."""
    with emulation(load(build(folder))) as backend:
        return [try_case(number, draw(roads, seed, number), backend) for number in numbers]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--roads", default=",".join(ROADS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", type=int, help="the number of one case")
    parser.add_argument("--build", default=".pytest_cache/d/emulation", help="a folder")
    args = parser.parse_args()
    build(args.build)
    chosen = range(args.cases) if args.only is None else [args.only]
    chunks = [list(chosen[i : i + CHUNK]) for i in range(0, len(chosen), CHUNK)]
    run = functools.partial(try_cases, args.build, tuple(args.roads.split(",")), args.seed)
    tried: list[Outcome] = []
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        for outcomes in pool.map(run, chunks):
            for outcome in outcomes:
                if outcome.ratio > 1 or args.only is not None:
                    print(outcome, flush=True)
            tried += outcomes
    refused = False  # all of a road, which proves nothing then
    for road in args.roads.split(","):
        of = [o for o in tried if o.recipe.road == road]
        ratios = sorted((o.ratio for o in of if o.found), reverse=True)
        near = " ".join(f"{ratio:.2f}" for ratio in ratios[:5])
        beyond = [o for o in of if o.ratio > 1]
        counts = [
            len(beyond),
            sum(o.recipe.is_chosen for o in beyond),
            sum(o.narrow_ratio > 1 for o in beyond),
        ]
        print(
            f"{road}: {len(ratios)} cases, {len(of) - len(ratios)} refused; {counts[0]} beyond the"
            f" rule, {counts[1]} that could be chosen, {counts[2]} with narrow products too;"
            f" largest: {near}"
        )
        refused |= not ratios
    return int(refused or any(o.narrow_ratio > 1 for o in tried))


if __name__ == "__main__":
    sys.exit(main())
