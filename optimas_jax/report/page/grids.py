"""Pages of tables: of a sweep, of a comparison at equal cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from optimas_jax.core.folder.files import write_text
from optimas_jax.report.page.base import render


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
      text: shown first.
      links: texts and relative addresses, shown after ``text``; without an address the text is no link.
      picture: drawn after them.
    """

    text: str
    links: Sequence[tuple[str, str]] = ()
    picture: Markup = Markup("")


@dataclasses.dataclass(frozen=True)
class Grid:
    """A section with a table.

    Attributes:
      anchor: id of the section.
      title: its heading.
      caption: explains the numbers.
      columns: names of the columns.
      numbers: names of the columns that are aligned to the right.
      rows: one cell for each column, a name in the first.
      picture: below the table, described in ``about_picture``.
    """

    anchor: str
    title: str
    caption: str
    columns: Sequence[str]
    numbers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    picture: Markup = Markup("")
    about_picture: str = ""


def write_grids(path: Path, title: str, lines: Sequence[str], grids: Sequence[Grid]) -> None:
    """Writes a page of tables in one step.

    Args:
      title: its heading.
      lines: sentences below it.

    Raises:
      OSError: it cannot be written.
    """
    sections = [("head", "Overview"), *((grid.anchor, grid.title) for grid in grids)]
    write_text(path, render("grids.html", title=title, lines=lines, grids=grids, sections=sections))
