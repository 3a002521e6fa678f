"""Pretrained networks as maps from inputs to features, whatever library they come from."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fastmmd._extras import MissingExtraError
from fastmmd.train.batches import Inputs
from fastmmd.train.evaluation import evaluating

__all__ = [
    "Inputs",
    "Pooled",
    "Pooling",
    "feature_width",
    "load_backbone",
    "pooled",
    "remove_last_layer",
]

Pooling = Literal["mean", "cls"]

LIBRARIES = ("torchvision", "timm", "transformers")


class Pooled(nn.Module):
    """A network whose output, of whatever shape, becomes one row of features per sample.

    ========================  ================================================================
    output of the network     features
    ========================  ================================================================
    [n, d]                    as it is
    [n, d, height, width]     mean over positions
    [n, t, d]                 ``"mean"`` over the t tokens, or the first token with ``"cls"``
    with last_hidden_state    that tensor [n, t, d]; its mean leaves out what the inputs'
                              ``attention_mask`` masks
    ========================  ================================================================

    Args:
        model: Called as ``model(inputs)``, and as ``model(**inputs)`` if the inputs are a mapping
            and the network is one of transformers.
        pooling: ``"mean"`` or ``"cls"``.

    Raises:
        ValueError: ``pooling`` is unknown, or the output has none of these shapes.

    Example:
        >>> Pooled(nn.Conv2d(3, 8, 3))(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 8])
    """

    def __init__(self, model: nn.Module, pooling: Pooling = "mean") -> None:
        super().__init__()
        if pooling not in get_args(Pooling):
            raise ValueError(
                f"pooling must be one of {', '.join(get_args(Pooling))}; got {pooling!r}"
            )
        self.model = model
        self.pooling = pooling

    def forward(self, inputs: Inputs) -> Tensor:
        """Features [n, d] of inputs."""
        return pooled(self.model, inputs, self.pooling)


def pooled(model: nn.Module, inputs: Inputs, pooling: Pooling = "mean") -> Tensor:
    """Features [n, d] of inputs: what :class:`Pooled` returns."""
    by_name = isinstance(inputs, Mapping) and _is_transformer(model)
    output = model(**inputs) if by_name else model(inputs)  # type: ignore[arg-type]
    output = getattr(output, "last_hidden_state", output)
    if not isinstance(output, Tensor) or output.dim() not in (2, 3, 4):
        what = f"{list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            "the output of the backbone must be a tensor [n, d], [n, t, d] or"
            f" [n, d, height, width], or have a last_hidden_state; got {what}"
        )
    if output.dim() == 4:
        return output.mean(dim=(2, 3))
    if output.dim() == 2:
        return output
    if pooling == "cls":
        return output[:, 0]
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if mask is None:
        return output.mean(dim=1)
    kept = mask.to(output).unsqueeze(-1)
    return (output * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)


def load_backbone(name: str, *, pretrained: bool = True, **options: Any) -> nn.Module:
    """A network by name, without its last layer, so that its output is features.

    The library is imported here and nowhere else.

    Args:
        name: ``"torchvision:resnet18"``, ``"timm:vit_small_patch16_224"``, or
            ``"transformers:PATH"`` with a folder or a name of the Hugging Face hub.
        pretrained: With its published weights (torchvision: ``weights="DEFAULT"``), or random ones.
        **options: To ``torchvision.models.get_model``, ``timm.create_model`` or
            ``transformers.AutoModel.from_pretrained`` (``from_config`` if not pretrained).

    Raises:
        ValueError: The name has no such prefix.
        MissingExtraError: The library is not installed, or does not import.
    """
    library, colon, model = name.partition(":")
    if not colon or library not in LIBRARIES or not model:
        forms = ", ".join(f"{prefix}:NAME" for prefix in LIBRARIES)
        raise ValueError(f"a backbone's name is one of {forms}; got {name!r}")
    if find_spec(library) is None:
        raise MissingExtraError(
            f"the backbone {name!r} needs {library}, which is not installed: pip install {library}"
        )
    try:
        module = import_module(f"{library}.models" if library == "torchvision" else library)
    except (ImportError, RuntimeError) as error:  # built for another torch
        raise MissingExtraError(
            f"the backbone {name!r} needs {library}, which does not import ({error}): install the"
            f" build of {library} that belongs to torch {torch.__version__}"
        ) from error
    if library == "timm":
        return module.create_model(model, pretrained=pretrained, num_classes=0, **options)
    if library == "torchvision":
        weights = "DEFAULT" if pretrained else None
        network = module.get_model(model, **{"weights": weights, **options})
        network.num_features = remove_last_layer(network)  # as timm's have it
        return network
    if pretrained:
        return Pooled(module.AutoModel.from_pretrained(model, **options))
    config = module.AutoConfig.from_pretrained(model)
    return Pooled(module.AutoModel.from_config(config, **options))


def remove_last_layer(backbone: nn.Module, name: str | None = None) -> int:
    """Puts ``nn.Identity`` in the place of the last linear layer, in place.

    Args:
        backbone: A classifier.
        name: Of the layer, as ``named_modules`` has it (``"fc"``, ``"classifier.6"``). Default: the
            linear layer that was registered last.

    Returns:
        The width of the layer's input: that of the features.

    Raises:
        ValueError: There is no such layer, or it is not linear.
    """
    linear = [n for n, module in backbone.named_modules() if n and isinstance(module, nn.Linear)]
    if name is None and not linear:
        raise ValueError("the backbone has no linear layer that could be its last")
    name = linear[-1] if name is None else name
    if name not in linear:
        raise ValueError(f"the backbone has no linear layer {name!r}; it has {', '.join(linear)}")
    parent, _, last = name.rpartition(".")
    holder = backbone.get_submodule(parent)
    width: int = getattr(holder, last).in_features
    setattr(holder, last, nn.Identity())
    return width


def feature_width(
    backbone: nn.Module, example_inputs: Inputs | None = None, pooling: Pooling = "mean"
) -> int:
    """Width d of the features: by a forward pass of examples, or as the network states it.

    Args:
        backbone: As :class:`Pooled` takes it.
        example_inputs: A batch to try; its pass leaves no trace (eval mode, no gradient).
        pooling: As :class:`Pooled` takes it.

    Raises:
        ValueError: There are no examples, and the network has neither ``num_features`` (timm) nor
            ``config.hidden_size`` (transformers).
    """
    if example_inputs is not None:
        with evaluating(backbone):
            return int(pooled(backbone, example_inputs, pooling).shape[1])
    model = backbone.model if isinstance(backbone, Pooled) else backbone
    for stated in (model, getattr(model, "config", None)):
        for attribute in ("num_features", "hidden_size"):
            if isinstance(getattr(stated, attribute, None), int):
                return int(getattr(stated, attribute))
    raise ValueError(
        "the width of the backbone's features is not known: give in_features, example_inputs for a"
        " trial pass, or replace, the name of its last layer"
    )


def _is_transformer(model: nn.Module) -> bool:
    library = sys.modules.get("transformers")
    return library is not None and isinstance(model, library.PreTrainedModel)
