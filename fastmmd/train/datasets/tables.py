"""Tables of features, with a column or array of labels and maybe one of domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastmmd.compare.reading import InputError, read, some
from fastmmd.train.datasets.arrays import (
    ARRAY_SUFFIXES,
    feature_array,
    name_array,
    read_arrays,
)
from fastmmd.train.datasets.columns import column_names, read_columns
from fastmmd.train.datasets.rows import RowData, Rows

__all__ = ["Tables"]


class Tables(RowData):
    """Rows of features from ``.csv``, ``.tsv``, ``.parquet``, ``.npz`` and ``.mat`` files.

    Columns and arrays are taken by name. Of a table with columns, the features are all columns but
    label and domain; of a file with arrays, the only one with several rows and columns. Labels are
    words or numbers, and classes are those of the source, numbers by size and words by the
    alphabet. A target whose labels are missing, or all empty, is not measured. Where an array of
    numbers ``domain`` has ``domain_names`` beside it, these are the names; labels alike.

    Inputs are [n, d], float32.

    Args:
        files: One file with a column or array of domains, or a file for each domain by its name.
        source: Name of the domain with labels, or several.
        target: Name of the other domain.
        label: Name of the column or array of labels.
        domain: Name of the column or array of domains, of one file. Default ``"domain"``.
        features: Names of the columns, or the name of the array.
        standardize: Subtract the mean of the source's features and divide by their standard
            deviation (of the population; where it is 0, by 1), in all domains alike. The numbers
            come from all sources together, the part that is set apart to validate on included.
        **options: Of :class:`DomainData`.

    Raises:
        ValueError: No source, one named twice, or one that is the target as well. From ``setup``: a
            file is missing or damaged, holds something else than finite numbers, has rows of
            unequal length, or no such column or domain; the message names it.
        MissingExtraError: The library that reads a format is not installed.
    """

    def __init__(
        self,
        files: str | Path | Mapping[str, str | Path],
        source: str | Sequence[str],
        target: str | None = None,
        *,
        label: str = "label",
        domain: str = "domain",
        features: str | Sequence[str] | None = None,
        standardize: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(files, source, target, label, domain, **options)
        self.features = features
        self.standardize = standardize

    def _columns(self, path: str) -> Sequence[str]:
        return list(read_arrays(path)) if _has_arrays(path) else column_names(path)

    def _read_file(self, path: str, label: str | None, domain: str | None) -> Rows:
        if _has_arrays(path):
            return self._read_arrays(path, label, domain)
        there = column_names(path)
        named = [name for name in (label, domain) if name is not None]
        words = read_columns(path, named)
        features = [self.features] if isinstance(self.features, str) else self.features
        if features is None:
            features = [name for name in there if name not in named]
        unknown = [name for name in features if name not in there]
        if unknown:
            raise InputError(f"{path}: has no column {unknown[0]!r}; it has {some(there)}")
        try:
            values = read(path, columns=features).values.astype(np.float32)
        except InputError as error:
            raise InputError(error.problem, "; features names the columns to take") from error
        labels, domains = (words[name] if name else None for name in (label, domain))
        return Rows(path, values, tuple(features), labels, domains)

    def _read_arrays(self, path: str, label: str | None, domain: str | None) -> Rows:
        arrays = read_arrays(path)
        if self.features is not None and not isinstance(self.features, str):
            raise InputError(f"{path}: features must be the name of one array")
        points = feature_array(path, arrays, self.features, (self.label, domain))
        labels, domains = (
            name_array(path, arrays, name, len(points)) if name else None
            for name in (label, domain)
        )
        return Rows(path, points, None, labels, domains)

    def _inputs(self, sources: list[Rows], target: Rows | None) -> list[Any]:
        rows = [*sources, *([] if target is None else [target])]
        for part in rows[1:]:
            _check_columns(rows[0], part)
        values = [part.content.astype(np.float64) for part in rows]
        if self.standardize:
            together = np.concatenate(values[: len(sources)])
            mean, deviation = together.mean(axis=0), together.std(axis=0)
            deviation[deviation == 0] = 1
            values = [(part - mean) / deviation for part in values]
        return [torch.from_numpy(part.astype(np.float32)) for part in values]


def _has_arrays(path: str) -> bool:
    return Path(path).suffix.lower() in ARRAY_SUFFIXES


def _check_columns(first: Rows, part: Rows) -> None:
    wide, other = first.content.shape[1], part.content.shape[1]
    if wide != other:
        raise InputError(
            f"{first.where} and {part.where} must have as many features: they have {wide} and"
            f" {other}"
        )
    if first.columns != part.columns:
        raise InputError(
            f"{first.where} and {part.where} must have the same columns in one order, and have"
            f" {some(first.columns or ())} and {some(part.columns or ())}; features names the"
            " columns to take"
        )
