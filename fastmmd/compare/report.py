"""What ``fastmmd compare`` prints: tables by rich where it is installed, plain text otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from fastmmd.compare.comparison import Comparison, described

__all__ = ["print_facts", "print_report", "tables", "verdict"]


@dataclass(frozen=True)
class Grid:
    """A table to print; the first column is aligned to the left, the others to the right."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    remark: str = ""


def verdict(different: bool, alpha: float) -> str:
    """The answer in a few words."""
    level = f"at the {100 * alpha:g} % level"
    return f"different {level}" if different else f"no difference found {level}"


def facts(comparison: Comparison) -> list[tuple[str, str]]:
    """The test, as names and values."""
    test, settings = comparison.test, comparison.settings
    null = np.asarray(test.null)
    without = f"{null.mean():.4g} ± {null.std():.2g} without a difference"
    what = "relabellings" if settings.method == "permutation" else "random signs"
    kernel = comparison.kernel
    if comparison.aggregated is not None:
        kernel = f"{len(comparison.aggregated.kernels)} kernels, foremost {kernel}"
    return [
        ("kernel", kernel),
        ("MMD²", f"{test.statistic:.4g}   ({without})"),
        ("p-value", f"{comparison.pvalue:.4g}   ({settings.permutations} {what})"),
        ("verdict", verdict(comparison.different, settings.alpha)),
    ]


def tables(comparison: Comparison, top: int) -> list[Grid]:
    """The columns and rows that tell the two files apart."""
    a, b = comparison.rows_a[:top], comparison.rows_b[:top]
    features = comparison.features[:top]
    of = f" of {len(comparison.features)}" if len(comparison.features) > len(features) else ""
    grids = [
        Grid(
            f"Columns that differ most ({len(features)}{of})",
            ["column", "difference", "mean A", "mean B", "shift", "spread B/A"],
            [
                [
                    feature.name,
                    f"{feature.difference:.3f}",
                    f"{feature.mean_a:.4g}",
                    f"{feature.mean_b:.4g}",
                    f"{feature.shift:+.2f}",
                    f"{feature.spread:.2f}",
                ]
                for feature in features
            ],
            "difference: energy coefficient, 0 to 1; shift: in standard deviations",
        ),
        Grid(
            "Rows least like the other file",
            ["", "row of A", "% of MMD²", "row of B", "% of MMD²"],
            [
                [f"{i + 1}."]
                + [
                    text
                    for rows in (a, b)
                    for text in (
                        (str(rows[i].row), share(rows[i].contribution, comparison))
                        if i < len(rows)
                        else ("", "")
                    )
                ]
                for i in range(max(len(a), len(b)))
            ],
            "rows count from 0, without a header",
        ),
    ]
    if comparison.aggregated is not None:
        result = comparison.aggregated
        order = sorted(range(len(result.kernels)), key=lambda k: float(result.adjusted_pvalues[k]))
        grids.insert(
            0,
            Grid(
                "Kernels",
                ["kernel", "p-value alone", "adjusted"],
                [
                    [
                        described(result.kernels[k]),
                        f"{float(result.pvalues[k]):.4g}",
                        f"{float(result.adjusted_pvalues[k]):.4g}",
                    ]
                    for k in order[:5]
                ],
            ),
        )
    return grids


def share(contribution: float, comparison: Comparison) -> str:
    """The part of the biased MMD^2, in percent."""
    whole = float(comparison.witness_a.mean() - comparison.witness_b.mean())
    return f"{100 * contribution / whole:.2f}" if whole > 0 else "-"


def print_report(comparison: Comparison, top: int, written: str = "") -> None:
    """Prints everything to standard output.

    Args:
        comparison: The result.
        top: How many columns and rows are listed.
        written: What the last line says.
    """
    print_facts(
        _heading(comparison) + facts(comparison),
        comparison.notes,
        tables(comparison, top),
        written,
        comparison.different,
    )


def print_facts(
    pairs: Sequence[tuple[str, str]],
    notes: Sequence[str] = (),
    grids: Sequence[Grid] = (),
    written: str = "",
    different: bool = False,
) -> None:
    """Prints names and values, notes, tables and a last line to standard output.

    Args:
        pairs: Names and values; the one of the name "verdict" stands out.
        notes: What the user should know.
        grids: The tables.
        written: The last line, if not empty.
        different: Whether the verdict is that there is a difference.
    """
    if find_spec("rich"):
        _rich(pairs, notes, grids, written, different)
    else:
        _plain(pairs, notes, grids, written)


def _heading(comparison: Comparison) -> list[tuple[str, str]]:
    widths = f"{len(comparison.features)} column{'s' * (len(comparison.features) != 1)}"
    lines = []
    for name, table, points in (
        ("A", comparison.a, comparison.points_a),
        ("B", comparison.b, comparison.points_b),
    ):
        rows = f"{len(table.values):,} rows"
        if len(points) < len(table.values):
            rows = f"{len(points):,} of {rows}"
        lines.append((name, f"{table.path}   {rows}, {widths}"))
    return lines


def _plain(
    pairs: Sequence[tuple[str, str]], notes: Sequence[str], grids: Sequence[Grid], written: str
) -> None:
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        print(f"{name:<{width}}  {value}")
    for note in notes:
        print(f"note: {note}")
    for grid in grids:
        print(f"\n{grid.title}")
        cells = [list(grid.head), *grid.rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(grid.head))]
        for row in cells:
            first = f"{row[0]:<{widths[0]}}"
            others = [f"{cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True)]
            print("  ".join([first, *others]).rstrip())
        if grid.remark:
            print(grid.remark)
    if written:
        print(f"\n{written}")


def _rich(
    pairs: Sequence[tuple[str, str]],
    notes: Sequence[str],
    grids: Sequence[Grid],
    written: str,
    different: bool,
) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    style = "bold red" if different else "bold green"
    width = max(len(name) for name, _ in pairs) + 2
    for name, value in pairs:
        value_style = style if name == "verdict" else ""
        line = Text.assemble((f"{name:<{width}}", "dim"), (value, value_style))
        console.print(line, soft_wrap=True)
    for note in notes:
        console.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)
    for grid in grids:
        console.print()
        console.print(Text(grid.title, style="bold"))
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
        for i, name in enumerate(grid.head):
            table.add_column(name, justify="right" if i else "left", overflow="ellipsis")
        for row in grid.rows:
            table.add_row(*map(escape, row))
        console.print(table, end="")
        if grid.remark:
            console.print(Text(grid.remark, style="dim"))
    if written:
        console.print()
        console.print(Text(written), soft_wrap=True)
