"""Report, guard, validators and predictions of a module of several tasks, one task at a time."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from finetuning import CLASSES, ByTask, network, samples, several, trainer, tuner
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fastmmd.compare.reading import InputError
from fastmmd.train import (
    L2SP,
    Distillation,
    FineTuner,
    GradualUnfreezing,
    LayerHistory,
    Outputs,
    Task,
    TransferGuard,
    WriteReport,
    collect,
    importance_weighted_risk,
    judge,
    report,
    scores,
    source_risk,
)
from fastmmd.train.checkpoints import EveryEpoch, load_checkpoint
from fastmmd.train.predictions import write_predictions

pytestmark = pytest.mark.training


def tasks() -> dict[str, Task]:
    return {"kind": Task(CLASSES), "sign": Task(2), "size": Task(1, "regression")}


class Three(ByTask):
    """Kind, sign and size of a sample; the kind of some is not known."""

    def __init__(self, n: int = 48, unknown: int = 0) -> None:
        super().__init__(n)
        kinds = self.labels["kind"].clone()
        kinds[:unknown] = -100
        sign = (self.x[:, 3] > 0).long()
        self.labels = {"kind": kinds, "sign": sign, "size": self.labels["size"]}


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(Three(**options), 16)


# Collecting


def test_the_outputs_of_a_task() -> None:
    module, data = tuner(tasks=tasks()), Three(unknown=5)
    outputs = collect(module, DataLoader(data, 16), task="kind")
    assert outputs.labels is not None
    assert outputs.labels.tolist() == data.labels["kind"].tolist()
    torch.testing.assert_close(outputs.logits, module.eval()(data.x)["kind"])
    assert collect(module, DataLoader(data, 16), task="sign").logits.shape == (48, 2)
    x = data.x[:8]
    part = collect(module, [(x, {"sign": torch.ones(8).long()}), (x, {})], task="sign")
    assert part.known_labels().tolist() == [1] * 8 + [-100] * 8
    assert collect(module, [(x, {})], task="sign").labels is None
    assert collect(module, [x], task="sign").labels is None


@pytest.mark.parametrize(
    ("module", "task", "message"),
    [
        (lambda: tuner(tasks=tasks()), None, "has the tasks kind, sign, size; got None"),
        (
            lambda: tuner(tasks=tasks()),
            "sort",
            r"among kind \(classification\), .*; got 'sort",
        ),
        (lambda: tuner(tasks=tasks()), "size", r"size \(regression\); got 'size'"),
        (tuner, "kind", "one of the module's, which has no tasks; got 'kind'"),
    ],
)
def test_tasks_that_there_are_not(module: Any, task: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collect(module(), loader(), task=task)


def test_labels_that_are_no_mapping() -> None:
    with pytest.raises(ValueError, match="must be a mapping of tasks to tensors; got Tensor"):
        collect(tuner(tasks=tasks()), [(torch.zeros(2, 4), torch.zeros(2))], task="kind")


def outputs(seed: int, unknown: int = 0) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(80) % 3
    logits = 2.0 * torch.eye(3)[labels] + torch.randn(80, 3, generator=generator)
    labels[:unknown] = -100
    return Outputs(torch.randn(80, 4, generator=generator), logits, labels)


def test_samples_without_a_label_have_no_part() -> None:
    part, rest = outputs(0, 30), torch.arange(30, 80)
    known = part.subset(rest)
    assert part.accuracy() == known.accuracy()
    assert source_risk(part) == pytest.approx(source_risk(known))
    assert torch.equal(part.losses()[30:], known.losses())
    assert scores(part)["confusion"].sum() == 50
    assert scores(part)["f1"] == scores(known)["f1"]
    weights = torch.rand(80, dtype=torch.float64)
    assert importance_weighted_risk(part, part, weights=weights) == pytest.approx(
        importance_weighted_risk(known, part, weights=weights[30:])
    )
    target, other = outputs(1, 20), outputs(2, 20)
    verdict = judge((part, target), (outputs(3, 30), other))
    assert verdict.evidence == judge((known, target), (outputs(3).subset(rest), other)).evidence
    exact = target.subset(torch.arange(20, 80)).accuracy() - other.labelled().accuracy()
    assert verdict.true_gain == pytest.approx(exact)
    nothing = part.subset(torch.arange(30))
    for use in (nothing.labelled, nothing.accuracy, lambda: source_risk(nothing)):
        with pytest.raises(ValueError, match="labels are needed"):
            use()
    with pytest.raises(ValueError, match="at least 20 samples with labels; got 10"):
        judge((outputs(0, 70), target), (outputs(0, 70), target))


# Trainings


def test_a_report_for_each_task(tmp_path: Path) -> None:
    given: dict[str, Any] = {"source": loader(), "target": loader(unknown=30)}
    callbacks: list[L.Callback] = [EveryEpoch(tmp_path)]
    for task in ("kind", "sign"):
        callbacks += [
            TransferGuard(**given, task=task),
            LayerHistory(**given, task=task),
            WriteReport(task=task, form="md", classes=["a", "b", "c"] if task == "kind" else None),
        ]
    run = trainer(
        max_epochs=1, callbacks=callbacks, default_root_dir=tmp_path, enable_checkpointing=True
    )
    module = tuner(tasks=tasks())
    run.fit(module, loader())
    pages = [(tmp_path / f"report-{t}" / "report.md").read_text() for t in ("kind", "sign")]
    for page, task in zip(pages, ("kind", "sign"), strict=True):
        accuracy = collect(module, given["target"], task=task).accuracy()
        assert f"{100 * accuracy:.1f} %" in page
        assert "judged without target labels" in page
    assert "| c |" in pages[0]
    assert "| c |" not in pages[1]
    state = load_checkpoint(tmp_path / "last.ckpt")["callbacks"]
    assert {"TransferGuard of kind", "TransferGuard of sign", "LayerHistory of sign"} <= set(state)
    path = report(module, *given.values(), tmp_path / "by itself", task="sign", form="md")
    assert "| sign |" not in path.read_text()


@pytest.mark.parametrize("make", [TransferGuard, LayerHistory, WriteReport])
def test_a_task_is_asked_for_before_the_training(make: Any, tmp_path: Path) -> None:
    callback = make()
    run = trainer(max_epochs=1, callbacks=[callback], default_root_dir=tmp_path)
    with pytest.raises(ValueError, match="task must be one of the module's"):
        run.fit(tuner(tasks=tasks()), loader(), [loader(), loader()])
    assert run.global_step == 0


def test_the_twin_of_a_fine_tuner_has_its_tasks_alone() -> None:
    """With the class weights that are counted when the fit begins, without L2-SP and a teacher."""

    def make(**options: Any) -> FineTuner:
        torch.manual_seed(5)
        return tuner(tasks=several(), weight_decay=0.0, **options)

    data = DataLoader(ByTask(), 16)
    guard, alone = TransferGuard(source=data, target=data, task="kind"), make()
    torch.manual_seed(0)
    teacher = FineTuner(network(), tasks={"kind": Task(CLASSES)}, in_features=8)
    guarded = make(l2_sp=L2SP(0.5), distillation=Distillation(teacher, weight=0.3))
    trainer(max_epochs=2).fit(alone, data)
    trainer(max_epochs=2, callbacks=[guard]).fit(guarded, data)
    assert guard.twin is not None
    assert not torch.equal(guarded.heads["kind"].weight, alone.heads["kind"].weight)  # type: ignore[arg-type]
    twin = guard.twin.state_dict()
    for name, value in alone.state_dict().items():
        assert torch.equal(value, twin[name]), name


def test_the_twin_is_frozen_as_the_model_is() -> None:
    """By a callback that unfreezes stage after stage, with batch normalisation in eval mode."""

    def run(module: FineTuner, *callbacks: L.Callback) -> FineTuner:
        data, unfreezing = DataLoader(TensorDataset(*samples(48)), 16), GradualUnfreezing(1)
        trainer(max_epochs=2, callbacks=[unfreezing, *callbacks]).fit(module, data)
        return module

    data = DataLoader(TensorDataset(*samples(48)), 16)
    guard = TransferGuard(source=data, target=data)
    guarded, alone = run(tuner(l2_sp=L2SP(9.0)), guard), run(tuner(weight_decay=0.0))
    assert guard.twin is not None
    twin, first = guard.twin.state_dict(), tuner().state_dict()
    assert torch.equal(alone.state_dict()["backbone.1.0.weight"], first["backbone.1.0.weight"])
    assert not torch.equal(alone.state_dict()["backbone.2.0.weight"], first["backbone.2.0.weight"])
    assert not torch.equal(guarded.state_dict()["heads.task.weight"], twin["heads.task.weight"])
    for name, value in alone.state_dict().items():
        assert torch.equal(value, twin[name]), name


# Predictions


def test_predictions_of_several_tasks(tmp_path: Path) -> None:
    kinds: Any = {"kind": "classification", "flags": "multilabel", "size": "regression"}
    all_of = {"kind": torch.randn(5, 3), "flags": torch.randn(5, 2), "size": torch.randn(5, 1)}
    batches = [{name: t[rows] for name, t in all_of.items()} for rows in (slice(3), slice(3, 5))]
    paths = [Path(f"{i}.png") for i in range(5)]
    write_predictions(tmp_path / "p.npz", batches, None, kinds)
    write_predictions(tmp_path / "p.csv", batches, paths, kinds)
    with np.load(tmp_path / "p.npz") as found:
        arrays = {name: torch.from_numpy(found[name]) for name in found}
    torch.testing.assert_close(arrays["kind_probabilities"], all_of["kind"].softmax(1))
    torch.testing.assert_close(arrays["flags_probabilities"], all_of["flags"].sigmoid())
    assert torch.equal(arrays["kind_classes"], all_of["kind"].argmax(1))
    assert torch.equal(arrays["size_values"], all_of["size"])
    assert len(arrays) == 6
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = "row path kind_class kind_p0 kind_p1 kind_p2 flags_p0 flags_p1 size_value"
    assert list(rows[0]) == wanted.split()
    for i, row in enumerate(rows):
        assert (row["row"], row["path"]) == (str(i), f"{i}.png")
        assert int(row["kind_class"]) == int(all_of["kind"][i].argmax())
        assert float(row["size_value"]) == pytest.approx(float(all_of["size"][i]), rel=1e-5)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([{"a": torch.zeros(2, 2)}, {"b": torch.zeros(2, 2)}], r"gave \['a'\] and \['b'\]"),
        ([{"a": torch.zeros(2)}], r"must give logits \[n, C\]; it gave \(2,\)"),
        ([{}], "must give the same tasks"),
        (["logits"], "it gave str"),
    ],
)
def test_predictions_that_are_none(batches: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        write_predictions(tmp_path / "p.csv", batches)


def test_a_module_of_ones_own_with_several_tasks() -> None:
    class Two(nn.Module):
        features = staticmethod(lambda x: x)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"sign": x[:, :2], "rest": x[:, 1:]}

    found = collect(Two(), [torch.eye(3)], task="rest")
    assert torch.equal(found.logits, torch.eye(3)[:, 1:])
