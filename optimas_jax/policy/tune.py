"""Tuning the weights of a component: roll out, update, look at held-back inputs, keep the best adapter."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol, TypeVar

Rollout = TypeVar("Rollout")


@dataclasses.dataclass(frozen=True)
class Update:
    """What an update made.

    Attributes:
      state: names it, for the next update to go on from.
      adapter: digest of its adapter.
      metrics: what happened, as plain numbers; ``kl`` is that of the rollout's policy to the reference, ``skipped`` is
        1 where there was nothing to learn.
    """

    state: str
    adapter: str
    metrics: dict[str, float]


class Policy(Protocol[Rollout]):
    """What tuning needs; ``policy.rollout`` has it for a component of a run."""

    def rollout(self, adapter: str, number: int) -> Rollout:
        """Answers sampled with an adapter, with their scores."""
        ...

    def update(self, state: str, rollout: Rollout, number: int) -> Update:
        """One update on a rollout of the policy that ``state`` names."""
        ...

    def kl(self, state: str, rollout: Rollout) -> float:
        """KL of that policy to the reference, in nats a token."""
        ...

    def validate(self, adapter: str) -> float:
        """Mean local reward on the held-back inputs."""
        ...


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What tuning found.

    Attributes:
      adapter: the best one within the KL budget; the one that it started from, if none was better.
      score: its mean local reward on the held-back inputs.
      before: that of the adapter that it started from.
      kl: of its policy to the reference, in nats a token.
      updates: that were made.
    """

    adapter: str
    score: float
    before: float
    kl: float
    updates: int


def tune(
    policy: Policy[Rollout],
    start: Update,
    *,
    updates: int,
    validate_every: int,
    kl_budget: float,
    on_update: Callable[[int, Update], None] = lambda number, update: None,
    on_validation: Callable[[int, float], None] = lambda number, score: None,
) -> Tuned:
    """Updates an adapter as long as its policy stays within ``kl_budget`` of the reference.

    Args:
      start: state and adapter to start from.
      updates: at most.
      validate_every: updates between two looks at the held-back inputs.
    """
    before = policy.validate(start.adapter)
    best, best_score, best_kl, current = start.adapter, before, 0.0, start
    on_validation(0, before)
    for number in range(updates + 1):
        rollout = policy.rollout(current.adapter, number)
        made = None if number == updates else policy.update(current.state, rollout, number)
        kl = policy.kl(current.state, rollout) if made is None else made.metrics["kl"]
        if kl > kl_budget:
            break
        if number == 0:
            best_kl = kl
        # The rollout has just shown that it is within the budget.
        elif number % validate_every == 0 or number == updates:
            score = policy.validate(current.adapter)
            on_validation(number, score)
            if score > best_score:
                best, best_score, best_kl = current.adapter, score, kl
        if made is not None:
            on_update(number, made)
            current = made
    return Tuned(best, best_score, before, best_kl, number)
