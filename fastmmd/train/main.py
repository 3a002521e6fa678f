"""``fastmmd fit``, ``validate``, ``test`` and ``predict``: LightningCLI over any model and data."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from fastmmd._output import OutputError, OutputFolder
from fastmmd.compare.reading import InputError
from fastmmd.train.checkpoints import AtomicCheckpointIO, EveryEpoch, check_architecture
from fastmmd.train.datasets.domains import DomainData
from fastmmd.train.finetuner import FineTuner
from fastmmd.train.predictions import check_name, write_predictions
from fastmmd.train.quiet import quiet_lightning
from fastmmd.train.shuffling import EpochSeed

__all__ = ["COMMANDS", "run"]

COMMANDS = ("fit", "validate", "test", "predict")

# What the constructor of a model or a data module says of its arguments and files.
CONFIGURATION_ERRORS = (ValueError, TypeError, OSError, ImportError, MisconfigurationException)


class Trainer(L.Trainer):
    """Lightning's, whose ``predict`` writes a file."""

    def predict(  # type: ignore[override]
        self,
        model: L.LightningModule,
        datamodule: L.LightningDataModule,
        ckpt_path: str | None = None,
        output: str = "predictions.csv",
    ) -> None:
        """Predicts what the data module's ``predict_dataloader`` gives, and writes it to a file.

        Args:
            model: The model.
            datamodule: The data.
            ckpt_path: A checkpoint, or ``last``.
            output: The file to write, .csv or .npz.

        Raises:
            InputError: As :func:`check_name`, or there are several processes: each of them would
                have a part of the samples.
        """
        check_name(output)
        if self.world_size > 1:
            raise InputError(
                f"predict writes one file in one process; got {self.world_size} processes: give"
                " --trainer.devices=1 --trainer.num_nodes=1"
            )
        folder = OutputFolder(Path(output).parent)
        batches = super().predict(model, datamodule=datamodule, ckpt_path=ckpt_path)
        with folder.filling() as staging:
            paths = datamodule.predict_paths() if isinstance(datamodule, DomainData) else None
            tasks = model.tasks if isinstance(model, FineTuner) else {}
            kinds = {name: task.kind for name, task in tasks.items()}
            write_predictions(staging / Path(output).name, batches or [], paths, kinds)


class Commands(LightningCLI):
    """Lightning's command line, with atomic checkpoints of every epoch and errors in one line."""

    def __init__(self, arguments: Sequence[str]) -> None:
        strict = {"exit_on_error": False}
        super().__init__(
            trainer_class=Trainer,
            trainer_defaults={"default_root_dir": os.path.join("runs", "fit")},
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            parser_kwargs={"prog": "fastmmd", **strict, **{c: dict(strict) for c in COMMANDS}},
            args=list(arguments),
            auto_configure_optimizers=False,  # they are arguments of the model
            load_from_checkpoint_support=False,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The commands, and those arguments of theirs that the configuration gives otherwise."""
        given = {"model", "datamodule", "weights_only"}  # the last: always
        return {
            "fit": {*given, "train_dataloaders", "val_dataloaders"},
            "validate": {*given, "dataloaders"},
            "test": {*given, "dataloaders"},
            "predict": given,
        }

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses them; without Lightning's warning that they are not those of the process."""
        self.config = parser.parse_args(args)  # type: ignore[arg-type]

    def _parse_ckpt_path(self) -> None:
        """Leaves the configuration as it is: a checkpoint has no say in what is built."""

    def before_instantiate_classes(self) -> None:
        """Settles which checkpoint is meant."""
        config = self.config[self.subcommand]
        if config.get("data") is None:
            raise InputError("data: the configuration names no data module")
        if config.ckpt_path != "last":
            return
        last = Path(config.trainer.default_root_dir, "checkpoints", "last.ckpt")
        if self.subcommand == "fit" and not last.exists():
            print(f"fastmmd: there is no {last} yet: starting from the beginning", file=sys.stderr)
            config.ckpt_path = None
        else:
            config.ckpt_path = str(last)

    def instantiate_classes(self) -> None:
        """Builds model, data and trainer."""
        with as_input_error(CONFIGURATION_ERRORS):
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Adds what makes a training resumable to what the configuration asks for."""
        asked = self.config_init[self.subcommand].trainer
        plugins = asked.plugins if isinstance(asked.plugins, list) else [asked.plugins]
        callbacks = asked.callbacks if isinstance(asked.callbacks, list) else [asked.callbacks]
        seed = self.config[self.subcommand].seed_everything
        ours = [EveryEpoch(), EpochSeed(None if isinstance(seed, bool) else seed)]
        return super().instantiate_trainer(
            plugins=[*filter(None, plugins), AtomicCheckpointIO()],
            callbacks=[*filter(None, callbacks), *ours],
            **kwargs,
        )

    def after_instantiate_classes(self) -> None:
        """Looks at the checkpoint before any work."""
        path = self.config[self.subcommand].ckpt_path
        if path is not None:
            check_architecture(path, self.model)


def run(arguments: Sequence[str]) -> int:
    """Runs a command.

    Args:
        arguments: The command and its options.

    Returns:
        Exit status: 0, or 130 after Ctrl-C.

    Raises:
        InputError: What the user has to mend, in the configuration or in a file.
        OutputError: The output cannot be written.
    """
    try:
        with quiet_lightning(), as_input_error((MisconfigurationException,)), ours_as_input_error():
            Commands(arguments)
    except ArgumentError as error:
        raise InputError(brief(error)) from error
    except SystemExit as stop:
        if not stop.code:  # --help, --print_config
            return 0
        # What Lightning makes of Ctrl-C.
        print("fastmmd: interrupted; finished epochs are kept", file=sys.stderr)
        return 130
    return 0


def brief(error: Exception) -> str:
    """What it says, without the values that jsonargparse cites: maybe the whole configuration."""
    return "\n".join(line for line in str(error).split("\n") if "Given value" not in line)


@contextmanager
def as_input_error(kinds: tuple[type[Exception], ...]) -> Iterator[None]:
    """Errors of these kinds are the user's to mend."""
    try:
        yield
    except (InputError, OutputError):
        raise
    except kinds as error:
        raise InputError(brief(error)) from error


@contextmanager
def ours_as_input_error() -> Iterator[None]:
    """So are those that fastmmd raises by itself; others keep their traceback."""
    try:
        yield
    except (InputError, OutputError):
        raise
    except (ValueError, TypeError, OSError) as error:
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        if frame is None or not frame.tb_frame.f_globals["__name__"].startswith("fastmmd."):
            raise
        raise InputError(str(error)) from error
