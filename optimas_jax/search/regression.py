"""The regression check: tests whether a new configuration may replace an old one, on the same examples and seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from optimas_jax.core.stats import Comparison, compare, sign_flip_test
from optimas_jax.core.usage import Usage

LEVEL = 0.05
Unit = Literal["usd", "tokens", "calls"]
_UNITS: tuple[Unit, ...] = ("usd", "tokens", "calls")


@dataclasses.dataclass(frozen=True)
class Decision:
    """Result of the check of a new configuration.

    Attributes:
      passed: whether it passes.
      gain: gain of the new scores over the old ones.
      p_worse: one-sided p-value that the new configuration is worse.
      p_enough: one-sided p-value that the gain is at least ``min_gain``; None without ``min_gain``.
      cost: new cost divided by the old one; None if the old configuration makes no calls.
      priced: unit in which the costs are compared.
      reasons: why it does not pass; empty if it does.
    """

    passed: bool
    gain: Comparison
    p_worse: float
    p_enough: float | None
    cost: float | None
    priced: Unit
    reasons: tuple[str, ...]


def decide(
    new: Sequence[float],
    old: Sequence[float],
    costs: tuple[Usage, Usage],
    *,
    level: float = LEVEL,
    min_gain: float | None = None,
    max_cost: float | None = None,
) -> Decision:
    """Tests paired scores of two configurations by flips of signs (``core.stats``), which is valid at its level on
    scores of any kind, 0 and 1 included.

    Without ``min_gain`` the new configuration fails if it is shown to be worse: two equal systems fail with a
    probability of at most ``level``. With ``min_gain`` it fails unless it is shown to gain at least that. A negative
    ``min_gain`` is an acceptable loss. For a positive or negative ``min_gain`` the level holds to the extent that the
    differences are symmetric around it.

    Args:
      new, old: [n] scores of the same examples.
      costs: costs of the new and of the old configuration (``cost_ratio``).
      max_cost: highest allowed cost of the new configuration, as a multiple of the old one's.

    Raises:
      ValueError: there are no scores, the numbers of new and old scores differ, or the level is no probability.
    """
    if not 0 < level < 1:
        raise ValueError(f"the level is {level}, expected a probability between 0 and 1")
    gain = compare(new, old)
    differences = np.asarray(new, np.float64) - np.asarray(old, np.float64)
    worse, enough = float(p_worse(differences)), None if min_gain is None else float(p_enough(differences, min_gain))
    ratio, priced = cost_ratio(*costs)
    reasons = []
    if enough is None and worse <= level:
        reasons.append(f"it is worse, by {-gain.mean:.3f}")
    if enough is not None and enough > level:
        reasons.append(f"a gain of {min_gain:+g} is not shown, it is {gain.mean:+.3f}")
    if max_cost is not None and ratio is not None and ratio > max_cost:
        reasons.append(f"it costs {ratio:.2f} times as much, and {max_cost:g} is allowed")
    return Decision(not reasons, gain, worse, enough, ratio, priced, tuple(reasons))


def p_worse(differences: ArrayLike) -> np.ndarray:
    """[...] one-sided p-values that new scores are lower, from differences [..., n], new minus old."""
    return sign_flip_test(-np.asarray(differences, np.float64))


def p_enough(differences: ArrayLike, min_gain: float) -> np.ndarray:
    """[...] one-sided p-values that the gain is above ``min_gain``, from differences [..., n], new minus old."""
    return sign_flip_test(np.asarray(differences, np.float64) - min_gain)


def cost_ratio(new: Usage, old: Usage) -> tuple[float | None, Unit]:
    """New cost divided by old cost, in the first of dollars, tokens and calls that both have: for components with their
    own model clients only calls are known."""
    shared: list[Unit] = [unit for unit in _UNITS if getattr(new, unit) > 0 and getattr(old, unit) > 0]
    priced = shared[0] if shared else _UNITS[-1]
    after, before = getattr(new, priced), getattr(old, priced)
    return (after / before if before else None), priced
