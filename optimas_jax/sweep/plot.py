"""One picture for each axis of a sweep: mean gain with its interval against the values of the axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optimas_jax.sweep.summary import differing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_LINES = 10  # as many as there are colours


def axes_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Fields that differ between the settings; the first overridden field where none does."""
    overrides = [row["overrides"] for row in rows]
    return differing(overrides) or [path for setting in overrides for path in setting][:1] or ["setting"]


def lines_of(rows: Sequence[Mapping[str, Any]], axis: str) -> dict[str, list[Mapping[str, Any]]]:
    """Rows with a result by the values of all other axes, as text."""
    axes = axes_of(rows)
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if "gain" in row:
            others = {path: value for path, value in row["overrides"].items() if path in axes and path != axis}
            lines.setdefault(", ".join(f"{path}={value}" for path, value in others.items()), []).append(row)
    return lines


def draw(rows: Sequence[Mapping[str, Any]], axis: str) -> Figure:
    """Mean gain on the test split with its 95 % interval, a line for each combination of the other axes (at most
    ten). Numbers stand where they belong on the axis, other values side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    plot = figure.subplots()
    values = {str(value): value for value in (row["overrides"].get(axis, row["setting"]) for row in rows)}
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values.values())
    positions = {text: value if numeric else index for index, (text, value) in enumerate(values.items())}
    lines = lines_of(rows, axis)
    for index, (label, members) in enumerate(list(lines.items())[:_MOST_LINES]):
        x = [positions[str(row["overrides"].get(axis, row["setting"]))] for row in members]
        y = [row["gain"] for row in members]
        errors = [
            [max(row["gain"] - row["ci95"][0], 0.0) for row in members],
            [max(row["ci95"][1] - row["gain"], 0.0) for row in members],
        ]
        style = "-" if numeric else ""
        plot.errorbar(x, y, yerr=errors, fmt=f"o{style}", color=f"C{index}", capsize=4, label=label or None)
    if not numeric:
        plot.set_xticks(range(len(values)), list(values))
    plot.axhline(0, color="black", linewidth=1)
    plot.set_xlabel(axis)
    plot.set_ylabel("gain on the test split, 95 % interval")
    plot.grid(alpha=0.3)
    if len(lines) > 1:
        plot.legend(fontsize="small", title=f"{_MOST_LINES} of {len(lines)}" if len(lines) > _MOST_LINES else None)
    return figure
