r"""A drop-in for the kernel losses of geomloss.

``from fastmmd.compat.geomloss import SamplesLoss`` in place of ``from geomloss import
SamplesLoss``. Nothing is compiled at run time, and memory is linear in the samples on any device.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastmmd import ops
from fastmmd.checks import BIASED
from fastmmd.compat._common import (
    at_least_single,
    check_choice,
    check_pair,
    check_positive,
    family_terms,
    multiplied,
)
from fastmmd.terms import ENERGY, GAUSSIAN, LAPLACIAN, LINEAR

__all__ = ["SamplesLoss"]

_FAMILIES = {"gaussian": GAUSSIAN, "laplacian": LAPLACIAN, "energy": ENERGY}
_TRANSPORT = ("sinkhorn", "hausdorff")
_BACKENDS = ("auto", "tensorized", "online", "multiscale")
_CLOSEST = 1e-4  # the least distance that geomloss's tensorized backend knows
_TENSORIZED = 5000**2  # pairs up to which backend "auto" is "tensorized"


class SamplesLoss(nn.Module):
    r"""Half the squared norm of the difference of two weighted samples.

    ``1/2 sum_ij a_i a_j k(x_i, x_j) + 1/2 sum_ij b_i b_j k(y_i, y_j) - sum_ij a_i b_j k(x_i, y_j)``
    with ``k = exp(-|x - y|^2 / (2 blur^2))`` for ``"gaussian"``, ``exp(-|x - y| / blur)`` for
    ``"laplacian"`` and ``-|x - y|`` for ``"energy"``: half of the biased MMD^2 for weights that
    sum to 1. The weights are taken as they are: not divided by their sum, and of either sign.

    What the original does wrong: its ``"tensorized"`` backend (and ``"auto"`` up to 5000^2 pairs)
    takes no distance to be less than 1e-4, that of a point to itself included; ``"laplacian"``
    counts that in units of blur. That adds ``-1e-4 (sum a_i^2 + sum b_j^2) / 2`` to the energy
    loss, which is then not 0 for equal samples, and as much, relative to k, to the Laplacian one.
    This is done here too, but for different points that are closer than that. The backend
    ``"multiscale"`` leaves out pairs farther apart than ``truncate`` times blur; here, none is.
    Its second derivatives are wrong, as half of each term within a sample is detached; these are
    right. With ``corrected`` nothing is added.

    ``blur=0.05`` is meant for points of the unit square or cube: of features in hundreds of
    dimensions all kernel values are 0 then.

    Args:
        loss: ``"gaussian"``, ``"laplacian"`` or ``"energy"``. ``"sinkhorn"``, geomloss's default,
            and ``"hausdorff"`` are optimal transport: an error.
        p: unused, as it is there by these losses; so are reach, diameter, scaling, truncate, cost,
            cluster_scale, debias and verbose.
        blur: the bandwidth.
        reach: unused.
        diameter: unused.
        scaling: unused.
        truncate: unused; see above.
        cost: unused.
        kernel: None; a kernel function of one's own is an error.
        cluster_scale: unused.
        debias: unused.
        potentials: return ``sum_j a_j k(x_i, x_j) - sum_j b_j k(x_i, y_j)`` at the points of x and
            its negative at those of y, in place of the loss.
        verbose: unused.
        backend: ``"auto"``, ``"tensorized"``, ``"online"`` or ``"multiscale"``; one road serves
            all.
        corrected: mend the above.

    Raises:
        ValueError: another loss or backend, a blur that is not positive.
        TypeError: a blur that is no number.
        NotImplementedError: a kernel.

    Example:
        >>> import torch
        >>> from fastmmd.compat.geomloss import SamplesLoss
        >>> x, y = torch.zeros(4, 2), torch.ones(3, 2)
        >>> SamplesLoss("gaussian", blur=1.0)(x, y)
        tensor(0.6321)
        >>> SamplesLoss("energy", corrected=True)(torch.ones(4) / 4, x, torch.ones(3) / 3, y)
        tensor(1.4142)
    """

    def __init__(
        self,
        loss: str = "sinkhorn",
        p: float = 2,
        blur: float = 0.05,
        reach: float | None = None,
        diameter: float | None = None,
        scaling: float = 0.5,
        truncate: float | None = 5,
        cost: Any = None,
        kernel: Any = None,
        cluster_scale: float | None = None,
        debias: bool = True,
        potentials: bool = False,
        verbose: bool = False,
        backend: str = "auto",
        *,
        corrected: bool = False,
    ) -> None:
        super().__init__()
        if loss in _TRANSPORT:
            raise ValueError(
                f"loss must be 'gaussian', 'laplacian' or 'energy', got {loss!r}, which is optimal"
                " transport and no MMD: keep geomloss for it"
            )
        check_choice("loss", loss, tuple(_FAMILIES))
        check_choice("backend", backend, _BACKENDS)
        if kernel is not None:
            raise NotImplementedError(
                f"kernel must be None, got {kernel!r}: kernel functions of one's own need the"
                " matrix, which this class does not make"
            )
        self.loss = loss
        self.p = p
        self.blur = check_positive("blur", blur)
        self.truncate = truncate
        self.potentials = potentials
        self.backend = backend
        self.corrected = corrected
        scale = {
            "gaussian": 0.5 / self.blur**2,
            "laplacian": 1 / self.blur**2,
            "energy": 1.0,
        }[loss]
        self._terms = family_terms(_FAMILIES[loss], [scale])
        # Signed weights of any sum are a further feature, with the product of two as its kernel.
        self._weighted_terms = multiplied([self._terms, family_terms(LINEAR, [1.0])])

    def forward(self, *args: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The loss of (x, y) or (a, x, b, y).

        Args:
            *args: samples x [N, D] and y [M, D], or batches [B, N, D] and [B, M, D]; with weights
                a [N] and b [M], or [B, N] and [B, M], a last dimension of 1 being welcome. Without
                weights these are 1 / N and 1 / M.

        Returns:
            A scalar, or [B] for batches; for ``potentials`` a pair of the shapes of the weights,
            but [1, N] and [1, M] of single samples, as the original has it, unless corrected.

        Raises:
            ValueError: another number of arguments, or shapes that do not go together.
            TypeError: arguments that are no floating tensors.
        """
        if len(args) == 6:
            raise ValueError(
                "cluster labels l_x and l_y are not supported, nor needed: call (a, x, b, y)"
            )
        if len(args) == 2:
            x, y = args
            check_pair(x, y, batches=True)
            a = b = None
        elif len(args) == 4:
            a, x, b, y = args
            check_pair(x, y, batches=True)
            a, b = _weights(a, "a", x), _weights(b, "b", y)
        else:
            raise ValueError(
                f"the arguments must be (x, y) or (a, x, b, y), got {len(args)} of them"
            )
        x, y = at_least_single(x), at_least_single(y)
        excess = self._excess(x.shape[-2] * y.shape[-2])
        if self.potentials:
            return self._potentials(a, x, b, y, excess)
        if a is None or b is None:
            value = 0.5 * ops.mmd2(x, y, None, None, self._terms, BIASED)
            return value + 0.5 * excess * (1 / x.shape[-2] + 1 / y.shape[-2]) if excess else value
        widths = (x.shape[-1], 1)
        # The factors undo the division by the sizes.
        x = torch.cat([x, (a * x.shape[-2]).unsqueeze(-1)], -1)
        y = torch.cat([y, (b * y.shape[-2]).unsqueeze(-1)], -1)
        value = 0.5 * ops.mmd2(x, y, None, None, self._weighted_terms, BIASED, 0, widths)
        if excess:
            value = value + 0.5 * excess * (a.square().sum(-1) + b.square().sum(-1)).to(value)
        return value

    def _excess(self, pairs: int) -> float:
        """What the original adds to k(x, x) by its least distance."""
        tensorized = self.backend == "tensorized" or (
            self.backend == "auto" and pairs <= _TENSORIZED
        )
        if self.corrected or not tensorized or self.loss == "gaussian":
            return 0.0
        return -_CLOSEST if self.loss == "energy" else math.expm1(-_CLOSEST)

    def _potentials(
        self, a: Tensor | None, x: Tensor, b: Tensor | None, y: Tensor, excess: float
    ) -> tuple[Tensor, Tensor]:
        a = x.new_full(x.shape[:-1], 1 / x.shape[-2]) if a is None else a
        b = y.new_full(y.shape[:-1], 1 / y.shape[-2]) if b is None else b
        if x.ndim == 2:
            f, g = self._potential_pair(a, x, b, y)
        else:
            pairs = [self._potential_pair(*one) for one in zip(a, x, b, y, strict=True)]
            f, g = (torch.stack(t) for t in zip(*pairs, strict=True))
        if excess:
            f, g = f + excess * a, g + excess * b
        if x.ndim == 2 and not self.corrected:
            f, g = f.unsqueeze(0), g.unsqueeze(0)
        return f, g

    def _potential_pair(self, a: Tensor, x: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        points, masses = torch.cat([x, y]), torch.cat([a, -b]).unsqueeze(1)
        f = ops.kernel_sum(x, points, masses, self._terms)
        g = ops.kernel_sum(y, points, masses, self._terms)
        return f.squeeze(1), -g.squeeze(1)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        shown = f"loss={self.loss!r}"
        return shown if self.loss == "energy" else f"{shown}, blur={self.blur}"


def _weights(weights: Any, name: str, points: Tensor) -> Tensor:
    if not isinstance(weights, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(weights).__name__}")
    if not weights.is_floating_point():
        raise TypeError(f"{name} must be of a floating dtype, got {weights.dtype}")
    shape = points.shape[:-1]
    if weights.shape not in (shape, (*shape, 1)):
        raise ValueError(
            f"{name} must be of shape {list(shape)}, one weight for each point,"
            f" got shape {list(weights.shape)}"
        )
    if weights.device != points.device:
        raise ValueError(f"{name} must be on {points.device}, got {weights.device}")
    return weights.reshape(shape).to(at_least_single(points).dtype)
