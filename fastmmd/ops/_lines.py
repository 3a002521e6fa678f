"""The MMD of the negative distance between samples of numbers, for many lines at once.

``fastmmd::line_energy`` makes values and, as further outputs, the gradients that its flags ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmmd.checks import is_plain
from fastmmd.ops._core import CPU, address, buffer, loop, native, register_vmap

_LEAST_LINES = 8  # at a time: a team has work


def sliced_energy(
    x: Tensor,
    y: Tensor,
    projections: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    q: Tensor,
) -> Tensor:
    """The mean of :func:`line_energy` over the lines of ``projections`` [d, L], differentiable.

    Without the dispatcher, lines are made, sorted and turned into gradients of the points a few at
    a time, in O((n + m) d) memory.
    """
    inputs = (x, y, projections, x_weights, y_weights, q)
    if is_plain(*inputs) and x.is_cpu:
        return _ShortRoad.apply(*inputs)
    return _by_all_lines(*inputs)


def _by_all_lines(x: Tensor, y: Tensor, projections: Tensor, *rest: Any) -> Tensor:
    return line_energy(projections.mT @ x.mT, projections.mT @ y.mT, *rest).mean()


class _ShortRoad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, y, projections, x_weights, y_weights, q = inputs
        needs = ctx.needs_input_grad
        weighs = [need and w is not None for need, w in zip(needs[3:5], inputs[3:5], strict=True)]
        moves = any(needs[:3])
        lines = projections.shape[1]
        # As many at a time as take the room of the points: each time all of these, and their
        # gradients, are read again. Not by the number of threads, on which no sum may depend.
        step = max(_LEAST_LINES, min(lines, x.shape[1]) // 8 * 8)
        total = torch.zeros((), dtype=torch.float64, device=CPU)
        v = [
            None if not need else torch.zeros_like(i) for need, i in zip(needs, inputs, strict=True)
        ]
        v_x, v_y, v_projections, v_x_weights, v_y_weights, v_q = v
        room = [torch.empty((min(step, lines), len(z)), dtype=z.dtype, device=CPU) for z in (x, y)]
        for first in range(0, lines, step):
            some = projections[:, first : first + step]
            s, t = (
                torch.mm(some.T, z.T, out=to[: some.shape[1]])
                for z, to in zip((x, y), room, strict=True)
            )
            # Gradients of positions take the place of the positions.
            v_s, v_t = (s, t) if moves else (None, None)
            v_a, v_b = (
                torch.empty(of.shape, dtype=torch.float64, device=CPU) if need else None
                for of, need in zip((s, t), weighs, strict=True)
            )
            value, within = _scan(s, t, x_weights, y_weights, q, [v_s, v_t, v_a, v_b])
            total += value.sum()
            if v_x is not None:
                v_x.addmm_(s.T, some.T)
            if v_y is not None:
                v_y.addmm_(t.T, some.T)
            if v_projections is not None:
                v_projections[:, first : first + step] = x.T @ s.T + y.T @ t.T
            if v_x_weights is not None and v_a is not None:
                v_x_weights += v_a.sum(0)
            if v_y_weights is not None and v_b is not None:
                v_y_weights += v_b.sum(0)
            if v_q is not None:
                v_q -= within.sum(0)
        ctx.lines = lines
        ctx.save_for_backward(*inputs, *v)
        return total / lines

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, v = ctx.saved_tensors[:6], ctx.saved_tensors[6:]
        if torch.is_grad_enabled():  # for a second derivative
            wanted = [i for i, need in zip(inputs, ctx.needs_input_grad, strict=True) if need]
            value = _by_all_lines(*inputs)
            made = iter(torch.autograd.grad(value, wanted, grad, create_graph=True))
            return tuple(next(made) if need else None for need in ctx.needs_input_grad)
        scale = grad / ctx.lines
        return tuple(None if g is None else (scale * g).to(g.dtype) for g in v)


def line_energy(
    s: Tensor, t: Tensor, s_weights: Tensor | None, t_weights: Tensor | None, q: Tensor
) -> Tensor:
    """``2 sum_ij a_i b_j |s_i - t_j| - q_0 S(s) - q_1 S(t)`` on each line, differentiable.

    ``S(s) = sum_ij a_i a_j |s_i - s_j|``; weights that sum to one, 1/n and 1/m by default.

    Args:
        s: [L, n], float32 or float64.
        t: [L, m].
        s_weights: [n], float64.
        t_weights: [m], float64.
        q: [2], float64.

    Returns:
        [L], float64. Ties have distance 0, whose slope is taken as 0.
    """
    inputs = (s, t, s_weights, t_weights, q)
    needs = [torch.is_grad_enabled() and i is not None and i.requires_grad for i in inputs[:4]]
    op: Any = torch.ops.fastmmd.line_energy
    value: Tensor = op(*inputs, needs)[0]
    return value


def sorted_energy(
    s: Tensor, t: Tensor, s_weights: Tensor | None, t_weights: Tensor | None, q: Tensor
) -> tuple[Tensor, Tensor]:
    """The same by the sorting and the scans of torch, on any device; weights [L, n] and [L, m].

    Returns:
        The values, [L], and S(s) and S(t), [L, 2], in float64.
    """
    n, m = s.shape[1], t.shape[1]
    z, order = torch.cat([s, t], 1).sort(1)
    a = s.new_full(s.shape, 1 / n, dtype=torch.float64) if s_weights is None else s_weights
    b = t.new_full(t.shape, 1 / m, dtype=torch.float64) if t_weights is None else t_weights
    masses = torch.stack([torch.cat([a, 0 * b], 1), torch.cat([0 * a, b], 1)])
    # The distribution functions, with the largest number left out: after it they are 1.
    below = masses.gather(2, order.expand(2, -1, -1)).cumsum(2)[..., :-1]
    spread = below * (masses.sum(2, keepdim=True) - below)
    gap = z.double().diff(dim=1)
    within = 2 * (gap * spread).sum(2)
    value = 2 * (gap * (below[0] - below[1]).square()).sum(1) + (1 - q) @ within
    return value, within.T


torch.library.define(
    "fastmmd::line_energy",
    "(Tensor s, Tensor t, Tensor? s_weights, Tensor? t_weights, Tensor q, bool[] needs)"
    " -> (Tensor value, Tensor within, Tensor v_s, Tensor v_t, Tensor v_s_weights,"
    " Tensor v_t_weights)",
)


def _shapes(inputs: Sequence[Any], needs: Sequence[bool]) -> list[tuple[tuple[int, ...], Any]]:
    s, t = inputs[:2]
    whole = [(s.shape, s.dtype), (t.shape, t.dtype), (s.shape, torch.float64)]
    whole.append((t.shape, torch.float64))
    nothing = (0,)
    return [
        (shape if need else nothing, of) for need, (shape, of) in zip(needs, whole, strict=True)
    ]


def _cpu(*args: Any) -> tuple[Tensor, ...]:
    inputs, needs = args[:5], args[5]
    gradients = [torch.empty(shape, dtype=of, device=CPU) for shape, of in _shapes(inputs, needs)]
    wanted = [g if need else None for g, need in zip(gradients, needs, strict=True)]
    s, t, s_weights, t_weights, q = inputs
    s, t = s.detach().contiguous(), t.detach().contiguous()
    return (*_scan(s, t, s_weights, t_weights, q, wanted), *gradients)


def _scan(
    s: Tensor,
    t: Tensor,
    s_weights: Tensor | None,
    t_weights: Tensor | None,
    q: Tensor,
    gradients: Sequence[Tensor | None],
) -> tuple[Tensor, Tensor]:
    """One native call: values and sums within; and gradients where there is room for them."""
    q = q.detach()
    weights = [None if w is None else w.detach().contiguous() for w in (s_weights, t_weights)]
    (lines, n), m = s.shape, t.shape[1]
    value = torch.empty(lines, dtype=torch.float64, device=CPU)
    within = torch.empty((lines, 2), dtype=torch.float64, device=CPU)
    wide, threads = s.dtype == torch.float64, torch.get_num_threads()
    if lines:
        scratch, _ = buffer(native.lines_workspace(lines, n, m, wide, threads))
        native.lines(
            s.data_ptr(),
            t.data_ptr(),
            lines,
            n,
            m,
            wide,
            address(weights[0]),
            address(weights[1]),
            float(q[0]),
            float(q[1]),
            value.data_ptr(),
            within.data_ptr(),
            address(gradients[0]),
            address(gradients[1]),
            address(gradients[2]),
            address(gradients[3]),
            scratch.data_ptr(),
            threads,
        )
    return value, within


def _anywhere(*args: Any) -> tuple[Tensor, ...]:
    """By the sorting and the scans of torch, on any device."""
    inputs, needs = args[:5], args[5]
    with torch.enable_grad():
        roots = [None if i is None else i.detach().clone() for i in inputs]
        value, within, gradients = _derived(roots, needs, create_graph=False)
    s = inputs[0]
    made = [
        torch.empty(0, dtype=of, device=s.device) if g is None else g.detach()
        for g, (_, of) in zip(gradients, _shapes(inputs, needs), strict=True)
    ]
    return (value.detach(), within.detach(), *made)


def _derived(
    roots: Sequence[Tensor | None], needs: Sequence[bool], create_graph: bool
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """The reference with its gradients; those of weights for each line by itself."""
    s, t, s_weights, t_weights, q = roots
    assert s is not None
    assert t is not None
    assert q is not None
    each = [None if w is None else w.expand(len(s), -1) for w in (s_weights, t_weights)]
    inputs = [i if i is None or i.requires_grad else i.requires_grad_() for i in (s, t, *each)]
    value, within = sorted_energy(s, t, each[0], each[1], q)
    wanted = [i for i, need in zip(inputs, needs, strict=True) if need and i is not None]
    found = iter(
        torch.autograd.grad(value.sum(), wanted, create_graph=create_graph) if wanted else ()
    )
    return value, within, [next(found) if need else None for need in needs]


def _fake(*args: Any) -> tuple[Tensor, ...]:
    inputs, needs = args[:5], args[5]
    s = inputs[0]
    lines = s.shape[0]
    return (
        torch.empty(lines, dtype=torch.float64, device=s.device),
        torch.empty((lines, 2), dtype=torch.float64, device=s.device),
        *(torch.empty(h, dtype=of, device=s.device) for h, of in _shapes(inputs, needs)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:5], *output[1:])
    ctx.needs = inputs[5]
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad: Tensor | None, *grads: Tensor | None) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    inputs, within, gradients = saved[:5], saved[5], saved[6:]
    results: list[Tensor | None] = [None] * 5
    if grad is not None:
        for i in range(4):
            if ctx.needs_input_grad[i]:
                if not ctx.needs[i]:
                    raise RuntimeError(
                        "fastmmd.sliced_mmd2 was not told that an input needs a gradient: where a"
                        " call is traced or exported, it must require one then"
                    )
                v = grad[:, None] * gradients[i]
                results[i] = v.to(inputs[i].dtype) if i < 2 else v.sum(0)
        if ctx.needs_input_grad[4]:
            results[4] = -(grad[:, None] * within).sum(0)
    if any(g is not None for g in grads):
        second = _second(inputs, ctx.needs, grads)
        results = [
            a if b is None else b if a is None else a + b
            for a, b in zip(results, second, strict=True)
        ]
        results = [
            r if need else None for r, need in zip(results, ctx.needs_input_grad, strict=False)
        ]
    return (*results, None)


def _second(
    inputs: Sequence[Tensor | None], needs: Sequence[bool], grads: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """What the gradients, and the sums within, hand on: by the reference, differentiated twice."""
    with torch.enable_grad():
        roots = [None if i is None else i.detach().clone().requires_grad_() for i in inputs]
        _, within, gradients = _derived(roots, needs, create_graph=True)
        total = sum(
            (g * of).sum()
            for g, of in zip(grads, (within, *gradients), strict=True)
            if g is not None and of is not None
        )
        wanted = [r for r in roots if r is not None]
        if not isinstance(total, Tensor) or not total.requires_grad:
            return (None,) * 5
        found = iter(torch.autograd.grad(total, wanted, allow_unused=True))
    return tuple(None if r is None else next(found) for r in roots)


torch.library.impl("fastmmd::line_energy", "CPU", _cpu)
torch.library.impl("fastmmd::line_energy", "CUDA", _anywhere)
torch.library.register_fake("fastmmd::line_energy", _fake)
torch.library.register_autograd("fastmmd::line_energy", _autograd, setup_context=_setup_context)
register_vmap("line_energy", loop(torch.ops.fastmmd.line_energy))
