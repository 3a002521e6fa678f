"""Losses: the functions as modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor, nn

from fastmmd.checks import check_estimator
from fastmmd.classwise import (
    check_num_classes,
    check_presence,
    class_conditional_mmd2,
    local_mmd2,
)
from fastmmd.correlation import check_scaling, coral
from fastmmd.functional import check_sizes, mmd2
from fastmmd.joint import check_kernels, joint_mmd2
from fastmmd.kernels import Energy, Kernel, as_kernel


class Estimated(nn.Module):
    """What losses with a choice of estimator have in common."""

    def __init__(
        self, estimator: str, block_size: int | None, num_superdiagonals: int | None
    ) -> None:
        super().__init__()
        check_sizes(check_estimator(estimator), block_size, num_superdiagonals)
        self.estimator = estimator
        self.block_size = block_size
        self.num_superdiagonals = num_superdiagonals

    def extra_repr(self) -> str:
        """What ``repr`` shows beside the kernels."""
        names = [n for n in ("block_size", "num_superdiagonals") if getattr(self, n) is not None]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in ("estimator", *names))


class MMDLoss(Estimated):
    """Squared Maximum Mean Discrepancy between two batches of features, see :func:`fastmmd.mmd2`.

    Args:
        kernel: a :class:`fastmmd.Kernel`, ``Gaussian("mean")`` by default. It is a submodule:
            tensor bandwidths and weights in it train, save and move with the loss.
        estimator: ``"biased"``, ``"unbiased"``, ``"linear"``, ``"block"`` or ``"incomplete"``.
        block_size: points of a block of ``"block"``.
        num_superdiagonals: of ``"incomplete"``.

    Raises:
        TypeError: a kernel that is none, or a number that is no integer.
        ValueError: an unknown estimator, or a number out of range or of another estimator.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> loss = fm.MMDLoss(fm.Laplacian("median"), estimator="unbiased")
        >>> source, target = torch.zeros(4, 3), torch.ones(5, 3, requires_grad=True)
        >>> loss(source, target).backward()
        >>> target.grad.shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        kernel: Kernel | None = None,
        estimator: str = "biased",
        block_size: int | None = None,
        num_superdiagonals: int | None = None,
    ) -> None:
        super().__init__(estimator, block_size, num_superdiagonals)
        self.kernel = as_kernel(kernel)

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        x_weights: Tensor | None = None,
        y_weights: Tensor | None = None,
    ) -> Tensor:
        """The loss of x [n, d] and y [m, d], optionally weighted by [n] and [m]: a scalar.

        Of batches, [B, n, d] and [B, m, d], it is [B].
        """
        return mmd2(
            x,
            y,
            self.kernel,
            self.estimator,
            x_weights,
            y_weights,
            block_size=self.block_size,
            num_superdiagonals=self.num_superdiagonals,
        )


class EnergyDistanceLoss(MMDLoss):
    """Energy distance between two batches of features, see :func:`fastmmd.energy_distance`.

    Args:
        estimator: as for :class:`MMDLoss`.
        block_size: points of a block of ``"block"``.
        num_superdiagonals: of ``"incomplete"``.

    Raises:
        TypeError: a number that is no integer.
        ValueError: an unknown estimator, or a number out of range or of another estimator.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> fm.EnergyDistanceLoss()(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0]]))
        tensor(1.)
    """

    def __init__(
        self,
        estimator: str = "biased",
        block_size: int | None = None,
        num_superdiagonals: int | None = None,
    ) -> None:
        super().__init__(Energy(), estimator, block_size, num_superdiagonals)


class JointMMDLoss(Estimated):
    """Squared MMD between the joint distributions of layers, see :func:`fastmmd.joint_mmd2`.

    Args:
        kernels: one for each layer, two or more; ``Gaussian("mean")`` for each by default, however
            many there are.
        estimator: as for :class:`MMDLoss`.
        block_size: points of a block of ``"block"``.
        num_superdiagonals: of ``"incomplete"``.

    Raises:
        TypeError: kernels that are none, or a number that is no integer.
        ValueError: fewer than two kernels, an unknown estimator, or a number out of range or of
            another estimator.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> loss = fm.JointMMDLoss([fm.Gaussian("mean"), fm.Gaussian(1.68, multipliers=(1,))])
        >>> source = torch.zeros(4, 256), torch.full((4, 10), 0.1)
        >>> target = torch.ones(6, 256), torch.eye(10)[:6]
        >>> loss(source, target).shape
        torch.Size([])
    """

    def __init__(
        self,
        kernels: Sequence[Kernel] | None = None,
        estimator: str = "biased",
        block_size: int | None = None,
        num_superdiagonals: int | None = None,
    ) -> None:
        super().__init__(estimator, block_size, num_superdiagonals)
        self.kernels = None if kernels is None else nn.ModuleList(check_kernels(kernels))

    def forward(
        self,
        x: Sequence[Tensor],
        y: Sequence[Tensor],
        x_weights: Tensor | None = None,
        y_weights: Tensor | None = None,
    ) -> Tensor:
        """The loss of layers x, each [n, d_l], and y, each [m, d_l]: a scalar.

        Of batches, [B, n, d_l] and [B, m, d_l], it is [B].
        """
        return joint_mmd2(
            x,
            y,
            None if self.kernels is None else [cast(Kernel, k) for k in self.kernels],
            self.estimator,
            x_weights,
            y_weights,
            block_size=self.block_size,
            num_superdiagonals=self.num_superdiagonals,
        )


