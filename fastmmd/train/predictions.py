"""Predictions as a file: a table for people and spreadsheets, or arrays."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmmd.compare.reading import InputError

__all__ = ["check_name", "write_predictions"]

_ENDINGS = (".csv", ".npz")


def check_name(path: str | os.PathLike[str]) -> None:
    """Checks that the name of a file says how it is to be written.

    Raises:
        InputError: It ends neither in .csv nor in .npz.
    """
    if Path(path).suffix not in _ENDINGS:
        raise InputError(f"--output {str(path)!r} must end in {' or '.join(_ENDINGS)}")


def write_predictions(path: Path, batches: Sequence[Any]) -> None:
    """Writes classes and probabilities of batches of logits.

    A ``.csv`` file has a line for each sample with the columns ``row`` (from 0), ``class`` and
    ``p0``, ``p1``, ... An ``.npz`` file has the arrays ``classes`` [n], ``probabilities`` [n, C]
    and ``logits`` [n, C].

    Args:
        path: The file, whose ending :func:`check_name` has found right.
        batches: Logits [b, C], as ``predict_step`` gave them; or a list of such lists, one for
            each loader, that are written one after the other.

    Raises:
        InputError: No samples, or predictions that are not logits.
    """
    flat = [part for batch in batches for part in (batch if isinstance(batch, list) else [batch])]
    for part in flat:
        if not isinstance(part, Tensor) or part.ndim != 2:
            what = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise InputError(f"predict_step must give logits [n, C]; it gave {what}")
    if not flat:
        raise InputError("there is nothing to predict: predict_dataloader gave no batch")
    logits = torch.cat(flat).float().cpu()
    probabilities = logits.softmax(1).numpy()
    classes = logits.argmax(1).numpy()
    if path.suffix == ".npz":
        np.savez(path, classes=classes, probabilities=probabilities, logits=logits.numpy())
        return
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["row", "class", *(f"p{c}" for c in range(logits.shape[1]))])
        for row, (label, shares) in enumerate(zip(classes, probabilities, strict=True)):
            table.writerow([row, label, *(f"{share:.6g}" for share in shares)])
