"""The results of a sweep in one file, to publish and to read again: a line about all, then a line for each point."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.core.folder.files import read_rows
from optimas_jax.sweep.points import EndedPoint, Point
from optimas_jax.sweep.summary import SEARCH, Results

POINTS = "points.jsonl"  # in the folder of a sweep
_KEPT = ("baseline", "optimized", "gain", "confirmed", "wall_seconds", "peak_rss_mb", "error")


def write_results(path: Path, points: Sequence[Point], results: Results, about: Mapping[str, Any]) -> None:
    """Writes the points that ended, with the figures of the tables.

    Args:
      about: ``sweep``, the title; and whatever else is to be known.
    """
    rows = [
        {"point": point.name, "seed": point.seed, "overrides": dict(point.overrides), **_kept(results[point.name])}
        for point in points
        if point.name in results
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in (dict(about), *rows)), encoding="utf-8")


def _kept(result: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: result[name] for name in _KEPT if name in result}
    costs = result.get("ledger", {})
    return {**kept, "ledger": {phase: costs[phase] for phase in SEARCH if phase in costs}}


def read_results(path: Path) -> tuple[list[EndedPoint], Results, dict[str, Any]]:
    """Reads the points of a file, their results, and ``about`` of ``write_results``."""
    about, *rows = read_rows(path)
    points = [EndedPoint(_settings(row["overrides"]), row["point"], row["seed"]) for row in rows]
    return points, {row["point"]: row for row in rows}, about


def _settings(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides as a sweep has them: JSON has no tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in overrides.items()}
