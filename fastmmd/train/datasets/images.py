"""Images in folders: a folder for each domain, in it one for each class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastmmd._extras import require_extra
from fastmmd.compare.reading import InputError, some
from fastmmd.train.datasets.domains import Domain, DomainData, class_numbers, source_names

__all__ = ["ImageFolder", "ImageFolders", "ImageTransform"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")

# Mean and standard deviation of ImageNet's channels, by which published weights expect inputs.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class ImageTransform:
    """The usual road from an image to a tensor [3, size, size].

    The shorter side becomes ``resize`` pixels (bilinear, antialiased); then the centre of
    ``size`` x ``size`` is cut out or, in training, a piece at random that is mirrored every second
    time; values in [0, 1] are normalised by ``(value - mean) / std`` of each channel.

    Args:
        size: Pixels per side of the result.
        resize: Pixels of the shorter side before, at least ``size``. Default: 8/7 of it.
        training: Cut and mirror at random, by torch's global random numbers.
        mean: Of the three channels; default those of ImageNet.
        std: As ``mean``.

    Raises:
        ValueError: A size is too small, or there are not three means and three positive deviations.
    """

    def __init__(
        self,
        size: int = 224,
        resize: int | None = None,
        *,
        training: bool = False,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ) -> None:
        resize = round(size * 8 / 7) if resize is None else resize
        if not 1 <= size <= resize:
            raise ValueError(f"size must lie between 1 and resize = {resize}; got {size!r}")
        for name, numbers in (("mean", mean), ("std", std)):
            if len(numbers) != 3 or (name == "std" and min(numbers) <= 0):
                kind = "positive numbers" if name == "std" else "numbers"
                raise ValueError(f"{name} must be three {kind}, one per channel; got {numbers!r}")
        self.size = size
        self.resize = resize
        self.training = training
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.std = torch.tensor(std).view(3, 1, 1)

    def __call__(self, image: Any) -> Tensor:
        """The tensor of a Pillow image of mode RGB."""
        from PIL import Image

        scale = self.resize / min(image.size)
        width, height = (max(self.resize, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        free = (width - self.size, height - self.size)
        if self.training:
            left, top = (int(torch.randint(room + 1, ())) for room in free)
        else:
            left, top = (room // 2 for room in free)
        image = image.crop((left, top, left + self.size, top + self.size))
        values = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).float() / 255
        if self.training and torch.rand(()) < 0.5:
            values = values.flip(2)
        return (values - self.mean) / self.std


class ImageFolder(Dataset[Any]):
    """The images of a domain, read when they are asked for.

    Attributes:
        paths: Of the images.
        labels: [n], numbers of classes.
    """

    def __init__(
        self, paths: Sequence[Path], labels: Tensor, transform: Callable[[Any], Any]
    ) -> None:
        self.paths = paths
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(open_image(self.paths[index])), int(self.labels[index])


class ImageFolders(DomainData):
    """Images in folders, read with Pillow.

    The layout is that of Office-31, ``root/domain/images/class/x.jpg``, or that of Office-Home,
    ``root/domain/class/x.jpg``.

    Args:
        root: The folder of the domains.
        source: Name of the domain with labels, or several.
        target: Name of the other domain.
        transform: Called with a Pillow image of mode RGB. Default: :class:`ImageTransform`.
        train_transform: The same for training. Default: ``transform`` if that is given, else
            ``ImageTransform(size, training=True)``.
        size: Pixels per side that the default makes.
        classes: Names of the classes to take. Default: all, which must be the same in all domains.
        **options: Of :class:`DomainData`.

    Raises:
        ValueError: No source, one named twice, or one that is the target as well. From ``setup``:
            there is no such domain or class, a class without images, or other classes in another
            domain. From a loader: an image that cannot be read. The
            message names the file or folder.
        MissingExtraError: Pillow is not installed.
    """

    def __init__(
        self,
        root: str | Path,
        source: str | Sequence[str],
        target: str | None = None,
        *,
        transform: Callable[[Any], Any] | None = None,
        train_transform: Callable[[Any], Any] | None = None,
        size: int = 224,
        classes: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        require_extra("reading images", "images", "PIL")
        super().__init__(**options)
        self.root = Path(root)
        self.source_names = source_names(source, target)
        self.target_name = target
        self.transform = transform or ImageTransform(size)
        self.train_transform = train_transform or transform or ImageTransform(size, training=True)
        self.wanted = None if classes is None else tuple(classes)

    def read(self) -> tuple[list[Domain], Domain | None]:
        """Lists the images of the domains."""
        sources: list[Domain] = []
        for name in self.source_names:
            sources.append(self._domain(name, sources[0].classes if sources else ()))
        if self.target_name is None:
            return sources, None
        return sources, self._domain(self.target_name, sources[0].classes)

    def _domain(self, name: str, expected: tuple[str, ...]) -> Domain:
        folder = self.root / name
        if not folder.is_dir():
            raise InputError(f"{self.root}: has no domain {name!r}; it has {_listed(self.root)}")
        if [part.name for part in _folders(folder)] == ["images"]:
            folder /= "images"
        there = {part.name: part for part in _folders(folder)}
        if not there:
            raise InputError(f"{folder}: has no folders of classes: the domain {name!r} is empty")
        unknown = [wanted for wanted in self.wanted or () if wanted not in there]
        if unknown:
            raise InputError(f"{folder}: has no class {unknown[0]!r}; it has {_listed(folder)}")
        if self.wanted is not None:
            there = {of_class: there[of_class] for of_class in self.wanted}
        # Classes that the sources do not have are an error, which DomainData raises.
        classes = expected if expected and set(there) <= set(expected) else tuple(there)
        paths: list[Path] = []
        names: list[str] = []
        for of_class, part in there.items():
            images = sorted(p for p in part.iterdir() if p.suffix.lower() in SUFFIXES)
            if not images:
                raise InputError(f"{part}: has no images ({', '.join(SUFFIXES)})")
            paths += images
            names += [of_class] * len(images)
        labels = class_numbers(names, classes)
        return Domain(
            name,
            classes,
            ImageFolder(paths, labels, self.train_transform),
            ImageFolder(paths, labels, self.transform),
        )


def open_image(path: Path) -> Any:
    """A Pillow image of mode RGB.

    Raises:
        InputError: It cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            # Pillow warns of palettes with transparency that are not converted in two steps.
            if "transparency" in image.info:
                return image.convert("RGBA").convert("RGB")
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: is no image, or is damaged ({error})") from error


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _listed(folder: Path) -> str:
    return some([part.name for part in _folders(folder)]) if folder.is_dir() else "no folder at all"
