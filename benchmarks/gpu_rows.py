"""What is measured on a GPU: ``make gpu-check`` runs it, entry by entry, in a process of its own.

Each row is a set of lanes in interleaved rounds, or one measurement. What it records is a list of
dictionaries, one a lane, for :mod:`benchmarks.gpu_report`.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastmmd as fm
from benchmarks import peers
from benchmarks.cells import Cell
from benchmarks.gpu_accuracy import accuracy
from benchmarks.gpu_device import Device, Lane, precision
from benchmarks.gpu_features import features
from benchmarks.gpu_journal import LOST, Journal, context_is_lost, device_answers
from benchmarks.gpu_work import avoiding, fusing, stand_in, taken, without_clusters, work
from benchmarks.peers import MULTIPLIERS, Objective, errors, run
from fastmmd import reference
from fastmmd.bench.clock import rotated
from fastmmd.bench.interleave import Budget, interleave

Record = dict[str, Any]
GEMM = 8192  # side of the matrix products whose rate is held to be the device's
COPIED = 1 << 31  # bytes
TOY_ROWS, TOY_WIDTH = 48, 16


@dataclass(frozen=True)
class Case:
    """Two samples of n points each in d dimensions, five Gaussians, value and both gradients."""

    n: int
    d: int
    dtype: str = "float32"
    precision: str = "highest"  # of torch.get_float32_matmul_precision
    bandwidth: str = "fixed"  # or by the mean distance

    @property
    def bytes(self) -> int:
        """Of both samples."""
        return 2 * self.n * self.d * getattr(torch, self.dtype).itemsize

    @property
    def kernel(self) -> fm.Kernel:
        fixed = Cell(self.n, self.d, 0).bandwidth
        return fm.Gaussian(fixed if self.bandwidth == "fixed" else self.bandwidth, MULTIPLIERS)

    def samples(self, number: int, device: torch.device) -> tuple[Tensor, Tensor]:
        generator = torch.Generator(device).manual_seed(number)
        x, y = torch.randn(2, self.n, self.d, generator=generator, device=device)
        dtype = getattr(torch, self.dtype)
        return x.to(dtype).requires_grad_(), (1.1 * y + 0.1).to(dtype).requires_grad_()

    def flop(self, mode: str) -> float:
        """The arithmetic that cannot be left out: the inner product of each pair once."""
        return Cell(self.n, self.d, 0).flop(mode)


class Bench:
    """The rows, on a device.

    Args:
        device: where.
        seconds: of the rounds of a row.
    """

    def __init__(self, device: Device, seconds: float = 3.0) -> None:
        self.device = device
        self.budget = Budget(0.05, least=2, most=3, turn=0.001) if device.dry else Budget(seconds)
        peers._Blocked.TILE = 4096  # a GPU is not filled by less

    def case(self, n: int, d: int, **rest: Any) -> Case:
        dry = self.device.dry
        return Case(min(n, TOY_ROWS), min(d, TOY_WIDTH), **rest) if dry else Case(n, d, **rest)

    def compare(
        self,
        case: Case,
        lanes: dict[str, tuple[Objective, str]],
        others: dict[str, tuple[Lane, float]] | None = None,
        clock: str = "events",
        seconds: float | None = None,
    ) -> list[Record]:
        """Lanes on one case.

        Args:
            case: the samples.
            lanes: objectives and modes, by name.
            others: calls that have nothing to do with the samples, and their FLOP.
            clock: "events" or "wall".
            seconds: of the rounds, if fewer than usual.
        """
        device, measure = self.device, self.device.stopwatch
        if clock == "wall":
            measure = device.wall
        sets = [case.samples(number, device.torch) for number in range(device.sets(case.bytes))]
        calls: dict[str, Lane] = {}
        infos: dict[str, Record] = {}
        with precision(case.precision):
            truth = self._exact(case, *sets[0])
            for name, (objective, mode) in lanes.items():
                infos[name] = {"clock": clock, **self.info(case, mode)}
                if name.startswith("fastmmd"):
                    infos[name] |= self.road(case, mode, objective, *sets[0])
                try:
                    results = run(objective, *sets[0], mode)
                except torch.OutOfMemoryError:  # which the others need not have
                    infos[name] = {"note": "out of memory"}
                    continue
                infos[name]["error"] = errors(results, truth)
                del results
                calls[name] = rotated(partial(_run, objective, mode), sets)
            for name, (call, flop) in (others or {}).items():
                calls[name], infos[name] = call, {"flop": flop, "clock": clock}
            budget = self.budget
            if seconds is not None and not device.dry:
                budget = replace(budget, seconds=seconds)
            rounds = interleave(calls, budget, measure)
        return [
            {"lane": name, **info, **({"seconds": rounds.seconds[name]} if name in calls else {})}
            for name, info in infos.items()
        ]

    @staticmethod
    def info(case: Case, mode: str = "gradients") -> Record:
        """What is known of a lane before it runs."""
        return asdict(case) | {
            "mode": mode,
            "flop": case.flop(mode),
            "sample_bytes": case.bytes,
        }

    def road(self, case: Case, mode: str, objective: Objective, x: Tensor, y: Tensor) -> Record:
        """The road that such a call takes, and what it executes."""
        gradients = mode == "gradients"
        found = taken(partial(run, objective, x, y, mode))
        if found is None:
            families = list(case.kernel.terms_for(x, y).families)
            found = stand_in(case.n, case.d, x.dtype, case.precision, families, gradients)
        return work(case.n, case.d, found, gradients)._asdict()

    @staticmethod
    def _exact(case: Case, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Value and gradients in float64."""
        x, y = (t.detach().double().requires_grad_() for t in (x, y))
        if case.n <= 2048:  # above, matrices in float64 would take gigabytes each
            return run(lambda x, y: reference.mmd2(x, y, case.kernel), x, y, "gradients")
        return run(peers.blocked(Cell(case.n, case.d, 0).bandwidth), x, y, "gradients")

    def product(self, dtype: torch.dtype) -> tuple[Lane, float]:
        """A matrix product of the device's own library, and its FLOP."""
        side = TOY_ROWS if self.device.dry else GEMM
        # Of its own: one that a capture has left half done would take this row along.
        generator = torch.Generator(self.device.torch).manual_seed(0)
        drawn = torch.randn(2, side, side, generator=generator, device=self.device.torch)
        a, b = drawn.to(dtype)
        return partial(torch.mm, a, b), 2.0 * side**3

    # --- the rows --------------------------------------------------------------------------------

    def facts(self) -> list[Record]:
        from fastmmd.bench.machine import describe

        found = {"device": self.device.facts(), "machine": describe()}
        return [{"lane": "facts", **found, "cuda": str(torch.version.cuda)}]

    def rates(self) -> list[Record]:
        """Of matrix products and of a copy, counting bytes read and written."""
        size = 1 << 16 if self.device.dry else COPIED
        source = torch.empty(size, dtype=torch.uint8, device=self.device.torch).random_()
        target = torch.empty_like(source)
        lanes: dict[str, Lane] = {"copy": lambda: target.copy_(source)}
        work = {"copy": 2.0 * size}
        kinds = {
            "bfloat16": (torch.bfloat16, "highest"),
            "float16": (torch.float16, "highest"),
            "tf32": (torch.float32, "high"),
            "float32": (torch.float32, "highest"),
            "float64": (torch.float64, "highest"),
        }
        for name, (dtype, level) in kinds.items():
            call, work[name] = self.product(dtype)
            lanes[name] = partial(_at, level, call)
        rounds = interleave(lanes, self.budget, self.device.stopwatch)
        return [
            {"lane": name, "work": work[name], "seconds": rounds.seconds[name]} for name in lanes
        ]

    def tf32(self) -> list[Record]:
        case = self.case(8192, 256, precision="high")
        plain = plain_of(case)
        return self.compare(
            case,
            {
                "fastmmd": (ours_of(case), "gradients"),
                "plain": (plain, "gradients"),
                "fastmmd, value": (ours_of(case), "value"),
                "plain, value": (plain, "value"),
                "blocked": (peers.blocked(Cell(case.n, case.d, 0).bandwidth), "gradients"),
            },
        )

    def compiled(self) -> list[Record]:
        case = self.case(8192, 256, precision="high")
        plain = peers.compiled(Cell(case.n, case.d, 0).bandwidth)
        return self.compare(
            case,
            {"fastmmd": (ours_of(case), "gradients"), "torch.compile": (plain, "gradients")},
        )

    def highest(self) -> list[Record]:
        return self._beside_plain(self.case(8192, 256))

    def wide(self) -> list[Record]:
        return self._beside_plain(self.case(4096, 2048, precision="high"))

    def _beside_plain(self, case: Case) -> list[Record]:
        lanes = {"fastmmd": (ours_of(case), "gradients"), "plain": (plain_of(case), "gradients")}
        return self.compare(case, lanes)

    def bf16_rate(self) -> list[Record]:
        case = self.case(16384, 512, dtype="bfloat16")
        return self._beside_product(case, torch.bfloat16)

    def tf32_rate(self) -> list[Record]:
        return self._beside_product(self.case(16384, 256, precision="high"), torch.float32)

    def _beside_product(self, case: Case, dtype: torch.dtype) -> list[Record]:
        lanes = {"fastmmd": (ours_of(case), "gradients")}
        return self.compare(case, lanes, {"torch.mm": self.product(dtype)})

    def roads(self) -> list[Record]:
        """Sizes at which roads meet: the one that is taken, beside the others."""
        records = []
        for n, d, precision_ in (
            (256, 256, "highest"),
            (512, 256, "highest"),
            (2048, 128, "high"),
            (8192, 64, "high"),
            (8192, 128, "high"),
            (8192, 256, "highest"),
            (8192, 256, "high"),
        ):
            case = self.case(n, d, precision=precision_)
            ours = ours_of(case)
            others = {"fused": fusing, "panels": partial(avoiding, "fused")}
            if precision_ == "high":
                others["panels, no clusters"] = partial(without_clusters, "fused")
            if n + n <= 1024:
                others = {"not small": partial(avoiding, "small")}
            lanes = {
                f"fastmmd, {name}": (under(road, ours), "gradients")
                for name, road in others.items()
            }
            records += self.compare(case, {"fastmmd": (ours, "gradients")} | lanes, seconds=1.5)
        return records

    def eager(self) -> list[Record]:
        case = self.case(64, 256, bandwidth="mean")
        lanes = {"fastmmd": (ours_of(case), "gradients"), "plain": (plain_of(case), "gradients")}
        return self.compare(case, lanes, clock="wall")

    def graph(self) -> list[Record]:
        """Replays of a captured forward and backward, with new data under it."""
        case = self.case(64, 256, bandwidth="mean")
        records = self._replayed(case, "fastmmd", ours_of(case))
        try:
            records += self._replayed(case, "plain", plain_of(case))
        except RuntimeError as error:
            records.append({"lane": "plain", "note": f"cannot be captured: {error}"[:300]})
        return records

    def _replayed(self, case: Case, name: str, objective: Objective) -> list[Record]:
        x, y = case.samples(0, self.device.torch)
        info = self.info(case)
        if name == "fastmmd":
            info |= self.road(case, "gradients", objective, x, y)
        replay, results = self.device.captured(partial(run, objective, x, y, "gradients"))
        fresh = case.samples(1, self.device.torch)
        with torch.no_grad():
            x.copy_(fresh[0])
            y.copy_(fresh[1])
        if self.device.dry:
            results = run(objective, x, y, "gradients")
        replay()
        self.device.synchronize()
        error = errors(results, self._exact(case, x, y))
        calls = 3 if self.device.dry else 200
        seconds = {
            "cold": [self.device.cold(replay, 1) for _ in range(calls)],
            "warm": [self.device.stopwatch(replay, calls) / calls for _ in range(10)],
        }
        return [
            {"lane": name, **info, "clock": clock, "error": error, "seconds": of}
            for clock, of in seconds.items()
        ]

    def keops(self) -> list[Record]:
        """KeOps, which geomloss's online backend runs on."""
        missing = [name for name in ("pykeops", "geomloss") if find_spec(name) is None]
        if "pykeops" in missing:
            return [{"lane": "keops", "note": f"not installed: {', '.join(missing)}"}]
        case = self.case(8192, 256)
        lanes = {"fastmmd": (ours_of(case), "gradients"), "keops": (keops_of(case), "gradients")}
        if "geomloss" not in missing:
            lanes["geomloss"] = (geomloss_of(case), "gradients")
        return self.compare(case, lanes)

    def memory(self) -> list[Record]:
        records = []
        for kind in ({"precision": "highest"}, {"precision": "high"}, {"dtype": "bfloat16"}):
            case = self.case(32768, 256, **kind)
            x, y = case.samples(0, self.device.torch)
            call = partial(run, ours_of(case), x, y, "gradients")
            with precision(case.precision):
                call()  # libraries take their workspaces once
                peak = self.device.peak_memory(call)
            records.append({"lane": "fastmmd", **self.info(case), "peak_memory": peak})
        return records

    def huge(self) -> list[Record]:
        case = self.case(131072, 128, dtype="bfloat16")
        x, y = case.samples(0, self.device.torch)
        call = partial(run, ours_of(case), x, y, "gradients")
        results = call()
        finite = all(bool(t.isfinite().all()) for t in results)
        del results
        peak = self.device.peak_memory(call)
        seconds = [self.device.stopwatch(call, 1) for _ in range(3)]
        record = {"lane": "fastmmd", **self.info(case), "clock": "events", "peak_memory": peak}
        record |= self.road(case, "gradients", ours_of(case), x, y)
        return [record | {"seconds": seconds, "finite": finite}]

    def features(self) -> list[Record]:
        return features(self.device, self.budget)

    def accuracy(self) -> list[Record]:
        return accuracy(self.device)


