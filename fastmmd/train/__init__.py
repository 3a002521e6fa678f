"""Transfer learning with Lightning: fine-tuning, domain alignment, and data modules for both.

Lightning runs the loop, so devices, precision, strategies, checkpoints and loggers are those of
``lightning.Trainer``. Needs the extra ``train``.
"""

from __future__ import annotations

from fastmmd._extras import require_extra

require_extra("fastmmd.train", "train", "lightning", "torchmetrics")

from fastmmd.train.adversarial import (  # noqa: E402
    AdversarialAlignment,
    ConditionalAdversarialAlignment,
)
from fastmmd.train.aligner import Aligner  # noqa: E402
from fastmmd.train.alignments import (  # noqa: E402
    Activations,
    Alignment,
    ClassConditionalAlignment,
    JointAlignment,
    LayerwiseAlignment,
    LocalAlignment,
)
from fastmmd.train.backbones import Pooled, load_backbone, remove_last_layer  # noqa: E402
from fastmmd.train.balance import (  # noqa: E402
    BalancedSampler,
    balanced_class_weights,
    labels_of,
)
from fastmmd.train.data import DomainPair  # noqa: E402
from fastmmd.train.datasets import (  # noqa: E402
    Digits,
    DomainData,
    ImageFolders,
    ImageTransform,
    Samples,
    Tables,
    Texts,
)
from fastmmd.train.distillation import L2SP, Distillation, distillation_loss  # noqa: E402
from fastmmd.train.distributed import global_discrepancy  # noqa: E402
from fastmmd.train.evaluation import Outputs, collect  # noqa: E402
from fastmmd.train.finetuner import FineTuner  # noqa: E402
from fastmmd.train.freezing import GradualUnfreezing, Stages  # noqa: E402
from fastmmd.train.guard import TransferGuard  # noqa: E402
from fastmmd.train.history import LayerHistory, layer_distances  # noqa: E402
from fastmmd.train.networks import Stack  # noqa: E402
from fastmmd.train.report import WriteReport, report  # noqa: E402
from fastmmd.train.schedule import alignment_weight  # noqa: E402
from fastmmd.train.sections import scores  # noqa: E402
from fastmmd.train.shuffling import EpochSeed, EpochShuffle  # noqa: E402
from fastmmd.train.tasks import Task  # noqa: E402
from fastmmd.train.validators import (  # noqa: E402
    VALIDATORS,
    Ranking,
    Validator,
    density_ratio,
    diversity,
    importance_weighted_risk,
    information_maximization,
    rank,
    soft_neighborhood_density,
    source_risk,
    target_entropy,
)
from fastmmd.train.verdict import Evidence, Verdict, judge  # noqa: E402

__all__ = [
    "L2SP",
    "VALIDATORS",
    "Activations",
    "AdversarialAlignment",
    "Aligner",
    "Alignment",
    "BalancedSampler",
    "ClassConditionalAlignment",
    "ConditionalAdversarialAlignment",
    "Digits",
    "Distillation",
    "DomainData",
    "DomainPair",
    "EpochSeed",
    "EpochShuffle",
    "Evidence",
    "FineTuner",
    "GradualUnfreezing",
    "ImageFolders",
    "ImageTransform",
    "JointAlignment",
    "LayerHistory",
    "LayerwiseAlignment",
    "LocalAlignment",
    "Outputs",
    "Pooled",
    "Ranking",
    "Samples",
    "Stack",
    "Stages",
    "Tables",
    "Task",
    "Texts",
    "TransferGuard",
    "Validator",
    "Verdict",
    "WriteReport",
    "alignment_weight",
    "balanced_class_weights",
    "collect",
    "density_ratio",
    "distillation_loss",
    "diversity",
    "global_discrepancy",
    "importance_weighted_risk",
    "information_maximization",
    "judge",
    "labels_of",
    "layer_distances",
    "load_backbone",
    "rank",
    "remove_last_layer",
    "report",
    "scores",
    "soft_neighborhood_density",
    "source_risk",
    "target_entropy",
]
