"""The passes of random features on a GPU: memory, the road, and the matrix products of panels.

As in :mod:`fastmmd.ops._cuda`, nothing here waits for the device.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from fastmmd.ops import _cuda, _roads
from fastmmd.ops._core import address, result_dtype
from fastmmd.ops._roads import Road

# The road of a pass.
choose = functools.lru_cache(maxsize=1024)(_roads.feature_road)


def _road(x: Tensor, signs: Tensor | None, *others: Tensor | None) -> Road:
    for t in (signs, *others):
        if t is not None and t.device != x.device:
            raise ValueError(
                f"weights, frequencies, phases and rates must be on the device of x, {x.device},"
                f" got {t.device}"
            )
    width = 0 if signs is None else signs.shape[2]
    device = _cuda.device_of(_cuda.stream_of(x)[1])
    return choose(x.dtype, _roads.precision(), device, width)


def _packed(x: Tensor, count: int, road: Road) -> Tensor | None:
    """Room for the packed points and frequencies."""
    if road.mode == _roads.TRANSFORMS:
        return None
    return _cuda.packed(len(x), count, x.shape[1:], road.operand, x.device)[0]


def sums(
    x: Tensor,
    masses: Tensor | None,
    frequencies: Tensor,
    signs: Tensor | None,
    rates: Tensor,
    arguments: dict[str, Any],
    moments: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums, the centre of the points, and its products with the frequencies.

    ``arguments`` are the others as the native side takes them.
    """
    road, count, device = (
        _road(x, signs, masses, frequencies, rates),
        frequencies.shape[-1],
        x.device,
    )
    options: Any = {"dtype": torch.float64, "device": device}
    # Any point among the others would do.
    center = x.detach().mean(0, dtype=result_dtype(x)).double()
    shifts = torch.empty(count, **options)
    made = torch.empty((4 if moments else 2, len(rates), count), **options)
    z = _packed(x, count, road)
    native = _cuda.module().FeatureSums(
        **arguments,
        moments=moments,
        center=center.data_ptr(),
        shifts=shifts.data_ptr(),
        sums=made.data_ptr(),
        products=road.products,
        operand=road.operand,
        z=address(z),
        **_place(x),
    )
    scratch = torch.empty(native.workspace(), dtype=torch.uint8, device=device)
    native.run(scratch.data_ptr())
    return made, center, shifts


def gradients(
    x: Tensor,
    masses: Tensor | None,
    frequencies: Tensor,
    signs: Tensor | None,
    rates: Tensor,
    arguments: dict[str, Any],
    center: Tensor,
    p: Tensor,
    q: Tensor,
    v_x: Tensor | None,
    v_masses: Tensor | None,
    v_frequencies: Tensor | None,
) -> None:
    """Fills the gradients that are not None, v_frequencies of the points less their centre."""
    road = _road(x, signs, masses, frequencies, rates, center, p, q)
    (n, d), count, device = x.shape, frequencies.shape[-1], x.device
    z = _packed(x, count, road)
    native = _cuda.module().FeatureGradients(
        **arguments,
        center=center.data_ptr(),
        p=p.data_ptr(),
        q=q.data_ptr(),
        v_x=address(v_x),
        v_weights=address(v_masses),
        products=road.products,
        operand=road.operand,
        z=address(z),
        **_place(x),
    )
    if z is None:
        scratch = torch.empty(native.workspace(), dtype=torch.uint8, device=device)
        native.set_workspace(scratch.data_ptr())
        native.all()
        return
    for v in (v_x, v_masses, v_frequencies):
        if v is not None:
            v.zero_()
    pieces = _roads.feature_panels(n, count, road.panel_rows)
    _, most, _, columns = max(pieces, key=lambda piece: piece[1] * piece[3])
    room = torch.empty(most * columns, dtype=z.dtype, device=device)
    scratch = torch.empty(native.workspace(most, columns), dtype=torch.uint8, device=device)
    native.set_workspace(scratch.data_ptr())
    native.begin()
    first = _roads.round_up(n, _roads.BLOCK_ROWS)  # the packed row of the first frequency
    for row, rows, column, columns in pieces:
        w = room[: rows * columns].view(rows, columns)
        native.panel(row, rows, column, columns, w.data_ptr())
        if v_x is not None:
            to = v_x[column : column + columns]
            _cuda.add_product(to, w[:, : len(to)].T, z[row : row + rows, :d])
        if v_frequencies is not None:
            to = v_frequencies[row - first : row - first + rows]
            _cuda.add_product(to, w[: len(to)], z[column : column + columns, :d])


def _place(x: Tensor) -> dict[str, int]:
    stream, device = _cuda.stream_of(x)
    return {"stream": stream, "device": device}
