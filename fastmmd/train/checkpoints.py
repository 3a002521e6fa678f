"""Checkpoints that are whole or not there, of every finished epoch, and read as data alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from fastmmd.compare.reading import InputError

__all__ = ["AtomicCheckpointIO", "EveryEpoch", "check_architecture", "load_checkpoint"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and then moves it there: a plugin of the Trainer.

    A process that is killed while it writes leaves the checkpoint that was there before. Nothing
    that a file holds is run when it is read.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Writes it to a local file.

        Raises:
            OSError: The file cannot be written.
        """
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        # One name for all: what a killed process left is written over.
        incomplete = place.with_name(f".incomplete-{place.name}")
        try:
            with incomplete.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(incomplete, place)
        except BaseException:
            incomplete.unlink(missing_ok=True)
            raise
        folder = os.open(place.parent, os.O_RDONLY)  # the new name, too, shall outlast a power cut
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Callable[..., Any] | None = lambda storage, loc: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Reads it, whatever ``weights_only`` is, as tensors and plain objects.

        Raises:
            InputError: As :func:`load_checkpoint`.
        """
        return load_checkpoint(path, map_location)


def load_checkpoint(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """Reads a checkpoint as tensors and plain objects; nothing in it is run.

    Raises:
        InputError: There is no such file, it is damaged or no checkpoint, or it holds more than
            tensors and plain objects.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise InputError(f"checkpoint {path}: {error.strerror}") from error
    try:
        with file:
            checkpoint = torch.load(file, map_location=map_location, weights_only=True)
    except Exception as error:  # torch raises what the damage happens to lead to
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"checkpoint {path}: is damaged, no checkpoint, or holds more than tensors and plain"
            f" objects, which are not loaded ({type(error).__name__}: {reason[:200]})"
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise InputError(f"checkpoint {path}: holds no state_dict, so it is none of a training")
    return checkpoint


def check_architecture(
    path: str | os.PathLike[str], module: L.LightningModule
) -> dict[str, Tensor]:
    """Checks that a checkpoint fits a module, before anything is changed.

    Returns:
        The tensors of the checkpoint, and those that ``on_load_checkpoint`` of the module adds.

    Raises:
        InputError: As :func:`load_checkpoint`, or names or shapes of its tensors differ from those
            of the module.
    """
    checkpoint = load_checkpoint(path)
    module.on_load_checkpoint(checkpoint)
    found: dict[str, Tensor] = checkpoint["state_dict"]
    wanted = module.state_dict()
    troubles = [
        f"{title} {', '.join(names[:3])}{f' and {len(names) - 3} more' * (len(names) > 3)}"
        for title, names in (
            ("it lacks", [name for name in wanted if name not in found]),
            ("the model lacks", [name for name in found if name not in wanted]),
            (
                "other shapes:",
                [
                    f"{name} {tuple(found[name].shape)} for {tuple(value.shape)}"
                    for name, value in wanted.items()
                    if isinstance(value, Tensor)
                    and name in found
                    and found[name].shape != value.shape
                ],
            ),
        )
        if names
    ]
    if troubles:
        raise InputError(
            f"checkpoint {path}: is of another architecture than this"
            f" {type(module).__name__}: {'; '.join(troubles)}"
        )
    return found


class EveryEpoch(ModelCheckpoint):
    """Keeps the last finished epoch as ``last.ckpt``, after its validation.

    With :class:`AtomicCheckpointIO` no finished epoch is lost, whenever the process ends. Resume
    with ``trainer.fit(..., ckpt_path="last")``.

    Args:
        dirpath: Folder. Default: ``checkpoints`` in the trainer's ``default_root_dir``.
    """

    def __init__(self, dirpath: str | Path | None = None) -> None:
        super().__init__(
            dirpath,
            filename="last",
            every_n_epochs=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Settles the folder: one that a second run finds again, unlike the logger's."""
        if self.dirpath is None:
            self.dirpath = os.path.join(trainer.default_root_dir, "checkpoints")
        super().setup(trainer, pl_module, stage)
