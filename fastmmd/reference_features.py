"""Random features in plain PyTorch, with every feature written out: the oracle of the tests.

Everything here differentiates twice, forwards and backwards, and runs on any device, in O(n D)
memory and in the dtype it is given.
"""

from __future__ import annotations

import torch
from torch import Tensor


def features(x: Tensor, frequencies: Tensor, phases: Tensor | None, rates: Tensor) -> Tensor:
    """``cos(r_k <x_i, w_j> + b_j)``, or without phases cosines and then sines of each.

    Args:
        x: [n, d].
        frequencies: w_j, [d, F].
        phases: b_j, [F].
        rates: r_k, [K].

    Returns:
        [K, n, F], or [K, n, 2 F].
    """
    angles = rates[:, None, None] * (x @ frequencies)
    if phases is None:
        return torch.cat([angles.cos(), angles.sin()], 2)
    return (angles + phases).cos()


def random_feature_mmd2(
    x: Tensor,
    y: Tensor,
    frequencies: Tensor,
    phases: Tensor | None,
    rates: Tensor,
    coefficients: Tensor,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
) -> Tensor:
    """``sum_k c_k (2 / D) |mean of the features of x - mean of those of y|^2``.

    Args:
        x: [n, d].
        y: [m, d].
        frequencies: [d, F].
        phases: [F]; D = F with them, D = 2 F without.
        rates: [K].
        coefficients: c_k, [K].
        x_weights: [n], divided by their sum.
        y_weights: [m].

    Returns:
        A scalar.
    """
    means = [
        _masses(weights, z) @ features(z, frequencies, phases, rates)
        for z, weights in ((x, x_weights), (y, y_weights))
    ]
    squares = (means[0] - means[1]).square()
    return 2 * (coefficients @ squares).mean()


def _masses(weights: Tensor | None, points: Tensor) -> Tensor:
    weights = points.new_ones(len(points)) if weights is None else weights.to(points)
    return weights / weights.sum()
