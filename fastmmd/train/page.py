"""A page of headings, text, tables and pictures, as one HTML file or as Markdown with pictures."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["Embedding", "Format", "Page"]

Format = Literal["html", "md"]
Embedding = Literal["pca", "tsne", "umap"]  # how features are shown in a plane

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #23282e; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #d8dce0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .8rem 0; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #e6e9ec; }
th:first-child, td:first-child { text-align: left; }
th { border-bottom: 1px solid #8b949e; }
img { max-width: 100%; }
.key { font-size: 1.1rem; background: #f1f4f7; border-left: 4px solid #2b6ca3;
       padding: .6rem 1rem; }
"""


@dataclass
class Page:
    """Blocks in the order in which they are added."""

    title: str
    folder: Path  # where its pictures are, and where it is written
    _html: list[str] = field(default_factory=list)
    _markdown: list[str] = field(default_factory=list)
    _pictures: list[Path] = field(default_factory=list)

    def heading(self, text: str) -> None:
        """Begins a section."""
        self._html.append(f"<h2>{html.escape(text)}</h2>")
        self._markdown.append(f"## {text}")

    def text(self, text: str, key: bool = False) -> None:
        """A paragraph; ``key`` sets it off."""
        mark = ' class="key"' if key else ""
        self._html.append(f"<p{mark}>{html.escape(text)}</p>")
        self._markdown.append(f"**{text}**" if key else text)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table; its cells are shown as they are."""
        cells = [[str(cell) for cell in row] for row in rows]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
        body = "\n".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in cells
        )
        self._html.append(f"<table><tr>{head}</tr>\n{body}\n</table>")
        lines = [list(header), ["---"] * len(header), *cells]
        self._markdown.append(
            "\n".join(f"| {' | '.join(c.replace('|', chr(92) + '|') for c in r)} |" for r in lines)
        )

    def picture(self, name: str, caption: str) -> None:
        """A PNG file of the folder, and what it shows."""
        data = base64.b64encode((self.folder / name).read_bytes()).decode()
        shown = html.escape(caption)
        self._html.append(
            f'<figure><img alt="{shown}" src="data:image/png;base64,{data}">'
            f"<figcaption>{shown}</figcaption></figure>"
        )
        self._markdown.append(f"![{caption}]({name})\n\n*{caption}*")
        self._pictures.append(self.folder / name)

    def write(self, form: Format) -> str:
        """Writes ``report.html``, which holds its pictures, or ``report.md`` beside them."""
        name = f"report.{form}"
        if form == "md":
            text = "\n\n".join([f"# {self.title}", *self._markdown]) + "\n"
        else:
            title = html.escape(self.title)
            text = "\n".join(
                [
                    f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
                    f"<title>{title}</title>\n<style>{_STYLE}</style></head><body>",
                    f"<h1>{title}</h1>",
                    *self._html,
                    "</body></html>\n",
                ]
            )
            for picture in self._pictures:
                picture.unlink()
        (self.folder / name).write_text(text, encoding="utf-8")
        return name
