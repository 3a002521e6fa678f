"""Which part of a pretrained network trains, from which epoch on, and how fast."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import lightning as L
from lightning.pytorch.callbacks import BackboneFinetuning
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

if TYPE_CHECKING:
    from fastmmd.train.finetuner import FineTuner

__all__ = ["GradualUnfreezing", "Stages"]

Frozen = int | Literal["all"] | Sequence[str]


class Stages:
    """The consecutive parts of a network, from its input to its features.

    By default these are its child modules that have parameters. A child that only wraps one other
    module stands for that one, and the entries of a ``ModuleList`` are stages each, so a
    transformer's blocks are. What belongs to no stage, such as a class token, counts as the first.

    Args:
        backbone: The network.
        prefixes: Names of its submodules in the order of the forward pass, a stage each; several
            names together may make one stage.

    Attributes:
        names: Of the stages.

    Raises:
        ValueError: A prefix names nothing, or the network has no parameters.

    Example:
        >>> Stages(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))).names
        ('0', '2')
    """

    def __init__(
        self, backbone: nn.Module, prefixes: Sequence[str | Sequence[str]] | None = None
    ) -> None:
        self.backbone = backbone
        if prefixes is None:
            parts: list[tuple[str, ...]] = [(name,) for name in _children(backbone, "")]
        else:
            parts = [(part,) if isinstance(part, str) else tuple(part) for part in prefixes]
            known = dict(backbone.named_modules())
            for prefix in (name for part in parts for name in part):
                if prefix not in known:
                    raise ValueError(f"stages: the backbone has no submodule {prefix!r}")
        self.names = tuple("+".join(part) for part in parts) or ("backbone",)
        self._stage = {prefix: i for i, part in enumerate(parts) for prefix in part}

    def __len__(self) -> int:
        return len(self.names)

    def of(self, name: str) -> int:
        """Number of the stage, from 0, of a parameter or submodule of the network."""
        while name:
            if name in self._stage:
                return self._stage[name]
            name = name.rpartition(".")[0]
        return 0

    def parameters(self, stage: int) -> list[nn.Parameter]:
        """The parameters of a stage."""
        return [p for name, p in self.backbone.named_parameters() if self.of(name) == stage]

    def numbers(self, frozen: Frozen) -> set[int]:
        """The stages that are meant: the first k, ``"all"``, or those of given names.

        Raises:
            ValueError: There are fewer, or no such name.
        """
        if frozen == "all":
            return set(range(len(self)))
        if isinstance(frozen, int):
            if not 0 <= frozen <= len(self):
                raise ValueError(
                    f"freeze must lie between 0 and the {len(self)} stages of the backbone"
                    f" ({', '.join(self.names)}); got {frozen}"
                )
            return set(range(frozen))
        names = [frozen] if isinstance(frozen, str) else list(frozen)
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise ValueError(
                f"freeze: there is no stage {unknown[0]!r}; there are {', '.join(self.names)}"
            )
        return {self.names.index(name) for name in names}

    def batch_norms(self, stages: set[int]) -> Iterator[_BatchNorm]:
        """The batch normalisations of some stages."""
        for name, module in self.backbone.named_modules():
            if isinstance(module, _BatchNorm) and self.of(name) in stages:
                yield module


def _children(module: nn.Module, prefix: str) -> list[str]:
    """Names of the children with parameters; of lists, and of what wraps one, what is in them."""
    children = [
        (prefix + name, child)
        for name, child in module.named_children()
        if next(child.parameters(), None) is not None
    ]
    names: list[str] = []
    for name, child in children:
        alone = len(children) == 1
        inner = list(child.children())
        listed = isinstance(child, nn.ModuleList) or (
            len(inner) == 1 and isinstance(inner[0], nn.ModuleList) and not child._parameters
        )
        names += (_children(child, name + ".") if inner and (alone or listed) else []) or [name]
    return names


class GradualUnfreezing(BackboneFinetuning):
    """Unfreezes the backbone of a :class:`~fastmmd.train.FineTuner` stage by stage, from the top.

    The head trains from the start; the last stage joins at the epoch ``unfreeze_backbone_at_epoch``
    and each ``every`` epochs later the one below (Howard and Ruder, "Universal Language Model
    Fine-tuning for Text Classification", ACL 2018). Stages that the FineTuner itself freezes stay
    frozen.

    It is Lightning's ``BackboneFinetuning`` but for two things. All parameter groups are in the
    optimiser from the start, those of frozen stages without gradients, so they keep the rates that
    ``layer_decay`` and a scheduler give them (a group that is added later breaks torch's
    schedulers). What trains is a function of the epoch alone, so a run that resumes from a
    checkpoint trains what it did.

    With DDP, take ``strategy="ddp_find_unused_parameters_true"``: a parameter that is frozen when
    the processes meet would never be averaged, and so freezing waits until they have.

    Args:
        unfreeze_backbone_at_epoch: When the last stage starts to train.
        every: Epochs from one stage to the next; 0 unfreezes all at once.

    Raises:
        ValueError: A number is negative, or DDP runs without looking for unused parameters.
        TypeError: The module has no stages.
    """

    def __init__(self, unfreeze_backbone_at_epoch: int = 1, every: int = 1) -> None:
        for name, value in (
            ("unfreeze_backbone_at_epoch", unfreeze_backbone_at_epoch),
            ("every", every),
        ):
            if value < 0:
                raise ValueError(f"{name} must not be negative; got {value!r}")
        super().__init__(unfreeze_backbone_at_epoch=unfreeze_backbone_at_epoch)
        self.every = every

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the epoch says it all."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes nothing."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Looks whether module and strategy fit; freezes nothing yet."""
        if not isinstance(getattr(pl_module, "stages", None), Stages):
            raise TypeError(
                f"GradualUnfreezing needs a module with stages, such as FineTuner; got"
                f" {type(pl_module).__name__}"
            )
        strategy = trainer.strategy
        if isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get(
            "find_unused_parameters"
        ):
            raise ValueError(
                "GradualUnfreezing with DDP needs strategy='ddp_find_unused_parameters_true'"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Freezes what the epoch, which may be one to resume, does not train."""
        self._apply(pl_module, trainer.current_epoch)

    def finetune_function(
        self, pl_module: L.LightningModule, epoch: int, optimizer: Optimizer
    ) -> None:
        """Lightning's hook of an epoch's start."""
        self._apply(pl_module, epoch)

    def _apply(self, pl_module: Any, epoch: int) -> None:
        module: FineTuner = pl_module
        waited = epoch - self.unfreeze_backbone_at_epoch
        if waited < 0:
            trained = 0
        elif self.every == 0:
            trained = len(module.stages)
        else:
            trained = 1 + waited // self.every
        module.set_frozen(set(range(len(module.stages) - trained)) | module.always_frozen)
