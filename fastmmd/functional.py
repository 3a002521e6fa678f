"""The public functions: they check their arguments and hand them to the operators."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastmmd import ops
from fastmmd.checks import (
    BIASED,
    BLOCK,
    INCOMPLETE,
    check_estimator,
    check_points,
    check_weights,
)
from fastmmd.dtypes import concatenated
from fastmmd.kernels import Energy, Kernel, as_kernel
from fastmmd.terms import FIXED, Terms

_MAX_SUPERDIAGONALS = 100  # by default: more gain little


def mmd2(
    x: Tensor,
    y: Tensor,
    kernel: Kernel | None = None,
    estimator: str = "biased",
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    *,
    block_size: int | None = None,
    num_superdiagonals: int | None = None,
) -> Tensor:
    r"""Squared Maximum Mean Discrepancy between two samples.

    With p_i = 1/n, q_j = 1/m, or the given weights divided by their sum, and k the kernel:

    - ``"biased"``: ``sum_ij p_i p_j k(x_i, x_j) + sum_ij q_i q_j k(y_i, y_j)
      - 2 sum_ij p_i q_j k(x_i, y_j)``, the V-statistic, never negative for positive definite
      kernels and for :class:`fastmmd.Energy`;
    - ``"unbiased"``: the inner sums run over i != j and are divided by ``1 - sum_i p_i^2`` and
      ``1 - sum_j q_j^2``, the U-statistic, whose mean over samples is the MMD^2 of the two
      distributions.

    Three more estimates pair the first ``L = min(n, m)`` points of each, in the order in which they
    come, and take no weights. They are unbiased too, vary more, and cost less. With
    ``h(i, j) = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)``:

    - ``"linear"``: the mean of ``h(2 i, 2 i + 1)`` over ``i < L // 2``, in O(L d);
    - ``"block"``: the mean over the ``L // B`` whole blocks of ``B = block_size`` points of each of
      the unbiased estimate within the block, in O(L B d);
    - ``"incomplete"``: the mean of ``h(i, i + r)`` over ``r = 1, ..., R = num_superdiagonals`` and
      ``i < L - r``, in O(L R d).

    The first two are equations (5) and (3) of Gretton et al., "A kernel two-sample test" (JMLR
    2012), ``"linear"`` is from its section 6; ``"block"`` is from Zaremba, Gretton and Blaschko,
    "B-tests: low variance kernel two-sample tests" (NeurIPS 2013), ``"incomplete"`` from Schrab et
    al., "Efficient aggregated kernel tests using incomplete U-statistics" (NeurIPS 2022). The n x m
    matrix of kernel values is never written out: memory is O((n + m) d), and where a gradient is
    wanted it is made in the same pass. The result does not depend on the number of threads, to the
    last bit.

    Differentiable in x, y, the weights, and the tensor bandwidths and weights of the kernel; twice
    in eager mode, by a slower road. Heuristic bandwidths look at all n + m points whatever the
    estimator, in a batch at those of each pair of samples by itself, and count as constants.
    ``torch.compile``, ``torch.export`` and ``torch.func`` take it. NaN or infinity in the data
    gives NaN; if all points are equal the result is 0, as are the gradients.

    Args:
        x: the first sample, [n, d], float16, bfloat16, float32 or float64, with any strides; or a
            batch of samples, [B, n, d].
        y: the second sample, [m, d], of the dtype and on the device of x; or a batch, [B, m, d].
        kernel: a :class:`fastmmd.Kernel`; ``Gaussian("mean")`` by default.
        estimator: ``"biased"``, ``"unbiased"``, ``"linear"``, ``"block"`` or ``"incomplete"``.
        x_weights: weights of the points of x, [n] or [B, n], of any floating dtype, non-negative
            with a positive sum; single zeros are welcome, as for padding.
        y_weights: those of y, [m] or [B, m].
        block_size: B of ``"block"``, from 2 to L; the integer part of sqrt(L) by default.
        num_superdiagonals: R of ``"incomplete"``, from 1 to L - 1; at most 100 by default.

    Returns:
        A scalar, or [B] of a batch: float64 for float64 inputs, float32 otherwise, under autocast
        too.

    Raises:
        TypeError: an argument that is no tensor or no kernel, or of a dtype that is not accepted.
        ValueError: a wrong rank, different widths, batch sizes or devices, an empty sample, weights
            of a wrong shape; fewer than 2 points for any estimator but ``"biased"``; an unknown
            estimator, one that takes no weights, or a number that is out of range or belongs to
            another estimator. On the CPU in eager mode also a weight that is negative or not
            finite, or weights whose sum is zero; elsewhere these give NaN or a meaningless number.
        NotImplementedError: forward-mode differentiation; tensors on a CUDA device in a build
            without CUDA kernels.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0]])
        >>> fm.mmd2(x, y, fm.Energy())  # 2 * 6/4 - 2/4 - 6/4
        tensor(1.)
        >>> fm.mmd2(x, y, fm.Gaussian(1.0, multipliers=(1,)), estimator="unbiased")
        tensor(-0.2588)
        >>> fm.mmd2(x, y, fm.Energy(), "linear")  # |0 - 3| + |1 - 0| - |0 - 1| - |0 - 3|
        tensor(0.)
        >>> fm.mmd2(torch.stack([x, y]), torch.stack([y, y]), fm.Energy())
        tensor([1., 0.])
    """
    number = check_estimator(estimator)
    check_points(x, y, number)
    size = estimator_size(number, x, y, block_size, num_superdiagonals)
    check_sample_weights(x, y, x_weights, y_weights, number)
    terms = as_kernel(kernel).terms_for(x, y)
    return ops.mmd2(x, y, x_weights, y_weights, terms, number, size)


def energy_distance(
    x: Tensor,
    y: Tensor,
    estimator: str = "biased",
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    *,
    block_size: int | None = None,
    num_superdiagonals: int | None = None,
) -> Tensor:
    r"""Energy distance between two samples, ``2 E|x - y| - E|x - x'| - E|y - y'|``.

    With the Euclidean norm, as Székely and Rizzo, "Energy statistics: a class of statistics based
    on distances" (Journal of Statistical Planning and Inference 2013), define it: the squared MMD
    of :class:`fastmmd.Energy`. In one dimension it is twice the integral of the squared difference
    of the distribution functions; ``scipy.stats.energy_distance`` is its square root.

    Args:
        x: the first sample, [n, d], or a batch, [B, n, d].
        y: the second sample, [m, d], or a batch, [B, m, d].
        estimator: as for :func:`mmd2`.
        x_weights: [n] or [B, n].
        y_weights: [m] or [B, m].
        block_size: as for :func:`mmd2`.
        num_superdiagonals: as for :func:`mmd2`.

    Returns:
        A scalar, or [B] of a batch, as :func:`mmd2`.

    Raises:
        TypeError: as :func:`mmd2`.
        ValueError: as :func:`mmd2`.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> fm.energy_distance(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0]]))
        tensor(1.)
    """
    return mmd2(
        x,
        y,
        _ENERGY,
        estimator,
        x_weights,
        y_weights,
        block_size=block_size,
        num_superdiagonals=num_superdiagonals,
    )


def kernel_sum(x: Tensor, y: Tensor, v: Tensor, kernel: Kernel | None = None) -> Tensor:
    """Sums of kernel values, ``sum_j k(x_i, y_j) v_j``: K(x, y) @ v without the matrix K.

    Heuristic bandwidths look at x and y together. Differentiable in x, y, v, and the tensor
    bandwidths and weights of the kernel; twice in eager mode.

    Args:
        x: points, [n, d], float16, bfloat16, float32 or float64.
        y: points, [m, d], of the dtype and on the device of x.
        v: [m], or p columns, [m, p], of any floating dtype.
        kernel: a :class:`fastmmd.Kernel`; ``Gaussian("mean")`` by default.

    Returns:
        [n], or [n, p]: float64 for float64 points, float32 otherwise.

    Raises:
        TypeError: an argument that is no tensor or no kernel, or of a dtype that is not accepted.
        ValueError: a wrong rank, different widths or devices, no points, or v of a wrong shape.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [10.0]])
        >>> fm.kernel_sum(x, y, torch.tensor([1.0, 2.0]), fm.Linear())
        tensor([21., 42.])
    """
    check_points(x, y, BIASED)
    _check_rank("x", x)
    if not isinstance(v, Tensor):
        raise TypeError(f"v must be a torch.Tensor, got {type(v).__name__}")
    if not v.is_floating_point():
        raise TypeError(f"v must be of a floating dtype, got {v.dtype}")
    if v.ndim not in (1, 2) or v.shape[0] != y.shape[0] or v.numel() == 0:
        raise ValueError(
            f"v must be of shape [{y.shape[0]}] or [{y.shape[0]}, p], one row for each point of y,"
            f" got shape {list(v.shape)}"
        )
    if v.device != x.device:
        raise ValueError(f"v must be on the device of x, {x.device}, got {v.device}")
    terms = as_kernel(kernel).terms_for(x, y)
    if v.ndim == 2:
        return ops.kernel_sum(x, y, v, terms)
    return ops.kernel_sum(x, y, v.unsqueeze(1), terms).squeeze(1)


def witness(
    x: Tensor,
    y: Tensor,
    at: Tensor,
    kernel: Kernel | None = None,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
) -> Tensor:
    r"""The witness function, ``f(t) = sum_i p_i k(x_i, t) - sum_j q_j k(y_j, t)``.

    Where it is positive there is more of x, where it is negative more of y; of all functions of the
    unit ball of the kernel's space, it is in proportion to the one whose means over x and y differ
    most (Gretton et al., JMLR 2012). The biased MMD^2 is its mean over x less that over y.

    Heuristic bandwidths look at x and y, not at ``at``. Differentiable in all tensors.

    Args:
        x: the first sample, [n, d], float16, bfloat16, float32 or float64.
        y: the second sample, [m, d], of the dtype and on the device of x.
        at: the points t, [l, d], of the dtype and on the device of x.
        kernel: a :class:`fastmmd.Kernel`; ``Gaussian("mean")`` by default.
        x_weights: [n], divided by their sum; 1/n each by default.
        y_weights: [m], in the same way.

    Returns:
        [l]: float64 for float64 points, float32 otherwise.

    Raises:
        TypeError: as :func:`mmd2`.
        ValueError: as :func:`mmd2`.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [4.0]])
        >>> fm.witness(x, y, torch.tensor([[0.0], [2.0], [4.0]]), fm.Energy())
        tensor([ 3.,  0., -3.])
    """
    _check_samples(x, y, x_weights, y_weights)
    check_points(x, at, BIASED, names=("x", "at"))
    return _witness(x, y, at, kernel, x_weights, y_weights)


def contributions(
    x: Tensor,
    y: Tensor,
    kernel: Kernel | None = None,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What each point adds to the biased MMD^2: the weighted :func:`witness` at the point.

    They are ``p_i f(x_i)`` and ``-q_j f(y_j)`` with f the witness function, and their sum over both
    samples is ``mmd2(x, y, kernel)``. The points with large ones are those by which the samples can
    be told apart; negative ones lie where the other sample is the denser.

    Args:
        x: the first sample, [n, d], float16, bfloat16, float32 or float64.
        y: the second sample, [m, d], of the dtype and on the device of x.
        kernel: a :class:`fastmmd.Kernel`; ``Gaussian("mean")`` by default.
        x_weights: [n], divided by their sum; 1/n each by default.
        y_weights: [m], in the same way.

    Returns:
        Those of x, [n], and those of y, [m]: float64 for float64 points, float32 otherwise.

    Raises:
        TypeError: as :func:`mmd2`.
        ValueError: as :func:`mmd2`.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0]])
        >>> fm.contributions(x, y, fm.Energy())
        (tensor([0.5000, 0.5000]), tensor([-0.5000,  0.5000]))
    """
    _check_samples(x, y, x_weights, y_weights)
    n, m = len(x), len(y)
    f_x, f_y = _witness(x, y, concatenated([x, y]), kernel, x_weights, y_weights).split([n, m])
    return _masses(x, x_weights) * f_x, -_masses(y, y_weights) * f_y


