"""Builds of revisions, side by side, and processes that time them in turn."""

from __future__ import annotations

import importlib.util
import json
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["BuildError", "Worker", "build", "checked_out", "commit_of", "revision"]

_TAIL = 25  # lines of a log that an error shows
_PATIENCE = 600  # seconds for an answer
_SCRIPT = Path(__file__).with_name("worker.py")


class BuildError(RuntimeError):
    """A revision is unknown, does not build, or what was built does not run."""


def _git(*arguments: str, at: Path) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=at, capture_output=True, text=True, check=True
        )
    except FileNotFoundError as error:
        raise BuildError("git is needed to compare revisions, and was not found") from error
    except subprocess.CalledProcessError as error:
        raise BuildError(error.stderr.strip() or f"git {' '.join(arguments)} failed") from error
    return done.stdout.strip()


def revision(name: str, at: Path) -> str:
    """The commit that a name stands for in the checkout at a path.

    Raises:
        BuildError: None, or no checkout.
    """
    try:
        return _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}", at=at)
    except BuildError as error:
        raise BuildError(
            f"{name!r} is neither a file nor a revision of a git checkout at {at}"
        ) from error


def commit_of(folder: Path) -> dict[str, Any]:
    """The commit that a checkout is at, as pytest-benchmark records it; ``id`` None elsewhere."""
    try:
        return {
            "id": _git("rev-parse", "HEAD", at=folder),
            "time": _git("show", "-s", "--format=%cI", "HEAD", at=folder),
            "dirty": bool(_git("status", "--porcelain", "--untracked-files=no", at=folder)),
        }
    except BuildError:
        return {"id": None, "time": None, "dirty": None}


def build(name: str, at: Path, into: Path, cuda: bool = False) -> dict[str, Any]:
    """Builds a revision, or a checkout as it is, into a folder from which it can be imported.

    Both sides of a comparison are built by one compiler on one machine this way.

    Args:
        name: A revision of the checkout at ``at``, or the path of another checkout.
        at: A checkout.
        into: An empty folder.
        cuda: Whether the CUDA kernels are built too, for the GPU that is there.

    Returns:
        Its commit, as :func:`commit_of`.

    Raises:
        BuildError: It does not build; with the end of the log.
    """
    if (Path(name) / "pyproject.toml").is_file():
        _install(name, Path(name), into, cuda)
        return commit_of(Path(name))
    with checked_out(name, at) as tree:
        _install(name, tree, into, cuda)
        return commit_of(tree)


@contextmanager
def checked_out(name: str, at: Path) -> Iterator[Path]:
    """A revision of a checkout in a folder of its own, while the block runs.

    Raises:
        BuildError: There is no such revision.
    """
    commit = revision(name, at)
    with tempfile.TemporaryDirectory(prefix="fastmmd-bench-") as folder:
        tree = Path(folder) / "tree"
        _git("worktree", "add", "--quiet", "--detach", str(tree), commit, at=at)
        try:
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree), at=at)


def _install(name: str, tree: Path, into: Path, cuda: bool) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    command.append(str(into))
    # Where the tools of the build are at hand nothing has to be fetched.
    if all(importlib.util.find_spec(m) for m in ("scikit_build_core", "pybind11")):
        command.append("--no-build-isolation")
    with tempfile.TemporaryDirectory(prefix="fastmmd-bench-") as folder:
        settings = {
            "build-dir": folder,
            "cmake.define.FASTMMD_CUDA": "ON" if cuda else "OFF",
            "cmake.define.FASTMMD_CUDA_ARCHS": "native" if cuda else "",
        }
        command += [f"--config-settings={key}={value}" for key, value in settings.items()]
        done = subprocess.run(
            [*command, "--disable-pip-version-check", str(tree)],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        log = (done.stdout + done.stderr).strip().splitlines()
        raise BuildError(f"{name} does not build:\n" + "\n".join(log[-_TAIL:]))


class Worker:
    """A process that times one build.

    Args:
        name: Of the build, for messages.
        folder: Where it can be imported from.

    Raises:
        BuildError: On first use, if it does not run.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, str(_SCRIPT), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def prepare(self, row: str, device: str, threads: int) -> Mapping[str, Any]:
        """Makes the lanes of a row.

        Returns:
            ``{"error": ...}``, or ``{"missing": reason}`` if this build has no such operation.
        """
        answer: Mapping[str, Any] = self._ask(
            {"do": "prepare", "row": row, "device": device, "threads": threads}
        )
        if "wrong" in answer:
            raise BuildError(f"{self.name}: {answer['wrong']}")
        return answer

    def seconds(self, lane: str, calls: int, cores: Sequence[int] | None = None) -> float:
        """Seconds for a number of calls of a lane of the row that was prepared last.

        Args:
            lane: Its name.
            calls: How many.
            cores: Those that the process runs on from now on; None leaves them as they are.
        """
        return float(self._ask({"do": "time", "lane": lane, "calls": calls, "cores": cores}))

    def _ask(self, request: Mapping[str, Any]) -> Any:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            # An answer is one line, so what is not there yet is not in a buffer either.
            if not select.select([process.stdout], [], [], _PATIENCE)[0]:
                raise BuildError(f"{self.name} does not answer: {_PATIENCE} s for {request}")
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._log.seek(0)
            log = self._log.read().strip().splitlines()
            raise BuildError(f"{self.name} does not run:\n" + "\n".join(log[-_TAIL:]))
        return json.loads(line)
