"""Tuning the weights of a component: roll out, update, validate on held-back inputs, keep the best adapter."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from optimas_jax.core.folder import events
from optimas_jax.core.progress import Progress
from optimas_jax.core.system import System
from optimas_jax.core.types import derive_seed
from optimas_jax.core.values import Adapter
from optimas_jax.llm.base import Completer
from optimas_jax.policy.engine import PolicyEngine, Update
from optimas_jax.policy.rollout import ComponentPolicy, Runs, Scores

Rollout = TypeVar("Rollout")


class Policy(Protocol[Rollout]):
    """The policy that ``tune`` trains; ``policy.rollout.ComponentPolicy`` implements it."""

    def rollout(self, adapter: str, number: int) -> Rollout:
        """Samples answers with an adapter. They are not scored: KL needs no scores, and scores may cost money."""
        ...

    def update(self, state: str, rollout: Rollout, number: int) -> Update:
        """Scores a rollout of the policy named ``state``, and makes one update on it."""
        ...

    def kl(self, state: str, rollout: Rollout) -> float:
        """KL(policy, reference) of the policy named ``state``, in nats per token."""
        ...

    def validate(self, adapter: str) -> float:
        """Mean score on the held-back inputs."""
        ...


@dataclasses.dataclass(frozen=True)
class Tuned:
    """Result of tuning.

    Attributes:
      adapter: the best adapter within the KL budget; the initial one if none is better.
      score: its mean score on the held-back inputs.
      before: mean score of the initial adapter on the held-back inputs.
      kl: KL(policy, reference) of ``adapter``, in nats per token.
      updates: number of updates.
      learned: number of updates with different scores among the answers of a prompt; others change nothing.
    """

    adapter: str
    score: float
    before: float
    kl: float
    updates: int
    learned: int


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
    """Updates an adapter while KL(policy, reference) is at most ``kl_budget``.

    Args:
      start: initial state and adapter.
      updates: most updates.
      validate_every: updates between validations.
    """
    before = policy.validate(start.adapter)
    best, best_score, best_kl, current, learned = start.adapter, before, 0.0, start, 0
    on_validation(0, before)
    for number in range(updates + 1):
        rollout = policy.rollout(current.adapter, number)
        kl = policy.kl(current.state, rollout)
        if kl > kl_budget:
            break
        if number == 0:
            best_kl = kl
        # Validated only here, where the KL on the rollout above is within the budget.
        elif number % validate_every == 0 or number == updates:
            score = policy.validate(current.adapter)
            on_validation(number, score)
            if score > best_score:
                best, best_score, best_kl = current.adapter, score, kl
        if number < updates:
            current = policy.update(current.state, rollout, number)
            on_update(number, current)
            learned += not current.metrics["skipped"]
    return Tuned(best, best_score, before, best_kl, number, learned)


@dataclasses.dataclass(frozen=True)
class TuningRun:
    """The parts of a run that tuning uses.

    Attributes:
      system, completer, policies, progress: see their classes.
      emit: writes an event to the journal.
      seed: seed of the run.
      concurrency: answers in flight.
    """

    system: System
    completer: Completer
    policies: PolicyEngine
    progress: Progress
    emit: Callable[[events.Event], None]
    seed: int
    concurrency: int


def tune_weights(run: TuningRun, name: str, current: Adapter, runs: Runs, scores: Scores, *, seed: int) -> Tuned | None:
    """Tunes a component's adapter, starting from the current one.

    Args:
      runs: training inputs, and the system's runs on them under the current configuration.
      scores: scores the component's answers: ``policy.rollout.LocalScores`` or ``RandomScores``, or
        ``policy.reinforce.GlobalScores``.
      seed: seed of rollouts and updates.

    Returns:
      The result; None if there are too few inputs to train on some and hold others back.

    Raises:
      StopRun: see ``ComponentPolicy``.
    """
    config, policy = run.policies.config, _component_policy(run, name, runs, scores, seed)
    if policy is None:
        return None
    began = time.monotonic()
    with run.progress.bar(f"updates ({config.loss.algorithm})", config.updates) as advance:

        def on_update(number: int, update: Update) -> None:
            run.emit(events.Update(component=name, number=number, adapter=update.adapter, metrics=update.metrics))
            _warn_of_another_model(run.progress, update)
            advance()

        def on_validation(number: int, score: float) -> None:
            run.emit(events.Validation(component=name, number=number, score=score, score_is=scores.label))
            run.progress.line(
                f"  after {number} updates: mean {scores.label} {score:.3f} on {len(policy.held_back)} held-back inputs"
            )

        tuned = tune(
            policy,
            Update(run.policies.start(current.digest), current.digest, {}),
            updates=config.updates,
            validate_every=config.validate_every,
            kl_budget=config.kl_budget,
            on_update=on_update,
            on_validation=on_validation,
        )
    run.emit(events.Tuned(component=name, **dataclasses.asdict(tuned)))
    run.progress.line(
        f"  {count_updates(tuned)} in {time.monotonic() - began:.0f} s: mean {scores.label} {tuned.before:.3f} -> "
        f"{tuned.score:.3f}, KL {tuned.kl:.3f} of {config.kl_budget} nats a token"
    )
    return tuned


def _component_policy(run: TuningRun, name: str, runs: Runs, scores: Scores, seed: int) -> ComponentPolicy | None:
    """The policy of a component with some inputs held back; None if there are too few."""
    reached = [(example, trace) for example, trace in runs if trace.reaches(name)]
    held_back = int(len(reached) * run.policies.config.validation)
    if not 0 < held_back < len(reached):
        return None
    random.Random(derive_seed(run.seed, "held back", name)).shuffle(reached)
    return ComponentPolicy(
        run.system,
        run.completer,
        run.policies,
        scores,
        name,
        runs=reached[held_back:],
        held_back=reached[:held_back],
        seed=seed,
        run_seed=run.seed,
        concurrency=run.concurrency,
    )


def count_updates(tuned: Tuned) -> str:
    """Text with the number of updates, and the number of those that learned nothing."""
    skipped = tuned.updates - tuned.learned
    if not skipped:
        return f"{tuned.updates} updates"
    return f"{tuned.updates} updates, {skipped} of which learned nothing (all answers of a prompt scored alike),"


def _warn_of_another_model(progress: Progress, update: Update) -> None:
    difference, limit = update.metrics["served_difference"], update.metrics["served_limit"]
    if difference > limit:
        progress.line(
            f"  warning: the model that answers and the one that is tuned differ by up to {difference:.2f} nats a "
            f"token, and rounding explains {limit}: are they the same weights in the same precision "
            "(config.policy.model)?"
        )
