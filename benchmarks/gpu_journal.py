"""Work that may hang or crash, one entry after another, under an eye that goes on without it.

A kernel that waits for what never comes takes its process along, and one that writes where it must
not takes all that its process does on the device afterwards. So entries run in a process of their
own, which notes in a journal what it begins and what came of it. :func:`supervise` ends a process
whose entry takes too long, and starts another for the rest.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

LOST = 9  # exit status of a process whose device context is lost
LOST_CONTEXT = (
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "unspecified launch failure",
    "device-side assert",
    "hardware stack error",
)


class Journal:
    """A file of lines, written by one process at a time and read by another.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def _write(self, line: dict[str, Any]) -> None:
        with self.path.open("a") as file:  # behind what a process that was ended may have left
            file.write("\n" + json.dumps(line) + "\n")

    def begin(self, entry: str) -> None:
        """Note that an entry begins."""
        self._write({"begin": entry, "time": time.time()})

    def end(self, entry: str, outcome: str, **rest: Any) -> None:
        """Note what came of it."""
        self._write({"end": entry, "outcome": outcome, **rest})

    def lines(self) -> Iterator[dict[str, Any]]:
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:  # empty, or half written
                    continue

    def ended(self) -> dict[str, dict[str, Any]]:
        """What came of the entries that have ended, by entry."""
        return {line["end"]: line for line in self.lines() if "end" in line}

    def open(self) -> tuple[str, float] | None:
        """The entry that has begun and not ended, and when it began."""
        begun = {line["begin"]: line["time"] for line in self.lines() if "begin" in line}
        left = [(entry, at) for entry, at in begun.items() if entry not in self.ended()]
        return left[-1] if left else None


def context_is_lost(message: str) -> bool:
    """Whether nothing will work on the device in this process after such an error."""
    return any(text in message for text in LOST_CONTEXT)


def device_answers() -> bool:
    """Whether the device still works in this process, its generator included; true without one.

    What a fault is called differs between drivers, and a graph whose capture has failed leaves a
    generator behind that serves captures alone.
    """
    import torch

    if not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize()
        torch.randn(1, device="cuda")
    except Exception:
        return False
    return True


def end_group(process: subprocess.Popen[Any]) -> None:
    """End a process that leads a session of its own, and its children."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass


def supervise(
    command: Sequence[str],
    journal: Journal,
    log: Path,
    limit: Callable[[str], float],
    deadline: float,
    fine: Sequence[int] = (0,),
    poll: float = 0.2,
    **options: Any,
) -> str:
    """Run a command, which skips what has ended, again until it has gone through all entries.

    Args:
        command: what to run.
        journal: where it writes.
        log: what it prints.
        limit: seconds that an entry may take.
        deadline: of all, by ``time.monotonic``.
        fine: exit statuses of a process that has gone through all entries.
        poll: seconds between looks at it.
        options: of ``subprocess.Popen``.

    Returns:
        "done"; "cut" at the deadline; "failed (status)" if it ended without progress.
    """
    while True:
        before = len(journal.ended())
        with log.open("ab") as output:
            process = subprocess.Popen(
                list(command),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **options,
            )
            hung = _watch(process, journal, limit, deadline, poll)
        left = journal.open()
        if hung == "deadline":
            if left:
                journal.end(left[0], "cut")
            return "cut"
        if left:
            status = process.returncode
            journal.end(left[0], hung or f"ended the process (status {status})")
        elif process.returncode in fine:
            return "done"
        if len(journal.ended()) == before:
            return f"failed (status {process.returncode})"


def _watch(
    process: subprocess.Popen[Any],
    journal: Journal,
    limit: Callable[[str], float],
    deadline: float,
    poll: float,
) -> str:
    while process.poll() is None:
        time.sleep(poll)
        entry = journal.open()
        if time.monotonic() > deadline:
            end_group(process)
            return "deadline"
        if entry and time.time() - entry[1] > limit(entry[0]):
            end_group(process)
            return f"hung (over {limit(entry[0]):.0f} s)"
    return ""