def fixed_terms(x: Tensor, y: Tensor, terms: Terms) -> Terms:
    """The terms with the units that x and y give them, for use on other points.

    Gradients reach the scales as they do where the units are worked out in passing: the units
    count as constants.
    """
    if all(unit == FIXED for unit in terms.units):
        return terms
    # Of scales of 1, as a scale may be 0: that of an average bandwidth of 0 is.
    with torch.no_grad():
        per_unit = ops.resolve(x, y, terms._replace(scales=torch.ones_like(terms.scales)))
    return terms._replace(scales=terms.scales * per_unit, units=(FIXED,) * len(terms.units))


def check_sizes(estimator: int, block_size: int | None, num_superdiagonals: int | None) -> None:
    """Raise unless the numbers belong to the estimator and could be right for some sample."""
    for name, value, owner, least in (
        ("block_size", block_size, BLOCK, 2),
        ("num_superdiagonals", num_superdiagonals, INCOMPLETE, 1),
    ):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer or None, got {value!r}")
        if estimator != owner:
            of = "'block'" if owner == BLOCK else "'incomplete'"
            raise ValueError(f"{name} is for estimator={of} only, got {value}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def estimator_size(
    estimator: int, x: Tensor, y: Tensor, block_size: int | None, num_superdiagonals: int | None
) -> int:
    """The number that goes with the estimator: the given one, or its default for these samples."""
    if block_size is not None or num_superdiagonals is not None:
        check_sizes(estimator, block_size, num_superdiagonals)
    if estimator not in (BLOCK, INCOMPLETE):
        return 0
    paired = min(x.shape[-2], y.shape[-2])
    if estimator == BLOCK:
        if block_size is None:
            return max(2, math.isqrt(paired))
        if block_size > paired:
            raise ValueError(f"block_size must be from 2 to {paired} = min(n, m), got {block_size}")
        return block_size
    if num_superdiagonals is None:
        return min(_MAX_SUPERDIAGONALS, paired - 1)
    if num_superdiagonals > paired - 1:
        raise ValueError(
            f"num_superdiagonals must be from 1 to {paired - 1} = min(n, m) - 1,"
            f" got {num_superdiagonals}"
        )
    return num_superdiagonals


