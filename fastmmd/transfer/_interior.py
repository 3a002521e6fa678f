"""Mehrotra's predictor-corrector method for the programme of :mod:`._quadratic` with a dense K.

The sum of the weights is a variable of its own, with bounds like the others, where they leave it
room: ``sum_i w_i - t = 0``. With slacks s and multipliers z of the bounds, a step (d_w, d_y) solves

    (K + D) d_w + a d_y = r,   a' d_w = -(a' w - total),   D = z_low / s_low + z_top / s_top

where a is 1 for weights and -1 for t, and K is 0 for t (Mehrotra, "On the implementation of a
primal-dual interior point method", SIAM Journal on Optimization 1992).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["interior_point"]

_STEPS = 60  # 10 to 20 are usual
_TOL = 1e-11  # of the residuals, in units of the linear term and the sum
_JITTER = 1e-13  # of the mean of the diagonal: rounding leaves a kernel matrix not quite positive
_SHORT = 0.995  # of the way to the nearest bound


def interior_point(
    k: Tensor, c: Tensor, upper: float, low: float, high: float
) -> tuple[Tensor, float]:
    """Minimise ``1/2 w' K w - c' w`` over 0 <= w_i <= upper, low <= sum_i w_i <= high.

    Args:
        k: [n, n], float64; changed on its diagonal.
        c: [n].
        upper: of each weight.
        low: of their sum.
        high: of their sum.

    Returns:
        The weights, [n], with exact zeros, and the multiplier of the sum.
    """
    return _Method(k, c, upper, low, high).run()


class _Method:
    def __init__(self, k: Tensor, c: Tensor, upper: float, low: float, high: float) -> None:
        self.n = n = len(c)
        self.free_sum = high - low > 1e-12 * high
        size = n + self.free_sum
        self.k, self.diagonal = k, k.diagonal()
        self.exact = self.diagonal + _JITTER * self.diagonal.mean()
        self.scale, self.high = float(c.abs().max()) or 1.0, high
        self.side = c.new_ones(size)
        self.c = torch.cat([c, c.new_zeros(size - n)])
        self.lower, self.top = c.new_zeros(size), c.new_full((size,), upper)
        self.w = c.new_full((size,), min((low + high) / (2 * n), upper / 2))
        self.total = 0.0 if self.free_sum else low
        if self.free_sum:
            self.side[n], self.lower[n], self.top[n] = -1, low, high
            self.w[n] = (low + high) / 2
        self.y = 0.0
        self.z_low = c.new_full((size,), self.scale)
        self.z_top = self.z_low * (self.w - self.lower) / (self.top - self.w)
        self.factor = torch.empty_like(k)
        self.info = torch.empty((), dtype=torch.int32, device=k.device)

    def run(self) -> tuple[Tensor, float]:
        for _ in range(_STEPS):
            if self._residuals() or not self._factorise():
                break
            self._step()
        # Of a bound's slack and its multiplier one tends to 0: the smaller tells which.
        weights = torch.where(self.w < self.z_low / self.scale, 0.0, self.w)[: self.n]
        return weights, self.y

    def _residuals(self) -> bool:
        """Take stock; whether this is the solution."""
        self.s_low, self.s_top = self.w - self.lower, self.top - self.w
        kw = torch.zeros_like(self.w)
        kw[: self.n] = torch.addmv(
            (self.exact - self.diagonal) * self.w[: self.n], self.k, self.w[: self.n]
        )
        self.dual = kw - self.c + self.side * self.y - self.z_low + self.z_top
        self.primal = float(self.side @ self.w) - self.total
        self.complement = float(self.z_low @ self.s_low + self.z_top @ self.s_top)
        return (
            self.complement <= _TOL * self.scale * self.high
            and float(self.dual.abs().max()) <= _TOL * self.scale
            and abs(self.primal) <= _TOL * self.high
        )

    def _factorise(self) -> bool:
        """Cholesky's factor of K + D; False where rounding leaves none."""
        self.barrier = self.z_low / self.s_low + self.z_top / self.s_top
        self.diagonal.copy_(self.exact + self.barrier[: self.n])
        torch.linalg.cholesky_ex(self.k, out=(self.factor, self.info))
        self.diagonal.copy_(self.exact)
        if int(self.info):
            return False
        self.ones = self._inverse(self.side[: self.n])
        return True

    def _inverse(self, r: Tensor) -> Tensor:
        return torch.cholesky_solve(r[:, None], self.factor)[:, 0]

    def _newton(self, r_low: Tensor, r_top: Tensor) -> tuple[Tensor, float, Tensor, Tensor]:
        """The step of w, y, z_low and z_top that makes slack times multiplier what it should be."""
        right = r_low / self.s_low - r_top / self.s_top - self.dual
        x, size = self._inverse(right[: self.n]), float(self.ones.sum())
        gap = float(x.sum()) + self.primal
        if self.free_sum:
            give = 1 / float(self.barrier[self.n])
            d_y = (gap - give * float(right[self.n])) / (size + give)
            d_w = torch.cat([x - self.ones * d_y, (right[self.n :] + d_y) * give])
        else:
            d_y = gap / size
            d_w = x - self.ones * d_y
        d_low = (r_low - self.z_low * d_w) / self.s_low
        return d_w, d_y, d_low, (r_top + self.z_top * d_w) / self.s_top

    def _step(self) -> None:
        low, top = self.z_low * self.s_low, self.z_top * self.s_top
        d_w, _, d_low, d_top = self._newton(-low, -top)
        a = min(_longest(self.s_low, d_w), _longest(self.s_top, -d_w))
        b = min(_longest(self.z_low, d_low), _longest(self.z_top, d_top))
        after = (self.z_low + b * d_low) @ (self.s_low + a * d_w)
        after += (self.z_top + b * d_top) @ (self.s_top - a * d_w)
        mean = self.complement / (2 * len(self.w))
        centre = (float(after) / self.complement) ** 3 * mean
        d_w, d_y, d_low, d_top = self._newton(
            centre - low - d_low * d_w, centre - top + d_top * d_w
        )
        a = _SHORT * min(
            _longest(self.s_low, d_w),
            _longest(self.s_top, -d_w),
            _longest(self.z_low, d_low),
            _longest(self.z_top, d_top),
        )
        self.w, self.y = self.w + a * d_w, self.y + a * d_y
        self.z_low, self.z_top = self.z_low + a * d_low, self.z_top + a * d_top


def _longest(v: Tensor, d: Tensor) -> float:
    """The longest step along d, up to 1, that leaves v non-negative."""
    return min(1.0, float(torch.where(d < 0, -v / d, 1.0).min()))
