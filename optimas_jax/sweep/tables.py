"""The table of a sweep: on the screen while it runs, and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from optimas_jax.report.page.text import interval

COLUMNS = (
    "setting",
    "seeds",
    "before",
    "after",
    "gain",
    "95 % interval",
    "gain by seed",
    "confirmed",
    "search tokens",
    "seconds",
    "remarks",
)


def table_rows(rows: Sequence[Mapping[str, Any]], running: Mapping[str, str] | None = None) -> list[list[str]]:
    """Cells of the table as text.

    Args:
      rows: from ``summary.summarize``.
      running: what the running points do, by name.
    """
    doing = running or {}
    return [_cells(row, "; ".join(doing[name] for name in row["names"] if name in doing)) for row in rows]


def _cells(row: Mapping[str, Any], doing: str) -> list[str]:
    errors = [f"seed {seed} failed: {error.strip().splitlines()[-1]}" for seed, error in row["errors"].items()]
    remarks = "; ".join([*errors, *filter(None, [doing])])
    seeds = f"{len(row['seeds'])}/{row['points']}"
    if "gain" not in row:
        return [row["setting"], seeds, *[""] * (len(COLUMNS) - 3), remarks]
    return [
        row["setting"],
        seeds,
        f"{row['baseline']:.3f}",
        f"{row['optimized']:.3f}",
        f"{row['gain']:+.3f}",
        interval(row["ci95"]),
        ", ".join(f"{gain:+.3f}" for gain in row["gains"]),
        f"{row['confirmed']} of {len(row['seeds'])}",
        f"{row['search_tokens']:,.0f}",
        f"{row['seconds']:,.0f}",
        remarks,
    ]


def filled_columns(cells: Sequence[Sequence[str]]) -> list[int]:
    """Indices of the columns of ``table_rows`` that have any content; the first two always."""
    return [index for index in range(len(COLUMNS)) if index < 2 or any(line[index] for line in cells)]


def table(title: str, rows: Sequence[Mapping[str, Any]], running: Mapping[str, str] | None = None) -> Table:
    """The table for a screen; columns without any content are left out."""
    cells = table_rows(rows, running)
    shown = filled_columns(cells)
    result = Table(title=Text(title), title_justify="left", title_style="bold")
    for index in shown:
        result.add_column(COLUMNS[index], overflow="fold", min_width=14 if COLUMNS[index] == "setting" else None)
    for line in cells:
        result.add_row(*(Text(line[index]) for index in shown))
    return result


def markdown(title: str, rows: Sequence[Mapping[str, Any]], shared: str) -> str:
    """The table in Markdown. ``shared``: a sentence about results that the points shared."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *table_rows(rows)]
    body = "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
    return (
        f"# {title}\n\nScores and gains are on the test split. Intervals are over seeds and questions; with one seed, "
        "over questions alone. Search tokens and seconds are means over seeds; a point that another one has paid for "
        f"takes few.\n\n{body}\n\n{shared}\n"
    )
