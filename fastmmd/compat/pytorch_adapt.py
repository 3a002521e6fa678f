r"""Drop-ins for pytorch-adapt.

``from fastmmd.compat.pytorch_adapt import MMDLoss, MMDBatchedLoss, get_kernel_scales`` in place of
``from pytorch_adapt.layers import MMDLoss, MMDBatchedLoss`` and
``from pytorch_adapt.layers.utils import get_kernel_scales``.

Constructors, calls, values and first derivatives are those of the original, in memory linear in
the batch. ``corrected=True`` mends what the class says it does wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmmd import ops
from fastmmd.checks import LINEAR, UNBIASED, is_plain
from fastmmd.compat._common import (
    at_least_single,
    check_choice,
    check_count,
    check_lists,
    check_pair,
    check_positive,
    check_same_size,
    family_terms,
    multiplied,
    squared_distances,
)
from fastmmd.terms import FIXED, GAUSSIAN, LAPLACIAN, MEDIAN, X_MEDIAN, Terms

__all__ = ["MMDBatchedLoss", "MMDLoss", "get_kernel_scales"]

Distance = Callable[[Tensor, Tensor], Tensor]
Features = Tensor | Sequence[Tensor]


def get_kernel_scales(
    low: float = -8, high: float = 8, num_kernels: int = 33, base: float = 2.0
) -> Tensor:
    """Scales from ``base**low`` to ``base**high`` in equal ratios.

    Args:
        low: the exponent of the first.
        high: that of the last.
        num_kernels: how many.
        base: a positive number.

    Returns:
        [num_kernels], float64.

    Raises:
        TypeError: num_kernels that is no integer.
        ValueError: fewer than one.

    Example:
        >>> from fastmmd.compat.pytorch_adapt import get_kernel_scales
        >>> get_kernel_scales(-1, 1, 3)
        tensor([0.5000, 1.0000, 2.0000], dtype=torch.float64)
    """
    count = check_count("num_kernels", num_kernels)
    return torch.from_numpy(np.logspace(low, high, num=count, base=base))


class MMDLoss(nn.Module):
    r"""MMD^2 with the mean over scales of ``exp(-scale D / median)``, D the squared distances.

    The median is ``torch.median`` of all n^2 entries of the distances within x, zeros included, as
    a constant of the gradient.

    - ``mmd_type="linear"``: mean over the n // 2 pairs of neighbours of
      ``k(x0, x1) + k(y0, y1) - k(x0, y1) - k(x1, y0)``, for batches of one size; the last point of
      an odd number goes unused.
    - ``mmd_type="quadratic"``: the means of k within x and within y without the diagonal, minus
      twice its mean between them.

    Lists of layers give the joint MMD: the kernels of the layers, each with a median of its own,
    are multiplied.

    What the original does wrong: its median is that of x alone, so that the loss changes when x and
    y change places and the kernel goes blind to a y that is far away; and the n zeros of the
    diagonal are among its values, which makes it too small for small batches and 0, hence the loss
    NaN, for n = 2. With ``corrected`` it is the median over the pairs of different points of
    both batches, and ``"linear"`` takes batches of two sizes, up to the length of the shorter.
    If all points are equal the original is NaN, and this is 0.

    Args:
        kernel_scales: a positive number, or a tensor [K] of them; gradients reach it.
        mmd_type: ``"linear"`` or ``"quadratic"``.
        dist_func: the distance, the squared Euclidean one by default. pytorch-metric-learning's
            ``LpDistance`` with p = 2 and power 1 or 2, normalised or not, is computed without
            a matrix. Any other function of [n, d] and [m, d] that returns [n, m] is called for its
            matrices, as in the original.
        bandwidth: a positive number in place of the median.
        corrected: mend the median.

    Raises:
        ValueError: an unknown mmd_type, or numbers out of range.
        TypeError: an argument of another type.

    Example:
        >>> import torch
        >>> from fastmmd.compat.pytorch_adapt import MMDLoss, get_kernel_scales
        >>> x = torch.eye(4)
        >>> MMDLoss(get_kernel_scales())(x, x + 1)
        tensor(0.1910)
        >>> MMDLoss(mmd_type="quadratic")([x, x[:, :2]], [x + 1, x[:, :2]])
        tensor(0.2196)
    """

    _estimators = {"linear": LINEAR, "quadratic": UNBIASED}  # noqa: RUF012

    def __init__(
        self,
        kernel_scales: float | Tensor = 1,
        mmd_type: str = "linear",
        dist_func: Distance | None = None,
        bandwidth: float | None = None,
        *,
        corrected: bool = False,
    ) -> None:
        super().__init__()
        check_choice("mmd_type", mmd_type, tuple(self._estimators))
        _check_scales(kernel_scales)
        if dist_func is not None and not callable(dist_func):
            raise TypeError(f"dist_func must be a function of two batches, got {dist_func!r}")
        if bandwidth is not None:
            check_positive("bandwidth", bandwidth)
        self.kernel_scales = kernel_scales
        self.mmd_type = mmd_type
        self.dist_func = dist_func
        self.bandwidth = bandwidth
        self.corrected = corrected
        self._cached: tuple[Any, Terms] | None = None

    def forward(self, x: Features, y: Features) -> Tensor:
        """The loss of features x [n, d] and y [m, d], or of lists of such layers: a scalar.

        Raises:
            TypeError: inputs that are no floating tensors or lists of them.
            ValueError: lists of two lengths; features of other than rank 2 or of different widths;
                fewer than 2 points; batches of two sizes for ``mmd_type="linear"``.
        """
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            xs, ys = [x], [y]
            check_pair(x, y, least=2)
        else:
            check_lists("layer", ("x", x), ("y", y))
            xs, ys = list(x), list(y)
            for i, (a, b) in enumerate(zip(xs, ys, strict=True)):
                check_pair(a, b, (f"x[{i}]", f"y[{i}]"), least=2)
                check_same_size(a, xs[0], (f"x[{i}]", "x[0]"), "as the layers are of one batch")
                check_same_size(b, ys[0], (f"y[{i}]", "y[0]"), "as the layers are of one batch")
        if self.mmd_type == "linear" and not self.corrected:
            check_same_size(xs[0], ys[0], ("x", "y"), "for mmd_type='linear', which pairs them")
        return self._evaluate(xs, ys, self.bandwidth)

    def _evaluate(self, xs: list[Tensor], ys: list[Tensor], bandwidth: float | None) -> Tensor:
        distance = _euclidean(self.dist_func)
        if distance is None:
            return self._from_matrices(xs, ys, bandwidth)
        power, normalized = distance
        if normalized:
            xs, ys = ([F.normalize(t, dim=1) for t in layers] for layers in (xs, ys))
        terms = self._terms(len(xs), power, bandwidth)
        estimator = self._estimators[self.mmd_type]
        if len(xs) == 1:
            return ops.mmd2(xs[0], ys[0], None, None, terms, estimator)
        widths = tuple(t.shape[1] for t in xs)
        a, b = torch.cat(xs, 1), torch.cat(ys, 1)
        return ops.mmd2(a, b, None, None, terms, estimator, 0, widths)

    def _terms(self, layers: int, power: int, bandwidth: float | None) -> Terms:
        scales = self.kernel_scales
        if isinstance(scales, Tensor):
            _check_scales(scales)
            key = None  # nobody tells when a tensor changes
        else:
            key = scales, layers, power, bandwidth, self.corrected
            if self._cached is not None and self._cached[0] == key:
                return self._cached[1]
            scales = torch.tensor([float(scales)], dtype=torch.float64, device="cpu")
        scales = scales.double().reshape(-1)
        if bandwidth is None:
            unit = MEDIAN if self.corrected else X_MEDIAN
        else:
            scales, unit = scales / bandwidth, FIXED
        family = GAUSSIAN
        if power == 1:  # exp(-scale r / median r), where the median of r^2 is the square of that
            family, scales = LAPLACIAN, scales.square()
        terms = family_terms(family, scales, unit, 1 / scales.numel())
        terms = multiplied([terms] * layers)
        if key is not None and is_plain(terms.scales):
            self._cached = key, terms
        return terms

    def _from_matrices(
        self, xs: Sequence[Tensor], ys: Sequence[Tensor], bandwidth: float | None
    ) -> Tensor:
        """The same from matrices, as the original, for distances that are not Euclidean."""
        products: list[Tensor] = []
        for x, y in zip(xs, ys, strict=True):
            assert self.dist_func is not None
            pairs = ((x, x), (y, y), (x, y))
            matrices = [_matrix(self.dist_func, a, b) for a, b in pairs]
            unit = _median(matrices, self.corrected) if bandwidth is None else bandwidth
            kernels = [self._kernel(d, unit) for d in matrices]
            if products:
                kernels = [p * k for p, k in zip(products, kernels, strict=True)]
            products = kernels
        xx, yy, xy = products
        if self.mmd_type == "linear":
            size = min(xy.shape) // 2
            i = 2 * torch.arange(size, device=xy.device)
            return (xx[i, i + 1] + yy[i, i + 1] - xy[i, i + 1] - xy[i + 1, i]).mean()
        return _off_diagonal(xx) + _off_diagonal(yy) - 2 * xy.mean()

    def _kernel(self, distances: Tensor, unit: Tensor | float) -> Tensor:
        scales = torch.as_tensor(self.kernel_scales).to(distances).reshape(-1)
        # One scale at a time: the matrices are large enough.
        kernels = [torch.exp(-s * distances / unit) for s in scales]
        return sum(kernels[1:], kernels[0]) / len(kernels)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        shown = f"mmd_type={self.mmd_type!r}, kernel_scales={self.kernel_scales}"
        return shown + (", corrected=True" if self.corrected else "")


class MMDBatchedLoss(MMDLoss):
    r"""The quadratic :class:`MMDLoss`, which pytorch-adapt computes ``batch_size`` rows at a time.

    Here nothing is gained by that, as :class:`MMDLoss` needs no matrix; the class is there for its
    number. What the original does wrong beside what :class:`MMDLoss` does: beyond ``batch_size``
    points its bandwidth is no median but the median of the medians of blocks of rows. With
    ``corrected`` it is that of the pairs of both batches, and ``batch_size`` plays no part.

    Args:
        batch_size: rows in a block.
        **kwargs: those of :class:`MMDLoss`; ``mmd_type="quadratic"`` must be among them.

    Raises:
        ValueError: another mmd_type, or numbers out of range.
        TypeError: an argument of another type.

    Example:
        >>> import torch
        >>> from fastmmd.compat.pytorch_adapt import MMDBatchedLoss
        >>> x = torch.eye(4)
        >>> MMDBatchedLoss(batch_size=2, mmd_type="quadratic")(x, x + 1)
        tensor(0.5934)
    """

    def __init__(self, batch_size: int = 1024, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.mmd_type != "quadratic":
            raise ValueError(f"mmd_type must be 'quadratic', got {self.mmd_type!r}")
        self.batch_size = check_count("batch_size", batch_size)

    def forward(self, x: Features, y: Features) -> Tensor:
        """The loss of features x [n, d] and y [m, d]: a scalar.

        Raises:
            TypeError: inputs that are no floating tensors; lists of layers, as in the original.
            ValueError: features of other than rank 2 or of different widths, fewer than 2 points.
        """
        check_pair(x, y, least=2)
        assert isinstance(x, Tensor)
        assert isinstance(y, Tensor)
        bandwidth = self.bandwidth
        if bandwidth is None and not self.corrected and len(x) > self.batch_size:
            bandwidth = float(self._median_of_medians(x.detach()))
        return self._evaluate([x], [y], bandwidth)

    def _median_of_medians(self, x: Tensor) -> Tensor:
        distance = _euclidean(self.dist_func)
        x = at_least_single(x)
        if distance is not None:
            x = F.normalize(x, dim=1) if distance[1] else x
        medians = []
        for rows in x.split(self.batch_size):
            if distance is None:
                assert self.dist_func is not None
                block = _matrix(self.dist_func, rows, x)
            else:
                block = squared_distances(rows, x)
                block = block.sqrt() if distance[0] == 1 else block
            medians.append(block.median())
        return torch.stack(medians).median()


def _euclidean(dist_func: Any) -> tuple[int, bool] | None:
    """Power and normalisation of a Euclidean distance, None for any other."""
    if dist_func is None:
        return 2, False
    if type(dist_func).__name__ != "LpDistance":
        return None
    setting = [getattr(dist_func, a, None) for a in ("p", "power", "is_inverted")]
    if setting not in ([2, 1, False], [2, 2, False]):
        return None
    return int(dist_func.power), bool(getattr(dist_func, "normalize_embeddings", True))


def _matrix(dist_func: Distance, x: Tensor, y: Tensor) -> Tensor:
    matrix = dist_func(x, y)
    if not isinstance(matrix, Tensor) or matrix.shape != (len(x), len(y)):
        got = f"shape {list(matrix.shape)}" if isinstance(matrix, Tensor) else repr(type(matrix))
        raise ValueError(
            f"dist_func must return a matrix of shape [{len(x)}, {len(y)}] for batches of"
            f" {len(x)} and {len(y)} points, got {got}"
        )
    return matrix


def _median(matrices: Sequence[Tensor], pooled: bool) -> Tensor:
    xx, yy, xy = (m.detach() for m in matrices)
    if not pooled:
        return xx.median()
    upper = [t[tuple(torch.triu_indices(len(t), len(t), 1, device=t.device))] for t in (xx, yy)]
    return torch.cat([*upper, xy.reshape(-1)]).median()


def _off_diagonal(matrix: Tensor) -> Tensor:
    size = len(matrix)
    return (matrix.sum() - matrix.diagonal().sum()) / (size * (size - 1))


def _check_scales(scales: Any) -> None:
    if not isinstance(scales, Tensor):
        check_positive("kernel_scales", scales)
        return
    if scales.ndim > 1 or scales.numel() == 0:
        raise ValueError(
            f"kernel_scales must be a number or of shape [K], K > 0, got shape {list(scales.shape)}"
        )
    if not scales.is_floating_point():
        raise TypeError(f"kernel_scales must be of a floating dtype, got {scales.dtype}")
    if is_plain(scales):
        low, high = torch.aminmax(scales.detach())
        if not (low > 0 and high < float("inf")):
            raise ValueError(f"kernel_scales must be positive and finite, got {scales.detach()}")
