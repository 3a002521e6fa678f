"""Stages of a network: which are frozen, which learn how fast, and when they join."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from finetuning import (
    fit,
    loader,
    moved,
    network,
    samples,
    trainer,
    tuner,
)
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint
from torch import Tensor, nn

from fastmmd.train import (
    GradualUnfreezing,
    Stages,
)

pytestmark = pytest.mark.training


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
