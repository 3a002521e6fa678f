"""Domains whose samples are rows of files: with a label, and a domain if one file has several."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fastmmd.compare.reading import InputError, some
from fastmmd.train.datasets.columns import class_names
from fastmmd.train.datasets.domains import Domain, DomainData, Samples, class_numbers, source_names

__all__ = ["RowData", "Rows"]


@dataclass(frozen=True)
class Rows:
    """Rows of a file, of one domain or of several.

    Attributes:
        where: What errors say of them: the file, and the domain.
        content: [n, ...], what becomes the inputs.
        columns: Names of its columns, if it has them.
        labels: [n] names of classes, "" for none, or None.
        domains: [n] names, or None.
    """

    where: str
    content: npt.NDArray[Any]
    columns: tuple[str, ...] | None
    labels: list[str] | None
    domains: list[str] | None

    def of(self, domain: str) -> Rows:
        """Those of one domain."""
        domains = np.array(self.domains)
        rows = (domains == domain).nonzero()[0]
        if not len(rows):
            there = some(sorted(set(domains.tolist())))
            raise InputError(f"{self.where}: has no domain {domain!r}; it has {there}")
        labels = None if self.labels is None else [self.labels[i] for i in rows]
        return Rows(f"{self.where}, {domain}", self.content[rows], self.columns, labels, None)


class RowData(DomainData):
    """What tables and texts share.

    Args:
        files: One file with a column of domains, or a file for each domain by its name.
        source: Name of the domain with labels, or several.
        target: Name of the other domain.
        label: Name of the column or array of labels.
        domain: Name of the column or array of domains, of one file.
        **options: Of :class:`~fastmmd.train.DomainData`.
    """

    def __init__(
        self,
        files: str | Path | Mapping[str, str | Path],
        source: str | Sequence[str],
        target: str | None,
        label: str,
        domain: str,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.files = files
        self.source_names = source_names(source, target)
        self.target_name = target
        self.label = label
        self.domain = domain

    @abstractmethod
    def _read_file(self, path: str, label: str | None, domain: str | None) -> Rows:
        """The rows of a file, with labels and domains from these columns."""

    @abstractmethod
    def _columns(self, path: str) -> Sequence[str]:
        """Names of the columns or arrays of a file."""

    @abstractmethod
    def _inputs(self, sources: list[Rows], target: Rows | None) -> list[Any]:
        """The inputs of the sources and, last, of the target if there is one."""

    def read(self) -> tuple[list[Domain], Domain | None]:
        """Reads the files and makes inputs of them."""
        rows = self._rows()
        sources = rows[: len(self.source_names)]
        for part in sources:
            if part.labels is None or "" in part.labels:
                raise InputError(f"{part.where}: a source must have a label in every row")
        classes = class_names([label for part in sources for label in part.labels or []])
        inputs = self._inputs(sources, None if self.target_name is None else rows[-1])
        domains = [_domain(part, made, classes) for part, made in zip(rows, inputs, strict=True)]
        if self.target_name is None:
            return domains, None
        return domains[:-1], domains[-1]

    def _rows(self) -> list[Rows]:
        """Those of each source and, last, of the target if there is one."""
        names = [*self.source_names, *([] if self.target_name is None else [self.target_name])]
        if not isinstance(self.files, Mapping):
            whole = self._read_file(str(self.files), self.label, self.domain)
            return [whole.of(name) for name in names]
        rows = []
        for name in names:
            if name not in self.files:
                raise InputError(f"files has no domain {name!r}; it has {some(list(self.files))}")
            path = str(self.files[name])
            unlabelled = name == self.target_name and self.label not in self._columns(path)
            rows.append(self._read_file(path, None if unlabelled else self.label, None))
        return rows


def _domain(rows: Rows, inputs: Any, classes: tuple[str, ...]) -> Domain:
    labels: Tensor | None = None
    if rows.labels is not None and any(rows.labels):
        if "" in rows.labels:
            row = rows.labels.index("")
            raise InputError(f"{rows.where}: row {row} (from 0) has no label, and others have")
        # Classes that the sources do not have are an error, which DomainData raises.
        if not set(rows.labels) <= set(classes):
            classes = class_names(rows.labels)
        labels = class_numbers(rows.labels, classes)
    samples = Samples(inputs, labels)
    return Domain(rows.where, classes, samples, samples)
