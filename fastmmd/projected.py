"""The MMD behind a learned projection."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastmmd import ops
from fastmmd.checks import check_estimator, check_points
from fastmmd.functional import check_sample_weights, estimator_size
from fastmmd.kernels import Kernel, as_kernel
from fastmmd.losses import Estimated
from fastmmd.parameters import RunningBandwidth


def projected_mmd2(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    kernel: Kernel | None = None,
    estimator: str = "biased",
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    *,
    block_size: int | None = None,
    num_superdiagonals: int | None = None,
) -> Tensor:
    r"""Squared MMD of linear images: ``mmd2(act(x W' + b), act(y W' + b))``, exactly.

    A bottleneck and the loss on it, as deep adaptation networks have them (Long et al., "Learning
    transferable features with deep adaptation networks", ICML 2015): both samples go through the
    layer, the kernel and back in one step; on the CPU in one native call, if they are float32 or
    float64 and up to 1024 points in all. Differentiable in x, y, the weight, the bias, the sample
    weights and the parameters of the kernel; twice in eager mode.
    Memory is O((n + m)(d + p) + p d).

    Args:
        x: the first sample, [n, d], float16, bfloat16, float32 or float64.
        y: the second sample, [m, d], of the dtype and on the device of x.
        weight: the map, [p, d], as of :class:`torch.nn.Linear`, of the dtype and on the device of x
            (under autocast the dtypes may differ).
        bias: [p], or None.
        activation: ``"relu"``, ``"tanh"``, ``"gelu"`` (exact, with the error function) or None.
        kernel: as for :func:`mmd2`; heuristic bandwidths look at the images.
        estimator: as for :func:`mmd2`.
        x_weights: weights of the points of x, [n].
        y_weights: those of y, [m].
        block_size: as for :func:`mmd2`.
        num_superdiagonals: as for :func:`mmd2`.

    Returns:
        A scalar: float64 for float64 inputs, float32 otherwise.

    Raises:
        TypeError: an argument that is no tensor or of a dtype that is not accepted.
        ValueError: a wrong rank or shape, different devices, an empty sample, an unknown activation
            or estimator, and what :func:`mmd2` raises.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]])
        >>> weight = torch.tensor([[1.0, 1.0]])  # images 3 and 2
        >>> fm.projected_mmd2(x, y, weight, kernel=fm.Energy())
        tensor(2.)
    """
    number = check_estimator(estimator)
    check_points(x, y, number)
    if x.ndim != 2:
        raise ValueError(f"x must be of rank 2, [points, width], got shape {list(x.shape)}")
    _check_map(x, weight, bias)
    check_activation(activation)
    size = estimator_size(number, x, y, block_size, num_superdiagonals)
    check_sample_weights(x, y, x_weights, y_weights, number)
    kernel = as_kernel(kernel)
    if any(isinstance(module, RunningBandwidth) for module in kernel.modules()):
        with torch.no_grad():  # it looks at the images
            images = (_image(z, weight, bias, activation) for z in (x, y))
            kernel.terms_for(*images)
    terms = kernel.terms(x.device)
    return ops.projected_mmd2(
        x, y, weight, bias, activation, x_weights, y_weights, terms, number, size
    )


class ProjectedMMDLoss(Estimated):
    """A linear layer and the MMD of what it makes of two batches, see :func:`projected_mmd2`.

    Args:
        in_features: d.
        out_features: p.
        bias: whether the layer has one.
        activation: ``"relu"``, ``"tanh"``, ``"gelu"`` or None.
        kernel: as for :class:`MMDLoss`.
        estimator: as for :class:`MMDLoss`.
        block_size: as for :class:`MMDLoss`.
        num_superdiagonals: as for :class:`MMDLoss`.

    Attributes:
        weight: [p, d], initialised as that of :class:`torch.nn.Linear`.
        bias: [p], or None.

    Raises:
        TypeError: a kernel that is none, or a number that is no integer.
        ValueError: an unknown activation or estimator, or a number out of range.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> loss = fm.ProjectedMMDLoss(16, 4, activation="relu")
        >>> loss(torch.zeros(8, 16), torch.ones(6, 16)).backward()
        >>> loss.weight.grad.shape
        torch.Size([4, 16])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str | None = None,
        kernel: Kernel | None = None,
        estimator: str = "biased",
        block_size: int | None = None,
        num_superdiagonals: int | None = None,
    ) -> None:
        super().__init__(estimator, block_size, num_superdiagonals)
        check_activation(activation)
        for name, width in (("in_features", in_features), ("out_features", out_features)):
            if isinstance(width, bool) or not isinstance(width, int):
                raise TypeError(f"{name} must be an integer, got {width!r}")
            if width < 1:
                raise ValueError(f"{name} must be at least 1, got {width}")
        layer = nn.Linear(in_features, out_features, bias)
        self.weight, self.bias = layer.weight, layer.bias
        self.activation = activation
        self.kernel = as_kernel(kernel)

    def project(self, x: Tensor) -> Tensor:
        """The image of points [n, d], [n, p]: what the classifier behind the layer is given."""
        return _image(x, self.weight, self.bias, self.activation)

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        x_weights: Tensor | None = None,
        y_weights: Tensor | None = None,
    ) -> Tensor:
        """The loss of x [n, d] and y [m, d], optionally weighted by [n] and [m]: a scalar."""
        return projected_mmd2(
            x,
            y,
            self.weight,
            self.bias,
            self.activation,
            self.kernel,
            self.estimator,
            x_weights,
            y_weights,
            block_size=self.block_size,
            num_superdiagonals=self.num_superdiagonals,
        )


def _image(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    return ops.ACTIVATIONS[activation](nn.functional.linear(x, weight, bias))


def check_activation(activation: Any) -> None:
    """Raise unless it is one of those that there are."""
    if activation is not None and activation not in ops.ACTIVATIONS:
        raise ValueError(f"activation must be 'relu', 'tanh', 'gelu' or None, got {activation!r}")


def _check_map(x: Tensor, weight: Any, bias: Any) -> None:
    """Raise unless weight and bias map the points somewhere."""
    for name, t in (("weight", weight), ("bias", bias)):
        if name == "bias" and t is None:
            continue
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")
        if t.device != x.device:
            raise ValueError(f"{name} must be on {x.device}, as x, got {t.device}")
        if t.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"{name} must be {x.dtype}, as x, got {t.dtype}")
    if weight.ndim != 2 or weight.shape[1] != x.shape[1] or weight.shape[0] < 1:
        raise ValueError(
            f"weight must be of shape [p, {x.shape[1]}], a row for each feature of the images, got"
            f" {list(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias must be of shape [{weight.shape[0]}], as weight has rows, got {list(bias.shape)}"
        )
