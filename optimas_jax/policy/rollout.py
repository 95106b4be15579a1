"""Rollouts of one component's policy: sampled answers as tokens, which an update scores.

The policy answers the component's prompt exactly as in a run of the system, and the component's outputs are scored. All
requests go through the tape.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import random
import statistics
from collections.abc import Sequence
from typing import Protocol

from optimas_jax.core.running.execution import gather
from optimas_jax.core.selection import random_score
from optimas_jax.core.system import System
from optimas_jax.core.types import Call, Example, Outcome, StopRun, Trace, derive_seed
from optimas_jax.core.values import Adapter
from optimas_jax.learn.token_group import TokenGroup
from optimas_jax.llm.base import Completer, Completion, CompletionRequest, Tokens
from optimas_jax.policy.engine import PolicyEngine, Rollout, Update
from optimas_jax.rewards.collect import ROLLOUT_TEMPERATURE
from optimas_jax.rewards.scorer import RewardScorer
from optimas_jax.rewards.text import text_group

Runs = Sequence[tuple[Example, Trace]]  # examples, and the system's runs on them


class Scores(Protocol):
    """Scores of a component's answers."""

    @property
    def label(self) -> str:
        """Name of the score, for messages."""
        ...

    def __call__(self, runs: Runs, answers: Sequence[Sequence[Call]]) -> list[list[float]]:
        """Scores of the component's answers on its input in each run."""
        ...


@dataclasses.dataclass(frozen=True)
class LocalScores:
    """Local rewards of a component's answers; comparable only among answers to one input.

    Attributes:
      system: the component's system.
      rewards: scorer of local rewards.
      reward: name of the local reward.
      name: name of the component.
    """

    system: System
    rewards: RewardScorer
    reward: str
    name: str
    label: str = "local reward"

    def __call__(self, runs: Runs, answers: Sequence[Sequence[Call]]) -> list[list[float]]:
        groups = [
            text_group(self.system, self.name, trace.first(self.name).inputs, [step.outputs for step in steps])
            for (_, trace), steps in zip(runs, answers, strict=True)
        ]
        scores = self.rewards.scores(self.reward, groups)
        return [without_failures(steps, row) for steps, row in zip(answers, scores, strict=True)]


@dataclasses.dataclass(frozen=True)
class RandomScores:
    """Random numbers instead of ``LocalScores`` (``core.selection``).

    Attributes:
      name: name of the component.
      seed: seed of the run.
    """

    name: str
    seed: int
    label: str = "random number"

    def __call__(self, runs: Runs, answers: Sequence[Sequence[Call]]) -> list[list[float]]:
        return [
            without_failures(steps, [random_score(self.seed, self.name, example.id, step.outputs) for step in steps])
            for (example, _), steps in zip(runs, answers, strict=True)
        ]


def without_failures(steps: Sequence[Call], rewards: Sequence[float]) -> list[float]:
    """Local rewards of answers to one prompt; failed answers get at most the lowest reward of the others. Local rewards
    may not have been trained on such answers, which a policy would exploit."""
    worst = min((r for step, r in zip(steps, rewards, strict=True) if step.outcome is Outcome.OK), default=min(rewards))
    return [r if step.outcome is Outcome.OK else min(r, worst) for step, r in zip(steps, rewards, strict=True)]


