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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

import fastmmd as fm
from fastmmd import reference

SEEDS = range(8)
INCOMING = -1.7  # the gradient that arrives at the value; 1 would hide a factor left out
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass
class Case:
    """Arguments of ``mmd2``. Gradients are taken with respect to all of them."""

    x: Tensor
    y: Tensor
    kernel: fm.Kernel
    estimator: str = "biased"
    x_weights: Tensor | None = None
    y_weights: Tensor | None = None


Results = dict[str, Tensor]
Array = np.ndarray


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
        "sum": lambda: (
            0.5 * fm.Gaussian("mean")
            + fm.Laplacian("median", weights=parameter([0.3]))
            + parameter(0.25) * fm.Energy()
        ),
    }[name]()


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
    "sum",
)


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

    return Case(
        (normal(n, d) + offset).to(dtype),
        (1.2 * normal(m, d) + 0.3 + offset).to(dtype),
        make_kernel(kernel, d) if isinstance(kernel, str) else kernel,
        estimator,
        weights(n) if weighted else None,
        weights(m) if weighted else None,
    )


def differentiate(case: Case, function: Callable[..., Tensor], **options: object) -> Results:
    """The value of ``function`` on a case and its gradients, INCOMING times, by name."""
    tensors = {
        name: t.detach().requires_grad_()
        for name in ("x", "y", "x_weights", "y_weights")
        if (t := getattr(case, name)) is not None
    }
    value = function(
        tensors["x"],
        tensors["y"],
        case.kernel,
        case.estimator,
        tensors.get("x_weights"),
        tensors.get("y_weights"),
        **options,
    )
    tensors |= dict(case.kernel.named_parameters())
    gradients = torch.autograd.grad(value, list(tensors.values()), value.new_tensor(INCOMING))
    return {"value": value.detach(), **dict(zip(tensors, gradients, strict=True))}


def native(case: Case) -> Results:
    """What is under test. The gradients of half inputs are taken before they are rounded."""
    results = differentiate(case, fm.mmd2)
    if case.x.dtype in (torch.float16, torch.bfloat16):
        terms = case.kernel.terms()
        with torch.no_grad():
            _, v_x, v_y, *_ = torch.ops.fastmmd.mmd2(
                case.x,
                case.y,
                case.x_weights,
                case.y_weights,
                terms.scales,
                terms.coefficients,
                terms.families,
                terms.shapes,
                terms.units,
                case.estimator == "unbiased",
                [True, True, False, False, False, False],
            )
        for name, v in (("x", v_x), ("y", v_y)):
            assert v.dtype == torch.float32
            assert torch.equal(results[name], (v * INCOMING).to(case.x.dtype))
            results[name] = v * INCOMING
    return results


def oracle(case: Case) -> Results:
    """The results in more than the compute precision.

    From the differences of points, where that fits into memory.
    """
    if case.x.dtype == torch.float64:
        return extended(case)
    exact = replace(case, x=case.x.double(), y=case.y.double())
    pairs = max(len(case.x), len(case.y)) ** 2 * case.x.shape[1]
    distances = (
        reference.direct_squared_distances if pairs <= 1 << 20 else reference.squared_distances
    )
    return differentiate(exact, reference.mmd2, distances=distances)


