"""What a result may be off by: a multiple of the error that plain PyTorch makes itself.

With E the worst error of plain PyTorch in the compute precision over 8 seeds, on the same rounded
inputs centred in float64 first, a value may err by ``2 E + 8 eps S``, S the sum of the absolute
values of all that is added up, and a gradient by ``2 E + 8 eps max |gradient|`` in its largest
entry, all against float64. The compute precision is float64 for float64 inputs and float32
otherwise.

The gradient of a kernel's parameter is, as the value, one number that a sum over all pairs leaves,
not a row of many; so it is measured as the value is, by the sum of the absolute values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from extended import extended, pair_masses
from torch import Tensor, nn

import fastmmd as fm
from fastmmd import ops, reference
from fastmmd.checks import CROSS
from fastmmd.checks import ESTIMATORS as NUMBERS
from fastmmd.joint import product_terms
from fastmmd.terms import COSINE_SIMILARITY, DOT, RADIAL, Terms

SEEDS = range(8)
INCOMING = -1.7  # the gradient that arrives at the value; 1 would hide a factor left out
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass
class Case:
    """Arguments of ``mmd2``. Gradients are taken with respect to all of them.

    With widths, the kernel is the product of several, each on its share of the features.
    """

    x: Tensor
    y: Tensor
    kernel: fm.Kernel | nn.ModuleList
    estimator: str = "biased"
    x_weights: Tensor | None = None
    y_weights: Tensor | None = None
    options: dict[str, int] = field(default_factory=dict)  # of the estimator
    widths: tuple[int, ...] | None = None

    def terms(self) -> Terms:
        if self.widths is None:
            return self.kernel.terms()
        return product_terms([kernel.terms() for kernel in self.kernel])

    def number(self) -> int:
        """The estimator as the layers below know it."""
        return NUMBERS.get(self.estimator, CROSS)

    def size(self) -> int:
        """Its parameter, 0 for those that have none."""
        paired = min(len(self.x), len(self.y))
        defaults = {
            "block": {"block_size": max(2, math.isqrt(paired))},
            "incomplete": {"num_superdiagonals": min(100, paired - 1)},
        }
        return next(iter((defaults.get(self.estimator, {"": 0}) | self.options).values()))


Results = dict[str, Tensor]


def make_kernel(name: str, d: int) -> fm.Kernel:
    """A kernel for points whose coordinates have a standard deviation of about 1."""
    s = math.sqrt(d)

    def parameter(values: float | list[float]) -> nn.Parameter:
        return nn.Parameter(torch.tensor(values, dtype=torch.float64))

    return {
        # no progression, and gradients to bandwidths and weights
        "gaussian": lambda: fm.Gaussian(
            parameter([0.7 * s, 1.9 * s]),
            (0.3, 1.0, 2.2),
            weights=parameter([1, 0.5, 2, 0.7, 1.5, 0.1]),
        ),
        "bank": lambda: fm.Gaussian(s),  # one exponential and squarings
        "sqrt2": lambda: fm.Gaussian(s, [2 ** (k / 2) for k in range(-4, 5)]),  # two chains
        "wide": lambda: fm.Gaussian(s, [2 ** (k / 2) for k in range(-16, 17)]),
        "mean": lambda: fm.Gaussian("mean"),
        "median": lambda: fm.Gaussian("median", (0.5, 1.0, 3.0)),
        "laplacian": lambda: fm.Laplacian(parameter(0.8 * s), weights=parameter([1.3])),
        "laplacian mean": lambda: fm.Laplacian("mean"),
        "energy": lambda: fm.Energy(),
        "multiquadric": lambda: fm.InverseMultiquadric(
            parameter([0.6 * s, 1.5 * s]), parameter([1.0, 0.4])
        ),
        "multiquadric median": lambda: fm.InverseMultiquadric("median"),
        # heavy tails and light ones
        "rational": lambda: (
            fm.RationalQuadratic(0.3, parameter(0.7 * s), parameter([1.2]))
            + fm.RationalQuadratic(2.5, 1.6 * s)
        ),
        "matern32": lambda: fm.Matern(1.5, parameter([0.9 * s, 3 * s]), parameter([0.8, 0.3])),
        "matern52": lambda: fm.Matern(2.5, parameter(0.9 * s), parameter([0.8])),
        "heuristics": lambda: (
            fm.Matern(0.5)
            + fm.Matern(1.5, "median")
            + fm.Matern(2.5)
            + fm.RationalQuadratic(0.7, "median")
        ),
        "polynomial": lambda: parameter(0.7) * fm.Polynomial(3, parameter(0.8 / d), 0.5),
        "polynomial width": lambda: fm.Polynomial() + fm.Polynomial(2, coef0=0),
        "linear": lambda: parameter(0.4) * fm.Linear(),
        "cosine": lambda: parameter(1.7) * fm.Cosine(),
        "sum": lambda: (
            0.5 * fm.Gaussian("mean")
            + fm.Laplacian("median", weights=parameter([0.3]))
            + parameter(0.25) * fm.Energy()
        ),
        # of all geometries
        "mixture": lambda: (
            fm.Gaussian("mean", (1,))
            + 0.1 * fm.Polynomial(2)
            + parameter(0.05) * fm.Linear()
            + fm.Cosine()
        ),
    }[name]()


# A kernel, or several, of each family; a family is added here.
KERNELS = (
    "gaussian",
    "bank",
    "sqrt2",
    "wide",
    "mean",
    "median",
    "laplacian",
    "laplacian mean",
    "energy",
    "multiquadric",
    "multiquadric median",
    "rational",
    "matern32",
    "matern52",
    "heuristics",
    "polynomial",
    "polynomial width",
    "linear",
    "cosine",
    "sum",
    "mixture",
)
# One of each family, for tests that look at many other things.
FAMILIES = (
    "gaussian",
    "laplacian",
    "energy",
    "multiquadric",
    "rational",
    "matern32",
    "matern52",
    "polynomial",
    "linear",
    "cosine",
)
ESTIMATORS = ("biased", "unbiased", "linear", "block", "incomplete")
# Of the operator, each with and without weights where it takes any.
WITH_AND_WITHOUT_WEIGHTS = [(e, False) for e in (*ESTIMATORS, "cross")] + [
    (e, True) for e in ("biased", "unbiased", "cross")
]
# Sizes that leave a rest: 46 points are 7 blocks of 6 and 4 more.
OPTIONS = {"block": {"block_size": 6}, "incomplete": {"num_superdiagonals": 5}}


def make_case(
    seed: int,
    n: int,
    m: int,
    d: int,
    kernel: str | fm.Kernel = "bank",
    estimator: str = "biased",
    dtype: torch.dtype = torch.float32,
    weighted: bool = False,
    offset: float = 0.0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def weights(size: int) -> Tensor | None:
        # At least two positive ones, and a zero as of a padded batch where there is room for it.
        values = torch.rand(size, generator=generator, dtype=torch.float64) + 0.1
        values[2::5] = 0
        return values

    paired, options = min(n, m), OPTIONS.get(estimator, {})
    return Case(
        (normal(n, d) + offset).to(dtype),
        (1.2 * normal(m, d) + 0.3 + offset).to(dtype),
        make_kernel(kernel, d) if isinstance(kernel, str) else kernel,
        estimator,
        weights(n) if weighted else None,
        weights(m) if weighted else None,
        {name: min(size, paired - (estimator == "incomplete")) for name, size in options.items()},
    )


def make_product(case: Case, names: tuple[str, ...], widths: tuple[int, ...]) -> Case:
    """The case with a product of kernels, each on some of the features."""
    kernels = [make_kernel(name, width) for name, width in zip(names, widths, strict=True)]
    return replace(case, kernel=nn.ModuleList(kernels), widths=widths)


def differentiate(
    case: Case, function: Callable[..., Tensor], held: Collection[str] = (), **options: object
) -> Results:
    """The value of ``function`` on a case and its gradients, INCOMING times, by name.

    None is asked for of the samples and weights that are ``held``.
    """
    tensors = {
        name: t.detach().requires_grad_(name not in held)
        for name in ("x", "y", "x_weights", "y_weights")
        if (t := getattr(case, name)) is not None
    }
    weights = tensors.get("x_weights"), tensors.get("y_weights")
    x, y = tensors["x"], tensors["y"]
    if case.widths is None and case.estimator != "cross":
        value = function(x, y, case.kernel, case.estimator, *weights, **case.options, **options)
    else:  # not on the surface
        below = {fm.mmd2: ops.mmd2, reference.mmd2: reference.pair_sum}[function]
        arguments = (case.terms(), case.number(), case.size(), case.widths)
        value = below(x, y, *weights, *arguments, **options)
    tensors |= dict(case.kernel.named_parameters())
    moving = {name: t for name, t in tensors.items() if t.requires_grad}
    if not moving:
        return {"value": value}
    gradients = torch.autograd.grad(value, list(moving.values()), value.new_tensor(INCOMING))
    return {"value": value.detach(), **dict(zip(moving, gradients, strict=True))}


def native(case: Case, held: Collection[str] = ()) -> Results:
    """What is under test. The gradients of half inputs are taken before they are rounded."""
    if case.x.dtype not in (torch.float16, torch.bfloat16) or "x" in held or "y" in held:
        return differentiate(case, fm.mmd2, held)
    unrounded: list[Tensor] = []
    scaled = ops._mmd2._scaled

    def record(grad: Tensor, v: Tensor, like: Tensor) -> Tensor:
        if like.shape in (case.x.shape, case.y.shape):
            assert v.dtype == torch.float32
            unrounded.append(grad * v)
        return scaled(grad, v, like)

    ops._mmd2._scaled = record
    try:
        results = differentiate(case, fm.mmd2)
    finally:
        ops._mmd2._scaled = scaled
    # of x and of y in turn, once for each geometry of the kernel
    for name, parts in (("x", unrounded[::2]), ("y", unrounded[1::2])):
        exact = sum(parts[1:], start=parts[0])
        if len(parts) <= 2:  # that add up in either order
            assert torch.equal(results[name], exact.to(case.x.dtype))
        results[name] = exact
    return results


def oracle(case: Case) -> Results:
    """The results in more than the compute precision.

    From the differences of points, where that fits into memory.
    """
    if case.x.dtype == torch.float64:
        results = extended(case, INCOMING)
        by_parameter = to_parameters(case, results.pop("scales"), results.pop("coefficients"))
        return results | by_parameter
    exact = replace(case, x=case.x.double(), y=case.y.double())
    pairs = max(len(case.x), len(case.y)) ** 2 * case.x.shape[1]
    distances = (
        reference.direct_squared_distances if pairs <= 1 << 20 else reference.squared_distances
    )
    return differentiate(exact, reference.mmd2, distances=distances)


def to_parameters(case: Case, v_scales: Tensor, v_coefficients: Tensor) -> Results:
    """The gradients of the kernel's parameters from those of its terms."""
    parameters, terms = dict(case.kernel.named_parameters()), case.terms()
    pairs = ((terms.scales, v_scales), (terms.coefficients, v_coefficients))
    made = [(t, v) for t, v in pairs if t.requires_grad]
    if not made:
        return {}
    gradients = torch.autograd.grad(
        [t for t, _ in made], list(parameters.values()), [v for _, v in made]
    )
    return dict(zip(parameters, gradients, strict=True))