@dataclasses.dataclass
class _Recording:
    """A completer that requests tokens with each answer, and records them."""

    inner: Completer
    tokens: list[Tokens] = dataclasses.field(default_factory=list)

    async def complete(self, request: CompletionRequest) -> Completion:
        completion = await self.inner.complete(dataclasses.replace(request, tokens=True, top_p=1.0))
        if completion.tokens is None:
            raise StopRun(f"weights are tuned on what was sampled, and a request failed: {completion.detail}")
        self.tokens.append(completion.tokens)
        return completion


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Sampled answers to some training inputs.

    Attributes:
      runs: the inputs, with their runs.
      steps: the component's answers on each input.
      rollout: the answers as tokens; all scores are 0.
    """

    runs: Runs
    steps: Sequence[Sequence[Call]]
    rollout: Rollout


@dataclasses.dataclass(frozen=True)
class ComponentPolicy:
    """``policy.tune.Policy`` for a component.

    Attributes:
      system: the component's system.
      completer: answers the component's requests, with tokens.
      policies: updates weights.
      scores: scores answers.
      name: name of the component.
      runs: training examples with their runs, for updates.
      held_back: examples with their runs, for validation.
      seed: seed of rollouts and updates.
      run_seed: seed of the answers on held-back inputs, as in a run of the system.
      concurrency: answers in flight.
    """

    system: System
    completer: Completer
    policies: PolicyEngine
    scores: Scores
    name: str
    runs: Runs
    held_back: Runs
    seed: int
    run_seed: int
    concurrency: int

    def rollout(self, adapter: str, number: int) -> Sampled:
        """Samples answers to some of the training inputs at ``ROLLOUT_TEMPERATURE``.

        Raises:
          StopRun: for a component that does not call a local model exactly once.
        """
        config, seed = self.policies.config, derive_seed(self.seed, "rollout", number)
        chosen = random.Random(seed).sample(list(self.runs), min(config.prompts, len(self.runs)))
        recordings = [[_Recording(self.completer) for _ in range(config.samples)] for _ in chosen]
        calls = [
            functools.partial(
                self.system.using(recording).run_component,
                trace.first(self.name),
                Adapter(adapter),
                example,
                derive_seed(seed, index),
                ROLLOUT_TEMPERATURE,
            )
            for (example, trace), row in zip(chosen, recordings, strict=True)
            for index, recording in enumerate(row)
        ]
        steps = iter(gather(calls, concurrency=self.concurrency))
        answers = [list(itertools.islice(steps, config.samples)) for _ in chosen]
        tokens = [[self._tokens(recording) for recording in row] for row in recordings]
        groups = [
            TokenGroup(row[0].prompt_ids, tuple(answer.ids for answer in row), (0.0,) * len(row), 0) for row in tokens
        ]
        logprobs = [tuple(p for answer in row for p in answer.logprobs) for row in tokens]
        return Sampled(chosen, answers, Rollout(tuple(groups), tuple(logprobs)))

    def _tokens(self, recording: _Recording) -> Tokens:
        if len(recording.tokens) != 1:
            raise StopRun(
                f"component {self.name!r} made {len(recording.tokens)} answers with tokens in one run: weights can be "
                "tuned where a component asks its model once, and the model is a local one"
            )
        return recording.tokens[0]

    def _finite_scores(self, runs: Runs, answers: Sequence[Sequence[Call]]) -> list[list[float]]:
        scores = self.scores(runs, answers)
        for (example, _), steps, row in zip(runs, answers, scores, strict=True):
            for step, score in zip(steps, row, strict=True):
                if not math.isfinite(score):
                    raise StopRun(
                        f"the {self.scores.label} of an answer of component {self.name!r} on example {example.id!r} is "
                        f"{score}, expected a finite number; the answer is {dict(step.outputs)!r}. The adapter before "
                        "it is kept"
                    )
        return scores

    def update(self, state: str, rollout: Sampled, number: int) -> Update:
        """Scores the answers, and updates the policy on them; see ``PolicyEngine.update``.

        Raises:
          StopRun: also for a score that is not finite.
        """
        scores = self._finite_scores(rollout.runs, rollout.steps)
        groups = [
            dataclasses.replace(group, rewards=tuple(row))
            for group, row in zip(rollout.rollout.groups, scores, strict=True)
        ]
        scored = dataclasses.replace(rollout.rollout, groups=tuple(groups))
        return self.policies.update(state, scored, derive_seed(self.seed, "update", number))

    def kl(self, state: str, rollout: Sampled) -> float:
        """See ``PolicyEngine.kl``."""
        return self.policies.kl(state, rollout.rollout)

    def validate(self, adapter: str) -> float:
        """Mean score of one answer to each held-back input, at the component's temperature."""
        calls = [
            functools.partial(
                self.system.run_component,
                trace.first(self.name),
                Adapter(adapter),
                example,
                self.run_seed,
            )
            for example, trace in self.held_back
        ]
        answers = [[step] for step in gather(calls, concurrency=self.concurrency)]
        return statistics.fmean(score for [score] in self._finite_scores(self.held_back, answers))
