"""``sweep.html``: the table of a sweep as a page, with links to the pages of its points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.report.page.grids import Cell, Grid, write_grids
from optimas_jax.report.page.svg import interval_bar, span_of
from optimas_jax.report.show.page import link_to
from optimas_jax.sweep.points import Point
from optimas_jax.sweep.tables import CAPTION, COLUMNS, filled_columns, table_rows

PAGE = "sweep.html"
_INTERVAL = COLUMNS.index("95 % interval")
_NUMBERS = (
    *("seeds", "before", "after", "gain", "95 % interval"),
    *("difference to the first", "interval of the difference", "search tokens", "seconds"),
)


def write_sweep_page(
    workdir: Path, title: str, rows: Sequence[Mapping[str, Any]], points: Sequence[Point], shared: str
) -> Path:
    """Writes the page of a sweep into its folder, and returns its path.

    Args:
      rows: from ``summary.summarize``.
      shared: a sentence about results that the points shared.

    Raises:
      OSError: it cannot be written.
    """
    seeds = {point.name: point.seed for point in points}
    span = span_of(bound for row in rows if "gain" in row for bound in row["ci95"])
    cells = [
        [Cell(texts[0], _links(workdir, row["names"], seeds)), *_cells(row, texts, span)[1:]]
        for row, texts in zip(rows, table_rows(rows), strict=True)
    ]
    shown = filled_columns(table_rows(rows))
    columns = [COLUMNS[index] for index in shown]
    grid = Grid("settings", "Settings", CAPTION, columns, _NUMBERS, [[line[i] for i in shown] for line in cells])
    path = workdir / PAGE
    write_grids(path, f"Sweep of {title}", [f"{len(points)} points. {shared}"], [grid])
    return path


def _cells(row: Mapping[str, Any], texts: Sequence[str], span: tuple[float, float]) -> list[Cell]:
    cells = [Cell(text) for text in texts]
    if "gain" in row:
        bar = interval_bar(row["gain"], row["ci95"], span, words=f"gain {row['gain']:+.3f} {texts[_INTERVAL]}")
        cells[_INTERVAL] = Cell(texts[_INTERVAL], picture=bar)
    return cells


def _links(workdir: Path, names: Sequence[str], seeds: Mapping[str, int]) -> list[tuple[str, str]]:
    return [(f"seed {seeds[name]}", link_to(workdir / name / "report.html", workdir)) for name in names]
