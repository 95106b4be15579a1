"""The weights of one component of a run: its rollouts, their local rewards, and the look at held-back inputs.

The policy answers the component's own prompt, exactly as in a run, and is rewarded by the component's local reward for
what the component made of the answer. All requests go through the tape.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optimas_jax.core.progress import Progress
from optimas_jax.core.system import System, gather
from optimas_jax.core.types import Example, Outcome, Step, StopRun, Trace, derive_seed
from optimas_jax.core.values import Adapter
from optimas_jax.learn.token_group import TokenGroup
from optimas_jax.llm.base import Completer, Completion, CompletionRequest, Tokens
from optimas_jax.policy.engine import PolicyEngine, Rollout
from optimas_jax.policy.tune import Tuned, Update, tune
from optimas_jax.rewards.collect import ROLLOUT_TEMPERATURE
from optimas_jax.rewards.scorer import RewardScorer
from optimas_jax.rewards.text import text_group

_SERVED_DIFFERENCE = 0.5  # nats: what rounding to bfloat16 on another machine makes of a rare token


@dataclasses.dataclass
class _Recording:
    """A completer that asks for tokens as well, and keeps them."""

    inner: Completer
    tokens: list[Tokens] = dataclasses.field(default_factory=list)

    async def complete(self, request: CompletionRequest) -> Completion:
        completion = await self.inner.complete(dataclasses.replace(request, tokens=True, top_p=1.0))
        if completion.tokens is not None:
            self.tokens.append(completion.tokens)
        return completion


@dataclasses.dataclass(frozen=True)
class ComponentPolicy:
    """``policy.tune.Policy`` for a component.

    Attributes:
      system: whose component it is.
      completer: answers the component's requests, with tokens.
      rewards: scores answers.
      policies: updates weights.
      reward: name of the local reward.
      name: the component.
      inputs: training examples with what the component reads there; updates learn from them.
      held_back: others, which updates never see.
      seed: names the randomness of rollouts and updates.
      run_seed: of the answers on held-back inputs, as in a run of the system.
      concurrency: answers in flight.
    """

    system: System
    completer: Completer
    rewards: RewardScorer
    policies: PolicyEngine
    reward: str
    name: str
    inputs: Sequence[tuple[Example, Mapping[str, Any]]]
    held_back: Sequence[tuple[Example, Mapping[str, Any]]]
    seed: int
    run_seed: int
    concurrency: int

    def rollout(self, adapter: str, number: int) -> Rollout:
        config, seed = self.policies.config, derive_seed(self.seed, "rollout", number)
        chosen = random.Random(seed).sample(list(self.inputs), min(config.prompts, len(self.inputs)))
        recordings = [[_Recording(self.completer) for _ in range(config.samples)] for _ in chosen]
        calls = [
            functools.partial(
                self.system.using(recording).run_component,
                self.name,
                inputs,
                Adapter(adapter),
                example,
                derive_seed(seed, place),
                ROLLOUT_TEMPERATURE,
            )
            for (example, inputs), row in zip(chosen, recordings, strict=True)
            for place, recording in enumerate(row)
        ]
        made = gather(calls, concurrency=self.concurrency)
        rows = [made[n * config.samples : (n + 1) * config.samples] for n in range(len(chosen))]
        scores = self.rewards.scores(
            self.reward,
            [
                text_group(self.system, self.name, inputs, [step.outputs for step in row])
                for (_, inputs), row in zip(chosen, rows, strict=True)
            ],
        )
        answers = [[self._tokens(recording) for recording in row] for row in recordings]
        groups = [
            TokenGroup(tokens[0].prompt_ids, tuple(one.ids for one in tokens), tuple(without_failures(row, rewards)), 0)
            for tokens, row, rewards in zip(answers, rows, scores, strict=True)
        ]
        return Rollout(tuple(groups), tuple(tuple(p for one in row for p in one.logprobs) for row in answers))

    def _tokens(self, recording: _Recording) -> Tokens:
        if len(recording.tokens) != 1:
            raise StopRun(
                f"component {self.name!r} made {len(recording.tokens)} answers with tokens in one run: weights can be "
                "tuned where a component asks its model once, and the model is a local one"
            )
        return recording.tokens[0]

    def update(self, state: str, rollout: Rollout, number: int) -> Update:
        return self.policies.update(state, rollout, derive_seed(self.seed, "update", number))

    def kl(self, state: str, rollout: Rollout) -> float:
        return self.policies.kl(state, rollout)

    def validate(self, adapter: str) -> float:
        calls = [
            functools.partial(self.system.run_component, self.name, inputs, Adapter(adapter), example, self.run_seed)
            for example, inputs in self.held_back
        ]
        made = gather(calls, concurrency=self.concurrency)
        groups = [
            text_group(self.system, self.name, inputs, [step.outputs])
            for (_, inputs), step in zip(self.held_back, made, strict=True)
        ]
        return statistics.fmean(score for [score] in self.rewards.scores(self.reward, groups))


def without_failures(steps: Sequence[Step], rewards: Sequence[float]) -> list[float]:
    """Local rewards of answers to one prompt, in which one that the component could not use is worth no more than the
    worst of the others: a local reward may never have seen one that failed, and a policy would find that out."""
    worst = min((r for step, r in zip(steps, rewards, strict=True) if step.outcome is Outcome.OK), default=min(rewards))
    return [r if step.outcome is Outcome.OK else min(r, worst) for step, r in zip(steps, rewards, strict=True)]


def tune_weights(
    system: System,
    completer: Completer,
    rewards: RewardScorer,
    policies: PolicyEngine,
    reward: str,
    name: str,
    current: Adapter,
    runs: Sequence[tuple[Example, Trace]],
    *,
    seed: int,
    run_seed: int,
    concurrency: int,
    progress: Progress,
    emit: Callable[..., None],
) -> Tuned | None:
    """Tunes a component's adapter against its local reward, from the current one on.

    Args:
      reward: name of the local reward.
      runs: training inputs, and the system's runs on them under the current configuration.
      seed, run_seed, concurrency: see ``ComponentPolicy``.
      emit: writes an event to the journal: ``emit(event, **fields)``.

    Returns:
      What was found; None if there are too few inputs to learn from and to hold some back.
    """
    config = policies.config
    reached = [(example, trace.steps[name].inputs) for example, trace in runs if name in trace.steps]
    held_back = int(len(reached) * config.validation)
    if not 0 < held_back < len(reached):
        return None
    random.Random(derive_seed(run_seed, "held back", name)).shuffle(reached)
    policy = ComponentPolicy(
        system,
        completer,
        rewards,
        policies,
        reward,
        name,
        reached[held_back:],
        reached[:held_back],
        seed,
        run_seed,
        concurrency,
    )
    with progress.bar(f"updates ({config.loss.algorithm})", config.updates) as advance:

        def on_update(number: int, update: Update) -> None:
            emit("update", component=name, number=number, adapter=update.adapter, **update.metrics)
            if update.metrics["served_difference"] > _SERVED_DIFFERENCE:
                progress.line(
                    f"  warning: the model that answers and the one that is tuned differ by up to "
                    f"{update.metrics['served_difference']:.2f} nats a token: are they the same weights "
                    "(config.policy.model)?"
                )
            advance()

        def on_validation(number: int, score: float) -> None:
            emit("validation", component=name, number=number, local_score=score)
            progress.line(f"  after {number} updates: mean local reward {score:.3f} on {held_back} held-back inputs")

        start, began = Update(policies.start(current.digest), current.digest, {}), time.monotonic()
        tuned = tune(
            policy,
            start,
            updates=config.updates,
            validate_every=config.validate_every,
            kl_budget=config.kl_budget,
            on_update=on_update,
            on_validation=on_validation,
        )
    emit("tuned", component=name, **dataclasses.asdict(tuned))
    progress.line(
        f"  {tuned.updates} updates in {time.monotonic() - began:.0f} s: mean local reward {tuned.before:.3f} -> "
        f"{tuned.score:.3f}, KL {tuned.kl:.3f} of {config.kl_budget} nats a token"
    )
    return tuned
