"""Rules that choose the component of the next iteration."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence

from optimas_jax.core.types import Candidate, Group, derive_seed

KINDS = ("uniform", "gap", "bandit")


def reward_gaps(groups: Sequence[Group], components: Sequence[str], configuration: str) -> dict[str, float]:
    """Possible gain of each component with all others unchanged; 0 without usable groups.

    The maximum of several noisy rewards is biased upwards, so one half of the data chooses and the other half measures,
    both ways (cross-fitting). With several Monte Carlo rewards of every candidate, halves of these choose the best
    candidate of an input. With one, halves of the inputs choose the best source of candidates.

    Args:
      groups: groups; those under another configuration, without the current output, or of one candidate are not used.
      components: names of the components.
      configuration: digest of the configuration in use.
    """
    gaps = {}
    for name in components:
        usable = [
            group
            for group in groups
            if group.component == name
            and group.configuration == configuration
            and group.current is not None
            and len(group.candidates) > 1
        ]
        repeated = all(len(candidate.rewards) > 1 for group in usable for candidate in group.candidates)
        gap = (_gap_of_candidates if repeated else _gap_of_sources)(usable) if usable else 0.0
        gaps[name] = max(0.0, gap)
    return gaps


def _gap_of_candidates(groups: Sequence[Group]) -> float:
    """Mean over groups of best minus current reward; the best candidate is chosen on the other half of the rewards."""
    return statistics.fmean(
        _advantage(group, chosen_on=half, measured_on=1 - half) for group in groups for half in (0, 1)
    )


def _advantage(group: Group, *, chosen_on: int, measured_on: int) -> float:
    assert group.current is not None
    best = max(group.candidates, key=lambda candidate: statistics.fmean(candidate.rewards[chosen_on::2]))
    rewards = (statistics.fmean(candidate.rewards[measured_on::2]) for candidate in (best, group.current))
    return next(rewards) - next(rewards)


def _gap_of_sources(groups: Sequence[Group]) -> float:
    """Mean advantage over the current value of the source that is best on the other half of the inputs."""
    names = sorted({group.example_id for group in groups}, key=lambda name: derive_seed("half", name))
    first = set(names[::2])
    halves = [[g for g in groups if (g.example_id in first) == inside] for inside in (True, False)]
    if not all(halves):
        return 0.0
    means = [_mean_advantages(half) for half in halves]
    measured = []
    for chosen_on, measured_on in ((0, 1), (1, 0)):
        best = max(sorted(means[chosen_on]), key=lambda source: means[chosen_on][source])
        measured.append(means[measured_on].get(best, 0.0))
    return statistics.fmean(measured)


def _mean_advantages(groups: Sequence[Group]) -> dict[str, float]:
    """Mean reward minus the current value's reward, by source; on inputs without a candidate of a source the difference
    is 0."""
    totals = {"current": 0.0}
    for group in groups:
        assert group.current is not None
        by_source: dict[str, list[float]] = {}
        for candidate in group.candidates:
            for source in _sources(candidate):
                by_source.setdefault(source, []).append(candidate.reward - group.current.reward)
        for source, advantages in by_source.items():
            totals[source] = totals.get(source, 0.0) + statistics.fmean(advantages)
    return {source: total / len(groups) for source, total in totals.items()}


def _sources(candidate: Candidate) -> set[str]:
    """The candidate's source and its kind: ``current``, ``sampled`` for all hotter samples, ``value`` for all other
    values, each of which may have been tried on few inputs."""
    kind = candidate.source.partition(":")[0]
    return {kind} if kind == "sampled" else {kind, candidate.source}


def pick_component(
    kind: str,
    components: Sequence[str],
    gaps: Mapping[str, float],
    visits: Mapping[str, int],
    gains: Mapping[str, Sequence[float]],
    costs: Mapping[str, float],
    rng: random.Random,
) -> str:
    """The component of the next iteration.

    Args:
      kind: ``uniform`` (paper, Algorithm 1), ``gap`` (largest gap per token among the components visited least often)
        or ``bandit`` (largest upper confidence bound of the gain of a visit, per token; ``upper_bounds``).
      components: components with something new to try.
      gaps: result of ``reward_gaps``.
      visits: iterations that each component has had, with or without a gate.
      gains: gain of the validation score of every accepted proposal, by component.
      costs: tokens of a run of the system from a component on, which a gate repeats for every example.

    Raises:
      ValueError: for another kind, or without components.
    """
    if not components:
        raise ValueError("no component to choose from: every one has nothing new to try")

    def per_token(gain: float, name: str) -> float:
        return gain / max(1.0, costs.get(name, 0.0))

    if kind == "uniform":
        return rng.choice(list(components))
    fewest_first = sorted(components, key=lambda name: visits.get(name, 0))
    if kind == "gap":
        fewest = visits.get(fewest_first[0], 0)
        open_ = [name for name in components if visits.get(name, 0) == fewest]
        return max(open_, key=lambda name: per_token(gaps.get(name, 0.0), name))
    if kind == "bandit":
        bounds = upper_bounds(components, gaps, visits, gains)
        return max(fewest_first, key=lambda name: per_token(bounds[name], name))
    raise ValueError(f"unknown way to pick a component {kind!r}; known: {', '.join(KINDS)}")


def upper_bounds(
    components: Sequence[str],
    gaps: Mapping[str, float],
    visits: Mapping[str, int],
    gains: Mapping[str, Sequence[float]],
) -> dict[str, float]:
    """Upper confidence bounds of the gain of a visit: mean + s sqrt(2 ln N / n) (UCB1; Auer, Cesa-Bianchi and Fischer,
    2002).

    N is the number of all visits, n of the component's. A visit without an accepted proposal gains 0, and the gap
    counts as one more visit. s is the largest gain or gap so far, so that the unit of the metric does not matter.
    """
    scale = max([0.0, *gaps.values(), *(gain for row in gains.values() for gain in row)])
    counts = {name: 1 + visits.get(name, 0) for name in components}
    total = sum(counts.values())
    return {
        name: (gaps.get(name, 0.0) + sum(gains.get(name, ()))) / count + scale * math.sqrt(2 * math.log(total) / count)
        for name, count in counts.items()
    }
