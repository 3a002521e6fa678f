"""The command ``fastmmd``. It needs no extra but those that a subcommand names."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import fastmmd
from fastmmd._extras import MissingExtraError
from fastmmd._output import OutputError
from fastmmd.info import info

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: Those of the command line if None.

    Returns:
        Exit status: 0, 2 for what the user has to mend, 130 after Ctrl-C.
    """
    options = parser().parse_args(arguments)
    status: int = options.run(options)
    return status


def parser() -> argparse.ArgumentParser:
    """The command line with its subcommands."""
    root = argparse.ArgumentParser(
        prog="fastmmd", description="Maximum Mean Discrepancy and its gradients, fused."
    )
    root.add_argument("--version", action="version", version=f"fastmmd {fastmmd.__version__}")
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = commands.add_parser(
        "info",
        help="print what is installed and what it runs on",
        description="Print the version, instruction set, threads, CUDA build, torch and compiler.",
    )
    command.set_defaults(run=run_info)

    command = commands.add_parser(
        "demo",
        help="align handwritten digits with digits over clutter, and measure it",
        description=(
            "Train on labelled digits and unlabelled digits over clutter, with and without the MMD "
            "loss; print a table and write it and pictures to a folder. Needs the extra train and "
            "no network."
        ),
    )
    command.add_argument(
        "--output",
        type=Path,
        default=Path("runs/demo"),
        help="folder to write (default: runs/demo)",
    )
    command.add_argument("--seeds", type=positive, help="number of seeds (default: 3)")
    command.add_argument("--epochs", type=positive, help="epochs of each training (default: 20)")
    command.add_argument("--threads", type=positive, help="threads (default: torch's)")
    command.add_argument(
        "--quick", action="store_true", help="1 seed and 2 epochs unless given: to see that it runs"
    )
    command.set_defaults(run=run_demo)
    return root


def run_info(options: argparse.Namespace) -> int:
    """``fastmmd info``."""
    facts = info()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
    return 0


def run_demo(options: argparse.Namespace) -> int:
    """``fastmmd demo``."""
    # These imports take seconds, for which the rest of the command line does not wait.
    try:
        from fastmmd.demo.experiment import Settings
        from fastmmd.demo.main import demo
    except MissingExtraError as error:
        return fail(str(error))

    seeds, epochs = (1, 2) if options.quick else (3, 20)
    settings = Settings(options.seeds or seeds, options.epochs or epochs)
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads or threads)
    try:
        demo(options.output, settings)
    except OutputError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        print("fastmmd: interrupted, nothing was written", file=sys.stderr)
        return 130
    finally:
        torch.set_num_threads(threads)
    return 0


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text!r}")
    return number


def fail(message: str) -> int:
    """Says on standard error what the user has to mend."""
    print(f"fastmmd: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
