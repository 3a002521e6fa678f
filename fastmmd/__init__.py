"""Maximum Mean Discrepancy, its gradients and losses, without the kernel matrix.

>>> import torch
>>> import fastmmd as fm
>>> loss = fm.MMDLoss(fm.Gaussian("mean"))
>>> float(loss(torch.ones(4, 2), torch.ones(3, 2)))
0.0
"""

from typing import TYPE_CHECKING, Any

from fastmmd.classwise import class_conditional_mmd2, local_mmd2
from fastmmd.correlation import coral
from fastmmd.directions import MeanDifferenceProjection
from fastmmd.functional import (
    contributions,
    energy_distance,
    kernel_sum,
    mmd2,
    witness,
)
from fastmmd.joint import joint_mmd2
from fastmmd.kernels import (
    Cosine,
    Energy,
    Gaussian,
    InverseMultiquadric,
    Kernel,
    Laplacian,
    Linear,
    Matern,
    Polynomial,
    RationalQuadratic,
    Scaled,
    Sum,
)
from fastmmd.losses import (
    ClassConditionalMMDLoss,
    CORALLoss,
    EnergyDistanceLoss,
    JointMMDLoss,
    LocalMMDLoss,
    MMDLoss,
)
from fastmmd.parameters import Learnable, RunningBandwidth
from fastmmd.power import mmd2_variance, power_criterion
from fastmmd.projected import ProjectedMMDLoss, projected_mmd2
from fastmmd.random_features import RandomFeatureMMDLoss, random_feature_mmd2
from fastmmd.sliced import SlicedMMDLoss, sliced_mmd2

if TYPE_CHECKING:
    from fastmmd import compat, stats
    from fastmmd.sketch import MeanEmbedding
    from fastmmd.stats import two_sample_test

__all__ = [
    "CORALLoss",
    "ClassConditionalMMDLoss",
    "Cosine",
    "Energy",
    "EnergyDistanceLoss",
    "Gaussian",
    "InverseMultiquadric",
    "JointMMDLoss",
    "Kernel",
    "Laplacian",
    "Learnable",
    "Linear",
    "LocalMMDLoss",
    "MMDLoss",
    "Matern",
    "MeanDifferenceProjection",
    "MeanEmbedding",
    "Polynomial",
    "ProjectedMMDLoss",
    "RandomFeatureMMDLoss",
    "RationalQuadratic",
    "RunningBandwidth",
    "Scaled",
    "SlicedMMDLoss",
    "Sum",
    "class_conditional_mmd2",
    "compat",
    "contributions",
    "coral",
    "energy_distance",
    "joint_mmd2",
    "kernel_sum",
    "local_mmd2",
    "mmd2",
    "mmd2_variance",
    "power_criterion",
    "projected_mmd2",
    "random_feature_mmd2",
    "sliced_mmd2",
    "stats",
    "two_sample_test",
    "witness",
]

# Imported when first asked for: what a training loop does without must not slow its start.
_MODULES = ("compat", "stats")
_MEMBERS = {"MeanEmbedding": "sketch", "two_sample_test": "stats"}


def __getattr__(name: str) -> Any:
    from importlib import import_module, metadata

    if name == "__version__":
        return metadata.version("fastmmd")
    if name in _MODULES:
        return import_module(f"fastmmd.{name}")
    if name in _MEMBERS:
        value = getattr(import_module(f"fastmmd.{_MEMBERS[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
