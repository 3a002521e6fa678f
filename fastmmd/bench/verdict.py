r"""Better, same, worse or unclear.

Of two runs, the quantity is the time of the subject over that of the reference in the same round,
t / r, whose middle a slow second of the machine does not move. The change from base to head is

.. math:: \Delta = \operatorname{midmean} \log(t / r)_\text{head}
          - \operatorname{midmean} \log(t / r)_\text{base},

where the midmean is the mean of the middle half (Tukey, "Exploratory Data Analysis", 1977). Where
both were measured in the same rounds, on the same cores, it is the midmean of the differences of
log t, in which no reference is needed. The interval comes from a bootstrap over blocks of
neighbouring rounds (Kunsch, "The jackknife and the bootstrap for general stationary observations",
Annals of Statistics 1989), as what disturbs one round often disturbs the next.

A row is better or worse only if the change is above the thresholds, its interval beyond half of the
change and, where the two were not measured in the same rounds, the change of the best times above
half of the thresholds.

Two processes of one build differ too, by where their memory lies. Of several runs a side (of two
revisions, passes), runs are resampled first and rounds within them; where a side has a single run,
a change has to be twice the thresholds. Of many rows some would be off by chance: the confidence
grows with their number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastmmd.bench.record import Record, Series

__all__ = ["Answer", "Thresholds", "Verdict", "compare", "judge"]

Answer = Literal["better", "same", "worse", "unclear", "new", "gone"]
_RESAMPLES = 4000


@dataclass(frozen=True)
class Thresholds:
    """What counts as a change.

    Args:
        relative: The smallest change of the time that counts, 0.05 for 5 %.
        absolute: The same in seconds: what changes by less is the same, however short the call.
        confidence: Of the interval of a single row; of r rows it is 1 - 0.05 / r if that is more.
        least_rounds: Fewer are unclear.
    """

    relative: float = 0.05
    absolute: float = 2e-6
    confidence: float = 0.99
    least_rounds: int = 9

    def of_rows(self, count: int) -> Thresholds:
        """For one of so many rows."""
        return replace(self, confidence=max(self.confidence, 1 - 0.05 / max(count, 1)))


@dataclass(frozen=True)
class Verdict:
    """What became of a row.

    Attributes:
        row: Its name.
        answer: ``"better"``, ``"same"``, ``"worse"``, ``"unclear"``; ``"new"`` and ``"gone"`` of
            rows that one of the two does not have.
        change: Time of head over that of base, less 1; so 0.1 is 10 % slower.
        low: Lower end of its interval.
        high: Upper end.
        base: Median seconds of the subject, NaN of a new row.
        head: The same, NaN of one that is gone.
        rounds: How many there were, the fewer of both.
    """

    row: str
    answer: Answer
    change: float = math.nan
    low: float = math.nan
    high: float = math.nan
    base: float = math.nan
    head: float = math.nan
    rounds: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN."""
        return {
            k: None if isinstance(v, float) and math.isnan(v) else v
            for k, v in asdict(self).items()
        }


def judge(base: Series, head: Series, paired: bool, thresholds: Thresholds) -> Verdict:
    """The verdict of one row.

    Args:
        base: Its rounds before.
        head: Its rounds after.
        paired: Whether round i of both was measured together, so that both have the same runs.
        thresholds: What counts.
    """
    draw = np.random.default_rng(0)
    before, after = (np.asarray(s.subject) for s in (base, head))
    if paired:
        logs = np.log(after) - np.log(before)
        center = best = _midmean(logs)
        spread = _midmeans(logs, _samples(base.rounds_of_runs, draw))
    else:
        old, new = (np.log(np.divide(s.subject, s.reference)) for s in (base, head))
        center = _midmean(new) - _midmean(old)
        spread = np.subtract(
            *(
                _midmeans(logs, _samples(of.rounds_of_runs, draw))
                for logs, of in ((new, head), (old, base))
            )
        )
        best = _best(head) - _best(base)
    if min(len(base.rounds_of_runs), len(head.rounds_of_runs)) == 1:
        thresholds = replace(
            thresholds, relative=2 * thresholds.relative, absolute=2 * thresholds.absolute
        )
    tail = (1 - thresholds.confidence) / 2
    low, high = (float(np.quantile(spread, q)) for q in (tail, 1 - tail))
    time = float(np.median(before))
    rounds = min(len(before), len(after))
    answer = _answer(center, best, low, high, time, thresholds)
    return Verdict(
        base.name,
        "unclear" if rounds < thresholds.least_rounds else answer,
        math.expm1(center),
        math.expm1(low),
        math.expm1(high),
        time,
        float(np.median(after)),
        rounds,
    )


