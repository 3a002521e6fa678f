"""Means of random features, ``sum_i a_i cos(r_k <x_i, w_j> + b_j)``, without the features.

``fastmmd::feature_mean`` makes them from sums of cosines and sines, which it returns, too, as the
backward pass takes some gradients from them. ``fastmmd::feature_mean_backward`` makes the
projections again, as a gradient of the means has to be known before they can be used, and
``fastmmd::feature_mean_second`` differentiates that, by blocks in plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from fastmmd.checks import is_direct
from fastmmd.ops import _cuda, _features_cuda
from fastmmd.ops._core import (
    CPU,
    DTYPES,
    address,
    buffer,
    differentiable,
    doubles,
    loop,
    native,
    refuse_forward_mode,
    register_vmap,
    result_dtype,
    transforms_active,
)
from fastmmd.ops._feature_second import second

MAX_RATES = 128  # that the native core takes
_NAMES = ("x", "masses", "frequencies", "phases", "rates")


def feature_mean(
    x: Tensor,
    masses: Tensor | None,
    frequencies: Tensor,
    signs: Tensor | None,
    phases: Tensor | None,
    rates: Tensor,
) -> Tensor:
    """Means of features, differentiable in all but signs, and in frequencies that are given.

    Args:
        x: [n, d].
        masses: [n], float64, taken as they are; 1 / n each by default.
        frequencies: [d, F]; with signs the radii of structured ones, [F], float64.
        signs: [blocks, 3, width], int8; see :func:`fastmmd.frequencies.draw`.
        phases: [F], float64; without them there is a cosine and a sine of each.
        rates: [K], float64, at most 128.

    Returns:
        Of the cosines, [K, F]; without phases, of cosines and sines, [K, 2 F]. float64.

    Raises:
        NotImplementedError: for forward-mode differentiation, and for CUDA tensors in a build
            without CUDA kernels.
    """
    if signs is None:
        frequencies = frequencies.to(result_dtype(x))
    inputs = (x, masses, frequencies, signs, phases, rates)
    tracked = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    if not tracked and is_direct(*inputs):
        return _forward(*inputs, False)[0]
    refuse_forward_mode("random_feature_mmd2")
    transformed = transforms_active()
    op: Any = _Transformed.apply if transformed else torch.ops.fastmmd.feature_mean
    # Inside a transform of torch.func nobody can tell from here what requires a gradient.
    moments = torch.is_grad_enabled() and (transformed or rates.requires_grad)
    mean: Tensor = op(*inputs, moments)[0]
    return mean


_INPUTS = (
    "Tensor x, Tensor? masses, Tensor frequencies, Tensor? signs, Tensor? phases, Tensor rates"
)
torch.library.define(
    "fastmmd::feature_mean",
    f"({_INPUTS}, bool moments) -> (Tensor mean, Tensor sums, Tensor center, Tensor shifts)",
)
torch.library.define(
    "fastmmd::feature_mean_backward",
    f"(Tensor grad, {_INPUTS}, Tensor sums, Tensor center, Tensor shifts, bool[5] needs)"
    " -> (Tensor v_x, Tensor v_masses, Tensor v_frequencies, Tensor v_phases, Tensor v_rates)",
)
# g_*: the gradients with respect to the outputs v_* of feature_mean_backward.
torch.library.define(
    "fastmmd::feature_mean_second",
    f"(Tensor grad, {_INPUTS}, Tensor? g_x, Tensor? g_masses, Tensor? g_frequencies,"
    " Tensor? g_phases, Tensor? g_rates)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def _arguments(
    x: Tensor, masses: Tensor | None, frequencies: Tensor, signs: Tensor | None, rates: Tensor
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What every native pass is given, by name, and what its workspace depends on; no threads."""
    sizes = {
        "n": x.shape[0],
        "d": x.shape[1],
        "dtype": DTYPES[x.dtype],
        "count": frequencies.shape[-1],
        "width": 0 if signs is None else signs.shape[2],
        "num_rates": len(rates),
    }
    given = signs is None
    addresses = {
        "x": x.data_ptr(),
        "x_strides": x.stride(),
        "weights": address(masses),
        "frequencies": frequencies.data_ptr() if given else 0,
        "frequency_strides": frequencies.stride()[::-1] if given else (1, 1),
        "signs": address(signs),
        "radii": 0 if given else frequencies.data_ptr(),
        "rates": rates.data_ptr(),
    }
    return sizes | addresses, sizes


def _prepared(
    masses: Tensor | None, frequencies: Tensor, signs: Tensor | None, rates: Tensor
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor]:
    """The inputs in the layout that the native core takes."""
    frequencies = frequencies.detach()
    return (
        None if masses is None else doubles(masses),
        frequencies if signs is None else doubles(frequencies),
        None if signs is None else signs.contiguous(),
        doubles(rates),
    )