# In the order of what would be missed most; what compiles at run time comes last.
ROWS: dict[str, Callable[[Bench], list[Record]]] = {
    row.__name__: row
    for row in (
        *(Bench.facts, Bench.rates, Bench.tf32, Bench.highest, Bench.eager, Bench.graph),
        *(Bench.bf16_rate, Bench.tf32_rate, Bench.wide, Bench.accuracy, Bench.memory),
        *(Bench.features, Bench.huge, Bench.roads, Bench.compiled, Bench.keops),
    )
}


def _run(objective: Objective, mode: str, x: Tensor, y: Tensor) -> object:
    return run(objective, x, y, mode)


def _at(level: str, call: Lane) -> object:
    with precision(level):
        return call()


def ours_of(case: Case) -> Objective:
    kernel = case.kernel
    return lambda x, y: fm.mmd2(x, y, kernel)


def under(road: Callable[[], AbstractContextManager[None]], objective: Objective) -> Objective:
    """The objective on another road."""

    def on_it(x: Tensor, y: Tensor) -> Tensor:
        with road():
            return objective(x, y)

    return on_it


def plain_of(case: Case) -> Objective:
    kernel = case.kernel
    return lambda x, y: reference.mmd2(x, y, kernel)


def keops_of(case: Case) -> Objective:
    """All five Gaussians in one reduction over the pooled sample."""
    from pykeops.torch import LazyTensor

    slopes = [1 / (2 * m * Cell(case.n, case.d, 0).bandwidth ** 2) for m in MULTIPLIERS]

    def objective(x: Tensor, y: Tensor) -> Tensor:
        z = torch.cat([x, y])
        a = torch.cat([x.new_full((len(x), 1), 1 / len(x)), y.new_full((len(y), 1), -1 / len(y))])
        d2 = ((LazyTensor(z[:, None]) - LazyTensor(z[None])) ** 2).sum(-1)
        k = sum((-d2 * slope).exp() for slope in slopes)
        return (a * (k @ a)).sum()

    return objective


