"""Tables of numbers from .npy and .npz files."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmd.compare.table import InputError, Table, picked_columns, some

__all__ = ["array_names", "as_points", "loaded", "read_npy", "read_npz"]


def read_npy(path: str, columns: Sequence[str] | None) -> Table:
    """An array of NumPy's format."""
    with open(path, "rb") as file:
        return _from_array(path, _load(path, file), columns)


def read_npz(path: str, key: str | None, columns: Sequence[str] | None) -> Table:
    """The array of that name, which an archive with one array need not be told."""
    # The file is opened here, as a damaged one would be left open by NumPy.
    with open(path, "rb") as file:
        archive = _load(path, file)
        if isinstance(archive, np.ndarray):  # an .npy file under another name
            return _from_array(path, archive, columns)
        with archive:
            key = chosen(path, list(archive.files), key)
            return _from_array(path, loaded(path, lambda: archive[key]), columns)


def chosen(path: str, names: Sequence[str], key: str | None) -> str:
    """The name of the array that is meant: the key, or the only one.

    Raises:
        InputError: No array, several and no key, or none of that name.
    """
    if not names:
        raise InputError(f"{path}: is empty")
    if key is None and len(names) > 1:
        raise InputError(f"{path}: has several arrays, {some(names)}: --key names one")
    name = names[0] if key is None else key
    if name not in names:
        raise InputError(f"{path}: has no array {name!r}; it has {some(names)}")
    return name


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
