"""Rules on measurements beside the score: other metrics, parts of a score, the spread of repeats."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from optimas_jax.report.look.examples import Row, above_zero, rise
from optimas_jax.report.look.finding import Claim, Finding, plain
from optimas_jax.report.page.text import counted, interval
from optimas_jax.report.run_files import RunFiles

_SPREAD = 0.05  # standard deviation between repeats, more than before on average


def metrics_fell(run: RunFiles) -> list[Claim]:
    """Another metric fell."""
    tests = []
    for name, row in ((run.results or {}).get("other_metrics") or {}).items():
        if "ci95" not in row["gain"]:
            continue
        bounds, fell = row["gain"]["ci95"], row["gain"]["mean"] < 0
        before, after = (row[side].get("scores") for side in ("baseline", "optimized"))
        if _are_scores(before) and _are_scores(after) and len(before) == len(after):
            chance = above_zero(np.subtract(before, after))
        else:  # without its scores: beyond the interval, and as sure as its test of a gain says
            chance = (max(1 - row["gain"].get("p_value", 1.0), 1e-4), 1e-4) if bounds[1] < 0 else (1.0, 1.0)
        tests.append(Claim(*chance, partial(_metric_finding, name, row, run) if fell else None, f"metric {name}"))
    return tests


def _are_scores(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(value, int | float) for value in values)


def _metric_finding(name: str, row: Mapping[str, Any], run: RunFiles) -> Finding:
    results = run.results or {}
    before, after = (row[side]["mean"] for side in ("baseline", "optimized"))
    main = results["gain"]["mean"]
    sentence = (
        f"Another metric, {plain(name)}, fell: {before:.3f} to {after:.3f}, 95 % interval of the change "
        f"{interval(row['gain']['ci95'])}, while {plain(results['metric'])} changed by {main:+.3f}."
    )
    return Finding("metric_fell", sentence, "head", 2)


def parts_fell(run: RunFiles) -> list[Claim]:
    """A part of the score that the metric names fell."""
    names = dict.fromkeys(
        name
        for row in run.examples
        for side in ("before", "after")
        for example_run in row[side]["runs"]
        for name, value in _parts(example_run).items()
        if isinstance(value, int | float)
    )
    tests = []
    for name in list(names)[:20]:
        rows = [row for row in run.examples if _has_part(row, name)]
        fall = -rise(rows, partial(_part, name))
        finding = partial(_part_finding, name, rows) if len(fall) and fall.mean() > 0 else None
        tests.append(Claim(*above_zero(fall), finding, f"metric {name}"))
    return tests


def _part_finding(name: str, rows: list[Row]) -> Finding:
    before, after = (
        np.mean([np.mean([_part(name, run) for run in row[side]["runs"]]) for row in rows])
        for side in ("before", "after")
    )
    on = counted(len(rows), "example")
    sentence = f"A part of the score, {plain(name)}, fell: {before:.3f} to {after:.3f} on {on}."
    return Finding("metric_fell", sentence, "head", 2)


def _parts(run: Mapping[str, Any]) -> Mapping[str, Any]:
    parts = run.get("parts")
    return parts if isinstance(parts, Mapping) else {}


def _has_part(row: Row, name: str) -> bool:
    runs = [run for side in ("before", "after") for run in row[side]["runs"]]
    return all(isinstance(_parts(run).get(name), int | float) for run in runs)


def _part(name: str, run: Mapping[str, Any]) -> float:
    return float(run["parts"][name])


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def spread_grew(run: RunFiles) -> list[Claim]:
    """Repeats of the same example differ more in score than before."""
    if not run.examples or min(len(row[side]["runs"]) for row in run.examples for side in ("before", "after")) < 2:
        return []
    before, after = (
        np.array(
            [np.std([_number(example_run.get("score")) for example_run in row[side]["runs"]]) for row in run.examples]
        )
        for side in ("before", "after")
    )
    sentence = (
        f"Repeats of the same example differ more than before: a standard deviation of {after.mean():.3f} on average, "
        f"{before.mean():.3f} before; {int((after > 0).sum())} of {counted(len(after), 'example')} do not always get "
        f"the same score, {int((before > 0).sum())} before."
    )
    finding = partial(Finding, "spread", sentence, "flips", 3) if (after - before).mean() >= _SPREAD else None
    return [Claim(*above_zero(after - before), finding, "spread")]
