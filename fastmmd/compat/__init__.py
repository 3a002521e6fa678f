"""Drop-ins for the MMD losses of other libraries: same constructor, same call, same number.

Each module replaces one import line:

- :mod:`fastmmd.compat.tllib`: TLlib, the Transfer Learning Library (DAN, JAN, Deep CORAL);
- :mod:`fastmmd.compat.deepda`: DeepDA, DSAN and the many copies of their losses;
- :mod:`fastmmd.compat.pytorch_adapt`: pytorch-adapt;
- :mod:`fastmmd.compat.geomloss`: the kernel losses of geomloss;
- :mod:`fastmmd.compat.torchmetrics`: metrics that accumulate and sync, as those of torchmetrics.

What the originals do wrong stands in the docstrings, and ``corrected=True`` mends it. None of them
needs the library that it replaces, but for the last, which needs torchmetrics.
"""

from types import ModuleType

from fastmmd.compat import deepda, geomloss, pytorch_adapt, tllib

__all__ = ["deepda", "geomloss", "pytorch_adapt", "tllib", "torchmetrics"]


def __getattr__(name: str) -> ModuleType:
    if name == "torchmetrics":  # it takes seconds, and an extra
        from importlib import import_module

        return import_module("fastmmd.compat.torchmetrics")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
