"""The rest of the family: tests, drop-ins, joint and local losses, estimators, with their peers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

import fastmmd as fm
from benchmarks.cells import Cell
from benchmarks.peers import MULTIPLIERS, errors
from fastmmd import reference
from fastmmd.bench import plain
from fastmmd.compat import deepda, pytorch_adapt, tllib
from fastmmd.sliced import directions

Loss = Callable[..., Tensor]
PERMUTATIONS = 1000
ALPHAS = tuple(2.0**k for k in range(-3, 2))  # as in TLlib's examples
CLASSES = 31  # of Office-31
BLOCK, SUPERDIAGONALS = 256, 100
LINES, LINES_WIDTH = 64, 32
CHECKED = 4096  # points on which estimators are held against matrices
CHECKED_LINES = 256  # and lines against all pairs on each


class Lane(NamedTuple):
    """Something to time, and how far it is from float64."""

    call: Callable[[], object]
    error: Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Contestant:
    """One lane of a contest, not made yet."""

    peer: str
    n: int
    d: str  # of each layer
    prepare: Callable[[], Lane]
    remember: bool = True  # whether its peak memory is measured

    @property
    def id(self) -> str:
        return f"{self.peer} n={self.n} d={self.d}"


@dataclass(frozen=True)
class Contest:
    """What is timed in turn.

    Args:
        subject: what it is about, and its name: no two have the same.
        threads: of all lanes.
        contestants: fastmmd and its peers.
        seconds: how long to go on, at least ``least`` rounds.
        least: rounds.
    """

    subject: str
    threads: int
    contestants: tuple[Contestant, ...]
    seconds: float = 4.0
    least: int = 5


def contests(threads: int, quick: bool) -> list[Contest]:
    """All contests, with the reason for each size."""
    from benchmarks.feature_contests import feature_contests  # which takes classes from here

    # A test on as many points as people still hold a matrix of; drop-ins at the largest batch at
    # which the originals run at all, which make (2n, 2n, d); gathered batches for what costs more.
    test = (500, 50) if quick else (2000, 50)
    batch = (128, 256) if quick else (512, 256)
    gathered = (512,) if quick else (512, 2048)
    long = (8192, 16384) if quick else (65536, 131072, 262144)
    return [
        *_permutations(threads, *test),
        *_drop_ins(threads, *batch),
        *(_products(threads, n) for n in gathered),
        *_estimators(threads, long),
        _projected(threads, 64, 2048, 256),
        _lines(threads, (4096,) if quick else (100_000, 200_000)),
        *feature_contests(threads, quick),
    ]


def differentiated(loss: Loss, exact: Loss, *inputs: Tensor) -> Lane:
    """Value and gradients of a loss, against another in float64."""

    def run(function: Loss, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        value = function(*tensors)
        return (value, *torch.autograd.grad(value, [t for t in tensors if t.requires_grad]))

    def error() -> dict[str, float]:
        wide = tuple(
            t.detach().double().requires_grad_(t.requires_grad) if t.is_floating_point() else t
            for t in inputs
        )
        return errors(run(loss, inputs), run(exact, wide))

    return Lane(partial(run, loss, inputs), error)


# --- the permutation test ------------------------------------------------------------------------


def _permutations(threads: int, n: int, d: int) -> list[Contest]:
    ours = Contestant("fastmmd", n, str(d), partial(_two_sample_test, n, d))
    # Its memory is that of the matrix, whose permuted copy is as large.
    index = Contestant("permuting K by index", n, str(d), partial(_by_index, n, d), remember=False)
    # What is in memory before the call would not be counted.
    product = Contestant("K @ V", n, str(d), partial(_matrix_product, n, d), remember=False)
    return [
        Contest("permutation test", threads, (ours, product)),
        # Half a minute and more in a round: two rounds, whose ratio is far from its bound.
        Contest("1000 permutations", threads, (ours, index), 0.0, 2),
    ]


def _samples(n: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two samples that differ a little."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, n, d, generator=generator)
    return x, y + 0.02


def _two_sample_test(n: int, d: int) -> Lane:
    x, y = _samples(n, d)
    test = partial(fm.two_sample_test, x, y, num_permutations=PERMUTATIONS)

    def error() -> dict[str, float]:
        result = test()
        return _null_error(x, y, torch.tensor(result.statistic), torch.as_tensor(result.null))

    return Lane(test, error)


def _by_index(n: int, d: int) -> Lane:
    x, y = _samples(n, d)

    def error() -> dict[str, float]:
        torch.manual_seed(0)
        return _null_error(x, y, *plain.permuted_by_index(x, y, 30))

    return Lane(lambda: plain.permuted_by_index(x, y, PERMUTATIONS), error)


def _null_error(x: Tensor, y: Tensor, statistic: Tensor, null: Tensor) -> dict[str, float]:
    """The error of the statistic; the null distribution must have the mean that is known exactly.

    Over all labellings v of the pooled points the mean of v'Kv is a combination of the trace of K
    and the sum of its other entries.
    """
    n, total = len(x), 2 * len(x)
    k = plain.bank(plain.gram(torch.cat([x, y]).double()))
    trace = k.diagonal().sum()
    square = 2 / n / total
    mean = square * trace - square / (total - 1) * (k.sum() - trace)
    null = null.double()
    assert (null.mean() - mean).abs() < 5 * null.std() / math.sqrt(len(null)), "the wrong null"
    return errors((statistic,), (plain.biased(k, n),))


def _matrix_product(n: int, d: int) -> Lane:
    x, y = _samples(n, d)
    k = plain.bank(plain.gram(torch.cat([x, y])))
    generator = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.full((n,), 1 / n), torch.full((n,), -1 / n)])
    orders = [torch.randperm(2 * n, generator=generator) for _ in range(PERMUTATIONS)]
    v = torch.stack([labels[order] for order in orders], 1)

    def error() -> dict[str, float]:
        return errors((k @ v,), (k.double() @ v.double(),))

    return Lane(lambda: k @ v, error)


# --- drop-ins ------------------------------------------------------------------------------------


def _drop_ins(threads: int, n: int, d: int) -> list[Contest]:
    cell = Cell(n, d, threads)

    def contest(
        subject: str, ours: Loss, other: str, theirs: Loss, exact: Loss | None = None
    ) -> Contest:
        def lane(loss: Loss) -> Lane:
            return differentiated(loss, exact or theirs, *cell.samples())

        return Contest(
            subject,
            threads,
            (
                Contestant("fastmmd", n, str(d), partial(lane, ours)),
                Contestant(other, n, str(d), partial(lane, theirs)),
            ),
        )

    kernels = [tllib.GaussianKernel(alpha=a) for a in ALPHAS]
    scales = torch.tensor(MULTIPLIERS)

    def adapt(scales: tuple[float, ...], reduce: Callable[[Tensor, int], Tensor]) -> Loss:
        return partial(plain.pytorch_adapt, scales=scales, reduce=reduce)

    one = "one Gram matrix"
    return [
        contest(
            "compat.deepda",
            deepda.MMDLoss(),
            "(2n, 2n, d) differences",
            partial(plain.deepda, distances=plain.differences),
            plain.deepda,  # whose matrices fit in memory in float64, too
        ),
        contest(
            "compat.tllib, five kernels",
            tllib.MultipleKernelMaximumMeanDiscrepancy(kernels),
            one,
            partial(plain.tllib, alphas=ALPHAS),
        ),
        contest(
            "compat.pytorch_adapt, quadratic, five scales",
            pytorch_adapt.MMDLoss(scales, "quadratic"),
            one,
            adapt(MULTIPLIERS, plain.unbiased),
        ),
        contest(
            "compat.pytorch_adapt, as by default",
            pytorch_adapt.MMDLoss(),
            one,
            adapt((1.0,), plain.neighbours),
        ),
    ]


# --- joint and local losses beside plain ones ----------------------------------------------------


def _products(threads: int, n: int) -> Contest:
    def layers(*widths: int) -> list[Tensor]:
        """Features, or probabilities of the classes where the width is theirs."""
        generator = torch.Generator().manual_seed(0)
        made = []
        for shift in (0.0, 0.1):
            for width in widths:
                t = torch.randn(n, width, generator=generator) * (1 + shift) + shift
                made.append((t.softmax(1) if width == CLASSES else t).requires_grad_())
        return made

    def mmd(width: int) -> Lane:
        return differentiated(fm.MMDLoss(), plain.joint, *layers(width))

    def joint(*widths: int) -> Lane:
        loss, count = fm.JointMMDLoss(), len(widths)
        return differentiated(lambda *t: loss(t[:count], t[count:]), plain.joint, *layers(*widths))

    def local(width: int) -> Lane:
        generator = torch.Generator().manual_seed(1)
        labels = torch.randint(CLASSES, (n,), generator=generator)
        probabilities = (3 * torch.randn(n, CLASSES, generator=generator)).softmax(1)
        return differentiated(
            fm.LocalMMDLoss(CLASSES), plain.local, *layers(width), labels, probabilities
        )

    return Contest(
        f"losses, n = {n}",
        threads,
        (
            Contestant("MMDLoss", n, "256", partial(mmd, 256)),
            Contestant("MMDLoss", n, str(CLASSES), partial(mmd, CLASSES)),
            Contestant("JointMMDLoss", n, f"256 + {CLASSES}", partial(joint, 256, CLASSES)),
            Contestant("JointMMDLoss", n, "256 + 256", partial(joint, 256, 256)),
            Contestant(f"LocalMMDLoss, {CLASSES} classes", n, "256", partial(local, 256)),
        ),
    )


# --- estimators in linear time -------------------------------------------------------------------


def _estimators(threads: int, sizes: tuple[int, ...], d: int = 64) -> list[Contest]:
    bandwidth = Cell(1, d, threads).bandwidth
    kernel = fm.Gaussian(bandwidth, MULTIPLIERS)

    def on(loss: Loss, exact: Loss, n: int) -> Lane:
        x, y = Cell(n, d, threads).samples()
        few = (t[:CHECKED].detach().requires_grad_() for t in (x, y))
        return Lane(differentiated(loss, exact, x, y).call, differentiated(loss, exact, *few).error)

    rows = partial(plain.row_by_row, bandwidth=bandwidth)
    contests = []
    for name, block, superdiagonals in (
        ("linear", None, None),
        ("block", BLOCK, None),
        ("incomplete", None, SUPERDIAGONALS),
    ):
        loss = fm.MMDLoss(kernel, name, block, superdiagonals)
        exact = partial(
            reference.mmd2,
            kernel=kernel,
            estimator=name,
            block_size=block,
            num_superdiagonals=superdiagonals,
        )
        lanes: list[tuple[str, Loss]] = [("fastmmd", loss)]
        if name == "linear":
            lanes.append(("row by row", rows))
        contestants = [
            Contestant(peer, n, str(d), partial(on, function, exact, n))
            for peer, function in lanes
            for n in (sizes if name == "linear" else sizes[-2:])
        ]
        contests.append(Contest(f"{name} estimator", threads, tuple(contestants)))
    return contests


# --- random lines --------------------------------------------------------------------------------


def _lines(threads: int, sizes: tuple[int, ...]) -> Contest:
    """More points than any matrix holds, of few features, by sorting."""
    lines = directions(LINES_WIDTH, LINES, 0, torch.float32, torch.device("cpu"))

    def exact(x: Tensor, y: Tensor) -> Tensor:
        return reference.sliced_mmd2(x, y, lines.double())

    def on(loss: Loss, n: int) -> Lane:
        x, y = Cell(n, LINES_WIDTH, threads).samples()
        few = (t[:CHECKED_LINES].detach().requires_grad_() for t in (x, y))
        return Lane(differentiated(loss, exact, x, y).call, differentiated(loss, exact, *few).error)

    lanes: list[tuple[str, Loss]] = [
        ("fastmmd", partial(fm.sliced_mmd2, projections=lines)),
        ("torch.sort", partial(plain.sliced, projections=lines)),
    ]
    contestants = tuple(
        Contestant(peer, n, str(LINES_WIDTH), partial(on, loss, n))
        for peer, loss in lanes
        for n in sizes
    )
    return Contest("sliced_mmd2", threads, contestants)


# --- a layer and the loss on it ------------------------------------------------------------------


def _projected(threads: int, n: int, d: int, p: int) -> Contest:
    """A bottleneck of DAN on features of a ResNet-50, at a batch of two GPUs' worth."""
    kernel = fm.Gaussian("mean")
    # Without a bias, whose gradient is 0: the MMD feels no shift.
    layer = torch.nn.Linear(d, p, bias=False)

    def images(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return functional.linear(x, weight), functional.linear(y, weight)

    def composed(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        return fm.mmd2(*images(x, y, weight), kernel)

    def written_out(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        return plain.deepda(*images(x, y, weight))

    def exact(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        return reference.mmd2(*images(x, y, weight), kernel)

    def lane(loss: Loss) -> Lane:
        x, y = (t.detach() for t in Cell(n, d, threads).samples())
        return differentiated(loss, exact, x, y, layer.weight)

    lanes: list[tuple[str, Loss]] = [
        ("fastmmd", partial(fm.projected_mmd2, kernel=kernel)),
        ("linear + mmd2", composed),
        ("linear + plain PyTorch", written_out),
    ]
    contestants = tuple(
        Contestant(peer, n, f"{d} to {p}", partial(lane, loss)) for peer, loss in lanes
    )
    return Contest("projected_mmd2", threads, contestants)
