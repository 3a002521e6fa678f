"""Other libraries beside the tracked rows: what is timed with fastmmd if it is installed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import plain

__all__ = ["PEERS", "Peer"]

Function = Callable[[Tensor, Tensor], Tensor]
Matrix = Callable[[Tensor, Tensor], Any]  # of two samples, a LazyTensor
Peers = Mapping[str, "Peer"]


class Peer(NamedTuple):
    """Another way to the same number.

    Args:
        modules: What has to be installed.
        make: Makes the function from the plain form and the samples.
        most: The largest n for which it is asked.
        same: Whether its number is that of fastmmd, and not of a formula of its own.
        dtypes: For which it is asked.
    """

    modules: tuple[str, ...]
    make: Callable[[Function, Tensor, Tensor], Function]
    most: int = 1 << 30
    same: bool = True
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.bfloat16)

    @property
    def installed(self) -> bool:
        """Whether it can take part."""
        return all(find_spec(name) is not None for name in self.modules)


# --- PyTorch -------------------------------------------------------------------------------------


def _compiled(simple: Function, x: Tensor, y: Tensor) -> Function:
    # What was compiled for one row must not count against the limit of the next, past which torch
    # silently runs uncompiled code.
    torch.compiler.reset()
    function: Function = torch.compile(simple, dynamic=False)
    return function


def _differences(simple: Function, x: Tensor, y: Tensor) -> Function:
    return lambda x, y: plain.deepda(x, y, plain.differences)


def _tllib(simple: Function, x: Tensor, y: Tensor) -> Function:
    return lambda x, y: plain.tllib(x, y, plain.MULTIPLIERS)


# --- KeOps ---------------------------------------------------------------------------------------

_FULL = (torch.float32, torch.float64)


def _lazy(x: Tensor, y: Tensor) -> tuple[Any, Any]:
    from pykeops.torch import LazyTensor

    return LazyTensor(x[:, None, :].contiguous()), LazyTensor(y[None, :, :].contiguous())


def _of_distance(kernel: Callable[[Any, float], Any]) -> Matrix:
    """A kernel of the squared distance and the bandwidth of the rows, the root of d."""

    def matrix(x: Tensor, y: Tensor) -> Any:
        a, b = _lazy(x, y)
        return kernel(((a - b) ** 2).sum(-1), math.sqrt(x.shape[1]))

    return matrix


def _of_product(kernel: Callable[[Any, int], Any]) -> Matrix:
    """A kernel of the inner product and the number of features."""

    def matrix(x: Tensor, y: Tensor) -> Any:
        a, b = _lazy(x, y)
        return kernel((a * b).sum(-1), x.shape[1])

    return matrix


def _cosine(x: Tensor, y: Tensor) -> Any:
    a, b = _lazy(*(torch.nn.functional.normalize(t) for t in (x, y)))
    return (a * b).sum(-1)


def _bank(d2: Any, s: float) -> Any:
    return sum((-d2 * slope).exp() for slope in plain.slopes_of(plain.MULTIPLIERS, s))


def _matern32(d2: Any, s: float) -> Any:
    q = d2.sqrt() * (math.sqrt(3) / s)
    return (1 + q) * (-q).exp()


def _matern52(d2: Any, s: float) -> Any:
    q = d2.sqrt() * (math.sqrt(5) / s)
    return (1 + q + q * q / 3) * (-q).exp()


_MATRICES: Mapping[str, Matrix] = {
    "Laplacian": _of_distance(lambda d2, s: (-d2.sqrt() / s).exp()),
    "Matern 3/2": _of_distance(_matern32),
    "Matern 5/2": _of_distance(_matern52),
    "InverseMultiquadric": _of_distance(lambda d2, s: (1 + d2 / s**2).rsqrt()),
    "RationalQuadratic": _of_distance(lambda d2, s: (1 + d2 / (4 * s**2)) ** -2),
    "Energy": _of_distance(lambda d2, s: -d2.sqrt()),
    "Polynomial": _of_product(lambda xy, d: (xy / d + 1) ** 3),
    "Linear": _of_product(lambda xy, d: xy),
    "Cosine": _cosine,
}


def _keops(function: Function) -> Peer:
    return Peer(("pykeops",), lambda simple, x, y: function, dtypes=_FULL)


def _means(matrix: Matrix) -> Function:
    """MMD^2 of means of lazy matrices."""

    def mean(a: Tensor, b: Tensor) -> Tensor:
        total: Tensor = matrix(a, b).sum(1).sum()
        return total / (len(a) * len(b))

    return lambda x, y: mean(x, x) + mean(y, y) - 2 * mean(x, y)


def _keops_bank(simple: Function, x: Tensor, y: Tensor) -> Function:
    s = _bandwidth(x, y)
    return _means(_of_distance(lambda d2, _: _bank(d2, s)))


def _kernel_sum(x: Tensor, y: Tensor) -> Tensor:
    v = torch.linspace(-1, 1, len(y)).to(y)
    total: Tensor = _of_distance(_bank)(x, y) @ v.unsqueeze(1)
    return total.squeeze(1)


def _witness(x: Tensor, y: Tensor) -> Tensor:
    of_x, of_y = (_of_distance(_bank)(x, z).sum(1).squeeze(1) / len(z) for z in (x, y))
    difference: Tensor = of_x - of_y
    return difference


def _bandwidth(x: Tensor, y: Tensor) -> float:
    """That of ``Gaussian("mean")``, which these libraries are given as a number."""
    z = torch.cat([x, y]).detach().double()
    n = len(z)
    mean = 2 * (n * z.square().sum() - z.sum(0).square().sum()) / (n * (n - 1))
    return math.sqrt(float(mean) / 2)


# --- geomloss ------------------------------------------------------------------------------------


def _geomloss(name: str) -> Peers:
    """Its kernel losses, which are half of MMD^2; a bank of Gaussians is a sum of them."""

    def with_backend(backend: str) -> Callable[[Function, Tensor, Tensor], Function]:
        def make(simple: Function, x: Tensor, y: Tensor) -> Function:
            from geomloss import SamplesLoss

            blurs = [math.sqrt(x.shape[1])]
            if name == "gaussian":
                blurs = [math.sqrt(m) * _bandwidth(x, y) for m in plain.MULTIPLIERS]
            losses = [SamplesLoss(name, blur=blur, backend=backend) for blur in blurs]
            return lambda x, y: 2 * sum(loss(x, y) for loss in losses)

        return make

    tensorized, online = with_backend("tensorized"), with_backend("online")
    return {
        "geomloss tensorized": Peer(("geomloss",), tensorized, most=2048, dtypes=_FULL),
        "geomloss online": Peer(("geomloss", "pykeops"), online, dtypes=_FULL),
    }


# --- the permutation test ------------------------------------------------------------------------


def _by_product(simple: Function, x: Tensor, y: Tensor) -> Function:
    count = 50  # as in the row
    return lambda x, y: plain.permuted_by_product(x, y, count)[0]


# --- what stands beside which row ----------------------------------------------------------------

_COMPILED = {"torch.compile": Peer((), _compiled)}
_THEIRS = {"Laplacian": _geomloss("laplacian"), "Energy": _geomloss("energy")}

PEERS: Mapping[str, Peers] = {
    "mmd2": {
        **_COMPILED,
        # Memory of d (2n)^2 numbers; its means of bfloat16 kernels are off by a tenth.
        "DeepDA-style": Peer((), _differences, most=512, dtypes=_FULL),
        "TLlib-style": Peer((), _tllib, same=False),
        "KeOps": Peer(("pykeops",), _keops_bank, dtypes=_FULL),
        **_geomloss("gaussian"),
    },
    **{
        f"mmd2, {name}": {**_COMPILED, "KeOps": _keops(_means(matrix)), **_THEIRS.get(name, {})}
        for name, matrix in _MATRICES.items()
    },
    "energy_distance": {
        **_COMPILED,
        "KeOps": _keops(_means(_MATRICES["Energy"])),
        **_THEIRS["Energy"],
    },
    "kernel_sum": {**_COMPILED, "KeOps": _keops(_kernel_sum)},
    "witness": {**_COMPILED, "KeOps": _keops(_witness)},
    "two_sample_test": {"K @ labellings": Peer((), _by_product)},
    "random_feature_mmd2": _COMPILED,
    "sliced_mmd2": _COMPILED,
}
