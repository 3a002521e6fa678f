"""Data modules of the field's file formats: images in folders, digits, tables and text.

Each is a ``LightningDataModule`` for :class:`~fastmmd.train.FineTuner` (a source alone) and
:class:`~fastmmd.train.Aligner` (a source and a target).
"""

from __future__ import annotations

from fastmmd.train.datasets.digits import Digits
from fastmmd.train.datasets.domains import DomainData, Samples
from fastmmd.train.datasets.images import ImageFolders, ImageTransform
from fastmmd.train.datasets.tables import Tables
from fastmmd.train.datasets.text import Texts

__all__ = [
    "Digits",
    "DomainData",
    "ImageFolders",
    "ImageTransform",
    "Samples",
    "Tables",
    "Texts",
]
