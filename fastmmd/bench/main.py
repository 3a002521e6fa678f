"""``fastmmd bench``: run, compare, report."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastmmd._extras import require_extra
from fastmmd._options import positive, positive_number, share

__all__ = ["BenchError", "add_bench_arguments"]

# Seconds of rounds of a row, whole and quick.
_SECONDS, _QUICK_SECONDS = 3.0, 0.6
PASSES = 10


class BenchError(ValueError):
    """What the user has to mend."""


def add_bench_arguments(command: argparse.ArgumentParser) -> None:
    """Arguments of ``fastmmd bench``."""
    commands = command.add_subparsers(metavar="COMMAND", required=True)

    run = commands.add_parser(
        "run",
        help="time every public operation beside plain PyTorch",
        description="Time every public operation beside its plain PyTorch form, in interleaved"
        " rounds, and write them as a file in pytest-benchmark's format.",
    )
    run.add_argument("-o", "--output", metavar="FILE", required=True, help="file to write")
    _measuring(run)
    run.add_argument(
        "--peers", action="store_true", help="torch.compile, KeOps, geomloss and others too"
    )
    run.set_defaults(run=run_run)

    compare = commands.add_parser(
        "compare",
        help="better, same, worse or unclear, for each operation",
        description="Compare two runs, or two revisions: these are built by one compiler, and"
        " measured in turn, round by round. Exit status 1 if anything is worse.",
    )
    compare.add_argument(
        "base", metavar="BASE", help="file or folder of runs, revision or checkout"
    )
    compare.add_argument("head", metavar="HEAD", help="the same, for what came later")
    _measuring(compare)
    compare.add_argument(
        "--passes",
        type=positive,
        help=f"measure rows that stay unclear so often (default: {PASSES})",
    )
    compare.add_argument(
        "--threshold",
        type=share,
        default=0.05,
        help="smallest change that counts (default: 0.05 for 5 %%)",
    )
    compare.add_argument(
        "--absolute",
        type=positive_number,
        default=2e-6,
        metavar="SECONDS",
        help="and in seconds (default: 2e-6)",
    )
    compare.add_argument("--json", metavar="FILE", help="write the verdicts there too")
    compare.add_argument("--save", metavar="FOLDER", help="keep the rounds of two revisions there")
    compare.set_defaults(run=run_compare)

    report = commands.add_parser(
        "report",
        help="table and pictures of runs",
        description="Write table.md and pictures: times faster than plain PyTorch by size,"
        " roofline, and with several runs the history over commits.",
    )
    report.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="files of runs, oldest first; with --readme the folder of make bench's results",
    )
    report.add_argument(
        "--like-last",
        action="store_true",
        help="leave out runs that the last one cannot be compared with, as of another processor",
    )
    place = report.add_mutually_exclusive_group(required=True)
    place.add_argument("-o", "--output", metavar="FOLDER", help="folder to write")
    place.add_argument(
        "--readme", metavar="FILE", help="write the figures of make bench into this README"
    )
    report.set_defaults(run=run_report, threads=None)


def _measuring(command: argparse.ArgumentParser) -> None:
    command.add_argument("--quick", action="store_true", help="fewer rounds, no large sizes")
    command.add_argument(
        "--select", metavar="PATTERN", help="rows whose name has this regular expression in it"
    )
    command.add_argument(
        "--threads",
        type=positive,
        help="threads (default: half of the cores; 1 to compare revisions)",
    )
    command.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where (default: cpu)"
    )


def run_run(options: argparse.Namespace) -> int:
    """``fastmmd bench run``."""
    require_extra("fastmmd bench", "bench", "pytest_benchmark")
    from fastmmd.bench import measure
    from fastmmd.bench.rows import PeerError

    rows = _rows(options)
    _check_device(options.device)
    target = Path(options.output)
    _check_folder(target.parent)
    try:
        content = measure.run(
            rows,
            options.device,
            options.threads or measure.default_threads(),
            _seconds(options),
            options.peers,
            _say,
        )
    except (ArithmeticError, PeerError) as error:
        raise BenchError(str(error)) from error
    _write(target, content)
    print(f"{len(rows)} rows: {target}")
    return 0


def run_compare(options: argparse.Namespace) -> int:
    """``fastmmd bench compare``."""
    require_extra("fastmmd bench", "bench", "pytest_benchmark")
    from fastmmd.bench import table
    from fastmmd.bench.record import Record, RecordError
    from fastmmd.bench.verdict import Thresholds, compare

    thresholds = Thresholds(options.threshold, options.absolute)
    if options.json:
        _check_folder(Path(options.json).parent)
    files = [_holds_runs(Path(name)) for name in (options.base, options.head)]
    if all(files):
        _refuse_measuring(options)
        try:
            base, head = (
                _selected(Record.load(name), options.select)
                for name in (options.base, options.head)
            )
            verdicts = compare(base, head, thresholds)
        except RecordError as error:
            raise BenchError(str(error)) from error
        if base.plain_forms != head.plain_forms:
            _say("the code of the plain forms differs: ratios to them may have moved with it")
        titles = options.base, options.head
    elif any(files):
        raise BenchError(
            "compare takes two files of runs or two revisions; got one of each:"
            f" {options.base!r} and {options.head!r}"
        )
    else:
        verdicts, base, titles = _compare_revisions(options, thresholds)
    print(table.comparison(verdicts, *titles, base.machine))
    if options.json:
        _write(Path(options.json), {"verdicts": [verdict.as_dict() for verdict in verdicts]})
    return int(any(verdict.answer == "worse" for verdict in verdicts))


def _holds_runs(path: Path) -> bool:
    """Whether it is a file, or a folder of runs and no checkout."""
    return path.is_file() or (path.is_dir() and not (path / "pyproject.toml").exists())


def _refuse_measuring(options: argparse.Namespace) -> None:
    for name in ("quick", "threads", "save", "passes"):
        if getattr(options, name):
            raise BenchError(f"--{name} is for revisions, which are measured; these are files")
    if options.device != "cpu":
        raise BenchError("--device is for revisions, which are measured; these are files")


def _selected(record: Any, pattern: str | None) -> Any:
    import re
    from dataclasses import replace

    try:
        wanted = re.compile(pattern or "", re.IGNORECASE)
    except re.error as error:
        raise BenchError(f"--select {pattern!r} is no regular expression: {error}") from error
    series = {name: s for name, s in record.series.items() if wanted.search(name)}
    if not series:
        raise BenchError(f"--select {pattern!r} selects no row of {record.where}")
    return replace(record, series=series)


def _compare_revisions(options: argparse.Namespace, thresholds: Any) -> tuple[Any, Any, Any]:
    from fastmmd.bench import measure
    from fastmmd.bench.builds import BuildError, build
    from fastmmd.bench.record import Record, RecordError

    rows = _rows(options)
    _check_device(options.device)
    if options.save:
        _check_folder(Path(options.save))
    names = {measure.BASE: options.base, measure.HEAD: options.head}
    with tempfile.TemporaryDirectory(prefix="fastmmd-bench-") as folder:
        folders = {side: Path(folder) / side for side in names}
        commits = {}
        try:
            for side, name in names.items():
                _say(f"building {name}")
                commits[side] = build(name, Path.cwd(), folders[side], options.device == "cuda")
            found = measure.duel(
                folders,
                commits,
                rows,
                options.device,
                options.threads or measure.THREADS_OF_DUELS,
                _seconds(options),
                options.passes or PASSES,
                thresholds,
                _say,
            )
        except (BuildError, RecordError) as error:
            raise BenchError(str(error)) from error
    if options.save:
        for side, content in ((measure.BASE, found.base), (measure.HEAD, found.head)):
            _write(Path(options.save) / f"{side}.json", content)
    titles = tuple(
        name if not (commit["id"] or "") else f"{name} ({commit['id'][:9]})"
        for name, commit in zip(names.values(), commits.values(), strict=True)
    )
    return found.verdicts, Record.parse(found.head, empty=True), titles


def run_report(options: argparse.Namespace) -> int:
    """``fastmmd bench report``."""
    if options.readme:
        return _readme(Path(options.readme), options.files)
    require_extra("fastmmd bench report", "bench", "matplotlib", "pytest_benchmark")
    from fastmmd._output import OutputFolder
    from fastmmd.bench import pictures, table
    from fastmmd.bench.record import Record, RecordError

    try:
        records = [Record.load(name) for name in options.files]
        if options.like_last:
            records = [record for record in records if record.compares_with(records[-1])]
        for record in records[1:]:
            records[0].check_comparable(record)
    except RecordError as error:
        raise BenchError(str(error)) from error
    with OutputFolder(options.output).filling() as folder:
        (folder / "table.md").write_text(table.run(records[-1]))
        pictures.draw(records, folder)
    print(f"table and pictures: {options.output}")
    return 0


def _readme(readme: Path, files: Sequence[str]) -> int:
    from fastmmd.bench.readme import ReadmeError, block, replaced

    if len(files) != 1:
        raise BenchError(f"--readme takes one folder of results; got {', '.join(files)}")
    try:
        text = replaced(readme.read_text(), block(Path(files[0]), readme))
    except OSError as error:
        raise BenchError(f"--readme {readme}: cannot be read ({error})") from error
    except ReadmeError as error:
        raise BenchError(str(error)) from error
    readme.write_text(text)
    print(f"figures of {files[0]}: {readme}")
    return 0


def _rows(options: argparse.Namespace) -> Sequence[Any]:
    from fastmmd.bench.rows import select

    try:
        return select(options.select, options.quick)
    except ValueError as error:
        raise BenchError(str(error)) from error


def _seconds(options: argparse.Namespace) -> float:
    return _QUICK_SECONDS if options.quick else _SECONDS


def _check_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise BenchError("--device cuda: torch finds no CUDA device")


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise BenchError(f"{folder}: not a folder that can be written to ({error})") from error


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """All of it or nothing."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise BenchError(f"{path}: cannot be written ({error})") from error


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