def _check_rank(name: str, points: Tensor) -> None:
    if points.ndim != 2:
        raise ValueError(
            f"{name} must be of rank 2, [points, width], got shape {list(points.shape)}"
        )


def _check_samples(
    x: Tensor, y: Tensor, x_weights: Tensor | None, y_weights: Tensor | None
) -> None:
    """Raise unless these are two samples and not batches of them."""
    check_points(x, y, BIASED)
    _check_rank("x", x)
    check_sample_weights(x, y, x_weights, y_weights, BIASED)


def check_sample_weights(
    x: Tensor, y: Tensor, x_weights: Tensor | None, y_weights: Tensor | None, estimator: int
) -> None:
    """Raise unless what is given weighs the points, and the estimator takes it."""
    if x_weights is not None:
        check_weights("x_weights", x_weights, x, estimator)
    if y_weights is not None:
        check_weights("y_weights", y_weights, y, estimator)


def _masses(points: Tensor, weights: Tensor | None) -> Tensor:
    """The weights divided by their sum, [n]."""
    dtype = torch.float64 if points.dtype == torch.float64 else torch.float32
    if weights is None:
        return torch.full((len(points),), 1 / len(points), dtype=dtype, device=points.device)
    weights = weights.double()
    return (weights / weights.sum()).to(dtype)


def _witness(
    x: Tensor,
    y: Tensor,
    at: Tensor,
    kernel: Kernel | None,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
) -> Tensor:
    terms = fixed_terms(x, y, as_kernel(kernel).terms_for(x, y))
    v = torch.cat([_masses(x, x_weights), -_masses(y, y_weights)])
    return ops.kernel_sum(at, concatenated([x, y]), v.unsqueeze(1), terms).squeeze(1)


_ENERGY = Energy()
