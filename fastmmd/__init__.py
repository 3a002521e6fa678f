"""Maximum Mean Discrepancy, its gradients and losses, without the kernel matrix.

>>> import torch
>>> import fastmmd as fm
>>> loss = fm.MMDLoss(fm.Gaussian("mean"))
>>> float(loss(torch.ones(4, 2), torch.ones(3, 2)))
0.0
"""

from fastmmd.functional import mmd2
from fastmmd.kernels import Energy, Gaussian, Kernel, Laplacian, Scaled, Sum
from fastmmd.losses import MMDLoss

__all__ = ["Energy", "Gaussian", "Kernel", "Laplacian", "MMDLoss", "Scaled", "Sum", "mmd2"]


def __getattr__(name: str) -> str:
    if name == "__version__":
        # Imported on demand: reading package metadata is a good part of an import of this package.
        from importlib.metadata import version

        return version("fastmmd")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
