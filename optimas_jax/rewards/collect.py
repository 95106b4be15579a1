"""Collect: candidate outputs per component and input, each with its Monte Carlo global reward (paper, section 4.1).

The system has been run once per example under the current configuration. For every tunable component, candidates for
its output on that example's own trajectory come from the current value, from hotter sampling, and from other values
of its space (weights have none that could be listed: they are sampled more often instead); each is followed through
the components that depend on it, with everything else kept, and scored by the global metric. Duplicates are run once.
Groups whose candidates all score alike are kept (they are data too), but nothing is learned from them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from optimas_jax.core.progress import Progress
from optimas_jax.core.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt
from optimas_jax.core.system import System, gather
from optimas_jax.core.types import Candidate, Example, Group, Trace, derive_seed, digest
from optimas_jax.core.values import (
    Configuration,
    Grid,
    LoraSpace,
    Models,
    Prompt,
    PromptSpace,
    Space,
    Value,
    other_values,
    value_digest,
)

ROLLOUT_TEMPERATURE = 1.0  # the policy that is updated is the one that samples


@dataclasses.dataclass(frozen=True)
class CollectConfig:
    """How groups are made.

    Attributes:
      samples: candidates sampled from the current value at ``temperature``.
      temperature: of those samples.
      rollouts: Monte Carlo runs of what follows, per candidate.
      values: at most this many other values of a component's space, one candidate each. A component whose values are
        listed has nothing to sample, and tries ``samples + values`` of them.
      policy_samples: candidates of a component whose weights are tuned, sampled as its rollouts are: the policy will
        look among these for what the local reward likes.
    """

    samples: NonNegativeInt = 3
    temperature: NonNegativeFloat = 1.0
    rollouts: PositiveInt = 1
    values: NonNegativeInt = 3
    policy_samples: PositiveInt = 6


def collect(
    system: System,
    configuration: Configuration,
    bases: Mapping[str, Sequence[tuple[Example, Trace]]],
    config: CollectConfig,
    *,
    seed: int,
    concurrency: int,
    progress: Progress,
    propose_values: Callable[[str, Sequence[Group]], Sequence[Value]] = lambda name, groups: (),
    instead: Sequence[Value] = (),
) -> list[Group]:
    """Tries candidate outputs, in two rounds.

    The first round tries the current value, hotter samples of it, and the values that grids and model choices list. In
    the second round ``propose_values`` may name more values for a component, having seen what the first one found.

    Args:
      bases: by component, the examples to try it on and their runs under ``configuration``.
      instead: values that are tried in place of all others and of samples.

    Returns:
      The groups with at least two different candidates, in the order of components and then of examples.
    """
    places = [(name, example, trace) for name, runs in bases.items() for example, trace in runs if name in trace.steps]
    found: dict[_Place, dict[str, Candidate]] = {}
    rounds = _Rounds(system, configuration, config, seed, concurrency, progress, found)
    first: list[_Try] = []
    for place in places:
        name, value = place[0], configuration[place[0]]
        first.append(_Try(*place, value, "current", None))
        if instead:
            first += _tries_of_values(place, instead, config.samples + config.values, seed)
            continue
        count, temperature = _sampling(system.by_name[name].space, config)
        first += [_Try(*place, value, f"sampled:{i}", temperature) for i in range(count)]
        first += _tries_of_values(place, _listed_values(system, name, value), config.samples + config.values, seed)
    rounds.run("candidates", first)
    if not instead:
        proposed = {name: propose_values(name, _groups(found, places, name)) for name in bases}
        more = [one for p in places for one in _tries_of_values(p, proposed[p[0]], config.values, seed)]
        rounds.run("more candidates", more)
    groups = [group for name in bases for group in _groups(found, places, name)]
    return [group for group in groups if len(group.candidates) > 1]


_Place = tuple[str, str]  # component, example id


@dataclasses.dataclass(frozen=True)
class _Try:
    """One way to make a candidate output."""

    component: str
    example: Example
    trace: Trace
    value: Value
    source: str
    temperature: float | None


@dataclasses.dataclass(frozen=True)
class _Rounds:
    """Makes candidates and scores them; ``found`` collects them by place and by digest of the outputs."""

    system: System
    configuration: Configuration
    config: CollectConfig
    seed: int
    concurrency: int
    progress: Progress
    found: dict[_Place, dict[str, Candidate]]

    def run(self, label: str, tries: Sequence[_Try]) -> None:
        """Every candidate is followed to its reward as soon as it is made; nothing waits for the slowest."""
        if not tries:
            return
        rewards: dict[tuple[_Place, str], tuple[float, ...]] = {}
        followed: set[tuple[_Place, str]] = set()

        async def follow(one: _Try) -> tuple[_Place, str, Mapping]:
            made = await self._outputs(one)
            place, name = (one.component, one.example.id), digest(made)
            if name not in self.found.get(place, {}) and (place, name) not in followed:
                followed.add((place, name))
                rewards[place, name] = await self._rewards(one, made)
            return place, name, made

        with self.progress.bar(label, len(tries)) as advance:
            calls = [functools.partial(follow, one) for one in tries]
            ends = gather(calls, concurrency=self.concurrency, on_done=advance)
        for one, (place, name, made) in zip(tries, ends, strict=True):
            here = self.found.setdefault(place, {})
            if name not in here:  # of equal candidates the first one tried gives its source
                here[name] = Candidate(made, one.source, rewards[place, name])

    async def _rewards(self, one: _Try, made: Mapping) -> tuple[float, ...]:
        """Global reward of each rollout. Where the component failed nothing follows: the failure score."""
        if not made:
            return (self.system.failure_score,) * self.config.rollouts
        seeds = [self.seed, *(derive_seed(self.seed, "rollout", index) for index in range(1, self.config.rollouts))]
        given = self.system.kept(one.trace, one.component, made)
        async with asyncio.TaskGroup() as group:
            runs = [group.create_task(self.system.run(self.configuration, one.example, seed, given)) for seed in seeds]
        return tuple(run.result().score for run in runs)

    async def _outputs(self, one: _Try) -> Mapping:
        """The candidate's outputs; empty if the component failed, which is a candidate like any other."""
        step = one.trace.steps[one.component]
        if one.source == "current":
            return step.outputs
        seed = derive_seed(self.seed, one.source)
        made = await self.system.run_component(
            one.component, step.inputs, one.value, one.example, seed, one.temperature
        )
        return made.outputs


