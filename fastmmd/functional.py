"""The public functions: they check their arguments and hand them to the operators."""

from __future__ import annotations

from torch import Tensor

from fastmmd import ops
from fastmmd.checks import check_estimator, check_points, check_weights
from fastmmd.kernels import Kernel, as_kernel


def mmd2(
    x: Tensor,
    y: Tensor,
    kernel: Kernel | None = None,
    estimator: str = "biased",
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
) -> Tensor:
    r"""Squared Maximum Mean Discrepancy between two samples.

    With p_i = 1/n, q_j = 1/m, or the given weights divided by their sum, and k the kernel:

    - ``"biased"``: ``sum_ij p_i p_j k(x_i, x_j) + sum_ij q_i q_j k(y_i, y_j)
      - 2 sum_ij p_i q_j k(x_i, y_j)``, the V-statistic, never negative for these kernels;
    - ``"unbiased"``: the inner sums run over i != j and are divided by ``1 - sum_i p_i^2`` and
      ``1 - sum_j q_j^2``, the U-statistic, whose mean over samples is the MMD^2 of the two
      distributions.

    Equations (5) and (3) of Gretton et al., "A kernel two-sample test" (JMLR 2012). The n x m
    matrix of kernel values is never written out: memory is O((n + m) d), and where a gradient is
    wanted it is made in the same pass. The result does not depend on the number of threads, to
    the last bit.

    Differentiable in x, y, the weights, and the tensor bandwidths and weights of the kernel;
    twice in eager mode, by a slower road. Heuristic bandwidths count as constants.
    ``torch.compile``, ``torch.export`` and ``torch.func`` take it; ``vmap`` calls it once for
    each element. NaN or infinity in the data gives NaN; if all points are equal the result is 0,
    as are the gradients.

    Args:
        x: the first sample, [n, d], float16, bfloat16, float32 or float64, with any strides.
        y: the second sample, [m, d], of the dtype and on the device of x.
        kernel: a :class:`fastmmd.Kernel`; ``Gaussian("mean")`` by default.
        estimator: ``"biased"`` or ``"unbiased"``.
        x_weights: weights of the points of x, [n], of any floating dtype, non-negative with a
            positive sum; single zeros are welcome, as for padding.
        y_weights: those of y, [m].

    Returns:
        A scalar: float64 for float64 inputs, float32 otherwise, under autocast too.

    Raises:
        TypeError: an argument that is no tensor or no kernel, or of a dtype that is not accepted.
        ValueError: a wrong rank, different widths or devices, an empty sample, weights of a wrong
            shape; n = 1 for ``"unbiased"``; an unknown estimator. On the CPU in eager mode also a
            weight that is negative or not finite, or weights whose sum is zero; elsewhere these
            give NaN or a meaningless number.
        NotImplementedError: tensors on a CUDA device; forward-mode differentiation.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0]])
        >>> fm.mmd2(x, y, fm.Energy())  # 2 * 6/4 - 2/4 - 6/4
        tensor(1.)
        >>> fm.mmd2(x, y, fm.Gaussian(1.0, multipliers=(1,)), estimator="unbiased")
        tensor(-0.2588)
    """
    unbiased = check_estimator(estimator)
    check_points(x, y, unbiased)
    if x_weights is not None:
        check_weights("x_weights", x_weights, x, unbiased)
    if y_weights is not None:
        check_weights("y_weights", y_weights, y, unbiased)
    terms = as_kernel(kernel).terms()
    return ops.mmd2(x, y, x_weights, y_weights, terms, unbiased)
