"""``compare.html``: a comparison at equal cost as a page, with links to the pages of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from optimas_jax.compare.cell import RUN
from optimas_jax.compare.plan import cell_folder
from optimas_jax.compare.plot import mean_curve, shown
from optimas_jax.compare.tables import (
    COLUMNS,
    COSTS,
    REACH,
    REACH_TITLE,
    SCORES,
    caption,
    reach_rows,
    table_rows,
    title,
)
from optimas_jax.report.page.grids import Cell, Grid, write_grids
from optimas_jax.report.page.svg import element, interval_bar, picture, scale_over, span_of, steps, x_axis, y_axis
from optimas_jax.report.show.page import link_to

PAGE = "compare.html"
_COSTS = ("optimiser", *COSTS)
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 380, 50, 560, 24, 330  # of the picture, in pixels
_MOST = 6  # lines in the picture: as many as can be told apart
_DASHES = (None, "8 4", "2 4", "12 3 2 3", "1 6", "5 2")


def write_comparison_page(workdir: Path, summary: Mapping[str, Any]) -> Path:
    """Writes the page of a comparison into its folder, and returns its path.

    Args:
      summary: from ``summary.summarize``.

    Raises:
      OSError: it cannot be written.
    """
    rows: list[dict[str, str]] = [dict(zip(COLUMNS, texts, strict=True)) for texts in table_rows(summary)]
    about = "LM tokens and the best validation score so far, means over seeds; the thin line is the budget."
    grids = [
        Grid("scores", "Test scores", caption(summary), SCORES, SCORES[1:3],
             [_score_cells(workdir, summary, row) for row in rows], curves(summary), about),
        Grid("costs", "Costs", "Means over seeds", _COSTS, _COSTS[1:],
             [[Cell(row[name]) for name in _COSTS] for row in rows if any(row[name] for name in _COSTS[1:])]),
    ]  # fmt: skip
    if reached := reach_rows(summary):
        cells = [[Cell(text) for text in row] for row in reached]
        grids.append(Grid("reach", "Runs until a score", f"{REACH_TITLE}.", REACH, REACH[1:], cells))
    path = workdir / PAGE
    write_grids(path, "Optimisers at equal cost", [f"{title(summary)}."], grids)
    return path


def _score_cells(workdir: Path, summary: Mapping[str, Any], row: Mapping[str, str]) -> list[Cell]:
    name = row["optimiser"]
    figures = summary["rows"].get(name, {})
    cells: dict[str, Cell] = {column: Cell(row[column]) for column in SCORES}
    if difference := figures.get("difference"):
        intervals = [other["difference"]["ci95"] for other in summary["rows"].values() if other.get("difference")]
        span = span_of(bound for bounds in intervals for bound in bounds)
        bar = interval_bar(difference["mean"], difference["ci95"], span, words=row["difference to ours"])
        cells["difference to ours"] = Cell(row["difference to ours"], picture=bar)
    pages = [(f"seed {seed}", cell_folder(workdir, name, seed) / RUN / "report.html") for seed in _seeds(figures)]
    links = [(words, link_to(page, workdir)) for words, page in pages]
    return [Cell(name, links), *list(cells.values())[1:]]


def _seeds(figures: Mapping[str, Any]) -> Sequence[Any]:
    return [*figures.get("seeds", ()), *figures.get("errors", ())]


def curves(summary: Mapping[str, Any]) -> Markup:
    """The best validation score so far against LM tokens, a line for each of the best optimisers."""
    lines = {}
    for name in shown(summary)[:_MOST]:
        corners, scores = mean_curve([*summary["curves"][name].values()], summary["budget"])
        if corners:
            lines[name] = list(zip(corners, scores, strict=True))
    if not lines:
        return Markup("")
    budget = summary["budget"]
    across = scale_over([*(x for line in lines.values() for x, _ in line), budget], _LEFT, _RIGHT, zero=True)
    up = scale_over([y for line in lines.values() for _, y in line], _BOTTOM, _TOP, margin=0.08)
    parts = [*y_axis(up, _LEFT, _RIGHT, "best validation score"), *x_axis(across, _BOTTOM, "LM tokens")]
    parts.append(element("line", class_="axis", x1=across(budget), x2=across(budget), y1=_TOP, y2=_BOTTOM))
    for index, (name, line) in enumerate(lines.items()):
        path = steps([(across(x), up(y)) for x, y in line])
        parts.append(element("path", class_="line", d=path, stroke_dasharray=_DASHES[index]))
        key_y = 40 + 22 * index
        parts.append(
            element("path", class_="line", d=f"M{_RIGHT + 20} {key_y}H{_RIGHT + 56}", stroke_dasharray=_DASHES[index])
        )
        parts.append(element("text", f"{name[:18]} {line[-1][1]:.3f}", x=_RIGHT + 64, y=key_y + 4))
    ends = "; ".join(f"{name} ends at {line[-1][1]:.3f}" for name, line in lines.items())
    return picture("Best validation score so far against LM tokens", ends, _WIDTH, _HEIGHT, *parts)
