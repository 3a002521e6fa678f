"""Outputs of modules inside a network, by their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

__all__ = ["check_layers", "kept_outputs", "rows_of"]


def check_layers(module: nn.Module, layers: Sequence[str]) -> list[str]:
    """The names, if all are those of submodules.

    Raises:
        TypeError: A string in place of a sequence.
        ValueError: A name that no submodule has.
    """
    if isinstance(layers, str):
        raise TypeError(f"layers must be a sequence of names, got the string {layers!r}")
    known = dict(module.named_modules())
    for name in layers:
        if name not in known or not name:
            tops = ", ".join(n for n in known if n.count(".") < 2 and n)
            raise ValueError(f"layers must be names of modules, such as {tops}; got {name!r}")
    return list(layers)


@contextmanager
def kept_outputs(module: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The outputs of those submodules in the forward pass that is made meanwhile, by name."""
    found: dict[str, Any] = {}

    def keep(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        found[name] = output

    handles = [
        module.get_submodule(name).register_forward_hook(partial(keep, name)) for name in layers
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def rows_of(found: dict[str, Any], layers: Sequence[str], samples: int) -> dict[str, Tensor]:
    """Those outputs as rows [n, d_l], one for each of n samples.

    Raises:
        TypeError: An output is no tensor.
        ValueError: A submodule was not called, or has not one row for each sample.
    """
    rows = {}
    for name in layers:
        if name not in found:
            raise ValueError(f"layers: the network does not call its module {name!r}")
        output = found[name]
        if not isinstance(output, Tensor):
            kind = type(output).__name__
            raise TypeError(f"layers: the output of {name!r} must be a tensor, got {kind}")
        if output.ndim == 0 or len(output) != samples:
            raise ValueError(
                f"layers: {name!r} gives {list(output.shape)} for {samples} samples; it must give"
                " one row for each"
            )
        rows[name] = output.reshape(samples, -1)
    return rows
