"""Fine-tuning: each part of a step against its formula, what is frozen, and real trainings."""

from __future__ import annotations

import copy
import math
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint
from sklearn.metrics import accuracy_score, f1_score
from sklearn.utils.class_weight import compute_class_weight
from tolerance import threads
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from fastmmd.train import (
    L2SP,
    BalancedSampler,
    Distillation,
    DomainPair,
    FineTuner,
    GradualUnfreezing,
    Stages,
    Task,
    balanced_class_weights,
    distillation_loss,
    labels_of,
)

# What Lightning says of workers, log intervals and its own dependencies is not ours to mend.
pytestmark = pytest.mark.filterwarnings(r"ignore:::lightning\..*", r"ignore:::torch\.jit.*")

CLASSES = 3


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small gain nothing from more, and tests may run side by side."""
    with threads(1):
        yield


def network() -> nn.Sequential:
    """Three stages with batch normalisation, [n, 4] to [n, 8]; the same at each call."""
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU()),
        nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Tanh()),
        nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8, affine=False)),
    )


def tuner(**options: Any) -> FineTuner:
    defaults = {"num_classes": CLASSES} if "tasks" not in options else {}
    backbone = options.pop("backbone", None) or network()
    torch.manual_seed(8)
    return FineTuner(backbone, **{**defaults, "in_features": 8, **options})


def samples(n: int = 48, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points [n, 4] whose first entries show their class, and the classes [n]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    return F.one_hot(labels, 4) + 0.5 * torch.randn(n, 4, generator=generator), labels


def trainer(**options: Any) -> L.Trainer:
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(**{**defaults, **options})


def loader(n: int = 48, seed: int = 0) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*samples(n, seed)), batch_size=16)


def fit(module: FineTuner, data: Any = None, **options: Any) -> L.Trainer:
    run = trainer(**{"max_epochs": 1, **options})
    run.fit(module, loader() if data is None else data)
    return run


def moved(module: FineTuner, before: dict[str, Tensor]) -> set[str]:
    """Names of the backbone's state that is no longer what it was."""
    return {
        name for name, v in module.backbone.state_dict().items() if not torch.equal(v, before[name])
    }


# One step


def test_a_step_descends_the_whole_objective() -> None:
    """One step of SGD with every term, against autograd through the objective written out."""
    torch.manual_seed(0)
    teacher = nn.Linear(4, CLASSES)
    weights = [0.5, 1.0, 2.0]
    module = tuner(
        class_weights=weights,
        l2_sp=L2SP(alpha=0.3, beta=0.2),
        distillation=Distillation(teacher, temperature=3.0, weight=0.4),
        optimizer="sgd",
        lr=0.1,
    )
    with torch.no_grad():  # away from the start, where the pull is 0
        module.backbone[0][0].weight.add_(0.1)
    start = [p.detach().clone() for p in network().parameters()]
    backbone, head = copy.deepcopy(module.backbone), copy.deepcopy(module.heads["task"])
    x, y = samples(16)

    logits = head(backbone(x))
    hard = F.cross_entropy(logits, y, weight=torch.tensor(weights))
    p, q = (teacher(x) / 3).softmax(1), (logits / 3).softmax(1)
    soft = 9 * (p * (p / q).log()).sum() / len(x)
    pull = sum(((w - s) ** 2).sum() for w, s in zip(backbone.parameters(), start, strict=True))
    new = sum((v**2).sum() for v in head.parameters())
    objective = 0.6 * hard + 0.4 * soft + 0.15 * pull + 0.1 * new
    parameters = [*backbone.parameters(), *head.parameters()]
    gradients = torch.autograd.grad(objective, parameters)
    expected = [w - 0.1 * g for w, g in zip(parameters, gradients, strict=True)]

    run = fit(module, DataLoader(TensorDataset(x, y), batch_size=16))
    assert run.global_step == 1
    assert float(run.callback_metrics["train_loss"]) == pytest.approx(objective.item(), rel=1e-5)
    for found, wanted in zip(
        [*module.backbone.parameters(), *module.heads.parameters()], expected, strict=True
    ):
        torch.testing.assert_close(found, wanted)


