"""Which component to improve next."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from optimas_jax.core.types import Group

KINDS = ("uniform", "gap", "bandit")


def reward_gaps(groups: Sequence[Group], components: Sequence[str]) -> dict[str, float]:
    """Mean distance between the best candidate's reward and the current value's (the first candidate), per component:
    what the component could gain with the rest of the system as it is. 0 without groups of several candidates."""
    gaps = {}
    for name in components:
        own = [group for group in groups if group.component == name and len(group.candidates) > 1]
        gaps[name] = sum(max(g.rewards) - g.rewards[0] for g in own) / len(own) if own else 0.0
    return gaps


def pick_component(
    kind: str,
    components: Sequence[str],
    gaps: Mapping[str, float],
    gains: Mapping[str, Sequence[float]],
    costs: Mapping[str, float],
    rng: random.Random,
) -> str:
    """The component of the next iteration.

    Args:
      kind: ``uniform`` (paper, Algorithm 1), ``gap`` (largest gap per token among the components tried least often) or
        ``bandit`` (largest optimistic gain per token: the gap shrinks with every try, the mean gain so far takes its
        place).
      components: to choose from.
      gaps: from ``reward_gaps``.
      gains: of the validation score, of every try so far, by component; 0 for a rejected one.
      costs: tokens of a run of the system from a component on, which is what a gate repeats and local rewards save.
    """

    def per_token(gain: float, name: str) -> float:
        return gain / max(1.0, costs.get(name, 0.0))

    if kind == "uniform":
        return rng.choice(list(components))
    if kind == "gap":
        fewest = min(len(gains.get(name, ())) for name in components)
        open_ = [name for name in components if len(gains.get(name, ())) == fewest]
        return max(open_, key=lambda name: per_token(gaps.get(name, 0.0), name))
    if kind == "bandit":
        return max(components, key=lambda name: per_token(_optimism(gaps.get(name, 0.0), gains.get(name, ())), name))
    raise ValueError(f"unknown way to pick a component {kind!r}; known: {', '.join(KINDS)}")


def _optimism(gap: float, gains: Sequence[float]) -> float:
    """Posterior-mean-like estimate of a gain: the gap counts as one try, real tries as one each."""
    return (gap + sum(gains)) / (1 + len(gains) ** 1.5)
