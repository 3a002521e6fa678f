"""Losses written out with whole kernel matrices, and the tolerance rule for them.

The rule is that of ``tolerance.py``, for losses that are not ``mmd2``: in float64 from the
differences of points they are the oracle, in the compute precision by matrix products they are the
plain PyTorch whose error is the measure.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from tolerance import INCOMING, SEEDS, compute_dtype, threads
from torch import Tensor

import fastmmd as fm
from fastmmd import reference

Tensors = dict[str, Tensor]
Sized = tuple[Tensor, float]  # a value, and the sum of the absolute values of all that it adds up


def matrix(x: Tensor, y: Tensor, kernel: fm.Kernel) -> Tensor:
    """The kernel matrix of the pooled sample, [n + m, n + m], with bandwidths from x and y."""
    terms = kernel.terms_for(x, y)
    factors = reference.resolve(terms, x.detach().double(), y.detach().double()).to(x)
    z = torch.cat([x, y])
    exact = x.dtype == torch.float64
    distances = reference.direct_squared_distances if exact else reference.squared_distances
    views = reference.views(terms, invariant=False)
    points, _ = reference.looked_at(z, z, views)
    return reference.gram(points, None, views, terms, factors, distances)


def squared_norm(k: Tensor, a: Tensor) -> Sized:
    """``|sum_i a_i phi(z_i)|^2``."""
    return a @ k @ a, float((a.abs() @ k.abs() @ a.abs()).detach())


def signed(p: Tensor, q: Tensor) -> Tensor:
    return torch.cat([p / p.sum(), -q / q.sum()])


def unbiased(k: Tensor, n: int) -> Sized:
    """The U-statistic of the first n points and the others."""
    m = len(k) - n
    off = 1 - torch.eye(n + m, dtype=k.dtype)
    off[:n, :n] /= n * (n - 1)
    off[n:, n:] /= m * (m - 1)
    off[:n, n:] = off[n:, :n] = -1 / (n * m)
    return (off * k).sum(), float((off * k).abs().sum().detach())


def linear(k: Tensor, n: int) -> Sized:
    paired = min(n, len(k) - n)
    h = [terms(k, n, i, i + 1) for i in range(0, paired - 1, 2)]
    return mean(h)


def incomplete(k: Tensor, n: int, superdiagonals: int) -> Sized:
    paired = min(n, len(k) - n)
    pairs = itertools.combinations(range(paired), 2)
    return mean([terms(k, n, i, j) for i, j in pairs if j - i <= superdiagonals])


def block(k: Tensor, n: int, size: int) -> Sized:
    paired = min(n, len(k) - n)
    parts = []
    for start in range(0, paired - size + 1, size):
        rows = [*range(start, start + size), *range(n + start, n + start + size)]
        parts.append(unbiased(k[rows][:, rows], size))
    value = torch.stack([v for v, _ in parts]).mean()
    return value, sum(s for _, s in parts) / len(parts)


def terms(k: Tensor, n: int, i: int, j: int) -> Tensor:
    """The four terms of h(i, j)."""
    return torch.stack([k[i, j], k[n + i, n + j], -k[i, n + j], -k[j, n + i]])


def mean(h: Sequence[Tensor]) -> Sized:
    stacked = torch.stack(list(h))
    return stacked.sum(1).mean(), float(stacked.abs().sum(1).mean().detach())


def memberships(classes: Tensor, num_classes: int) -> Tensor:
    if classes.is_floating_point():
        return classes
    return torch.nn.functional.one_hot(classes.long(), num_classes).double()


def common_classes(s: Tensor, t: Tensor) -> list[int]:
    """Those that are some source point's and some target point's most probable class."""
    return sorted(set(s.argmax(1).tolist()) & set(t.argmax(1).tolist()))


def part(s: Tensor, c: int) -> Tensor:
    return s[:, c] / s[:, c].sum()


def local(k: Tensor, s: Tensor, t: Tensor) -> Sized:
    """One MMD for each class, and their mean."""
    s, t = s.to(k), t.to(k)
    found = [squared_norm(k, torch.cat([part(s, c), -part(t, c)])) for c in common_classes(s, t)]
    return sum_of(found, 1 / max(len(found), 1), k)


def contrastive(k: Tensor, s: Tensor, t: Tensor) -> Sized:
    """One MMD for each pair of classes: the mean of equal ones less that of others."""
    s, t = s.to(k), t.to(k)
    common = common_classes(s, t)
    count = len(common)
    within, between = [], []
    for c, other in itertools.product(common, common):
        to = within if c == other else between
        to.append(squared_norm(k, torch.cat([part(s, c), -part(t, other)])))
    intra, intra_size = sum_of(within, 1 / max(count, 1), k)
    inter, inter_size = sum_of(between, 1 / max(count * (count - 1), 1), k)
    return intra - inter, intra_size + inter_size


def sum_of(found: Sequence[Sized], factor: float, k: Tensor) -> Sized:
    value = sum((v for v, _ in found), k.sum() * 0) * factor
    return value, sum(s for _, s in found) * factor


def variance(k: Tensor, n: int) -> Sized:
    """Of the U-statistic, term by term."""
    m = len(k) - n
    kx, ky, kxy = k[:n, :n], k[n:, n:], k[:n, n:]
    kx = kx - torch.diag(kx.diagonal())
    ky = ky - torch.diag(ky.diagonal())
    sums: list[Tensor] = []

    def add(factor: float, *values: Tensor) -> None:
        sums.extend(factor * v for v in values)

    for a, cross in ((kx, kxy), (ky, kxy.T)):
        size, others = cross.shape
        rows, total, squares = a.sum(1), a.sum(), a.square().sum()
        shared = 4 * (size - 2) / math.perm(size, 2)
        add(shared / math.perm(size, 3), rows @ rows, -squares)
        add(2 / math.perm(size, 2) ** 2, squares)
        apart = -(shared + 2 / math.perm(size, 2)) / math.perm(size, 4)
        add(apart, total * total, -4 * (rows @ rows), 2 * squares)
        with_cross = -8 / size
        shared_sum = rows @ cross.sum(1)
        add(with_cross / (math.perm(size, 2) * others), shared_sum)
        add(
            -with_cross / (math.perm(size, 3) * others),
            total * cross.sum(),
            -2 * shared_sum,
        )
    by_x, by_y, squares = kxy.sum(1).square().sum(), kxy.sum(0).square().sum(), kxy.square().sum()
    add(4 * (m - 1) / (n * m) / (n * math.perm(m, 2)), by_x, -squares)
    add(4 * (n - 1) / (n * m) / (m * math.perm(n, 2)), by_y, -squares)
    add(4 / (n * m) ** 2, squares)
    apart = -4 * (n + m - 1) / (n * m) / (math.perm(n, 2) * math.perm(m, 2))
    add(apart, kxy.sum().square(), -by_x, -by_y, squares)
    stacked = torch.stack(sums)
    return stacked.sum(), float(stacked.detach().abs().sum())


def hold(
    make: Callable[[int], Tensors],
    tested: Callable[[Tensors], Tensor],
    plain: Callable[[Tensors], Sized],
    names: Sequence[str] = ("x", "y"),
) -> None:
    """Hold ``tested`` to the tolerance rule: its value, and its gradients in the named tensors.

    Gradients of half inputs are left to tests of what they are rounded from.
    """
    exact, worst, sizes = [], dict.fromkeys(["value", *names], 0.0), []
    with threads(1):
        for seed in SEEDS:
            tensors = make(seed)
            results, size = differentiate(plain, cast(tensors, torch.float64), names)
            single = cast(tensors, torch.float32)
            rough, _ = differentiate(plain, single, names)
            rounded, _ = differentiate(plain, cast(single, torch.float64), names)
            # Nothing is above float64 to measure it against: its errors E are those of float32,
            # less the ratio of the precisions, and the oracle makes them too.
            eps = torch.finfo(compute_dtype(tensors["x"].dtype)).eps
            ratio = eps / torch.finfo(torch.float32).eps
            for name, value in rounded.items():
                error = float((rough[name] - value).abs().max()) * ratio
                worst[name] = max(worst[name], error)
            exact.append(results)
            sizes.append(size)
    with threads(2):
        for seed, results, size in zip(SEEDS, exact, sizes, strict=True):
            tensors = make(seed)
            half = tensors["x"].dtype in (torch.float16, torch.bfloat16)
            found, _ = differentiate(lambda t: (tested(t), 0.0), tensors, () if half else names)
            dtype = compute_dtype(tensors["x"].dtype)
            assert found["value"].dtype == dtype
            errs = 3 if dtype == torch.float64 else 2
            for name, value in found.items():
                scale = size if name == "value" else float(results[name].abs().max())
                allowed = errs * worst[name] + 8 * torch.finfo(dtype).eps * scale
                error = float((value.double() - results[name]).abs().max())
                assert error <= allowed, (
                    f"{name}, seed {seed}: error {error:.3g} > {allowed:.3g}; plain PyTorch errs by"
                    f" {worst[name]:.3g}"
                )


def cast(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}


def differentiate(
    function: Callable[[Tensors], Sized], tensors: Tensors, names: Sequence[str]
) -> tuple[Tensors, float]:
    tensors = {n: t.clone().requires_grad_(n in names) for n, t in tensors.items()}
    value, size = function(tensors)
    results = {"value": value.detach()}
    if names:
        incoming = value.new_full((), INCOMING)
        gradients = torch.autograd.grad(value, [tensors[n] for n in names], incoming)
        results |= dict(zip(names, gradients, strict=True))
    return results, size
