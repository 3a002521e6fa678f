"""Classes without a sample: named before the training, or by its first epoch, which is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from finetuning import ByTask, several, trainer, tuner
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fastmmd.train import Aligner, DomainPair, FineTuner
from fastmmd.train.checkpoints import EveryEpoch, load_checkpoint
from fastmmd.train.presence import ClassesSeen

pytestmark = pytest.mark.training


def aligner(**options: Any) -> Aligner:
    return Aligner(nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 4), num_classes=4, **options)


def loaders(labels: list[int], labelled: list[int] | None = None) -> CombinedLoader:
    """Of one's own, in which nobody looks for labels beforehand: batches of 2."""

    def part(of: list[int]) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.randn(len(of), 4), torch.tensor(of)), 2)

    domains = {"source": part(labels), "target": part(labels)}
    if labelled is not None:
        domains["target_labelled"] = part(labelled)
    return CombinedLoader(domains, "max_size_cycle")


def fit(module: L.LightningModule, data: Any, **options: Any) -> L.Trainer:
    run = trainer(**{"max_epochs": 3, **options})
    run.fit(module, data)
    return run


@pytest.mark.parametrize("make", [aligner, lambda: tuner(num_classes=4)], ids=["align", "tune"])
def test_the_first_epoch_shows_it_and_is_kept(make: Any, tmp_path: Path) -> None:
    steps: list[int] = []
    callbacks = [
        EveryEpoch(tmp_path),
        LambdaCallback(on_train_batch_end=lambda *_: steps.append(1)),
    ]
    with pytest.raises(ValueError, match=r"holds a sample of \[1, 3\] of the 4 classes\. That"):
        fit(make(), loaders([0, 2, 2, 0]), callbacks=callbacks, enable_checkpointing=True)
    assert len(steps) == 2
    assert load_checkpoint(tmp_path / "last.ckpt")["global_step"] == 2


def test_an_only_epoch_is_finished_first() -> None:
    ended: list[str] = []
    callback = LambdaCallback(
        on_train_end=lambda *_: ended.append("training"), on_fit_end=lambda *_: ended.append("fit")
    )
    with pytest.raises(ValueError, match=r"\[1\] of the 4 classes"):
        fit(aligner(), loaders([0, 2, 3, 0]), callbacks=[callback], max_epochs=1)
    assert ended == ["training", "fit"]


@pytest.mark.parametrize(
    ("options", "labels", "labelled", "limits"),
    [
        ({}, [3, 1, 2, 0], None, {}),
        ({}, [3, 1, 2, 2], [0, 0], {}),
        ({"all_classes": False}, [3, 1, 2, 2], None, {}),
        # Of an epoch that is cut short nothing is said.
        ({}, [3, 1, 2, 0], None, {"limit_train_batches": 1}),
        ({"schedule": "constant"}, [3, 1, 2, 0], None, {"max_steps": 1, "max_epochs": -1}),
    ],
    ids=["all", "labelled target", "allowed", "one batch", "one step"],
)
def test_what_is_no_error(options: Any, labels: Any, labelled: Any, limits: Any) -> None:
    assert fit(aligner(**options), loaders(labels, labelled), **limits).global_step > 0


def test_a_second_training_looks_again() -> None:
    module = aligner()
    with pytest.raises(ValueError, match="no batch of the first epoch"):
        fit(module, loaders([0, 1]))
    fit(module, loaders([0, 1, 2, 3]))
    with pytest.raises(ValueError, match="no batch of the first epoch"):
        fit(module, loaders([0, 1]))


def test_several_tasks() -> None:
    """Of a task that has no labels at all nothing is said."""
    data = ByTask()
    data.labels["kind"] = data.labels["kind"] % 2
    tasks = several()
    kind = type(tasks["kind"])
    tasks = {"kind": kind(3), "flags": tasks["flags"], "other": kind(4)}
    with pytest.raises(ValueError, match=r"\[2\] of the 3 classes of kind\. That"):
        fit(tuner(tasks=tasks), DataLoader(data, 16))
    data.labels["kind"] = torch.full_like(data.labels["kind"], -100)
    fit(tuner(tasks=tasks), DataLoader(data, 16), max_epochs=1)


def test_known_labels_are_looked_at_before_the_training() -> None:
    points = torch.randn(8, 4)
    source = TensorDataset(points, torch.arange(8) % 2)
    for module in (aligner(), tuner(num_classes=4)):
        data = DomainPair(source, TensorDataset(points), batch_size=4)
        with pytest.raises(ValueError, match=r"none has \[2, 3\], and there are \[\] besides"):
            fit(module, data)
    fit(aligner(all_classes=False), DomainPair(source, TensorDataset(points), batch_size=4))
    labels = torch.arange(8)
    foreign = DomainPair(TensorDataset(points, labels), TensorDataset(points), batch_size=4)
    for allowed in (True, False):
        with pytest.raises(
            ValueError, match=r"none has \[\], and there are \[4, 5, 6, 7\] besides"
        ):
            fit(aligner(all_classes=allowed), foreign)


def test_labels_that_are_no_class_are_not_counted() -> None:
    seen = ClassesSeen(3)
    seen.add(torch.tensor([-100, 2, -1, 7]))
    seen.add(torch.tensor([2, 0]))
    assert seen.seen is not None
    assert seen.seen[:3].tolist() == [1, 0, 1]
    assert FineTuner(nn.Identity(), 3, in_features=3).class_counts() == {"": 3}
