"""The passes on a GPU: memory, the road, and the matrix products of panels.

The native side launches kernels on the stream that it is given. Nothing here waits for the device,
so that all of it can be captured in a CUDA graph: no number of a device tensor is looked at, and
nothing is copied from memory of the host.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmmd.checks import RESOLVE
from fastmmd.ops import _roads
from fastmmd.ops._core import DTYPES
from fastmmd.ops._roads import Device, Road

_STORED = {
    _roads.FLOAT32: torch.float32,
    _roads.FLOAT64: torch.float64,
    _roads.FLOAT16: torch.float16,
    _roads.BFLOAT16: torch.bfloat16,
    _roads.TF32: torch.float32,
    _roads.TF32X3: torch.float32,
}
_ALIGNED = 256  # bytes
_TF32_BITS = -(1 << 13)  # of a float32 number
_HALF_A_TF32 = 1 << 12  # of the last of them
_SLICE_BYTES = 8 << 20  # of operands that are widened for a product


@functools.cache
def module() -> Any:
    """The native module.

    Raises:
        NotImplementedError: it has not been built.
    """
    try:
        from fastmmd import _cuda
    except ImportError as error:
        raise NotImplementedError(
            "this build of fastmmd has no CUDA kernels, and x is on a GPU: install it where a CUDA"
            " compiler (nvcc) is found, with 'FASTMMD_CUDA=ON pip install .'; or move x and y to"
            " the CPU, or use fastmmd.reference, which runs on any device"
        ) from error
    return _cuda


@functools.cache
def device_of(index: int) -> Device:
    """What is to be known of a GPU."""
    native = module()
    return Device(
        native.compute_capability(index),
        native.architectures(),
        native.shared_bytes(index),
        native.l2_bytes(index),
    )


def serves(x: Tensor) -> bool:
    """Whether a pass of these points is made here."""
    return not x.is_cpu


def stream_of(x: Tensor) -> tuple[int, int]:
    """The current stream of the device of x, and the device."""
    index = x.device.index
    return torch._C._cuda_getCurrentRawStream(index), index


# The road of a pass. It is asked for again and again, and takes its time.
choose = functools.lru_cache(maxsize=4096)(_roads.road)


def mmd2(
    inputs: tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor, Tensor],
    constants: tuple[Any, ...],
    outputs: tuple[Tensor | None, ...],
    resolved: Tensor | None = None,
) -> None:
    """Fills the value and those of the six gradients that are not None; ``resolved`` too."""
    x, y, x_weights, y_weights, scales, coefficients = inputs
    check_devices(x, scales, coefficients)
    families, shapes, units, factors, widths, estimator, size, constant_factors = constants
    shape, other = x.shape, y.shape
    batch: Sequence[int] = ()
    count = 1
    if len(shape) == 3:
        batch, count = shape[:1], shape[0]
    if resolved is None:
        resolved = torch.empty((*batch, len(families)), dtype=torch.float64, device=x.device)

    facts = (
        shape[-2],
        other[-2],
        tuple(widths),
        x.dtype,
        _roads.precision(),
        device_of(stream_of(x)[1]),
        tuple(families),
        estimator,
        x_weights is not None or y_weights is not None,
        tuple(v is not None for v in outputs[1:]),
    )
    call = _Call(
        inputs,
        (widths, factors, families, shapes, units, estimator, size, constant_factors),
        (*outputs, resolved),
    )
    modes: tuple[str, ...] = _roads.ALL_MODES
    road = choose(*facts, modes)
    while road.mode in _WHOLE:
        if call.whole(road, count):
            return
        modes = tuple(mode for mode in modes if mode != road.mode)
        road = choose(*facts, modes)
    for b in range(count):
        call.run(road, b)


_WHOLE = (_roads.SMALL, _roads.FUSED)


class _Call:
    """The passes of one call, on memory that the elements of a batch share."""

    def __init__(
        self,
        inputs: tuple[Any, ...],
        constants: tuple[Any, ...],
        outputs: tuple[Any, ...],
    ) -> None:
        self.inputs, self.constants, self.outputs = inputs, constants, outputs
        x, y = inputs[:2]
        self.batched = x.ndim == 3
        self.n, self.m = x.shape[-2], y.shape[-2]
        self.widths, self.estimator = constants[0], constants[5]
        self.scratch: Tensor | None = None
        self.z: list[Tensor] = []
        self.w: Sequence[Tensor] = ()
        self.terms: Sequence[Tensor] = ()
        self.split_points = False

    def make(self, road: Road, b: int, count: int = 1) -> Any:
        """The native object of the passes of element b, or of ``count`` elements from there."""
        x, y, x_weights, y_weights, scales, coefficients = self.inputs
        return module().Mmd2(
            _element(x, b),
            _element(y, b),
            self.n,
            self.m,
            x.stride(),
            y.stride(),
            count,
            DTYPES[x.dtype],
            _element(x_weights, b),
            _element(y_weights, b),
            self.widths,
            *self.constants[1:3],
            scales.data_ptr(),
            coefficients.data_ptr(),
            *self.constants[3:],
            *(_element(v, b) for v in self.outputs),
            road.products,
            road.operand,
            [z.data_ptr() for z in self.z] or [0] * len(self.widths),
            *stream_of(x),
        )

    def whole(self, road: Road, count: int) -> bool:
        """All elements at once by a road that is one native call, if it takes them."""
        if road.mode == _roads.SMALL:
            native = self.make(road, 0, count)
            if not native.takes_small():
                return False
            self._give_scratch(native, native.small_workspace())
            native.small()
            return True
        if not self.make(road, 0).takes_fused():
            return False
        self._pack(road)
        for b in range(count):
            native = self.make(road, b)
            self._give_scratch(native, native.fused_workspace())
            native.fused()
        return True

    def _pack(self, road: Road) -> None:
        if not self.z:
            self.z = packed(self.n, self.m, self.widths, road.operand, self.inputs[0].device)

    def run(self, road: Road, b: int) -> None:
        """Element b."""
        self._pack(road)
        native = self.make(road, b)
        if road.mode == _roads.PANELS:
            self._panels(native, road, b)
            return
        self._give_scratch(native, native.workspace())
        native.begin()
        if self.estimator == RESOLVE:
            return
        native.pairs() if road.mode == _roads.PAIRS else native.values()
        native.finish()

    def _give_scratch(self, native: Any, size: int, room: int = 0) -> int:
        """Gives the pass a workspace of this size; the address of ``room`` bytes beside it."""
        size = _roads.round_up(size, _ALIGNED)
        if self.scratch is None:
            x = self.inputs[0]
            self.scratch = torch.empty(size + room, dtype=torch.uint8, device=x.device)
        base = self.scratch.data_ptr()
        native.set_workspace(base)
        return base + size

    def _panels(self, native: Any, road: Road, b: int) -> None:
        n, m, widths = self.n, self.m, self.widths
        moving = len(widths) - self.constants[7]
        pieces = _roads.panels(n, m, self.estimator, road.panel_rows)
        _, most, _, columns = max(pieces, key=lambda piece: piece[1] * piece[3])
        room = self._give_scratch(native, native.workspace(), native.panel_workspace(most, columns))
        if not self.w:
            self._give_weights(road, most * columns)
        v = [  # of x and y
            None if v is None else (v[b] if self.batched else v).zero_() for v in self.outputs[1:3]
        ]
        second = _roads.round_up(n, _roads.BLOCK_ROWS)  # the first packed row of y
        native.begin()
        addresses = [of.data_ptr() for of in self.w]

        # Panels share sides and shapes: what looks at a part of a tensor takes the host its time.
        @functools.cache
        def side(row: int, rows: int) -> _Side:
            return _Side(v, self.z, widths[:moving], row, rows, second, self.split_points)

        @functools.cache
        def weights(rows: int, columns: int, first: int, mirror: int) -> list[_Weights]:
            return [_Weights(of, rows, columns, first, mirror, self.terms) for of in self.w]

        # A panel and its mirror, and the next one of its row, multiply the same points.
        split = functools.lru_cache(maxsize=2)(split_tf32) if self.split_points else None
        for row, rows, column, columns in pieces:
            first, other = side(row, rows), side(column, columns)
            # Off the diagonal the panel stands for its mirror.
            mirror = other.count if row != column else 0
            wanted = bool(first.count or mirror)
            native.panel(row, rows, column, columns, addresses if wanted else [], room)
            if not wanted:
                continue
            for k, w in enumerate(weights(rows, columns, first.count, mirror)):
                w.split()
                if first.count:
                    add_products(first.v[k], w.rows, other.z[k], split)
                if mirror:
                    add_products(other.v[k], w.columns, first.z[k], split)
        native.finish()

    def _give_weights(self, road: Road, size: int) -> None:
        """Room for the weights of a panel, and for the terms of those of one factor."""
        families, constant = self.constants[2], self.constants[7]
        device = self.inputs[0].device
        how = _roads.weights(
            road.operand, _roads.precision(), device_of(stream_of(self.inputs[0])[1]), families
        )
        self.w = torch.empty(
            (len(self.widths) - constant, size), dtype=_STORED[how.stored], device=device
        ).unbind()
        self.split_points = how.split_points
        if how.split:
            dtype = self.z[0].dtype
            count = self.w[0].element_size() // dtype.itemsize
            self.terms = torch.empty((count, size), dtype=dtype, device=device).unbind()


class _Weights:
    """A panel of gradient weights, and its parts that are factors of matrix products."""

    def __init__(
        self,
        room: Tensor,
        rows: int,
        columns: int,
        first: int,
        mirror: int,
        terms: Sequence[Tensor],
    ) -> None:
        self.w, *self.terms = (t[: rows * columns].view(rows, columns) for t in (room, *terms))
        # What is left of float32 weights stays in their place.
        factors = [*self.terms, self.w][:2] if self.terms else [self.w]
        # Its first rows, and its first columns as rows.
        self.rows = [t[:first] for t in factors]
        self.columns = [t[:, :mirror].T for t in factors]

    def split(self) -> None:
        """To terms of the dtype of the points, or of TF32, if there are to be any."""
        if not self.terms:
            return
        upper, *lower = self.terms
        if upper.dtype == self.w.dtype:
            round_to_tf32(self.w, upper)
        else:
            upper.copy_(self.w)
        self.w -= upper
        for t in lower:
            t.copy_(self.w)


class _Side:
    """Packed rows [first, first + count) of one sample, by factor; rows of v that exist."""

    def __init__(
        self,
        v: Sequence[Tensor | None],
        z: Sequence[Tensor],
        widths: Sequence[int],
        first: int,
        count: int,
        second: int,
        split: bool,
    ) -> None:
        domain = int(first >= second)
        of, at = v[domain], first - domain * second
        # Slices are split one by one, so that the terms of all points do not take memory at a time.
        step = max(_SLICE_BYTES // (count * z[0].element_size()), 1)
        self.z = [
            t[first : first + count, :d].split(step if split else d, 1)
            for t, d in zip(z, widths, strict=False)
        ]
        ends = itertools.accumulate(widths)
        parts = [slice(end - d, end) for end, d in zip(ends, widths, strict=True)]
        self.v = [] if of is None else [of[at : at + count, part] for part in parts]
        self.count = len(self.v[0]) if self.v else 0


def _element(t: Tensor | None, b: int) -> int:
    """The address of element b of a batch; of the whole if b is 0."""
    if t is None:
        return 0
    return t.data_ptr() + (b * t.stride(0) * t.element_size() if b else 0)


def packed(
    n: int, m: int, widths: Sequence[int], operand: int, device: torch.device
) -> list[Tensor]:
    """Room for the packed rows of both samples, one tensor for each factor."""
    rows = sum(_roads.round_up(count, _roads.BLOCK_ROWS) for count in (n, m))
    return [
        torch.empty(
            (rows, _roads.round_up(d, _roads.DEPTH_UNIT)), dtype=_STORED[operand], device=device
        )
        for d in widths
    ]


def round_to_tf32(t: Tensor, out: Tensor) -> Tensor:
    """To ``out``: float32 numbers rounded to the 11 bits that PyTorch may leave of factors."""
    bits = torch.add(t.view(torch.int32), _HALF_A_TF32, out=out.view(torch.int32))
    bits &= _TF32_BITS
    return out


def split_tf32(t: Tensor) -> tuple[Tensor, Tensor]:
    """Two terms of TF32, but for the last bit of the lower one."""
    upper = round_to_tf32(t, torch.empty_like(t))
    return upper, t - upper


def add_products(
    v: Tensor,
    w: Sequence[Tensor],
    z: Sequence[Tensor],
    split: Callable[[Tensor], Sequence[Tensor]] | None,
) -> None:
    """``v += sum(w) @ z``, z in slices of columns; if they are split, less two lower terms."""
    first = 0
    for part in z:
        to = v if len(z) == 1 else v[:, first : first + part.shape[1]]
        first += part.shape[1]
        terms = (part,) if split is None else split(part)
        for i, of in enumerate(w):
            for points in terms[: max(len(terms) - i, 1)]:
                add_product(to, of, points)


def add_product(v: Tensor, w: Tensor, z: Tensor) -> None:
    """``v += w @ z``, in place, and in the dtype of v whatever that of w and z.

    Autocast leaves products alone that say where their result is to go.
    """
    if w.dtype == v.dtype:
        v.addmm_(w, z)
    elif v.is_cuda and _adds_wider_products(w.dtype, v.device):
        torch.addmm(v, w, z, out_dtype=v.dtype, out=v)
    else:
        wide = z.to(v.dtype)
        rows = max(_SLICE_BYTES // (w.shape[1] * v.element_size()), 1)
        for part, of in zip(v.split(rows), w.split(rows), strict=True):
            part.addmm_(of.to(v.dtype), wide)


@functools.cache
def _adds_wider_products(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether torch adds a product of half matrices to a float32 one: 2.11 does, on CUDA."""
    v = torch.zeros((16, 16), dtype=torch.float32, device=device)
    w = torch.zeros((16, 16), dtype=dtype, device=device)
    try:
        torch.addmm(v, w, w, out_dtype=v.dtype, out=v)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, RuntimeError, NotImplementedError):
        return False
    return True


