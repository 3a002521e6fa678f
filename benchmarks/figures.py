"""The promises that are measured, with what is asked of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from benchmarks.results import Row, Run, Spread, ratio

# Times faster, value and gradients: (must, aim) by (n, d).
FASTER = {
    "reference": {
        (32, 256): (8, 15),
        (128, 256): (6, 10),
        (512, 256): (4, 5.5),
        (2048, 256): (3.5, 4.5),
        (8192, 64): (40, 60),
        (8192, 256): (9, 13),
    },
    "compile": {
        (32, 256): (3, 6),
        (128, 256): (2.5, 4),
        (512, 256): (2.3, 3),
        (2048, 256): (2.2, 3),
        (8192, 64): (10, 15),
        (8192, 256): (2.5, 3.5),
    },
}
FASTER_ON_ONE_THREAD = {"reference": {(32, 256): (4, 8)}}
NAMES = {"reference": "plain PyTorch", "compile": "torch.compile"}
SHARE_OF_PEAK = (0.65, 0.85)
VALUE_ALONE_SIZE, VALUE_ALONE = (2048, 256), 0.45
MEMORY_SIZE, MEMORY = (16384, 64), 4.0
GROWTH_FROM, GROWTH = 4096, 4.3
IMPORT = 1.1
# Times faster in the family, by (subject, peer).
FAMILY_FASTER = {
    ("1000 permutations", "permuting K by index"): 100,
    ("permutation test", "K @ V"): 1,
    ("compat.deepda", "(2n, 2n, d) differences"): 400,
    ("compat.tllib, five kernels", "one Gram matrix"): 6,
    ("compat.pytorch_adapt, quadratic, five scales", "one Gram matrix"): 6,
    ("compat.pytorch_adapt, as by default", "one Gram matrix"): 6,
    ("projected_mmd2", "linear + mmd2"): 1.1,
    ("projected_mmd2", "linear + plain PyTorch"): 1.8,
    ("sliced_mmd2", "torch.sort"): 3,
    ("random features", "plain PyTorch"): 1.5,
    ("random features", "torch.mm"): 1,  # of its products, there and back
    ("random features, five bandwidths", "plain PyTorch"): 2.5,
    ("random features of a batch", "plain PyTorch"): 1,
}
TEST_MEMORY = 100  # MiB
FEATURE_MEMORY = 0.05  # of what holding the features takes
# The bound on the time of a loss on layers of such widths, beside MMDLoss on layers of others.
COSTS = {
    ("JointMMDLoss", "256 + 31"): (("256", "31"), 1.3),
    ("JointMMDLoss", "256 + 256"): (("256", "256"), 1.3),
    ("LocalMMDLoss, 31 classes", "256"): (("256",), 1.5),
}
# Up to 65536 the gradients are of a size that the allocator of the C library keeps from call to
# call; above, it fetches them anew, page by page, from the system.
DOUBLED, DOUBLED_FROM = 2.4, 131072


@dataclass(frozen=True)
class Figure:
    """A measured promise. ``must`` and ``aim`` are bounds, from above if ``smaller`` is better."""

    name: str
    unit: str  # "x", "%", "MiB"
    spread: Spread
    must: float | None = None
    aim: float | None = None
    smaller: bool = False

    def reaches(self, bound: float) -> bool:
        return self.spread.median <= bound if self.smaller else self.spread.median >= bound

    @property
    def verdict(self) -> str:
        """Whether the median reaches the bounds."""
        if self.must is None:
            return "-"
        if not self.reaches(self.must):
            return "missed"
        return "aim met" if self.aim is not None and self.reaches(self.aim) else "met"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"verdict": self.verdict}


def figures(run: Run) -> list[Figure]:
    """All figures for which a run has the rows."""
    makers = (
        *(_faster, _share_of_peak, _value_alone, _memory, _growth),
        *(family_faster, _test_memory, _feature_memory, costs, _doubled, _import),
    )
    return [figure for make in makers for figure in make(run)]


def _faster(run: Run) -> Iterator[Figure]:
    for threads in dict.fromkeys((run.threads, 1)):
        where = "" if threads == run.threads else ", one thread"
        for peer, name in NAMES.items():
            asked = (FASTER if threads == run.threads else FASTER_ON_ONE_THREAD).get(peer, {})
            for other in run.select("compare", peer=peer, mode="gradients", threads=threads):
                n, d = other.size
                ours = run.find(
                    "compare", peer="fastmmd", mode="gradients", threads=threads, n=n, d=d
                )
                if ours:
                    bounds = asked.get((n, d), (None, None))
                    yield Figure(
                        f"faster than {name}, ({n}, {d}){where}", "x", ratio(other, ours), *bounds
                    )


def _share_of_peak(run: Run) -> Iterator[Figure]:
    for row in run.select("limit", peer="fastmmd"):
        name = f"share of FMA peak, {row.size}, {row.info['instruction_set']}"
        yield Figure(name, "%", run.share(row), *SHARE_OF_PEAK)


def _value_alone(run: Run) -> Iterator[Figure]:
    n, d = VALUE_ALONE_SIZE
    where = {"peer": "fastmmd", "n": n, "d": d, "threads": run.threads}
    value = run.find("compare", mode="value", **where)
    gradients = run.find("compare", mode="gradients", **where)
    if value and gradients:
        name = f"value alone / value and gradients, {VALUE_ALONE_SIZE}"
        yield Figure(name, "x", ratio(value, gradients), VALUE_ALONE, smaller=True)


def _memory(run: Run) -> Iterator[Figure]:
    n, d = MEMORY_SIZE
    row = run.find("growth", n=n, d=d)
    if row is None or row.info["peak_memory"] is None:
        return
    peak, alone = row.info["peak_memory"], row.info["peak_memory_one_thread"]

    yield Figure(
        f"peak extra memory / samples, {MEMORY_SIZE}",
        "x",
        _once(peak / row.info["sample_bytes"]),
        MEMORY,
        smaller=True,
    )
    if run.threads > 1:
        # A tile buffer is made to stay in the second-level cache of its core.
        yield Figure(
            f"memory of a further thread, {MEMORY_SIZE}",
            "MiB",
            _once((peak - alone) / (run.threads - 1) / 2**20),
            run.machine["l2_bytes"] / 2**20,
            smaller=True,
        )


def _once(value: float) -> Spread:
    return Spread(value, value, value, value)


def _growth(run: Run) -> Iterator[Figure]:
    rows = list(run.select("growth"))
    for small, large in pairwise(rows):
        asked = GROWTH if small.info["n"] >= GROWTH_FROM else None
        name = f"time, n = {small.info['n']} to {large.info['n']}, d = {small.info['d']}"
        yield Figure(name, "x", ratio(large, small), asked, smaller=True)


def _where(row: Row) -> str:
    return f"({row.info['n']}, {row.info['d']})"


def family_faster(run: Run) -> Iterator[Figure]:
    """Times faster than what is written in place of a member of the family."""
    for (subject, peer), asked in FAMILY_FASTER.items():
        for other in run.select("family", subject=subject, peer=peer):
            ours = run.find("family", subject=subject, peer="fastmmd", n=other.info["n"])
            if ours:
                name = f"{subject}, faster than {peer}, {_where(other)}"
                must = None if run.quick else asked
                yield Figure(name, "x", ratio(other, ours), must)


def _test_memory(run: Run) -> Iterator[Figure]:
    row = run.find("family", subject="permutation test", peer="fastmmd")
    if row and row.info.get("peak_memory") is not None:
        name = f"permutation test, peak extra memory, {_where(row)}"
        peak = _once(row.info["peak_memory"] / 2**20)
        yield Figure(name, "MiB", peak, TEST_MEMORY, smaller=True)


def _feature_memory(run: Run) -> Iterator[Figure]:
    for subject in ("random features", "random features, five bandwidths"):
        ours = run.find("family", subject=subject, peer="fastmmd")
        other = run.find("family", subject=subject, peer="plain PyTorch")
        if ours and other and ours.info.get("peak_memory") and other.info.get("peak_memory"):
            share = _once(ours.info["peak_memory"] / other.info["peak_memory"])
            name = f"{subject}, peak extra memory / that of plain PyTorch, {_where(ours)}"
            must = None if run.quick else FEATURE_MEMORY
            yield Figure(name, "x", share, must, smaller=True)


def costs(run: Run) -> Iterator[Figure]:
    """Times of losses over those of the plain ones that they are made of."""
    for subject in dict.fromkeys(row.info["subject"] for row in run.select("family")):
        for (loss, widths), (parts, asked) in COSTS.items():
            row = run.find("family", subject=subject, peer=loss, d=widths)
            plain = [run.find("family", subject=subject, peer="MMDLoss", d=d) for d in parts]
            found = [other for other in plain if other]
            if row and len(found) == len(parts):
                beside = "the sum of two MMDLoss" if len(parts) > 1 else "MMDLoss"
                name = f"{loss} / {beside}, {_where(row)}"
                yield Figure(name, "x", ratio(row, *found), asked, smaller=True)


def _doubled(run: Run) -> Iterator[Figure]:
    for subject in (*(f"{e} estimator" for e in ("linear", "block", "incomplete")), "sliced_mmd2"):
        rows = list(run.select("family", subject=subject, peer="fastmmd"))
        for small, large in pairwise(rows):
            n, twice, d = small.info["n"], large.info["n"], small.info["d"]
            asked = DOUBLED if n >= DOUBLED_FROM or subject == "sliced_mmd2" else None
            name = f"time of the {subject}, n = {n} to {twice}, d = {d}"
            yield Figure(name, "x", ratio(large, small), asked, smaller=True)
        for ours in rows:
            other = run.find("family", subject=subject, peer="row by row", n=ours.info["n"])
            if other:
                name = f"{subject}, faster than row by row, {_where(ours)}"
                yield Figure(name, "x", ratio(other, ours))


def _import(run: Run) -> Iterator[Figure]:
    ours, torch = (run.find("import", module=name) for name in ("fastmmd", "torch"))
    if ours and torch:
        yield Figure("import fastmmd / import torch", "x", ratio(ours, torch), IMPORT, smaller=True)
