"""What the benchmark of the trainers compares: three ways to the same weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import trainer
from fastmmd.train.quiet import quiet_lightning

pytestmark = pytest.mark.training


@pytest.fixture(autouse=True)
def _double_precision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In which the orders of summation do not show, and few images are enough."""
    monkeypatch.setattr(trainer, "BATCH", 20)
    monkeypatch.setattr(trainer, "STEPS", 4)
    torch.set_default_dtype(torch.float64)
    with quiet_lightning():
        yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", trainer.NETWORKS)
@pytest.mark.parametrize("name", trainer.SUBJECTS)
def test_all_lanes_make_the_same_steps(name: str, kind: str) -> None:
    subject, first = trainer.SUBJECTS[name], trainer.Network(kind)
    networks = {lane: copy.deepcopy(first) for lane in trainer.LANES}
    assert {lane: len(steps) for lane, steps in trainer.epoch(networks, subject).items()} == (
        dict.fromkeys(trainer.LANES, 3)
    )
    before, exact = first.state_dict(), networks["loop"].state_dict()
    assert not torch.allclose(exact["classifier.weight"], before["classifier.weight"])
    for lane in ("trainer", "lightning"):
        torch.testing.assert_close(networks[lane].state_dict(), exact)


def test_the_page_has_what_was_measured(repository: Path) -> None:
    results = repository / "benchmarks/results/amd-epyc-zen5-avx512-4-threads"
    record = json.loads((results / "trainer.json").read_text())
    page = (repository / "docs/train.md").read_text()
    assert trainer.table(record) in page
    assert trainer.shares(record) in page