def test_a_batch_of_two_domains_is_its_source() -> None:
    x, y = samples(32)
    source = TensorDataset(x, y)
    target = TensorDataset(torch.full_like(x, torch.nan))  # any look at it would show
    data = DomainPair(source, target, source_val=source, target_val=source, batch_size=16, seed=0)
    module = tuner()
    run = trainer(max_epochs=1)
    run.fit(module, data)
    assert all(p.isfinite().all() for p in module.parameters())
    assert {"val_loss", "val_f1", "val_target_loss", "val_target_f1"} <= set(run.callback_metrics)


def test_sources_and_labelled_target_samples_are_joined() -> None:
    module = tuner(freeze="all")
    (x, y), (u, v) = samples(12, 0), samples(9, 1)
    batch = {"source": [[x, y], [u, v]], "target": x, "target_labelled": [x[:3], y[:3]]}
    module._log_step = lambda *_: None  # type: ignore[method-assign]
    total = module.training_step(batch, 0)
    joined = torch.cat((x, u, x[:3])), torch.cat((y, v, y[:3]))
    torch.testing.assert_close(total, F.cross_entropy(module(joined[0]), joined[1]))


# Freezing


@pytest.mark.parametrize(
    ("freeze", "frozen"), [(0, 0), (1, 1), (2, 2), ("all", 3), (["1", "0"], 2)], ids=str
)
def test_frozen_stages_have_no_gradient_and_do_not_move(freeze: Any, frozen: int) -> None:
    module = tuner(freeze=freeze, lr=0.05)
    before = copy.deepcopy(module.backbone.state_dict())
    fit(module)
    # Batch statistics included: those of frozen stages stay, those of the others go on.
    expected = {name for name in before if int(name[0]) >= frozen}
    assert moved(module, before) == expected
    for name, parameter in module.backbone.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None) == (int(name[0]) >= frozen)


def test_frozen_batch_norm_normalises_by_its_running_statistics() -> None:
    module = tuner(freeze=1).train()
    x = samples()[0]
    first = module.backbone[0]
    assert not first[1].training
    assert module.backbone[1][1].training
    torch.testing.assert_close(
        first(x), F.relu(F.linear(x, first[0].weight, first[0].bias) / math.sqrt(1 + first[1].eps))
    )
    assert not module.eval().backbone[1][1].training


def test_a_network_that_comes_in_eval_mode_is_trained() -> None:
    module = tuner(backbone=network().eval())
    assert module.backbone[0][1].training


def test_rates_by_depth() -> None:
    module = tuner(freeze=1, layer_decay=0.5, lr=0.8, optimizer="sgd", weight_decay=0.1)
    optimizer = module.configure_optimizers()
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"heads": 0.8, "2": 0.4, "1": 0.2}
    assert all(group["weight_decay"] == 0.1 for group in optimizer.param_groups)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in module.parameters() if p.requires_grad}


def test_stages() -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1))
            self.embed = nn.Linear(2, 2)
            self.drop = nn.Dropout()
            self.encoder = nn.Module()
            self.encoder.layer = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
            self.norm = nn.LayerNorm(2)

    names = ("embed", *(f"encoder.layer.{i}" for i in range(3)), "norm")
    assert Stages(Blocks()).names == names
    wrapped = nn.Sequential(Blocks())
    assert Stages(wrapped).names == tuple(f"0.{name}" for name in names)
    assert Stages(nn.Linear(2, 2)).names == ("backbone",)

    given = Stages(Blocks(), ["embed", ["encoder.layer.0", "encoder.layer.1"], "encoder"])
    assert given.names == ("embed", "encoder.layer.0+encoder.layer.1", "encoder")
    stage_of = {"token": 0, "embed.bias": 0, "encoder.layer.1.bias": 1, "encoder.layer.2.bias": 2}
    assert {name: given.of(name) for name in stage_of} == stage_of


