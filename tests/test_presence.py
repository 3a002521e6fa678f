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
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
)

from fastmmd.train import Aligner, BalancedSampler, DomainPair, FineTuner
from fastmmd.train.checkpoints import EveryEpoch, load_checkpoint
from fastmmd.train.presence import ClassesSeen

pytestmark = pytest.mark.training


def aligner(**options: Any) -> Aligner:
    return Aligner(nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 4), num_classes=4, **options)


def loaders(
    labels: list[int], labelled: list[int] | None = None, mode: Any = "max_size_cycle"
) -> CombinedLoader:
    """Of one's own, in which nobody looks for labels beforehand: batches of 2."""

    def part(of: list[int]) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.randn(len(of), 4), torch.tensor(of)), 2)

    domains = {"source": part(labels), "target": part(labels)}
    if labelled is not None:
        domains["target_labelled"] = part(labelled)
    return CombinedLoader(domains, mode)


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
    with pytest.raises(ValueError, match=r"sample of \[1, 3\] of the 4 classes\. The epoch is in"):
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
    with pytest.raises(ValueError, match="no batch of the first whole epoch"):
        fit(module, loaders([0, 1]))
    fit(module, loaders([0, 1, 2, 3]))
    with pytest.raises(ValueError, match="no batch of the first whole epoch"):
        fit(module, loaders([0, 1]))


def test_several_tasks() -> None:
    """Of a task that has no labels at all nothing is said."""
    data = ByTask()
    data.labels["kind"] = data.labels["kind"] % 2
    tasks = several()
    kind = type(tasks["kind"])
    tasks = {"kind": kind(3), "flags": tasks["flags"], "other": kind(4)}
    with pytest.raises(ValueError, match=r"\[2\] of the 3 classes of kind\. all_classes"):
        fit(tuner(tasks=tasks), DataLoader(data, 16))
    data.labels["kind"] = torch.full_like(data.labels["kind"], -100)
    fit(tuner(tasks=tasks), DataLoader(data, 16), max_epochs=1)


