"""Predictions as a file: a table for people and spreadsheets, or arrays."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmmd.compare.reading import InputError
from fastmmd.train.tasks import Kind

__all__ = ["check_name", "write_predictions"]

_ENDINGS = (".csv", ".npz")


def check_name(path: str | os.PathLike[str]) -> None:
    """Checks that the name of a file says how it is to be written.

    Raises:
        InputError: It ends neither in .csv nor in .npz.
    """
    if Path(path).suffix not in _ENDINGS:
        raise InputError(f"--output {str(path)!r} must end in {' or '.join(_ENDINGS)}")


def write_predictions(
    path: Path,
    batches: Sequence[Any],
    paths: Sequence[Path] | None = None,
    kinds: Mapping[str, Kind] | None = None,
) -> None:
    """Writes what is predicted of samples: of each class its probability, or numbers.

    A ``.csv`` file has a line for each sample with the columns ``row``, which counts the
    predictions from 0, ``path`` if the samples are files, and

    - of classes: ``class``, and ``p0``, ``p1``, ...;
    - of several labels: ``p0``, ``p1``, ..., the probability of each;
    - of numbers: ``value``, or ``value0``, ``value1``, ...

    An ``.npz`` file has ``paths`` [n] and the arrays ``classes`` [n], ``probabilities`` [n, C] and
    ``logits`` [n, C]; of several labels the last two; of numbers ``values`` [n, C]. With several
    tasks the name of the task stands before each: ``colour_class``, ``colour_p0``, ...

    Args:
        path: The file, whose ending :func:`check_name` has found right.
        batches: Outputs [b, C], as ``predict_step`` gave them, or mappings of tasks to such; or a
            list of such lists, one for each loader, that are written one after the other.
        paths: Files of the samples, in their order; those beyond n are not read.
        kinds: Of the tasks. Default: classes.

    Raises:
        InputError: No samples, or predictions that are not as above.
    """
    flat = [part for batch in batches for part in (batch if isinstance(batch, list) else [batch])]
    if not flat:
        raise InputError("there is nothing to predict: predict_dataloader gave no batch")
    parts = [dict(part) if isinstance(part, Mapping) else {"": part} for part in flat]
    for part in parts:
        for outputs in part.values():
            if not isinstance(outputs, Tensor) or outputs.ndim != 2:
                what = type(outputs).__name__
                what = str(tuple(outputs.shape)) if isinstance(outputs, Tensor) else what
                raise InputError(f"predict_step must give logits [n, C]; it gave {what}")
        if part.keys() != parts[0].keys() or not part:
            raise InputError(
                "predict_step must give the same tasks for all batches; it gave"
                f" {list(parts[0])} and {list(part)}"
            )
    columns: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    for task in parts[0]:
        outputs = torch.cat([part[task] for part in parts]).float().cpu()
        prefix = f"{task}_" if task else ""
        kind = (kinds or {}).get(task, "classification")
        of_task, shown = _predicted(outputs, kind)
        arrays |= {prefix + name: array.numpy() for name, array in of_task.items()}
        columns |= {prefix + name: column.tolist() for name, column in shown.items()}
    count = sum(len(next(iter(part.values()))) for part in parts)
    if paths is not None:
        files = [str(file) for file in paths[:count]]
        arrays["paths"], columns = np.array(files), {"path": files, **columns}
    if path.suffix == ".npz":
        np.savez(path, **arrays)
        return
    # Names that are no text (of another encoding) are kept as the bytes that they are.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(["row", *columns])
        for row, cells in enumerate(zip(*columns.values(), strict=True)):
            table.writerow([row, *(f"{c:.6g}" if isinstance(c, float) else c for c in cells)])


def _predicted(outputs: Tensor, kind: Kind) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Arrays, and columns of a table, of outputs [n, C]."""
    if kind == "regression":
        names = ["value"] if outputs.shape[1] == 1 else [f"value{i}" for i in range(len(outputs.T))]
        return {"values": outputs}, dict(zip(names, outputs.T, strict=True))
    several = kind == "multilabel"
    probabilities = outputs.sigmoid() if several else outputs.softmax(1)
    shares = {f"p{c}": column for c, column in enumerate(probabilities.T)}
    arrays = {"probabilities": probabilities, "logits": outputs}
    if several:
        return arrays, shares
    classes = outputs.argmax(1)
    return {"classes": classes, **arrays}, {"class": classes, **shares}
