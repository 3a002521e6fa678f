"""``fastmmd compare`` from its options to its exit status."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from fastmmd._extras import require_extra
from fastmmd._output import OutputFolder
from fastmmd.compare.comparison import Comparison, Settings, compare
from fastmmd.compare.reading import read
from fastmmd.compare.report import print_report
from fastmmd.compare.sketches import SketchComparison, compare_sketches
from fastmmd.sketch.files import is_sketch

__all__ = ["run"]


def run(
    a: str,
    b: str,
    settings: Settings | None = None,
    key: str | None = None,
    columns: Sequence[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    top: int = 10,
    as_json: bool = False,
) -> Comparison | SketchComparison:
    """Compares two files, prints the result, and writes it to a folder if one is given.

    Sketches are compared by :func:`fastmmd.compare.sketches.compare_sketches`.

    Args:
        a: The first file.
        b: The second.
        settings: How they are compared.
        key: Which array of an ``.npz`` file.
        columns: The columns to compare; all by default.
        output: Folder for ``compare.json`` and ``compare.png``. Files of these names are replaced,
            both or neither.
        top: How many columns, and rows of each file, are listed.
        as_json: Print JSON instead of tables.

    Returns:
        What was found.

    Raises:
        InputError: A file or a setting that the user has to mend.
        OutputError: The folder cannot be written to; found out before any work.
        MissingExtraError: An output folder without Matplotlib, or a ``.parquet`` file without
            pyarrow.
    """
    if is_sketch(a) or is_sketch(b):
        return compare_sketches(a, b, settings, key, columns, output, as_json)
    if output is not None:
        require_extra("--output", "cli", "matplotlib")
    first, second = (read(path, key, columns) for path in (a, b))
    folder = None if output is None else OutputFolder(output)
    comparison = compare(first, second, settings or Settings())
    figures = comparison.as_dict(top)
    text = json.dumps(figures, indent=2, allow_nan=False)
    written = ""
    if folder is not None:
        from fastmmd.compare.figures import picture

        with folder.filling() as path:
            (path / "compare.json").write_text(text + "\n")
            picture(path / "compare.png", comparison)
            names = sorted(file.name for file in path.iterdir())
        written = f"Written to {folder.path}: {', '.join(names)}"
    if as_json:
        print(text)
    else:
        print_report(comparison, top, written)
    return comparison
