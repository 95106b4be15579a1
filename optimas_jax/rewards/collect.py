"""Collect: candidate outputs of a component, each with its Monte Carlo global reward (paper, section 4.1).

The system has been run once per example under the current configuration. A *try* is one way to get another output of
a component on that example's trajectory. For every different output the components that depend on it run again, with
all other outputs kept, and the global metric scores the result. Groups whose candidates all have the same score are
kept, but nothing is learned from them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

from optimas_jax.core.progress import Progress
from optimas_jax.core.running.event_loop import Waiting
from optimas_jax.core.running.execution import gather, global_rewards, rollout_seeds
from optimas_jax.core.running.watch import tell_waits
from optimas_jax.core.schema import NonNegativeFloat, NonNegativeInt, PositiveInt
from optimas_jax.core.system import System
from optimas_jax.core.types import Call, Candidate, Example, Group, Outcome, Trace, derive_seed, digest
from optimas_jax.core.values import (
    Configuration,
    Grid,
    LoraSpace,
    Models,
    PromptSpace,
    Value,
    other_values,
    shows,
    value_digest,
)
from optimas_jax.rewards.pairs import merge_groups

ROLLOUT_TEMPERATURE = 1.0  # at this temperature the sampling distribution is the policy itself

Runs = Sequence[tuple[Example, Trace]]


@dataclasses.dataclass(frozen=True)
class CollectConfig:
    """Numbers of candidates and rollouts.

    Attributes:
      samples: number of candidates sampled from the current value at ``temperature``.
      temperature: sampling temperature of these candidates.
      rollouts: number of Monte Carlo runs of the rest of the system for each candidate.
      other_values: largest number of other values of a component, with one candidate for each. A component with listed
        values is not sampled, and tries ``samples + other_values`` of them.
      policy_samples: number of candidates of a component whose weights are tuned. They are sampled as in its rollouts,
        so that local rewards learn on the distribution that tuning samples from.
    """

    samples: NonNegativeInt = 3
    temperature: NonNegativeFloat = 1.0
    rollouts: PositiveInt = 1
    other_values: NonNegativeInt = 3
    policy_samples: PositiveInt = 6


@dataclasses.dataclass(frozen=True)
class Try:
    """One way to get an output of one call of a component.

    Attributes:
      index: index of the call in ``trace.calls``.
      example: the input of the system.
      trace: the system's run on the example.
      value: value of the component.
      source: see ``Candidate``.
      temperature: replaces the component's own temperature, if not None.
      outputs: outputs of the call, if they are known; else None.
    """

    index: int
    example: Example
    trace: Trace
    value: Value
    source: str
    temperature: float | None = None
    outputs: Mapping | None = None

    @property
    def call(self) -> Call:
        """The call of the run."""
        return self.trace.calls[self.index]


def calls_in(component: str, runs: Runs) -> list[tuple[int, Example, Trace]]:
    """All calls of a component, by their index in the trace."""
    return [(index, example, trace) for example, trace in runs for index in trace.indices(component)]


def current_tries(configuration: Configuration, component: str, runs: Runs) -> list[Try]:
    """The value in use on every input of the component; its outputs are known from the runs."""
    value = configuration[component]
    return [Try(*call, value, "current") for call in calls_in(component, runs)]


def sample_tries(configuration: Configuration, component: str, runs: Runs, count: int, temperature: float) -> list[Try]:
    """``count`` samples of the value in use at ``temperature``, on every input of the component."""
    value = configuration[component]
    calls = calls_in(component, runs)
    return [Try(*call, value, f"sampled:{i}", temperature) for call in calls for i in range(count)]


def value_tries(component: str, runs: Runs, values: Sequence[Value], *, count: int, seed: int) -> list[Try]:
    """Up to ``count`` of the values on every input of the component, drawn anew for every example. A value is not tried
    on an input that is one of its demonstrations."""
    tries = []
    for index, example, trace in calls_in(component, runs):
        fair = [value for value in values if not shows(value, example.id, trace.calls[index].inputs)]
        fair.sort(key=lambda value: derive_seed(seed, "other", example.id, value_digest(value)))
        tries += [Try(index, example, trace, v, f"value:{value_digest(v)}") for v in fair[:count]]
    return tries


def standard_tries(
    system: System, configuration: Configuration, component: str, runs: Runs, config: CollectConfig, seed: int
) -> list[Try]:
    """The value in use, hotter samples of prompts and weights, and listed values of grids and models."""
    space, current = system.by_name[component].space, configuration[component]
    tries = current_tries(configuration, component, runs)
    if isinstance(space, PromptSpace):
        return tries + sample_tries(configuration, component, runs, config.samples, config.temperature)
    if isinstance(space, LoraSpace):
        return tries + sample_tries(configuration, component, runs, config.policy_samples, ROLLOUT_TEMPERATURE)
    listed = other_values(space, current) if isinstance(space, Grid | Models) else []
    return tries + value_tries(component, runs, listed, count=config.samples + config.other_values, seed=seed)


def collect(
    system: System,
    configuration: Configuration,
    tries: Sequence[Try],
    known: Sequence[Group] = (),
    *,
    rollouts: int,
    seed: int,
    concurrency: int,
    progress: Progress,
    label: str = "candidates",
    waiting: Waiting | None = None,
) -> list[Group]:
    """Runs tries, and for every new output the rest of the system, up to the global reward.

    A try runs with ``seed``, as in a run of the system, so that a value gives the same output here as in the race; a
    sample has its own seed. If the component fails, the candidate has no outputs and the failure score. Results depend
    neither on ``concurrency`` nor on other tries.

    Args:
      configuration: values of all other components.
      tries: tries of any components on any inputs.
      known: groups under ``configuration``; their candidates do not run again.
      rollouts: Monte Carlo runs of the rest of the system, per candidate, under the same seeds for all.
      seed: seed of the run.

    Returns:
      ``known`` with the new candidates, then new groups in the order of the tries: one for each call,
      with different candidates. The first try of equal candidates gives the source.
    """
    if not tries:
        return merge_groups(known)
    have = {
        (group.component, group.example_id, group.occurrence, digest(candidate.outputs))
        for group in known
        for candidate in group.candidates
    }
    seeds = rollout_seeds(seed, rollouts)
    rewards: dict[tuple[str, str, int, str], tuple[float, ...]] = {}

    async def follow(attempt: Try) -> tuple[tuple[str, str, int, str], Mapping]:
        answer = await _answer(system, attempt, seed)
        key = (attempt.call.component, attempt.example.id, attempt.call.occurrence, digest(answer.outputs))
        if key not in have:
            have.add(key)
            rewards[key] = await _rewards(system, configuration, attempt, answer, seeds)
        return key, answer.outputs

    calls = [functools.partial(follow, attempt) for attempt in tries]
    waiting = waiting or Waiting(functools.partial(tell_waits, system.watch, progress.line))
    with progress.bar(label, len(tries)) as advance:
        ends = gather(calls, concurrency=concurrency, on_done=advance, waiting=waiting)
    new = [
        Group(
            attempt.call.component,
            attempt.example.id,
            attempt.call.inputs,
            (Candidate(outputs, attempt.source, rewards[key]),),
            configuration.digest,
            attempt.call.occurrence,
        )
        for attempt, (key, outputs) in zip(tries, ends, strict=True)
        if key in rewards
    ]
    return merge_groups([*known, *new])


async def _answer(system: System, attempt: Try, seed: int) -> Call:
    """The call with the candidate's outputs; they are empty if it failed."""
    if attempt.source == "current":
        return attempt.call
    if attempt.outputs is not None:
        return dataclasses.replace(attempt.call, outputs=attempt.outputs, outcome=Outcome.OK, detail="")
    drawn = derive_seed(seed, attempt.source) if attempt.source.startswith("sampled:") else seed
    return await system.run_component(attempt.call, attempt.value, attempt.example, drawn, attempt.temperature)


async def _rewards(
    system: System, configuration: Configuration, attempt: Try, answer: Call, seeds: Sequence[int]
) -> tuple[float, ...]:
    """Global reward of each rollout (paper, Eq. 3). The current output's reward under the run's own seed is known."""
    known = (attempt.trace.reward,) if attempt.source == "current" and attempt.trace.seed == seeds[0] else ()
    new, answers = seeds[len(known) :], {attempt.index: answer}
    return known + await global_rewards(system, configuration, attempt.example, attempt.trace, answers, new)