def centred_in_double(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    centre = torch.cat([x, y]).detach().double().mean(0)
    return (x.double() - centre).to(x.dtype), (y.double() - centre).to(y.dtype)


def plain(case: Case, **options: object) -> Results:
    """Plain PyTorch in the compute precision, with the data-dependent bandwidth of float64."""
    dtype = compute_dtype(case.x.dtype)
    options.setdefault("factors", resolve(case, dtype))
    options.setdefault("centre", centred_in_double)
    rounded = replace(case, x=case.x.to(dtype), y=case.y.to(dtype))
    return differentiate(rounded, reference.mmd2, **options)


def resolve(case: Case, dtype: torch.dtype = torch.float64) -> Tensor:
    """The factors scale / unit, from a unit in float64, with their graph."""
    factors = reference.resolve(case.terms(), case.x.double(), case.y.double(), case.widths)
    return factors.to(dtype)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def absolute_sums(case: Case) -> dict[str, float]:
    """S of the value and of the gradients, all of which are sums over pairs."""
    x, y, n = case.x.double(), case.y.double(), len(case.x)
    terms, factors = case.terms(), resolve(case).detach()
    coefficients = terms.coefficients.detach()
    weighted = case.x_weights is not None
    seen = reference.views(terms, reference.is_invariant(case.number(), weighted))
    x_points, y_points = reference.looked_at(x, y, seen, case.widths)
    points = {view: torch.cat([x_points[view], y_points[view]]) for view in x_points}

    totals = {}
    a = torch.ones(len(x) + len(y), dtype=torch.float64)
    parts = {"x": slice(0, n), "y": slice(n, None)}
    for name, part in parts.items():
        if (weights := getattr(case, f"{name}_weights")) is not None:
            a[part] = weights.double()
        totals[name] = a[part].sum()
        a[part] /= totals[name]
    masses = pair_masses(case.estimator, case.size(), a[:n].numpy(), a[n:].numpy(), n, len(y))
    mass = torch.from_numpy(masses).abs()

    measures = {
        RADIAL: reference.squared_distances,
        DOT: reference.inner_products,
        COSINE_SIMILARITY: reference.cosines,
    }
    pairs = {view: measures[view[1]](z) for view, z in points.items()}
    layers = [torch.zeros_like(mass) for _ in set(terms.factors)]
    derivatives = []
    for t, (family, view) in enumerate(zip(terms.families, seen, strict=True)):
        p, q = terms.shapes[2 * t : 2 * t + 2]
        phi, slope, _ = reference.PROFILE_DERIVATIVES[family](factors[t] * pairs[view], p, q)
        derivatives.append((phi, slope))
        layers[view[0]] += coefficients[t] * phi
    rests = [
        math.prod((v for i, v in enumerate(layers) if i != layer), start=torch.ones_like(mass))
        for layer in range(len(layers))
    ]
    k = math.prod(layers[1:], start=layers[0]).abs()
    sums = {"value": float((mass * k).sum())}

    slopes = {view: torch.zeros_like(mass) for view in points}
    v_scales, v_coefficients = torch.zeros_like(factors), torch.zeros_like(factors)
    for t, (view, (phi, slope)) in enumerate(zip(seen, derivatives, strict=True)):
        rest = rests[view[0]].abs()
        slopes[view] += coefficients[t] * factors[t] * slope
        v_coefficients[t] = (mass * rest * phi.abs()).sum()
        per_unit = factors[t] / terms.scales.detach()[t]
        v_scales[t] = (
            mass * rest * coefficients[t].abs() * slope.abs() * pairs[view].abs()
        ).sum() * per_unit
    pulls = [torch.zeros(len(mass), 0, dtype=torch.float64) for _ in layers]
    for view, z in points.items():
        pull = 2 * mass * rests[view[0]].abs() * slopes[view].abs()
        if view[1] == RADIAL:
            v = 2 * (pull.sum(1, keepdim=True) * z.abs() + pull @ z.abs())
        elif view[1] == DOT:
            v = pull @ z.abs()
        else:
            norms = z.square().sum(1, keepdim=True).sqrt()
            inverse = torch.where(norms == 0, 0.0, 1 / norms)
            unit = z.abs() * inverse
            v = (pull @ unit + (pull * pairs[view].abs()).sum(1, keepdim=True) * unit) * inverse
        before = pulls[view[0]]
        pulls[view[0]] = v if before.shape[1] == 0 else before + v
    pull = torch.cat(pulls, 1)

    for name, part in parts.items():
        sums[name] = float(pull[part].max())
    sums |= {f"{name}_weights": s for name, s in _weight_sums(case, k, a, totals, parts).items()}
    by_parameter = to_parameters(case, v_scales, v_coefficients)
    sums |= {name: float(g.abs().max()) for name, g in by_parameter.items()}
    return {name: s if name == "value" else abs(INCOMING) * s for name, s in sums.items()}


def _weight_sums(
    case: Case, k: Tensor, a: Tensor, totals: dict[str, Tensor], parts: dict[str, slice]
) -> dict[str, float]:
    """S of the gradients of the sample weights, for |k| and the normalised weights a."""
    others = a.expand(len(a), -1).clone()  # what each point meets
    own = torch.zeros_like(a)  # what comes in by the factor of the inner sum
    if case.estimator == "unbiased":
        others.fill_diagonal_(0)
        for part in parts.values():
            inner = 1 / (1 - a[part].square().sum())
            others[part, part] *= inner
            mass = a[part].unsqueeze(1) * others[part, part]
            own[part] = 2 * inner * a[part] * (mass * k[part, part]).sum()
    met = 2 * (others * k).sum(1) + own
    return {
        name: float((met[part].max() + (a[part] * met[part]).sum()) / totals[name])
        for name, part in parts.items()
        if getattr(case, f"{name}_weights") is not None
    }


def errors(results: Results, exact: Results) -> dict[str, float]:
    """The largest absolute error by name; NaN counts as infinite."""
    differences = {
        name: (results[name].double() - exact[name].double()).abs().max() for name in exact
    }
    return {name: float(e.nan_to_num(nan=math.inf)) for name, e in differences.items()}


def allowances(
    cases: Iterable[Case], exact: Iterable[Results], **options: object
) -> dict[str, float]:
    """E by name: the worst error of plain PyTorch over the cases."""
    worst: dict[str, float] = {}
    for case, results in zip(cases, exact, strict=True):
        for name, error in errors(plain(case, **options), results).items():
            worst[name] = max(worst.get(name, 0.0), error)
    return worst


def bounds(
    case: Case,
    exact: Results,
    worst: dict[str, float],
    degenerate: bool = False,
    eps: float | None = None,
) -> dict[str, float]:
    """What a result may err by, by name; ``eps`` is that of the compute precision by default.

    ``degenerate`` is for data where all of a gradient may cancel, as it does where points coincide:
    gradients are measured by their S then, for rounding errors do not cancel.
    """
    eps = torch.finfo(compute_dtype(case.x.dtype)).eps if eps is None else eps
    sums, sizes = absolute_sums(case), {}
    for name, gradient in exact.items():
        of_samples = name in ("x", "y", "x_weights", "y_weights")
        sizes[name] = float(gradient.abs().max()) if of_samples and not degenerate else sums[name]
    return {name: 2 * worst.get(name, 0.0) + 8 * eps * size for name, size in sizes.items()}


@dataclass
class Finding:
    """What a result errs by, and may."""

    name: str
    seed: int
    error: float
    allowed: float
    plain: float  # the error of plain PyTorch

    def __str__(self) -> str:
        return (
            f"{self.name}, seed {self.seed}: error {self.error:.3g} > {self.allowed:.3g};"
            f" plain PyTorch errs by {self.plain:.3g}"
        )


def findings(
    cases: list[Case],
    function: Callable[[Case], Results] = native,
    eps: float | None = None,
    degenerate: bool = False,
    most: int | None = None,
    held: Collection[str] = (),
    **options: object,
) -> list[Finding]:
    """What ``function`` errs by on cases that differ in their seed alone, result by result.

    ``eps`` and ``degenerate`` are those of :func:`bounds`, options those of :func:`plain`. What
    takes its time is tried on the first ``most`` cases only; plain PyTorch errs over all of them.
    All results are there but the gradients of what is ``held``, as of :func:`differentiate`.
    """
    with threads(1):  # small matrices only wait for more
        exact = [oracle(case) for case in cases]
        worst = allowances(cases, exact, **options)
        cases, exact = cases[:most], exact[:most]
        allowed = [
            bounds(case, results, worst, degenerate, eps)
            for case, results in zip(cases, exact, strict=True)
        ]
    with threads(2):
        tested = [function(case) for case in cases]
    found = []
    for seed, (results, of) in enumerate(zip(tested, exact, strict=True)):
        wanted = {name: t for name, t in of.items() if name not in held}
        assert results.keys() == wanted.keys(), f"{list(results)} in place of {list(wanted)}"
        found += [
            Finding(name, seed, error, allowed[seed][name], worst[name])
            for name, error in errors(results, wanted).items()
        ]
    return found


def check(
    cases: list[Case], function: Callable[[Case], Results] = native, **options: object
) -> None:
    """Hold ``function`` to the tolerance; all is as of :func:`findings`."""
    for found in findings(cases, function, **options):
        assert found.error <= found.allowed, str(found)
