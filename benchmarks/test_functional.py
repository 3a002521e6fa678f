"""``fastmmd.mmd2`` beside its peers, beside the peak of the machine, and over growing samples."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch

from benchmarks import memory
from benchmarks.cells import MODES, Cell, comparisons, doublings, near_the_limit
from benchmarks.measured import Measured
from benchmarks.peers import PEERS, errors, exact, run, taking_part
from benchmarks.session import SESSION, Session, running
from fastmmd.bench.interleave import interleave, replay
from fastmmd.bench.machine import Disturbance, native


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    session = metafunc.config.stash[SESSION]
    cells, lanes = {
        test_mmd2: (comparisons, _peers_and_modes),
        test_instruction_set: (near_the_limit, _instruction_sets),
        test_growth: (doublings, _itself),
    }[metafunc.function]
    cases = [
        pytest.param(cell, lane, id=f"{cell.id} {lane}")
        for cell in cells(session.threads, session.quick)
        for lane in lanes(cell)
    ]
    metafunc.parametrize(("cell", "lane"), cases)


def _peers_and_modes(cell: Cell) -> list[str]:
    return [f"{peer} {mode}" for mode in MODES for peer in taking_part(cell)]


def _instruction_sets(cell: Cell) -> list[str]:
    # Baseline code is there to run everywhere, not to be fast.
    names = native.instruction_sets()
    return [name for name in names if name != "baseline" or len(names) == 1] + ["torch.mm"]


def _itself(cell: Cell) -> list[str]:
    return [cell.id]


# A set of lanes is measured at once, by the first of its tests; the others take their part of it.


@cache
def compared(cell: Cell, session: Session) -> Measured:
    """All peers in one cell."""
    x, y = cell.samples()
    truth = exact(cell)
    lanes: dict[str, Callable[[], object]] = {}
    info: dict[str, dict[str, Any]] = {}
    with running(cell.threads):
        session.peak.sample(session.instruction_set, cell.threads)
        for peer in taking_part(cell):
            objective = PEERS[peer].make(cell.bandwidth)
            for mode in MODES:
                name = f"{peer} {mode}"
                lanes[name] = partial(run, objective, x, y, mode)
                error = errors(run(objective, x, y, mode), truth)  # compiles, too
                assert max(error.values()) < 0.01, f"{name} computes something else: {error}"
                info[name] = session.info(cell, mode) | {"peer": peer, "error": error}
        del truth
        noise = Disturbance()
        rounds = interleave(lanes, session.budget)
        disturbance = noise.since_last()
        session.peak.sample(session.instruction_set, cell.threads)
    pairs = [(peer, mode) for peer in taking_part(cell) for mode in MODES]
    for (peer, mode), peak in memory.of_peers(cell, pairs).items():
        info[f"{peer} {mode}"] |= {"peak_memory": peak, "disturbance": disturbance}
    return Measured(f"compare {cell.id}", rounds, info)


@pytest.mark.benchmark(timer=replay)
def test_mmd2(cell: Cell, lane: str, session: Session, benchmark: Any) -> None:
    compared(cell, session).record(benchmark, lane)


@cache
def limited(cell: Cell, session: Session) -> Measured:
    """One cell on each instruction set, among samples of its peak and matrix products of torch."""
    x, y = cell.samples()
    objective = PEERS["fastmmd"].make(cell.bandwidth)
    sets = [name for name in _instruction_sets(cell) if name != "torch.mm"]
    side = 2048  # large enough for the best rate of a matrix product
    a = torch.randn(2, side, side)

    def on(instruction_set: str) -> object:
        native.use_instruction_set(instruction_set)
        return run(objective, x, y, "gradients")

    def sample_peaks() -> None:
        for name in sets:
            session.peak.sample(name, cell.threads, seconds=0.1)

    lanes: dict[str, Callable[[], object]] = {s: partial(on, s) for s in sets}
    lanes["torch.mm"] = lambda: torch.mm(a[0], a[1])
    with running(cell.threads):
        noise = Disturbance()
        rounds = interleave(lanes, session.budget, between=sample_peaks)
        disturbance = {"disturbance": noise.since_last()}
    info = {s: session.info(cell, "gradients", s) | {"peer": "fastmmd"} | disturbance for s in sets}
    info["torch.mm"] = {
        "peer": "torch.mm",
        "n": side,
        "threads": cell.threads,
        "instruction_set": session.instruction_set,
        "flop": 2.0 * side**3,
    } | disturbance
    return Measured(f"limit {cell.id}", rounds, info)


@pytest.mark.benchmark(timer=replay)
def test_instruction_set(cell: Cell, lane: str, session: Session, benchmark: Any) -> None:
    limited(cell, session).record(benchmark, lane)


@cache
def growing(session: Session) -> Measured:
    """Value and gradients of fastmmd over growing samples, at one and at all threads for memory."""
    cells = doublings(session.threads, session.quick)
    info: dict[str, dict[str, Any]] = {}
    lanes: dict[str, Callable[[], object]] = {}
    for cell in cells:
        objective = PEERS["fastmmd"].make(cell.bandwidth)
        lanes[cell.id] = partial(run, objective, *cell.samples(), "gradients")
        lane = ("fastmmd", "gradients")
        info[cell.id] = session.info(cell, "gradients") | {
            "peer": "fastmmd",
            "sample_bytes": cell.sample_bytes,
            "peak_memory": memory.of_peers(cell, [lane])[lane],
            "peak_memory_one_thread": memory.of_peers(Cell(cell.n, cell.d, 1), [lane])[lane],
        }
    session.peak.sample(session.instruction_set, session.threads)
    noise = Disturbance()
    rounds = interleave(lanes, session.budget)
    disturbance = noise.since_last()
    for entry in info.values():
        entry["disturbance"] = disturbance
    return Measured("growth", rounds, info)


@pytest.mark.benchmark(timer=replay)
def test_growth(cell: Cell, lane: str, session: Session, benchmark: Any) -> None:
    growing(session).record(benchmark, lane)
