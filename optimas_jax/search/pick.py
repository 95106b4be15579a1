"""Which component to improve next."""

from __future__ import annotations

import dataclasses
import random
import statistics
from collections.abc import Mapping, Sequence

from optimas_jax.core.types import Group

KINDS = ("uniform", "gap", "bandit")


@dataclasses.dataclass(frozen=True)
class Try:
    """One proposal that paid for the gate, or an iteration without any.

    Attributes:
      gain: of the validation score; 0 for a rejected one.
      tokens: that it took to propose, rank and gate it.
    """

    gain: float
    tokens: int = 0


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
    tries: Mapping[str, Sequence[Try]],
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
      tries: so far, by component.
      costs: tokens of a run of the system from a component on, which is what a gate repeats and local rewards save.
    """
    if kind == "uniform":
        return rng.choice(list(components))
    if kind == "gap":
        fewest = min(len(tries.get(name, ())) for name in components)
        open_ = [name for name in components if len(tries.get(name, ())) == fewest]
        return max(open_, key=lambda name: gaps.get(name, 0.0) / max(1.0, costs.get(name, 0.0)))
    if kind == "bandit":
        return max(
            components, key=lambda name: _optimism(gaps.get(name, 0.0), tries.get(name, ())) / _cost(name, tries)
        )
    raise ValueError(f"unknown way to pick a component {kind!r}; known: {', '.join(KINDS)}")


def _optimism(gap: float, tries: Sequence[Try]) -> float:
    """Posterior-mean-like estimate of a gain: the gap counts as one try, real tries as one each."""
    return (gap + sum(one.gain for one in tries)) / (1 + len(tries) ** 1.5)


def _cost(name: str, tries: Mapping[str, Sequence[Try]]) -> float:
    """Mean tokens of a try of the component; of one that was never tried, those of all tries; at least 1."""
    own = tries.get(name) or [one for some in tries.values() for one in some]
    return max(1.0, statistics.fmean(one.tokens for one in own)) if own else 1.0
