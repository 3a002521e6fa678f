"""Terms of the objective of fine-tuning: L2-SP, distillation, weights of classes, several tasks."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from finetuning import (
    CLASSES,
    ByTask,
    fit,
    loader,
    network,
    samples,
    several,
    trainer,
    tuner,
)
from sklearn.metrics import accuracy_score, f1_score
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

from fastmmd.train import (
    L2SP,
    BalancedSampler,
    Distillation,
    DomainPair,
    FineTuner,
    Task,
    TransferGuard,
    balanced_class_weights,
    distillation_loss,
    labels_of,
)
from fastmmd.train.checkpoints import load_checkpoint
from fastmmd.train.tasks import TaskLoss

pytestmark = pytest.mark.training


# Keeping near another network


def test_l2_sp_is_its_formula_and_its_gradient() -> None:
    backbone, new = network(), nn.Linear(8, 2)
    penalty = L2SP(alpha=0.4, beta=0.6)
    penalty.start(backbone)
    start = copy.deepcopy(backbone)
    torch.testing.assert_close(
        penalty(backbone, new.parameters()),
        0.3 * (new.weight.square().sum() + new.bias.square().sum()),
    )
    with torch.no_grad():
        for p in backbone.parameters():
            p.add_(torch.randn_like(p))
    backbone[0].requires_grad_(False)
    penalty(backbone, new.parameters()).backward()
    for p, s in zip(backbone.parameters(), start.parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(p.grad, 0.4 * (p - s))
        else:
            assert p.grad is None
    torch.testing.assert_close(new.weight.grad, 0.6 * new.weight)


def test_l2_sp_holds_the_weights_near_their_start() -> None:
    def distance(alpha: float | None) -> float:
        penalty = None if alpha is None else L2SP(alpha, 0.0)
        module = tuner(l2_sp=penalty, optimizer="sgd", lr=0.1)
        fit(module, max_epochs=5)
        pairs = zip(module.backbone.parameters(), network().parameters(), strict=True)
        return sum((w - s).square().sum().item() for w, s in pairs)

    free, pulled, held = distance(None), distance(0.1), distance(5.0)
    assert held < 0.5 * pulled < 0.5 * free


def test_the_start_of_l2_sp_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    run = fit(tuner(l2_sp=L2SP()))
    run.save_checkpoint(tmp_path / "one.ckpt")
    other = nn.Sequential(*(copy.deepcopy(stage) for stage in network()))
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    again = FineTuner.load_from_checkpoint(
        tmp_path / "one.ckpt", weights_only=True, backbone=other, in_features=8, l2_sp=L2SP()
    )
    assert again.l2_sp is not None
    for i, start in enumerate(network().parameters()):
        assert torch.equal(again.l2_sp.get_buffer(f"start_{i}"), start)


def test_distillation_is_its_formula_at_every_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    for t in (0.5, 1.0, 2.0, 10.0):
        p, q = (teacher / t).softmax(1), (student / t).softmax(1)
        loss = distillation_loss(student, teacher, t)
        torch.testing.assert_close(loss, t * t * (p * (p / q).log()).sum(1).mean())
        (gradient,) = torch.autograd.grad(loss, student)
        torch.testing.assert_close(gradient, t * (q - p).detach() / 5)
    # To first order in 1 / T the gradient does not depend on T.
    difference = (student - teacher).detach()
    limit = (difference - difference.mean(1, keepdim=True)) / (5 * 7)
    for t in (1e2, 1e4):
        (gradient,) = torch.autograd.grad(distillation_loss(student, teacher, t), student)
        assert float((gradient - limit).abs().max()) < 10 / t * float(limit.abs().max())


def test_the_teacher_is_left_as_it_is_and_out_of_the_checkpoint(tmp_path: Path) -> None:
    teacher = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, CLASSES), nn.Dropout(0.5))
    before = copy.deepcopy(teacher.state_dict())
    module = tuner(distillation=Distillation(teacher, weight=1.0))
    inputs = DataLoader(TensorDataset(samples()[0]), batch_size=16)  # soft targets need no labels
    held_out = loader()
    guard = TransferGuard(source=held_out, target=held_out)  # whose twin has it too
    run = fit(module, inputs, max_epochs=1)
    labelled = tuner(distillation=Distillation(teacher))
    beside = fit(labelled, max_epochs=1, callbacks=[guard])
    assert all(torch.equal(v, before[n]) for n, v in teacher.state_dict().items())
    assert not teacher.training

    path = tmp_path / "one.ckpt"
    run.save_checkpoint(path)
    state = torch.load(path, weights_only=True)["state_dict"]
    assert not [name for name in state if "teacher" in name]
    beside.save_checkpoint(path.with_name("two.ckpt"))
    of_twin = load_checkpoint(path.with_name("two.ckpt"))["callbacks"]["TransferGuard"]["twin"]
    assert "backbone.0.0.weight" in of_twin
    assert not [name for name in of_twin if "teacher" in name]
    resumed = TransferGuard(source=held_out, target=held_out)
    longer = trainer(max_epochs=2, callbacks=[resumed])
    same = {"ckpt_path": path.with_name("two.ckpt"), "weights_only": True}
    longer.fit(tuner(distillation=Distillation(teacher)), loader(), **same)
    again: Any = resumed.twin
    heard = again.distillation.teacher.state_dict()
    assert all(torch.equal(heard[name], value) for name, value in before.items())
    again = FineTuner.load_from_checkpoint(
        path,
        weights_only=True,
        backbone=network(),
        in_features=8,
        distillation=Distillation(teacher, weight=1.0),
    )
    x = samples()[0]
    assert torch.equal(again.eval()(x), module.eval()(x))


def test_distillation_brings_the_student_to_the_teacher() -> None:
    torch.manual_seed(0)
    teacher = nn.Linear(4, CLASSES)
    x = samples(480)[0]
    data = DataLoader(TensorDataset(x), batch_size=48)
    module = tuner(distillation=Distillation(teacher, temperature=4.0, weight=1.0), lr=1e-2)
    agreed = [(module.eval()(x).argmax(1) == teacher(x).argmax(1)).float().mean().item()]
    fit(module.train(), data, max_epochs=10)
    agreed.append((module.eval()(x).argmax(1) == teacher(x).argmax(1)).float().mean().item())
    assert agreed[1] > 0.9 > agreed[0]


# Classes that are not equally frequent


def unequal() -> Tensor:
    return torch.tensor([0] * 60 + [1] * 30 + [2] * 10)


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = unequal()
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())
    found = balanced_class_weights(labels, 3)
    assert found.tolist() == pytest.approx(expected.tolist())
    assert float(found[labels].mean()) == pytest.approx(1.0)


def test_class_weights_are_counted_when_the_fit_begins() -> None:
    x, y = torch.randn(100, 4), unequal()
    module = tuner(class_weights="balanced")
    fit(module, DataLoader(TensorDataset(x, y), batch_size=50))
    torch.testing.assert_close(module.losses["task"].class_weights, balanced_class_weights(y, 3))
    pair = DomainPair(TensorDataset(x, y), TensorDataset(x), batch_size=50)
    module = tuner(class_weights="balanced")
    fit(module, pair)
    torch.testing.assert_close(module.losses["task"].class_weights, balanced_class_weights(y, 3))
    missing = DataLoader(TensorDataset(x, y.clamp(max=1)), batch_size=50)
    with pytest.raises(ValueError, match="class 2 has no sample"):
        fit(tuner(class_weights="balanced"), missing)

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(zip(x, y, strict=True))

    with pytest.raises(TypeError, match=r"class_weights='balanced' .* got Stream: give"):
        fit(tuner(class_weights="balanced"), DataLoader(Stream(), batch_size=50))


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 4.0]])
def test_samples_without_a_class_have_no_part(weights: list[float] | None) -> None:
    """In the loss, which is 0 of a batch of them alone, and in the means of an epoch."""
    x, y = samples(48)
    y[3:16] = -100
    y[32:] = -100
    loss = TaskLoss(Task(CLASSES, class_weights=weights))
    logits = torch.randn(16, CLASSES, requires_grad=True)
    expected = F.cross_entropy(logits, y[:16], weight=loss.class_weights)
    torch.testing.assert_close(loss(logits, y[:16]), expected)
    nothing = loss(logits, y[32:])
    nothing.backward()
    assert nothing == 0
    assert not logits.grad.any()

    module = tuner(freeze="all", lr=1e-30, class_weights=weights)
    run = fit(module, DataLoader(TensorDataset(x, y), batch_size=16))
    assert all(p.isfinite().all() for p in module.parameters())
    known = y != -100
    mean = F.cross_entropy(module(x), y, weight=loss.class_weights)  # in whatever batches
    torch.testing.assert_close(run.callback_metrics["train_task_loss"], mean.detach())
    right = (module(x).argmax(1) == y)[known].float().mean()
    torch.testing.assert_close(run.callback_metrics["train_accuracy"], right)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 4.0]])
@pytest.mark.parametrize("batch_size", [7, 16, 48])
def test_the_loss_of_a_loader_is_that_of_its_labelled_rows(
    weights: list[float] | None, batch_size: int
) -> None:
    """However they are divided into batches, some without a label; and so for each loader."""
    module = tuner(class_weights=weights)
    wanted, loaders = {}, []
    for prefix, seed in (("", 1), ("target_", 2)):
        x, y = samples(48, seed)
        y[3:7] = -100
        y[30:] = -100
        logits = module.eval()(x)
        exact = F.cross_entropy(logits, y, weight=module.losses["task"].class_weights)
        wanted[f"{prefix}loss"] = float(exact.detach())
        loaders.append(DataLoader(TensorDataset(x, y), batch_size))
    run = trainer()
    for stage, measure in (("val", run.validate), ("test", run.test)):
        found = {k: v for part in measure(module, loaders, verbose=False) for k, v in part.items()}
        for name, value in wanted.items():
            assert found[f"{stage}_{name}"] == pytest.approx(value, rel=1e-5)


def test_a_loader_without_any_label_has_no_loss() -> None:
    x, y = samples(16)
    nothing = torch.full_like(y, -100)
    for loss in (None, F.cross_entropy):  # of which torch makes NaN
        module, run = tuner(loss=loss), trainer()
        (found,) = run.validate(module, DataLoader(TensorDataset(x, nothing), 8), verbose=False)
        assert "val_loss" not in found
        half = torch.cat((y[:8], nothing[8:]))
        (found,) = run.validate(module, DataLoader(TensorDataset(x, half), 8), verbose=False)
        exact = F.cross_entropy(module.eval()(x[:8]), y[:8])
        assert found["val_loss"] == pytest.approx(float(exact.detach()), rel=1e-5)


def test_balanced_sampling_draws_each_class_as_often() -> None:
    labels = unequal()
    drawn = labels[list(BalancedSampler(labels, 30000, seed=0))]
    counts = drawn.bincount(minlength=3) / 30000
    # 5 standard deviations of a share of 1/3 in 30000 draws
    assert float((counts - 1 / 3).abs().max()) < 5 * math.sqrt(2 / 9 / 30000)
    assert len(list(BalancedSampler(labels))) == 100
    first, again = BalancedSampler(labels, seed=3), BalancedSampler(labels, seed=3, epoch=1)
    draws = list(first)
    first.set_epoch(1)  # as Lightning does, and a resumed training begins
    assert list(first) == list(again) != draws


def test_labels_of_datasets() -> None:
    x, y = samples(12)

    class Plain(Dataset[Any]):
        def __len__(self) -> int:
            return 12

        def __getitem__(self, i: int) -> Any:
            return x[i], int(y[i])

    class WithTargets(Plain):
        targets = y.tolist()

        def __getitem__(self, i: int) -> Any:
            raise AssertionError("needs no look at the samples")

    class ByTask(Plain):
        def __getitem__(self, i: int) -> Any:
            return x[i], {"class": int(y[i]), "odd": int(y[i]) % 2}

    for dataset in (TensorDataset(x, y), Plain(), WithTargets()):
        assert torch.equal(labels_of(dataset), y)
        assert torch.equal(labels_of(Subset(dataset, [5, 1])), y[[5, 1]])
        assert torch.equal(labels_of(ConcatDataset([dataset, dataset])), torch.cat((y, y)))
    assert torch.equal(labels_of(Subset(ByTask(), [4, 2]))["odd"], y[[4, 2]] % 2)
    with pytest.raises(ValueError, match="TensorDataset has samples without labels"):
        labels_of(TensorDataset(x))


# Several tasks


def test_several_tasks_share_the_backbone_and_add_up() -> None:
    module = tuner(tasks=several(), freeze="all", lr=1e-12)
    data = ByTask()
    run = trainer(max_epochs=1)
    batches = DataLoader(data, batch_size=48)
    run.fit(module, batches, batches)
    module.eval()
    with torch.no_grad():
        outputs = module(data.x)
    assert {name: list(out.shape) for name, out in outputs.items()} == {
        "kind": [48, 3],
        "flags": [48, 2],
        "size": [48, 1],
    }
    kind, flags = data.labels["kind"], data.labels["flags"]
    positives = flags.float().mean(0)
    terms = {
        "kind": F.cross_entropy(outputs["kind"], kind),  # equally frequent: weights are 1
        "flags": F.binary_cross_entropy_with_logits(
            outputs["flags"], flags.float(), pos_weight=(1 - positives) / positives
        ),
        "size": F.mse_loss(outputs["size"][:, 0], data.labels["size"]),
    }
    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    expected = float(terms["kind"] + 0.5 * terms["flags"] + 2.0 * terms["size"])
    assert logged["val_loss"] == pytest.approx(expected, rel=1e-4)
    predicted = outputs["kind"].argmax(1)
    assert logged["val_kind_accuracy"] == pytest.approx(accuracy_score(kind, predicted))
    assert logged["val_kind_f1"] == pytest.approx(f1_score(kind, predicted, average="macro"))
    found = f1_score(flags, (outputs["flags"] > 0).long(), average="macro", zero_division=0)
    assert logged["val_flags_f1"] == pytest.approx(found)
    off = outputs["size"][:, 0] - data.labels["size"]
    assert logged["val_size_mae"] == pytest.approx(float(off.abs().mean()), rel=1e-4)
    assert logged["val_size_rmse"] == pytest.approx(float(off.square().mean().sqrt()), rel=1e-4)


def test_a_task_without_labels_in_a_batch_is_left_out() -> None:
    module = tuner(tasks=several())
    x, y = samples(12)
    module._log_step = lambda *_: None  # type: ignore[method-assign]
    total = module.training_step((x, {"kind": y}), 0)
    total.backward()
    assert module.heads["kind"].weight.grad is not None
    assert module.heads["size"].weight.grad is None
    with pytest.raises(ValueError, match="labels of none of the tasks kind, flags, size"):
        module.training_step((x, {}), 0)
    with pytest.raises(ValueError, match="must be a mapping of tasks"):
        module.training_step((x, y), 0)


def test_the_loss_of_several_tasks_weighs_their_means() -> None:
    """Of 20 samples all have a size, and 7 a kind, so the mean of a task is over its own."""
    x, y = samples(20)
    y[5:18] = -100
    size = x.sum(1)
    module = tuner(tasks={"kind": Task(CLASSES, weight=0.5), "size": Task(1, "regression")})
    batches = [(x[i : i + 8], {"kind": y[i : i + 8], "size": size[i : i + 8]}) for i in (0, 8, 16)]
    (found,) = trainer().validate(
        module.eval(), DataLoader(batches, batch_size=None), verbose=False
    )
    out = module(x)
    exact = 0.5 * F.cross_entropy(out["kind"], y) + F.mse_loss(out["size"][:, 0], size)
    assert found["val_loss"] == pytest.approx(float(exact.detach()), rel=1e-5)


def test_a_teacher_of_some_tasks() -> None:
    class Teacher(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"kind": torch.zeros(len(x), CLASSES)}

    module = tuner(tasks=several(), distillation=Distillation(Teacher(), 2.0, 0.25))
    run = fit(module, DataLoader(ByTask(), batch_size=48))
    logged = run.callback_metrics
    terms = 0.75 * logged["train_kind_task_loss"] + 0.25 * logged["train_kind_distillation_loss"]
    terms = terms + 0.5 * logged["train_flags_task_loss"] + 2.0 * logged["train_size_task_loss"]
    torch.testing.assert_close(logged["train_loss"], terms)
