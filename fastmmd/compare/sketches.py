"""``fastmmd sketch``, and ``fastmmd compare`` of what it writes."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import fastmmd
from fastmmd._output import OutputError, OutputFolder
from fastmmd.compare.comparison import KERNELS, Settings, number
from fastmmd.compare.reading import InputError, count_columns, some
from fastmmd.compare.report import print_facts, verdict
from fastmmd.compare.streaming import Parts, open_parts
from fastmmd.kernels import Gaussian, Kernel
from fastmmd.parameters import RunningBandwidth
from fastmmd.sketch import MeanEmbedding
from fastmmd.sketch import files as sketch_files

__all__ = ["FAMILIES", "SketchComparison", "SketchSettings", "compare_sketches", "sketch"]

# Of the kernels of the command line, those that are means of cosines.
FAMILIES = ("gaussian", "laplacian", "inverse-multiquadric", "rational-quadratic", "matern")

_LOOKED_AT = 4096  # rows for a bandwidth

_Array = npt.NDArray[Any]


@dataclass(frozen=True)
class SketchSettings:
    """How a file is sketched."""

    kernel: str = "gaussian"  # of FAMILIES
    bandwidth: str | float = "mean"
    num_features: int = 4096
    seed: int = 0
    form: str = "pair"
    frequencies: str = "iid"


@dataclass(frozen=True)
class SketchComparison:
    """The result of :func:`compare_sketches`."""

    a: MeanEmbedding
    b: MeanEmbedding
    paths: tuple[str, str]
    settings: Settings
    notes: tuple[str, ...]
    statistic: float
    standard_error: float
    expected: float  # without a difference
    pvalue_bound: float
    different: bool

    def as_dict(self) -> dict[str, Any]:
        """All figures as plain numbers, strings, lists and dictionaries."""
        a = self.a
        files = [
            {"path": path, "rows": sketch.count, "weight": sketch.weight}
            for path, sketch in zip(self.paths, (a, self.b), strict=True)
        ]
        return {
            "fastmmd": fastmmd.__version__,
            "a": files[0],
            "b": files[1],
            "columns": a.dim,
            "settings": {"estimator": self.settings.estimator, "alpha": self.settings.alpha},
            "sketch": {
                "num_features": a.num_features,
                "seed": a.seed,
                "form": a.form,
                "frequencies": a.frequencies,
            },
            "kernel": described(a.kernel),
            "statistic": number(self.statistic),
            "standard_error": number(self.standard_error),
            "null": {"mean": number(self.expected)},
            "pvalue_bound": number(self.pvalue_bound),
            "different": self.different,
            "notes": list(self.notes),
        }


def sketch(
    path: str,
    output: str | os.PathLike[str],
    settings: SketchSettings | None = None,
    like: str | None = None,
    key: str | None = None,
    columns: Sequence[str] | None = None,
) -> MeanEmbedding:
    """Sketches a file of numbers, prints what was done, and writes the sketch.

    Args:
        path: The file.
        output: Where the sketch goes; a file that is there is replaced.
        settings: How it is sketched.
        like: Instead of settings, a sketch to be made with the same.
        key: Which array of an ``.npz`` file.
        columns: The columns to take; all, or those of ``like``, by default.

    Returns:
        The sketch.

    Raises:
        InputError: A file or a setting that the user has to mend.
        OutputError: The sketch cannot be written; found out before any work.
        MissingExtraError: A ``.parquet`` file without pyarrow, or a ``.safetensors`` file without
            safetensors.
    """
    try:
        target = sketch_files.check_path(output)
        if target.exists() and os.path.exists(path) and target.samefile(path):
            raise InputError(f"-o {str(output)!r} is the file to sketch")
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"-o {error}") from error
    except OSError as error:
        raise _not_written(output, error) from error
    notes: list[str] = []
    if like is None:
        parts = open_parts(path, key, columns)
        empty = _started(parts, settings or SketchSettings())
    else:
        empty = _loaded(like).empty()
        parts = _matched(path, key, columns, empty, like, notes)
    made = _filled(empty, parts)
    try:
        made.save(target)
    except OSError as error:
        raise _not_written(output, error) from error
    print_facts(
        [
            ("file", f"{path}   {made.count:,} rows, {count_columns(made.dim)}"),
            *_sketched_with(made),
        ],
        [*parts.notes, *notes],
        written=f"Written to {output}",
    )
    return made


def compare_sketches(
    a: str,
    b: str,
    settings: Settings | None = None,
    key: str | None = None,
    columns: Sequence[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    as_json: bool = False,
) -> SketchComparison:
    """Compares two sketches, or one and a file of numbers, which is sketched in the same way.

    Args:
        a: The first file.
        b: The second.
        settings: The estimator and the level; of the others none must be set.
        key: Which array of an ``.npz`` file of numbers.
        columns: The columns of a file of numbers to take.
        output: Folder for ``compare.json``.
        as_json: Print JSON instead of tables.

    Returns:
        What was found.

    Raises:
        InputError: A file or a setting that the user has to mend.
        OutputError: The folder cannot be written to; found out before any work.
        MissingExtraError: As :func:`sketch`.
    """
    settings = settings or Settings()
    for name, default in vars(Settings()).items():
        if name not in ("estimator", "alpha") and getattr(settings, name) != default:
            option = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{option}: is for files of numbers; of sketches all but --estimator and --alpha"
                " was settled when they were made"
            )
    sketched = [sketch_files.is_sketch(path) for path in (a, b)]
    if all(sketched) and (key is not None or columns is not None):
        option = "--columns" if key is None else "--key"
        raise InputError(f"{option}: is for files of numbers, and both files are sketches")
    folder = None if output is None else OutputFolder(output)
    found = {path: _loaded(path) for path, is_one in zip((a, b), sketched, strict=True) if is_one}
    notes: list[str] = []
    for path, is_one in zip((a, b), sketched, strict=True):
        if not is_one:
            other = b if path == a else a
            parts = _matched(path, key, columns, found[other].empty(), other, notes)
            notes.extend(parts.notes)
            found[path] = _filled(found[other].empty(), parts)
            notes.append(f"{path}: sketched as {other} was")
    first, second = found[a], found[b]
    try:
        statistic = first.mmd2(second, settings.estimator)
        error = first.standard_error(second, settings.estimator)
        bound = first.pvalue_bound(second)
        biased = settings.estimator == "biased"
        expected = first.expected_mmd2(second) if biased else 0.0
    except ValueError as problem:
        raise InputError(f"{a} and {b}: {problem}; --like makes a sketch as another") from problem
    comparison = SketchComparison(
        first,
        second,
        (a, b),
        settings,
        tuple(notes),
        statistic,
        error,
        expected,
        bound,
        bound <= settings.alpha,
    )
    text = json.dumps(comparison.as_dict(), indent=2, allow_nan=False)
    written = ""
    if folder is not None:
        with folder.filling() as staging:
            (staging / "compare.json").write_text(text + "\n")
        written = f"Written to {folder.path}: compare.json"
    if as_json:
        print(text)
    else:
        print_facts(
            _facts(comparison), comparison.notes, written=written, different=comparison.different
        )
    return comparison


def described(kernel: Kernel) -> str:
    """A kernel of fixed numbers, on one line."""
    return " ".join(repr(kernel).split())


def _facts(comparison: SketchComparison) -> list[tuple[str, str]]:
    a, b = comparison.a, comparison.b
    pairs = [
        (name, f"{path}   {made.count:,} rows, {count_columns(made.dim)}")
        for name, path, made in zip("AB", comparison.paths, (a, b), strict=True)
    ]
    error = f"± {comparison.standard_error:.2g} by the random features"
    without = f"about {comparison.expected:.2g} without a difference"
    p = comparison.pvalue_bound
    return [
        *pairs,
        *_sketched_with(a),
        ("MMD²", f"{comparison.statistic:.4g}   ({error}; {without})"),
        ("p-value", f"at most {p:.4g}   (a bound for any distribution)"),
        ("verdict", verdict(comparison.different, comparison.settings.alpha)),
    ]


def _sketched_with(made: MeanEmbedding) -> list[tuple[str, str]]:
    scheme = f"{made.frequencies}, {made.form}, seed {made.seed}"
    return [
        ("kernel", described(made.kernel)),
        ("features", f"{made.num_features:,} for each bandwidth   ({scheme})"),
    ]


def _loaded(path: str) -> MeanEmbedding:
    try:
        return MeanEmbedding.load(path)
    except ValueError as error:
        raise InputError(str(error)) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def _not_written(output: str | os.PathLike[str], error: OSError) -> OutputError:
    return OutputError(f"-o {os.fspath(output)!r} cannot be written ({error.strerror or error})")


def _matched(
    path: str,
    key: str | None,
    columns: Sequence[str] | None,
    empty: MeanEmbedding,
    other: str,
    notes: list[str],
) -> Parts:
    """The numbers of a file, in the order of columns that the other sketch has."""
    parts = open_parts(path, key, columns)
    wanted = empty.columns
    if parts.names and wanted and parts.names != wanted and columns is None:
        if len(set(parts.names)) < len(parts.names) or not set(wanted) <= set(parts.names):
            missing = [name for name in wanted if name not in parts.names]
            raise InputError(
                f"{path}: has not the columns of {other}: {some(missing)} only in the latter;"
                " --columns names the ones to take"
            )
        parts = open_parts(path, key, wanted)
        notes.append(f"{path}: columns taken in the order of {other}")
    if parts.width != empty.dim:
        raise InputError(
            f"{path} and {other} have unequal widths: {count_columns(parts.width)} and"
            f" {count_columns(empty.dim)}"
        )
    return parts


def _started(parts: Parts, settings: SketchSettings) -> MeanEmbedding:
    """A sketch of no rows yet."""
    try:
        return MeanEmbedding(
            settings.num_features,
            _kernel(parts, settings),
            parts.width,
            settings.seed,
            settings.form,
            settings.frequencies,
            parts.names,
        )
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from error


def _kernel(parts: Parts, settings: SketchSettings) -> Kernel:
    make = KERNELS[settings.kernel]
    if not isinstance(settings.bandwidth, str):
        return make(settings.bandwidth)
    rows = _drawn(parts, settings.seed)
    if len(rows) < 2 or not np.ptp(rows, axis=0).any():
        raise InputError(
            f"{parts.path}: has no two different rows to take a bandwidth from; --bandwidth gives"
            " one"
        )
    points = torch.from_numpy(rows - rows.mean(0))
    bandwidth = RunningBandwidth(settings.bandwidth)
    bandwidth.update(points[::2], points[1::2])
    if not 0 < float(bandwidth.value) < math.inf:
        raise InputError(
            f"{parts.path}: the {settings.bandwidth} distance of its rows is no bandwidth;"
            " --bandwidth gives one"
        )
    return Gaussian(bandwidth) if settings.kernel == "gaussian" else make(bandwidth)


def _drawn(parts: Parts, seed: int) -> _Array:
    """Rows of the file, drawn at random, in float64."""
    generator = np.random.default_rng(seed)
    kept, keys = np.empty((0, parts.width)), np.empty(0)
    with _progress("bandwidth", parts.rows) as advance:
        for part in parts:
            # Those with the smallest keys are as good as drawn from all.
            drawn = generator.random(len(part))
            least = np.flatnonzero(drawn < keys.max()) if len(keys) == _LOOKED_AT else slice(None)
            kept = np.concatenate([kept, part[least].astype(np.float64)])
            keys = np.concatenate([keys, drawn[least]])
            if len(keys) > _LOOKED_AT:
                best = np.argpartition(keys, _LOOKED_AT)[:_LOOKED_AT]
                kept, keys = kept[best], keys[best]
            advance(len(part))
    return kept[np.argsort(keys)]


def _filled(empty: MeanEmbedding, parts: Parts) -> MeanEmbedding:
    with _progress("sketch", parts.rows) as advance:
        for part in parts:
            empty.update(part)
            advance(len(part))
    return empty


@contextmanager
def _progress(what: str, rows: int | None) -> Iterator[Callable[[int], None]]:
    """Shows how many rows were read, on a terminal; gives what to call with more of them."""
    if not sys.stderr.isatty() or not find_spec("rich"):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task(what, total=rows)
        yield lambda count: progress.advance(task, count)
