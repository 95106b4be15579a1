"""From cells to figures: scores and paired differences with intervals over seeds and examples, and costs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from optimas_jax.compare.optimizers import GLOBAL
from optimas_jax.compare.plan import Cells
from optimas_jax.compare.state import Point, within
from optimas_jax.core.stats import excludes_zero, interval, mean_interval, ratio_interval, smallest_difference

_COSTS = ("calls", "tokens", "usd", "system_runs")
OURS = "ours"
TWIN = "twin"  # of ``OURS``; the twins of other arms end with ``GLOBAL``
Cell = Mapping[str, Any]


def summarize(cells: Cells, about: Mapping[str, Any], budget: int, reference: str = OURS) -> dict[str, Any]:
    """The content of ``compare.json``.

    Args:
      cells: of the comparison.
      about: benchmark and variant, for the record.
      budget: tokens of each run.
      reference: the optimiser that others are compared with, if it takes part.

    Returns:
      ``rows``: of every optimiser, see ``_row``. ``baseline``: the default configuration, None without any result.
      ``runs_to_reach``: of every optimiser with a twin, see ``runs_to_reach``. ``curves``: by optimiser and seed, up to
      the budget.
    """
    rows = {name: _row(by_seed, cells.get(reference, {}), name != reference) for name, by_seed in cells.items()}
    curves = {
        name: {seed: within(cell["curve"], budget) for seed, cell in _done(by_seed).items()}
        for name, by_seed in cells.items()
    }
    return {
        **about,
        "budget": budget,
        "reference": reference,
        **_baseline(cells),
        "rows": rows,
        "runs_to_reach": {
            f"{name}, {twin}": runs_to_reach(curves[name], curves[twin], _saved(cells[name]))
            for name in cells
            for twin in (name + GLOBAL, *([TWIN] if name == OURS else []))
            if twin in cells
        },
        "curves": curves,
    }


def _done(by_seed: Mapping[int, Cell]) -> dict[int, Cell]:
    return {seed: cell for seed, cell in by_seed.items() if "error" not in cell}


def _row(by_seed: Mapping[int, Cell], reference: Mapping[int, Cell], compared: bool) -> dict[str, Any]:
    """Figures of one optimiser.

    Returns:
      ``seeds``, ``errors`` and ``notes`` by seed; and where a seed has a result: ``mean`` test score with ``ci95`` over
      seeds and examples, ``seed_means``, their standard deviation ``spread``, ``below_start`` (share of runs that end
      below the default configuration on test), ``worse`` (share whose interval of the gain, over examples, is below
      zero), ``unchanged`` (share that end at the default configuration), ``val_minus_test`` (mean over runs),
      ``confirmed`` (gain on the confirm split), mean costs, ``seconds`` and ``reward_seconds``, and the paired
      ``difference`` to the reference on the examples and seeds that both have, with the ``smallest`` true difference
      that as many seeds would show, and whether it is ``shown`` (``stats.excludes_zero``); both None for
      a single seed.
    """
    done = _done(by_seed)
    row: dict[str, Any] = {
        "seeds": [*done],
        "errors": {seed: cell["error"] for seed, cell in by_seed.items() if "error" in cell},
        "notes": {seed: cell["note"] for seed, cell in done.items() if cell["note"]},
    }
    if not done:
        return row
    runs = [*done.values()]
    scores = [run["scores"] for run in runs]
    mean, ci95 = interval(scores)
    seed_means = [statistics.fmean(by_example) for by_example in scores]
    row |= {"mean": mean, "ci95": ci95, "seed_means": seed_means}
    row["spread"] = statistics.stdev(seed_means) if len(seed_means) > 1 else None
    row["below_start"] = _mean(runs, lambda run: statistics.fmean(run["scores"]) < statistics.fmean(run["baseline"]))
    row["worse"] = _mean(runs, lambda run: mean_interval(np.subtract(run["scores"], run["baseline"]))[1][1] < 0)
    row["unchanged"] = _mean(runs, lambda run: run["unchanged"])
    row["val_minus_test"] = _val_minus_test(runs)
    row["confirmed"] = _confirmed(runs)
    for name in _COSTS:
        known = [run["curve"][-1][name] for run in runs if run["curve"]]
        row[name] = statistics.fmean(known) if known else 0.0
    for name in ("seconds", "reward_seconds"):
        row[name] = _mean(runs, lambda run, name=name: run[name])
    shared = [seed for seed in done if seed in _done(reference)]
    if compared and shared:
        row["difference"] = _difference([done[seed] for seed in shared], [reference[seed] for seed in shared], shared)
    return row


def _difference(runs: Sequence[Cell], reference: Sequence[Cell], seeds: Sequence[int]) -> dict[str, Any]:
    """Paired difference of two optimisers with the same seeds, example by example."""
    differences = np.asarray([run["scores"] for run in runs]) - np.asarray([run["scores"] for run in reference])
    mean, ci95 = interval(differences.tolist())
    several = len(seeds) > 1
    smallest, shown = (smallest_difference(differences), excludes_zero(differences)) if several else (None, None)
    return {"mean": mean, "ci95": ci95, "smallest": smallest, "shown": shown, "seeds": [*seeds]}


def _confirmed(runs: Sequence[Cell]) -> dict[str, Any] | None:
    """Gain over the default configuration on the confirm split, which no search has seen; None without the split."""
    if not all(run["confirm"] for run in runs):
        return None
    gains = [np.subtract(run["confirm"]["scores"], run["confirm"]["baseline"]).tolist() for run in runs]
    mean, ci95 = interval(gains)
    return {"mean": mean, "ci95": ci95, "n": len(gains[0])}


def _val_minus_test(runs: Sequence[Cell]) -> float | None:
    """How much better the validation score was than the test score, of runs that have one."""
    gaps = [
        run["tested"]["val_score"] - statistics.fmean(run["scores"])
        for run in runs
        if run["tested"]["val_score"] is not None
    ]
    return statistics.fmean(gaps) if gaps else None


def _mean(runs: Sequence[Cell], read: Callable[[Cell], float]) -> float:
    return statistics.fmean(read(run) for run in runs)


def _baseline(cells: Cells) -> dict[str, Any]:
    """The system before optimisation: the same for all optimisers, read from the first cell with each seed."""
    first: dict[int, Cell] = {}
    for by_seed in cells.values():
        for seed, cell in _done(by_seed).items():
            first.setdefault(seed, cell)
    if not first:
        return {"baseline": None}
    mean, ci95 = interval([cell["baseline"] for cell in first.values()])
    first_cell = next(iter(first.values()))
    about = {name: first_cell[name] for name in ("metric", "chance", "split", "n")}
    return {**about, "baseline": {"mean": mean, "ci95": ci95}}


def reached(curve: Sequence[Point], score: float) -> int | None:
    """Runs of the system after which a curve first has this validation score, or None."""
    runs = [point["system_runs"] for point in curve if point["val_score"] >= score - 1e-9]
    return runs[0] if runs else None


def runs_to_reach(
    local: Mapping[int, Sequence[Point]],
    by_metric: Mapping[int, Sequence[Point]],
    saved: Mapping[int, float] | None = None,
) -> dict[str, Any]:
    """Runs of the system until a validation score, with local rewards and with the global metric.

    For each seed the score is the best that the optimiser reaches with the global metric. Seeds whose best score is not
    above the start are left out. A search that never reaches the score counts with all its runs, and with no fewer than
    the other took.

    Args:
      local, by_metric: curves by seed.
      saved: by seed, the further runs that races would need without local rewards for the same precision.

    Returns:
      ``seeds``: a row for each seed, with runs (``local`` is None for a score that is never reached) and their ratio.
      ``ratio``: geometric mean over seeds, ``ci95`` its interval; None without a seed. ``predicted``: the same mean of
      runs / (runs + saved).
    """
    rows, predicted = [], []
    for seed, curve in by_metric.items():
        if seed not in local or not curve or not local[seed]:
            continue
        score = max(point["val_score"] for point in curve)
        if score <= curve[0]["val_score"]:
            continue
        first, needed = reached(local[seed], score), max(reached(curve, score) or 0, 1)
        runs = max(local[seed][-1]["system_runs"], needed) if first is None else max(first, 1)
        rows.append({"seed": seed, "val_score": score, "local": first, "global": needed, "ratio": runs / needed})
        if saved and seed in saved:
            predicted.append(runs / (runs + saved[seed]))
    ratio, ci95 = ratio_interval([row["ratio"] for row in rows]) if rows else (None, None)
    return {
        "seeds": rows,
        "ratio": ratio,
        "ci95": ci95,
        "predicted": ratio_interval(predicted)[0] if predicted else None,
    }


def _saved(by_seed: Mapping[int, Cell]) -> dict[int, float]:
    """Labelled runs that races would need without local rewards for the same precision, less those that they took."""
    return {
        seed: sum(use["effective_runs"] - use["labelled_runs"] for use in cell["label_use"].values())
        for seed, cell in _done(by_seed).items()
        if cell["label_use"]
    }