def check_devices(x: Tensor, *others: Tensor) -> None:
    """Raises a ValueError where a tensor of the kernel is on another device than x."""
    for t in others:
        if t.device != x.device:
            raise ValueError(
                f"the kernel's tensors must be on the device of x, {x.device}, got {t.device}:"
                " move the kernel with its method to()"
            )


def kernel_sum(x: Tensor, y: Tensor, widths: Sequence[int], arguments: tuple[Any, ...]) -> None:
    """``K(x, y) @ v``, and the factors ``scale / unit``, to where the arguments say."""
    _run_plain(module().KernelSum, x, y, widths, arguments)


def sign_forms(x: Tensor, y: Tensor, widths: Sequence[int], arguments: tuple[Any, ...]) -> None:
    """The forms of sign vectors, and the totals, to where the arguments say."""
    _run_plain(module().SignForms, x, y, widths, arguments)


def _run_plain(
    pass_of: Any, x: Tensor, y: Tensor, widths: Sequence[int], arguments: tuple[Any, ...]
) -> None:
    """A pass by the products of single threads."""
    operand = plain_operand(x.dtype)
    z = packed(len(x), len(y), widths, operand, x.device)
    native = pass_of(*arguments, _roads.SIMT, operand, [of.data_ptr() for of in z], *stream_of(x))
    scratch = torch.empty(native.workspace(), dtype=torch.uint8, device=x.device)
    native.run(scratch.data_ptr())


def plain_operand(dtype: torch.dtype) -> int:
    """Of the products of single threads, which lose nothing of the points."""
    return _roads.FLOAT64 if dtype == torch.float64 else _roads.FLOAT32
