"""Whole searches without a gain, by the gate and the confirmation that ship."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from optimas_jax.search.confirm import confirm
from optimas_jax.search.gate import GateConfig, replay

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
DRAW: dict[str, Draw] = {
    "continuous": lambda rng, shape: rng.normal(0.5, 0.2, shape),
    "0/1": lambda rng, shape: (rng.random(shape) < 0.4).astype(float),
    "F1": lambda rng, shape: (rng.random(shape) < 0.5) * rng.choice([0.4, 0.5, 2 / 3, 1.0], shape),
}


def changed_scores(draw: Draw, scores: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Scores of a proposal that draws a share of the examples anew and leaves the others."""
    return np.where(rng.random(scores.shape) < share, draw(rng, scores.shape), scores)


def null_searches(
    gate: GateConfig,
    draw: Draw,
    *,
    searches: int = 2000,
    proposals: int = 20,
    val: int = 32,
    confirm_n: int = 32,
    share: float = 1.0,
    seed: int = 0,
) -> tuple[float, float]:
    """Share of searches with an accepted change, and share that ends with anything confirmed.

    Args:
      val, confirm_n: examples of the gate, and of the confirmation, which are others.
      share: of the examples that a proposal changes, of the gate and of the confirmation.
    """
    rng = np.random.default_rng(seed)
    scores, changes = draw(rng, (searches, val)), np.zeros(searches, int)
    for _ in range(proposals):
        new_scores = changed_scores(draw, scores, share, rng)
        accepted, _ = replay(gate, new_scores - scores)
        changes, scores = changes + accepted, np.where(accepted[:, None], new_scores, scores)
    confirmed = 0
    for count in changes:
        states = [draw(rng, (confirm_n,))]
        for _ in range(count):
            states.append(changed_scores(draw, states[-1], share, rng))
        confirmed += confirm(states[0], states[1:]).changes is not None
    return float(np.mean(changes > 0)), confirmed / searches


def at_most(level: float, searches: int = 2000) -> float:
    """The level and two standard errors of its simulation."""
    return level + 2 * float(np.sqrt(level * (1 - level) / searches))
