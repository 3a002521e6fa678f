"""Texts with labels, as a transformer takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastmmd._extras import require_extra
from fastmmd.compare.reading import InputError
from fastmmd.train.datasets.columns import column_names, read_columns
from fastmmd.train.datasets.rows import RowData, Rows

__all__ = ["Texts"]


class Texts(RowData):
    """Texts from ``.csv``, ``.tsv``, ``.jsonl`` and ``.parquet`` files, through a tokeniser.

    Inputs are a mapping of tensors [n, t], ``input_ids`` and ``attention_mask`` and what else the
    tokeniser makes; t is the number of tokens of the longest text of all domains, or
    ``max_length``.

    Args:
        files: One file with a column of domains, or a file for each domain by its name.
        source: Name of the domain with labels, or several.
        target: Name of the other domain, whose labels may be missing or all empty.
        tokenizer: A folder or name for ``transformers.AutoTokenizer.from_pretrained``, or what is
            called as a tokeniser of transformers is.
        text: Name of the column of texts.
        label: Name of the column of labels.
        domain: Name of the column of domains, of one file.
        max_length: Tokens after which a text is cut off.
        **options: Of :class:`DomainData`.

    Raises:
        ValueError: ``max_length`` is less than 1, no source, one named twice, or one that is the
            target as well. From ``setup``: a file is missing or damaged, has rows of unequal
            length, no such column or domain, or an empty text; the message names it.
        MissingExtraError: A tokeniser is named, and transformers is not installed.
    """

    def __init__(
        self,
        files: str | Path | Mapping[str, str | Path],
        source: str | Sequence[str],
        target: str | None = None,
        *,
        tokenizer: str | Path | Callable[..., Mapping[str, Any]],
        text: str = "text",
        label: str = "label",
        domain: str = "domain",
        max_length: int = 128,
        **options: Any,
    ) -> None:
        super().__init__(files, source, target, label, domain, **options)
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1; got {max_length!r}")
        if isinstance(tokenizer, str | Path):
            require_extra(f"the tokenizer {str(tokenizer)!r}", "text", "transformers")
        self.tokenizer = tokenizer
        self.text = text
        self.max_length = max_length

    def _columns(self, path: str) -> Sequence[str]:
        return column_names(path)

    def _read_file(self, path: str, label: str | None, domain: str | None) -> Rows:
        columns = read_columns(path, [name for name in (self.text, label, domain) if name])
        texts = columns[self.text]
        if "" in texts:
            raise InputError(f"{path}: row {texts.index('')} (from 0) has an empty {self.text!r}")
        labels, domains = (columns[name] if name else None for name in (label, domain))
        return Rows(path, np.array(texts, dtype=object), None, labels, domains)

    def _inputs(self, sources: list[Rows], target: Rows | None) -> list[Any]:
        rows = [*sources, *([] if target is None else [target])]
        # All at once: domains of one length can pass through a network together.
        tokens = self._tokenize([text for part in rows for text in part.content])
        ends = np.cumsum([len(part.content) for part in rows])
        return [
            {name: values[end - len(part.content) : end] for name, values in tokens.items()}
            for part, end in zip(rows, ends, strict=True)
        ]

    def _tokenize(self, texts: list[str]) -> dict[str, torch.Tensor]:
        tokenizer: Any = self.tokenizer
        if isinstance(tokenizer, str | Path):
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(str(tokenizer))
        made = tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return dict(made)
