r"""Drop-ins for TLlib, the Transfer Learning Library.

``from fastmmd.compat.tllib import ...`` the same names, in place of

- ``from tllib.modules.kernels import GaussianKernel``
- ``from tllib.alignment.dan import MultipleKernelMaximumMeanDiscrepancy``
- ``from tllib.alignment.jan import JointMultipleKernelMaximumMeanDiscrepancy``
- ``from tllib.alignment.coral import CorrelationAlignmentLoss``

Constructors, calls, values and first derivatives are those of the original, in memory linear in
the batch. ``corrected=True`` mends what the class says it does wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastmmd import ops
from fastmmd.checks import INCOMPLETE, UNBIASED, is_plain
from fastmmd.compat._common import (
    added,
    at_least_single,
    check_lists,
    check_pair,
    check_points,
    check_positive,
    check_same_size,
    family_terms,
    multiplied,
    squared_distances,
)
from fastmmd.correlation import coral
from fastmmd.kernels import Kernel
from fastmmd.terms import FIXED, GAUSSIAN, MEAN, Terms

__all__ = [
    "CorrelationAlignmentLoss",
    "GaussianKernel",
    "JointMultipleKernelMaximumMeanDiscrepancy",
    "MultipleKernelMaximumMeanDiscrepancy",
]

MatrixKernel = Callable[[Tensor], Tensor]


class GaussianKernel(nn.Module):
    r"""The matrix ``exp(-|x_i - x_j|^2 / (2 s2))`` of a batch.

    Of the two ways to fix the bandwidth, ``track_running_stats`` takes the first:

    - True: ``s2 = alpha * mean of |x_i - x_j|^2`` over all N^2 entries of the call, as a constant
      of the gradient. Nothing is tracked from call to call, the name notwithstanding.
    - False: ``s2 = sigma^2``.

    What the original does wrong: the mean runs over the N zeros of the diagonal too, which makes it
    (N - 1) / N of the mean distance, so that the kernel changes with the batch size; and
    ``sigma`` without ``track_running_stats=False`` goes unused without a word, as in
    ``GaussianKernel(1.)``. With ``corrected`` the mean runs over pairs of different points, and a
    sigma that is given is used.

    The two losses of this module do not call a kernel of this class: they compute what it stands
    for without the matrix, and leave ``sigma_square`` as it is. A subclass with a ``forward`` of
    its own they do call.

    Args:
        sigma: s, for a fixed bandwidth.
        track_running_stats: whether s2 is taken from the data.
        alpha: what the mean is multiplied with.
        corrected: mend the above.

    Raises:
        ValueError: sigma or alpha not positive, or neither a sigma nor track_running_stats.
        TypeError: an argument of another type.

    Example:
        >>> import torch
        >>> from fastmmd.compat.tllib import GaussianKernel
        >>> GaussianKernel(sigma=1.0, track_running_stats=False)(torch.tensor([[0.0], [1.0]]))
        tensor([[1.0000, 0.6065],
                [0.6065, 1.0000]])
    """

    sigma_square: Tensor | None

    def __init__(
        self,
        sigma: float | None = None,
        track_running_stats: bool | None = True,
        alpha: float | None = 1.0,
        *,
        corrected: bool = False,
    ) -> None:
        super().__init__()
        if sigma is None and not track_running_stats:
            raise ValueError("sigma must be a positive number where track_running_stats is False")
        # The original rounds to the default dtype too.
        self.sigma_square = (
            None if sigma is None else torch.tensor(check_positive("sigma", sigma) ** 2)
        )
        self.alpha = check_positive("alpha", alpha)
        self.corrected = corrected
        self.track_running_stats = bool(track_running_stats) and not (corrected and sigma)

    def forward(self, X: Tensor) -> Tensor:
        """The matrix [N, N] of X [N, d], which also sets ``sigma_square``."""
        check_points(X, "X")
        d2 = squared_distances(at_least_single(X))
        if self.track_running_stats:
            size = len(X)
            pairs = max(size * (size - 1), 1) if self.corrected else size * size
            self.sigma_square = self.alpha * d2.detach().sum() / pairs
        s2 = cast(Tensor, self.sigma_square).to(d2)
        # If all points are equal nothing is left to scale.
        return torch.exp(d2 * torch.where(s2 == 0, 0.0, -0.5 / s2))

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        if self.track_running_stats:
            return f"alpha={self.alpha}"
        return f"sigma_square={float(cast(Tensor, self.sigma_square)):.6g}"

    def setting(self) -> tuple[bool, float, bool]:
        """All that the kernel of a batch depends on, beside the batch."""
        if self.track_running_stats:
            return True, self.alpha, self.corrected
        return False, float(cast(Tensor, self.sigma_square)), False


class _Discrepancy(nn.Module):
    """What the two losses share: layers of kernels, and what is summed over pairs."""

    linear: bool | None
    corrected: bool

    def __init__(self, linear: bool | None, corrected: bool) -> None:
        super().__init__()
        self.linear = linear
        self.corrected = corrected
        self._cached: tuple[Any, Terms] | None = None

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"linear={self.linear}" + (", corrected=True" if self.corrected else "")

    def _evaluate(
        self,
        x: Sequence[Tensor],
        y: Sequence[Tensor],
        kernels: Sequence[Sequence[Any]],
        names: tuple[str, str],
    ) -> Tensor:
        """The loss of the layers x and y, each with its kernels."""
        n, m = len(x[0]), len(y[0])
        if self.linear:
            check_same_size(x[0], y[0], names, "for linear=True, which pairs them")
        # The original sets an entry of its index matrix twice at n = 2, where it means to add.
        slip = self.linear and n == 2 and not self.corrected
        if slip or not all(_is_ours(k) for layer in kernels for k in layer):
            return self._from_matrices(x, y, kernels)
        terms = self._terms(kernels, n + m)
        if len(x) == 1:
            a, b, widths = x[0], y[0], None
        else:
            a, b = torch.cat(list(x), 1), torch.cat(list(y), 1)
            widths = tuple(t.shape[1] for t in x)
        if not self.linear:
            value = ops.mmd2(a, b, None, None, terms, UNBIASED, 0, widths)
            return value + self._constant(n, m, kernels)
        if any(terms.units):
            # The first point comes again at the end; the bandwidth is that of the batch itself.
            factors = ops.resolve(a, b, terms, widths)
            terms = terms._replace(scales=factors, units=(FIXED,) * len(terms.units))
        a, b = torch.cat([a, a[:1]]), torch.cat([b, b[:1]])
        value = ops.mmd2(a, b, None, None, terms, INCOMPLETE, 1, widths)
        return value if self.corrected else value + 2 / (n - 1)

    def _constant(self, n: int, m: int, kernels: Sequence[Sequence[Any]]) -> float:
        """What makes up for the diagonals: k(x, x) is 1 for each of our kernels."""
        constant = 1 / (n - 1) + 1 / (m - 1)
        if self.corrected:
            for layer in kernels:
                constant *= len(layer)
        return constant

    def _terms(self, kernels: Sequence[Sequence[Any]], total: int) -> Terms:
        """The kernels for N = ``total`` points, as long as nobody changes an attribute."""
        settings = tuple(tuple(k.setting() for k in layer) for layer in kernels)
        key = total, settings
        if self._cached is not None and self._cached[0] == key:
            return self._cached[1]
        terms = multiplied(
            [added([_kernel_terms(total, *setting) for setting in layer]) for layer in settings]
        )
        if is_plain(terms.scales):
            self._cached = key, terms
        return terms

    def _from_matrices(
        self, x: Sequence[Tensor], y: Sequence[Tensor], kernels: Sequence[Sequence[Any]]
    ) -> Tensor:
        """The same from the (N, N) matrices, as the original, for kernels that are not ours."""
        n, m = len(x[0]), len(y[0])
        product: Tensor | None = None
        for x_layer, y_layer, layer in zip(x, y, kernels, strict=True):
            z = torch.cat([x_layer, y_layer])
            matrices = [_matrix(kernel, z) for kernel in layer]
            added = sum(matrices[1:], matrices[0])
            product = added if product is None else product * added
        matrix = cast(Tensor, product)
        xx, yy, xy = matrix[:n, :n], matrix[n:, n:], matrix[:n, n:]
        yx = matrix[n:, :n]
        if self.linear:
            i = torch.arange(n, device=matrix.device)
            j = (i + 1) % n
            cross = xy[i, j].sum() + xy[j, i].sum()
            if n == 2 and not self.corrected:
                cross = cross / 2
            value = (xx[i, j].sum() + yy[i, j].sum() - cross) / n
            return value if self.corrected else value + 2 / (n - 1)
        value = -xy.mean() - yx.mean()
        for block, size in ((xx, n), (yy, m)):
            # Corrected, the diagonal stays in: that is what the constant stands for.
            diagonal = 0.0 if self.corrected else block.diagonal().sum()
            value = value + (block.sum() - diagonal) / (size * (size - 1))
        return value if self.corrected else value + (1 / (n - 1) + 1 / (m - 1))


class MultipleKernelMaximumMeanDiscrepancy(_Discrepancy):
    r"""The loss of Long et al., "Learning transferable features with deep adaptation networks".

    With k the sum of the kernels, n points in either batch, and i, j running over a batch:

    - ``linear=False``: ``sum_{i != j} (k(s_i, s_j) + k(t_i, t_j)) / (n (n - 1))
      - 2 sum_ij k(s_i, t_j) / n^2 + 2 / (n - 1)``;
    - ``linear=True``: ``sum_i (k(s_i, s_i+1) + k(t_i, t_i+1) - k(s_i, t_i+1) - k(s_i+1, t_i)) / n
      + 2 / (n - 1)`` with the last point followed by the first.

    What the original does wrong: the constant is to make up for the missing diagonals, so that the
    loss is not negative. That is right for one kernel; K kernels want 2 K / (n - 1), and with
    several the loss does go negative. The linear form has no diagonal to make up for, and its
    constant keeps it from being 0 on average where the distributions are one; at n = 2 it counts
    the cross terms half. With ``corrected`` the first is ``K / (n - 1) + K / (m - 1)``, so that the
    loss is never below the biased MMD^2, and the second is 0, so that the linear form is unbiased.
    The gradients are the same but at n = 2.

    The original takes batches of one size. Here ``linear=False`` takes any two, with
    ``1 / (n - 1) + 1 / (m - 1)`` as constant. If all points are equal the original is NaN, and
    this is the constant.

    Args:
        kernels: :class:`GaussianKernel`, which are computed without a matrix; if any is another
            callable of a batch [N, d] that returns [N, N], all are called for their matrices.
        linear: whether to sum over neighbours alone, in O(n d).
        corrected: mend the constant.

    Raises:
        TypeError: kernels that are none, or inputs that are no floating tensors.
        ValueError: no kernel, inputs of other than rank 2 or of different widths, fewer than 2
            points, batches of two sizes for ``linear=True``.

    Example:
        >>> import torch
        >>> from fastmmd.compat.tllib import GaussianKernel, MultipleKernelMaximumMeanDiscrepancy
        >>> loss = MultipleKernelMaximumMeanDiscrepancy([GaussianKernel(alpha=a) for a in (0.5, 2)])
        >>> z = torch.eye(4)
        >>> loss(z, z + 1)
        tensor(1.7474)
    """

    def __init__(
        self,
        kernels: Sequence[MatrixKernel],
        linear: bool | None = False,
        *,
        corrected: bool = False,
    ) -> None:
        super().__init__(linear, corrected)
        _check_kernels("kernels", kernels)
        self.kernels = kernels

    def forward(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        """The loss of the features z_s [n, d] and z_t [m, d]: a scalar."""
        names = ("z_s", "z_t")
        check_pair(z_s, z_t, names, least=2)
        return self._evaluate([z_s], [z_t], [self.kernels], names)


class JointMultipleKernelMaximumMeanDiscrepancy(_Discrepancy):
    r"""The loss of Long et al., "Deep transfer learning with joint adaptation networks".

    That of :class:`MultipleKernelMaximumMeanDiscrepancy` with k the product over the layers of the
    sums of their kernels, each layer with a bandwidth of its own, and with ``linear=True`` by
    default, where the other class has False. What it does wrong is the same; K is the product of
    the numbers of kernels.

    Args:
        kernels: for each layer its kernels.
        linear: whether to sum over neighbours alone.
        thetas: for each layer a module that its features, source and target in one batch, go
            through first; none by default.
        corrected: mend the constant.

    Raises:
        TypeError: arguments that are no sequences, kernels that are none, features that are no
            floating tensors.
        ValueError: unequal numbers of layers, or batches as for the other class.

    Example:
        >>> import torch
        >>> from fastmmd.compat.tllib import (
        ...     GaussianKernel,
        ...     JointMultipleKernelMaximumMeanDiscrepancy,
        ... )
        >>> kernels = [[GaussianKernel(alpha=0.5), GaussianKernel(alpha=1)], [GaussianKernel()]]
        >>> loss = JointMultipleKernelMaximumMeanDiscrepancy(kernels, linear=False)
        >>> features, probabilities = torch.eye(4), torch.eye(4)[:, :2]
        >>> loss((features, probabilities), (features + 1, probabilities))
        tensor(1.1790)
    """

    def __init__(
        self,
        kernels: Sequence[Sequence[MatrixKernel]],
        linear: bool | None = True,
        thetas: Sequence[nn.Module] | None = None,
        *,
        corrected: bool = False,
    ) -> None:
        super().__init__(linear, corrected)
        check_lists("layer", ("kernels", kernels), *([("thetas", thetas)] if thetas else []))
        for i, layer in enumerate(kernels):
            _check_kernels(f"kernels[{i}]", layer)
        self.kernels = kernels
        self.thetas = thetas if thetas else [nn.Identity() for _ in kernels]

    def forward(self, z_s: Sequence[Tensor], z_t: Sequence[Tensor]) -> Tensor:
        """The loss of the layers' features, [n, d_l] in z_s and [m, d_l] in z_t: a scalar."""
        check_lists("layer", ("kernels", self.kernels), ("z_s", z_s), ("z_t", z_t))
        source, target = [], []
        for i, (s, t, theta) in enumerate(zip(z_s, z_t, self.thetas, strict=True)):
            names = (f"z_s[{i}]", f"z_t[{i}]")
            check_pair(s, t, names, least=2)
            for name, layer, first in zip(names, (s, t), (z_s[0], z_t[0]), strict=True):
                check_same_size(
                    layer, first, (name, name[:4] + "0]"), "as the layers are of one batch"
                )
            if type(theta) is not nn.Identity:
                s, t = theta(torch.cat([s, t])).split([len(s), len(t)])
            source.append(s)
            target.append(t)
        return self._evaluate(source, target, self.kernels, ("z_s[0]", "z_t[0]"))


