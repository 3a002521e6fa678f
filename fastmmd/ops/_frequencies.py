"""Random frequencies for points of a dtype and device, as an operator that can be traced."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from fastmmd.checks import is_direct
from fastmmd.frequencies import STRUCTURED, Frequencies, block_of, draw
from fastmmd.ops._core import result_dtype


def frequencies(
    like: Tensor, family: int, shape: float, scheme: int, d: int, count: int, seed: int
) -> Frequencies:
    """:func:`fastmmd.frequencies.draw` for points like these, which a compiler can trace."""
    if is_direct(like):
        return _drawn(result_dtype(like), like.device, family, shape, scheme, d, count, seed)
    # No part of a batch, whatever `like` is of: what is drawn is the same for all of it.
    plain = torch.empty(0, dtype=result_dtype(like), device=like.device)
    w, signs, phases = torch.ops.fastmmd.frequencies(plain, family, shape, scheme, d, count, seed)
    return Frequencies(w, signs if signs.numel() else None, phases)


_kept: dict[tuple[Any, ...], Frequencies] = {}
_KEPT_NUMBERS = 1 << 22
_lock = threading.Lock()


def _drawn(
    dtype: torch.dtype,
    device: torch.device,
    family: int,
    shape: float,
    scheme: int,
    d: int,
    count: int,
    seed: int,
) -> Frequencies:
    """Those of the last calls, if they are not too many: a training loop asks for the same.

    On a GPU it would wait for a copy otherwise.
    """
    key = (dtype, device, family, shape, scheme, d, count, seed)
    with _lock:
        found = _kept.get(key)
    if found is None:
        with torch.inference_mode(False):  # they may be wanted for a gradient next
            found = _draw_in(dtype, family, shape, scheme, d, count, seed).to(device)
        if found.w.numel() <= _KEPT_NUMBERS:
            with _lock:
                while len(_kept) > 1:
                    del _kept[next(iter(_kept))]
                _kept[key] = found
    return found


def _draw_in(
    dtype: torch.dtype, family: int, shape: float, scheme: int, d: int, count: int, seed: int
) -> Frequencies:
    drawn = draw(family, shape, scheme, d, count, seed)
    return drawn if scheme == STRUCTURED else drawn._replace(w=drawn.w.to(dtype))


torch.library.define(
    "fastmmd::frequencies",
    "(Tensor like, int family, float shape, int scheme, SymInt d, SymInt count, int seed)"
    " -> (Tensor w, Tensor signs, Tensor phases)",
)


def _frequencies(
    like: Tensor, family: int, shape: float, scheme: int, d: int, count: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    # What an operator returns must be its own.
    w, signs, phases = _drawn(like.dtype, like.device, family, shape, scheme, d, count, seed)
    if signs is None:
        signs = torch.empty(0, dtype=torch.int8, device=like.device)
    return w.clone(), signs.clone(), phases.clone()


def _frequencies_fake(
    like: Tensor, family: int, shape: float, scheme: int, d: int, count: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    device = like.device
    phases = torch.empty(count, dtype=torch.float64, device=device)
    if scheme == STRUCTURED:
        width = block_of(scheme, d)
        signs = torch.empty((-(-count // width), 3, width), dtype=torch.int8, device=device)
        return torch.empty_like(phases), signs, phases
    w = torch.empty((count, d), dtype=like.dtype, device=device).T
    return w, torch.empty(0, dtype=torch.int8, device=device), phases


for _device in ("CPU", "CUDA"):
    torch.library.impl("fastmmd::frequencies", _device, _frequencies)
torch.library.register_fake("fastmmd::frequencies", _frequencies_fake)