def geomloss_of(case: Case) -> Objective:
    from geomloss import SamplesLoss

    widths = [m**0.5 * Cell(case.n, case.d, 0).bandwidth for m in MULTIPLIERS]
    losses = [SamplesLoss("gaussian", blur=width, backend="online") for width in widths]
    return lambda x, y: 2 * sum(loss(x, y) for loss in losses)


def main(arguments: list[str] | None = None) -> int:
    """Run the rows that the journal has no end of."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_rows", description=main.__doc__)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--rows", default=",".join(ROWS), help="names, with commas between")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at toy sizes")
    parser.add_argument("--no-clusters", action="store_true", help="where they do not work")
    options = parser.parse_args(arguments)
    with without_clusters() if options.no_clusters else nullcontext():
        return run_rows(Journal(options.journal), options.rows.split(","), options.dry_run)


def run_rows(journal: Journal, rows: list[str], dry: bool) -> int:
    """Those that the journal has no end of."""
    bench = None
    for name in rows:
        if name in journal.ended():
            continue
        journal.begin(name)
        try:
            bench = bench or Bench(Device(dry))
            records = ROWS[name](bench)
        except Exception as error:  # of a row: the others go on
            traceback.print_exc()
            message = f"{type(error).__name__}: {error}"
            journal.end(name, "failed", message=message[:1000])
            if context_is_lost(message) or not device_answers():
                return LOST
        else:
            journal.end(name, "passed", records=records)
        if bench:
            bench.device.release()
    return 0


if __name__ == "__main__":
    sys.exit(main())
