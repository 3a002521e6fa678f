"""The losses that ``fastmmd.compat`` replaces, in plain PyTorch, from what they are known to do.

Each is spelled out as masses and kernel values over all pairs of the pooled batch of N points and a
constant, ``sum_ij mass_ij k_ij + constant``, so that the tolerance rule can be applied: what a
result may be off by is twice the error of this form in the compute precision, worst of 8 seeds, and
8 roundings of ``sum_ij |mass_ij k_ij|``, or of the largest entry of a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from tolerance import INCOMING, SEEDS
from torch import Tensor


class Pairs(NamedTuple):
    """A loss as a sum over all pairs."""

    masses: Tensor  # [N, N]
    kernel: Tensor  # [N, N]
    constant: Tensor | float = 0.0

    def value(self) -> Tensor:
        return (self.masses * self.kernel).sum() + self.constant

    def size(self) -> float:
        return float((self.masses * self.kernel).abs().sum())


Layers = Sequence[Tensor]
Distances = Callable[[Tensor], Tensor]
Original = Callable[[Layers, Layers, Distances], Pairs]


def direct(z: Tensor) -> Tensor:
    """Squared distances from the differences, as DeepDA and TLlib make them, in (N, N, d)."""
    return (z.unsqueeze(1) - z).square().sum(-1)


def gram(z: Tensor) -> Tensor:
    """Squared distances from one matrix of inner products."""
    norms = z.square().sum(1)
    d2 = (norms.unsqueeze(1) + norms - 2 * z @ z.T).clamp(min=0)
    return d2.masked_fill(torch.eye(len(z), dtype=torch.bool), 0)


def exact(z: Tensor) -> Tensor:
    """What bandwidths are taken from: they are constants, and the same in all that is compared."""
    return direct(z.detach().double())


def shares(n: int) -> Tensor:
    return torch.full((n,), 1 / n, dtype=torch.float64)


def biased(n: int, m: int) -> Tensor:
    a = torch.cat([shares(n), -shares(m)])
    return a.outer(a)


def unbiased(n: int, m: int) -> Tensor:
    masses = biased(n, m).fill_diagonal_(0)
    masses[:n, :n] *= n / (n - 1)
    masses[n:, n:] *= m / (m - 1)
    return masses


def neighbours(n: int, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i), averaged over pairs (i, j)."""
    masses = torch.zeros(2 * n, 2 * n, dtype=torch.float64)
    for i, j in pairs:
        masses[i, j] += 1 / len(pairs)
        masses[n + i, n + j] += 1 / len(pairs)
        masses[i, n + j] -= 1 / len(pairs)
        masses[j, n + i] -= 1 / len(pairs)
    return masses


def product(kernels: Sequence[Tensor]) -> Tensor:
    result = kernels[0]
    for k in kernels[1:]:
        result = result * k
    return result


# --- TLlib ---------------------------------------------------------------------------------------


def tllib(
    bandwidths: Sequence[Sequence[tuple[str, float]]], linear: bool, corrected: bool = False
) -> Original:
    """For each layer ("alpha", a), ("distinct", a) or ("sigma", s) for each kernel.

    "distinct" is alpha times the mean over pairs of different points.

    ``corrected`` is the constant alone, as the bandwidths belong to the kernels.
    """

    def pairs(x: Layers, y: Layers, distances: Distances) -> Pairs:
        n, m = len(x[0]), len(y[0])
        layers = []
        for a, b, kernels in zip(x, y, bandwidths, strict=True):
            z = torch.cat([a, b])
            d2, mean = distances(z), float(exact(z).mean())
            squares = {
                "alpha": lambda v, mean=mean: v * mean,
                "distinct": lambda v, mean=mean: v * mean * (n + m) / (n + m - 1),
                "sigma": lambda v: v**2,
            }
            layers.append(sum(torch.exp(-d2 / (2 * squares[name](v))) for name, v in kernels))
        if linear:
            masses = neighbours(n, [(i, (i + 1) % n) for i in range(n)])
            if n == 2 and not corrected:  # entries of the index matrix are set, not added to
                masses[:n, n:] /= 2
            constant = 0.0 if corrected else 2 / (n - 1)
        else:
            masses = unbiased(n, m)
            constant = 1 / (n - 1) + 1 / (m - 1)
            if corrected:
                constant *= math.prod(map(len, bandwidths))
        return Pairs(masses.to(d2), product(layers), constant)

    return pairs


