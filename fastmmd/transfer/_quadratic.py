"""The quadratic programme of kernel mean matching, its duality gap, and a solver for large ones.

    minimise    f(w) = 1/2 w' K w - c' w
    subject to  0 <= w_i <= upper,   low <= sum_i w_i <= high

K is a positive semidefinite kernel matrix that is never written out: what is wanted of it is K v,
and small blocks. At the optimum most weights are 0, as a smooth kernel's matrix is nearly of low
rank. So an accelerated gradient method finds roughly which are not, and an interior point method
solves for these with a dense matrix of their own; a pass over all points then says which others
want in, and how far from the optimum one is at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastmmd.transfer._interior import interior_point

__all__ = ["Programme", "Solution", "solve"]

_DENSE = 2048  # as many points are solved for at once
_MOST = 5120  # that a dense matrix is made for: 210 MB, and as much for its factor
_STEPS = 50  # of the gradient method, between looks at the gap
_POWER_STEPS = 8


class Programme(NamedTuple):
    """What is to be minimised, over what."""

    product: Callable[[Tensor], Tensor]  # K v
    block: Callable[[Tensor], Tensor]  # K[W, W] for indices W, a matrix of its own
    linear: Tensor  # c, [n]
    upper: float
    low: float
    high: float

    def project(self, w: Tensor) -> Tensor:
        """The nearest point that is allowed: all are moved by one number, and cut off."""
        inside = w.clamp(0, self.upper)
        total = float(inside.sum())
        if self.low <= total <= self.high:
            return inside
        wanted = self.low if total < self.low else self.high
        # The sum after a shift is piecewise linear in it, with these as its knots.
        least, most = float(w.min()) - self.upper, float(w.max())
        for _ in range(200):
            shift = (least + most) / 2
            if not least < shift < most:
                break
            if float((w - shift).clamp(0, self.upper).sum()) > wanted:
                least = shift
            else:
                most = shift
        return (w - most).clamp(0, self.upper)

    def least_linear(self, g: Tensor) -> float:
        """The minimum of <g, w> over what is allowed: the smallest first."""
        g = g.sort().values
        before = self.upper * torch.arange(len(g), dtype=g.dtype, device=g.device)
        allowed = torch.where(g < 0, self.high, self.low)
        return float((g * (allowed - before).clamp(0, self.upper)).sum())

    def value(self, w: Tensor, kw: Tensor) -> float:
        """f(w), from w and K w."""
        return float(0.5 * w @ kw - self.linear @ w)

    def bound(self, w: Tensor, kw: Tensor) -> float:
        """A number that no allowed point goes below: Wolfe's dual at any w.

        By convexity ``f(v) >= f(w) + <K w - c, v - w> = -1/2 w' K w + <K w - c, v>``.
        """
        return float(-0.5 * w @ kw) + self.least_linear(kw - self.linear)


class Solution(NamedTuple):
    """Weights, and how good they are known to be."""

    weights: Tensor
    value: float
    gap: float  # f is at most so much above the minimum
    products: int  # by K that it took


def solve(programme: Programme, tol: float, most_products: int) -> Solution:
    """Minimise, until the gap is at most ``tol * |f|`` or the products by K are used up."""
    n = len(programme.linear)
    tracker = _Tracker(programme, tol, most_products)
    w = _descend(programme, tracker) if n > _DENSE else torch.ones_like(programme.linear)
    if not tracker.done:
        _refine(programme, tracker, w)
    return tracker.solution()


class _Tracker:
    """The best point and the best bound so far; they need not belong together."""

    def __init__(self, programme: Programme, tol: float, most: int) -> None:
        self.programme, self.tol, self.most = programme, tol, most
        self.value, self.bound = math.inf, -math.inf
        self.products = 0
        self.weights = programme.linear

    def look(self, w: Tensor, kw: Tensor, allowed: bool = True) -> None:
        value = self.programme.value(w, kw)
        if allowed and value < self.value:
            self.value, self.weights = value, w
        self.bound = max(self.bound, self.programme.bound(w, kw))

    @property
    def gap(self) -> float:
        return max(0.0, self.value - self.bound)

    @property
    def done(self) -> bool:
        good = math.isfinite(self.gap) and self.gap <= self.tol * abs(self.value)
        return good or self.products >= self.most

    def solution(self) -> Solution:
        return Solution(self.weights, self.value, self.gap, self.products)


def _descend(p: Programme, tracker: _Tracker) -> Tensor:
    """Accelerated projected gradients, until few weights are left or the gap is small.

    Beck and Teboulle, "A fast iterative shrinkage-thresholding algorithm" (SIAM Journal on Imaging
    Sciences 2009), with the restarts of O'Donoghue and Candes, "Adaptive restart for accelerated
    gradient schemes" (Foundations of Computational Mathematics 2015).
    """
    n = len(p.linear)
    w = p.project(torch.full_like(p.linear, (p.low + p.high) / (2 * n)))
    kw = p.product(w)
    tracker.look(w, kw)
    lipschitz = _largest_eigenvalue(p, n)
    tracker.products += 1 + _POWER_STEPS
    ahead, k_ahead, t = w, kw, 1.0
    while not tracker.done:
        for _ in range(_STEPS):
            new = p.project(ahead - (k_ahead - p.linear) / lipschitz)
            k_new = p.product(new)
            gain = float((k_ahead - p.linear) @ (new - w))
            if gain > 0:
                t = 1.0
            t, previous = (1 + math.sqrt(1 + 4 * t * t)) / 2, t
            momentum = (previous - 1) / t
            ahead, k_ahead = new + momentum * (new - w), k_new + momentum * (k_new - kw)
            w, kw = new, k_new
        tracker.products += _STEPS
        tracker.look(w, kw)
        tracker.look(ahead, k_ahead, allowed=False)
        if int((w > 0).sum()) <= 3 * _MOST // 4:
            break
    return w


def _largest_eigenvalue(p: Programme, n: int) -> float:
    """Of K, and a little more; the power method from the constant vector, as K is positive."""
    v = torch.full_like(p.linear, n**-0.5)
    for _ in range(_POWER_STEPS):
        kv = p.product(v)
        norm = float(torch.linalg.vector_norm(kv))
        v = kv / norm
    return 1.05 * norm


def _refine(p: Programme, tracker: _Tracker, w: Tensor) -> None:
    """Solve for few points with a dense matrix, let in those that would lower f, and again."""
    chosen = (w > 0).nonzero().flatten()
    while True:
        values, multiplier = interior_point(
            p.block(chosen), p.linear[chosen], p.upper, p.low, p.high
        )
        w = torch.zeros_like(w)
        w[chosen] = values
        w = p.project(w)
        kw = p.product(w)
        tracker.products += 1
        tracker.look(w, kw)
        if tracker.done:
            return
        reduced = kw - p.linear + multiplier
        reduced[chosen] = 0
        kept = (w > 0).nonzero().flatten()
        wanting = (reduced < 0).nonzero().flatten()
        room = min(max(256, len(kept) // 2), _MOST - len(kept))
        entering = wanting[reduced[wanting].argsort(stable=True)[: max(room, 0)]]
        if not len(entering) and len(kept) == len(chosen):
            return  # as near as the arithmetic gets
        chosen = torch.cat([kept, entering]).sort().values
