"""The error that a missing optional dependency raises."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["MissingExtraError", "require_extra"]


class MissingExtraError(ImportError):
    """A part of fastmmd was imported whose extra is not installed."""


def require_extra(part: str, extra: str, *modules: str) -> None:
    """Checks, without importing them, that the modules of an extra are there.

    Args:
        part: What needs them, as the user wrote it (``"fastmmd.train"``).
        extra: Name of the extra in ``pip install 'fastmmd[extra]'``.
        *modules: Top-level import names.

    Raises:
        MissingExtraError: An ``ImportError`` that names what is missing and the command that
            installs it.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{part} needs {', '.join(missing)}, which the base install leaves out: "
            f"pip install 'fastmmd[{extra}]'"
        )
