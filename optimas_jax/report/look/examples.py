"""Figures of the evaluated examples that several rules need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from optimas_jax.core.stats import sign_flip_test

Row = Mapping[str, Any]
Run = Mapping[str, Any]
Call = Mapping[str, Any]
Calls = Sequence[Sequence[Sequence[Call]]]  # [examples][runs][calls] of one component on one side


def change(rows: Sequence[Row]) -> np.ndarray:
    """[rows] score after minus before, of the same example."""
    return np.array([row["after"]["score"] - row["before"]["score"] for row in rows], np.float64)


def mean_of(row: Row, side: str, measure: Callable[[Run], float]) -> float:
    """Mean of a measure over the runs of an example on one side."""
    runs = row[side]["runs"]
    return sum(measure(run) for run in runs) / len(runs)


def rise(rows: Sequence[Row], measure: Callable[[Run], float]) -> np.ndarray:
    """[rows] a measure of runs, after minus before."""
    return np.array([mean_of(row, "after", measure) - mean_of(row, "before", measure) for row in rows], np.float64)


def above_zero(differences: np.ndarray) -> tuple[float, float]:
    """One-sided p-value that the mean of paired differences is above zero, and the smallest p-value that their number
    allows (``Claim``)."""
    if not len(differences):
        return 1.0, 1.0
    return float(sign_flip_test(differences)), 0.5 ** int(np.count_nonzero(differences))


def calls_in(run: Run) -> list[Call]:
    """The well-formed calls of a run; in older folders, or folders of other programs, calls may lack fields."""
    calls = [call for call in run.get("calls") or () if isinstance(call, Mapping)]
    defaults = {"outcome": "ok", "outputs": {}, "detail": ""}
    return [
        {**defaults, **call}
        for call in calls
        if isinstance(call.get("component"), str) and isinstance(call.get("outputs", {}), Mapping)
    ]


def calls_of(rows: Sequence[Row]) -> dict[str, Mapping[str, Calls]]:
    """Calls by component, ``before`` and ``after``."""
    sides = {side: [[calls_in(run) for run in row[side]["runs"]] for row in rows] for side in ("before", "after")}
    pairs = zip(*sides.values(), strict=True)
    names = dict.fromkeys(call["component"] for pair in pairs for runs in pair for calls in runs for call in calls)
    return {
        name: {
            side: [[[call for call in calls if call["component"] == name] for calls in runs] for runs in examples]
            for side, examples in sides.items()
        }
        for name in names
    }


def call_failed(call: Call) -> bool:
    """Whether a call has another outcome than ``ok``."""
    return call["outcome"] != "ok"


def share_of(calls: Calls, is_so: Callable[[Call], bool]) -> np.ndarray:
    """[examples] share of the runs with a call for which ``is_so`` holds."""
    return np.array([sum(any(map(is_so, run_calls)) for run_calls in runs) / len(runs) for runs in calls], np.float64)


def groups_of(rows: Sequence[Row], key: Callable[[Row], str]) -> dict[str, np.ndarray]:
    """Indices of rows by group; rows whose key is "" are in none."""
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if name := key(row):
            groups.setdefault(name, []).append(index)
    return {name: np.array(indices) for name, indices in groups.items()}
