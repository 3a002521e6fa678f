"""Losses: the functions as modules."""

from __future__ import annotations

from torch import Tensor, nn

from fastmmd.checks import check_estimator
from fastmmd.functional import mmd2
from fastmmd.kernels import Kernel, as_kernel


class MMDLoss(nn.Module):
    """Squared Maximum Mean Discrepancy between two batches of features, see :func:`fastmmd.mmd2`.

    Args:
        kernel: a :class:`fastmmd.Kernel`, ``Gaussian("mean")`` by default. It is a submodule:
            tensor bandwidths and weights in it train, save and move with the loss.
        estimator: ``"biased"`` or ``"unbiased"``.

    Raises:
        TypeError: a kernel that is none.
        ValueError: an unknown estimator.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> loss = fm.MMDLoss(fm.Laplacian("median"), estimator="unbiased")
        >>> source, target = torch.zeros(4, 3), torch.ones(5, 3, requires_grad=True)
        >>> loss(source, target).backward()
        >>> target.grad.shape
        torch.Size([5, 3])
    """

    def __init__(self, kernel: Kernel | None = None, estimator: str = "biased") -> None:
        super().__init__()
        check_estimator(estimator)
        self.kernel = as_kernel(kernel)
        self.estimator = estimator

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        x_weights: Tensor | None = None,
        y_weights: Tensor | None = None,
    ) -> Tensor:
        """The loss of x [n, d] and y [m, d], optionally weighted by [n] and [m]: a scalar."""
        return mmd2(x, y, self.kernel, self.estimator, x_weights, y_weights)

    def extra_repr(self) -> str:
        """What ``repr`` shows beside the kernel."""
        return f"estimator={self.estimator!r}"
