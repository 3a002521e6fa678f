"""Features, labels and domains from the named arrays of .npz and .mat files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmd._extras import require_extra
from fastmmd.compare.arrays import as_points, loaded
from fastmmd.compare.reading import InputError, readable, some

__all__ = ["ARRAY_SUFFIXES", "feature_array", "name_array", "read_arrays"]

ARRAY_SUFFIXES = (".npz", ".mat")


def read_arrays(path: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a file by name; none of Python objects.

    Raises:
        InputError: It cannot be read, is damaged, empty, or of MATLAB 7.3.
        MissingExtraError: A ``.mat`` file, and SciPy is not installed.
    """
    with readable(path):
        if Path(path).suffix.lower() == ".mat":
            arrays = _read_mat(path)
        else:
            with open(path, "rb") as file:
                archive = loaded(path, lambda: np.load(file, allow_pickle=False))
                if isinstance(archive, np.ndarray):
                    raise InputError(f"{path}: holds one array without a name, as .npy files do")
                with archive:
                    arrays = {
                        name: loaded(path, lambda name=name: archive[name])  # type: ignore[misc]
                        for name in archive.files
                    }
    if not arrays:
        raise InputError(f"{path}: holds no arrays")
    return arrays


def feature_array(
    path: str, arrays: dict[str, npt.NDArray[Any]], name: str | None, others: Sequence[str | None]
) -> npt.NDArray[np.float32]:
    """The features [n, d] among the arrays: by name, or the only one that can be meant.

    Raises:
        InputError: There is none, several, or one that holds something else than finite numbers.
    """
    if name is None:
        found = [
            key
            for key, array in arrays.items()
            if array.ndim >= 2 and min(array.shape[:2]) > 1 and key not in others
        ]
        if len(found) != 1:
            raise InputError(
                f"{path}: features must name one of its arrays: {some(found or list(arrays))}"
            )
        name = found[0]
    array = _named(path, arrays, name)
    if array.dtype.kind not in "fiub" or array.ndim < 2:
        raise InputError(
            f"{path}: the features {name!r} must be numbers [n, d]; they are {array.dtype} of shape"
            f" {list(array.shape)}"
        )
    if len(array) == 0:
        raise InputError(f"{path}: the features {name!r} are empty")
    points = as_points(array).astype(np.float32)
    wrong = ~np.isfinite(points)
    if wrong.any():
        row = int(np.argwhere(wrong)[0, 0])
        raise InputError(f"{path}: row {row} (from 0) of {name!r} has a value that is no number")
    return points


def name_array(path: str, arrays: dict[str, npt.NDArray[Any]], name: str, rows: int) -> list[str]:
    """An array of n names, or of numbers, as text.

    Where the file has an array ``name_names`` as well, numbers count its entries from 0.

    Raises:
        InputError: There is none, or it has another length than the features.
    """
    array = _named(path, arrays, name)
    flat = array.reshape(-1)
    if len(flat) != rows:
        raise InputError(f"{path}: has {rows} rows of features and {len(flat)} entries of {name!r}")
    if flat.dtype.kind == "f" and np.isfinite(flat).all() and (flat == np.round(flat)).all():
        flat = flat.astype(np.int64)
    names = arrays.get(f"{name}_names")
    if names is None or flat.dtype.kind not in "iu":
        return [str(entry).strip() for entry in flat]
    known = [str(entry).strip() for entry in names.reshape(-1)]
    if flat.size and not 0 <= int(flat.min()) <= int(flat.max()) < len(known):
        raise InputError(f"{path}: {name!r} has numbers that {name}_names has no entries for")
    return [known[int(entry)] for entry in flat]


def _named(path: str, arrays: dict[str, npt.NDArray[Any]], name: str) -> npt.NDArray[Any]:
    if name not in arrays:
        raise InputError(f"{path}: has no array {name!r}; it has {some(list(arrays))}")
    return arrays[name]


def _read_mat(path: str) -> dict[str, npt.NDArray[Any]]:
    require_extra("reading .mat files", "tables", "scipy")
    from scipy.io import loadmat
    from scipy.sparse import issparse

    try:
        content = loadmat(path)
    except NotImplementedError as error:
        raise InputError(f"{path}: is of MATLAB 7.3; save it with '-v7'") from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged file meets SciPy's parser anywhere
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the system, not of the content
        raise InputError(f"{path}: is no MATLAB file, or is damaged ({error})") from error
    arrays = {}
    for name, value in content.items():
        if name.startswith("__"):
            continue
        array = value.toarray() if issparse(value) else np.asarray(value)
        if array.dtype.kind == "O":  # a cell array of strings: each cell is an array of one
            cells = [np.asarray(cell).reshape(-1) for cell in array.reshape(-1)]
            array = np.array([str(cell[0]) if cell.size else "" for cell in cells])
        arrays[name] = array
    return arrays
