"""Blame: which component is likeliest at fault in a run that failed.

Local rewards of different components have different scales. What can be compared are percentiles: how low a
component's local reward is among its own on runs that passed. Where nothing is wrong a percentile u is uniform. Where
the component's output is at fault it is low; behind a fault, where a component reads what is wrong, it is often low,
too. So the lowest percentile alone blames a late component as often as an early one. With the densities of u

    1 where nothing is wrong,   FAULT u^(FAULT - 1) at the fault,   BEHIND u^(BEHIND - 1) behind it

the likelihood that component k is at fault is the density of its own percentile as a fault, times that of every
percentile behind it as behind a fault; all others are uniform. Shares are these likelihoods over their sum, for one
fault and no preference beforehand. Of two percentiles that are both low, the earlier one explains the later one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

FAULT, BEHIND = 0.25, 0.6  # chosen on development seeds (docs/objectives.md)
FEWEST = 8  # scores on passing runs below which a component is not judged
FAILED = -math.inf  # local reward of a call without outputs

Scores = Mapping[str, float]  # of one run: the lowest local reward of each component's calls


@dataclasses.dataclass(frozen=True)
class Blame:
    """What a failing run tells of its components.

    Attributes:
      component: likeliest at fault; "" where that cannot be said.
      shares: of the blame, by component that can be judged, in the order of the run; they add up to 1.
      percentiles: of local rewards among passing runs, by component; None with too few of these.
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


def blame(run: Scores, passing: Sequence[Scores], behind: Mapping[str, Collection[str]]) -> Blame:
    """Which component is likeliest at fault in a run.

    Args:
      run: a failing run, components in the order of their calls.
      passing: runs that passed.
      behind: components that read what a component writes, directly or through others.
    """
    levels = {name: percentile(score, [one[name] for one in passing if name in one]) for name, score in run.items()}
    known = {name: level for name, level in levels.items() if level is not None}
    if len(known) < 2:
        few = max((sum(name in one for one in passing) for name in run), default=0)
        reason = (
            f"too few to say: {few} passing runs, and {FEWEST} are needed"
            if not known
            else "too few to say: one component can be judged"
        )
        return Blame("", {}, levels, reason)
    logs = {name: _log_likelihood(name, known, behind.get(name, ())) for name in known}
    top = max(logs.values())
    weights = {name: math.exp(log - top) for name, log in logs.items()}
    whole = sum(weights.values())
    shares = {name: weight / whole for name, weight in weights.items()}
    return Blame(max(shares, key=lambda name: shares[name]), shares, levels)


def _log_likelihood(name: str, levels: Mapping[str, float], behind: Collection[str]) -> float:
    """Of the percentiles, if the component is at fault."""
    later = [level for other, level in levels.items() if other in behind and other != name]
    return _log_density(levels[name], FAULT) + sum(_log_density(level, BEHIND) for level in later)


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
