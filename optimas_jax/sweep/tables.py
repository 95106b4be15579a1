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
    "difference to the first",
    "interval of the difference",
    "confirmed",
    "search tokens",
    "seconds",
    "remarks",
)
CAPTION = (
    "Scores and gains are on the test split. Intervals are 95 %, over seeds and questions; with one seed, over "
    "questions alone. Differences of the score after the search are to the first setting, on the same seeds and "
    "questions; not shown: the interval, or the t interval over seeds, holds zero. "
    "Search tokens and seconds are means over seeds; a point that another one has paid for takes few."
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
    remarks = "; ".join([*errors, *filter(None, [doing, row.get("apart", "")])])
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
        f"{row['difference']:+.3f}" if "difference" in row else "",
        _difference_interval(row),
        f"{row['confirmed']} of {len(row['seeds'])}",
        f"{row['search_tokens']:,.0f}",
        f"{row['seconds']:,.0f}",
        remarks,
    ]


def _difference_interval(row: Mapping[str, Any]) -> str:
    if "difference" not in row:
        return ""
    seeds = "" if row["compared"] == len(row["seeds"]) > 1 else f", {row['compared']} seed{'s' * (row['compared'] > 1)}"
    return interval(row["difference_ci95"]) + seeds + (", not shown" if row["shown"] is False else "")


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
    """The table in Markdown with its title. ``shared``: a sentence about results that the points shared."""
    return f"# {title}\n\n{CAPTION}\n\n{markdown_table(rows)}\n\n{shared}\n"


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table in Markdown; columns without any content are left out."""
    cells = table_rows(rows)
    shown = filled_columns(cells)
    lines = [[line[index] for index in shown] for line in (COLUMNS, ["---"] * len(COLUMNS), *cells)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
