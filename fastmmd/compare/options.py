"""The options of ``fastmmd compare``."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from fastmmd._options import between, positive, positive_number, share, whole
from fastmmd.compare.comparison import AGGREGATED, KERNELS, Settings
from fastmmd.compare.reading import InputError
from fastmmd.compare.sketches import FAMILIES, SketchSettings
from fastmmd.frequencies import SCHEMES

__all__ = ["add_arguments", "add_sketch_arguments", "settings", "sketch_settings"]


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declares them; the defaults are those of :class:`Settings`."""
    default = Settings()
    command.epilog = (
        "Exit status: 0 if the comparison was made, 1 if it found a difference and "
        "--fail-on-difference was given, 2 for a mistake in the options or the files, 130 after "
        "Ctrl-C."
    )
    command.add_argument("a", metavar="A", help="the first file")
    command.add_argument("b", metavar="B", help="the second file")

    data = command.add_argument_group("data")
    data.add_argument("--key", help="which array of .npz files (default: the only one)")
    data.add_argument(
        "--columns",
        type=names,
        metavar="NAME,...",
        help="columns to compare, by name or by number from 0 (default: all)",
    )
    data.add_argument(
        "--standardize",
        action="store_true",
        help="divide each column by its standard deviation over both files",
    )
    data.add_argument(
        "--max-rows",
        type=whole,
        default=default.max_rows,
        metavar="N",
        help="compare at most N rows of each file, drawn at random; the work grows with the square"
        f" of their number; 0 for all (default: {default.max_rows})",
    )

    test = command.add_argument_group("test")
    test.add_argument(
        "--kernel",
        choices=[*KERNELS, AGGREGATED],
        default=default.kernel,
        help=f"{AGGREGATED}: Gaussian and Laplacian kernels of ten bandwidths each, with one level"
        f" for all (default: {default.kernel})",
    )
    test.add_argument(
        "--bandwidth",
        type=bandwidth,
        metavar="S",
        help="a positive number, mean or median: of the distances (default: mean)",
    )
    test.add_argument(
        "--permutations",
        type=positive,
        default=default.permutations,
        metavar="B",
        help=f"the smallest possible p-value is 1/(1 + B) (default: {default.permutations})",
    )
    test.add_argument(
        "--method",
        choices=["permutation", "wild_bootstrap"],
        default=default.method,
        help="wild_bootstrap: rows of the same number are pairs (default: permutation)",
    )
    test.add_argument(
        "--estimator",
        choices=["biased", "unbiased"],
        default=default.estimator,
        help=f"of MMD^2 (default: {default.estimator})",
    )
    test.add_argument("--seed", type=seed, default=default.seed, help=f"(default: {default.seed})")
    test.add_argument(
        "--alpha",
        type=share,
        default=default.alpha,
        help=f"level: how often a difference may be found where there is none"
        f" (default: {default.alpha:g})",
    )
    test.add_argument("--threads", type=positive, help="(default: torch's)")

    result = command.add_argument_group("result")
    result.add_argument(
        "--output", type=Path, metavar="DIR", help="folder for compare.json and compare.png"
    )
    result.add_argument(
        "--top", type=positive, default=10, help="columns and rows to list (default: 10)"
    )
    result.add_argument("--json", action="store_true", help="print JSON instead of tables")
    result.add_argument(
        "--fail-on-difference", action="store_true", help="exit with status 1 if they differ"
    )


def settings(options: argparse.Namespace) -> Settings:
    """What the options ask for."""
    return Settings(
        kernel=options.kernel,
        bandwidth=options.bandwidth,
        permutations=options.permutations,
        method=options.method,
        estimator=options.estimator,
        seed=options.seed,
        alpha=options.alpha,
        standardize=options.standardize,
        max_rows=options.max_rows,
    )


def add_sketch_arguments(command: argparse.ArgumentParser) -> None:
    """Declares those of ``fastmmd sketch``; the defaults are those of :class:`SketchSettings`."""
    default = SketchSettings()
    command.epilog = (
        "Sketches can be compared, and merged, that were made with one kernel, number of features "
        "and seed: make the second with --like. Exit status: 0 if the sketch was written, 2 for a "
        "mistake in the options or the files, 130 after Ctrl-C."
    )
    command.add_argument("data", metavar="DATA", help="the file")
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="S",
        help="the sketch to write: .npz, or .safetensors (extra sketch)",
    )
    data = command.add_argument_group("data")
    data.add_argument("--key", help="which array of an .npz file (default: the only one)")
    data.add_argument(
        "--columns",
        type=names,
        metavar="NAME,...",
        help="columns to sketch, by name or by number from 0 (default: all)",
    )
    made = command.add_argument_group("sketch")
    made.add_argument(
        "--like", metavar="S", help="a sketch that gives all of the following: to be compared with"
    )
    # None: not given, so that it is seen whether something contradicts --like.
    made.add_argument("--kernel", choices=list(FAMILIES), help=f"(default: {default.kernel})")
    made.add_argument(
        "--bandwidth",
        type=bandwidth,
        metavar="S",
        help="a positive number; or mean or median: of the distances of 4096 rows of this file, for"
        f" a Gaussian kernel with 1/4 to 4 times its square (default: {default.bandwidth})",
    )
    made.add_argument(
        "--num-features",
        type=positive,
        metavar="D",
        help="the error of MMD^2 falls as 1/sqrt(D), the time grows as D"
        f" (default: {default.num_features})",
    )
    made.add_argument("--seed", type=seed, help=f"(default: {default.seed})")
    made.add_argument(
        "--frequencies", choices=list(SCHEMES), help=f"(default: {default.frequencies})"
    )
    made.add_argument("--form", choices=["pair", "phase"], help=f"(default: {default.form})")
    command.add_argument("--threads", type=positive, help="(default: torch's)")


def sketch_settings(options: argparse.Namespace) -> SketchSettings:
    """What the options ask for.

    Raises:
        InputError: An option contradicts ``--like``.
    """
    asked = {name: getattr(options, name) for name in vars(SketchSettings())}
    given = {name: value for name, value in asked.items() if value is not None}
    if options.like is not None and given:
        option = f"--{next(iter(given)).replace('_', '-')}"
        raise InputError(f"{option}: comes from --like {options.like}")
    return SketchSettings(**given)


def bandwidth(text: str) -> str | float:
    """A heuristic or a number."""
    if text in ("mean", "median"):
        return text
    try:
        return positive_number(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"must be a positive number, mean or median; got {text!r}"
        ) from None


def seed(text: str) -> int:
    """A seed of the native random numbers."""
    return between(text, 0, 2.0**64)


def names(text: str) -> list[str]:
    """Names between commas; those that hold commas stand in quotes."""
    found = [name.strip() for name in next(csv.reader([text]), [])]
    if not found or not all(found):
        raise argparse.ArgumentTypeError(f"must be names with commas between; got {text!r}")
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"names a column twice: {text!r}")
    return found
