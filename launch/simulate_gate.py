"""Simulates the gate: power and examples used on single proposals, and the true final gain of whole searches.

python launch/simulate_gate.py [--searches=1000] [--proposals=12] [--examples=32] [--seed=0]

Prints three tables in Markdown. Rules are the paired gate at several levels, the strict gate of the paper, and an
earlier gate ("before"): it accepts a bootstrap share of positive means of at least 0.8, and gives up below 0.15 after a
quarter of the examples and below 0.3 after half.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
from absl import app, flags

from optimas_jax.core.stats import bootstrap_means, sign_flip_test
from optimas_jax.search.confirm import FINAL_LEVEL
from optimas_jax.search.gate import GateConfig, replay

_SEARCHES = flags.DEFINE_integer("searches", 1000, "Searches (and single proposals) of each setting.", lower_bound=2)
_PROPOSALS = flags.DEFINE_integer("proposals", 12, "Proposals of a search.", lower_bound=1)
_EXAMPLES = flags.DEFINE_integer("examples", 32, "Validation examples.", lower_bound=8)
_SEED = flags.DEFINE_integer("seed", 0, "Seed.")

Rule = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # differences [k, n] -> accepted [k], examples used [k]
LEVELS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
START = 0.4  # expected score of the default configuration
CHANGED = 0.25  # share of the examples whose scores a sparse proposal changes
LABELS, BASE_RUNS = 8, 16  # runs of the system to rank a proposal, and after an accepted change
METRICS = ("continuous", "0/1", "sparse")
MIXES = {  # gain of a proposal -> probability
    "mostly none": {0.0: 0.8, 0.1: 0.2},
    "mostly harmful": {-0.1: 0.6, 0.0: 0.2, 0.1: 0.2},
    "harmful, few large": {-0.05: 0.9, 0.2: 0.1},
    "small": {-0.05: 0.4, 0.0: 0.3, 0.05: 0.3},
    "spread": {-0.2: 0.15, -0.1: 0.25, 0.0: 0.3, 0.05: 0.15, 0.1: 0.1, 0.2: 0.05},
}


def before(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The earlier gate on complete differences [proposals, n]: accepted, examples used."""
    accepted, used = np.zeros(len(differences), bool), np.zeros(len(differences), int)
    running, n = np.arange(len(differences)), differences.shape[-1]
    for stop, futility in ((n // 4, 0.15), (n // 2, 0.3), (n, 0.0)):
        so_far = differences[running, :stop]
        share = np.concatenate([_positive_share(rows) for rows in np.array_split(so_far, 1 + len(so_far) // 200)])
        used[running] = stop
        accepted[running] = (stop == n) & (so_far.mean(-1) > 0) & (share >= 0.8)
        running = running[share >= futility]
    return accepted, used


def _positive_share(rows: np.ndarray) -> np.ndarray:
    means = bootstrap_means(rows)
    return np.mean(means > 1e-12, -1) + 0.5 * np.mean(np.abs(means) <= 1e-12, -1)


RULES: dict[str, Rule] = {
    **{f"paired, level {level}": functools.partial(replay, GateConfig("paired", level)) for level in LEVELS},
    "strict": functools.partial(replay, GateConfig("strict")),
    "before": before,
}


def start_scores(metric: str, quality: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Scores [searches, n] of configurations with the expected scores ``quality`` [searches]."""
    shape = (len(quality), n)
    if metric == "continuous":
        return quality[:, None] + rng.normal(0, 0.2, shape)
    return (rng.random(shape) < quality[:, None]).astype(float)


def propose(
    metric: str, quality: np.ndarray, scores: np.ndarray, gains: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Expected scores [searches] and scores [searches, n] of the configurations after a proposal."""
    noise, draws, touched = rng.normal(0, 0.2, scores.shape), rng.random(scores.shape), rng.random(scores.shape)
    if metric == "continuous":
        return quality + gains, (quality + gains)[:, None] + noise
    share = CHANGED if metric == "sparse" else 1.0
    expected = np.clip(quality + gains / share, 0, 1)  # on the examples that it changes
    return quality + share * (expected - quality), np.where(touched < share, draws < expected[:, None], scores)


def search(
    rule: Rule, metric: str, mix: dict[float, float], searches: int, n: int, seed: int, proposals: int, runs: float
) -> dict[str, np.ndarray]:
    """Whole searches: every proposal is judged against the scores of the configuration accepted so far.

    Args:
      proposals: most proposals of a search.
      runs: budget in runs of the system. A proposal is started only if the whole gate fits; it costs its labels and the
        examples that the gate uses, an accepted change costs new base runs.

    Returns:
      Arrays [searches]: ``gain`` (true final gain), ``confirmed`` (the same, but 0 if as many fresh examples do not
      confirm the final configuration), ``accepted``, ``useless`` (accepted without a true gain), ``below`` (1 if the
      true final gain is negative) and ``examples`` (used by the gate per proposal).
    """
    rng = np.random.default_rng(seed)  # the same draws for every rule
    quality = np.full(searches, START)
    scores = start_scores(metric, quality, 2 * n, rng)  # the gate's examples, then those of the confirmation
    default = scores
    accepted, useless, examples, tried = np.zeros((4, searches))
    for _ in range(proposals):
        spent = tried * LABELS + examples + accepted * BASE_RUNS
        running = spent + LABELS + n <= runs
        if not running.any():
            break
        gains = rng.choice([*mix], size=searches, p=[*mix.values()])
        new_quality, new_scores = propose(metric, quality, scores, gains, rng)
        passed, used = rule((new_scores - scores)[:, :n])
        passed &= running
        accepted, useless = accepted + passed, useless + (passed & (new_quality <= quality))
        examples, tried = examples + used * running, tried + running
        quality, scores = np.where(passed, new_quality, quality), np.where(passed[:, None], new_scores, scores)
    gain = quality - START
    p_values = sign_flip_test((scores - default)[:, n:])
    return {
        "gain": gain,
        "confirmed": gain * (p_values <= FINAL_LEVEL),
        "accepted": accepted,
        "useless": useless,
        "below": (gain < -1e-9).astype(float),
        "examples": examples / tried,
    }


def whole_searches(searches: int, n: int, seed: int, proposals: int) -> tuple[list[list[str]], list[list[str]]]:
    """Rows of the tables of whole searches: means over all settings, and true final gains by metric and by mix."""
    rows, parts = [], []
    budget = proposals * (n + LABELS)
    for name, rule in RULES.items():
        cells, at_budget = {}, []  # with a number of proposals, and with a number of runs
        for i, metric in enumerate(METRICS):
            for j, mix in enumerate(MIXES):
                settings = (rule, metric, MIXES[mix], searches, n, seed + 100 * i + j)
                cells[metric, mix] = search(*settings, proposals=proposals, runs=np.inf)
                at_budget.append(search(*settings, proposals=budget, runs=budget))
        gains = {key: cell["gain"].mean() for key, cell in cells.items()}
        by_metric = [np.mean([gains[metric, mix] for mix in MIXES]) for metric in METRICS]
        by_mix = [np.mean([gains[metric, mix] for metric in METRICS]) for mix in MIXES]
        means = [np.mean([cell[what] for cell in cells.values()]) for what in ("accepted", "useless", "examples")]
        below = np.mean([cell["below"] for cell in cells.values()])
        parts.append([name, *(f"{gain:.3f}" for gain in (*by_metric, *by_mix))])
        rows.append(
            [
                name,
                _mean_and_error([cell["gain"] for cell in cells.values()]),
                _mean_and_error([cell["gain"] for cell in at_budget]),
                _mean_and_error([cell["confirmed"] for cell in at_budget]),
                *(f"{value:.2f}" for value in means),
                f"{below:.1%}",
            ]
        )
    return rows, parts


def _mean_and_error(cells: Sequence[np.ndarray]) -> str:
    """Mean over cells of equal weight, and its standard error."""
    error = np.sqrt(sum(cell.var(ddof=1) / len(cell) for cell in cells)) / len(cells)
    return f"{np.mean(cells):.4f} ± {error:.4f}"


def single_proposals(repetitions: int, n: int, seed: int) -> list[list[str]]:
    """Rows of the table of power and mean examples used, at gains 0 to 0.2 around an expected score of 0.5."""
    rows = []
    for name, rule in RULES.items():
        row = [name]
        for metric in METRICS:
            for gain in (0.0, 0.05, 0.1, 0.2):
                rng = np.random.default_rng(seed)
                quality = np.full(repetitions, 0.5 - gain / 2)
                scores = start_scores(metric, quality, n, rng)
                _, new_scores = propose(metric, quality, scores, np.full(repetitions, gain), rng)
                accepted, used = rule(new_scores - scores)
                row.append(f"{accepted.mean():.3f} ({used.mean():.0f})")
        rows.append(row)
    return rows


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, figures right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: list[str]) -> None:
    """Prints the three tables."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    columns = [f"{metric}, {gain}" for metric in METRICS for gain in (0, 0.05, 0.1, 0.2)]
    print(f"Share accepted (mean examples used of {_EXAMPLES.value}), by metric and true gain\n")
    print(table(["gate", *columns], single_proposals(4 * _SEARCHES.value, _EXAMPLES.value, _SEED.value)))
    settings = (_SEARCHES.value, _EXAMPLES.value, _SEED.value, _PROPOSALS.value)
    rows, parts = whole_searches(*settings)
    columns = ["gain", "equal runs", "confirmed", "accepted", "useless", "examples", "below start"]
    cells = len(METRICS) * len(MIXES)
    print(f"\nWhole searches: {_SEARCHES.value} of {_PROPOSALS.value} proposals in each of {cells} settings\n")
    print(table(["gate", *columns], rows))
    print("\nTrue final gain by metric and by mix of gains\n")
    print(table(["gate", *METRICS, *MIXES], parts))


if __name__ == "__main__":
    app.run(main)
