"""Columns of words and numbers by name, from tables in text form, Parquet and JSON lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastmmd.compare.parquet import parquet_file
from fastmmd.compare.reading import InputError, count_columns, readable, some
from fastmmd.compare.text import as_text, csv_layout, text_rows

__all__ = ["COLUMN_SUFFIXES", "class_names", "column_names", "read_columns"]

TEXT_SUFFIXES = {".csv": None, ".tsv": "\t"}
COLUMN_SUFFIXES = (*TEXT_SUFFIXES, ".parquet", ".jsonl")


def column_names(path: str) -> tuple[str, ...]:
    """Names of the columns of a file.

    Raises:
        InputError: The file cannot be read, or its columns have no names.
    """
    with readable(path):
        suffix = Path(path).suffix.lower()
        if suffix in TEXT_SUFFIXES:
            with as_text(path):
                names = csv_layout(path, None, TEXT_SUFFIXES[suffix]).names
            if names is None:
                raise InputError(f"{path}: the first line does not name the columns")
            return names
        if suffix == ".parquet":
            with parquet_file(path) as (_, file):
                return tuple(file.schema_arrow.names)
        if suffix == ".jsonl":
            return tuple(_json_rows(path)[0])
    raise InputError(f"{path}: the name of a table ends in {', '.join(COLUMN_SUFFIXES)}")


def read_columns(path: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Columns as text, a cell for each row; an empty one is "".

    Raises:
        InputError: The file cannot be read or is damaged, has no such column or no rows, or a row
            of another length.
    """
    there = column_names(path)
    for name in names:
        if name not in there:
            raise InputError(f"{path}: has no column {name!r}; it has {some(there)}")
    suffix = Path(path).suffix.lower()
    with readable(path):
        if suffix == ".jsonl":
            columns = _json_columns(path, names)
        elif suffix == ".parquet":
            with parquet_file(path) as (_, file):
                table = file.read(columns=list(dict.fromkeys(names)))
                columns = {name: list(map(_text, table[name].to_pylist())) for name in names}
        else:
            columns = _csv_columns(path, names, there, TEXT_SUFFIXES[suffix])
    if not next(iter(columns.values()), [""]):
        raise InputError(f"{path}: has no rows")
    return columns


def class_names(found: Sequence[str]) -> tuple[str, ...]:
    """The different names of classes: numbers by their size, others by the alphabet."""
    names = set(found)
    if all(name.lstrip("-").isascii() and name.lstrip("-").isdigit() for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def _csv_columns(
    path: str, names: Sequence[str], there: Sequence[str], delimiter: str | None
) -> dict[str, list[str]]:
    with as_text(path):
        numbered = text_rows(path, csv_layout(path, None, delimiter).delimiter)
        next(numbered)  # the names
        picked = {name: there.index(name) for name in names}
        columns: dict[str, list[str]] = {name: [] for name in names}
        for number, cells in numbered:
            if len(cells) != len(there):
                raise InputError(
                    f"{path}: line {number} has {count_columns(len(cells))} where the first has"
                    f" {len(there)}"
                )
            for name, index in picked.items():
                columns[name].append(cells[index].strip())
    return columns


def _json_columns(path: str, names: Sequence[str]) -> dict[str, list[str]]:
    columns: dict[str, list[str]] = {name: [] for name in names}
    for number, row in enumerate(_json_rows(path), 1):
        for name in names:
            if name not in row:
                raise InputError(
                    f"{path}: entry {number} has no {name!r}; it has {some(list(row))}"
                )
            columns[name].append(_text(row[name]))
    return columns


def _json_rows(path: str) -> list[dict[str, Any]]:
    rows = []
    with as_text(path), open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{path}: line {number} is no JSON ({error})") from error
            if not isinstance(row, dict):
                raise InputError(f"{path}: line {number} is no object of names and values")
            rows.append(row)
    if not rows:
        raise InputError(f"{path}: has no rows")
    return rows


def _text(value: Any) -> str:
    """A cell as text; whole numbers without a point, so that 3 and 3.0 are one class."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()
