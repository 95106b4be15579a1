"""A comparison as tables: for the screen, and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from optimas_jax.report.page.text import interval

# ``runs worse``: those whose interval of the gain is below zero. Others: ``caption``.
SCORES = (
    "optimiser",
    "test score",
    "95 % interval",
    "seeds",
    "difference to ours",
    "detectable",
    "verdict",
    "gain on confirm",
)
COSTS = (
    "runs below start",
    "runs worse",
    "runs unchanged",
    "validation - test",
    "calls",
    "LM tokens",
    "system runs",
    "USD",
    "seconds",
    "of these local rewards",
)
COLUMNS = (*SCORES, *COSTS)
# On the screen the table is two, so that the first one fits 120 columns.
_SCORES = ("optimiser", "test score", "95 % interval", "difference to ours", "detectable", "gain on confirm")
_COSTS = ("optimiser", *(column for column in COLUMNS if column not in _SCORES))
_COSTS_TITLE = "Seeds and costs, means over seeds"
REACH = ("optimisers", "seed", "score", "local rewards", "global metric", "ratio")
REACH_TITLE = (
    "Runs of the system until the validation score is reached that the same optimiser reaches with the global metric; "
    "one that never reaches it counts with all its runs, and no fewer than the other's. Predicted: the saving if local "
    "rewards save the labelled runs that races would otherwise need, and nothing else"
)


def table_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Cells of the table as text, best mean first; optimisers without a result last, with their errors."""
    rows = []
    baseline = summary["baseline"]
    if baseline is not None:
        cells = ["before optimisation", f"{baseline['mean']:.3f}", interval(baseline["ci95"])]
        rows.append(_padded(cells))
    ranked = sorted(summary["rows"].items(), key=lambda item: -item[1].get("mean", float("-inf")))
    return rows + [
        _result(name, row) if "mean" in row else _padded([name, "-", "", _remarks(row)]) for name, row in ranked
    ]


def _padded(cells: Sequence[str]) -> list[str]:
    return [*cells, *[""] * (len(COLUMNS) - len(cells))]


def _result(name: str, row: Mapping[str, Any]) -> list[str]:
    """The row of an optimiser with at least one seed."""
    remarks = _remarks(row)
    seed_means = ", ".join(f"{mean:.3f}" for mean in row["seed_means"]) + (f" ({remarks})" if remarks else "")
    difference = row.get("difference")
    smallest = difference and difference["smallest"]
    return [
        name,
        f"{row['mean']:.3f}",
        interval(row["ci95"]),
        seed_means,
        _gain(difference),
        "" if smallest is None else f"{smallest:.3f}",
        _verdict(difference),
        _gain(row["confirmed"]),
        f"{row['below_start']:.0%}",
        f"{row['worse']:.0%}",
        f"{row['unchanged']:.0%}",
        "" if row["val_minus_test"] is None else f"{row['val_minus_test']:+.3f}",
        f"{row['calls']:,.0f}",
        f"{row['tokens']:,.0f}",
        f"{row['system_runs']:,.0f}",
        f"{row['usd']:.2f}",
        f"{row['seconds']:,.0f}",
        f"{row['reward_seconds']:,.0f}",
    ]


def _gain(gain: Mapping[str, Any] | None) -> str:
    return "" if gain is None else f"{gain['mean']:+.3f} {interval(gain['ci95'])}"


def _verdict(difference: Mapping[str, Any] | None) -> str:
    """Whether the seeds show the difference, or nothing: one seed has no verdict."""
    if difference is None or difference["smallest"] is None:
        return ""
    if not difference["shown"]:
        return "not shown"
    return "ahead" if difference["mean"] > 0 else "behind"


def _remarks(row: Mapping[str, Any]) -> str:
    """Errors and notes by seed."""
    errors = [f"seed {seed} failed: {_last_line(error)}" for seed, error in row["errors"].items()]
    return "; ".join(errors + [f"seed {seed}: {note}" for seed, note in row["notes"].items()])


