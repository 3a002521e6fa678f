"""One command for all of it: ``python -m benchmarks -o FOLDER``, what ``make bench`` runs."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

RECORD = "benchmarks.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, record, report.

    Returns:
        Exit status: 0; 1 if the run is void or a measurement failed; 2 for what the user has to
        mend.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time and memory of fastmmd beside plain PyTorch, torch.compile and others.",
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("runs/bench"), help="folder to write"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    parser.add_argument("--select", metavar="EXPRESSION", help="which benchmarks, as pytest's -k")
    parser.add_argument(
        "--report", metavar="FILE", type=Path, help="measure nothing: report on an earlier record"
    )
    options = parser.parse_args(arguments)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=options.output).close()
    except OSError as error:
        return _fail(f"--output {options.output}: not a folder that can be written ({error})")

    # What follows takes seconds to import.
    import pytest

    from benchmarks import report
    from benchmarks.results import Run
    from fastmmd.bench.peak import CompilerError, program

    record = options.output / RECORD
    if options.report:
        record = options.report
    else:
        try:
            program("baseline")
        except CompilerError as error:
            return _fail(f"the FMA peak cannot be measured: {error}")
        status = pytest.main(_pytest_arguments(options.quick, options.select, record))
        if status == pytest.ExitCode.NO_TESTS_COLLECTED:
            return _fail(f"--select {options.select!r} selects no benchmark")
        if status != pytest.ExitCode.OK:
            return 130 if status == pytest.ExitCode.INTERRUPTED else 1
    try:
        run = Run.load(record)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        return _fail(f"{record}: {error}")
    print("\n" + report.write(run, options.output))
    if run.void:
        print("The run is void: the peak was not the peak. Run it again.", file=sys.stderr)
        return 1
    return 0


def _pytest_arguments(quick: bool, select: str | None, record: Path) -> list[str]:
    arguments = [str(Path(__file__).parent), "-v", "--no-header", "--disable-warnings"]
    arguments += ["-p", "no:cacheprovider", "-W", "default"]  # warnings of others are no failure
    arguments += [f"--benchmark-json={record}"]
    return arguments + ["--quick"] * quick + (["-k", select] if select else [])


def _fail(message: str) -> int:
    print(f"benchmarks: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