class Movement(L.Callback):
    """Which stages moved in each epoch, and the rates of the groups at its end."""

    def __init__(self) -> None:
        self.stages: list[set[int]] = []
        self.rates: list[list[float]] = []

    def on_train_epoch_start(self, trainer: L.Trainer, module: Any) -> None:
        self.before = copy.deepcopy(module.backbone.state_dict())

    def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        self.stages.append({int(name[0]) for name in moved(module, self.before)})
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])


def test_gradual_unfreezing() -> None:
    module = tuner(freeze=1, layer_decay=0.5, lr=0.1)
    movement = Movement()
    callbacks = [GradualUnfreezing(1, every=2), movement]
    fit(module, max_epochs=5, callbacks=callbacks)
    assert movement.stages == [set(), {2}, {2}, {1, 2}, {1, 2}]
    assert movement.rates == [[0.1, 0.0125 * 2, 0.05]] * 5  # heads, stage 1, stage 2
    at_once = Movement()
    fit(tuner(), max_epochs=2, callbacks=[GradualUnfreezing(1, every=0), at_once])
    assert at_once.stages == [set(), {0, 1, 2}]


def test_gradual_unfreezing_resumes(tmp_path: Path) -> None:
    """Stopped after any epoch and resumed, it ends where an uninterrupted training does."""

    def run(resume: Path | None = None) -> dict[str, Tensor]:
        module = tuner(layer_decay=0.7, scheduler="cosine", optimizer="adam", lr=0.02)
        save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1 if resume is None else 0)
        callbacks = [GradualUnfreezing(1), save]
        whole = trainer(max_epochs=4, callbacks=callbacks, enable_checkpointing=True)
        whole.fit(module, loader(), ckpt_path=resume, weights_only=True)
        return module.state_dict()

    whole = run()
    for epoch in (0, 1, 2):
        resumed = run(tmp_path / f"epoch={epoch}.ckpt")
        assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_gradual_unfreezing_in_two_processes(tmp_path: Path) -> None:
    """Each stage's gradients are averaged from the epoch on in which it joins."""
    script = Path(__file__).with_name("distributed_unfreezing.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen(
            [sys.executable, str(script), processes, str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for processes in ("1", "2")
    ]
    for run in runs:
        output = run.communicate(timeout=240)[0]
        assert run.returncode == 0, output
    names = ("1-0", "2-0", "2-1")
    alone, first, second = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in names)
    joined = [[False] * 4, [False, False, True, True], [True] * 4, [True] * 4]
    for one in (alone, first, second):
        assert one["gradients"] == joined
    for name, value in alone["parameters"].items():
        assert torch.equal(first["parameters"][name], second["parameters"][name])
        torch.testing.assert_close(first["parameters"][name], value, rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match="needs strategy='ddp_find_unused_parameters_true'"):
        GradualUnfreezing().setup(trainer(strategy="ddp", devices=2), tuner(), "fit")


def test_lightnings_own_backbone_finetuning_works() -> None:
    module = tuner(lr=0.1)
    movement = Movement()
    own = BackboneFinetuning(1, lambda epoch: 2.0, backbone_initial_ratio_lr=0.1, train_bn=False)
    fit(module, max_epochs=3, callbacks=[own, movement])
    # It leaves batch normalisation training: two groups of that, beside the heads, to begin with.
    assert [len(rates) for rates in movement.rates] == [3, 4, 4]
    assert [rates[-1] for rates in movement.rates[1:]] == pytest.approx([0.01, 0.02])
    assert movement.stages[2] == {0, 1, 2}


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
    run = fit(module, inputs, max_epochs=2)
    assert all(torch.equal(v, before[n]) for n, v in teacher.state_dict().items())
    assert not teacher.training

    path = tmp_path / "one.ckpt"
    run.save_checkpoint(path)
    state = torch.load(path, weights_only=True)["state_dict"]
    assert not [name for name in state if "teacher" in name]
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