class CorrelationAlignmentLoss(nn.Module):
    r"""TLlib's version of the loss of Sun and Saenko, "Deep CORAL".

    ``|mean_s - mean_t|^2 / d + |C_s - C_t|_F^2 / d^2`` with the covariances over n - 1.

    What the original does wrong: its documentation gives the formula of the paper,
    ``|C_s - C_t|_F^2 / (4 d^2)``, and its code adds the means and leaves the 4 out. With
    ``corrected`` this is the formula of the paper, as in :class:`fastmmd.CORALLoss`.

    Args:
        corrected: mend the above.

    Example:
        >>> import torch
        >>> from fastmmd.compat.tllib import CorrelationAlignmentLoss
        >>> f = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
        >>> CorrelationAlignmentLoss()(f, 2 * f)  # (1 - 2)^2 / 2 + (2 - 8)^2 / 4
        tensor(9.5000)
    """

    def __init__(self, *, corrected: bool = False) -> None:
        super().__init__()
        self.corrected = corrected

    def forward(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """The loss of the features f_s [n, d] and f_t [m, d]: a scalar.

        Raises:
            TypeError: inputs that are no floating tensors.
            ValueError: inputs of other than rank 2, of different widths, or of fewer than 2 points.
        """
        check_pair(f_s, f_t, ("f_s", "f_t"), least=2)
        if self.corrected:
            return coral(f_s, f_t)
        return coral(f_s, f_t, scaling="mean", mean_scaling=1)


def _is_ours(kernel: Any) -> bool:
    return isinstance(kernel, GaussianKernel) and type(kernel).forward is GaussianKernel.forward


def _kernel_terms(total: int, tracks: bool, value: float, corrected: bool) -> Terms:
    if not tracks:
        return family_terms(GAUSSIAN, [0.5 / value])
    # The mean over all entries is (N - 1) / N times that over pairs of different points.
    scale = 0.5 / value * (1.0 if corrected else total / (total - 1))
    return family_terms(GAUSSIAN, [scale], MEAN)


def _matrix(kernel: Any, z: Tensor) -> Tensor:
    matrix = kernel(z)
    if not isinstance(matrix, Tensor) or matrix.shape != (len(z), len(z)):
        got = f"shape {list(matrix.shape)}" if isinstance(matrix, Tensor) else repr(type(matrix))
        raise ValueError(
            f"kernels must return a matrix of shape [{len(z)}, {len(z)}] for {len(z)} points,"
            f" {kernel!r} returned {got}"
        )
    return matrix


def _check_kernels(name: str, kernels: Any) -> None:
    check_lists("kernel", (name, kernels))
    for kernel in kernels:
        if isinstance(kernel, Kernel):
            raise TypeError(
                f"{name} must be functions of a batch that return its matrix, got {kernel!r}: the"
                " kernels of fastmmd go with fastmmd.MMDLoss and fastmmd.JointMMDLoss"
            )
        if not callable(kernel):
            raise TypeError(
                f"{name} must be functions of a batch that return its matrix, got {kernel!r}"
            )
