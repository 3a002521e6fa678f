"""What is tracked: every public operation beside its plain form, at sizes that have a reason.

This package is also loaded under another name, beside another build of fastmmd that is to be timed:
it imports its own modules relatively, and the library by its name.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fastmmd as fm
from fastmmd import reference

from . import plain
from .clock import cache_of, rotated, sets_beyond
from .peers import PEERS

__all__ = ["FORWARD", "GRADIENTS", "Lanes", "MissingError", "PeerError", "Row", "rows", "select"]

Function = Callable[..., Any]
SUBJECT, REFERENCE = "fastmmd", "reference"
FORWARD, GRADIENTS = "forward", "forward + backward"
CLASSES = 31  # of Office-31
PERMUTATIONS = 50
FEATURES, LINES = 1024, 32


class MissingError(LookupError):
    """The build of fastmmd that is timed has no such operation, or not with these arguments."""


class PeerError(RuntimeError):
    """Another library is installed, and cannot compute the row."""


def offered(name: str, *arguments: str) -> Any:
    """What this build of fastmmd has under a name.

    A row asks for what it times before anything runs: so an operation that is there and fails is
    not taken for one that is not there.

    Raises:
        MissingError: It has no such name, or it does not take one of the arguments.
    """
    if not hasattr(fm, name):
        raise MissingError(f"no fastmmd.{name}")
    found = getattr(fm, name)
    for argument in arguments:
        if argument not in inspect.signature(found).parameters:
            raise MissingError(f"fastmmd.{name} takes no {argument}")
    return found


@dataclass(frozen=True)
class Lanes:
    """What is timed of a row, and the results of both sides, which must agree.

    Attributes:
        calls: Functions without arguments by lane: ``fastmmd``, ``reference`` and those of peers.
        error: The largest difference of value and gradients between fastmmd and the reference,
            relative to the largest entry of the reference in float64.
        missing: Peers that are not installed.
    """

    calls: Mapping[str, Callable[[], Any]]
    error: float
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One operation at one size.

    Args:
        op: Its name.
        n: Points of each sample.
        d: Their features.
        why: The reason for the size.
        make: Makes (fastmmd's form, plain form) of functions of the samples.
        mode: ``"forward"`` or ``"forward + backward"``.
        dtype: Of the samples.
        quick: Whether a quick run has it.
        products: Matrix products of n x n x d multiply-adds that value and gradients need each.
        tolerance: The largest relative difference of the two forms.
    """

    op: str
    n: int
    d: int
    why: str
    make: Callable[[Tensor, Tensor], tuple[Function, Function]]
    mode: str = FORWARD
    dtype: torch.dtype = torch.float32
    quick: bool = True
    products: tuple[int, int] = (0, 0)
    tolerance: float = 1e-3

    @property
    def name(self) -> str:
        """What tells it from the others, and stays over commits."""
        kind = str(self.dtype).removeprefix("torch.")
        return f"{self.op}, n={self.n} d={self.d}, {kind}, {self.mode}"

    @property
    def flop(self) -> float:
        """Multiplications and additions of the matrix products that cannot be left out, or 0."""
        value, gradients = self.products
        count = value + (gradients if self.mode == GRADIENTS else 0)
        return 2.0 * count * self.n * self.n * self.d

    @property
    def bytes(self) -> int:
        """Bytes that must be moved: the samples in, their gradients out."""
        passes = 2 if self.mode == GRADIENTS else 1
        return passes * 2 * self.n * self.d * self.dtype.itemsize

    def samples(self, device: str = "cpu", seed: int = 0) -> tuple[Tensor, Tensor]:
        """Two samples [n, d]: normal, the second shifted and wider."""
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.randn(2, self.n, self.d, generator=generator)
        wanted = self.mode == GRADIENTS
        y = 1.1 * y + 0.1
        x, y = (t.to(device, self.dtype).requires_grad_(wanted) for t in (x, y))
        return x, y

    def prepare(self, device: str = "cpu", peers: bool = False, cache: int | None = None) -> Lanes:
        """The lanes, after a first call of each.

        Args:
            device: ``"cpu"`` or ``"cuda"``.
            peers: Whether other libraries are lanes too.
            cache: Bytes that the inputs, used in turn, have to exceed; those of the device's
                second-level cache unless given, 0 on the CPU.

        Raises:
            MissingError: This build of fastmmd has no such operation.
            ArithmeticError: The two sides disagree, or a peer with them.
            PeerError: Another library is installed and fails.
        """
        size = 2 * self.n * self.d * self.dtype.itemsize
        count = sets_beyond(cache_of(device) if cache is None else cache, size)
        sets = [self.samples(device, seed) for seed in range(count)]
        x, y = sets[0]
        ours, simple = self.make(x, y)
        exact = tuple(t.detach().double().requires_grad_(t.requires_grad) for t in (x, y))
        truth = _call(self.make(*exact)[1], *exact)
        found = _call(ours, x, y)
        error = max(_relative(f, t) for f, t in zip(found, truth, strict=True))
        if not error <= self.tolerance:
            raise ArithmeticError(
                f"{self.name}: fastmmd differs from plain PyTorch by {error:.1e}, relatively"
            )
        lanes = {SUBJECT: ours, REFERENCE: simple}
        missing = []
        for name, peer in PEERS.get(self.op, {}).items() if peers else ():
            if self.n > peer.most or self.dtype not in peer.dtypes:
                continue
            if not peer.installed:
                missing.append(name)
                continue
            try:
                lanes[name] = peer.make(simple, x, y)
                theirs = _call(lanes[name], x, y)  # compiles, too
            except Exception as failure:
                raise PeerError(f"{self.name}: {name} fails: {failure!r}") from failure
            pairs = zip(theirs, truth, strict=True)
            if peer.same and not all(_relative(f, t) <= 0.02 for f, t in pairs):
                raise ArithmeticError(f"{self.name}: {name} computes something else")
        calls = {name: rotated(partial(_call, lane), sets) for name, lane in lanes.items()}
        return Lanes(calls, error, tuple(missing))


