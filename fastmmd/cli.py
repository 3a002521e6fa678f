"""The command ``fastmmd``. It needs no extra but those that a subcommand names."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import fastmmd
from fastmmd._extras import MissingExtraError, require_extra
from fastmmd._options import positive
from fastmmd._output import OutputError
from fastmmd.bench.main import BenchError, add_bench_arguments
from fastmmd.compare.options import (
    add_arguments,
    add_sketch_arguments,
    settings,
    sketch_settings,
)
from fastmmd.compare.reading import InputError
from fastmmd.info import info

__all__ = ["main"]

# The commands of fastmmd.train, which takes seconds to import.
TRAINING = {
    "fit": "train a model as a configuration file says; resume with --ckpt_path last",
    "validate": "measure a trained model on the validation data",
    "test": "measure a trained model on the test data",
    "predict": "write a trained model's predictions to a file",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: Those of the command line if None.

    Returns:
        Exit status: 0, 1 for a difference under ``compare --fail-on-difference`` and for what is
        worse under ``bench compare``, 2 for what the user has to mend, 130 after Ctrl-C, 141 if
        the output is closed early.
    """
    options = parser().parse_args(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads or threads)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except (BenchError, InputError, OutputError, MissingExtraError) as error:
        return fail(str(error))
    except (BrokenPipeError, SystemExit):  # the latter is what rich makes of the former
        # Nobody reads on, as after "| head". The status is what a shell makes of SIGPIPE.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("fastmmd: interrupted, nothing was written", file=sys.stderr)
        return 130
    finally:
        torch.set_num_threads(threads)


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
    command.set_defaults(run=run_info, threads=None)

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

    command = commands.add_parser(
        "compare",
        help="test whether two files of numbers come from one distribution",
        description=(
            "Test whether the rows of two files come from one distribution, and list the columns "
            "and rows that tell them apart. Files: .npy, .npz, .csv, .tsv or .parquet, all "
            "numbers; or sketches of them."
        ),
    )
    add_arguments(command)
    command.set_defaults(run=run_compare)

    command = commands.add_parser(
        "sketch",
        help="sum up a file of numbers, to compare it with others later or elsewhere",
        description=(
            "Write a small file that stands for the rows of a large one: sums of random features. "
            "fastmmd compare takes two of them, made on different machines. The data are read a "
            "part at a time. Files: .npy, .npz, .csv, .tsv or .parquet, all numbers."
        ),
    )
    add_sketch_arguments(command)
    command.set_defaults(run=run_sketch)

    for name, what in TRAINING.items():
        # Lightning's command line parses what follows, so here an option is a word like others.
        command = commands.add_parser(name, help=what, add_help=False, prefix_chars="\0")
        command.add_argument("arguments", nargs="*")
        command.set_defaults(run=run_training, command=name, threads=None)

    command = commands.add_parser(
        "bench",
        help="time it beside plain PyTorch, and tell whether a change made it slower",
        description="Time every operation beside plain PyTorch; compare runs or revisions.",
    )
    add_bench_arguments(command)
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
    from fastmmd.demo.experiment import Settings
    from fastmmd.demo.main import demo

    seeds, epochs = (1, 2) if options.quick else (3, 20)
    demo(options.output, Settings(options.seeds or seeds, options.epochs or epochs))
    return 0


def run_compare(options: argparse.Namespace) -> int:
    """``fastmmd compare``."""
    from fastmmd.compare.main import run

    comparison = run(
        options.a,
        options.b,
        settings(options),
        key=options.key,
        columns=options.columns,
        output=options.output,
        top=options.top,
        as_json=options.json,
    )
    return int(options.fail_on_difference and comparison.different)


def run_sketch(options: argparse.Namespace) -> int:
    """``fastmmd sketch``."""
    from fastmmd.compare.sketches import sketch

    made_with = sketch_settings(options)
    sketch(
        options.data,
        options.output,
        made_with,
        like=options.like,
        key=options.key,
        columns=options.columns,
    )
    return 0


def run_training(options: argparse.Namespace) -> int:
    """``fastmmd fit`` and the commands that use what it trained."""
    require_extra(
        f"fastmmd {options.command}", "train", "lightning", "torchmetrics", "jsonargparse"
    )
    from fastmmd.train.main import run

    return run([options.command, *options.arguments])


def fail(message: str) -> int:
    """Says on standard error what the user has to mend."""
    print(f"fastmmd: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
