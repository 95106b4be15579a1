"""Blame: the component that is most likely at fault in a run that failed.

Each call of a run has measures that are low at a fault: its local reward, and how well its output fits its own input
rather than others. Their scales differ by component, so percentiles are compared: the rank of a measure among the same
measure of the component's calls in runs that passed. Without a fault a percentile u is uniform. At a fault it is low.
Behind a fault, where a component reads wrong inputs, it is often low, too. Therefore the lowest percentile alone blames
a late component as often as an early one. With the densities of u

    1 without a fault,   FAULT u^(FAULT - 1) at the fault,   BEHIND u^(BEHIND - 1) behind it

the likelihood that a call is at fault is the density of its own percentiles at a fault, times the densities of all
percentiles behind it, as if measures were independent; all others are uniform. The likelihood of a component is the
mean over its calls. Shares are likelihoods divided by their sum, for one fault and a uniform prior. Of two low calls,
the earlier one explains the later one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

FAULT, BEHIND = 0.25, 0.5  # chosen on development seeds (docs/objectives.md)
FEWEST = 8  # least number of calls in passing runs to judge a component
FAILED = -math.inf  # every measure of a call without outputs

Measures = tuple[float, ...]  # of one call; low at a fault
Levels = tuple[float, ...]  # percentiles of measures
Scores = Sequence[tuple[str, Measures]]  # (component, its measures) of the calls of one run, in their order


@dataclasses.dataclass(frozen=True)
class Blame:
    """Blame of the components in a failing run.

    Attributes:
      component: name of the component most likely at fault; "" if that is unknown.
      shares: shares of the blame, by component that can be judged, in the order of the run; they add up to 1.
      percentiles: the lowest percentile of each component's calls in any measure; None with too few passing runs, or
        without a measure that differs between calls.
      reason: why the component at fault is unknown, or "".
    """

    component: str
    shares: Mapping[str, float]
    percentiles: Mapping[str, float | None]
    reason: str = ""


def percentile(value: float, passing: Sequence[float]) -> float:
    """Share of ``passing`` values below a value, in (0, 1). Equal values, and the value itself, count half."""
    below, equal = sum(other < value for other in passing), sum(other == value for other in passing)
    return (below + (equal + 1) / 2) / (len(passing) + 1)


def percentiles(measures: Measures, passing: Sequence[Measures]) -> Levels | None:
    """The percentile of each measure of a call among passing calls; None if these are fewer than ``FEWEST``. A measure
    that is the same everywhere says nothing, and is left out."""
    if len(passing) < FEWEST:
        return None
    columns = zip(measures, zip(*passing, strict=True), strict=True)
    return tuple(percentile(value, values) for value, values in columns if set(values) != {value})


def blame(run: Scores, passing: Mapping[str, Sequence[Measures]], behind: Mapping[str, Collection[str]]) -> Blame:
    """Finds the component that is most likely at fault in a run.

    Args:
      run: a run that failed.
      passing: measures of the calls of runs that passed, by component.
      behind: components that read a component's outputs, directly or through others.
    """
    levels = [(name, percentiles(measures, passing.get(name, ()))) for name, measures in run]
    known = [(name, level) for name, level in levels if level is not None]
    by_name: dict[str, list[float]] = {name: [] for name, _ in run}
    for name, level in known:
        by_name[name] += level
    lowest = {name: min(each, default=None) for name, each in by_name.items()}
    judged = list(dict.fromkeys(name for name, _ in known))
    if len(judged) < 2:
        few = max((len(passing.get(name, ())) for name in lowest), default=0)
        why = f"{few} calls in passing runs, and {FEWEST} are needed" if not judged else "one component can be judged"
        return Blame("", {}, lowest, f"too few to say: {why}")
    if not any(level for _, level in known):
        return Blame("", {}, lowest, "no measure differs between calls")
    logs = [_log_likelihood(index, known, behind) for index in range(len(known))]
    top = max(logs)
    of_calls: dict[str, list[float]] = {}
    for (name, _), log in zip(known, logs, strict=True):
        of_calls.setdefault(name, []).append(math.exp(log - top))
    weights = {name: math.fsum(each) / len(each) for name, each in of_calls.items()}
    whole = sum(weights.values())
    shares = {name: weight / whole for name, weight in weights.items()}
    most = max(shares.values())
    first = [name for name, share in shares.items() if math.isclose(share, most)]
    if len(first) > 1:
        return Blame("", shares, lowest, f"{' and '.join(first)} have equal shares of it")
    return Blame(first[0], shares, lowest)


def _log_likelihood(index: int, calls: Sequence[tuple[str, Levels]], behind: Mapping[str, Collection[str]]) -> float:
    """Log likelihood of the percentiles of all calls, if the call at ``index`` is at fault."""
    name, level = calls[index]
    later = [later_level for later_name, later_level in calls[index + 1 :] if later_name in behind.get(name, ())]
    return _log_density(level, FAULT) + sum(_log_density(later_level, BEHIND) for later_level in later)


def _log_density(levels: Levels, exponent: float) -> float:
    """Log density of independent percentiles, each of Beta(exponent, 1)."""
    return sum(math.log(exponent) + (exponent - 1) * math.log(level) for level in levels)


def passes(scores: Sequence[float]) -> list[bool]:
    """Whether each of several runs passed: its score is in the upper half of the range from the lowest to the highest
    score. If all scores are equal, all runs passed."""
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    return [score - low >= high - score for score in scores]


@dataclasses.dataclass(frozen=True)
class Summary:
    """Summary of the blame in several failing runs.

    Attributes:
      passing, failing: numbers of runs.
      first: number of failing runs in which each component is most likely at fault.
      shares: mean share of the blame of each component.
      runs: blame of each failing run, by example.
      reason: why no component can be blamed, or "".
    """

    passing: int
    failing: int
    first: Mapping[str, int]
    shares: Mapping[str, float]
    runs: Mapping[str, Blame]
    reason: str = ""


def summarise(passing: int, runs: Mapping[str, Blame]) -> Summary:
    """Summarises the blame in failing runs.

    Args:
      passing: number of runs that passed.
      runs: blame of each failing run, by example.
    """
    blamed = [run for run in runs.values() if run.component]
    names = list(dict.fromkeys(name for run in runs.values() for name in run.percentiles))
    first = {name: sum(run.component == name for run in blamed) for name in names}
    shares = {name: sum(run.shares.get(name, 0.0) for run in blamed) / len(blamed) for name in names} if blamed else {}
    reason = next((run.reason for run in runs.values() if run.reason), "") if not blamed else ""
    return Summary(passing, len(runs), first, shares, runs, "no run failed" if not runs else reason)
