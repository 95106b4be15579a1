"""Parts of both views of the terminal: titles, items with a hanging indent, tables. Texts of runs are no markup, and
have no control characters."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from optimas_jax.core.text.secrets import shareable
from optimas_jax.report.page.text import clip, visible

MOST = 300  # characters of a text of the run in one line


def line(text: str, most: int = MOST, style: str = "") -> Text:
    """A text in one line, which a narrow terminal wraps."""
    return Text(clip(visible(shareable(" ".join(text.split()))), most), style=style, overflow="fold")


def section(title: str, *parts: RenderableType) -> RenderableType:
    """A title and what is below it."""
    return Group(Text(""), Text(title, style="bold"), *(Padding(part, (0, 0, 0, 2), expand=False) for part in parts))


def items(rows: Sequence[tuple[str, str | Text]], style: str = "") -> Table:
    """A mark and a text in each row; the lines of a text stand below each other."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True, style=style)
    grid.add_column(overflow="fold", ratio=1)
    for mark, text in rows:
        grid.add_row(line(mark, 24), line(text) if isinstance(text, str) else text)
    return grid


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table without lines; all columns but the first are numbers."""
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    for index, column in enumerate(columns):
        grid.add_column(Text(column), justify="right" if index else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(line(cell, 60) for cell in row))
    return grid