@pytest.mark.parametrize("absent", [False, True])
def test_an_epoch_that_is_resumed_in_its_middle_shows_nothing(absent: bool, tmp_path: Path) -> None:
    """The next one does."""

    def stop(run: L.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if index == 1:
            run.save_checkpoint(tmp_path / "middle.ckpt")
            run.limit_train_batches = run.should_stop = 1

    labels = [0, 0, 1, 1, 2, 2, 3 - absent, 3 - absent]
    callback = LambdaCallback(on_train_batch_end=stop)
    fit(aligner(all_classes=False), loaders(labels), callbacks=[callback], max_epochs=1)
    steps: list[int] = []
    callback = LambdaCallback(on_train_batch_end=lambda *a: steps.append(a[-1]))
    run, module = trainer(max_epochs=2, callbacks=[callback]), aligner()
    resumed = {"ckpt_path": tmp_path / "middle.ckpt", "weights_only": True}
    if absent:
        with pytest.raises(ValueError, match=r"\[3\] of the 4 classes\. all_classes"):
            run.fit(module, loaders(labels), **resumed)
    else:
        run.fit(module, loaders(labels), **resumed)
    assert steps == [2, 3, 0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["sampler", "batch_sampler", "balanced"])
def test_a_sampler_that_draws_fewer_samples_than_there_are_shows_nothing(kind: str) -> None:
    labels = torch.tensor([0, 1, 2, 2, 1, 0, 0, 1, 2, 2])
    data = TensorDataset(torch.randn(10, 4), labels)

    def loader(count: int) -> DataLoader[Any]:
        if kind == "balanced":
            return DataLoader(data, 2, sampler=BalancedSampler(labels, count, seed=1))
        sampler = RandomSampler(data, num_samples=count, generator=torch.Generator())
        if kind == "sampler":
            return DataLoader(data, 2, sampler=sampler)
        return DataLoader(data, batch_sampler=BatchSampler(sampler, 2, drop_last=False))

    assert fit(tuner(num_classes=4), loader(8), max_epochs=1).global_step == 4
    domains = {"source": loader(8), "target": DataLoader(data, 2)}
    assert fit(aligner(), CombinedLoader(domains, "max_size_cycle"), max_epochs=1).global_step == 5
    with pytest.raises(ValueError, match=r"sample of \[3\] of the 4 classes"):
        fit(tuner(num_classes=4), loader(10), max_epochs=1)


@pytest.mark.parametrize(
    "sampler", [SubsetRandomSampler(range(4)), DistributedSampler([0] * 6, 2, 0)]
)
def test_a_sampler_of_a_part_shows_all_of_that(sampler: Any) -> None:
    data = TensorDataset(torch.randn(6, 4), torch.tensor([0, 1, 2, 2, 1, 0]))
    with pytest.raises(ValueError, match=r"3\] of the 4 classes"):
        fit(tuner(num_classes=4), DataLoader(data, 2, sampler=sampler, drop_last=True))


def test_few_target_samples_do_not_matter_to_the_classes_of_the_source() -> None:
    data = TensorDataset(torch.randn(4, 4), torch.tensor([0, 1, 2, 2]))
    few = DataLoader(data, 2, sampler=RandomSampler(data, num_samples=2))
    domains = {"source": DataLoader(data, 2), "target": few}
    with pytest.raises(ValueError, match=r"sample of \[3\] of the 4 classes"):
        fit(aligner(), CombinedLoader(domains, "max_size_cycle"))


def test_loaders_that_end_with_the_shortest_show_nothing() -> None:
    data = loaders([0, 1, 2, 3], [0, 1], mode="min_size")
    assert fit(aligner(), data).global_step == 3
    alone = DataLoader(TensorDataset(torch.randn(4, 4), torch.tensor([0, 1, 2, 2])), 2)
    with pytest.raises(ValueError, match="no batch of the first whole epoch"):
        fit(tuner(num_classes=4), CombinedLoader(alone, "min_size"))


def test_known_labels_are_looked_at_before_the_training() -> None:
    points = torch.randn(8, 4)
    source = TensorDataset(points, torch.arange(8) % 2)
    for module in (aligner(), tuner(num_classes=4)):
        data = DomainPair(source, TensorDataset(points), batch_size=4)
        with pytest.raises(ValueError, match=r"fit: none is of the classes \[2, 3\]; all_classes"):
            fit(module, data)
    fit(aligner(all_classes=False), DomainPair(source, TensorDataset(points), batch_size=4))
    labels = torch.arange(8)
    foreign = DomainPair(TensorDataset(points, labels), TensorDataset(points), batch_size=4)
    for allowed in (True, False):
        with pytest.raises(ValueError, match=r"\[4, 5, 6, 7\] are no classes, which are 0 to 3$"):
            fit(aligner(all_classes=allowed), foreign)


def test_what_the_labels_show_no_epoch_can_deny() -> None:
    """The only sample of a class, in the incomplete batch that is left out."""
    labels = torch.tensor([0, 1, 2, 0, 3])
    source = TensorDataset(torch.randn(5, 4), labels)
    lacked = []
    for seed in range(3):
        data = DomainPair(source, TensorDataset(torch.randn(4, 4)), batch_size=4, seed=seed)
        seen: list[int] = []
        callback = LambdaCallback(
            on_train_batch_end=lambda *a, seen=seen: seen.extend(a[3]["source"][1].tolist())
        )
        fit(aligner(), data, callbacks=[callback], max_epochs=1)
        lacked += set(range(4)) - set(seen)
    assert lacked


def test_a_fine_tuner_takes_samples_without_a_label() -> None:
    points, labels = torch.randn(8, 4), torch.tensor([0, 1, 2, -100] * 2)
    data = DomainPair(TensorDataset(points, labels), TensorDataset(points), batch_size=4)
    fit(tuner(num_classes=3), data, max_epochs=1)
    with pytest.raises(ValueError, match=r"none is of the classes \[3\]"):
        fit(tuner(num_classes=4), data)
    with pytest.raises(ValueError, match=r"fit: \[-100\] are no classes, which are 0 to 3; none"):
        fit(aligner(), data)


def test_labels_that_are_no_class_are_not_counted() -> None:
    seen = ClassesSeen(3)
    seen.add(torch.tensor([-100, 2, -1, 7]))
    seen.add(torch.tensor([2, 0]))
    assert seen.seen is not None
    assert seen.seen[:3].tolist() == [1, 0, 1]
    assert FineTuner(nn.Identity(), 3, in_features=3).class_counts() == {"": 3}
