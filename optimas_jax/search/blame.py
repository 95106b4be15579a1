"""Blame: which component is likeliest at fault in a run that failed.

Local rewards of different components have different scales. What can be compared are percentiles: how low a
component's local reward is among its own on runs that passed. Where nothing is wrong a percentile u is uniform. Where
the component's output is at fault it is low; behind a fault, where a component reads what is wrong, it is often low,
too. So the lowest percentile alone blames a late component as often as an early one. With the densities of u

    1 where nothing is wrong,   FAULT u^(FAULT - 1) at the fault,   BEHIND u^(BEHIND - 1) behind it

the likelihood that a call is at fault is the density of its own percentile as a fault, times that of every percentile
behind it as behind a fault; all others are uniform. That of a component is the mean over its calls, and shares are
likelihoods over their sum, for one fault and no preference beforehand. Of two percentiles that are both low, the
earlier one explains the later one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

FAULT, BEHIND = 0.25, 0.75  # chosen on development seeds (docs/objectives.md)
FEWEST = 8  # scores on passing runs below which a component is not judged
FAILED = -math.inf  # local reward of a call without outputs

Scores = Sequence[tuple[str, float]]  # (component, local reward) of the calls of one run, in their order


@dataclasses.dataclass(frozen=True)
class Blame:
    """What a failing run tells of its components.

    Attributes:
      component: likeliest at fault; "" where that cannot be said.
      shares: of the blame, by component that can be judged, in the order of the run; they add up to 1.
      percentiles: the lowest one of each component's calls; None with too few passing runs.
      reason: why nothing can be said, or "".
    """

    component: str
    shares: Mapping[str, float]
    percentiles: Mapping[str, float | None]
    reason: str = ""


def percentile(score: float, passing: Sequence[float]) -> float | None:
    """Share of ``passing`` scores below a score, in (0, 1); equal ones count half, as the score itself does. None for
    fewer than ``FEWEST``."""
    if len(passing) < FEWEST:
        return None
    below, equal = sum(one < score for one in passing), sum(one == score for one in passing)
    return (below + (equal + 1) / 2) / (len(passing) + 1)


def blame(run: Scores, passing: Mapping[str, Sequence[float]], behind: Mapping[str, Collection[str]]) -> Blame:
    """Which component is likeliest at fault in a run.

    Args:
      run: a run that failed.
      passing: local rewards in runs that passed, by component.
      behind: components that read what a component writes, directly or through others.
    """
    levels = [(name, percentile(score, passing.get(name, ()))) for name, score in run]
    known = [(name, level) for name, level in levels if level is not None]
    lowest: dict[str, float | None] = {}
    for name, level in levels:
        lower = [one for one in (lowest.get(name), level) if one is not None]
        lowest[name] = min(lower, default=None)
    judged = list(dict.fromkeys(name for name, _ in known))
    if len(judged) < 2:
        few = max((len(passing.get(name, ())) for name in lowest), default=0)
        why = f"{few} calls in passing runs, and {FEWEST} are needed" if not judged else "one component can be judged"
        return Blame("", {}, lowest, f"too few to say: {why}")
    logs = [_log_likelihood(index, known, behind) for index in range(len(known))]
    top = max(logs)
    of_calls: dict[str, list[float]] = {}
    for (name, _), log in zip(known, logs, strict=True):
        of_calls.setdefault(name, []).append(math.exp(log - top))
    weights = {name: math.fsum(each) / len(each) for name, each in of_calls.items()}
    whole = sum(weights.values())
    shares = {name: weight / whole for name, weight in weights.items()}
    return Blame(max(shares, key=lambda name: shares[name]), shares, lowest)


def _log_likelihood(index: int, calls: Sequence[tuple[str, float]], behind: Mapping[str, Collection[str]]) -> float:
    """Of the percentiles of calls, if the one at ``index`` is at fault."""
    name, level = calls[index]
    later = [other for one, other in calls[index + 1 :] if one in behind.get(name, ())]
    return _log_density(level, FAULT) + sum(_log_density(other, BEHIND) for other in later)


def _log_density(level: float, exponent: float) -> float:
    """Of Beta(exponent, 1)."""
    return math.log(exponent) + (exponent - 1) * math.log(level)


def passes(scores: Sequence[float]) -> list[bool]:
    """Whether each of several runs passed: its score is in the upper half between the lowest and the highest one. All
    passed where all are alike."""
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    return [score - low >= high - score for score in scores]


@dataclasses.dataclass(frozen=True)
class Summary:
    """Blame over the failing ones of several runs.

    Attributes:
      passing, failing: numbers of runs.
      first: number of failing runs in which each component is likeliest at fault.
      shares: mean share of the blame of each component.
      runs: of each failing run, by example.
      reason: why nothing can be said, or "".
    """

    passing: int
    failing: int
    first: Mapping[str, int]
    shares: Mapping[str, float]
    runs: Mapping[str, Blame]
    reason: str = ""


def summarise(passing: int, runs: Mapping[str, Blame]) -> Summary:
    """Blame over failing runs.

    Args:
      passing: number of runs that passed.
      runs: of each failing run, by example.
    """
    said = [one for one in runs.values() if one.component]
    names = list(dict.fromkeys(name for one in runs.values() for name in one.percentiles))
    first = {name: sum(one.component == name for one in said) for name in names}
    shares = {name: sum(one.shares.get(name, 0.0) for one in said) / len(said) for name in names} if said else {}
    reason = next((one.reason for one in runs.values() if one.reason), "") if not said else ""
    return Summary(passing, len(runs), first, shares, runs, "no run failed" if not runs else reason)
