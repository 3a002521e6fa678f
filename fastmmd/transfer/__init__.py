"""Closed-form transfer learning: estimators in the manner of scikit-learn, computing with torch.

NumPy arrays and tensors go in, and the like comes out. Rows of both domains stand in one X, and
``sample_domain`` says whose they are: integers, >= 0 for the source, < 0 for the target, as in
skada. Needs the extra ``transfer``.
"""

from __future__ import annotations

from fastmmd._extras import require_extra

require_extra("fastmmd.transfer", "transfer", "sklearn", "scipy")

from fastmmd.directions import MeanDifferenceProjection  # noqa: E402
from fastmmd.transfer._components import (  # noqa: E402
    JointDistributionAdaptation,
    TransferComponentAnalysis,
)
from fastmmd.transfer._mapping import FeatureAugmentation, LinearMapping  # noqa: E402
from fastmmd.transfer._matching import FeatureMatcher  # noqa: E402
from fastmmd.transfer._moments import CORAL, SubspaceAlignment  # noqa: E402
from fastmmd.transfer._weights import InstanceSelector, KernelMeanMatching  # noqa: E402

__all__ = [
    "CORAL",
    "FeatureAugmentation",
    "FeatureMatcher",
    "InstanceSelector",
    "JointDistributionAdaptation",
    "KernelMeanMatching",
    "LinearMapping",
    "MeanDifferenceProjection",
    "SubspaceAlignment",
    "TransferComponentAnalysis",
]
