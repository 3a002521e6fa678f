"""Tables of numbers from .npy, .npz, .csv, .tsv and .parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastmmd.compare.arrays import read_npy, read_npz
from fastmmd.compare.parquet import read_parquet
from fastmmd.compare.table import (
    InputError,
    Table,
    aligned,
    check_finite,
    check_size,
    count_columns,
    readable,
    some,
)
from fastmmd.compare.text import read_csv

__all__ = ["InputError", "Table", "aligned", "count_columns", "read", "readable", "some"]


def read(path: str, key: str | None = None, columns: Sequence[str] | None = None) -> Table:
    """Reads a file of numbers, by its suffix.

    Args:
        path: A ``.npy``, ``.npz``, ``.csv``, ``.tsv`` or ``.parquet`` file.
        key: Which array of an ``.npz`` file; needed if it has several.
        columns: Names, or numbers from 0, of the columns to take, in that order; all by default.

    Returns:
        At least 2 rows and 1 column. One-dimensional arrays become one column; of arrays with more
        than two dimensions each entry of the first is a row.

    Raises:
        InputError: The file is missing, empty, damaged or holds something else than finite
            numbers.
        MissingExtraError: A ``.parquet`` file, and pyarrow is not installed.
    """
    suffix = Path(path).suffix.lower()
    readers = {
        ".npy": lambda: read_npy(path, columns),
        ".npz": lambda: read_npz(path, key, columns),
        ".csv": lambda: read_csv(path, columns),
        ".tsv": lambda: read_csv(path, columns, "\t"),
        ".parquet": lambda: read_parquet(path, columns),
    }
    if suffix not in readers:
        raise InputError(f"{path}: the name of a file to compare ends in {', '.join(readers)}")
    with readable(path):
        table = readers[suffix]()
    return _checked(table)


def _checked(table: Table) -> Table:
    rows, width = table.values.shape
    check_size(table.path, rows, width)
    if rows < 2:
        raise InputError(f"{table.path}: has 1 row; a sample to compare has 2 or more")
    check_finite(table.path, table.values, table.labels)
    return table
