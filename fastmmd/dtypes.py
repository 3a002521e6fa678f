"""Floating dtypes beside those of autocast."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["concatenated"]


def concatenated(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """``torch.cat`` of tensors of one dtype, which they keep under autocast, too.

    Autocast promotes what ``torch.cat`` is given to the widest dtype, and refuses bfloat16 beside
    its own float16, or float16 beside its own bfloat16, even where all tensors are of it.
    """
    device = tensors[0].device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return torch.cat(list(tensors), dim)
    return torch.cat(list(tensors), dim)
