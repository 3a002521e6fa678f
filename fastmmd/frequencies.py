"""Random frequencies: what kernels of distances are the characteristic functions of.

A kernel ``k(x - y)`` with ``k(0) = 1`` is ``E cos(<w, x - y>)`` for some distribution of w
(Bochner; Rahimi and Recht, "Random features for large-scale kernel machines", NeurIPS 2007). Those
here are mixtures of Gaussians, ``w = radius * z`` with z standard normal:

- Gaussian ``exp(-|v|^2 / 2)``: radius 1;
- Matern nu and, for nu = 1/2, Laplacian ``exp(-|v|)``: multivariate t with 2 nu degrees of freedom;
- rational quadratic ``(1 + |v|^2 / (2 alpha))^(-alpha)``: radius^2 ~ Gamma(alpha) / alpha;
- inverse multiquadric ``(1 + |v|^2)^(-1/2)``: radius^2 ~ chi^2 with 1 degree of freedom.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

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
_FREEDOM = {LAPLACIAN: 1, MATERN_3_2: 3, MATERN_5_2: 5}
_LEAST_WIDTH = 32  # of a Hadamard matrix: a narrow one has few different rows
_AT_ONCE = 1 << 18  # numbers that are drawn in float64 before they are rounded


class Frequencies(NamedTuple):
    """Frequencies w_j and phases b_j, j < F."""

    w: Tensor  # [d, F]; if structured, the radii of the rows, [F], float64
    signs: Tensor | None  # [blocks, 3, width], int8, of structured ones
    phases: Tensor  # [F], float64, uniform in [0, 2 pi)


def draw(
    family: int,
    shape: float,
    scheme: int,
    d: int,
    count: int,
    seed: int,
    dtype: torch.dtype = torch.float64,
) -> Frequencies:
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
        seed: a non-negative number below 2^63.
        dtype: of w.

    Returns:
        The frequencies and phases.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    options: Any = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
    phases = 2 * math.pi * torch.rand(count, **options)
    radii = _radii(family, shape, count, generator)
    if scheme == STRUCTURED:
        width = max(_LEAST_WIDTH, 1 << (d - 1).bit_length())
        blocks = -(-count // width)
        signs = 2 * torch.randint(0, 2, (blocks, 3, width), generator=generator, device="cpu") - 1
        # The rows of the product have length width^(3/2), those of a Gaussian matrix chi(width).
        radii = radii * _chi(width, count, generator) * width**-1.5
        return Frequencies(radii.to(dtype).double(), signs.to(torch.int8), phases)
    w = torch.empty((count, d), dtype=dtype, device="cpu")
    if scheme == IID:
        step = max(1, _AT_ONCE // d)
        for part, r in zip(w.split(step), radii.split(step), strict=True):
            part.copy_(r[:, None] * torch.randn(part.shape, **options))
    else:
        radii = radii * _chi(d, count, generator)
        step = d * max(1, _AT_ONCE // (d * d))
        for part, r in zip(w.split(step), radii.split(step), strict=True):
            blocks = -(-len(r) // d)
            q, triangle = torch.linalg.qr(torch.randn(blocks, d, d, **options))
            # Of either sign alike, or it would not be uniform.
            q = q * triangle.diagonal(dim1=1, dim2=2).sign()[:, None]
            part.copy_(r[:, None] * q.reshape(-1, d)[: len(r)])
    return Frequencies(w.T, None, phases)


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


def _radii(family: int, shape: float, count: int, generator: torch.Generator) -> Tensor:
    """Of the mixture of Gaussians, [count]."""
    if family == GAUSSIAN:
        return torch.ones(count, dtype=torch.float64, device="cpu")
    if family == INVERSE_MULTIQUADRIC:
        return _chi(1, count, generator)
    if family == RATIONAL_QUADRATIC:
        return (_gamma(shape, count, generator) / shape).sqrt()
    freedom = _FREEDOM[family]
    return math.sqrt(freedom) / _chi(freedom, count, generator)


def _chi(freedom: int, count: int, generator: torch.Generator) -> Tensor:
    """Lengths of standard normal vectors."""
    if freedom <= 8:
        options: Any = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
        return torch.linalg.vector_norm(torch.randn(count, freedom, **options), dim=1)
    return (2 * _gamma(freedom / 2, count, generator)).sqrt()


def _gamma(shape: float, count: int, generator: torch.Generator) -> Tensor:
    shapes = torch.full((count,), shape, dtype=torch.float64, device="cpu")
    return torch._standard_gamma(shapes, generator=generator)
