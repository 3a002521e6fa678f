"""Trainings of several processes: what they compute of a batch of all is what one process does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import distributed_training
import pytest
import torch
from distributed_worker import ALIGNMENTS, CASES, ROWS, SEEDS_RUN, batch_of, case_of, one_step
from tolerance import SEEDS, Case, Results, check, threads

from fastmmd.train import (
    Activations,
    BalancedSampler,
    JointAlignment,
    LayerwiseAlignment,
    balance,
    distributed,
)
from fastmmd.train.distributed import global_discrepancy, global_mean

WORKER = Path(__file__).with_name("distributed_worker.py")


def run(what: str, world: int, folder: Path) -> None:
    """Starts the processes and waits until they have ended; one that hangs is killed then."""
    environment = {**os.environ, "PYTHONPATH": str(WORKER.parent), "OMP_NUM_THREADS": "1"}
    logs = [folder / f"{rank}.log" for rank in range(world)]
    processes = []
    for rank, log in enumerate(logs):
        arguments = [sys.executable, str(WORKER), what, str(rank), str(world), str(folder)]
        with log.open("w") as output:
            processes.append(
                subprocess.Popen(arguments, env=environment, stdout=output, stderr=output)
            )
    try:
        for process in processes[: world - (what == "hangs")]:
            process.wait(timeout=240)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if what == "looks":
        missing = [rank for rank in range(world) if not (folder / f"{rank}.pt").is_file()]
        assert not missing, "\n".join(logs[rank].read_text() for rank in missing)


@pytest.mark.parametrize("world", ROWS)
def test_processes_do_what_one_does(world: int, tmp_path: Path) -> None:
    """All that is asked of one group of processes, as to start them takes most of the time."""
    run("looks", world, tmp_path)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    check_steps(world, [results["steps"] for results in found])
    check_values(found[0]["values"])
    for results in found:
        check_rows(world, *results["gathered"])
        if world == 2:
            assert "every process needs at least one row of each domain" in results["empty"]
            assert "[3, 0] rows of the source and [3, 3] of the target" in results["empty"]
    if world == 4:  # the last of which died in the end
        assert not (tmp_path / "3.lost.pt").exists()
        for rank in range(3):
            check_lost(tmp_path / f"{rank}.lost.pt")


def check_steps(world: int, found: list[dict[str, Any]]) -> None:
    """Objective, discrepancy and averaged gradients, of parts of unequal size, down to one row."""
    for name in ALIGNMENTS:
        with threads(1):
            whole = one_step(name, batch_of(ROWS[world], None), parallel=False)
        for rank, results in enumerate(found):
            for key, exact in whole.items():
                allowed = 1e-10 * max(1.0, float(exact.abs().max()))
                if key == "alignment":  # logged in float32
                    allowed *= 1e4
                error = float((results[name][key] - exact).abs().max())
                assert error <= allowed, f"{name}: {key} of process {rank} is off by {error:.3g}"
            assert torch.equal(results[name]["objective"], found[0][name]["objective"])
        gradients = [v for k, v in whole.items() if k.startswith(("backbone", "alignment."))]
        assert all(gradient.any() for gradient in gradients)


def check_values(found: dict[str, Results]) -> None:
    """Of every family of kernels, in float32 and float64, by the rule of the tolerance."""
    for index in range(len(CASES)):
        cases = [case_of(index, seed) for seed in SEEDS]

        def look(case: Case, index: int = index, cases: list[Case] = cases) -> Results:
            seed = next(s for s, c in enumerate(cases) if c is case)
            return found[str((index, seed))]

        check(cases, look, most=SEEDS_RUN)


def check_rows(world: int, rows: torch.Tensor, numbers: torch.Tensor) -> None:
    """In the order of the processes: as many rows as its rank has one, and 0, 1, ... of others."""
    assert rows[:, 0].tolist() == [rank for rank in range(world) for _ in range(rank)]
    assert numbers.dtype == torch.float16
    assert numbers.tolist() == [i for rank in range(world) for i in range(3 - rank % 3)]


def check_lost(file: Path) -> None:
    """The error of a process that has lost another."""
    results = torch.load(file, weights_only=True)
    assert "another process has ended, or did not answer" in results["error"]
    assert results["seconds"] < 30


def test_a_process_that_hangs_stops_the_others(tmp_path: Path) -> None:
    """By an error that says so, after the timeout of the process group, 5 s."""
    run("hangs", 2, tmp_path)
    check_lost(tmp_path / "0.lost.pt")


@pytest.mark.training
def test_two_processes_of_lightning_train_as_one(tmp_path: Path) -> None:
    """100 steps: the losses of each, and the parameters that they end in; and who has what."""
    environment = {**os.environ, "PYTHONPATH": str(WORKER.parent), "OMP_NUM_THREADS": "1"}
    script = [sys.executable, str(Path(distributed_training.__file__)), str(tmp_path)]
    process = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=240)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "sync_dist" not in process.stderr  # no warning of Lightning's that values may differ
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    check_samples(*(results["samples"] for results in found))
    for rank, results in enumerate(found):
        check_balanced(rank, results["whole"], results["resumed"])
    for results in found:
        assert results["measured"] == pytest.approx(distributed_training.measured(None), rel=1e-5)
        nothing, message = results["absent"]
        assert not nothing
        assert "first whole epoch holds a sample of [3, 4] of the 5 classes" in message
    check_guards(*(results["guarded"] for results in found))
    for alignment in distributed_training.ALIGNMENTS:
        with threads(1):
            whole = distributed_training.train(alignment, None)
        assert len(whole["losses"]) == 100
        assert whole["train_alignment_loss"] > 0
        assert (whole["losses"].diff().abs() > 1e-3).any()
        for results in found:
            for key, exact in whole.items():
                # The means of an epoch are logged in float32.
                allowed = 1e-6 if key.startswith("train_") else 1e-8
                error = float((results[alignment][key] - exact).abs().max())
                assert error <= allowed, f"{alignment}: {key} is off by {error:.3g}"


def check_guards(first: Any, second: Any) -> None:
    """The twin is a source-only training of two processes, and the model as without it.

    So they are where the training was stopped and resumed.
    """
    for results in (first, second):
        for twin, alone in (
            ("twin", "alone"),
            ("aligned", "plain"),
            ("resumed twin", "alone"),
            ("resumed", "plain"),
        ):
            for name, value in results[alone].items():
                assert torch.equal(value, results[twin][name]), f"{twin}: {name}"
        first_layer = "backbone.0.weight"
        assert not torch.equal(results["twin"][first_layer], results["aligned"][first_layer])
    assert first["word"] is not None
    assert second["word"] is None  # it is the first process that judges


def check_samples(first: Any, second: Any) -> None:
    """Both processes together see each sample once in an epoch, in other pairs each time."""
    pairs = []
    for (source, target), (more_source, more_target) in zip(first, second, strict=True):
        assert sorted(source + more_source) == sorted(target + more_target) == list(range(24))
        assert source != target
        pairs.append((source, target))
    assert len(pairs) == 2
    assert pairs[0][0] != pairs[1][0]
    assert pairs[0][1] != pairs[1][1]


def check_balanced(rank: int, whole: dict[str, Any], resumed: dict[str, Any]) -> None:
    """Each process has every second draw; resumed after the first epoch, nothing is different."""
    inputs, labels = distributed_training.points(0)
    for epoch, seen in enumerate(whole["seen"]):
        draws = list(BalancedSampler(labels, epoch=epoch, seed=distributed_training.DRAWN))
        assert seen == inputs.float()[draws[rank::2], 0].tolist()
    assert len(whole["seen"]) == 3
    assert whole["seen"][0] != whole["seen"][1]
    assert resumed["seen"] == whole["seen"][1:]
    for name, value in whole["parameters"].items():
        assert torch.equal(resumed["parameters"][name], value), name


def test_processes_without_a_seed_agree_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the first; the draws are then shared out."""
    labels = torch.arange(12) % 3
    exact = list(BalancedSampler(labels, 11, seed=7, epoch=2))
    sampler = BalancedSampler(labels, 11, epoch=2)
    monkeypatch.setattr(balance, "processes", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", lambda o: o.__setitem__(0, 7))
    assert len(sampler) == 6
    assert list(sampler) == [*exact[1::2], exact[0]]  # from the start where draws are odd
    monkeypatch.setattr(balance, "processes", lambda: 1)
    for epoch in (0, 2):
        sampler.set_epoch(epoch)
    assert list(sampler) == exact


def test_one_process_needs_no_group() -> None:
    x = Activations({"features": torch.randn(5, 3)}, torch.randn(5, 2))
    alignment = LayerwiseAlignment()
    assert torch.equal(global_discrepancy(alignment, x, x), alignment(x, x))
    assert global_mean(torch.tensor([1.0, 2.0, 6.0])) == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_of_half_losses_are_counted_exactly(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4099 is no number of either dtype, and the sum is beyond float16."""
    sent = []

    def of_all(sums: torch.Tensor) -> torch.Tensor:
        sent.append(sums)
        return 2 * sums  # another process with the same rows

    monkeypatch.setattr(distributed, "processes", lambda: 2)
    monkeypatch.setattr(distributed, "_sum_of_all", of_all)
    losses = torch.full((4099,), 30.0, dtype=dtype, requires_grad=True)
    mean = global_mean(losses)
    assert sent[0].tolist() == [30.0 * 4099, 4099]
    assert mean.dtype == dtype
    assert mean == 30
    mean.backward()
    # Of 8198 rows, times the 2 processes that the gradient is averaged over.
    assert torch.equal(losses.grad, torch.full_like(losses, 2 / 8198))


def test_a_subclass_computes_the_whole_by_its_own_forward() -> None:
    """The share is that of the base class's sum, which a subclass may have changed."""

    class Squared(LayerwiseAlignment):
        def forward(self, source: Activations, target: Activations) -> torch.Tensor:
            return super().forward(source, target) ** 2

    class Logits(LayerwiseAlignment):
        def _pairs(self, source: Activations, target: Activations) -> Any:
            return [(source.logits, target.logits)]

    class Logarithms(JointAlignment):
        @staticmethod
        def _layers(side: Activations) -> list[torch.Tensor]:
            return [side.features, side.logits.log_softmax(1)]

    x = Activations({"features": torch.randn(5, 3)}, torch.randn(5, 2))
    for alignment in (LayerwiseAlignment(), JointAlignment(estimator="unbiased")):
        assert alignment.share(x, x, x, x) is not None
    for alignment in (Squared(), Logits(), Logarithms(), JointAlignment(estimator="linear")):
        assert alignment.share(x, x, x, x) is None