def _relative(found: Tensor, truth: Tensor) -> float:
    """The largest error, relative to the largest entry."""
    return float((found.double() - truth).abs().max() / truth.abs().max().clamp(min=1e-300))


def _call(function: Function, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """The result, and its gradients if the samples require any."""
    if not x.requires_grad:
        with torch.no_grad():
            return (torch.as_tensor(function(x, y)),)
    value = function(x, y)
    return (value.detach(), *torch.autograd.grad(value.sum(), (x, y)))


def rows() -> list[Row]:
    """All rows, in the order in which they are measured."""
    return [Row(**spec, mode=mode) for spec in _specs() for mode in _modes(spec)]


def select(pattern: str | None, quick: bool) -> list[Row]:
    """The rows of a run.

    Args:
        pattern: A regular expression, searched for in the names of rows whatever the case; all
            rows without one.
        quick: Whether large sizes are left out.

    Raises:
        ValueError: It is no regular expression, or no name has it.
    """
    try:
        wanted = re.compile(pattern or "", re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"--select {pattern!r} is no regular expression: {error}") from error
    found = [row for row in rows() if (row.quick or not quick) and wanted.search(row.name)]
    if not found:
        names = ", ".join(sorted({row.op for row in rows()}))
        raise ValueError(f"--select {pattern!r} selects no row; there are: {names}")
    return found


_VALUE_ONLY = ("two_sample_test", "witness", "MeanEmbedding.update")


def _modes(spec: Mapping[str, Any]) -> tuple[str, ...]:
    return (FORWARD,) if spec["op"] in _VALUE_ONLY else (FORWARD, GRADIENTS)


# Each pair of points once for the value, the symmetric matrix of weights for the gradients.
_PAIRS = (2, 4)


def _specs() -> Iterator[dict[str, Any]]:
    def spec(op: str, n: int, d: int, why: str, make: Any, **rest: Any) -> dict[str, Any]:
        return {"op": op, "n": n, "d": d, "why": why, "make": make, **rest}

    bank = _of_kernel(lambda: offered("Gaussian")("mean"))
    for n, why, quick in (
        (32, "the batch and bottleneck of DeepDA's examples: the cost of a call", True),
        (128, "a usual batch on one device", True),
        (512, "a large batch: all of it still in the second-level cache", True),
        (2048, "a batch gathered over devices: the kernel matrix leaves the cache", False),
    ):
        yield spec("mmd2", n, 256, why, bank, quick=quick, products=_PAIRS)
    wide = "wide features, as of a backbone without bottleneck: products alone bind"
    yield spec("mmd2", 2048, 1024, wide, bank, quick=False, products=_PAIRS)
    double = "the precision of tests and references"
    yield spec("mmd2", 512, 256, double, bank, dtype=torch.float64, products=_PAIRS)
    half = "what autocast hands over"
    yield spec("mmd2", 512, 256, half, bank, dtype=torch.bfloat16, products=_PAIRS, tolerance=0.02)

    two = "a two-sample test on narrow data: exponentials bind"
    unbiased = _of_kernel(lambda: offered("Gaussian")("mean"), estimator="unbiased")
    yield spec("mmd2, unbiased", 512, 64, two, unbiased, products=_PAIRS)
    yield spec("mmd2, median", 512, 64, two, _of_kernel(lambda: offered("Gaussian")("median")))
    for name, make in _kernels().items():
        yield spec(f"mmd2, {name}", 512, 64, "each family at one size", _of_kernel(make))
    long = "more points than any matrix holds"
    for name, n, options in (
        ("linear", 16384, {}),
        ("block", 4096, {"block_size": 64}),
        ("incomplete", 1024, {"num_superdiagonals": 16}),
    ):
        make = _of_kernel(lambda: offered("Gaussian")(8.0), estimator=name, **options)
        yield spec(f"mmd2, {name}", n, 64, long, make)

    batch = "a batch of features and of class probabilities"
    yield spec("joint_mmd2", 256, 256, batch, _joint)
    yield spec("local_mmd2", 256, 256, batch, _local)
    yield spec("coral", 256, 256, batch, _coral, tolerance=0.01)
    yield spec("energy_distance", 512, 64, two, _energy)
    yield spec("kernel_sum", 1024, 64, "a witness on a validation set", _kernel_sum)
    yield spec("witness", 512, 64, "which samples drive the gap", _witness, tolerance=0.01)
    test = "the permutation test of a notebook"
    yield spec("two_sample_test", 400, 50, test, _two_sample_test, tolerance=0.01)
    yield spec("projected_mmd2", 64, 2048, "a bottleneck on pooled ResNet features", _projected)
    yield spec("random_feature_mmd2", 4096, 64, long, _random_features, tolerance=0.01)
    yield spec("sliced_mmd2", 16384, 32, long, _sliced, tolerance=0.01)
    yield spec("MeanEmbedding.update", 4096, 64, "a part of a file at a time", _embedding)


def _kernels() -> dict[str, Callable[[], Any]]:
    s = 8.0  # the root of d, at which kernels vary most over the data
    return {
        "Laplacian": lambda: offered("Laplacian")(s),
        "Matern 3/2": lambda: offered("Matern")(1.5, s),
        "Matern 5/2": lambda: offered("Matern")(2.5, s),
        "InverseMultiquadric": lambda: offered("InverseMultiquadric")(s),
        "RationalQuadratic": lambda: offered("RationalQuadratic")(2.0, s),
        "Energy": lambda: offered("Energy")(),
        "Polynomial": lambda: offered("Polynomial")(),
        "Linear": lambda: offered("Linear")(),
        "Cosine": lambda: offered("Cosine")(),
    }


def _of_kernel(kernel: Callable[[], Any], **options: Any) -> Any:
    def make(x: Tensor, y: Tensor) -> tuple[Function, Function]:
        k, mmd2 = kernel(), offered("mmd2", *options)

        def ours(x: Tensor, y: Tensor) -> Tensor:
            return mmd2(x, y, k, **options)

        def simple(x: Tensor, y: Tensor) -> Tensor:
            return reference.mmd2(x, y, k, **options)

        return ours, simple

    return make


def _probabilities(of: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(of), CLASSES, generator=generator).softmax(1).to(of)


def _joint(x: Tensor, y: Tensor) -> tuple[Function, Function]:
    joint_mmd2 = offered("joint_mmd2")
    p, q = _probabilities(x, 1), _probabilities(y, 2)
    return (
        lambda x, y: joint_mmd2((x, p), (y, q)),
        lambda x, y: plain.joint(x, p, y, q),
    )


def _local(x: Tensor, y: Tensor) -> tuple[Function, Function]:
    local_mmd2 = offered("local_mmd2")
    labels, q = _probabilities(x, 1).argmax(1), _probabilities(y, 2)
    return (
        lambda x, y: local_mmd2(x, y, labels, q, CLASSES),
        lambda x, y: plain.local(x, y, labels, q),
    )


def _coral(x: Tensor, y: Tensor) -> tuple[Function, Function]:
    coral = offered("coral")
    return coral, plain.coral


def _energy(x: Tensor, y: Tensor) -> tuple[Function, Function]:
    energy_distance = offered("energy_distance")
    return energy_distance, plain.energy_distance


def _kernel_sum(x: Tensor, y: Tensor) -> tuple[Function, Function]:
    kernel_sum = offered("kernel_sum")
    k = offered("Gaussian")(math.sqrt(x.shape[1]))
    v = torch.linspace(-1, 1, len(y)).to(y)
    slopes = plain.slopes_of(k.multipliers, math.sqrt(x.shape[1]))

    def simple(x: Tensor, y: Tensor) -> Tensor:
        return plain.gaussians(plain.cross(x, y), slopes) @ v

    return lambda x, y: kernel_sum(x, y, v, k), simple


def _witness(x: Tensor, y: Tensor) -> tuple[Function, Function]:
    witness = offered("witness")
    k = offered("Gaussian")(math.sqrt(x.shape[1]))
    slopes = plain.slopes_of(k.multipliers, math.sqrt(x.shape[1]))

    def simple(x: Tensor, y: Tensor) -> Tensor:
        to_x, to_y = (plain.gaussians(plain.cross(x, of), slopes).mean(1) for of in (x, y))
        return to_x - to_y

    return lambda x, y: witness(x, y, x, k), simple


def _two_sample_test(x: Tensor, y: Tensor) -> tuple[Function, Function]:
    two_sample_test = offered("two_sample_test", "num_permutations")

    def ours(x: Tensor, y: Tensor) -> Any:
        return two_sample_test(x, y, num_permutations=PERMUTATIONS).statistic

    # The statistic alone is the same on both sides; the labellings are drawn differently.
    return ours, lambda x, y: plain.permuted_by_index(x, y, PERMUTATIONS)[0]


def _projected(x: Tensor, y: Tensor) -> tuple[Function, Function]:
    projected_mmd2 = offered("projected_mmd2")
    generator = torch.Generator().manual_seed(1)
    weight = (torch.randn(256, x.shape[1], generator=generator) / math.sqrt(x.shape[1])).to(x)

    def simple(x: Tensor, y: Tensor) -> Tensor:
        return plain.deepda(x @ weight.T, y @ weight.T)

    return lambda x, y: projected_mmd2(x, y, weight), simple


def _random_features(x: Tensor, y: Tensor) -> tuple[Function, Function]:
    random_feature_mmd2 = offered("random_feature_mmd2", "frequencies", "phases")
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(x.shape[1], FEATURES, generator=generator).to(x)
    b = (2 * math.pi * torch.rand(FEATURES, generator=generator)).to(x)
    s = math.sqrt(x.shape[1])
    k = offered("Gaussian")(s, (1.0,))

    def ours(x: Tensor, y: Tensor) -> Tensor:
        return random_feature_mmd2(x, y, FEATURES, k, frequencies=w, phases=b)

    def simple(x: Tensor, y: Tensor) -> Tensor:
        means = [(t @ (w / s) + b).cos().mean(0) for t in (x, y)]
        return 2 / FEATURES * (means[0] - means[1]).square().sum()

    return ours, simple


def _sliced(x: Tensor, y: Tensor) -> tuple[Function, Function]:
    sliced_mmd2 = offered("sliced_mmd2", "projections")
    generator = torch.Generator().manual_seed(1)
    lines = torch.randn(x.shape[1], LINES, generator=generator)
    lines = (lines / lines.norm(dim=0)).to(x)
    return (
        lambda x, y: sliced_mmd2(x, y, projections=lines),
        lambda x, y: plain.sliced(x, y, lines),
    )


def _embedding(x: Tensor, y: Tensor) -> tuple[Function, Function]:
    s = math.sqrt(x.shape[1])
    sketch = offered("MeanEmbedding")(FEATURES, offered("Gaussian")(s, (1.0,)), x.shape[1], 0)
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(x.shape[1], FEATURES, generator=generator).to(x)

    def ours(x: Tensor, y: Tensor) -> Tensor:
        sketch.update(x)
        return x.new_zeros(())  # the sum has frequencies of its own

    def simple(x: Tensor, y: Tensor) -> Tensor:
        return 0 * (x @ (w / s)).cos().sum(0).sum()

    return ours, simple