def title(summary: Mapping[str, Any]) -> str:
    """What was compared, in one line."""
    task = f"{summary['benchmark']}:{summary['variant']}"
    if summary["baseline"] is None:
        return f"{task}: no result"
    rows = {name: row for name, row in summary["rows"].items() if "mean" in row}
    means = {name: row["mean"] for name, row in rows.items()}
    best = [name for name, mean in means.items() if mean == max(means.values())]
    alike = len({tuple(sorted(row["seeds"])) for row in rows.values()}) == 1
    return (
        f"{task}, {summary['split']} split, n = {summary['n']}, {_seeds(rows)}, {summary['metric']}, chance "
        f"{summary['chance']:.2f}; {summary['budget']:,} LM tokens each"
        + (f"; best mean: {', '.join(best)}" if alike else "; means are over different seeds")
    )


def _seeds(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The number of seeds, and what the intervals cover."""
    counts = [len(row["seeds"]) for row in rows.values()]
    few, most = min(counts), max(counts)
    if most == 1:
        return "1 seed (intervals over examples alone)"
    seeds = f"{most}" if few == most else f"{few} to {most}"
    alone = "; of one seed over examples alone" if few == 1 else ""
    return f"{seeds} seeds (intervals over seeds and examples{alone})"


def caption(summary: Mapping[str, Any]) -> str:
    """How to read the table, in sentences."""
    return (
        "The test score of the state of each search at the budget. Intervals are 95 %, over seeds and examples; of one "
        f"seed over examples alone. Differences to {summary['reference']} are on the examples and seeds that both "
        "have; detectable: the smallest true difference that as many seeds would show, by their means alone; verdict, "
        "for each pair alone: not shown where the interval, or the t interval over seeds, holds zero."
    )


def markdown(summary: Mapping[str, Any]) -> str:
    """The comparison as a section of a Markdown document."""
    lines = [f"{title(summary)}.", "", caption(summary), "", *_grid(COLUMNS, table_rows(summary))]
    runs = reach_rows(summary)
    if runs:
        lines += ["", f"{REACH_TITLE}:", "", *_grid(REACH, runs)]
    return "\n".join(lines) + "\n"


def tables(summary: Mapping[str, Any]) -> list[Table]:
    """The comparison as tables for the screen."""
    rows: list[dict[str, str]] = [dict(zip(COLUMNS, row, strict=True)) for row in table_rows(summary)]
    scores, costs = ([[row[column] for column in columns] for row in rows] for columns in (_SCORES, _COSTS))
    costs = [row for row in costs if any(row[1:])]
    results = [_table(title(summary), _SCORES, scores), _table(_COSTS_TITLE, _COSTS, costs)]
    runs = reach_rows(summary)
    return [*results, _table(REACH_TITLE, REACH, runs)] if runs else results


def _table(heading: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=heading)
    for column in columns:
        table.add_column(column, justify="left" if column == "optimiser" else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def reach_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Cells of the table of runs until a score (columns ``REACH``) as text: for each pair a row for every seed, and one
    for all of them."""
    rows = []
    for pair, reach in summary["runs_to_reach"].items():
        for row in reach["seeds"]:
            runs = "not reached" if row["local"] is None else f"{row['local']:,}"
            figures = [f"{row['val_score']:.3f}", runs, f"{row['global']:,}", f"{row['ratio']:.2f}"]
            rows.append([pair, str(row["seed"]), *figures])
        if reach["ratio"] is not None:
            around = "" if reach["ci95"] is None else f" {interval(reach['ci95'], digits=2)}"
            predicted = "" if reach["predicted"] is None else f"; predicted {reach['predicted']:.2f}"
            missed = sum(row["local"] is None for row in reach["seeds"])
            at_least, note = ("at least ", f"{missed} not reached") if missed else ("", "")
            seeds = f"{len(reach['seeds'])} of {len(summary['rows'][pair.partition(',')[0]]['seeds'])}"
            rows.append([pair, seeds, "", note, "", f"{at_least}{reach['ratio']:.2f}{around}{predicted}"])
    return rows


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    shown = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in shown]


def _last_line(error: str) -> str:
    """The last line of an error, which has its message."""
    lines = error.strip().splitlines() or ["unknown"]
    return lines[-1][:160]