def _best(series: Series) -> float:
    return math.log(min(series.subject) / min(series.reference))


def _answer(
    center: float, best: float, low: float, high: float, time: float, t: Thresholds
) -> Answer:
    least = max(math.log1p(t.relative), math.log1p(t.absolute / time))
    # An interval that begins near 0 beside a large change comes from a machine out of control.
    if low > center / 2 > 0 and center >= least and best >= least / 2:
        return "worse"
    if high < center / 2 < 0 and center <= -least and best <= -least / 2:
        return "better"
    if -least < low and high < least:
        return "same"
    return "unclear"


def _samples(runs: tuple[int, ...], draw: np.random.Generator) -> NDArray[Any]:
    """Bootstrap samples [resamples, n] of positions: of runs first, then of the rounds in them.

    Runs differ in length; a sample shorter than others has -1 in the places that are left.
    """
    parts = np.split(np.arange(sum(runs)), np.cumsum(runs)[:-1])
    places = np.full((len(runs), _RESAMPLES, max(runs)), -1)
    for place, part in zip(places, parts, strict=True):
        place[:, : len(part)] = _resampled(part, draw)
    chosen = draw.integers(0, len(runs), size=(_RESAMPLES, len(runs)))
    taken: NDArray[Any] = places[chosen, np.arange(_RESAMPLES)[:, None]]
    return taken.reshape(_RESAMPLES, -1)


def _midmean(values: NDArray[Any]) -> float:
    return float(_midmeans(values, np.arange(len(values))[None])[0])


def _midmeans(values: NDArray[Any], samples: NDArray[Any]) -> NDArray[Any]:
    """Means [resamples] of the middle halves of bootstrap samples."""
    ordered = np.sort(np.append(values, np.inf)[samples], axis=1)
    count = (samples >= 0).sum(axis=1)
    sums = np.cumsum(np.where(np.isfinite(ordered), ordered, 0), axis=1)
    low, high = count // 4, count - count // 4
    upper = np.take_along_axis(sums, high[:, None] - 1, axis=1)[:, 0]
    lower = np.take_along_axis(sums, np.maximum(low, 1)[:, None] - 1, axis=1)[:, 0]
    means: NDArray[Any] = (upper - np.where(low > 0, lower, 0)) / (high - low)
    return means


def _resampled(values: NDArray[Any], draw: np.random.Generator) -> NDArray[Any]:
    """Bootstrap samples [resamples, n], of blocks of neighbours."""
    n = len(values)
    length = max(1, round(n ** (1 / 3)))
    starts = draw.integers(0, n - length + 1, size=(_RESAMPLES, math.ceil(n / length)))
    positions = starts[:, :, None] + np.arange(length)
    taken: NDArray[Any] = values[positions.reshape(_RESAMPLES, -1)[:, :n]]
    return taken


def compare(base: Record, head: Record, thresholds: Thresholds | None = None) -> list[Verdict]:
    """The verdicts of all rows, in the order of head, then those that are gone.

    Raises:
        RecordError: The records do not compare (see :meth:`Record.check_comparable`).
    """
    base.check_comparable(head)
    thresholds = (thresholds or Thresholds()).of_rows(len(base.series.keys() & head.series.keys()))
    together = base.rounds_with is not None and base.rounds_with == head.rounds_with
    verdicts = []
    for name, after in head.series.items():
        before = base.series.get(name)
        if before is None:
            verdicts.append(Verdict(name, "new", head=float(np.median(after.subject))))
            continue
        paired = together and before.rounds_of_runs == after.rounds_of_runs
        verdicts.append(judge(before, after, paired, thresholds))
    verdicts += [
        Verdict(name, "gone", base=float(np.median(series.subject)))
        for name, series in base.series.items()
        if name not in head.series
    ]
    return verdicts


def counts(verdicts: list[Verdict]) -> Mapping[str, int]:
    """How many rows got each answer."""
    found: dict[str, int] = {}
    for verdict in verdicts:
        found[verdict.answer] = found.get(verdict.answer, 0) + 1
    return found