def _groups(
    found: Mapping[_Place, Mapping[str, Candidate]], places: Sequence[tuple[str, Example, Trace]], name: str
) -> list[Group]:
    """Groups of one component, in the order of the examples."""
    return [
        Group(name, example.id, trace.steps[name].inputs, tuple(found[name, example.id].values()))
        for other, example, trace in places
        if other == name and found.get((name, example.id))
    ]


def _sampling(space: Space | None, config: CollectConfig) -> tuple[int, float]:
    """How many candidates are sampled from the current value, and at which temperature."""
    if isinstance(space, PromptSpace):
        return config.samples, config.temperature
    return (config.policy_samples, ROLLOUT_TEMPERATURE) if isinstance(space, LoraSpace) else (0, 0.0)


def _listed_values(system: System, name: str, current: Value) -> list[Value]:
    space = system.by_name[name].space
    return other_values(space, current) if isinstance(space, Grid | Models) else []


def _tries_of_values(place: tuple[str, Example, Trace], values: Sequence[Value], count: int, seed: int) -> list[_Try]:
    """Up to ``count`` values, another choice for every example when there are more. A prompt whose
    demonstrations include this very input is left out."""
    name, example, trace = place
    inputs = trace.steps[name].inputs
    fair = [v for v in values if not (isinstance(v, Prompt) and any(demo.inputs == inputs for demo in v.demos))]
    fair.sort(key=lambda value: derive_seed(seed, "other", example.id, value_digest(value)))
    return [_Try(*place, value, f"value:{value_digest(value)}", None) for value in fair[:count]]
