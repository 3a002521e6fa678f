"""Files of sketches, ``.npz`` or ``.safetensors``: a header in JSON and an array of float64.

Nothing in them is executed when they are read. A checksum over both tells whether they are whole,
and they appear under their name when they are, not before.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fastmmd._extras import require_extra

__all__ = ["SUFFIXES", "check_path", "is_sketch", "read", "write"]

FORMAT = "fastmmd.MeanEmbedding"
VERSION = 1
SUFFIXES = (".npz", ".safetensors")

_Array = npt.NDArray[Any]
_MEMBERS = {"header", "sums"}


def check_path(path: str | os.PathLike[str]) -> Path:
    """The path, if a sketch can be written there; a file that is there already stays.

    Raises:
        ValueError: Its suffix is another one.
        OSError: There is no such folder, or it is not one to write to, or the path is a folder.
        MissingExtraError: It is a ``.safetensors`` file, and safetensors is not installed.
    """
    path = _checked(path)
    if path.is_dir():
        raise IsADirectoryError(21, "Is a directory", str(path))
    with _appearing(path):
        pass
    return path


def write(path: str | os.PathLike[str], header: dict[str, Any], sums: _Array) -> None:
    """Writes a sketch: all of it, or nothing.

    Args:
        path: Where; a file that is there is replaced.
        header: What JSON has room for.
        sums: float64.

    Raises:
        ValueError: A suffix that is none of :data:`SUFFIXES`.
        OSError: The file cannot be written.
        MissingExtraError: A ``.safetensors`` file, and safetensors is not installed.
    """
    path = _checked(path)
    sums = np.ascontiguousarray(sums, dtype="<f8")
    header = {"format": FORMAT, "version": VERSION, **header}
    text = json.dumps({**header, "sha256": _digest(header, sums)})
    with _appearing(path) as (file, done):
        if path.suffix.lower() == ".npz":
            encoded = np.frombuffer(text.encode(), dtype=np.uint8)
            np.savez(file, header=encoded, sums=sums)
        else:
            from safetensors.numpy import save

            file.write(save({"sums": sums}, metadata={FORMAT: text}))
        done()


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], _Array]:
    """Reads what :func:`write` wrote.

    Returns:
        The header and the sums.

    Raises:
        ValueError: The file is damaged, or of something else, or of a later version.
        OSError: It cannot be read.
        MissingExtraError: A ``.safetensors`` file, and safetensors is not installed.
    """
    path = _checked(path)
    text, sums = _read_npz(path) if path.suffix.lower() == ".npz" else _read_safetensors(path)
    try:
        header = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: is damaged: its header is no JSON") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise _foreign(path)
    if header.get("version") != VERSION:
        raise ValueError(
            f"{path}: is a sketch of format {header.get('version')!r}, and this fastmmd reads"
            f" format {VERSION}"
        )
    digest = header.pop("sha256", None)
    if not isinstance(sums, np.ndarray) or sums.dtype != np.float64 or sums.ndim != 1:
        raise ValueError(f"{path}: is damaged: its sums are no list of float64 numbers")
    if digest != _digest(header, sums.astype("<f8", copy=False)):
        raise ValueError(f"{path}: is damaged: its checksum is not that of what it holds")
    return header, sums


def is_sketch(path: str | os.PathLike[str]) -> bool:
    """Whether this looks like a file of a sketch, whole or not."""
    path = Path(path)
    if path.suffix.lower() != ".npz":
        return path.suffix.lower() in SUFFIXES
    try:
        with zipfile.ZipFile(path) as archive:
            return {f"{name}.npy" for name in _MEMBERS} == set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _read_npz(path: Path) -> tuple[bytes, Any]:
    held = io.BytesIO(path.read_bytes())  # so that errors of the system are seen to be its own
    try:
        archive = np.load(held, allow_pickle=False)
        if isinstance(archive, np.ndarray) or set(archive.files) != _MEMBERS:
            raise _foreign(path)
        with archive:
            return archive["header"].tobytes(), archive["sums"]
    except _ForeignError:
        raise
    except _DAMAGES as error:
        raise ValueError(f"{path}: is no .npz file, or is damaged ({error})") from error


def _read_safetensors(path: Path) -> tuple[str, Any]:
    from safetensors import SafetensorError, safe_open

    with open(path, "rb"):  # for its own errors
        pass
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if FORMAT not in metadata or list(file.keys()) != ["sums"]:
                raise _foreign(path)
            return metadata[FORMAT], file.get_tensor("sums")
    except _ForeignError:
        raise
    except (SafetensorError, *_DAMAGES) as error:
        raise ValueError(f"{path}: is no .safetensors file, or is damaged ({error})") from error


class _ForeignError(ValueError):
    pass


# What readers of archives raise of bytes that are not theirs.
_DAMAGES = (
    ValueError,
    EOFError,
    KeyError,
    MemoryError,
    OSError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    TypeError,
    UnicodeError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def _foreign(path: Path) -> _ForeignError:
    return _ForeignError(f"{path}: is not a file of a sketch")


def _checked(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{path}: the name of the file of a sketch ends in {' or '.join(SUFFIXES)}"
        )
    if suffix == ".safetensors":
        require_extra(".safetensors files", "sketch", "safetensors")
    return path


def _digest(header: dict[str, Any], sums: _Array) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode() + sums.tobytes()).hexdigest()


@contextmanager
def _appearing(path: Path) -> Iterator[tuple[BinaryIO, Any]]:
    """A file to write to, which takes its name after the block if `done()` was called in it."""
    staging = path.with_name(f".incomplete-{secrets.token_hex(8)}")
    finished = False

    def done() -> None:
        nonlocal finished
        finished = True

    file = open(staging, "xb")  # noqa: SIM115
    try:
        with file:
            yield file, done
            file.flush()
            os.fsync(file.fileno())
        if finished:
            os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)
