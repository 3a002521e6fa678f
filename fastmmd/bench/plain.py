"""The family as people write it without a library for it: kernel matrices in plain PyTorch.

In float64 the same functions are what every contestant is checked against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

MULTIPLIERS = (0.25, 0.5, 1, 2, 4)
Matrix = Callable[[Tensor], Tensor]


def gram(z: Tensor) -> Tensor:
    """Squared distances [N, N] from one matrix of inner products."""
    norms = z.square().sum(1)
    return torch.addmm(norms.unsqueeze(1) + norms, z, z.T, alpha=-2).clamp(min=0)


def differences(z: Tensor) -> Tensor:
    """Squared distances [N, N] from the differences of all pairs, [N, N, d]."""
    return (z.unsqueeze(0) - z.unsqueeze(1)).square().sum(2)


def gaussians(d2: Tensor, slopes: Iterable[Tensor | float]) -> Tensor:
    """The sum of exp(-slope d2), with no more operations than that takes."""
    parts = [torch.exp(d2 * -slope) for slope in slopes]
    return sum(parts[1:], parts[0])


def bank(d2: Tensor, multipliers: Sequence[float] = MULTIPLIERS) -> Tensor:
    """Gaussians around the mean squared distance of different points, a constant."""
    unit = d2.detach().sum() / (len(d2) * (len(d2) - 1))
    return gaussians(d2, (1 / (m * unit) for m in multipliers))


def biased(k: Tensor, n: int) -> Tensor:
    """MMD^2 from the kernel matrix of the pooled sample."""
    return k[:n, :n].mean() + k[n:, n:].mean() - k[:n, n:].mean() - k[n:, :n].mean()


def unbiased(k: Tensor, n: int) -> Tensor:
    """The means of k within x and within y without the diagonal, less twice that between them."""
    within = sum(b.sum() - b.diagonal().sum() for b in (k[:n, :n], k[n:, n:]))
    return within / (n * (n - 1)) - 2 * k[:n, n:].mean()


def neighbours(k: Tensor, n: int) -> Tensor:
    """The mean over neighbours of k(x0, x1) + k(y0, y1) - k(x0, y1) - k(x1, y0)."""
    i = torch.arange(0, n - n % 2, 2)
    return (k[i, i + 1] + k[n + i, n + i + 1] - k[i, n + i + 1] - k[i + 1, n + i]).mean()


def deepda(x: Tensor, y: Tensor, distances: Matrix = gram) -> Tensor:
    """DeepDA's loss, with its own matrix of distances or another."""
    return biased(bank(distances(torch.cat([x, y]))), len(x))


def tllib(x: Tensor, y: Tensor, alphas: Sequence[float]) -> Tensor:
    """TLlib's loss with a Gaussian for each alpha, whose unit is the mean of all N^2 distances."""
    n = len(x)
    d2 = gram(torch.cat([x, y]))
    mean = d2.detach().mean()
    return unbiased(gaussians(d2, (0.5 / (a * mean) for a in alphas)), n) + 2 / (n - 1)


def pytorch_adapt(
    x: Tensor, y: Tensor, scales: Sequence[float], reduce: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """pytorch-adapt's loss, whose unit is the median of the distances within x."""
    n = len(x)
    d2 = gram(torch.cat([x, y]))
    median = d2[:n, :n].detach().median()
    return reduce(gaussians(d2, (s / median for s in scales)) / len(scales), n)


def joint(*layers: Tensor) -> Tensor:
    """The product of kernels over layers: those of x first, then those of y."""
    half = len(layers) // 2
    x, y = layers[:half], layers[half:]
    k = bank(gram(torch.cat([x[0], y[0]])))
    for a, b in zip(x[1:], y[1:], strict=True):
        k = k * bank(gram(torch.cat([a, b])))
    return biased(k, len(x[0]))


def local(x: Tensor, y: Tensor, labels: Tensor, probabilities: Tensor) -> Tensor:
    """The mean over classes of MMD^2 within the class."""
    classes = probabilities.shape[1]
    members = torch.nn.functional.one_hot(labels, classes).to(x)
    probabilities = probabilities.to(y)
    common = (members.sum(0) > 0) & (probabilities.argmax(1).bincount(minlength=classes) > 0)
    v, w = (t[:, common] / t[:, common].sum(0) for t in (members, probabilities))
    a = torch.cat([v, -w])
    k = bank(gram(torch.cat([x, y])))
    return (k * (a @ a.T)).sum() / int(common.sum())


def row_by_row(x: Tensor, y: Tensor, bandwidth: float) -> Tensor:
    """The linear estimator: differences of neighbouring rows, no matrix."""
    n = len(x) - len(x) % 2
    slopes = [0.5 / (m * bandwidth**2) for m in MULTIPLIERS]
    x0, x1, y0, y1 = x[0:n:2], x[1:n:2], y[0:n:2], y[1:n:2]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return gaussians((a - b).square().sum(1), slopes)

    return (kernel(x0, x1) + kernel(y0, y1) - kernel(x0, y1) - kernel(x1, y0)).mean()


def sliced(x: Tensor, y: Tensor, projections: Tensor) -> Tensor:
    """The energy kernel on lines: sorted numbers, and the difference of distribution functions."""
    s, t = projections.T @ x.T, projections.T @ y.T
    z, order = torch.cat([s, t], 1).sort(1)
    steps = torch.cat([torch.full_like(s, 1 / len(x)), torch.full_like(t, -1 / len(y))], 1)
    below = steps.gather(1, order).cumsum(1)[:, :-1]
    return 2 * (z.diff(dim=1) * below.square()).sum(1).mean()


def permuted_by_index(x: Tensor, y: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """A permutation test: the kernel matrix, and its rows and columns in each new order.

    Returns:
        MMD^2 of the samples as given, and under each permutation, [count].
    """
    n = len(x)
    k = bank(gram(torch.cat([x, y])))
    null = []
    for _ in range(count):
        order = torch.randperm(len(k))
        null.append(biased(k[order][:, order], n))
    return biased(k, n), torch.stack(null)


def permuted_by_product(x: Tensor, y: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The same, by one product of the kernel matrix and all labellings v: v'Kv."""
    n = len(x)
    k = bank(gram(torch.cat([x, y])))
    labels = torch.cat([x.new_full((n,), 1 / n), y.new_full((len(y),), -1 / len(y))])
    orders = torch.rand(count, len(k), device=x.device).argsort(1)
    v = torch.cat([labels[None], labels[orders]]).T
    values = (v * (k @ v)).sum(0)
    return values[0], values[1:]


def slopes_of(multipliers: Iterable[float], bandwidth: float) -> list[float]:
    """The factors of the squared distance in a bank of Gaussians."""
    return [0.5 / (m * bandwidth**2) for m in multipliers]


def cross(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances [n, m] from one matrix of inner products."""
    norms = x.square().sum(1, keepdim=True) + y.square().sum(1)
    return torch.addmm(norms, x, y.T, alpha=-2).clamp(min=0)


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """Twice the mean distance between x and y, less those within."""
    between, in_x, in_y = (torch.cdist(a, b).mean() for a, b in ((x, y), (x, x), (y, y)))
    return 2 * between - in_x - in_y


def coral(x: Tensor, y: Tensor) -> Tensor:
    """The squared distance of the covariance matrices, over 4 d^2."""
    d = x.shape[1]
    return (x.T.cov() - y.T.cov()).square().sum() / (4 * d * d)
