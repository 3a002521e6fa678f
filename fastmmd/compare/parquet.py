"""Tables of numbers from .parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from fastmmd._extras import require_extra
from fastmmd.compare.table import HINT, InputError, Table, picked_columns

__all__ = ["parquet_file", "parquet_layout", "parquet_values", "read_parquet"]


def read_parquet(path: str, columns: Sequence[str] | None) -> Table:
    """The columns that hold numbers, as float64."""
    with parquet_file(path) as (pa, file):
        picked, names, notes = parquet_layout(path, columns, pa, file)
        values = parquet_values(path, file.read(), picked, pa)
    return Table(path, values, names, notes)


@contextmanager
def parquet_file(path: str) -> Iterator[tuple[Any, Any]]:
    """The module pyarrow and the open file; errors of the former as InputError."""
    require_extra("reading .parquet files", "cli", "pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Mapped and without reading ahead, or it would hold whole groups of rows.
        with pq.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
            yield pa, file
    except pa.ArrowException as error:
        raise InputError(f"{path}: is no Parquet file, or is damaged") from error


def parquet_layout(
    path: str, columns: Sequence[str] | None, pa: Any, file: Any
) -> tuple[list[int], tuple[str, ...], tuple[str, ...]]:
    """Which columns to take, their names, and notes."""
    names = file.schema_arrow.names
    notes: tuple[str, ...] = ()
    picked = list(range(len(names)))
    if columns is not None:
        picked = picked_columns(path, columns, names, len(names))
    elif any(name.startswith("__index_level_") for name in names):
        picked = [i for i in picked if not names[i].startswith("__index_level_")]
        notes = (f"{path}: the index of the data frame is left out",)
    for i in picked:
        kind = file.schema_arrow.field(i).type
        if not _is_number(pa.types, kind):
            _not_numbers(path, names[i], kind)
    return picked, tuple(names[i] for i in picked), notes


def parquet_values(
    path: str, table: Any, picked: list[int], pa: Any, first_row: int = 0
) -> npt.NDArray[Any]:
    """Columns of an Arrow table as float64, [rows, columns]."""
    names = table.schema.names
    arrays = [_parquet_column(path, names[i], table.column(i), pa, first_row) for i in picked]
    return np.stack(arrays, axis=1) if arrays else np.empty((table.num_rows, 0))


def _is_number(types: Any, kind: Any) -> bool:
    tests = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
    return any(test(kind) for test in tests)


def _not_numbers(path: str, name: str, kind: Any) -> NoReturn:
    what = "text" if str(kind) in ("string", "large_string", "string_view") else f"values of {kind}"
    raise InputError(f"{path}: column {name!r} holds {what}, not numbers", HINT)


def _parquet_column(path: str, name: str, column: Any, pa: Any, first_row: int) -> npt.NDArray[Any]:
    if column.null_count:
        row = next(i for i, value in enumerate(column) if not value.is_valid)
        raise InputError(
            f"{path}: row {first_row + row} (from 0) has nothing in column {name!r}; drop or fill"
            " such rows first"
        )
    if pa.types.is_decimal(column.type) or pa.types.is_boolean(column.type):
        column = column.cast(pa.float64())
    return np.asarray(column.to_numpy(), dtype=np.float64)
