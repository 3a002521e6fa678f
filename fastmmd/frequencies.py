"""Random frequencies: what kernels of distances are the characteristic functions of.

A kernel ``k(x - y)`` with ``k(0) = 1`` is ``E cos(<w, x - y>)`` for some distribution of w
(Bochner; Rahimi and Recht, "Random features for large-scale kernel machines", NeurIPS 2007). Those
here are mixtures of Gaussians, ``w = radius * z`` with z standard normal:

- Gaussian ``exp(-|v|^2 / 2)``: radius 1;
- Matern nu and, for nu = 1/2, Laplacian ``exp(-|v|)``: multivariate t with 2 nu degrees of freedom;
- rational quadratic ``(1 + |v|^2 / (2 alpha))^(-alpha)``: radius^2 ~ Gamma(alpha) / alpha;
- inverse multiquadric ``(1 + |v|^2)^(-1/2)``: radius^2 ~ chi^2 with 1 degree of freedom.

They are to be the same on every machine and for every release: features are compared that were
made apart, such as those of sketches. So the random numbers are defined here and do not come from
the generator of a library. The bits are those of Philox4x64-10 (Salmon, Moraes, Dror and Shaw,
"Parallel random numbers: as easy as 1, 2, 3", SC 2011) with the key (seed, stream) and a counter
from 1, which ``numpy.random.Philox`` gives out and NumPy keeps as they are. Of each word the upper
53 bits make a number ``(bits + 1/2) / 2^53``, of two such numbers the formulas of Box and Muller
make two normal ones. A row of w normals takes ``ceil(w / 2)`` numbers for the lengths and then as
many for the angles, and has the cosines before the sines.

Logarithms, cosines and the orthogonal bases of LAPACK may differ in the last digits of float64
between machines. Frequencies are rounded to float32, whatever the data are, so that these digits
are mostly dropped.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastmmd.terms import (
    GAUSSIAN,
    INVERSE_MULTIQUADRIC,
    LAPLACIAN,
    MATERN_3_2,
    MATERN_5_2,
    RATIONAL_QUADRATIC,
)

# How frequencies are drawn.
SCHEMES = {"iid": 0, "orthogonal": 1, "structured": 2}
IID, ORTHOGONAL, STRUCTURED = range(3)

# Families that have frequencies, with the square of the rate over the scale of a term: a term is
# ``phi(scale |x - y|^2)``, its angles are ``rate <w, x>``.
RATES = {
    GAUSSIAN: 2.0,
    LAPLACIAN: 1.0,
    MATERN_3_2: 1.0,
    MATERN_5_2: 1.0,
    RATIONAL_QUADRATIC: 2.0,
    INVERSE_MULTIQUADRIC: 1.0,
}
VERSION = 1  # of how they are drawn, which files of sketches name

_ROWS, _LENGTHS, _RADII, _PHASES, _SIGNS = range(5)  # streams, less 8 times the family
_FREEDOM = {LAPLACIAN: 1, MATERN_3_2: 3, MATERN_5_2: 5}
_LEAST_WIDTH = 32  # of a Hadamard matrix: a narrow one has few different rows
_AT_ONCE = 1 << 18  # numbers that are made in float64 before they are rounded

# NumPy is imported where it is used: most programs draw no frequencies.
if TYPE_CHECKING:
    import numpy.typing as npt

    _Array = npt.NDArray[Any]


class Frequencies(NamedTuple):
    """Frequencies w_j and phases b_j, j < F."""

    w: Tensor  # [d, F], float32; if structured, the radii of the rows, [F], float64
    signs: Tensor | None  # [blocks, 3, width], int8, of structured ones
    phases: Tensor  # [F], float64, uniform in [0, 2 pi)

    def to(self, device: torch.device) -> Frequencies:
        """The same on a device."""
        signs = None if self.signs is None else self.signs.to(device)
        return Frequencies(self.w.to(device), signs, self.phases.to(device))


class Stream:
    """The numbers of a seed and a stream, one after another.

    Args:
        seed: at least 0 and below 2^64.
        stream: in the same range.
    """

    def __init__(self, seed: int, stream: int) -> None:
        import numpy as np

        self._generator = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64))

    def bits(self, count: int) -> _Array:
        """Words of 64 bits, [count]."""
        import numpy as np

        return np.asarray(self._generator.random_raw(count), dtype=np.uint64)

    def uniform(self, count: int) -> _Array:
        """Numbers between 0 and 1, both excluded, [count]."""
        import numpy as np

        return ((self.bits(count) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    def normal(self, rows: int, width: int) -> _Array:
        """Standard normal numbers, [rows, width]; the same in one call or several."""
        import numpy as np

        half = (width + 1) // 2
        u = self.uniform(2 * rows * half).reshape(rows, 2, half)
        length, angle = np.sqrt(-2 * np.log(u[:, 0])), 2 * math.pi * u[:, 1]
        made = np.concatenate([length * np.cos(angle), length * np.sin(angle)], axis=1)
        return made[:, :width]


def draw(family: int, shape: float, scheme: int, d: int, count: int, seed: int) -> Frequencies:
    """Frequencies of a kernel on the CPU, always the same ones for a seed.

    - ``iid``: independent;
    - ``orthogonal``: blocks of d that are orthogonal to each other, their lengths as if they were
      independent (Yu et al., "Orthogonal random features", NeurIPS 2016);
    - ``structured``: blocks of rows of ``H D_2 H D_1 H D_0`` with Hadamard matrices H and random
      signs D, of lengths as the others (Le, Sarlos and Smola, "Fastfood", ICML 2013; Yu et al.):
      close to orthogonal ones in distribution, made in O(log d) operations for each number, and
      never written out. Points are padded with zeros to a power of two.

    Args:
        family: of the terms of :mod:`fastmmd.terms`.
        shape: alpha of the rational quadratic.
        scheme: one of :data:`SCHEMES`.
        d: the width of the points.
        count: F.
        seed: at least 0 and below 2^64.

    Returns:
        The frequencies and phases.
    """
    import numpy as np

    def stream(role: int) -> Stream:
        return Stream(seed, 8 * family + role)

    phases = torch.from_numpy(2 * math.pi * stream(_PHASES).uniform(count))
    radii = _radii(family, shape, count, stream(_RADII))
    block = block_of(scheme, d)
    if scheme == STRUCTURED:
        blocks = -(-count // block)
        upper = (stream(_SIGNS).bits(blocks * 3 * block) >> np.uint64(63)).astype(np.int8)
        signs = torch.from_numpy(1 - 2 * upper.reshape(blocks, 3, block))
        # The rows of the product have length block^(3/2), those of a Gaussian matrix chi(block).
        radii = radii * _lengths(count, block, stream(_LENGTHS)) * block**-1.5
        rounded = radii.astype(np.float32).astype(np.float64)
        return Frequencies(torch.from_numpy(rounded), signs, phases)
    w = np.empty((count, d), dtype=np.float32)
    if scheme == IID:
        rows, step = stream(_ROWS), max(1, _AT_ONCE // d)
        for i in range(0, count, step):
            part = w[i : i + step]
            part[:] = radii[i : i + step, None] * rows.normal(len(part), d)
    else:
        rows, radii = stream(_ROWS), radii * _lengths(count, d, stream(_LENGTHS))
        for i in range(0, count, d):
            part = w[i : i + d]
            # By torch, whose threads are ours.
            q, triangle = torch.linalg.qr(torch.from_numpy(rows.normal(d, d)))
            q = q * triangle.diagonal().sign()  # or it would not be uniform
            part[:] = radii[i : i + d, None] * q[: len(part)].numpy()
    return Frequencies(torch.from_numpy(w).T, None, phases)


def block_of(scheme: int, d: int) -> int:
    """How many frequencies depend on each other."""
    if scheme == STRUCTURED:
        return max(_LEAST_WIDTH, 1 << (d - 1).bit_length())
    return d if scheme == ORTHOGONAL else 1


def dense(radii: Tensor, signs: Tensor, d: int, block: int | None = None) -> Tensor:
    """Structured frequencies as a matrix [d, F], or those of one block."""
    width = signs.shape[2]
    hadamard = torch.ones((1, 1), dtype=torch.float64, device=signs.device)
    while len(hadamard) < width:
        hadamard = torch.cat(
            [torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)]
        )
    of_blocks = signs.double() if block is None else signs[block : block + 1].double()
    rows = []
    for s in of_blocks:
        first = hadamard[:, :d] * s[0, :d]
        rows.append(hadamard @ (s[2, :, None] * (hadamard @ (s[1, :, None] * first))))
    radii = radii if block is None else radii[block * width : (block + 1) * width]
    return (radii[:, None] * torch.cat(rows)[: len(radii)]).T


def _lengths(count: int, width: int, stream: Stream) -> _Array:
    """Of standard normal vectors of that width, [count]."""
    import numpy as np

    step = max(1, _AT_ONCE // width)
    parts = [
        np.sqrt(np.square(stream.normal(min(step, count - i), width)).sum(axis=1))
        for i in range(0, count, step)
    ]
    return np.concatenate(parts)


def _radii(family: int, shape: float, count: int, stream: Stream) -> _Array:
    """Of the mixture of Gaussians, [count]."""
    import numpy as np

    if family == GAUSSIAN:
        return np.ones(count)
    if family == INVERSE_MULTIQUADRIC:
        return _lengths(count, 1, stream)
    if family == RATIONAL_QUADRATIC:
        return np.sqrt(_gamma(shape, count, stream) / shape)
    freedom = _FREEDOM[family]
    return math.sqrt(freedom) / _lengths(count, freedom, stream)


def _gamma(shape: float, count: int, stream: Stream) -> _Array:
    """Gamma variables, [count] (Marsaglia and Tsang, "A simple method for generating gamma
    variables", ACM Transactions on Mathematical Software 2000).

    Below a shape of 1 they are those of ``shape + 1`` times ``u^(1 / shape)``.
    """  # noqa: D205
    import numpy as np

    boost = stream.uniform(count) ** (1 / shape) if shape < 1 else np.ones(count)
    d = (shape + 1 if shape < 1 else shape) - 1 / 3
    made, missing = np.empty(count), np.arange(count)
    while len(missing):
        z, u = stream.normal(len(missing), 1)[:, 0], stream.uniform(len(missing))
        v = (1 + z / math.sqrt(9 * d)) ** 3
        positive = v > 0
        v[~positive] = 1.0
        accepted = positive & (np.log(u) < z * z / 2 + d * (1 - v + np.log(v)))
        made[missing[accepted]] = d * v[accepted]
        missing = missing[~accepted]
    return made * boost
