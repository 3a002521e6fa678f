"""The figures of the README, from committed result files and nothing else."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["BEGIN", "END", "ReadmeError", "block", "replaced"]

BEGIN = "<!-- figures: begin (written by `fastmmd bench report --readme`) -->"
END = "<!-- figures: end -->"
_SIZES = ((32, 256), (128, 256), (512, 256), (2048, 256), (8192, 64), (8192, 256))
_PEERS = {
    "fastmmd": "fastmmd",
    "reference": "plain PyTorch",
    "compile": "`torch.compile` of it",
    "deepda": "DeepDA's code",
}
# How names of figures of the family say what is faster than what, at which size.
_FASTER = re.compile(r"(?P<what>.+), faster than (?P<beside>.+), (?P<size>\(.*\))")


class ReadmeError(ValueError):
    """The README has no place for figures, or a result file is missing."""


def block(folder: Path, readme: Path) -> str:
    """What stands between the two marks.

    Args:
        folder: With ``results.json``, ``table.md`` and ``bench.png`` of ``make bench``, and
            ``demo.json`` of ``make demo``.
        readme: The README, to which the links are relative.

    Raises:
        ReadmeError: A file is missing, or is no result file.
    """
    try:
        run, demo = (
            json.loads((folder / name).read_text()) for name in ("results.json", "demo.json")
        )
        at = os.path.relpath(folder, readme.parent)
        parts = [
            _heading(run),
            _table(run),
            _source(run, at),
            _picture(at),
            _family(run),
            _demo(demo, at),
        ]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ReadmeError(
            f"{folder}: no results of make bench and make demo ({error!r})"
        ) from error
    return "\n\n".join([BEGIN, *(part for part in parts if part), END])


def replaced(text: str, new: str) -> str:
    """The text of a README with a new block.

    Raises:
        ReadmeError: It has no marks.
    """
    found = re.compile(r"<!-- figures: begin.*?-->.*?" + re.escape(END), re.DOTALL)
    if not found.search(text):
        raise ReadmeError(f"no place for figures: it begins with {BEGIN!r} and ends with {END!r}")
    return found.sub(lambda _: new, text, count=1)


def _heading(run: Mapping[str, Any]) -> str:
    m = run["machine"]
    torch = str(m["torch"]).split("+")[0]
    place = f"{m['cpu']}, family {m['cpu_family']}, model {m['cpu_model']}, {m['instruction_set']}"
    return (
        "Value and both gradients, float32, five Gaussians; milliseconds and, in brackets, MiB of"
        f" memory beyond\nthe samples; {m['threads']} threads ({place}), torch {torch}:"
    )


def _table(run: Mapping[str, Any]) -> str:
    threads = run["machine"]["threads"]
    times = {
        (t["n"], t["d"], t["peer"]): t
        for t in run["times"]
        if t["kind"] == "compare" and t["mode"] == "gradients" and t["threads"] == threads
    }
    lines = [
        "| n = m, d | " + " | ".join(_PEERS.values()) + " |",
        "| --- |" + " ---: |" * len(_PEERS),
    ]
    for n, d in _SIZES:
        cells = [_cell(times.get((n, d, peer))) for peer in _PEERS]
        lines.append(f"| {n}, {d} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    milliseconds = 1e3 * row["median"]
    time = f"{milliseconds:.3g}" if milliseconds < 1000 else f"{milliseconds:.0f}"
    if row["peak_memory"] is None:
        return time
    memory = row["peak_memory"] / 2**20
    return f"{time} ({memory:.2g})" if memory < 10 else f"{time} ({memory:.0f})"


def _source(run: Mapping[str, Any], at: str) -> str:
    others = run["disturbance"]
    quiet = "" if others is None else f"; other processes took {100 * others:.1f} % of the machine"
    return (
        f"[All figures of that run]({at}/table.md), `make bench` at commit"
        f" {run['commit']['id'][:7]}{quiet}."
    )


def _picture(at: str) -> str:
    return (
        f"![Times faster than PyTorch, share of the peak of the processor, memory]({at}/bench.png)"
    )


def _family(run: Mapping[str, Any]) -> str:
    rows = [
        f"| {found['what']} | {found['beside']} | {found['size'].strip('()')} |"
        f" {_times(figure['spread']['median'])} |"
        for figure in run["figures"]
        if (found := _FASTER.fullmatch(figure["name"]))
    ]
    header = "| in the same run | beside | n = m, d | times faster |\n| --- | --- | --- | ---: |\n"
    return header + "\n".join(rows) if rows else ""


def _times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.1f}"


def _demo(demo: Mapping[str, Any], at: str) -> str:
    def accuracy(model: str) -> str:
        found = demo["models"][model]["target_accuracy"]
        return f"{found['mean']:.1f} ± {found['spread']:.1f} %"

    return (
        "`make demo`: accuracy on digits over photographs, whose labels no training has seen, over"
        f" {demo['settings']['seeds']} seeds:\n{accuracy('source-only')} trained on clean digits"
        f" alone, {accuracy('control')} with batch normalisation adapted,\n{accuracy('aligned')}"
        f" aligned by MMD ([what was chosen how](docs/demo.md), [all figures]({at}/demo.json))."
    )
