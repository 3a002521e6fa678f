"""The machine and the sources that figures of a GPU hold for, without torch or fastmmd."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMIT = "FASTMMD_COMMIT"  # the variable that names it where there is no repository


def told(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def commit_of(root: Path) -> str:
    """The commit of the sources, by the environment or by git."""
    if named := os.environ.get(COMMIT):
        return named
    commit = told("git", "-C", str(root), "rev-parse", "HEAD")
    if not commit:
        return "unknown"
    changed = told("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return commit[:12] + (" with changes" if changed else "")


def digest(root: Path) -> str:
    """A hash of all that is compiled or imported, which holds where there is no repository."""
    found = hashlib.sha256()
    suffixes = {".py", ".h", ".cpp", ".cu", ".cuh", ".cmake", ".txt", ".toml"}
    for folder in ("csrc", "fastmmd", "cmake"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in suffixes:
                found.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


def driver() -> str:
    found = told("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return found.splitlines()[0] if found else "none"


def nvcc() -> str | None:
    """The CUDA compiler: as it is named, on PATH, or where installers put it."""
    usual = shutil.which("nvcc", path="/usr/local/cuda/bin")
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or usual


def nvcc_version() -> str:
    found = re.search(r"V(\d[\d.]*)", told(nvcc() or "nvcc", "--version"))
    return found[1] if found else "none"


def find_sanitizer() -> str | None:
    """compute-sanitizer, on PATH or beside the compiler."""
    beside = Path(os.path.realpath(nvcc() or "nvcc")).parent
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=str(beside))
