"""MMD between joint distributions: one kernel for each layer, and their product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmmd import ops
from fastmmd.checks import check_estimator, check_points
from fastmmd.dtypes import concatenated
from fastmmd.functional import check_sample_weights, estimator_size
from fastmmd.kernels import Kernel, as_kernel
from fastmmd.terms import Terms, joined


def joint_mmd2(
    x: Sequence[Tensor],
    y: Sequence[Tensor],
    kernels: Sequence[Kernel] | None = None,
    estimator: str = "biased",
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    *,
    block_size: int | None = None,
    num_superdiagonals: int | None = None,
) -> Tensor:
    r"""Squared MMD between the joint distributions of several layers, JMMD.

    Points are tuples of features of L layers, and the kernel is the product of one kernel for each
    layer, ``k((f, g, ...), (f', g', ...)) = k_1(f, f') k_2(g, g') ...``: that of Long et al.,
    "Deep transfer learning with joint adaptation networks" (ICML 2017). All estimators of
    :func:`mmd2` are available. It is one pass over the pairs, with one inner product for each
    layer, and no matrix of kernel values.

    A product is a kernel if its factors are; :class:`fastmmd.Energy` is only conditionally positive
    definite, and a product with it may be negative. Heuristic bandwidths are worked out for each
    layer by itself.

    Args:
        x: the layers of the first sample, each [n, d_l] or, as a batch, [B, n, d_l]. Widths and
            dtypes may differ from layer to layer; all are computed in the widest dtype.
        y: the layers of the second sample, each [m, d_l] or [B, m, d_l].
        kernels: one for each layer; ``Gaussian("mean")`` for each by default.
        estimator: as for :func:`mmd2`.
        x_weights: [n] or [B, n].
        y_weights: [m] or [B, m].
        block_size: as for :func:`mmd2`.
        num_superdiagonals: as for :func:`mmd2`.

    Returns:
        A scalar, or [B] of a batch: float64 if any layer is, float32 otherwise.

    Raises:
        TypeError: layers that are no sequence of tensors, kernels that are none, or as
            :func:`mmd2`.
        ValueError: fewer than two layers, different numbers of layers, of kernels or, among the
            layers of a sample, of points; or as :func:`mmd2`.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> f, p = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
        >>> fm.joint_mmd2((f, p), (f, p.flip(0)), (fm.Linear(), fm.Linear()))  # (2/2 - 1/2)^2
        tensor(0.2500)
    """
    number = check_estimator(estimator)
    x, y = _check_layers("x", x), _check_layers("y", y)
    if len(x) != len(y):
        raise ValueError(
            f"x and y must have as many layers each, got {len(x)} in x and {len(y)} in y"
        )
    for layer, (a, b) in enumerate(zip(x, y, strict=True)):
        check_points(a, b, number, names=(f"x[{layer}]", f"y[{layer}]"))
    for name, layers in (("x", x), ("y", y)):
        for layer, t in enumerate(layers):
            if t.shape[:-1] != layers[0].shape[:-1]:
                raise ValueError(
                    f"{name} must have the same points in all layers, got {name}[0] of shape"
                    f" {list(layers[0].shape)} and {name}[{layer}] of shape {list(t.shape)}"
                )
            if t.device != layers[0].device:
                raise ValueError(
                    f"{name} must be on one device, got {name}[0] on {layers[0].device} and"
                    f" {name}[{layer}] on {t.device}"
                )
    size = estimator_size(number, x[0], y[0], block_size, num_superdiagonals)
    check_sample_weights(x[0], y[0], x_weights, y_weights, number)
    parts = [
        kernel.terms_for(a, b)
        for kernel, a, b in zip(check_kernels(kernels, len(x)), x, y, strict=True)
    ]
    widths = tuple(t.shape[-1] for t in x)
    terms = product_terms(parts)
    points = side_by_side(x), side_by_side(y)
    return ops.mmd2(*points, x_weights, y_weights, terms, number, size, widths)


def product_terms(parts: Sequence[Terms]) -> Terms:
    """The product of kernels, each of which looks at features of its own."""
    return Terms(
        sum((p.families for p in parts), ()),
        joined([p.scales for p in parts]),
        joined([p.coefficients for p in parts]),
        sum((p.shapes for p in parts), ()),
        sum((p.units for p in parts), ()),
        sum(((factor,) * len(p.families) for factor, p in enumerate(parts)), ()),
    )


def check_kernels(kernels: Sequence[Kernel] | None, layers: int | None = None) -> list[Kernel]:
    """One kernel for each of the layers, the default one for None."""
    if kernels is None:
        return [as_kernel(None)] * (layers or 0)
    if isinstance(kernels, Kernel) or not isinstance(kernels, Sequence | torch.nn.ModuleList):
        raise TypeError(f"kernels must be a sequence of kernels, one for a layer, got {kernels!r}")
    for kernel in kernels:
        if not isinstance(kernel, Kernel):
            raise TypeError(f"kernels must hold a fastmmd.Kernel for each layer, got {kernel!r}")
    if len(kernels) < 2:
        raise ValueError(f"kernels must hold at least two, for two layers, got {len(kernels)}")
    if layers is not None and len(kernels) != layers:
        raise ValueError(f"kernels must hold one for each of {layers} layers, got {len(kernels)}")
    return list(kernels)


def _check_layers(name: str, layers: Any) -> list[Tensor]:
    if isinstance(layers, Tensor) or not isinstance(layers, Sequence):
        raise TypeError(
            f"{name} must be a sequence of tensors, one for a layer, got {type(layers).__name__}"
        )
    if len(layers) < 2:
        raise ValueError(
            f"{name} must hold at least two layers, got {len(layers)}: for one, mmd2 is the same"
        )
    return list(layers)


def side_by_side(layers: Sequence[Tensor]) -> Tensor:
    """The layers side by side, in the widest of their dtypes."""
    dtype = layers[0].dtype
    for t in layers[1:]:
        dtype = torch.promote_types(dtype, t.dtype)
    return concatenated([t.to(dtype) for t in layers], -1)