class ByTask(Dataset[Any]):
    def __init__(self, n: int = 48) -> None:
        self.x, y = samples(n)
        self.labels = {
            "kind": y,
            "flags": torch.stack((y == 0, self.x[:, 3] > 0), 1).long(),
            "size": self.x.sum(1),
        }

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return self.x[i], {task: labels[i] for task, labels in self.labels.items()}


def several() -> dict[str, Task]:
    return {
        "kind": Task(CLASSES, class_weights="balanced"),
        "flags": Task(2, "multilabel", weight=0.5, class_weights="balanced"),
        "size": Task(1, "regression", weight=2.0, head=nn.Linear(8, 1)),
    }


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


# Optimisers and schedules


@pytest.mark.parametrize(
    ("optimizer", "kind", "options"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.9}),
        ("adam", torch.optim.Adam, {}),
        ("rmsprop", torch.optim.RMSprop, {"alpha": 0.9}),
        ("adamw", torch.optim.AdamW, {"betas": (0.8, 0.9)}),
        (partial(torch.optim.SGD, nesterov=False), torch.optim.SGD, {}),
    ],
)
def test_optimisers(optimizer: Any, kind: type, options: dict[str, Any]) -> None:
    module = tuner(optimizer=optimizer, lr=0.02, optimizer_options=options)
    made = module.configure_optimizers()
    assert type(made) is kind
    assert all(group["lr"] == 0.02 for group in made.param_groups)
    assert all(made.param_groups[0][name] == value for name, value in options.items())


