"""From cells to figures: scores with intervals, differences on the same examples, and what they cost."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from optimas_jax.compare.optimizers import GLOBAL
from optimas_jax.compare.plan import Cells
from optimas_jax.core.stats import compare, mean_interval

_COSTS = ("calls", "tokens", "usd", "system_runs")
OURS = "ours"


def summarize(cells: Cells, config: Mapping[str, Any], budget: int, reference: str = OURS) -> dict[str, Any]:
    """What ``compare.json`` holds.

    Args:
      cells: of the comparison.
      config: which one, for the record.
      reference: the optimiser that others are compared with, if it takes part.

    Returns:
      ``rows``: for every optimiser its mean test score over seeds and examples with a bootstrap interval over examples,
      every seed's mean and their standard deviation, the paired difference to ``reference`` on the examples and seeds
      that both have, mean costs, and the errors of seeds that failed. ``runs_to_reach``: see ``runs_to_reach``.
    """
    rows = {name: _row(by_seed, cells.get(reference, {}), name != reference) for name, by_seed in cells.items()}
    return {
        **config,
        "budget": budget,
        "reference": reference,
        **_baseline(cells),
        "rows": rows,
        "runs_to_reach": {
            name: runs_to_reach(cells[name], cells[name + GLOBAL]) for name in cells if name + GLOBAL in cells
        },
        "curves": {
            name: {seed: cell["curve"] for seed, cell in _done(by_seed).items()} for name, by_seed in cells.items()
        },
    }


def _done(by_seed: Mapping[int, Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    return {seed: cell for seed, cell in by_seed.items() if "error" not in cell}


def _row(
    by_seed: Mapping[int, Mapping[str, Any]], reference: Mapping[int, Mapping[str, Any]], compared: bool
) -> dict[str, Any]:
    done = _done(by_seed)
    row: dict[str, Any] = {
        "seeds": [*done],
        "errors": {seed: cell["error"] for seed, cell in by_seed.items() if "error" in cell},
        "notes": {seed: cell["note"] for seed, cell in done.items() if cell["note"]},
    }
    if not done:
        return row
    mean, ci95 = mean_interval(over_seeds([cell["scores"] for cell in done.values()]))
    means = [statistics.fmean(cell["scores"]) for cell in done.values()]
    row |= {"mean": mean, "ci95": ci95, "seed_means": means, "seconds": _mean(done, lambda cell: cell["seconds"])}
    row["spread"] = statistics.stdev(means) if len(means) > 1 else None
    for name in _COSTS:
        row[name] = _mean(done, lambda cell, name=name: cell["curve"][-1][name] if cell["curve"] else 0)
    shared = [seed for seed in done if seed in _done(reference)]
    if compared and shared:
        mine = over_seeds([done[seed]["scores"] for seed in shared])
        theirs = over_seeds([reference[seed]["scores"] for seed in shared])
        found = compare(mine, theirs)
        row["difference"] = {"mean": found.mean, "ci95": found.ci95, "p_positive": found.p_positive, "seeds": shared}
    return row


def over_seeds(scores: Sequence[Sequence[float]]) -> list[float]:
    """Mean score of each example over seeds."""
    return [statistics.fmean(column) for column in zip(*scores, strict=True)]


def _mean(cells: Mapping[int, Mapping[str, Any]], read: Any) -> float:
    return statistics.fmean(read(cell) for cell in cells.values())


def _baseline(cells: Cells) -> dict[str, Any]:
    """The system before optimisation: the same for all, so that of the first cell with each seed."""
    first: dict[int, Mapping[str, Any]] = {}
    for by_seed in cells.values():
        for seed, cell in _done(by_seed).items():
            first.setdefault(seed, cell)
    if not first:
        return {"baseline": None}
    one = next(iter(first.values()))
    mean, ci95 = mean_interval(over_seeds([cell["baseline"] for cell in first.values()]))
    known = {name: one[name] for name in ("metric", "chance", "split", "n")}
    return {**known, "baseline": {"mean": mean, "ci95": ci95}}


def reached(curve: Sequence[Mapping[str, Any]], score: float) -> int | None:
    """Runs of the system after which a curve first has this validation score, or None."""
    runs = [point["system_runs"] for point in curve if point["val_score"] >= score - 1e-9]
    return runs[0] if runs else None


def runs_to_reach(
    local: Mapping[int, Mapping[str, Any]], by_metric: Mapping[int, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """For each seed: the best validation score that an optimiser reaches on the global metric, and how many runs of
    the system it takes, with local rewards and on the global metric, to reach it. Seeds in which the global metric
    leads nowhere are left out: there is nothing to reach."""
    rows = []
    for seed, cell in _done(by_metric).items():
        if seed not in _done(local) or not cell["curve"]:
            continue
        score = max(point["val_score"] for point in cell["curve"])
        if score <= cell["curve"][0]["val_score"]:
            continue
        runs = {"local": reached(local[seed]["curve"], score), "global": reached(cell["curve"], score)}
        ratio = runs["local"] / runs["global"] if runs["local"] is not None and runs["global"] else None
        rows.append({"seed": seed, "val_score": score, **runs, "ratio": ratio})
    return rows