# --- DeepDA --------------------------------------------------------------------------------------


def bank(d2: Tensor, mean: float, mul: float, num: int) -> Tensor:
    b = mean / mul ** (num // 2)
    return sum(torch.exp(-d2 / (b * mul**i)) for i in range(num))


def deepda(mul: float = 2.0, num: int = 5, fixed: float | None = None) -> Original:
    def pairs(x: Layers, y: Layers, distances: Distances) -> Pairs:
        z = torch.cat([x[0], y[0]])
        d2, size = distances(z), len(z)
        mean = float(exact(z).sum() / (size**2 - size)) if fixed is None else fixed
        return Pairs(biased(len(x[0]), len(y[0])).to(d2), bank(d2, mean, mul, num))

    return pairs


def deepda_local(
    labels: Tensor,
    probabilities: Tensor,
    classes: int,
    mul: float = 2.0,
    num: int = 5,
    fixed: float | None = None,
) -> Original:
    """Without the factor that grows with the steps."""

    def pairs(x: Layers, y: Layers, distances: Distances) -> Pairs:
        kernel = deepda(mul, num, fixed)(x, y, distances).kernel
        n, m = len(x[0]), len(y[0])
        p = probabilities.double()
        guesses = p.argmax(1)
        common = [c for c in range(classes) if (labels == c).any() and (guesses == c).any()]
        masses = torch.zeros(n + m, n + m, dtype=torch.float64)
        for c in common:
            own = (labels == c).double()
            a = torch.cat([own / own.sum(), -p[:, c] / p[:, c].sum()])
            masses += a.outer(a) / len(common)
        return Pairs(masses.to(kernel), kernel)

    return pairs


# --- pytorch-adapt -------------------------------------------------------------------------------


def pytorch_adapt(
    scales: Tensor | float = 1.0,
    kind: str = "linear",
    power: int = 2,
    bandwidth: float | None = None,
    corrected: bool = False,
    block: int | None = None,
) -> Original:
    """``block``: rows in the blocks whose medians have a median."""
    scales_ = torch.as_tensor(scales, dtype=torch.float64).reshape(-1)

    def unit(x: Tensor, y: Tensor) -> float:
        if bandwidth is not None:
            return bandwidth
        if corrected:
            z = torch.cat([x, y])
            d = exact(z)[tuple(torch.triu_indices(len(z), len(z), 1))]
        else:
            d = exact(x)
        d = d.sqrt() if power == 1 else d
        if block is None or corrected:
            return float(d.median())
        return float(torch.stack([rows.median() for rows in d.split(block)]).median())

    def pairs(x: Layers, y: Layers, distances: Distances) -> Pairs:
        n, m = len(x[0]), len(y[0])
        layers = []
        for a, b in zip(x, y, strict=True):
            d = distances(torch.cat([a, b]))
            if power == 1:
                zero = d == 0
                d = torch.where(zero, 0.0, torch.where(zero, 1.0, d).sqrt())
            kernels = [torch.exp(-float(s) * d / unit(a, b)) for s in scales_]
            layers.append(sum(kernels) / len(kernels))
        if kind == "quadratic":
            masses = unbiased(n, m)
        else:
            size = min(n, m)
            chosen = [(2 * i, 2 * i + 1) for i in range(size // 2)]
            rows = torch.cat([torch.arange(size), n + torch.arange(size)])
            masses = torch.zeros(n + m, n + m, dtype=torch.float64)
            masses[rows.unsqueeze(1), rows] = neighbours(size, chosen)
        return Pairs(masses.to(layers[0]), product(layers))

    return pairs


# --- geomloss ------------------------------------------------------------------------------------


def geomloss(
    loss: str, blur: float, a: Tensor | None = None, b: Tensor | None = None, least: float = 0.0
) -> Original:
    """``least``: the least distance, in units of blur for the Laplacian."""

    def pairs(x: Layers, y: Layers, distances: Distances) -> Pairs:
        d2 = distances(torch.cat([x[0], y[0]]))
        n, m = len(x[0]), len(y[0])
        weights = [shares(k) if w is None else w.double() for w, k in ((a, n), (b, m))]
        signed = torch.cat([weights[0], -weights[1]])
        masses = (0.5 * signed.outer(signed)).to(d2)
        if loss == "gaussian":
            return Pairs(masses, torch.exp(-d2 / (2 * blur**2)))
        d2 = d2 if loss == "energy" else d2 / blur**2
        near = d2 <= least**2
        r = torch.where(near, least, torch.where(near, 1.0, d2).sqrt())
        return Pairs(masses, -r if loss == "energy" else torch.exp(-r))

    return pairs


# --- comparison ----------------------------------------------------------------------------------

Results = list[Tensor]
Make = Callable[[int, torch.dtype], tuple[list[Tensor], list[Tensor]]]


def features(
    n: int, m: int, widths: Sequence[int] = (6,), offset: float = 0.0, probabilities: bool = False
) -> Make:
    """Layers of features for two batches; the last of them probabilities, if asked for."""

    def make(seed: int, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        x, y = (
            [torch.randn(k, d, generator=generator, dtype=torch.float64) for d in widths]
            for k in (n, m)
        )
        y = [1.3 * t + 0.4 for t in y]
        if probabilities:
            x[-1], y[-1] = x[-1].softmax(1), y[-1].softmax(1)
        return [(t + offset).to(dtype) for t in x], [(t + offset).to(dtype) for t in y]

    return make


def differentiate(
    function: Callable[[list[Tensor], list[Tensor]], Tensor], x: Layers, y: Layers
) -> Results:
    """The value and, INCOMING times, the gradients."""
    x, y = ([t.detach().clone().requires_grad_() for t in layers] for layers in (x, y))
    value = function(x, y)
    value = value.reshape(()) if value.numel() == 1 else value
    gradients = torch.autograd.grad(value, [*x, *y], value.new_tensor(INCOMING), allow_unused=True)
    zeros = (
        torch.zeros_like(t) if g is None else g for t, g in zip([*x, *y], gradients, strict=True)
    )
    return [value.detach(), *zeros]


def centred(x: Layers, y: Layers) -> tuple[list[Tensor], list[Tensor]]:
    pairs = [
        (a.double() - c, b.double() - c)
        for a, b in zip(x, y, strict=True)
        for c in [torch.cat([a, b]).double().mean(0)]
    ]
    return [a.to(x[0].dtype) for a, _ in pairs], [b.to(x[0].dtype) for _, b in pairs]


def errors(results: Results, truth: Results) -> np.ndarray:
    found = [
        float((r.double() - t.double()).abs().max()) for r, t in zip(results, truth, strict=True)
    ]
    return np.nan_to_num(np.array(found), nan=math.inf)


def check(
    ours: Callable[[list[Tensor], list[Tensor]], Tensor],
    original: Original,
    make: Make,
    dtype: torch.dtype,
    others: Sequence[Callable[[list[Tensor], list[Tensor]], Tensor]] = (),
    library: Callable[[list[Tensor], list[Tensor]], Tensor] | None = None,
) -> None:
    """Hold ``ours``, and ``others``, to the original in value and all gradients, over 8 seeds.

    ``library`` is the original itself, which promises no such bound: it has to be close, in the
    sense of ``torch.testing``, to what is taken for it here.
    """
    truths, worst = [], np.zeros(1)
    for seed in SEEDS:
        x, y = make(seed, dtype)
        wide = [t.double() for t in x], [t.double() for t in y]
        truth = differentiate(lambda a, b: original(a, b, direct).value(), *wide)
        plain = differentiate(lambda a, b: original(a, b, gram).value(), *centred(x, y))
        worst = np.maximum(worst, errors(plain, truth))
        with torch.no_grad():
            size = original(*wide, direct).size() + abs(float(original(*wide, direct).constant))
        sizes = [size] + [float(t.abs().max()) for t in truth[1:]]
        truths.append((x, y, truth, np.array(sizes)))
    eps = torch.finfo(dtype).eps
    for seed, (x, y, truth, sizes) in enumerate(truths):
        allowed = 2 * worst + 8 * eps * sizes
        if library is not None:
            theirs = differentiate(library, x, y)
            torch.testing.assert_close(
                theirs, [t.to(r) for t, r in zip(truth, theirs, strict=True)]
            )
        for function in (ours, *others):
            found = errors(differentiate(function, x, y), truth)
            assert (found <= allowed).all(), (
                f"{function}, seed {seed}: errors {found} > {allowed}, of plain PyTorch {worst}"
            )
