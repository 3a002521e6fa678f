"""The page that compares methods against the numbers that were measured."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import alignment
from fastmmd.train import Outputs

ROOT = Path(__file__).parents[1]
FOLDER = "benchmarks/results/amd-epyc-zen5-avx512-4-threads"


def test_the_table_of_alignments_is_that_of_the_numbers() -> None:
    result = json.loads((ROOT / FOLDER / "alignment.json").read_text())
    page = (ROOT / "docs/choosing.md").read_text()
    assert alignment.table(result["rows"]) in page
    assert alignment.gains(result["rows"]) in page
    assert {row["method"] for row in result["rows"]} == {*alignment.METHODS, *alignment.OTHERS}
    for direction, selection in result["selection"].items():
        chosen = alignment.Settings(**selection["chosen"])
        assert f"{direction}: {alignment.name_of(chosen)}" in " ".join(page.split())
        assert f"{chosen.epochs} epochs" in page


def test_the_settings_that_count_were_chosen_by_the_rule() -> None:
    """From the whole grid, by the recorded scores, with a seed that no row has."""
    result = json.loads((ROOT / FOLDER / "alignment.json").read_text())
    assert set(result["selection"]) == {f"{s} to {t}" for s, t in alignment.DIRECTIONS}
    for selection in result["selection"].values():
        chosen = alignment.Settings(**selection["chosen"])
        runs = [alignment.name_of(choice) for choice in alignment.grid(chosen)]
        assert selection["runs"] == runs
        best = selection["mean_ranks"].index(min(selection["mean_ranks"]))
        assert alignment.name_of(chosen) == runs[best] == selection["best"][0]
        assert selection["seed"] == alignment.SELECTION_SEED
    assert all(row["seed"] != alignment.SELECTION_SEED for row in result["rows"])


@pytest.mark.training
def test_settings_are_chosen_without_target_labels() -> None:
    """What trains and what scores is given target images, and has no other way to the data."""
    images, labels = torch.rand(2, 60, 1, 16, 16), torch.arange(60) % 10
    choices = [alignment.Settings(epochs=1, batch_size=30, weight=w) for w in (0.3, 3.0)]
    chosen, ranking = alignment.select((images[0], labels), images[1], choices)
    assert ranking.runs == tuple(map(alignment.name_of, choices))
    assert alignment.name_of(chosen) == ranking.best[0]
    source, target = alignment.candidate((images[0], labels), images[1], choices[0])
    assert source.labels is not None
    assert len(source) == 12
    assert len(target) == 60
    assert target.labels is None
    for function in (alignment.select, alignment.candidate, alignment.train):
        kind = inspect.signature(function, eval_str=True).parameters["target"].annotation
        assert kind is Tensor


def test_the_first_of_equal_settings_is_chosen() -> None:
    labels = torch.arange(20) % 10
    logits = 4.0 * torch.eye(10)[labels]
    good = Outputs(logits, logits, labels), Outputs(logits, logits)
    poor = Outputs(logits, -logits, labels), Outputs(logits, 0.1 * logits)
    choices = alignment.grid(alignment.Settings())[:3]

    def trained(*_: object) -> list[tuple[Outputs, Outputs]]:
        return [poor, good, good]

    chosen, ranking = alignment.select((logits, labels), logits, choices, trained)
    assert len(ranking.best) == 2
    assert chosen == choices[1]
