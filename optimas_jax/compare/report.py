"""A comparison on paper: a table for the screen, the same in Markdown, and curves as PNG."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from optimas_jax.compare.optimizers import CompareError

COLUMNS = (
    "optimiser",
    "test score",
    "95 % interval",
    "seeds",
    "difference to ours",
    "calls",
    "LM tokens",
    "system runs",
    "USD",
    "seconds",
)


def check_plots() -> None:
    """Raises ``CompareError`` without matplotlib: before anything is spent, not after."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise CompareError(f"curves are drawn by matplotlib ({error}): pip install -e '.[compare]'") from error


def table_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Cells of the table in words, best first; optimisers without a result last, with their errors."""
    rows = []
    baseline = summary["baseline"]
    if baseline is not None:
        rows.append(["before optimisation", f"{baseline['mean']:.3f}", _interval(baseline["ci95"]), *[""] * 7])
    ranked = sorted(summary["rows"].items(), key=lambda item: -item[1].get("mean", float("-inf")))
    for name, row in ranked:
        failed = "; ".join(f"seed {seed} failed: {_short(error)}" for seed, error in row["errors"].items())
        said = "; ".join([*filter(None, [failed]), *(f"seed {seed}: {note}" for seed, note in row["notes"].items())])
        if "mean" not in row:
            rows.append([name, "-", failed, *[""] * 7])
            continue
        difference = row.get("difference")
        rows.append(
            [
                name,
                f"{row['mean']:.3f}",
                _interval(row["ci95"]),
                ", ".join(f"{mean:.3f}" for mean in row["seed_means"]) + (f" ({said})" if said else ""),
                "" if difference is None else f"{difference['mean']:+.3f} {_interval(difference['ci95'])}",
                f"{row['calls']:,.0f}",
                f"{row['tokens']:,.0f}",
                f"{row['system_runs']:,.0f}",
                f"{row['usd']:.2f}",
                f"{row['seconds']:,.0f}",
            ]
        )
    return rows


def title(summary: Mapping[str, Any]) -> str:
    """What was compared, in a line."""
    where = f"{summary['benchmark']}:{summary['variant']}"
    if summary["baseline"] is None:
        return f"{where}: no result"
    means = {name: row["mean"] for name, row in summary["rows"].items() if "mean" in row}
    best = [name for name, mean in means.items() if mean == max(means.values())]
    return (
        f"{where}, {summary['split']} split, n = {summary['n']}, {summary['metric']}, chance {summary['chance']:.2f}; "
        f"{summary['budget']:,} LM tokens each; best mean: {', '.join(best)}"
    )


def markdown(summary: Mapping[str, Any]) -> str:
    """The comparison as a section of a Markdown document."""
    lines = [f"{title(summary)}.", "", *_grid(COLUMNS, table_rows(summary))]
    runs = _runs(summary)
    if runs:
        lines += [
            "",
            "Runs of the system until the validation score is reached that the same optimiser reaches on the global "
            "metric:",
            "",
            *_grid(("optimiser", "seed", "score", "local rewards", "global metric", "ratio"), runs),
        ]
    return "\n".join(lines) + "\n"


def tables(summary: Mapping[str, Any]) -> list[Table]:
    """The same for the screen."""
    found = Table(title=title(summary))
    for column in COLUMNS:
        found.add_column(column, justify="left" if column == "optimiser" else "right")
    for row in table_rows(summary):
        found.add_row(*map(Text, row))
    runs = _runs(summary)
    if not runs:
        return [found]
    needed = Table(title="System runs to reach the score of the same optimiser on the global metric")
    for column in ("optimiser", "seed", "score", "local rewards", "global metric", "ratio"):
        needed.add_column(column, justify="left" if column == "optimiser" else "right")
    for row in runs:
        needed.add_row(*map(Text, row))
    return [found, needed]


def _runs(summary: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            name,
            str(row["seed"]),
            f"{row['val_score']:.3f}",
            "not reached" if row["local"] is None else f"{row['local']:,}",
            "" if row["global"] is None else f"{row['global']:,}",
            "" if row["ratio"] is None else f"{row['ratio']:.2f}",
        ]
        for name, rows in summary["runs_to_reach"].items()
        for row in rows
    ]


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    shown = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in shown]


def _short(error: str) -> str:
    """The last line of an error, which says what it is."""
    lines = error.strip().splitlines() or ["unknown"]
    return lines[-1][:160]


def _interval(bounds: Sequence[float]) -> str:
    return f"[{bounds[0]:.3f}, {bounds[1]:.3f}]"


def mean_curve(curves: Sequence[Sequence[Mapping[str, Any]]], cost: str) -> tuple[list[float], list[float]]:
    """Mean best validation score over seeds against a cost, as the corners of a step function. It begins where every
    seed has a first score."""
    if not curves or not all(curves):
        return [], []
    first = max(curve[0][cost] for curve in curves)
    places = sorted({max(point[cost], first) for curve in curves for point in curve})
    scores = [
        statistics.fmean(max(point["val_score"] for point in curve if point[cost] <= place) for curve in curves)
        for place in places
    ]
    return places, scores


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """Writes a PNG: best validation score against LM tokens, and against runs of the system, means over seeds."""
    check_plots()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    for axes, (cost, label) in zip(
        figure.subplots(1, 2, sharey=True), (("tokens", "LM tokens"), ("system_runs", "system runs")), strict=True
    ):
        for place, (name, by_seed) in enumerate(summary["curves"].items()):
            places, scores = mean_curve([*by_seed.values()], cost)
            if places:
                style = ("-", "--", ":", "-.")[place // 10 % 4]  # colours repeat after ten
                axes.step(places, scores, where="post", label=name, linestyle=style)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("best validation score so far")
    figure.axes[0].legend(fontsize="small")
    figure.suptitle(title(summary))
    partial = path.with_suffix(".partial")
    figure.savefig(partial, format="png", dpi=150)
    partial.replace(path)
