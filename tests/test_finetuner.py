"""Fine-tuning: each part of a step against its formula, what is frozen, and real trainings."""

from __future__ import annotations

import copy
import math
import runpy
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from finetuning import (
    CLASSES,
    fit,
    loader,
    network,
    samples,
    several,
    trainer,
    tuner,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fastmmd.train import (
    L2SP,
    BalancedSampler,
    Distillation,
    DomainPair,
    GradualUnfreezing,
    Task,
    balanced_class_weights,
    distillation_loss,
)

pytestmark = pytest.mark.training


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


def test_what_a_checkpoint_keeps_makes_the_same_module() -> None:
    module = tuner(scheduler="cosine", warmup=0.25, lr=0.2, all_classes=False)
    again = tuner(**module.hparams)
    assert again.hparams == module.hparams
    assert (again.scheduler, again.warmup, again.all_classes) == ("cosine", 0.25, False)


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
        ({"warmup": 0.1}, "warmup is that of a named schedule .*; got 0.1 and scheduler=None"),
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
        (lambda: BalancedSampler([0, 1], seed=-3), "seed must not be negative; got -3"),
        (lambda: BalancedSampler([0, 1], epoch=-1), "epoch must not be negative; got -1"),
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
    for source, message in (
        (None, "the loader of source ended before the others"),
        ([None, (x, y)], "the loader of source 0 ended before the others"),
        ([(x, y), [x]], "a batch of source 1 must be"),
    ):
        with pytest.raises(ValueError, match=message):
            tuner().training_step({"source": source, "target": x}, 0)
    with pytest.raises(ValueError, match="got one of index 2"):
        trainer().validate(tuner(), [loader()] * 3, verbose=False)
    with pytest.raises(ValueError, match="needs a training with an end"):
        fit(tuner(scheduler="linear"), max_epochs=-1)
    with pytest.raises(TypeError, match="needs a module with stages"):
        GradualUnfreezing().setup(trainer(), L.LightningModule(), "fit")