def extended(case: Case) -> Results:
    """The results in extended precision, with the gradients written out, for float64 inputs.

    The gradients of sample weights are what is left of sums that nearly cancel. Float64 knows them
    no better than what is under test does, and the bound leaves no room for that.
    """
    real = np.longdouble
    terms = case.kernel.terms()
    scales, coefficients = (t.detach().numpy().astype(real) for t in terms[1:3])
    x, y = case.x.numpy().astype(real), case.y.numpy().astype(real)
    p, q = (
        np.ones(len(t), real) if w is None else w.detach().double().numpy().astype(real)
        for t, w in ((x, case.x_weights), (y, case.y_weights))
    )
    x_sum, y_sum = p.sum(), q.sum()
    p, q = p / x_sum, q / y_sum

    def squared_distances(a: Array, b: Array) -> Array:
        return np.square(a[:, None] - b).sum(-1)

    z = np.concatenate([x, y])
    pairs = np.sort(squared_distances(z, z)[np.triu_indices(len(z), 1)])
    units = np.array([real(1), pairs.mean(), pairs[(len(pairs) - 1) // 2]])[list(terms.units)]
    inverse = np.divide(1, units, out=np.zeros_like(units), where=units != 0)

    v: dict[str, Array] = {name: real(0) for name in ("value", "scales", "coefficients")}
    v |= {
        "x": np.zeros_like(x),
        "y": np.zeros_like(y),
        "p": np.zeros_like(p),
        "q": np.zeros_like(q),
    }
    unbiased = case.estimator == "unbiased"
    for (a, u, v_a, v_u), (b, w, v_b, v_w), cross in (
        ((x, p, v["x"], v["p"]), (x, p, v["x"], v["p"]), False),
        ((y, q, v["y"], v["q"]), (y, q, v["y"], v["q"]), False),
        ((x, p, v["x"], v["p"]), (y, q, v["y"], v["q"]), True),
    ):
        d2 = squared_distances(a, b)
        k, k_d = np.zeros_like(d2), np.zeros_like(d2)
        keep = 1 - np.eye(len(a), dtype=real) if unbiased and not cross else np.ones_like(d2)
        factor = real(-2) if cross else 1 / (1 - u @ u) if unbiased else real(1)
        mass = factor * np.outer(u, w) * keep
        v_scales, v_coefficients = [], []
        for family, scale, coefficient, inv in zip(
            terms.families, scales, coefficients, inverse, strict=True
        ):
            t = scale * inv * d2
            root = np.sqrt(t)
            inverse_root = np.divide(1, root, out=np.zeros_like(t), where=t != 0)
            phi = (np.exp(-t), np.exp(-root), -root)[family]
            phi_t = (-phi, -phi * inverse_root / 2, -inverse_root / 2)[family]
            k += coefficient * phi
            k_d += coefficient * scale * inv * phi_t
            v_scales.append((mass * coefficient * phi_t * d2 * inv).sum())
            v_coefficients.append((mass * phi).sum())
        v["value"] = v["value"] + (mass * k).sum()
        v["scales"] = v["scales"] + np.array(v_scales)
        v["coefficients"] = v["coefficients"] + np.array(v_coefficients)
        k *= keep
        v_u += factor * (k @ w)
        v_w += factor * (u @ k)
        if unbiased and not cross:
            v_u += 2 * factor**2 * (u @ k @ w) * u
        pull = 2 * mass * k_d
        v_a += pull.sum(1)[:, None] * a - pull @ b
        v_b += pull.sum(0)[:, None] * b - pull.T @ a

    v["x_weights"] = (v["p"] - v["p"] @ p) / x_sum
    v["y_weights"] = (v["q"] - v["q"] @ q) / y_sum
    results = {name: torch.from_numpy(np.asarray(v[name] * real(INCOMING), float)) for name in v}
    results["value"] = torch.tensor(float(v["value"]), dtype=torch.float64)
    names = ["value", "x", "y"]
    names += [n for n in ("x_weights", "y_weights") if getattr(case, n) is not None]
    parameters = dict(case.kernel.named_parameters())
    made = [t for t in terms[1:3] if t.requires_grad]
    if made:
        incoming = [
            results[n]
            for n, t in zip(("scales", "coefficients"), terms[1:3], strict=True)
            if t.requires_grad
        ]
        gradients = torch.autograd.grad(made, list(parameters.values()), incoming)
        results |= dict(zip(parameters, gradients, strict=True))
    return {name: results[name] for name in [*names, *parameters]}


def plain(case: Case, **options: object) -> Results:
    """Plain PyTorch in the compute precision, with the data-dependent bandwidth of float64."""
    exact = torch.cat([case.x, case.y]).double()
    centred = (exact - exact.mean(0)).to(compute_dtype(case.x.dtype))
    x, y = centred.split([len(case.x), len(case.y)])
    options.setdefault("factors", reference.resolve(case.kernel.terms(), exact))
    return differentiate(replace(case, x=x, y=y), reference.mmd2, **options)


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
    x, y = case.x.double(), case.y.double()
    z = torch.cat([x, y])
    z = z - z.mean(0)
    terms = case.kernel.terms()
    d2, factors = reference.squared_distances(z).requires_grad_(), reference.resolve(terms, z)
    k = reference.kernel_matrix(d2, terms.families, factors, terms.coefficients)

    ones = torch.ones(len(z), dtype=torch.float64)
    parts = {"x": slice(0, len(x)), "y": slice(len(x), None)}
    a, totals = ones.clone(), {}
    for name, part in parts.items():
        weights = getattr(case, f"{name}_weights")
        a[part] = ones[part] if weights is None else weights.double()
        totals[name] = a[part].sum()
        a[part] /= totals[name]
    others = a.expand(len(z), -1).clone()  # what each point meets
    own = torch.zeros_like(a)  # what comes in by the factor of the inner sum
    if case.estimator == "unbiased":
        others.fill_diagonal_(0)
        for part in parts.values():
            inner = 1 / (1 - a[part].square().sum())
            others[part, part] *= inner
            mass = a[part].unsqueeze(1) * others[part, part]
            own[part] = 2 * inner * a[part] * (mass * k[part, part].detach().abs()).sum()
    mass = a.unsqueeze(1) * others
    sums = {"value": float((mass * k.detach().abs()).sum())}

    met = 2 * (others * k.detach().abs()).sum(1) + own
    (slope,) = torch.autograd.grad((mass * k).sum(), d2, retain_graph=True)
    pull = 4 * (slope.abs().sum(1, keepdim=True) * z.abs() + slope.abs() @ z.abs())
    for name, part in parts.items():
        sums[name] = float(pull[part].max())
        size = (met[part].max() + (a[part] * met[part]).sum()) / totals[name]
        sums[f"{name}_weights"] = float(size)
    parameters = dict(case.kernel.named_parameters())
    if parameters:
        gradients = torch.autograd.grad((mass * k).sum(), list(parameters.values()))
        sums |= {n: float(g.abs().max()) for n, g in zip(parameters, gradients, strict=True)}
    return {name: s if name == "value" else abs(INCOMING) * s for name, s in sums.items()}


def errors(results: Results, exact: Results) -> dict[str, float]:
    """The largest absolute error by name; NaN counts as infinite."""
    differences = {
        name: (results[name].double() - exact[name].double()).abs().max() for name in exact
    }
    return {name: float(e.nan_to_num(nan=math.inf)) for name, e in differences.items()}


def allowances(cases: Iterable[Case], exact: Iterable[Results]) -> dict[str, float]:
    """E by name: the worst error of plain PyTorch over the cases."""
    worst: dict[str, float] = {}
    for case, results in zip(cases, exact, strict=True):
        for name, error in errors(plain(case), results).items():
            worst[name] = max(worst.get(name, 0.0), error)
    return worst


def bounds(
    case: Case, exact: Results, worst: dict[str, float], degenerate: bool = False
) -> dict[str, float]:
    """What a result may err by, by name.

    ``degenerate`` is for data where all of a gradient may cancel, as it does where points coincide:
    gradients are measured by their S then, for rounding errors do not cancel.
    """
    eps = torch.finfo(compute_dtype(case.x.dtype)).eps
    sums, sizes = absolute_sums(case), {}
    for name, gradient in exact.items():
        of_samples = name in ("x", "y", "x_weights", "y_weights")
        sizes[name] = float(gradient.abs().max()) if of_samples and not degenerate else sums[name]
    return {name: 2 * worst.get(name, 0.0) + 8 * eps * size for name, size in sizes.items()}


def check(cases: list[Case], function: Callable[[Case], Results] = native) -> None:
    """Hold ``function`` to the tolerance on cases that differ in their seed alone."""
    with threads(1):  # small matrices only wait for more
        exact = [oracle(case) for case in cases]
        worst = allowances(cases, exact)
        allowances_ = [
            bounds(case, results, worst) for case, results in zip(cases, exact, strict=True)
        ]
    with threads(2):
        tested = [function(case) for case in cases]
    for seed, (results, reference_, allowed) in enumerate(
        zip(tested, exact, allowances_, strict=True)
    ):
        found = errors(results, reference_)
        for name, error in found.items():
            assert error <= allowed[name], (
                f"{name}, seed {seed}: error {error:.3g} > {allowed[name]:.3g};"
                f" plain PyTorch errs by {worst[name]:.3g}"
            )
