"""What differentiates the gradients of means of random features: plain PyTorch, by blocks."""

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
    """The gradients of the inner product of tangents and gradients, block by block, in float64."""
    n, d = x.shape
    count = frequencies.shape[-1]
    parts = grad.double().split(count, 1)  # of cosines, and of sines if there are any
    made = [torch.zeros_like(p) for p in parts]
    options: Any = {"dtype": torch.float64, "device": x.device}
    v_x = torch.zeros((n, d), **options)
    v_masses = torch.zeros(n, **options)
    v_w = torch.zeros((d, count), **options)
    v_phases = torch.zeros(count, **options)
    v_rates = torch.zeros(rates.shape, **options)
    t_x, t_masses, t_w, t_phases, t_rates = tangents
    block = _BLOCK if signs is None else signs.shape[2]

    def leaf(t: Tensor) -> Tensor:
        return t.detach().double().requires_grad_()

    def dot(tangent: Tensor | None, part: Any, gradient: Tensor) -> Tensor:
        if tangent is None:
            return gradient.new_zeros(())
        return (tangent[part].double() * gradient).sum()

    for j in range(0, count, block):
        J = slice(j, min(count, j + block))
        w_block = frequencies[:, J] if signs is None else dense(frequencies, signs, d, j // block)
        for i in range(0, n, _BLOCK):
            N = slice(i, min(n, i + _BLOCK))
            with torch.enable_grad():
                points, w, r = leaf(x[N]), leaf(w_block), leaf(rates)
                given = x.new_full((len(points),), 1 / n, dtype=torch.float64)
                a = leaf(given if masses is None else masses[N])
                b = leaf(w.new_zeros(w.shape[1]) if phases is None else phases[J])
                g = [leaf(p[:, J]) for p in parts]
                angles = r[:, None, None] * (points @ w) + b
                value = (g[0] * (a[:, None] * angles.cos()).sum(1)).sum()
                if len(g) > 1:
                    value = value + (g[1] * (a[:, None] * angles.sin()).sum(1)).sum()
                roots = (points, a, w, b, r)
                first = torch.autograd.grad(value, roots, create_graph=True)
                total = (
                    dot(t_x, N, first[0])
                    + dot(t_masses, N, first[1])
                    + dot(t_w, (slice(None), J), first[2])
                    + dot(t_phases, J, first[3])
                    + dot(t_rates, slice(None), first[4])
                )
                second = torch.autograd.grad(
                    total, (*roots, *g), allow_unused=True, materialize_grads=True
                )
            v_x[N] += second[0]
            v_masses[N] += second[1]
            v_w[:, J] += second[2]
            v_phases[J] += second[3]
            v_rates += second[4]
            for to, part in zip(made, second[5:], strict=True):
                to[:, J] += part
    return torch.cat(made, 1), v_x, v_masses, v_w, v_phases, v_rates
