"""Tables of numbers, whatever file they come from, and the errors of those that are none."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "HINT",
    "InputError",
    "Table",
    "aligned",
    "check_finite",
    "check_size",
    "count_columns",
    "named",
    "picked_columns",
    "readable",
    "some",
]

HINT = "; --columns names the ones to compare"


class InputError(ValueError):
    """A file that cannot be used; the message names it and says why.

    Attributes:
        problem: The message without the hint at an option of the command line.
    """

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem + hint)
        self.problem = problem


@dataclass(frozen=True)
class Table:
    """The numbers of a file.

    Attributes:
        path: As the user wrote it.
        values: [n, d], finite, of a floating dtype.
        names: Of the d columns, or None if the file has none.
        notes: What the user should know of the reading.
    """

    path: str
    values: npt.NDArray[Any]
    names: tuple[str, ...] | None
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The names, or numbers from 0 in their place."""
        width = self.values.shape[1]
        return self.names or tuple(f"column {i}" for i in range(width))


@contextmanager
def readable(path: str) -> Iterator[None]:
    """For what reads a file, which must not be empty: its errors as InputError."""
    try:
        if Path(path).stat().st_size == 0:
            raise InputError(f"{path}: is empty")
        with open(path, "rb"):
            pass
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except MemoryError as error:
        raise InputError(f"{path}: does not fit into memory") from error


def aligned(a: Table, b: Table) -> tuple[Table, Table]:
    """The two tables with their columns in one order, that of a.

    Raises:
        InputError: They have different numbers of columns, or different names.
    """
    wide, other = a.values.shape[1], b.values.shape[1]
    ours, theirs = a.names, b.names
    if ours and theirs and ours != theirs:
        if set(ours) == set(theirs) and len(set(ours)) == len(ours) == len(theirs):
            order = [theirs.index(name) for name in ours]
            note = f"{b.path}: columns put into the order of {a.path}"
            b = replace(b, values=b.values[:, order], names=ours, notes=(*b.notes, note))
            return a, b
        only_a = [name for name in ours if name not in theirs]
        only_b = [name for name in theirs if name not in ours]
        if only_a or only_b or wide != other:
            raise InputError(
                f"{a.path} and {b.path} have different columns: {some(only_a)} only in the first,"
                f" {some(only_b)} only in the second",
                HINT,
            )
        raise InputError(
            f"{a.path} and {b.path} repeat names of columns, in different orders, so their columns"
            " cannot be matched"
        )
    if wide != other:
        raise InputError(
            f"{a.path} and {b.path} have unequal widths: {count_columns(wide)} and"
            f" {count_columns(other)}"
        )
    if not a.names and b.names:
        a = replace(a, names=b.names)
    return a, b


def some(names: Sequence[str]) -> str:
    """The first few names."""
    if not names:
        return "none"
    shown = ", ".join(repr(name) for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def count_columns(columns: int) -> str:
    """Their number in words."""
    return f"{columns} column{'s' * (columns != 1)}"


def check_size(path: str, rows: int, width: int) -> None:
    """Raises InputError if there is nothing."""
    if rows == 0 or width == 0:
        raise InputError(f"{path}: holds no numbers (of shape {rows} x {width})")


def check_finite(
    path: str, values: npt.NDArray[Any], labels: Sequence[str], first_row: int = 0
) -> None:
    """Raises InputError that names the first number that is none."""
    finite = np.isfinite(values)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        value, label = values[row, column], labels[column]
        what = "a missing value (NaN)" if math.isnan(value) else f"{value}"
        raise InputError(
            f"{path}: row {first_row + row} (from 0) has {what} in {named(label)}; drop or fill"
            " such rows first"
        )


def named(label: str) -> str:
    """A column in words."""
    return label if label.startswith("column ") else f"column {label!r}"


def picked_columns(
    path: str, columns: Sequence[str], names: Sequence[str] | None, width: int
) -> list[int]:
    """Positions of the columns of these names, or numbers where no name fits."""
    picked = []
    for column in columns:
        if names is not None and column in names:
            picked.append(list(names).index(column))
        elif column.isascii() and column.isdigit() and int(column) < width:
            picked.append(int(column))
        else:
            there = some(names) if names else f"0 to {width - 1}"
            raise InputError(f"{path}: --columns: there is no column {column!r}; it has {there}")
    return picked
