"""The same files a part at a time, in memory that does not grow with them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmd.compare.arrays import array_names, as_points, chosen, loaded
from fastmmd.compare.parquet import parquet_file, parquet_layout, parquet_values
from fastmmd.compare.table import (
    InputError,
    check_finite,
    check_size,
    picked_columns,
    readable,
)
from fastmmd.compare.text import as_text, csv_layout, csv_parts

__all__ = ["Parts", "open_parts"]

_NUMBERS = 1 << 20  # of a part

_Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Parts:
    """The numbers of a file, a part at a time, as often as they are wanted.

    Attributes:
        path: As the user wrote it.
        width: Of the rows.
        names: Of the columns, or None if the file has none.
        rows: How many there are, if that is known beforehand.
        notes: What the user should know of the reading.
    """

    path: str
    width: int
    names: tuple[str, ...] | None
    rows: int | None
    notes: tuple[str, ...] = ()
    _make: Callable[[int], Iterator[_Array]] = field(repr=False, kw_only=True)

    def __iter__(self) -> Iterator[_Array]:
        """Yields [n, width] arrays of finite numbers of a floating dtype.

        Raises:
            InputError: The file holds something else, or nothing.
        """
        labels = self.names or tuple(f"column {i}" for i in range(self.width))
        row = 0
        with readable(self.path):
            for part in self._make(max(1, _NUMBERS // max(1, self.width))):
                check_finite(self.path, part, labels, row)
                row += len(part)
                yield part
        check_size(self.path, row, self.width)


def open_parts(path: str, key: str | None = None, columns: Sequence[str] | None = None) -> Parts:
    """Looks into a file, as :func:`fastmmd.compare.reading.read` does.

    Args:
        path: A ``.npy``, ``.npz``, ``.csv``, ``.tsv`` or ``.parquet`` file.
        key: Which array of an ``.npz`` file; needed if it has several.
        columns: Names, or numbers from 0, of the columns to take, in that order; all by default.

    Raises:
        InputError: The file is missing, empty, damaged or holds something else than numbers.
        MissingExtraError: A ``.parquet`` file, and pyarrow is not installed.
    """
    suffix = Path(path).suffix.lower()
    openers = {
        ".npy": lambda: _npy(path, columns),
        ".npz": lambda: _npz(path, key, columns),
        ".csv": lambda: _csv(path, columns, None),
        ".tsv": lambda: _csv(path, columns, "\t"),
        ".parquet": lambda: _parquet(path, columns),
    }
    if suffix not in openers:
        raise InputError(f"{path}: the name of a file to sketch ends in {', '.join(openers)}")
    with readable(path):
        return openers[suffix]()


def _npy(path: str, columns: Sequence[str] | None) -> Parts:
    with open(path, "rb") as file:
        start = file.read(6)
    if start != b"\x93NUMPY":  # of others NumPy leaves some open
        zipped = "; it may be an .npz file" if start.startswith(b"PK") else ""
        raise InputError(f"{path}: is no NumPy file, or is damaged{zipped}")
    # Mapped, so that its pages are those of the file, which the system drops when it wants them.
    array = loaded(path, lambda: np.load(path, mmap_mode="r", allow_pickle=False))

    def parts(rows: int) -> Iterator[_Array]:
        for i in range(0, len(array), rows):
            yield as_points(array[i : i + rows])

    return _of_array(path, array.shape, array.dtype, columns, parts)


def _npz(path: str, key: str | None, columns: Sequence[str] | None) -> Parts:
    def stored() -> tuple[str, tuple[int, ...], bool, Any]:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            member = archive.namelist()[names.index(chosen(path, names, key))]
            with archive.open(member) as file:
                return member, *_header(file)

    if not zipfile.is_zipfile(path):
        return _npy(path, columns)
    member, shape, fortran, dtype = loaded(path, stored)

    def parts(rows: int) -> Iterator[_Array]:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            _header(file)
            if fortran and len(shape) > 1:  # the rows are spread over all of it
                with archive.open(member) as again:
                    yield as_points(np.lib.format.read_array(again, allow_pickle=False))
                return
            for i in range(0, shape[0], rows):
                count = min(rows, shape[0] - i)
                size = count * int(np.prod(shape[1:])) * dtype.itemsize
                text = file.read(size)
                if len(text) != size:
                    raise EOFError
                yield as_points(np.frombuffer(text, dtype).reshape(count, *shape[1:]))

    def guarded(rows: int) -> Iterator[_Array]:
        made = parts(rows)
        while (part := loaded(path, lambda: next(made, None))) is not None:
            yield part

    return _of_array(path, shape, dtype, columns, guarded)


def _header(file: Any) -> tuple[tuple[int, ...], bool, Any]:
    """Shape, whether columns come first, and dtype of an array in an archive."""
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"version {version}")
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("Object arrays")
    return shape, fortran, dtype


def _of_array(
    path: str,
    shape: Sequence[int],
    dtype: Any,
    columns: Sequence[str] | None,
    parts: Callable[[int], Iterator[_Array]],
) -> Parts:
    names = array_names(path, shape, dtype)
    width = int(np.prod(shape[1:]))
    check_size(path, shape[0], width)
    if columns is None:
        return Parts(path, width, names, shape[0], _make=parts)
    picked = picked_columns(path, columns, names, width)
    labels = names or tuple(f"column {i}" for i in range(width))
    return Parts(
        path,
        len(picked),
        tuple(labels[i] for i in picked),
        shape[0],
        _make=lambda rows: (part[:, picked] for part in parts(rows)),
    )


def _csv(path: str, columns: Sequence[str] | None, delimiter: str | None) -> Parts:
    with as_text(path):
        layout = csv_layout(path, columns, delimiter)
    return Parts(
        path,
        len(layout.picked),
        layout.shown,
        None,
        layout.notes,
        _make=lambda rows: csv_parts(path, layout, rows),
    )


def _parquet(path: str, columns: Sequence[str] | None) -> Parts:
    with parquet_file(path) as (pa, file):
        picked, names, notes = parquet_layout(path, columns, pa, file)
        rows = file.metadata.num_rows
    check_size(path, rows, len(picked))

    def parts(at_once: int) -> Iterator[_Array]:
        first = 0
        with parquet_file(path) as (pa, file):
            batches = file.iter_batches(batch_size=at_once, use_threads=False)
            for batch in batches:
                table = pa.Table.from_batches([batch])
                yield parquet_values(path, table, picked, pa, first)
                first += len(batch)
        pa.default_memory_pool().release_unused()

    return Parts(path, len(names), names, rows, notes, _make=parts)
