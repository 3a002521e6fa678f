r"""Drop-ins for DeepDA (jindongwang/transferlearning) and the many copies of its losses.

``from fastmmd.compat.deepda import ...`` the same names, in place of

- ``from loss_funcs.mmd import MMDLoss``
- ``from loss_funcs.lmmd import LMMDLoss``
- ``from mmd import MMD_loss``, a copy
- ``from lmmd import LMMD_loss``, of DSAN

Constructors, calls, values and first derivatives are those of the original, in memory linear in
the batch. ``corrected=True`` mends what the class says it does wrong.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastmmd import ops
from fastmmd.checks import BIASED, is_plain
from fastmmd.classwise import local_mmd2
from fastmmd.compat._common import (
    at_least_single,
    check_choice,
    check_count,
    check_labels,
    check_pair,
    check_positive,
    check_probabilities,
)
from fastmmd.kernels import Gaussian

__all__ = ["LMMDLoss", "LMMD_loss", "LambdaSheduler", "MMDLoss", "MMD_loss"]

_NAMES = ("source", "target")


class _Bank(nn.Module):
    """The kernels ``sum_i exp(-D / (b mul^i))`` around a bandwidth b mul^(num // 2)."""

    fix_sigma: float | None

    def __init__(
        self,
        kernel_type: str,
        kernel_mul: float,
        kernel_num: int,
        fix_sigma: float | None,
    ) -> None:
        super().__init__()
        check_choice("kernel_type", kernel_type, ("rbf", "linear"))
        self.kernel_type = kernel_type
        self.kernel_mul = check_positive("kernel_mul", kernel_mul)
        self.kernel_num = check_count("kernel_num", kernel_num)
        # As in the original, 0 is as good as None.
        self.fix_sigma = check_positive("fix_sigma", fix_sigma) if fix_sigma else None
        self._cached: tuple[Any, tuple[Gaussian]] | None = None

    def _kernel(self) -> Gaussian:
        """The kernels, as long as nobody changes an attribute."""
        key = self.kernel_mul, self.kernel_num, self.fix_sigma
        if self._cached is not None and self._cached[0] == key:
            return self._cached[1][0]
        middle = self.kernel_num // 2
        multipliers = [self.kernel_mul ** (i - middle) for i in range(self.kernel_num)]
        # A Gaussian has 2 s^2 where this has the bandwidth.
        s = "mean" if self.fix_sigma is None else math.sqrt(self.fix_sigma / 2)
        kernel = Gaussian(s, multipliers)
        if is_plain(kernel.terms().scales):
            # A tuple keeps the kernel from becoming a submodule, which the original has none of.
            self._cached = key, (kernel,)
        return kernel

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        shown = f"kernel_type={self.kernel_type!r}"
        if self.kernel_type == "rbf":
            shown += f", kernel_mul={self.kernel_mul}, kernel_num={self.kernel_num}"
            shown += "" if self.fix_sigma is None else f", fix_sigma={self.fix_sigma}"
        return shown


class MMDLoss(_Bank):
    r"""The biased MMD^2 of two batches.

    - ``kernel_type="rbf"``: with the bank ``k = sum_i exp(-D / (b mul^i))`` for i = 0, ...,
      num - 1, where ``b = sum D / (N^2 - N) / mul^(num // 2)`` over the pooled batch of N points.
      With the defaults this is ``fastmmd.MMDLoss()``.
    - ``kernel_type="linear"``: ``|mean source - mean target|^2``.

    What the original does wrong: ``fix_sigma`` is accepted and goes unused. With ``corrected``
    it takes the place of ``sum D / (N^2 - N)``, which is where its code would have put it: the
    middle kernel is ``exp(-D / fix_sigma)``.

    If all points are equal the original is NaN, and this is 0. An unknown ``kernel_type``, for
    which the original returns None, is an error.

    Args:
        kernel_type: ``"rbf"`` or ``"linear"``.
        kernel_mul: mul, the step of the bank.
        kernel_num: num, the number of kernels.
        fix_sigma: a fixed bandwidth in place of the mean squared distance; see above.
        corrected: honour fix_sigma.
        **kwargs: accepted and unused, as by the original.

    Raises:
        ValueError: an unknown kernel_type, or numbers out of range.
        TypeError: an argument of another type.

    Example:
        >>> import torch
        >>> from fastmmd.compat.deepda import MMDLoss
        >>> source = torch.eye(4)
        >>> MMDLoss()(source, source + 1)
        tensor(3.5506)
    """

    def __init__(
        self,
        kernel_type: str = "rbf",
        kernel_mul: float = 2.0,
        kernel_num: int = 5,
        fix_sigma: float | None = None,
        *,
        corrected: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(kernel_type, kernel_mul, kernel_num, fix_sigma if corrected else None)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """The loss of source [n, d] and target [m, d]: a scalar.

        Raises:
            TypeError: inputs that are no floating tensors, or of two dtypes.
            ValueError: inputs of other than rank 2, of different widths, or empty.
        """
        check_pair(source, target, _NAMES)
        if self.kernel_type == "linear":
            delta = at_least_single(source).mean(0) - at_least_single(target).mean(0)
            return delta @ delta
        return ops.mmd2(source, target, None, None, self._kernel().terms(source.device), BIASED)


MMD_loss = MMDLoss


class LambdaSheduler(nn.Module):
    """DeepDA's weight ``2 / (1 + exp(-gamma p)) - 1`` for the share p of the training gone by.

    Args:
        gamma: how steeply it grows.
        max_iter: number of steps in the training.
        **kwargs: accepted and unused, as by the original.

    Raises:
        ValueError: numbers out of range.
        TypeError: an argument of another type.
    """

    def __init__(self, gamma: float = 1.0, max_iter: int = 1000, **kwargs: Any) -> None:
        super().__init__()
        self._start(gamma, max_iter)

    def _start(self, gamma: float, max_iter: int) -> None:
        self.gamma = check_positive("gamma", gamma)
        self.max_iter = check_positive("max_iter", max_iter)
        self.curr_iter = 0

    def lamb(self) -> float:
        """The weight at this step, from 0 on."""
        return 2.0 / (1.0 + math.exp(-self.gamma * self.curr_iter / self.max_iter)) - 1.0

    def step(self) -> None:
        """One step further, up to ``max_iter``."""
        self.curr_iter = min(self.curr_iter + 1, int(self.max_iter))


class _LocalBank(_Bank):
    """What the two local losses share."""

    def _local(
        self,
        source: Tensor,
        target: Tensor,
        labels: tuple[str, Any],
        probabilities: tuple[str, Any],
        classes: int,
    ) -> Tensor:
        check_pair(source, target, _NAMES)
        check_labels(labels[1], labels[0], source, classes)
        check_probabilities(probabilities[1], probabilities[0], target, classes)
        return local_mmd2(source, target, labels[1], probabilities[1], classes, self._kernel())


class LMMDLoss(_LocalBank, LambdaSheduler):
    r"""The local MMD of Zhu et al., "Deep subdomain adaptation network", in DeepDA's version.

    ``lamb() / |C| * sum_c |sum_i a_ic phi(source_i) - sum_j b_jc phi(target_j)|^2``, with phi the
    features of the bank of :class:`MMDLoss`. ``a_ic`` is 1 / n_c for the n_c source points of
    class c and 0 for others; ``b_jc`` is the probability of class c for target point j, divided by
    the sum of those of the batch. C holds the classes that occur among the source labels and also
    among the most probable classes of the target; without any the loss is 0. ``lamb()`` grows from
    0 with each call: the first call gives 0.

    What the original does wrong: it wants batches of one size, and a GPU; it returns shape [1]; a
    NaN in the features gives 0 without a gradient, and the step is not counted; calls in
    evaluation mode move the schedule; ``fix_sigma`` goes unused; its ``target_logits`` must be
    probabilities. Here batches may be of any sizes on either device; logits, and NaN among the
    probabilities, are an error. With
    ``corrected`` the loss is a scalar, NaN is NaN, only calls in training mode step, and
    ``fix_sigma`` is honoured. Without it a NaN gives 0 on the CPU alone: to look costs a
    synchronisation on a GPU, where NaN is NaN.

    Args:
        num_class: number of classes.
        kernel_type: ``"rbf"``; ``"linear"`` is a NotImplementedError, in the original too.
        kernel_mul: as for :class:`MMDLoss`.
        kernel_num: as for :class:`MMDLoss`.
        fix_sigma: as for :class:`MMDLoss`.
        gamma: how steeply the weight grows.
        max_iter: number of calls in the training.
        corrected: mend the above.
        **kwargs: accepted and unused, as by the original.

    Raises:
        ValueError: numbers out of range, or an unknown kernel_type.
        TypeError: an argument of another type.

    Example:
        >>> import torch
        >>> from fastmmd.compat.deepda import LMMDLoss
        >>> loss = LMMDLoss(num_class=2)
        >>> f, labels = torch.eye(4), torch.tensor([0, 1, 0, 1])
        >>> probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.5, 0.5]])
        >>> loss(f, f + 1, labels, probabilities), loss.curr_iter
        (tensor([0.]), 1)
    """

    def __init__(
        self,
        num_class: int,
        kernel_type: str = "rbf",
        kernel_mul: float = 2.0,
        kernel_num: int = 5,
        fix_sigma: float | None = None,
        gamma: float = 1.0,
        max_iter: int = 1000,
        *,
        corrected: bool = False,
        **kwargs: Any,
    ) -> None:
        _LocalBank.__init__(
            self, kernel_type, kernel_mul, kernel_num, fix_sigma if corrected else None
        )
        self._start(gamma, max_iter)
        _refuse_linear(kernel_type)
        self.num_class = _check_classes("num_class", num_class)
        self.corrected = corrected

    def forward(
        self, source: Tensor, target: Tensor, source_label: Tensor, target_logits: Tensor
    ) -> Tensor:
        """The loss, of shape [1], or a scalar if corrected.

        Args:
            source: [n, d].
            target: [m, d].
            source_label: classes 0, ..., num_class - 1, [n].
            target_logits: probabilities of the classes, [m, num_class], as a softmax makes them.

        Raises:
            TypeError: features or probabilities that are no floating tensors, labels that are no
                integers.
            ValueError: wrong shapes; on the CPU also a class out of range, and probabilities that
                are negative or do not sum to 1.
        """
        value = self._local(
            source,
            target,
            ("source_label", source_label),
            ("target_logits", target_logits),
            self.num_class,
        )
        if self.corrected:
            value = value * self.lamb()
            if self.training:
                self.step()
            return value
        if is_plain(value) and math.isnan(value.detach()):
            return torch.zeros(1, dtype=value.dtype)
        value = value.unsqueeze(0) * self.lamb()
        self.step()
        return value


class LMMD_loss(_LocalBank):
    r"""The local MMD of Zhu et al., "Deep subdomain adaptation network", in the authors' version.

    That of :class:`LMMDLoss` without ``lamb()``, which the training script multiplies in, and with
    ``fix_sigma`` in use.

    What the original does wrong: batches of one size, a GPU, shape [1], and 0 for NaN, as there.

    Args:
        class_num: number of classes.
        kernel_type: ``"rbf"``.
        kernel_mul: as for :class:`MMDLoss`.
        kernel_num: as for :class:`MMDLoss`.
        fix_sigma: what ``D`` is divided by in the middle kernel, in place of its mean.
        corrected: mend the above.

    Raises:
        ValueError: numbers out of range, or an unknown kernel_type.
        TypeError: an argument of another type.
    """

    def __init__(
        self,
        class_num: int = 31,
        kernel_type: str = "rbf",
        kernel_mul: float = 2.0,
        kernel_num: int = 5,
        fix_sigma: float | None = None,
        *,
        corrected: bool = False,
    ) -> None:
        super().__init__(kernel_type, kernel_mul, kernel_num, fix_sigma)
        _refuse_linear(kernel_type)
        self.class_num = _check_classes("class_num", class_num)
        self.corrected = corrected

    def get_loss(self, source: Tensor, target: Tensor, s_label: Tensor, t_label: Tensor) -> Tensor:
        """The loss of source [n, d] and target [m, d].

        Args:
            source: [n, d].
            target: [m, d].
            s_label: classes, [n].
            t_label: probabilities of the classes, [m, class_num].

        Returns:
            Shape [1], or a scalar if corrected.

        Raises:
            TypeError: as for :class:`LMMDLoss`.
            ValueError: as for :class:`LMMDLoss`.
        """
        value = self._local(
            source, target, ("s_label", s_label), ("t_label", t_label), self.class_num
        )
        if self.corrected:
            return value
        if is_plain(value) and math.isnan(value.detach()):
            return torch.zeros(1, dtype=value.dtype)
        return value.unsqueeze(0)

    forward = get_loss


def _refuse_linear(kernel_type: str) -> None:
    if kernel_type == "linear":
        raise NotImplementedError("kernel_type must be 'rbf' for the local MMD, got 'linear'")


def _check_classes(name: str, classes: int) -> int:
    if check_count(name, classes) < 2:
        raise ValueError(f"{name} must be at least 2, got {classes}")
    return classes