class _Classwise(nn.Module):
    """What losses with classes have in common."""

    _function: Callable[..., Tensor]

    def __init__(
        self,
        num_classes: int,
        kernel: Kernel | None = None,
        presence: str = "argmax",
        differentiate_classes: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = check_num_classes(num_classes)
        self.kernel = as_kernel(kernel)
        self.presence = check_presence(presence)
        self.differentiate_classes = differentiate_classes

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        y_source: Tensor,
        p_target: Tensor,
        x_weights: Tensor | None = None,
        y_weights: Tensor | None = None,
    ) -> Tensor:
        """The loss of x [n, d] with labels [n] and y [m, d] with probabilities [m, C]: a scalar.

        Either side may have labels or probabilities. Of batches of all of them it is [B].
        """
        return self._function(
            x,
            y,
            y_source,
            p_target,
            self.num_classes,
            self.kernel,
            presence=self.presence,
            x_weights=x_weights,
            y_weights=y_weights,
            differentiate_classes=self.differentiate_classes,
        )

    def extra_repr(self) -> str:
        """What ``repr`` shows beside the kernel."""
        parts = [f"num_classes={self.num_classes}"]
        if self.presence != "argmax":
            parts.append(f"presence={self.presence!r}")
        if self.differentiate_classes:
            parts.append("differentiate_classes=True")
        return ", ".join(parts)


class LocalMMDLoss(_Classwise):
    """Mean of the squared MMD within each class, see :func:`fastmmd.local_mmd2`.

    Args:
        num_classes: the number of classes, 2 or more.
        kernel: a :class:`fastmmd.Kernel`, ``Gaussian("mean")`` by default.
        presence: when a class is present in a domain, ``"argmax"`` or ``"mass"``.
        differentiate_classes: whether gradients reach probabilities.

    Raises:
        TypeError: a kernel that is none, or a number of classes that is no integer.
        ValueError: fewer than 2 classes, or an unknown presence.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> loss = fm.LocalMMDLoss(num_classes=3)
        >>> source, target = torch.zeros(4, 8), torch.ones(6, 8, requires_grad=True)
        >>> labels, logits = torch.tensor([0, 1, 1, 2]), torch.zeros(6, 3)
        >>> loss(source, target, labels, logits.softmax(1)).backward()
        >>> target.grad.shape
        torch.Size([6, 8])
    """

    _function = staticmethod(local_mmd2)


class ClassConditionalMMDLoss(_Classwise):
    """Squared MMD within classes less that between, see :func:`fastmmd.class_conditional_mmd2`.

    Args:
        num_classes: the number of classes, 2 or more.
        kernel: a :class:`fastmmd.Kernel`, ``Gaussian("mean")`` by default.
        presence: when a class is present in a domain, ``"argmax"`` or ``"mass"``.
        differentiate_classes: whether gradients reach probabilities.

    Raises:
        TypeError: a kernel that is none, or a number of classes that is no integer.
        ValueError: fewer than 2 classes, or an unknown presence.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> loss = fm.ClassConditionalMMDLoss(num_classes=2)
        >>> x, labels = torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1])
        >>> bool(loss(x, x, labels, labels) < loss(x, x, labels, labels.flip(0)))
        True
    """

    _function = staticmethod(class_conditional_mmd2)


class CORALLoss(nn.Module):
    """Squared difference of the covariances of two batches of features, see :func:`fastmmd.coral`.

    Args:
        scaling: ``"deep_coral"``, ``"mean"``, ``"frobenius"`` or a positive number.
        mean_scaling: how much the difference of the means counts; 0 by default.

    Raises:
        TypeError: a scaling of another type.
        ValueError: an unknown scaling or one that is out of range.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> fm.CORALLoss()(torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [7.0], [9.0]]))
        tensor(1.)
    """

    def __init__(self, scaling: str | float = "deep_coral", mean_scaling: float = 0.0) -> None:
        super().__init__()
        check_scaling(scaling, mean_scaling)
        self.scaling = scaling
        self.mean_scaling = mean_scaling

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of x [n, d] and y [m, d]: a scalar. Of batches it is [B]."""
        return coral(x, y, self.scaling, self.mean_scaling)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        means = f", mean_scaling={self.mean_scaling}" if self.mean_scaling else ""
        return f"scaling={self.scaling!r}{means}"
