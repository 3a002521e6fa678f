"""What differentiates the gradients of means of random features: plain PyTorch, by blocks.

With angles ``theta_kij = r_k p_ij + b_j``, ``p_ij = <x_i, w_j>``, and G and H what arrives at the
means of cosines and sines, the gradients g are those of ``L = sum_kij a_i u_kij`` with
``u = G cos(theta) + H sin(theta)``. What arrives at the gradients is a direction (marked ^), and
their inner product is the derivative of L along it,

    S = sum_kij a^_i u_kij + a_i v_kij theta^_kij,    v = H cos(theta) - G sin(theta) = du / dtheta,

``theta^ = r p^ + r^ p + b^``, ``p^ = <x^, w> + <x, w^>``. Here are the gradients of S.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmmd.frequencies import dense

_BLOCK = 512  # points, and frequencies unless their signs say otherwise, at a time


def second(
    grad: Tensor,
    x: Tensor,
    masses: Tensor | None,
    frequencies: Tensor,
    signs: Tensor | None,
    phases: Tensor | None,
    rates: Tensor,
    *tangents: Tensor | None,
) -> tuple[Tensor, ...]:
    """The gradients of the inner product of tangents and gradients, in float64.

    Args:
        grad: [K, F] or [K, 2 F], what arrives at the means.
        x: [n, d].
        masses: [n].
        frequencies: [d, F], or radii [F].
        signs: [blocks, 3, width].
        phases: [F].
        rates: [K].
        tangents: what arrives at the gradients of x, masses, frequencies, phases and rates.

    Returns:
        To grad, x, masses, frequencies, phases and rates.
    """
    (n, d), count = x.shape, frequencies.shape[-1]
    options: Any = {"dtype": torch.float64, "device": x.device}

    def full(t: Tensor | None, *shape: int, value: float = 0.0) -> Tensor:
        return torch.full(shape, value, **options) if t is None else t.double()

    parts = list(grad.double().split(count, 1))
    pair = len(parts) > 1
    rates = rates.double()
    a = full(masses, n, value=1 / n)
    b = full(phases, count)
    t_x, t_w = tangents[0], tangents[2]
    t_a, t_b = full(tangents[1], n), full(tangents[3], count)
    t_r = full(tangents[4], len(rates))
    v_grad = [torch.zeros_like(p) for p in parts]
    v_x, v_a = torch.zeros((n, d), **options), torch.zeros(n, **options)
    v_w, v_b = torch.zeros((d, count), **options), torch.zeros(count, **options)
    v_r = torch.zeros_like(rates)
    block = _BLOCK if signs is None else signs.shape[2]
    for j in range(0, count, block):
        J = slice(j, min(count, j + block))
        w = (
            frequencies[:, J].double()
            if signs is None
            else dense(frequencies, signs, d, j // block)
        )
        w_moves = None if t_w is None else t_w[:, J].double()
        for i in range(0, n, _BLOCK):
            N = slice(i, min(n, i + _BLOCK))
            points, mass, mass_moves = x[N].double(), a[N, None], t_a[N, None]
            p = points @ w
            p_moves = torch.zeros_like(p)
            if t_x is not None:
                p_moves = p_moves + t_x[N].double() @ w
            if w_moves is not None:
                p_moves = p_moves + points @ w_moves
            of_p, of_p_moves = torch.zeros_like(p), torch.zeros_like(p)
            for k, (r, r_moves) in enumerate(zip(rates, t_r, strict=True)):
                theta = r * p + b[J]
                moves = r * p_moves + r_moves * p + t_b[J]
                cosine, sine = theta.cos(), theta.sin()
                u, v = parts[0][k, J] * cosine, -parts[0][k, J] * sine
                v_grad[0][k, J] += (mass_moves * cosine - mass * sine * moves).sum(0)
                if pair:
                    u, v = u + parts[1][k, J] * sine, v + parts[1][k, J] * cosine
                    v_grad[1][k, J] += (mass_moves * sine + mass * cosine * moves).sum(0)
                of_theta, of_moves = mass_moves * v - mass * u * moves, mass * v
                v_a[N] += (v * moves).sum(1)
                v_b[J] += of_theta.sum(0)
                v_r[k] += (of_theta * p + of_moves * p_moves).sum()
                of_p = of_p + r * of_theta + r_moves * of_moves
                of_p_moves = of_p_moves + r * of_moves
            v_x[N] += of_p @ w.T
            v_w[:, J] += points.T @ of_p
            if w_moves is not None:
                v_x[N] += of_p_moves @ w_moves.T
            if t_x is not None:
                v_w[:, J] += t_x[N].double().T @ of_p_moves
    return torch.cat(v_grad, 1), v_x, v_a, v_w, v_b, v_r
