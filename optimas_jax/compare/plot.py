"""The curves of a comparison as a PNG: validation score against tokens."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optimas_jax.compare.state import Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CURVES = 10  # as many as there are colours
_DASHES = ("-", "--", ":", "-.")


def mean_curve(curves: Sequence[Sequence[Point]], budget: int) -> tuple[Sequence[float], Sequence[float]]:
    """Mean over seeds of the best validation score so far, as the corners of a step function of the tokens.

    It begins where every seed has a first score and ends at the budget.

    Args:
      curves: the curve of each seed, up to the budget.
    """
    if not curves or not all(curves):
        return [], []
    first = max(curve[0]["tokens"] for curve in curves)
    corners = sorted({max(point["tokens"], first) for curve in curves for point in curve} | {max(budget, first)})
    scores = [
        statistics.fmean(max(point["val_score"] for point in curve if point["tokens"] <= corner) for curve in curves)
        for corner in corners
    ]
    return corners, scores


def shown(summary: Mapping[str, Any]) -> list[str]:
    """Names of the optimisers to draw: the reference, and the best others by mean test score."""
    means = {name: row["mean"] for name, row in summary["rows"].items() if "mean" in row}
    ranked = sorted(means, key=lambda name: (name != summary["reference"], -means[name]))
    return ranked[:MOST_CURVES]


def draw(summary: Mapping[str, Any]) -> Figure:
    """Best validation score so far against LM tokens, means over seeds, at most ten optimisers; the budget marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    names = shown(summary)
    for index, name in enumerate(names):
        corners, scores = mean_curve([*summary["curves"][name].values()], summary["budget"])
        if corners:
            dashes = _DASHES[index % len(_DASHES)]
            axes.step(corners, scores, where="post", label=name, color=f"C{index}", linestyle=dashes)
    axes.axvline(summary["budget"], color="black", linewidth=1, label="budget")
    axes.set_xlabel("LM tokens")
    axes.set_ylabel("best validation score so far, mean over seeds")
    axes.grid(alpha=0.3)
    total = len(summary["rows"])
    axes.legend(fontsize="small", title=f"{len(names)} of {total} optimisers" if len(names) < total else None)
    axes.set_title(f"Validation score against tokens: {summary['benchmark']}:{summary['variant']}")
    return figure
