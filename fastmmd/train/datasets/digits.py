"""MNIST and USPS from the files in which they were published."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmmd._extras import require_extra
from fastmmd.compare.reading import InputError, readable
from fastmmd.train.datasets.domains import Domain, DomainData, Samples, source_names

__all__ = ["Digits", "read_idx", "read_usps"]

DigitDomain = Literal["mnist", "usps"]
CLASSES = tuple("0123456789")
USPS_SIDE = 16  # pixels

# Training and test files: images and labels of MNIST, both in one of USPS.
MNIST_FILES = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)
USPS_FILES = ("usps", "usps.t")


class Digits(DomainData):
    """Handwritten digits: MNIST and USPS, one the source and, maybe, the other the target.

    The published files, as they are, in one folder: ``train-images-idx3-ubyte.gz``,
    ``train-labels-idx1-ubyte.gz``, ``t10k-images-idx3-ubyte.gz``, ``t10k-labels-idx1-ubyte.gz`` of
    MNIST (IDX, also without ``.gz``), ``usps.bz2`` and ``usps.t.bz2`` of USPS (LIBSVM, also without
    ``.bz2``). The training files are trained on, the test files measured.

    Inputs are [n, 1, size, size] in [0, 1], ink being 1, resized bilinearly with antialiasing.

    Args:
        folder: Where the files are.
        source: ``"mnist"`` or ``"usps"``.
        target: The other one, or None.
        size: Pixels per side. MNIST has 28, USPS 16.
        **options: Of :class:`DomainData`; ``val_share`` has no effect.

    Raises:
        ValueError: A name is unknown, or both are one. From ``setup``: a file is missing, damaged,
            or holds something else; the message names it.
    """

    def __init__(
        self,
        folder: str | Path,
        source: DigitDomain = "mnist",
        target: DigitDomain | None = None,
        *,
        size: int = 28,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        for name, value in (("source", source), ("target", target)):
            if value not in get_args(DigitDomain) and (name, value) != ("target", None):
                raise ValueError(
                    f"{name} must be one of {', '.join(get_args(DigitDomain))}; got {value!r}"
                )
        source_names(source, target)
        if size < 1:
            raise ValueError(f"size must be at least 1; got {size!r}")
        self.folder = Path(folder)
        self.source_name = source
        self.target_name = target
        self.size = size

    def read(self) -> tuple[list[Domain], Domain | None]:
        """Reads and resizes the digits."""
        target = None if self.target_name is None else self._domain(self.target_name)
        return [self._domain(self.source_name)], target

    def _domain(self, name: DigitDomain) -> Domain:
        parts = [
            self._mnist(*MNIST_FILES[i]) if name == "mnist" else self._usps(USPS_FILES[i])
            for i in range(2)
        ]
        return Domain(name, CLASSES, parts[0], parts[0], parts[1])

    def _mnist(self, images_name: str, labels_name: str) -> Samples:
        images_path = self._find(images_name, ".gz")
        labels_path = self._find(labels_name, ".gz")
        images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
        if len(images) != len(labels):
            raise InputError(
                f"{images_path} has {len(images)} images and {labels_path} {len(labels)} labels"
            )
        if labels.size and labels.max() > 9:
            raise InputError(f"{labels_path}: has a label {labels.max()}; digits are 0 to 9")
        return self._samples(torch.from_numpy(images).float() / 255, torch.from_numpy(labels))

    def _usps(self, name: str) -> Samples:
        images, labels = read_usps(self._find(name, ".bz2"))
        return self._samples(torch.from_numpy(images), torch.from_numpy(labels))

    def _samples(self, images: Tensor, labels: Tensor) -> Samples:
        images = images[:, None]
        if images.shape[-1] != self.size and len(images):
            images = F.interpolate(
                images, (self.size, self.size), mode="bilinear", align_corners=False, antialias=True
            )
        return Samples(images, labels.long())

    def _find(self, name: str, suffix: str) -> Path:
        for path in (self.folder / (name + suffix), self.folder / name):
            if path.is_file():
                return path
        raise InputError(f"{self.folder}: has no file {name}{suffix}, nor {name}")


def read_idx(path: str | Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """The bytes of an IDX file, which may be compressed with gzip.

    The format begins with two zero bytes, the type of the values (8 for bytes), the number of
    dimensions, and each of them in four bytes, the highest first.

    Args:
        path: The file.
        dimensions: How many are expected.

    Raises:
        InputError: It is missing, damaged, too short or too long, or of another kind.
    """
    path = Path(path)
    with readable(str(path)):
        content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{path}: is a damaged gzip file ({error})") from error
    magic = bytes([0, 0, 8, dimensions])
    if content[:4] != magic:
        raise InputError(
            f"{path}: is no IDX file of bytes in {dimensions} dimensions: it begins with"
            f" {content[:4].hex(' ') or 'nothing'}, not {magic.hex(' ')}"
        )
    start = 4 + 4 * dimensions
    shape = [int(n) for n in np.frombuffer(content[4:start].ljust(4 * dimensions, b"\0"), ">u4")]
    if len(content) != start + math.prod(shape):
        raise InputError(
            f"{path}: should hold {math.prod(shape)} bytes, of shape"
            f" {' x '.join(map(str, shape))}; it holds {max(0, len(content) - start)}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def read_usps(path: str | Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Images [n, 16, 16] in [0, 1] and digits [n] of USPS in the LIBSVM format.

    There the labels are 1 to 10, for the digits 0 to 9, and the 256 values lie in [-1, 1].

    Raises:
        InputError: It is missing, damaged, or of another kind.
        MissingExtraError: scikit-learn is not installed.
    """
    require_extra("reading LIBSVM files", "train", "sklearn")
    from sklearn.datasets import load_svmlight_file

    path = Path(path)
    with readable(str(path)):
        try:
            sparse, labels = load_svmlight_file(str(path), n_features=USPS_SIDE**2)
        except (EOFError, ValueError, UnicodeDecodeError, OverflowError) as error:
            raise InputError(
                f"{path}: is no LIBSVM file of 256 values, or is damaged: {error}"
            ) from error
    values = sparse.toarray().astype(np.float32)
    unknown = ~np.isin(labels, np.arange(1, 11))
    if unknown.any():
        raise InputError(f"{path}: has a label {labels[unknown][0]:g}; those of USPS are 1 to 10")
    outside = ~(np.abs(values) <= 1)  # and what is no number
    if outside.any():
        line = int(np.argwhere(outside)[0, 0]) + 1
        raise InputError(f"{path}: line {line} has a value outside [-1, 1]")
    images = (values.reshape(-1, USPS_SIDE, USPS_SIDE) + np.float32(1)) / np.float32(2)
    return images, labels.astype(np.int64) - 1
