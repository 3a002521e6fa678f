"""What a batch of several domains has to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from fastmmd.dtypes import concatenated
from fastmmd.train.evaluation import inputs_and_labels

__all__ = [
    "Inputs",
    "TrainingBatch",
    "inputs_of",
    "joined",
    "labelled",
    "labelled_parts",
    "read_batch",
    "row_count",
]

Inputs = Tensor | Mapping[str, Tensor]


class TrainingBatch(NamedTuple):
    """A batch of a training, checked."""

    sources: list[tuple[Inputs, Tensor]]
    target: Inputs | None  # None where it is not to be looked at
    labelled: tuple[Inputs, Tensor] | None  # a few target samples whose labels are known


def read_batch(batch: Any, target: bool = True) -> TrainingBatch:
    """A batch ``{"source": ..., "target": ..., "target_labelled": ...}`` as its parts.

    Args:
        batch: ``"source"`` is a pair ``(inputs, labels)`` or a list of such pairs, ``"target"`` is
            inputs or a sequence that begins with them, ``"target_labelled"`` is a pair and may be
            left out.
        target: Whether the unlabelled target is looked at.

    Raises:
        ValueError: No such batch, one without labels, an empty one, or None where a loader has
            ended.
    """
    if not isinstance(batch, Mapping) or "source" not in batch:
        what = f"keys {', '.join(map(repr, batch))}" if isinstance(batch, Mapping) else type(batch)
        raise ValueError(f'a training batch must be {{"source": ..., "target": ...}}; got {what}')
    pairs = {name: _labelled_pair(name, pair) for name, pair in _pairs_of(batch).items()}
    labelled = pairs.pop("target_labelled", None)
    sources = list(pairs.values())
    if not target:
        return TrainingBatch(sources, None, labelled)
    if "target" not in batch:
        raise ValueError("a training batch must have a target; the batch has a source alone")
    _check_there("target", batch["target"])
    inputs = inputs_of(batch["target"])
    _check_rows("target", inputs)
    return TrainingBatch(sources, inputs, labelled)


def inputs_of(batch: Any) -> Inputs:
    """The inputs of a batch that is either them alone or a sequence that begins with them."""
    return batch if isinstance(batch, Tensor | Mapping) else batch[0]


def labelled(batch: Any) -> tuple[Inputs, Any]:
    """Inputs and labels, whatever these are, of a batch; None for labels if it has none.

    Args:
        batch: ``(inputs, labels)``, inputs alone, or one of several domains: then it is the
            sources, one after the other, and after them the labelled part of the target.

    Raises:
        ValueError: A domain's part has no labels, or its loader has ended.
    """
    if not (isinstance(batch, Mapping) and "source" in batch):
        return inputs_and_labels(batch)
    pairs = [_pair(name, pair) for name, pair in _pairs_of(batch).items()]
    return joined([pair[0] for pair in pairs]), joined([pair[1] for pair in pairs])


def labelled_parts(loader: Any) -> list[Any]:
    """The loaders of samples with labels, of a loader or of a combination of them by domain."""
    loaders = getattr(loader, "iterables", loader)
    if not isinstance(loaders, Mapping):
        return [loaders]
    several = loaders.get("source", [])
    parts = list(several) if isinstance(several, list | tuple) else [several]
    return parts + [loaders[name] for name in ("target_labelled",) if name in loaders]


def row_count(inputs: Inputs) -> int:
    """The number of samples."""
    return len(inputs) if isinstance(inputs, Tensor) else len(next(iter(inputs.values()), ()))


def joined(parts: Sequence[Inputs]) -> Inputs:
    """The inputs of several domains as one batch.

    Raises:
        ValueError: Their shapes or keys differ.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Tensor):
        if len({(t.shape[1:], t.dtype) for t in parts}) > 1:  # type: ignore[union-attr]
            shapes = " and ".join(f"{list(t.shape)} of {t.dtype}" for t in parts)  # type: ignore[union-attr]
            raise ValueError(
                "target_forward='joint' needs inputs of one shape and dtype in all domains, got"
                f" {shapes}; 'separate' does not"
            )
        return concatenated(parts)  # type: ignore[arg-type]
    keys = list(first)
    if any(set(part) != set(keys) for part in parts):
        raise ValueError(
            f"the inputs of all domains must have the same keys, got {[list(p) for p in parts]}"
        )
    return {key: joined([part[key] for part in parts]) for key in keys}  # type: ignore


def _pairs_of(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What has labels in a batch of several domains: the sources, then ``"target_labelled"``."""
    source = batch["source"]
    several = (
        isinstance(source, Sequence)
        and len(source) > 0
        and (source[0] is None or isinstance(source[0], Sequence))
    )
    pairs = {f"source {i}": p for i, p in enumerate(source)} if several else {"source": source}
    return pairs | {name: batch[name] for name in ("target_labelled",) if name in batch}


def _pair(name: str, pair: Any) -> Sequence[Any]:
    _check_there(name, pair)
    if not isinstance(pair, Sequence) or len(pair) < 2:
        raise ValueError(f"a batch of {name} must be (inputs, labels); got inputs alone")
    return pair


def _check_there(name: str, part: Any) -> None:
    if part is None:
        raise ValueError(
            f"the loader of {name} ended before the others: combine the loaders with"
            " mode='max_size_cycle', which starts it again, or 'min_size'"
        )


def _check_rows(name: str, inputs: Any) -> None:
    if not isinstance(inputs, Tensor | Mapping):
        raise ValueError(
            f"the inputs of {name} must be a tensor or a mapping of tensors,"
            f" got {type(inputs).__name__}"
        )
    if row_count(inputs) == 0:
        raise ValueError(f"the batch of {name} must not be empty, got no samples")


def _labelled_pair(name: str, pair: Any) -> tuple[Inputs, Tensor]:
    inputs, labels = _pair(name, pair)[:2]
    _check_rows(name, inputs)
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.ndim != 1:
        got = f"{labels.dtype}, {list(labels.shape)}" if isinstance(labels, Tensor) else labels
        raise ValueError(f"the labels of {name} must be an integer tensor [n], got {got}")
    if len(labels) != row_count(inputs):
        raise ValueError(
            f"{name} must have a label for each sample, got {row_count(inputs)} samples and"
            f" {len(labels)} labels"
        )
    return inputs, labels
