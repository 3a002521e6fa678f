"""Trainings of several processes: what they compute of a batch of all is what one process does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import distributed_training
import pytest
import torch
from distributed_worker import ALIGNMENTS, CASES, ROWS, SEEDS_RUN, batch_of, case_of, one_step
from tolerance import SEEDS, Case, Results, check, threads

from fastmmd.train import Activations, LayerwiseAlignment
from fastmmd.train.distributed import global_discrepancy, global_mean

WORKER = Path(__file__).with_name("distributed_worker.py")
WORLDS = tuple(ROWS)


def run(what: str, world: int, folder: Path, seconds: float = 240.0) -> list[dict[str, Any] | None]:
    """What each process has found, None of one that left nothing."""
    environment = {**os.environ, "PYTHONPATH": str(WORKER.parent), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), what, str(rank), str(world), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        outputs = [process.communicate(timeout=seconds)[0] for process in processes[: world - 1]]
        if what != "hangs":
            outputs.append(processes[-1].communicate(timeout=seconds)[0])
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    files = [folder / f"{rank}.pt" for rank in range(world)]
    found = [torch.load(f, weights_only=True) if f.is_file() else None for f in files]
    if what == "looks":
        assert None not in found, "\n".join(outputs)
    return found


@pytest.fixture(scope="module")
def of_processes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[Any]]:
    """What so many processes have found, who all look at all that these tests ask for."""
    return cache(lambda world: run("looks", world, tmp_path_factory.mktemp(f"world{world}")))


@pytest.mark.parametrize("world", WORLDS)
def test_a_step_is_that_of_one_process_with_the_whole_batch(of_processes: Any, world: int) -> None:
    """Objective, discrepancy and averaged gradients, of parts of unequal size, down to one row."""
    found = [results["steps"] for results in of_processes(world)]
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


@pytest.mark.parametrize("world", WORLDS)
def test_values_and_gradients_obey_the_rule_of_the_tolerance(of_processes: Any, world: int) -> None:
    """Of every family of kernels, in float32 and float64."""
    found = of_processes(world)[0]["values"]
    for index in range(len(CASES)):
        cases = [case_of(index, seed) for seed in SEEDS]

        def look(case: Case, index: int = index, cases: list[Case] = cases) -> Results:
            seed = next(s for s, c in enumerate(cases) if c is case)
            results: Results = found[str((index, seed))]
            return results

        check(cases, look, most=SEEDS_RUN)


def test_rows_are_gathered_in_the_order_of_the_processes(of_processes: Any) -> None:
    for results in of_processes(4):
        rows, numbers = results["gathered"]
        assert rows[:, 0].tolist() == [1, 2, 2, 3, 3, 3]
        assert numbers.dtype == torch.float16
        assert numbers.tolist() == [0, 1, 2, 0, 1, 0, 0, 1, 2]


def test_a_process_without_rows_is_a_named_error_on_all(of_processes: Any) -> None:
    for results in of_processes(2):
        assert "every process needs at least one row of each domain" in results["empty"]
        assert "[3, 0] rows of the source and [3, 3] of the target" in results["empty"]


@pytest.mark.filterwarnings(r"ignore:::lightning\..*", r"ignore:::torch\.jit.*")
def test_two_processes_of_lightning_train_as_one(tmp_path: Path) -> None:
    """100 steps: the losses of each, and the parameters that they end in."""
    environment = {**os.environ, "PYTHONPATH": str(WORKER.parent), "OMP_NUM_THREADS": "1"}
    script = [sys.executable, str(Path(distributed_training.__file__)), str(tmp_path)]
    process = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=240)
    assert process.returncode == 0, process.stdout + process.stderr
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for alignment in found[0]:
        with threads(1):
            whole = distributed_training.train(alignment, None)
        assert len(whole["losses"]) == 100
        assert (whole["losses"].diff().abs() > 1e-3).any()
        for results in found:
            for key, exact in whole.items():
                # The means of an epoch are logged in float32.
                allowed = 1e-6 if key.startswith("train_") else 1e-8
                error = float((results[alignment][key] - exact).abs().max())
                assert error <= allowed, f"{alignment}: {key} is off by {error:.3g}"


@pytest.mark.parametrize("ending", ["dies", "hangs"])
def test_a_process_that_is_lost_stops_the_others(ending: str, tmp_path: Path) -> None:
    """By an error that says so, within the timeout of the process group: 5 s of one that hangs."""
    *others, last = run(ending, 2, tmp_path, seconds=60)
    assert last is None
    for results in others:
        assert results is not None
        assert "another process has ended, or did not answer" in results["error"]
        assert results["seconds"] < 30


def test_one_process_needs_no_group() -> None:
    x = Activations({"features": torch.randn(5, 3)}, torch.randn(5, 2))
    alignment = LayerwiseAlignment()
    assert torch.equal(global_discrepancy(alignment, x, x), alignment(x, x))
    assert global_mean(torch.tensor([1.0, 2.0, 6.0])) == 3
