"""Random cases against the oracle: shapes, strides, dtypes, values, kernels, estimators, weights.

FASTMMD_FUZZ_CASES is the number of cases, 10 000 by default. They are drawn from fixed seeds, but
hypothesis also tries constants that it finds in the modules that are loaded: a run may differ from
another in these.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import reduce
from operator import add

import hypothesis.strategies as st
import pytest
import tolerance
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from torch import Tensor, nn

import fastmmd as fm
from fastmmd import reference
from fastmmd.terms import MEDIAN

CASES = int(os.environ.get("FASTMMD_FUZZ_CASES", "10000"))
PARTS = 8  # that run side by side

# What a sample looks like, as a function of the generator and the shape, at a scale of about 1.
VALUES = {
    "normal": lambda g, n, d: normal(g, n, d),
    "uniform": lambda g, n, d: torch.rand(n, d, generator=g, dtype=torch.float64),
    # many points coincide
    "lattice": lambda g, n, d: torch.randint(-1, 2, (n, d), generator=g).double(),
    # many nearly do
    "clusters": lambda g, n, d: normal(g, 1, d) + 1e-4 * normal(g, n, d),
    "equal": lambda g, n, d: torch.full((n, d), 0.1, dtype=torch.float64),
    "outlier": lambda g, n, d: normal(g, n, d) + 30 * torch.eye(n, d, dtype=torch.float64),
    "sparse": lambda g, n, d: normal(g, n, d) * (torch.rand(n, d, generator=g) < 0.1),
}
# m_k: one exponential and squarings, two chains, none of either, one, and the long chain
MULTIPLIERS = {
    "doubling": (0.25, 0.5, 1, 2, 4),
    "sqrt2": tuple(2 ** (k / 2) for k in range(-3, 4)),
    "other": (0.3, 1.0, 1.9, 5.0),
    "mixed": (4, 0.5, 3, 1, 0.25, 1),
    "one": (1,),
    "long": tuple(2.0**k for k in range(-8, 9)),
}


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Part:
    """A summand of a kernel."""

    family: str
    bandwidth: str  # a heuristic, "number", "tensor" or "bank"
    exponent: int  # the bandwidth is 2^exponent times the size of the data
    multipliers: str
    weighted: bool
    factor: float

    def build(self, size: float) -> fm.Kernel:
        s = 2.0**self.exponent * size
        bandwidth = {
            "mean": "mean",
            "median": "median",
            "number": s,
            "tensor": parameter(s),
            "bank": parameter([s, 1.5 * s]),
        }[self.bandwidth]
        count = 2 if self.bandwidth == "bank" else 1
        weights = parameter([0.5 + i for i in range(count)]) if self.weighted else None
        # as a shape in the range of what people take, from heavy tails to light ones
        alpha, degree = 0.2 * 2.0 ** abs(self.exponent), 1 + abs(self.exponent) % 4
        coef0 = 0.25 * (abs(self.exponent) % 3)
        # by itself 1 / d, and the kernel of large numbers a number that float32 does not hold
        small = size <= 8 and self.bandwidth == "mean"
        gamma = None if small else parameter(1 / s**2) if self.weighted else 1 / s**2
        multipliers = MULTIPLIERS[self.multipliers]
        several = [float(i % 3) for i in range(1, 1 + count * len(multipliers))]
        kernel = {
            "gaussian": lambda: fm.Gaussian(
                bandwidth, multipliers, several if self.weighted else None
            ),
            "laplacian": lambda: fm.Laplacian(bandwidth, weights),
            "energy": lambda: fm.Energy(),
            "multiquadric": lambda: fm.InverseMultiquadric(bandwidth, weights),
            "rational": lambda: fm.RationalQuadratic(alpha, bandwidth, weights),
            "matern32": lambda: fm.Matern(1.5, bandwidth, weights),
            "matern52": lambda: fm.Matern(2.5, bandwidth, weights),
            "polynomial": lambda: fm.Polynomial(degree, gamma, coef0),
            "linear": lambda: fm.Linear(),
            "cosine": lambda: fm.Cosine(),
        }[self.family]()
        return kernel if self.factor == 1 else self.factor * kernel


def parameter(values: float | list[float]) -> Tensor:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


@dataclass(frozen=True)
class Recipe:
    """All of a case but its random numbers."""

    n: int
    m: int
    d: int
    dtype: torch.dtype
    x: str
    y: str
    size: int  # of the data, as a power of two
    offset: float  # of the data, in units of their size
    layout: str
    parts: tuple[Part, ...]
    estimator: str
    fraction: float  # of the largest block or number of superdiagonals
    x_weights: str
    y_weights: str
    bad: float | None
    seed: int

    def build(self, seed: int) -> tolerance.Case:
        g = torch.Generator().manual_seed(seed)
        least = self.estimator != "biased"
        n, m = self.n + least, self.m + least
        # float16 reaches from 6e-8 to 65504, and squares of distances are to fit into float32
        limit = 3 if self.dtype == torch.float16 else 30
        size = 2.0 ** max(-limit, min(limit, self.size))
        shift = normal(g, 1, self.d) / 3
        x = VALUES[self.x](g, n, self.d)
        # a copy of rows of x is what y has in common with x in self-supervised training
        y = x[torch.arange(m) % n] if self.y == "copy" else VALUES[self.y](g, m, self.d) + shift
        x, y = (lay_out((size * (t + self.offset)).to(self.dtype), self.layout) for t in (x, y))
        kernel = reduce(add, [part.build(size * math.sqrt(self.d)) for part in self.parts])
        paired = min(n, m)
        options = {
            "block": {"block_size": 2 + round(self.fraction * (paired - 2))},
            "incomplete": {"num_superdiagonals": 1 + round(self.fraction * (paired - 2))},
        }.get(self.estimator, {})
        kinds = (self.x_weights, self.y_weights)
        if self.estimator not in ("biased", "unbiased"):
            kinds = ("none", "none")
        weights = (make_weights(w, g, k) for w, k in zip(kinds, (n, m), strict=True))
        return tolerance.Case(x, y, kernel, self.estimator, *weights, options)


def lay_out(t: Tensor, layout: str) -> Tensor:
    if layout == "transposed":
        return t.T.contiguous().T
    if layout == "strided":
        wide = t.new_full((2 * t.shape[0], 3 * t.shape[1]), math.nan)
        wide[::2, 1::3] = t
        return wide[::2, 1::3]
    if layout == "expanded":
        return t[:1].expand(t.shape)
    return t


def make_weights(kind: str, generator: torch.Generator, count: int) -> Tensor | None:
    weights = torch.rand(count, generator=generator, dtype=torch.float64) + 0.05
    if kind == "none":
        return None
    if kind == "padded":
        weights[2::3] = 0
    if kind == "uneven":
        weights = 100 * weights**3
    return weights


# mostly a few, and the edges of vectors and tiles
sizes = st.integers(1, 12) | st.sampled_from([15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 65, 95, 97])

parts = st.builds(
    Part,
    family=st.sampled_from(["gaussian", *tolerance.FAMILIES]),
    bandwidth=st.sampled_from(["mean", "median", "number", "number", "tensor", "bank"]),
    exponent=st.integers(-5, 5),
    multipliers=st.sampled_from(list(MULTIPLIERS)),
    weighted=st.booleans(),
    factor=st.sampled_from([1, 0.5, 3.0]),
)
recipes = st.builds(
    Recipe,
    n=sizes,
    m=sizes,
    d=sizes,
    dtype=st.sampled_from(tolerance.DTYPES),
    x=st.sampled_from(list(VALUES)),
    y=st.sampled_from([*VALUES, "copy"]),
    size=st.sampled_from([0, 0, 0, -30, -10, 3, 30]),
    offset=st.sampled_from([0, 0, 0, 1, 100]),
    layout=st.sampled_from(["rows", "rows", "transposed", "strided", "expanded"]),
    parts=st.lists(parts, min_size=1, max_size=3).map(tuple),
    estimator=st.sampled_from(["biased", "unbiased", *tolerance.ESTIMATORS]),
    fraction=st.sampled_from([0, 0.1, 0.3, 1]),
    x_weights=st.sampled_from(["none", "none", "random", "padded", "uneven"]),
    y_weights=st.sampled_from(["none", "none", "random", "padded", "uneven"]),
    bad=st.sampled_from([None] * 20 + [math.nan, math.inf, -math.inf]),
    seed=st.integers(0, 1 << 40),
)


def check(recipe: Recipe) -> None:
    """Hold a case to the tolerance, with an E of its own.

    E is the worst error of plain PyTorch over 8 seeds of a jitter of the squared distances by the
    rounding of ``|x|^2 + |y|^2 - 2xy``: other data would not do, where a sum is what one pair of
    points makes it.
    """
    case = recipe.build(recipe.seed)
    if recipe.bad is not None:
        case.y = case.y.clone()
        case.y[0, 0] = recipe.bad  # a point that every estimator looks at
        value = tolerance.differentiate(case, fm.mmd2)["value"]
        # infinite products may have one sign, and then torch makes infinity of them
        keeps = math.isinf(recipe.bad) and any(p.family == "polynomial" for p in recipe.parts)
        assert not value.isfinite() if keeps else value.isnan()
        return
    exact = tolerance.oracle(case)
    found = tolerance.errors(tolerance.native(case), exact)
    # A kernel value below the normal numbers is as good as zero.
    worst = {name: size * torch.finfo(torch.float32).tiny for name, size in slopes(case).items()}
    allowed = tolerance.bounds(case, exact, worst, degenerate=True)
    for i in tolerance.SEEDS:
        if all(found[name] <= allowed[name] for name in found):
            return
        jitter = Jitter(i)
        results = tolerance.plain(
            case, distances=jitter, products=jitter.products, factors=jitter.factors(case)
        )
        for name, error in tolerance.errors(results, exact).items():
            worst[name] = max(worst[name], error)
        allowed = tolerance.bounds(case, exact, worst, degenerate=True)
    for name, error in found.items():
        assert error <= allowed[name], (
            f"{name}: error {error:.3g} > {allowed[name]:.3g}; plain PyTorch: {worst[name]:.3g}"
        )


def slopes(case: tolerance.Case) -> dict[str, float]:
    """By how much each result changes, at most, with kernel values that change by 1."""
    terms = case.kernel.terms()
    z = torch.cat([case.x, case.y]).double()
    factors = tolerance.resolve(case).detach()
    diameter = 2 * (z - z.mean(0)).square().sum(1).max().sqrt()
    weight = float(terms.coefficients.detach().sum()) * 4 * abs(tolerance.INCOMING)
    t = float(factors.max() * diameter.square())
    slopes = {"value": weight, "x": weight * 2 * float(factors.max() * diameter)}
    slopes["y"] = slopes["x"]
    for name in ("x_weights", "y_weights"):
        if (w := getattr(case, name)) is not None:
            slopes[name] = 4 * weight / float(w.sum())
    for name, parameter in case.kernel.named_parameters():
        slopes[name] = weight * (1 + t) * (1 + 2 / float(parameter.detach().min()))
    return slopes


class Jitter:
    """Squared distances and inner products with other rounding errors, and a median of these.

    The errors of a norm or of a product are their own, but on a lattice they are the same for all.
    """

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def noise(self, size: Tensor, *shape: int) -> Tensor:
        uniform = torch.rand(shape or size.shape, generator=self.generator, dtype=size.dtype)
        # what a sum of products of this size may be off by, as it is rounded while it is added up
        return 2 * torch.finfo(size.dtype).eps * size * (2 * uniform - 1)

    def __call__(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        if x.shape[-2] == 1 and x.ndim == 3:  # pair by pair, from the differences
            # Centred points were rounded once: to half a unit in the last place.
            a, b = (t + self.noise(t.detach()) / 4 for t in (x, x if y is None else y))
            d2 = reference.direct_squared_distances(a, b)
            return d2 + self.noise(d2.detach())
        d2 = reference.squared_distances(x, y)
        with torch.no_grad():
            rows = x.square().sum(-1, keepdim=True)
            columns = rows.mT if y is None else y.square().sum(-1).unsqueeze(-2)
            noise_rows = self.noise(rows)
            noise_columns = noise_rows.mT if y is None else self.noise(columns)
            both = rows + columns
            moved = d2 + noise_rows + noise_columns + self.noise(both) + self.noise(both, 1)
            if y is None:
                moved.diagonal(dim1=-2, dim2=-1).zero_()
            noise = moved.clamp(min=0) - d2
        return d2 + noise

    def products(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        products = reference.inner_products(x, y)
        with torch.no_grad():
            sizes = reference.inner_products(x.abs(), None if y is None else y.abs())
            noise = self.noise(sizes) + self.noise(sizes, 1)
        return products + noise

    def factors(self, case: tolerance.Case) -> Tensor:
        terms, z = case.terms(), torch.cat([case.x, case.y]).double()
        factors = tolerance.resolve(case)
        norm = (z - z.mean(0)).square().sum(1).mean().to(tolerance.compute_dtype(case.x.dtype))
        median = reference.median_squared_distance(z)
        moved = median / (median + self.noise(2 * norm)).clamp(min=median / 2)
        return torch.where(torch.tensor(terms.units) == MEDIAN, factors * moved, factors)


@pytest.mark.parametrize("part", range(PARTS))
def test_random_cases(part: int) -> None:
    @seed(part)
    @settings(
        max_examples=-(-CASES // PARTS),
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(recipes)
    def run(recipe: Recipe) -> None:
        check(recipe)

    with tolerance.threads(1):
        run()