def _sums(
    x: Tensor,
    masses: Tensor | None,
    frequencies: Tensor,
    signs: Tensor | None,
    rates: Tensor,
    moments: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    masses, frequencies, signs, rates = _prepared(masses, frequencies, signs, rates)
    arguments, sizes = _arguments(x, masses, frequencies, signs, rates)
    if _cuda.serves(x):
        inputs = (x, masses, frequencies, signs, rates)
        return _features_cuda.sums(*inputs, arguments, moments)
    count, threads = frequencies.shape[-1], torch.get_num_threads()
    options: Any = {"dtype": torch.float64, "device": CPU}
    center, shifts = torch.empty(x.shape[1], **options), torch.empty(count, **options)
    sums = torch.empty((4 if moments else 2, len(rates), count), **options)
    scratch, _ = buffer(native.feature_sums_workspace(**sizes, moments=moments, threads=threads))
    native.feature_sums(
        **arguments,
        moments=moments,
        center=center.data_ptr(),
        shifts=shifts.data_ptr(),
        sums=sums.data_ptr(),
        workspace=scratch.data_ptr(),
        threads=threads,
    )
    return sums, center, shifts


def _angles(rates: Tensor, shifts: Tensor, phases: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cosines and sines, [K, F], of the angles of the center."""
    angles = rates.detach().double()[:, None] * shifts
    if phases is not None:
        angles = angles + phases.detach()
    return angles.cos(), angles.sin()


def _forward(
    x: Tensor,
    masses: Tensor | None,
    frequencies: Tensor,
    signs: Tensor | None,
    phases: Tensor | None,
    rates: Tensor,
    moments: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sums, center, shifts = _sums(x, masses, frequencies, signs, rates, moments)
    cosines, sines = _angles(rates, shifts, phases)
    mean = sums[0] * cosines - sums[1] * sines
    if phases is None:
        mean = torch.cat([mean, sums[0] * sines + sums[1] * cosines], 1)
    return mean, sums, center, shifts


def _forward_fake(
    x: Tensor,
    masses: Tensor | None,
    frequencies: Tensor,
    signs: Tensor | None,
    phases: Tensor | None,
    rates: Tensor,
    moments: bool,
) -> tuple[Tensor, ...]:
    count, size = frequencies.shape[-1], rates.shape[0]
    options: Any = {"dtype": torch.float64, "device": x.device}
    return (
        torch.empty((size, count if phases is not None else 2 * count), **options),
        torch.empty((4 if moments else 2, size, count), **options),
        torch.empty(x.shape[1], **options),
        torch.empty(count, **options),
    )


def _backward(
    grad: Tensor,
    x: Tensor,
    masses: Tensor | None,
    frequencies: Tensor,
    signs: Tensor | None,
    phases: Tensor | None,
    rates: Tensor,
    sums: Tensor,
    center: Tensor,
    shifts: Tensor,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    for_x, for_masses, for_frequencies, for_phases, for_rates = needs
    (n, d), count, result = x.shape, frequencies.shape[-1], result_dtype(x)
    cosines, sines = _angles(rates, shifts, phases)
    if phases is None:
        g, h = grad.double().split(count, 1)
        p, q = h * cosines - g * sines, g * cosines + h * sines
    else:
        p, q = -grad * sines, grad * cosines
    device = x.device
    outputs = [torch.empty(0, dtype=torch.float64, device=device) for _ in _NAMES]
    pull = p * sums[0] - q * sums[1]  # on the angles of the center
    if for_phases:
        outputs[3] = pull.sum(0)
    if for_rates:
        if len(sums) == 2:  # nobody knew that they would be wanted
            sums = _sums(x, masses, frequencies, signs, rates, True)[0]
        outputs[4] = (p * sums[2] - q * sums[3] + pull * shifts).sum(1)
    if for_x or for_masses or for_frequencies:
        masses, frequencies, signs, rates = _prepared(masses, frequencies, signs, rates)
        arguments, sizes = _arguments(x, masses, frequencies, signs, rates)
        # Those of the weights come with those of the points, but for panels.
        points = for_x or (for_masses and not (_cuda.serves(x) and signs is None))
        v_x = torch.empty((n, d), dtype=result, device=device) if points else None
        v_masses = torch.empty(n, dtype=torch.float64, device=device) if for_masses else None
        v_w = torch.empty((count, d), dtype=result, device=device) if for_frequencies else None
        p, q = p.contiguous(), q.contiguous()
        if _cuda.serves(x):
            _features_cuda.gradients(
                x, masses, frequencies, signs, rates, arguments, center, p, q, v_x, v_masses, v_w
            )
        else:
            threads = torch.get_num_threads()
            scratch, _ = buffer(
                native.feature_gradients_workspace(
                    **sizes, for_x=points, for_frequencies=for_frequencies, threads=threads
                )
            )
            native.feature_gradients(
                **arguments,
                center=center.data_ptr(),
                p=p.data_ptr(),
                q=q.data_ptr(),
                v_x=address(v_x),
                v_frequencies=address(v_w),
                v_weights=address(v_masses),
                workspace=scratch.data_ptr(),
                threads=threads,
            )
        if v_x is not None and for_x:
            outputs[0] = v_x
        if v_masses is not None:
            outputs[1] = v_masses
        if v_w is not None:
            # Of the points less their center up to here.
            v_w.addr_((rates @ pull).to(result), center.to(result))
            outputs[2] = v_w.T
    return tuple(outputs)


def _backward_fake(grad: Tensor, x: Tensor, *args: Any) -> tuple[Tensor, ...]:
    masses, frequencies, _, phases, rates = args[:5]
    made = []
    for i, (t, need) in enumerate(
        zip((x, masses, frequencies, phases, rates), args[-1], strict=True)
    ):
        if not need or t is None:
            made.append(torch.empty(0, dtype=torch.float64, device=x.device))
        elif i == 2:
            shape = frequencies.shape[::-1]
            made.append(torch.empty(shape, dtype=result_dtype(x), device=x.device).mT)
        else:
            dtype = result_dtype(x) if i == 0 else torch.float64
            made.append(torch.empty(t.shape, dtype=dtype, device=x.device))
    return tuple(made)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:6], *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _autograd(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    x, masses, frequencies, signs, phases, rates = inputs = ctx.saved_tensors[:6]
    for_x, for_masses, for_frequencies, _, for_phases, for_rates = ctx.needs_input_grad[:6]
    if signs is not None and for_frequencies:
        raise NotImplementedError("structured frequencies have no gradient: take a tensor of them")
    op: Any = torch.ops.fastmmd.feature_mean_backward
    if transforms_active():
        op = _TransformedBackward.apply
    needs = [for_x, for_masses, for_frequencies, for_phases, for_rates]
    made = op(grad, *inputs, *ctx.saved_tensors[6:], needs)
    v_x, v_masses, v_w, v_phases, v_rates = (
        v.to(t.dtype) if need else None
        for v, t, need in zip(made, (x, masses, frequencies, phases, rates), needs, strict=True)
    )
    return v_x, v_masses, v_w, None, v_phases, v_rates, None


def _backward_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.needs = inputs[10]
    ctx.set_materialize_grads(False)


def _backward_autograd(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    inputs = ctx.saved_tensors
    tangents = [g if need else None for g, need in zip(grads, ctx.needs, strict=True)]
    if all(g is None for g in tangents):
        return (None,) * 11
    op: Any = torch.ops.fastmmd.feature_mean_second
    if transforms_active():
        op = _TransformedSecond.apply
    made = op(*inputs, *tangents)
    differentiable = (*inputs[:4], *inputs[5:7])  # without the signs
    needs = (*ctx.needs_input_grad[:4], *ctx.needs_input_grad[5:7])
    v = [
        m.to(t.dtype) if need else None
        for m, t, need in zip(made, differentiable, needs, strict=True)
    ]
    return (*v[:4], None, *v[4:], *[None] * 4)


def _second_fake(
    grad: Tensor,
    x: Tensor,
    masses: Tensor | None,
    frequencies: Tensor,
    signs: Tensor | None,
    phases: Tensor | None,
    rates: Tensor,
    *_: Any,
) -> tuple[Tensor, ...]:
    options: Any = {"dtype": torch.float64, "device": x.device}
    (n, d), count = x.shape, frequencies.shape[-1]
    shapes = (grad.shape, (n, d), (n,), (d, count), (count,), rates.shape)
    return tuple(torch.empty(shape, **options) for shape in shapes)


def _third_order(ctx: Any, *grads: Tensor | None) -> NoReturn:
    raise NotImplementedError(
        "third derivatives of fastmmd.random_feature_mmd2 are not implemented: use"
        " fastmmd.reference_features"
    )


for _device in ("CPU", "CUDA"):
    torch.library.impl("fastmmd::feature_mean", _device, _forward)
    torch.library.impl("fastmmd::feature_mean_backward", _device, _backward)
    torch.library.impl("fastmmd::feature_mean_second", _device, second)
torch.library.register_fake("fastmmd::feature_mean", _forward_fake)
torch.library.register_fake("fastmmd::feature_mean_backward", _backward_fake)
torch.library.register_fake("fastmmd::feature_mean_second", _second_fake)
_Transformed = differentiable("feature_mean", _autograd, _setup_context)
_TransformedBackward = differentiable(
    "feature_mean_backward", _backward_autograd, _backward_setup_context
)
_TransformedSecond = differentiable("feature_mean_second", _third_order)


for _name in ("feature_mean", "feature_mean_backward", "feature_mean_second"):
    register_vmap(_name, loop(getattr(torch.ops.fastmmd, _name)))
