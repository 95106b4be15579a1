"""Propose: new values for one component, by what its space allows."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from optimas_jax.core.system import Job, gather, run_many
from optimas_jax.core.types import Outcome
from optimas_jax.core.values import (
    Adapter,
    Grid,
    LoraSpace,
    Models,
    PerInstance,
    Prompt,
    PromptSpace,
    Value,
    other_values,
)
from optimas_jax.llm.base import CompletionRequest
from optimas_jax.loop.config import OptimizeConfig
from optimas_jax.loop.context import Run
from optimas_jax.loop.rank import Runs, Screen
from optimas_jax.policy.rollout import tune_weights
from optimas_jax.search.choices import per_instance_value, propose_values
from optimas_jax.search.demos import demo_pool, labelled_demos
from optimas_jax.search.proposers import PROPOSERS, proposer_names
from optimas_jax.search.random_search import draw_values
from optimas_jax.search.task import Effort, PromptTask

if TYPE_CHECKING:
    from optimas_jax.loop.iteration import State

Proposed = list[tuple[str, Value]]  # (kind, value)


def propose(
    run: Run, config: OptimizeConfig, state: State, name: str, runs: Runs, screen: Screen, rng: random.Random, seed: int
) -> Proposed:
    """Values that are not the current one.

    A component that runs as best-of-N keeps doing so: what is proposed is another value to sample from.

    Args:
      runs: training inputs and what the system does on them now.
      screen: scores values, for optimisers that ask.
    """
    current = state.configuration[name]
    best_of = isinstance(current, PerInstance) and len(current.values) == 1
    inner = current.values[0] if isinstance(current, PerInstance) and best_of else current

    def sampled(value: Value) -> Value:
        return dataclasses.replace(current, values=(value,)) if isinstance(current, PerInstance) and best_of else value

    def gains(values: Sequence[Value]) -> list[float]:
        return screen.gains([sampled(value) for value in values])

    space = run.system.by_name[name].space
    if isinstance(space, LoraSpace):
        made = _weights(run, state, screen, name, cast(Adapter, inner), seed)
    elif isinstance(space, Grid | Models):
        made = _listed(config, screen, space, inner, gains, seed)
    else:
        made = _prompts(run, config, state, name, cast(Prompt, inner), runs, gains, rng, seed)
    made = [(kind, sampled(value)) for kind, value in made]
    if config.best_of > 1 and config.score == "local" and not isinstance(current, PerInstance):
        reward = screen.reward([value for _, value in made])
        many = PerInstance((current,), reward, samples=config.best_of, temperature=run.config.collect.temperature)
        made.append(("best_of", many))
    return made


def _weights(run: Run, state: State, screen: Screen, name: str, current: Adapter, seed: int) -> Proposed:
    """The best adapter of a tuning call that starts from the current one; nothing if none is better."""
    train = run.splits["train"]
    with run.progress.bar("training inputs for weights", len(train)) as advance:
        jobs = [Job(state.configuration, example, run.config.seed) for example in train]
        traces = run_many(run.system, jobs, concurrency=run.config.concurrency, on_done=advance)
    tuned = tune_weights(
        run.system,
        run.completer,
        run.engine.scorer,
        run.policies,
        screen.reward(()),
        name,
        current,
        list(zip(train, traces, strict=True)),
        seed=seed,
        run_seed=run.config.seed,
        concurrency=run.config.concurrency,
        progress=run.progress,
        emit=run.folder.emit,
    )
    return [] if tuned is None or tuned.adapter == current.digest else [("weights", Adapter(tuned.adapter))]


def _listed(
    config: OptimizeConfig,
    screen: Screen,
    space: Grid | Models,
    current: Value,
    gains: Callable[[Sequence[Value]], list[float]],
    seed: int,
) -> Proposed:
    """Values of a grid or names of models, and the choice of a model for every input.

    The single values come first: a choice per instance that makes the same outputs as one of them is the dearer one.
    """
    if proposer_names(config.proposers) == ("random",):
        drawn = draw_values(other_values(space, current), config.instructions + config.demo_sets, seed)
        return [("random", value) for value in drawn]
    values = propose_values(space, current, gains, trials=config.trials, seed=seed)
    made: Proposed = [("grid", value) for value in values]
    if config.per_instance != "never" and config.score == "local":
        choice = per_instance_value(space, current, screen.reward(values), config.per_instance)
        if choice is not None and choice != current:
            made.append(("per_instance", choice))
    return made


def _prompts(
    run: Run,
    config: OptimizeConfig,
    state: State,
    name: str,
    current: Prompt,
    runs: Runs,
    gains: Callable[[Sequence[Value]], list[float]],
    rng: random.Random,
    seed: int,
) -> Proposed:
    """What the optimisers of prompts come up with, each on its own."""
    component = run.system.by_name[name]
    assert isinstance(component.space, PromptSpace)

    def ask(requests: Sequence[CompletionRequest]) -> list[str]:
        calls = [functools.partial(run.completer.complete, request) for request in requests]
        answers = gather(calls, concurrency=run.config.concurrency)
        return [answer.text if answer.outcome in (Outcome.OK, Outcome.TRUNCATED) else "" for answer in answers]

    def dropped(reason: str, text: str) -> None:
        run.folder.emit("dropped", component=name, reason=reason, text=text[:200])

    own = [group for group in state.groups if group.component == name]
    task = PromptTask(
        component=component,
        space=component.space,
        current=current,
        runs=runs,
        pool=demo_pool(own, min_reward=config.demo_min_reward),
        labelled=labelled_demos(component, runs),
        history=state.history.get(name, ()),
        proposer=run.config.proposer,
        effort=Effort(**{field.name: getattr(config, field.name) for field in dataclasses.fields(Effort)}),
        seed=seed,
        rng=rng,
        ask=ask,
        gains=gains,
        dropped=dropped,
    )
    made = [one for proposer in proposer_names(config.proposers) for one in PROPOSERS[proposer](task)]
    return [(kind, prompt) for place, (kind, prompt) in enumerate(made) if prompt not in [p for _, p in made[:place]]]
