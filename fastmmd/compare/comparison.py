"""What tells two tables of numbers apart: a test, the columns and the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import fastmmd
from fastmmd.compare.reading import InputError, Table, aligned
from fastmmd.kernels import (
    Energy,
    Gaussian,
    InverseMultiquadric,
    Kernel,
    Laplacian,
    Linear,
    Matern,
    RationalQuadratic,
)
from fastmmd.stats import (
    AggregatedResult,
    TwoSampleResult,
    contributions,
    mmd_aggregated_test,
    two_sample_test,
)

__all__ = [
    "AGGREGATED",
    "KERNELS",
    "Comparison",
    "Feature",
    "Row",
    "Settings",
    "compare",
    "described",
]

AGGREGATED = "aggregated"

# Those with which MMD^2 does not change when both samples are moved by the same amount, as the
# data are centred before they become float32.
KERNELS: dict[str, Callable[[Any], Kernel]] = {
    "gaussian": lambda s: Gaussian(s) if isinstance(s, str) else Gaussian(s, multipliers=(1,)),
    "laplacian": Laplacian,
    "inverse-multiquadric": InverseMultiquadric,
    "rational-quadratic": lambda s: RationalQuadratic(bandwidth=s),
    "matern": lambda s: Matern(1.5, s),
    "energy": lambda s: Energy(),
    "linear": lambda s: Linear(),
}
WITHOUT_BANDWIDTH = frozenset({"energy", "linear", AGGREGATED})


@dataclass(frozen=True)
class Settings:
    """How two tables are compared."""

    kernel: str = "gaussian"  # of KERNELS, or AGGREGATED
    bandwidth: str | float | None = None  # None: "mean", or that the kernel has none
    permutations: int = 999
    method: str = "permutation"
    estimator: str = "biased"
    seed: int = 0
    alpha: float = 0.05
    standardize: bool = False
    max_rows: int = 10_000  # of each file; 0 for no limit


@dataclass(frozen=True)
class Feature:
    """How one column differs."""

    name: str
    column: int
    difference: float  # energy coefficient: 0 for one distribution, 1 for two distinct constants
    mean_a: float
    mean_b: float
    shift: float  # mean of B minus mean of A, in standard deviations within the samples
    spread: float  # standard deviation of B over that of A


@dataclass(frozen=True)
class Row:
    """How much one row tells its sample from the other."""

    row: int  # from 0, as in the file, without its header
    contribution: float  # to MMD^2, of which it is a summand
    witness: float  # positive where A is the denser, negative where B is


@dataclass(frozen=True, eq=False)
class Comparison:
    """The result of :func:`compare`."""

    a: Table
    b: Table
    settings: Settings
    test: TwoSampleResult
    aggregated: AggregatedResult | None
    kernel: str
    pvalue: float
    different: bool
    features: list[Feature]  # the most different first
    rows_a: list[Row]  # those least like the other table first
    rows_b: list[Row]
    notes: tuple[str, ...]
    points_a: Tensor = field(repr=False)  # as they were compared
    points_b: Tensor = field(repr=False)
    witness_a: npt.NDArray[Any] = field(repr=False)  # at all points compared
    witness_b: npt.NDArray[Any] = field(repr=False)
    shown_a: npt.NDArray[Any] = field(repr=False)  # those rows in the units of the file
    shown_b: npt.NDArray[Any] = field(repr=False)

    def as_dict(self, top: int) -> dict[str, Any]:
        """All figures as plain numbers, strings, lists and dictionaries.

        Args:
            top: How many features, and rows of each table, are listed.
        """
        null = np.asarray(self.test.null)
        quantiles = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
        result: dict[str, Any] = {
            "fastmmd": fastmmd.__version__,
            "a": self._file(self.a, self.points_a),
            "b": self._file(self.b, self.points_b),
            "columns": len(self.features),
            "settings": asdict(self.settings),
            "kernel": self.kernel,
            "statistic": self.test.statistic,
            "pvalue": self.pvalue,
            "zscore": number(self.test.zscore),
            "critical_value": number(self.test.critical_value(self.settings.alpha)),
            "different": self.different,
            "null": {
                "mean": float(null.mean()),
                "standard_deviation": float(null.std()),
                "quantiles": {f"{q:g}": float(np.quantile(null, q)) for q in quantiles},
            },
            "features": [jsonable(feature) for feature in self.features[:top]],
            "rows_a": [jsonable(row) for row in self.rows_a[:top]],
            "rows_b": [jsonable(row) for row in self.rows_b[:top]],
            "notes": list(self.notes),
        }
        if self.aggregated is not None:
            result["aggregated"] = [
                {"kernel": described(kernel), "pvalue": float(p), "adjusted_pvalue": float(q)}
                for kernel, p, q in zip(
                    self.aggregated.kernels,
                    self.aggregated.pvalues,
                    self.aggregated.adjusted_pvalues,
                    strict=True,
                )
            ]
        return result

    @staticmethod
    def _file(table: Table, points: Tensor) -> dict[str, Any]:
        return {"path": table.path, "rows": len(table.values), "compared": len(points)}


def described(kernel: Kernel) -> str:
    """A kernel in a few words."""
    name = type(kernel).__name__
    bandwidth = getattr(kernel, "bandwidth", None)
    if bandwidth is None:
        return name
    if isinstance(bandwidth, float):
        return f"{name}, bandwidth {bandwidth:.4g}"
    factors = getattr(kernel, "multipliers", ())
    several = f" times {', '.join(f'{m:g}' for m in factors)}" if factors else ""
    return f"{name}, {bandwidth} squared distance{several}"


def number(value: float) -> float | None:
    """The number, or None where JSON has none for it."""
    return value if np.isfinite(value) else None


def jsonable(item: Feature | Row) -> dict[str, Any]:
    """The fields, numbers that JSON lacks as None."""
    return {k: number(v) if isinstance(v, float) else v for k, v in asdict(item).items()}


def compare(a: Table, b: Table, settings: Settings) -> Comparison:
    """Tests whether two tables come from one distribution, and ranks what tells them apart.

    The columns are centred by their pooled mean and, with ``standardize``, divided by their pooled
    standard deviation; neither depends on which row is in which table, so the level holds.

    Args:
        a: The first table.
        b: The second; its columns are put into the order of the first.
        settings: How.

    Raises:
        InputError: The tables cannot be compared, or not under these settings.
    """
    a, b = aligned(a, b)
    notes = [*a.notes, *b.notes]
    if settings.kernel in WITHOUT_BANDWIDTH and settings.bandwidth is not None:
        raise InputError(f"--bandwidth: --kernel {settings.kernel} takes none")
    rows_a, rows_b = len(a.values), len(b.values)
    paired = settings.method == "wild_bootstrap"
    if paired and rows_a != rows_b:
        raise InputError(
            f"--method wild_bootstrap pairs the rows, and {a.path} has {rows_a} and {b.path}"
            f" {rows_b} of them"
        )
    generator = np.random.default_rng(settings.seed)
    kept_a = _kept(a, settings, generator, notes)
    kept_b = kept_a if paired else _kept(b, settings, generator, notes)
    shown_a, shown_b = a.values[kept_a], b.values[kept_b]
    points_a, points_b = _points(a, shown_a, shown_b, settings, notes)

    aggregated = None
    if settings.kernel == AGGREGATED:
        aggregated = mmd_aggregated_test(
            points_a,
            points_b,
            level=settings.alpha,
            num_permutations=settings.permutations,
            num_corrections=settings.permutations,
            method=settings.method,
            estimator=settings.estimator,
            seed=settings.seed,
        )
        # The kernel that sees most of the difference stands for all in what follows.
        kernel = aggregated.kernels[_foremost(aggregated)]
    else:
        kernel = KERNELS[settings.kernel](settings.bandwidth or "mean")
    test = two_sample_test(
        points_a,
        points_b,
        kernel,
        num_permutations=settings.permutations,
        method=settings.method,
        estimator=settings.estimator,
        seed=settings.seed,
    )
    pvalue = test.pvalue if aggregated is None else aggregated.pvalue
    if 1 / (1 + settings.permutations) > settings.alpha:
        notes.append(
            f"{settings.permutations} permutations give no p-value below {settings.alpha:g}:"
            " no difference can be found at that level"
        )
    of_a, of_b = map(np.asarray, contributions(points_a, points_b, kernel))
    witness_a, witness_b = of_a * len(of_a), -of_b * len(of_b)
    return Comparison(
        a=a,
        b=b,
        settings=settings,
        test=test,
        aggregated=aggregated,
        kernel=described(kernel),
        pvalue=pvalue,
        different=pvalue <= settings.alpha,
        features=_features(a, shown_a, shown_b),
        rows_a=_rows(of_a, witness_a, kept_a),
        rows_b=_rows(of_b, witness_b, kept_b),
        notes=tuple(notes),
        points_a=points_a,
        points_b=points_b,
        witness_a=witness_a,
        witness_b=witness_b,
        shown_a=shown_a,
        shown_b=shown_b,
    )


def _foremost(result: AggregatedResult) -> int:
    """The kernel of the smallest p-value; of several, that with the largest statistic."""
    pvalues, statistics = np.asarray(result.adjusted_pvalues), np.asarray(result.statistics)
    return int(np.lexsort((-statistics, np.asarray(result.pvalues), pvalues))[0])


def _kept(
    table: Table, settings: Settings, generator: np.random.Generator, notes: list[str]
) -> npt.NDArray[Any]:
    rows, most = len(table.values), settings.max_rows
    if not most or rows <= most:
        return np.arange(rows)
    notes.append(f"{table.path}: {most:,} of {rows:,} rows, drawn at random (--max-rows)")
    return np.sort(generator.choice(rows, most, replace=False))


def _points(
    table: Table,
    a: npt.NDArray[Any],
    b: npt.NDArray[Any],
    settings: Settings,
    notes: list[str],
) -> tuple[Tensor, Tensor]:
    """The rows as they are compared: centred, standardised if asked for, float32 if that does."""
    pooled = np.concatenate([a, b]).astype(np.float64)
    beyond = np.abs(pooled).max(0) > 1e150
    if beyond.any():
        raise InputError(
            f"{table.labels[int(beyond.argmax())]}: holds numbers beyond 1e150, whose squares are"
            " out of range"
        )
    constant = np.ptp(pooled, axis=0) == 0
    pooled -= pooled.mean(0)
    pooled[:, constant] = 0
    if constant.any():
        names = [label for label, c in zip(table.labels, constant, strict=True) if c]
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        notes.append(f"constant in both files, so without effect: {shown}")
    if settings.standardize:
        deviation = pooled.std(0)
        deviation[constant] = 1.0
        pooled /= deviation
    elif _is_uneven(pooled, constant):
        notes.append(
            "the columns are of very different scales, and the largest decide:"
            " --standardize gives each the same say"
        )
    size = float(np.abs(pooled).max())
    fits = size == 0 or 1e-12 < size < 1e12  # squares and their sums are far inside float32
    points = torch.from_numpy(pooled if not fits else pooled.astype(np.float32))
    return points[: len(a)], points[len(a) :]


def _is_uneven(pooled: npt.NDArray[Any], constant: npt.NDArray[Any]) -> bool:
    ranges = np.abs(pooled).max(0)[~constant]
    return len(ranges) > 1 and bool(ranges.max() > 100 * np.median(ranges))


def _rows(parts: npt.NDArray[Any], witness: npt.NDArray[Any], kept: npt.NDArray[Any]) -> list[Row]:
    order = np.argsort(-np.asarray(parts), kind="stable")
    return [Row(int(kept[i]), float(parts[i]), float(witness[i])) for i in order]


def _features(table: Table, a: npt.NDArray[Any], b: npt.NDArray[Any]) -> list[Feature]:
    """Each column by itself, the most different first."""
    found = []
    for column, label in enumerate(table.labels):
        x, y = (sample[:, column].astype(np.float64) for sample in (a, b))
        (mean_a, s_a), (mean_b, s_b) = _moments(x), _moments(y)
        within = np.sqrt(((len(x) - 1) * s_a**2 + (len(y) - 1) * s_b**2) / (len(x) + len(y) - 2))
        found.append(
            Feature(
                name=label,
                column=column,
                difference=energy_coefficient(x, y),
                mean_a=mean_a,
                mean_b=mean_b,
                shift=_ratio(mean_b - mean_a, within),
                spread=_ratio(s_b, s_a),
            )
        )
    return sorted(found, key=lambda feature: -feature.difference)


def _moments(x: npt.NDArray[Any]) -> tuple[float, float]:
    """Mean and standard deviation, exact for a constant."""
    if np.ptp(x) == 0:
        return float(x[0]), 0.0
    return float(x.mean()), float(x.std(ddof=1))


def _ratio(a: float, b: float) -> float:
    if b:
        return float(a / b)
    return float("nan") if a == 0 else float(np.copysign(np.inf, a))


def energy_coefficient(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> float:
    """The energy distance of two samples of numbers over its largest possible value.

    ``(2 E|X - Y| - E|X - X'| - E|Y - Y'|) / 2 E|X - Y|`` (Szekely and Rizzo, "Energy statistics",
    2013), with the means over distinct pairs, so that it lies around 0 for one distribution; what
    falls below is taken for 0. The expectations are integrals over the two distribution functions,
    which a sort gives in O(N log N).
    """
    pooled = np.concatenate([x, y])
    order = np.argsort(pooled, kind="stable")
    steps = np.diff(pooled[order])
    of_x = order < len(x)
    f = np.cumsum(of_x)[:-1] / len(x)
    g = np.cumsum(~of_x)[:-1] / len(y)
    cross = float(steps @ (f * (1 - g) + g * (1 - f)))
    if cross == 0:
        return 0.0
    within_x = 2 * float(steps @ (f * (1 - f))) * len(x) / (len(x) - 1)
    within_y = 2 * float(steps @ (g * (1 - g))) * len(y) / (len(y) - 1)
    return max(0.0, 1 - (within_x + within_y) / (2 * cross))
