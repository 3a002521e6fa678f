"""Other libraries on the tracked rows of ``mmd2``: what is timed beside fastmmd if installed."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from . import plain

__all__ = ["PEERS", "Peer"]

Function = Callable[[Tensor, Tensor], Tensor]


class Peer(NamedTuple):
    """Another way to the same number.

    Args:
        modules: What has to be installed.
        make: Makes the function from the plain form and the samples.
        most: The largest n for which it is asked.
        same: Whether its number is that of fastmmd, and not of a formula of its own.
    """

    modules: tuple[str, ...]
    make: Callable[[Function, Tensor, Tensor], Function]
    most: int = 1 << 30
    same: bool = True

    @property
    def installed(self) -> bool:
        """Whether it can take part."""
        return all(find_spec(name) is not None for name in self.modules)


def _compiled(simple: Function, x: Tensor, y: Tensor) -> Function:
    # What was compiled for one row must not count against the limit of the next, past which torch
    # silently runs uncompiled code.
    torch.compiler.reset()
    function: Function = torch.compile(simple, dynamic=False)
    return function


def _bandwidth(x: Tensor, y: Tensor) -> float:
    """That of ``Gaussian("mean")``, which these libraries are given as a number."""
    z = torch.cat([x, y]).detach().double()
    n = len(z)
    mean = 2 * (n * z.square().sum() - z.sum(0).square().sum()) / (n * (n - 1))
    return math.sqrt(float(mean) / 2)


def _differences(simple: Function, x: Tensor, y: Tensor) -> Function:
    return lambda x, y: plain.deepda(x, y, plain.differences)


def _tllib(simple: Function, x: Tensor, y: Tensor) -> Function:
    return lambda x, y: plain.tllib(x, y, plain.MULTIPLIERS)


def _keops(simple: Function, x: Tensor, y: Tensor) -> Function:
    from pykeops.torch import LazyTensor

    s = _bandwidth(x, y)
    slopes = plain.slopes_of(plain.MULTIPLIERS, s)

    def mean(a: Tensor, b: Tensor) -> Tensor:
        d2 = ((LazyTensor(a[:, None, :]) - LazyTensor(b[None, :, :])) ** 2).sum(-1)
        k = sum((-d2 * slope).exp() for slope in slopes[1:]) + (-d2 * slopes[0]).exp()
        return k.sum(1).sum() / (len(a) * len(b))

    return lambda x, y: mean(x, x) + mean(y, y) - 2 * mean(x, y)


def _geomloss(backend: str) -> Callable[[Function, Tensor, Tensor], Function]:
    def make(simple: Function, x: Tensor, y: Tensor) -> Function:
        from geomloss import SamplesLoss

        s = _bandwidth(x, y)
        losses = [
            SamplesLoss("gaussian", blur=math.sqrt(m) * s, backend=backend)
            for m in plain.MULTIPLIERS
        ]
        # Its kernel losses are half of MMD^2.
        return lambda x, y: 2 * sum(loss(x, y) for loss in losses)

    return make


PEERS = {
    "torch.compile": Peer((), _compiled),
    "DeepDA-style": Peer((), _differences, most=512),  # memory of d (2n)^2 numbers
    "TLlib-style": Peer((), _tllib, same=False),
    "KeOps": Peer(("pykeops",), _keops),
    "geomloss tensorized": Peer(("geomloss",), _geomloss("tensorized"), most=2048),
    "geomloss online": Peer(("geomloss", "pykeops"), _geomloss("online")),
}
