"""Networks that a configuration file can write down."""

from __future__ import annotations

from torch import nn

__all__ = ["Stack"]


class Stack(nn.Sequential):
    """``nn.Sequential`` of a list: what a configuration file can say, which names its arguments.

    Args:
        layers: Modules, applied in this order.

    Example:
        >>> Stack([nn.Flatten(), nn.Linear(4, 2)])(torch.zeros(3, 2, 2)).shape
        torch.Size([3, 2])
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__(*layers)
