"""Which component to improve next."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from optimas_jax.core.types import Group

KINDS = ("uniform", "gap", "bandit")


def reward_gaps(groups: Sequence[Group], components: Sequence[str]) -> dict[str, float]:
    """Mean distance between the best candidate's reward and the current value's (the first candidate), per component:
    what the component could gain with the rest of the system as it is. 0 without groups."""
    gaps = {}
    for name in components:
        own = [group for group in groups if group.component == name]
        gaps[name] = sum(max(g.rewards) - g.rewards[0] for g in own) / len(own) if own else 0.0
    return gaps


def pick_component(
    kind: str,
    components: Sequence[str],
    gaps: Mapping[str, float],
    gains: Mapping[str, Sequence[float]],
    rng: random.Random,
) -> str:
    """The component of the next iteration.

    Args:
      kind: ``uniform`` (paper, Algorithm 1), ``gap`` (largest gap among the components tried least often) or ``bandit``
        (largest optimistic gain: the gap shrinks with every try, the mean gain so far takes its place).
      components: to choose from.
      gaps: from ``reward_gaps``.
      gains: gain of every try so far, by component (0 for a rejected one).
    """
    if kind == "uniform":
        return rng.choice(list(components))
    if kind == "gap":
        fewest = min(len(gains.get(name, ())) for name in components)
        open_ = [name for name in components if len(gains.get(name, ())) == fewest]
        return max(open_, key=lambda name: gaps.get(name, 0.0))
    if kind == "bandit":
        return max(components, key=lambda name: _optimism(gaps.get(name, 0.0), gains.get(name, ())))
    raise ValueError(f"unknown way to pick a component {kind!r}; known: {', '.join(KINDS)}")


def _optimism(gap: float, gains: Sequence[float]) -> float:
    """Posterior-mean-like estimate: the gap counts as one try, real tries as one each."""
    return (gap + sum(gains)) / (1 + len(gains) ** 1.5)
