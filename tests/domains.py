"""What the tests of data modules share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmmd.train import (
    DomainData,
)


def batches(data: DomainData) -> list[Any]:
    """The batches of an epoch."""
    return [
        batch[0] if isinstance(batch, tuple) and isinstance(batch[0], dict) else batch
        for batch in data.train_dataloader()
    ]


def shuffled_rows(loader: Any) -> Tensor:
    return torch.cat([batch[0] for batch in loader])


TEXTS = [
    ("the film was a delight", "good", "films"),
    ("the film was a bore, sadly", "bad", "films"),
    ("a delight to watch", "good", "films"),
    ("never again", "bad", "films"),
    ('a "sturdy" pan', "good", "kitchen"),
    ("the handle broke; never again, sadly, and nobody answers", "bad", "kitchen"),
]


def words(texts: list[str], **options: Any) -> dict[str, Tensor]:
    """Numbers of words, called as a tokeniser of transformers is."""
    assert options == {
        "padding": True,
        "truncation": True,
        "max_length": options["max_length"],
        "return_tensors": "pt",
    }
    vocabulary = sorted({word for text, *_ in TEXTS for word in text.split()})
    numbers = [[1 + vocabulary.index(w) for w in text.split()] for text in texts]
    length = min(options["max_length"], max(map(len, numbers)))
    ids = torch.tensor([(row + [0] * length)[:length] for row in numbers])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def write_texts(path: Path) -> str:
    names = ("text", "label", "domain")
    if path.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(names, row, strict=True))) for row in TEXTS]
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        quoted = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in TEXTS]
        lines = [separator.join(row) for row in [list(names), *quoted]]
    path.write_text("\n".join(lines))
    return str(path)
