"""Tables of numbers from .npy, .npz, .csv, .tsv and .parquet files."""

from __future__ import annotations

import csv
import itertools
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from fastmmd._extras import require_extra

__all__ = ["InputError", "Table", "aligned", "read"]

_HINT = "; --columns names the ones to compare"


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
        ".npy": lambda: _read_npy(path, columns),
        ".npz": lambda: _read_npz(path, key, columns),
        ".csv": lambda: _read_csv(path, columns),
        ".tsv": lambda: _read_csv(path, columns, "\t"),
        ".parquet": lambda: _read_parquet(path, columns),
    }
    if suffix not in readers:
        raise InputError(f"{path}: the name of a file to compare ends in {', '.join(readers)}")
    with readable(path):
        table = readers[suffix]()
    return _checked(table)


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
                _HINT,
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


def _checked(table: Table) -> Table:
    rows, width = table.values.shape
    check_size(table.path, rows, width)
    if rows < 2:
        raise InputError(f"{table.path}: has 1 row; a sample to compare has 2 or more")
    check_finite(table.path, table.values, table.labels)
    return table


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
            f"{path}: row {first_row + row} (from 0) has {what} in {_named(label)}; drop or fill"
            " such rows first"
        )


def _named(label: str) -> str:
    return label if label.startswith("column ") else f"column {label!r}"


# --- NumPy ---------------------------------------------------------------------------------------


def _read_npy(path: str, columns: Sequence[str] | None) -> Table:
    with open(path, "rb") as file:
        return _from_array(path, _load(path, file), columns)


def _read_npz(path: str, key: str | None, columns: Sequence[str] | None) -> Table:
    # The file is opened here, as a damaged one would be left open by NumPy.
    with open(path, "rb") as file:
        archive = _load(path, file)
        if isinstance(archive, np.ndarray):  # an .npy file under another name
            return _from_array(path, archive, columns)
        with archive:
            keys = list(archive.files)
            if not keys:
                raise InputError(f"{path}: is empty")
            if key is None and len(keys) > 1:
                raise InputError(f"{path}: has several arrays, {some(keys)}: --key names one")
            key = keys[0] if key is None else key
            if key not in keys:
                raise InputError(f"{path}: has no array {key!r}; it has {some(keys)}")
            return _from_array(path, loaded(path, lambda: archive[key]), columns)


def _load(path: str, file: Any) -> Any:
    return loaded(path, lambda: np.load(file, allow_pickle=False))


def loaded(path: str, load: Callable[[], Any]) -> Any:
    """What NumPy reads of a file; its errors as InputError."""
    try:
        return load()
    except InputError:
        raise
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, SyntaxError) as error:
        # Said of objects, but also of any file that does not begin as one of NumPy's.
        if str(error).startswith(("Object arrays", "Array can't be memory-mapped")):
            raise InputError(f"{path}: holds Python objects or text, not numbers") from None
        raise InputError(f"{path}: is no NumPy file, or is damaged") from error


def array_names(path: str, shape: Sequence[int], dtype: Any) -> tuple[str, ...] | None:
    """Names of the columns of an array, if it gives them any.

    Raises:
        InputError: It is no sample of points.
    """
    if dtype.kind in "USO":
        raise InputError(f"{path}: holds text, not numbers")
    if dtype.kind not in "fiub":
        raise InputError(f"{path}: holds values of dtype {dtype}, not real numbers")
    if len(shape) == 0:
        raise InputError(f"{path}: holds a single number, not a sample of points")
    if len(shape) < 3:
        return None
    return tuple(str(list(index)) for index in np.ndindex(*shape[1:]))


def as_points(array: Any) -> npt.NDArray[Any]:
    """Rows of an array, [n, d], of a floating dtype up to float64."""
    array = array.reshape(len(array), math.prod(array.shape[1:]))
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    return np.asarray(array)


def _from_array(path: str, array: Any, columns: Sequence[str] | None) -> Table:
    names = array_names(path, array.shape, array.dtype)
    table = Table(path, as_points(array), names)
    array = table.values
    if columns is None:
        return table
    picked = picked_columns(path, columns, names, array.shape[1])
    return replace(
        table,
        values=array[:, picked],
        names=tuple(table.labels[i] for i in picked),
    )


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


# --- text ----------------------------------------------------------------------------------------


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


def _read_csv(path: str, columns: Sequence[str] | None, delimiter: str | None = None) -> Table:
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
    label = _named(names[index] if names and names[index] else f"column {index}")
    if not cell.strip():
        raise InputError(
            f"{path}: line {line} has nothing in {label}; drop or fill such rows first"
        )
    shown = cell.strip() if len(cell.strip()) <= 40 else cell.strip()[:37] + "..."
    raise InputError(f"{path}: line {line} has text in {label}: {shown!r}", _HINT)


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


# --- Parquet -------------------------------------------------------------------------------------


def _read_parquet(path: str, columns: Sequence[str] | None) -> Table:
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
    raise InputError(f"{path}: column {name!r} holds {what}, not numbers", _HINT)


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
