"""Tables that fit a terminal: texts are cut, figures never; where the figures do not fit, every row becomes a list."""

from __future__ import annotations

from collections.abc import Iterable

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from optimas_jax.report.live.text import fit, padded, plain

_LEAST = 10  # cells that a text has at least when it is cut


def fitted(table: Table, width: int) -> RenderableType:
    """A table of texts in at most ``width`` cells, in which nothing wraps and brackets are brackets.

    Columns that are justified to the right hold figures; those to the left hold texts, which may be cut.
    """
    names = [_text(column.header) for column in table.columns]
    rows = list(zip(*([_text(cell) for cell in column.cells] for column in table.columns), strict=True))
    figures = [column.justify == "right" for column in table.columns]
    widths = [max(map(cell_len, (name, *cells))) for name, cells in zip(names, zip(*rows, strict=True), strict=False)]
    widths = widths or [cell_len(name) for name in names]
    room = width - 3 * len(names) - 1  # borders
    if sum(widths) > room and names:
        spare = room - sum(size for size, figure in zip(widths, figures, strict=True) if figure)
        texts = sorted(size for size, figure in zip(widths, figures, strict=True) if not figure)
        most = _most(texts, spare)
        if most < min(_LEAST, max(texts, default=0)):
            return _lists(table, names, rows, figures, width)
        widths = [size if figure else min(size, most) for size, figure in zip(widths, figures, strict=True)]
    result = Table(box=table.box, title_justify=table.title_justify, title_style=table.title_style)
    total_width = sum(widths) + 3 * len(widths) + 1
    result.title = _note(table.title, total_width if total_width < width else width)
    result.caption = _note(table.caption, width)
    for name, size, figure in zip(names, widths, figures, strict=True):
        result.add_column(Text(name), justify="right" if figure else "left", width=size, no_wrap=True)
    for row, source_row in zip(rows, table.rows, strict=True):
        cells = (Text(fit(cell, size), no_wrap=True) for cell, size in zip(row, widths, strict=True))
        result.add_row(*cells, style=source_row.style)
    return result


def _lists(
    table: Table, names: list[str], rows: Iterable[tuple[str, ...]], figures: list[bool], width: int
) -> RenderableType:
    """The rows as lists: the first cell, and under it each other cell with the name of its column."""
    lines = [Text(line, style="italic") for line in _lines(table.title, width)]
    indent = 2 * (len(names) > 1)
    longest = min(max(map(cell_len, names[1:]), default=0), width // 2)
    for row in rows:
        lines.append(Text(fit(row[0] or names[0], width), style="bold"))
        for name, cell in zip(names[1:], row[1:], strict=True):
            if cell:
                label = padded(fit(name, longest), longest)
                lines.append(Text(" " * indent + label + "  " + fit(cell, width - indent - longest - 2)))
    lines += [Text(line, style="dim italic") for line in _lines(table.caption, width)]
    for line in lines:
        line.no_wrap, line.overflow = True, "crop"
    return Group(*lines)


def _note(note: object, width: int) -> Text | None:
    """A title or a caption, wrapped into lines of at most ``width`` cells."""
    lines = _lines(note, width)
    return Text("\n".join(lines), no_wrap=True) if lines else None


def _lines(note: object, width: int) -> list[str]:
    """A text in lines of whole words."""
    lines: list[str] = []
    for word in _text(note).split():
        if lines and cell_len(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(fit(word, width))
    return lines


def _most(widths: list[int], room: int) -> int:
    """The largest width of each text with which all fit into ``room``; ``widths`` are in ascending order."""
    most = 0
    for index, width in enumerate(widths):
        most = room // (len(widths) - index)
        if width > most:
            return most
        room -= width
    return max(widths, default=0)


def _text(cell: object) -> str:
    return plain(cell.plain if isinstance(cell, Text) else "" if cell is None else str(cell))
