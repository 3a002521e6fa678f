"""An output folder that is known to be writable before the work, and filled in one go after it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["OutputError", "OutputFolder"]


class OutputError(OSError):
    """The output folder cannot be written."""


class OutputFolder:
    """A folder in which files appear together, when all of them are complete.

    Args:
        path: The folder. It and its parents are made if need be; files of other names in it stay.

    Raises:
        OutputError: It cannot be made or written to. What was made on the way is removed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        made: list[Path] = []
        try:
            for folder in reversed((self.path, *self.path.parents)):
                if not folder.exists():
                    folder.mkdir()
                    made.append(folder)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            for folder in reversed(made):
                folder.rmdir()
            raise OutputError(
                f"--output {str(path)!r} is not a folder that can be written to "
                f"({error.strerror}); give the path of one, which need not exist yet"
            ) from error

    @contextmanager
    def filling(self) -> Iterator[Path]:
        """Gives a folder to write files to, and moves them into place if the block succeeds."""
        staging = Path(tempfile.mkdtemp(prefix=".incomplete-", dir=self.path))
        try:
            yield staging
            for file in sorted(staging.iterdir()):
                os.replace(file, self.path / file.name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
