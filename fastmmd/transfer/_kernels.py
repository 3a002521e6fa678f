"""Kernels by name, and what is done with them once the data have fixed their bandwidth."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastmmd import ops
from fastmmd.functional import fixed_terms
from fastmmd.kernels import (
    Cosine,
    Gaussian,
    InverseMultiquadric,
    Kernel,
    Laplacian,
    Linear,
    Matern,
    Polynomial,
    RationalQuadratic,
)
from fastmmd.terms import ENERGY
from fastmmd.transfer._base import Domains

__all__ = ["KERNELS", "FittedKernel", "check_kernel"]

# The bandwidth of each is the median heuristic; another is asked for by a Kernel.
KERNELS: dict[str, Callable[[], Kernel]] = {
    "linear": Linear,
    "rbf": lambda: Gaussian("median", multipliers=(1,)),
    "laplacian": lambda: Laplacian("median"),
    "inverse_multiquadric": lambda: InverseMultiquadric("median"),
    "rational_quadratic": lambda: RationalQuadratic(1.0, "median"),
    "matern": lambda: Matern(1.5, "median"),
    "polynomial": Polynomial,
    "cosine": Cosine,
}
_COLUMNS = 512  # of a kernel matrix, made at a time


def check_kernel(kernel: str | Kernel, *further: str) -> str | Kernel:
    """The kernel, if it is one or the name of one, or one of the further names.

    Raises:
        ValueError: an unknown name, or :class:`fastmmd.Energy`, whose matrices are not positive.
        TypeError: something else.
    """
    if isinstance(kernel, str):
        if kernel not in KERNELS and kernel not in further:
            names = ", ".join(map(repr, [*further, *KERNELS]))
            raise ValueError(f"kernel must be a fastmmd.Kernel or one of {names}, got {kernel!r}")
    elif not isinstance(kernel, Kernel):
        raise TypeError(
            f"kernel must be a fastmmd.Kernel or the name of one, got {type(kernel).__name__}"
        )
    elif ENERGY in kernel.terms().families:
        raise ValueError(f"kernel must be positive definite, which Energy is not, got {kernel!r}")
    return kernel


class FittedKernel:
    """A kernel whose heuristic bandwidth is that of the rows it was fitted to.

    Args:
        kernel: a kernel or the name of one.
        rows: [n, d], of both domains.
        domains: which is whose.
    """

    def __init__(self, kernel: str | Kernel, rows: Tensor, domains: Domains) -> None:
        made = KERNELS[kernel]() if isinstance(kernel, str) else kernel
        source, target = rows[domains.source], rows[domains.target]
        with torch.no_grad():
            self.terms = fixed_terms(source, target, made.terms_for(source, target))

    def product(self, a: Tensor, b: Tensor, v: Tensor) -> Tensor:
        """``K(a, b) @ v``, [n] for v [m], without K."""
        return ops.kernel_sum(a, b, v[:, None], self.terms)[:, 0]

    def matrix(self, a: Tensor, b: Tensor) -> Tensor:
        """``K(a, b)``, [n, m]: the product with unit vectors, some at a time."""
        m = len(b)
        k = a.new_empty(len(a), m)
        for start in range(0, m, _COLUMNS):
            part = b[start : start + _COLUMNS]
            unit = torch.eye(len(part), dtype=a.dtype, device=a.device)
            k[:, start : start + _COLUMNS] = ops.kernel_sum(a, part, unit, self.terms)
        return k
