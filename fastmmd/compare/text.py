"""Tables of numbers from .csv and .tsv files."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmd.compare.table import HINT, InputError, Table, count_columns, named, picked_columns

__all__ = ["Layout", "as_text", "csv_layout", "csv_parts", "read_csv", "text_rows"]


@dataclass(frozen=True)
class Layout:
    """How a table in text form is laid out."""

    delimiter: str
    has_header: bool
    width: int
    names: tuple[str, ...] | None  # of all columns
    picked: list[int]  # columns to take
    shown: tuple[str, ...] | None  # their names
    notes: tuple[str, ...]


@contextmanager
def as_text(path: str) -> Iterator[None]:
    """For what reads text: its errors as InputError."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text ({error.reason})") from error
    except csv.Error as error:
        raise InputError(f"{path}: is no table in text form ({error})") from error


def read_csv(path: str, columns: Sequence[str] | None, delimiter: str | None = None) -> Table:
    """The cells as float64; the delimiter is looked for if it is not given."""
    with as_text(path):
        layout = csv_layout(path, columns, delimiter)
        return Table(path, _numbers(path, layout), layout.shown, layout.notes)


def csv_layout(path: str, columns: Sequence[str] | None, delimiter: str | None) -> Layout:
    """How the text is laid out, by its first line."""
    delimiter = delimiter or _delimiter(path)
    first = next((cells for _, cells in text_rows(path, delimiter)), None)
    if first is None:
        raise InputError(f"{path}: is empty")
    # A row is a header if it has a word, or if its first cell alone is empty, as above an index.
    has_header = any(cell.strip() and _number(cell) is None for cell in first) or (
        len(first) > 1 and not first[0].strip() and all(cell.strip() for cell in first[1:])
    )
    names = tuple(cell.strip() for cell in first) if has_header else None
    notes: tuple[str, ...] = ()
    picked = list(range(len(first)))
    if columns is not None:
        picked = picked_columns(path, columns, names, len(first))
    elif names is not None and not names[0] and len(names) > 1:
        picked = picked[1:]
        notes = (f"{path}: the first column has no name; taken for an index and left out",)
    shown = names if names is not None or columns is None else first
    if shown is not None:
        labels = names or [f"column {i}" for i in range(len(first))]
        shown = tuple(labels[i] or f"column {i}" for i in picked)
    return Layout(delimiter, has_header, len(first), names, picked, shown, notes)


def csv_parts(path: str, layout: Layout, rows: int) -> Iterator[npt.NDArray[Any]]:
    """The numbers, so many lines at a time."""
    with as_text(path), open(path, encoding="utf-8-sig") as file:
        numbered, before, skip = iter(file), 0, layout.has_header
        while lines := list(itertools.islice(numbered, rows)):
            # A line may end within quotes, a row does not.
            within = sum(line.count('"') for line in lines) % 2
            while within and (line := next(numbered, "")):
                lines.append(line)
                within = (within + line.count('"')) % 2
            yield _part(path, layout, lines, before, skip)
            skip = skip and not any(line.strip() for line in lines)
            before += len(lines)


def _part(path: str, layout: Layout, lines: list[str], before: int, skip: bool) -> npt.NDArray[Any]:
    """The numbers of some lines, with ``before`` of them in front, and maybe a header to skip."""
    values = _fast(itertools.islice(_nonempty(lines), int(skip), None), layout)
    if values is not None:
        return values
    cells = _cells(lines, layout.delimiter, before)
    return _slow(path, layout, itertools.islice(cells, int(skip), None))


def _numbers(path: str, layout: Layout) -> npt.NDArray[Any]:
    """The cells of these columns as float64; rows of another width or with text are errors."""
    skip = int(layout.has_header)
    with open(path, encoding="utf-8-sig") as file:
        values = _fast(itertools.islice(_nonempty(file), skip, None), layout)
    if values is not None:
        return values
    return _slow(path, layout, itertools.islice(text_rows(path, layout.delimiter), skip, None))


def _fast(lines: Iterator[str], layout: Layout) -> npt.NDArray[Any] | None:
    """The common case, at the speed of C; None where it is another."""
    first = next(lines, None)
    if first is None:
        return np.empty((0, len(layout.picked)))
    try:
        values = np.loadtxt(
            itertools.chain([first], lines),
            delimiter=None if layout.delimiter == " " else layout.delimiter,
            comments=None,
            quotechar='"',
            ndmin=2,
            dtype=np.float64,
        )
    except UnicodeDecodeError:
        raise
    except ValueError:
        return None
    if values.shape[1] != layout.width:
        return None
    return values if layout.picked == list(range(layout.width)) else values[:, layout.picked]


def _slow(path: str, layout: Layout, numbered: Iterable[tuple[int, list[str]]]) -> npt.NDArray[Any]:
    """Text in columns that are not wanted, empty cells, or a mistake to be named."""
    rows = []
    for number, cells in numbered:
        if len(cells) != layout.width:
            raise InputError(
                f"{path}: line {number} has {count_columns(len(cells))} where the first has"
                f" {layout.width}"
            )
        rows.append([_cell(path, number, cells[i], i, layout.names) for i in layout.picked])
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(layout.picked))


def _cell(path: str, line: int, cell: str, index: int, names: Sequence[str] | None) -> float:
    number = _number(cell)
    if number is not None:
        return number
    label = named(names[index] if names and names[index] else f"column {index}")
    if not cell.strip():
        raise InputError(
            f"{path}: line {line} has nothing in {label}; drop or fill such rows first"
        )
    shown = cell.strip() if len(cell.strip()) <= 40 else cell.strip()[:37] + "..."
    raise InputError(f"{path}: line {line} has text in {label}: {shown!r}", HINT)


def _number(cell: str) -> float | None:
    if "_" in cell:  # Python's float takes 1_000, which no file means as a number
        return None
    try:
        return float(cell)
    except ValueError:
        return None


def _nonempty(lines: Iterable[str]) -> Iterator[str]:
    return (line for line in lines if line.strip())


def text_rows(path: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Numbers of the lines, from 1, and their cells; empty lines are left out."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        yield from _cells(file, delimiter)


def _cells(
    lines: Iterable[str], delimiter: str, before: int = 0
) -> Iterator[tuple[int, list[str]]]:
    if delimiter == " ":
        for number, line in enumerate(lines, before + 1):
            if line.strip():
                yield number, line.split()
        return
    reader = csv.reader(lines, delimiter=delimiter)
    for cells in reader:
        if len(cells) > 1 or (cells and cells[0].strip()):
            yield before + reader.line_num, cells


def _delimiter(path: str) -> str:
    """What separates the cells of the first line: a comma, semicolon, tab, bar or blank."""
    with open(path, encoding="utf-8-sig") as file:
        line = next(_nonempty(file), "")
    if "\0" in line:
        raise InputError(f"{path}: is no text file")
    bare = re.sub('"[^"]*"', "", line).strip()
    for delimiter in (";", "\t", ",", "|"):
        if delimiter in bare:
            return delimiter
    # Names may hold blanks, numbers do not.
    cells = bare.split()
    return " " if len(cells) > 1 and all(_number(cell) is not None for cell in cells) else ","
