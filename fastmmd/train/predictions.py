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


def write_predictions(
    path: Path, batches: Sequence[Any], paths: Sequence[Path] | None = None
) -> None:
    """Writes classes and probabilities of batches of logits.

    A ``.csv`` file has a line for each sample with the columns ``row``, which counts the
    predictions from 0, ``path`` if the samples are files, ``class`` and ``p0``, ``p1``, ... An
    ``.npz`` file has the arrays ``classes`` [n], ``probabilities`` [n, C] and ``logits`` [n, C],
    and ``paths`` [n].

    Args:
        path: The file, whose ending :func:`check_name` has found right.
        batches: Logits [b, C], as ``predict_step`` gave them; or a list of such lists, one for
            each loader, that are written one after the other.
        paths: Files of the samples, in their order; those beyond n are not read.

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
    files = None if paths is None else [str(file) for file in paths[: len(classes)]]
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {"classes": classes, "probabilities": probabilities}
        arrays |= {"logits": logits.numpy()} | ({} if files is None else {"paths": np.array(files)})
        np.savez(path, **arrays)
        return
    # Names that are no text (of another encoding) are kept as the bytes that they are.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        columns = [] if files is None else ["path"]
        table.writerow(["row", *columns, "class", *(f"p{c}" for c in range(logits.shape[1]))])
        for row, (label, shares) in enumerate(zip(classes, probabilities, strict=True)):
            of_row = [] if files is None else [files[row]]
            table.writerow([row, *of_row, label, *(f"{share:.6g}" for share in shares)])