@pytest.mark.parametrize(
    ("scheduler", "warmup", "factors"),
    [
        ("constant", 0.0, [1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", 0.0, [1 - s / 8 for s in range(8)]),
        ("linear", 0.25, [1 / 3, 2 / 3, *(1 - s / 6 for s in range(6))]),
        ("cosine", 0.0, [0.5 + 0.5 * math.cos(math.pi * s / 8) for s in range(8)]),
        (
            partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda s: 2.0 ** (-s)),
            0.0,
            [2.0**-s for s in range(8)],
        ),
    ],
)
def test_schedules(scheduler: Any, warmup: float, factors: list[float]) -> None:
    if not isinstance(scheduler, str):
        made = scheduler
        scheduler = lambda optimizer, steps: made(optimizer)  # noqa: E731
    module = tuner(scheduler=scheduler, warmup=warmup, layer_decay=0.5, lr=0.1)
    found: list[list[float]] = []

    class Rates(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            found.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    fit(module, loader(128), callbacks=[Rates()])
    rates = (0.1, 0.0125, 0.025, 0.05)
    for factor, at_step in zip(factors, found, strict=True):
        assert at_step == pytest.approx([factor * rate for rate in rates])


def test_l2_sp_takes_the_place_of_weight_decay() -> None:
    assert tuner().configure_optimizers().param_groups[0]["weight_decay"] == 0.01
    held = tuner(l2_sp=L2SP()).configure_optimizers()
    assert all(group["weight_decay"] == 0 for group in held.param_groups)


# Does it help?


def test_fine_tuning_beats_training_from_scratch(repository: Path) -> None:
    """Digits 5 to 9 from five labels each, by a network that has learned 0 to 4 or has not."""
    accuracies = runpy.run_path(str(repository / "examples" / "finetune.py"))["accuracies"]
    runs = [accuracies("convolutional", epochs=10, seed=seed) for seed in range(3)]
    gains = [run["tuned"] - run["scratch"] for run in runs]
    assert sum(gains) / len(gains) > 0.1


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, r"num_classes .* must be at least 2; got 1"),
        ({"num_classes": None}, "either num_classes or tasks"),
        ({"tasks": several(), "num_classes": 3}, "either num_classes or tasks"),
        ({"tasks": several(), "class_weights": "balanced"}, "class_weights of several tasks"),
        ({"tasks": {}}, "tasks must have names"),
        ({"tasks": {"type": Task(3)}}, "tasks must have names"),
        ({"optimizer": "adagrad"}, "optimizer must be one of sgd, adam, rmsprop, adamw"),
        ({"scheduler": "cosinus"}, "scheduler must be one of constant, linear, cosine"),
        ({"pooling": "max"}, "pooling must be one of mean, cls; got 'max'"),
        ({"lr": 0.0}, r"lr must lie in \(0, inf\); got 0.0"),
        ({"lr": math.nan}, "lr must lie in"),
        ({"layer_decay": 1.5}, r"layer_decay must lie in \(0, 1\]; got 1.5"),
        ({"weight_decay": -1.0}, r"weight_decay must lie in \[0, inf\); got -1.0"),
        ({"warmup": 2.0}, r"warmup must lie in \[0, 1\]; got 2.0"),
        ({"freeze": 4}, r"between 0 and the 3 stages of the backbone \(0, 1, 2\); got 4"),
        ({"freeze": ["layer1"]}, "no stage 'layer1'; there are 0, 1, 2"),
        ({"stages": ["0", "fc"]}, "stages: the backbone has no submodule 'fc'"),
        ({"in_features": None}, "give in_features, example_inputs"),
        ({"class_weights": [1.0, 2.0]}, "class_weights must be 3 positive, finite numbers"),
        ({"class_weights": [1.0, 2.0, -1.0]}, "class_weights must be 3 positive"),
        ({"class_weights": "equal"}, "numbers or 'balanced'; got 'equal'"),
        ({"class_weights": "balanced", "loss": F.cross_entropy}, "class_weights are those of"),
    ],
)
def test_finetuner_rejects(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tuner(**options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Task(0, "regression"), "must be at least 1; got 0"),
        (lambda: Task(2, "ranking"), "kind must be one of"),  # type: ignore[arg-type]
        (lambda: Task(2, weight=-1.0), "weight must be a finite number of at least 0; got -1.0"),
        (lambda: Task(2, "regression", class_weights=[1, 2]), "class_weights are those of"),
        (lambda: L2SP(alpha=-0.1), "alpha must be a finite number of at least 0; got -0.1"),
        (lambda: L2SP(beta=math.inf), "beta"),
        (lambda: Distillation(nn.Linear(1, 2), 0.0), "temperature must be a positive, finite"),
        (lambda: Distillation(nn.Linear(1, 2), 1.0, 1.5), r"weight must lie in \[0, 1\]; got 1.5"),
        (lambda: distillation_loss(torch.zeros(2, 3), torch.zeros(2, 4)), r"\[2, 3\] and \[2, 4\]"),
        (lambda: balanced_class_weights([0, 5], 3), "lie between 0 and 5"),
        (lambda: balanced_class_weights([0.5], 3), r"whole numbers \[n\]"),
        (lambda: BalancedSampler([]), "needs labels; got none"),
        (lambda: BalancedSampler([0, 1], 0), "num_samples must be at least 1; got 0"),
        (lambda: BalancedSampler([-1, 1]), "labels must not be negative; got -1"),
        (lambda: GradualUnfreezing(-1), "unfreeze_backbone_at_epoch must not be negative; got -1"),
        (lambda: GradualUnfreezing(1, -2), "every must not be negative; got -2"),
    ],
)
def test_parts_reject(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_training_rejects_batches_that_do_not_fit() -> None:
    x, y = samples(32)
    with pytest.raises(ValueError, match="got inputs alone"):
        fit(tuner(), DataLoader(x, batch_size=16))
    with pytest.raises(ValueError, match=r"between 0 and num_classes - 1 = 2; got [567]"):
        fit(tuner(), DataLoader(TensorDataset(x, y + 5), batch_size=16))
    with pytest.raises(ValueError, match=r"whole numbers \[n\]; got torch.float32"):
        fit(tuner(), DataLoader(TensorDataset(x, y.float()), batch_size=16))
    with pytest.raises(ValueError, match="got one of index 2"):
        trainer().validate(tuner(), [loader()] * 3, verbose=False)
    with pytest.raises(ValueError, match="needs a training with an end"):
        fit(tuner(scheduler="linear"), max_epochs=-1)
    with pytest.raises(TypeError, match="needs a module with stages"):
        GradualUnfreezing().setup(trainer(), L.LightningModule(), "fit")
