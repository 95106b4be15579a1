"""The probe stage: a few hundred requests show whether a search can gain anything, and where (``search.probe``)."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from optimas_jax.core.running.execution import Job
from optimas_jax.core.types import Example, StopRun, Trace, derive_seed
from optimas_jax.core.usage import Allowance, Limit, OutOfBudget
from optimas_jax.core.values import (
    Configuration,
    Grid,
    LoraSpace,
    Models,
    Prompt,
    PromptSpace,
    Value,
    other_values,
    value_digest,
)
from optimas_jax.loop.budget import costs_by_role, costs_from
from optimas_jax.loop.config import ProbeConfig, RunConfig
from optimas_jax.loop.context import Host
from optimas_jax.loop.state import Runs, groups_of_runs
from optimas_jax.loop.steps.propose import GLOBAL_SCALE, ask
from optimas_jax.search.optimisers import random_search
from optimas_jax.search.optimisers.demos import demo_pool, labelled_demos, labelled_sets, propose_demos
from optimas_jax.search.optimisers.random_search import draw_values
from optimas_jax.search.optimisers.task import PromptTask, with_own_instruction
from optimas_jax.search.probe import FEWEST, FINALISTS, TELLING, Findings, Floats, Plan, probe

_POOL = 4  # inputs from which demonstrations are taken; nothing is measured on them
_MOST_VALUES = 6  # random values of one component
_FEWEST_SCREENED = 2  # inputs for screening


def run_probe(host: Host, config: RunConfig) -> tuple[Findings, dict[str, Any]]:
    """Probes the default configuration within ``config.probe.tokens``.

    Returns:
      The findings; and ``spent`` tokens, ``iteration_tokens`` (expected tokens of an iteration of a search on the first
      component), and the ``plan``.

    Raises:
      StopRun: if there are too few training examples or tokens for screening, or no component has random values.
    """
    probed = [name for name in host.components if not isinstance(host.system.by_name[name].space, LoraSpace)]
    if not probed:
        raise StopRun(
            f"the probe tries random values, and {', '.join(host.components)} are tuned by weights, which have none: "
            "name others in config.optimize.components in a new --workdir"
        )
    settings, train = config.probe, list(host.splits["train"])
    screen = min(settings.screen, len(train) - _POOL - FEWEST)
    if screen < _FEWEST_SCREENED:
        raise StopRun(
            f"the probe needs {_POOL + _FEWEST_SCREENED + FEWEST} training examples ({_POOL} for demonstrations, "
            f"{_FEWEST_SCREENED} to screen on, {FEWEST} to test), and there are {len(train)}: raise config.data.train, "
            "and lower another split if there are no more"
        )
    settings = dataclasses.replace(settings, screen=screen)
    fresh = len(train) - _POOL - settings.screen
    more = "Raise config.data.train" if fresh < settings.test else "Raise config.probe.tokens and config.probe.test"
    settings = dataclasses.replace(settings, test=min(settings.test, fresh))
    random.Random(derive_seed(host.seed, "probe")).shuffle(train)
    configuration = host.system.default_configuration()
    with host.ledger.limit(Limit(tokens=settings.tokens)) as allowance:
        try:
            pool, costs, repeat = _first_runs(host, configuration, train[:_POOL], allowance)
            from_here = {name: cost for name, cost in costs_from(host, costs).items() if name in probed}
            plan = fitting_plan(settings, sum(costs.values()), from_here, allowance.left.tokens, repeat)
            counts = values_by_cost(plan.values, from_here)
            values = {
                name: random_values(host, config, name, list(zip(train[:_POOL], pool, strict=True)), counts[name])
                for name in probed
            }
            drawn = {name: len(of_component) for name, of_component in values.items() if of_component}
            if not drawn:
                raise StopRun(f"no random value of {', '.join(probed)} could be made: nothing can be probed")
            cells = _Cells(host, configuration, values, train[_POOL:])
            upstream = [name for name in drawn if host.system.descendants(name)]
            findings = probe([*drawn], upstream, drawn, cells.measure, plan, more)
        except OutOfBudget:
            raise StopRun(
                f"config.probe.tokens = {settings.tokens:,} (or config.budget) ends the probe before all components "
                "are screened: raise it, and the same command goes on"
            ) from None
    untried = [name for name in host.components if name not in drawn]
    if untried:
        line = f"{', '.join(untried)}: not tried, without random values"
        findings = dataclasses.replace(findings, advice=(*findings.advice, line))
    return findings, {
        "spent": allowance.used.tokens,
        "iteration_tokens": round(_iteration_tokens(host, config, findings.first, costs, from_here)),
        "plan": dataclasses.asdict(plan),
    }


def _first_runs(
    host: Host, configuration: Configuration, examples: Sequence[Example], allowance: Allowance
) -> tuple[list[Trace], dict[str, float], float]:
    """Runs the system on a few inputs.

    Returns:
      The runs, mean tokens of a run by role, and the share of these tokens that a second run of an input costs.
    """
    traces = host.run("first runs", [Job(configuration, example, host.seed) for example in examples])
    costs = {role: usage.tokens / len(examples) for role, usage in costs_by_role(allowance).items()}
    spent = allowance.used.tokens
    host.run("first runs", [Job(configuration, examples[0], _seed(host, 1))])
    return traces, costs, min(1.0, (allowance.used.tokens - spent) / max(1.0, sum(costs.values())))


def _seed(host: Host, repeat: int) -> int:
    """The seed of a repeat. Each repeat has sampling seeds of its own; the first has the run's."""
    return derive_seed(host.seed, "probe", repeat) if repeat else host.seed


def fitting_plan(
    settings: ProbeConfig, run: float, from_here: Mapping[str, float], left: float, repeat: float = 0.0
) -> Plan:
    """The largest plan that leaves enough for a test; the smallest one where none does.

    Args:
      run: tokens of a run of the system.
      from_here: tokens of a run from each component on.
      left: tokens that may still be used.
      repeat: share of the tokens of a run that its second run costs; 0 where all answers are greedy.
    """
    plan = Plan(settings.random_values, settings.screen, settings.test)
    for values in range(settings.random_values, 0, -1):
        for screen in range(settings.screen, 1, -1):
            plan = Plan(values, screen, settings.test)
            counts = values_by_cost(values, from_here)
            screening = (1 + repeat) * screen * (run + sum(counts[name] * cost for name, cost in from_here.items()))
            finalists = sorted(from_here.values())[-FINALISTS:]
            testing = TELLING * (run + sum(finalists) + max(finalists, default=0.0))
            if screening + testing <= left:
                return plan
    return plan


def values_by_cost(count: int, from_here: Mapping[str, float]) -> dict[str, int]:
    """Number of random values by component: ``count``, and more where a run from the component on costs little."""
    mean = sum(from_here.values()) / max(1, len(from_here))
    shares = {name: round(count * mean / max(1.0, cost)) for name, cost in from_here.items()}
    return {name: min(max(count, share), max(count, _MOST_VALUES)) for name, share in shares.items()}


def random_values(host: Host, config: RunConfig, name: str, runs: Runs, count: int) -> list[Value]:
    """Draws up to ``count`` values of a component; none for weights.

    They are listed values drawn at random, or prompts with demonstrations, labelled and bootstrapped in turn:
    demonstrations change most prompts more than words do. The last of three prompts or more, and prompts for which
    there are no demonstrations, are drawn by ``search.optimisers.random_search``, with an instruction that the proposer
    wrote, if that is usable."""
    component = host.system.by_name[name]
    space, current = component.space, component.default
    assert current is not None  # a tunable component has a default
    seed = derive_seed(host.seed, "probe", name)
    if isinstance(space, Grid | Models):
        return draw_values(other_values(space, current), count, seed)
    if not isinstance(space, PromptSpace):
        return []
    reached = [(example, trace) for example, trace in runs if trace.reaches(name)]
    groups = groups_of_runs(host.system.default_configuration(), reached)
    effort = dataclasses.replace(config.optimize.effort, instructions=count, demo_sets=count)
    task = PromptTask(
        component=component,
        space=space,
        current=with_own_instruction(component, cast(Prompt, current), reached),
        runs=reached,
        pool=demo_pool([group for group in groups if group.component == name], component=component),
        labelled=labelled_demos(component, reached),
        history=(),
        current_score=0.0,
        scale=GLOBAL_SCALE,
        proposer=config.proposer,
        effort=effort,
        seed=seed,
        rng=random.Random(seed),
        ask=functools.partial(ask, host),
        gains=lambda prompts: [0.0] * len(prompts),
    )
    size = min(effort.demo_size, space.max_demos)
    labelled = [Prompt(task.current.instruction, demos) for demos in labelled_sets(task, count)]
    bootstrapped = propose_demos(task.pool, task.current, size=size, count=count, rng=task.rng)
    in_turn = [
        prompt for pair in itertools.zip_longest(labelled, bootstrapped) for prompt in pair if prompt is not None
    ]
    unique = {value_digest(prompt): prompt for prompt in in_turn}
    prompts = list(unique.values())[: count - (count > 2)]
    if len(prompts) < count:
        prompts += [prompt for _, prompt in random_search.propose(task) if prompt not in (*prompts, task.current)]
    return [*prompts[:count]]


@dataclasses.dataclass(frozen=True)
class _Cells:
    """Scores of changed configurations on training inputs.

    Attributes:
      values: random values of each component.
      examples: the inputs, by index.
      bases: runs of the configuration itself, by input and repeat.
    """

    host: Host
    configuration: Configuration
    values: Mapping[str, Sequence[Value]]
    examples: Sequence[Example]
    bases: dict[tuple[int, int], Trace] = dataclasses.field(default_factory=dict)

    def measure(self, changes: Mapping[str, int], inputs: Sequence[int], repeat: int) -> Floats:
        """Scores of a changed configuration on some inputs (``search.probe.Measure``)."""
        host, seed = self.host, _seed(self.host, repeat)
        new = [index for index in inputs if (index, repeat) not in self.bases]
        jobs = [Job(self.configuration, self.examples[index], seed) for index in new]
        traces = host.run("base runs", jobs)
        self.bases.update({(index, repeat): trace for index, trace in zip(new, traces, strict=True)})
        bases = [self.bases[index, repeat] for index in inputs]
        if not changes:
            return np.array([trace.reward for trace in bases])
        configuration = self.configuration
        for name, value in changes.items():
            configuration = configuration.replace(name, self.values[name][value])
        jobs = [
            Job(configuration, self.examples[index], seed, host.system.kept(trace, *changes))
            for index, trace in zip(inputs, bases, strict=True)
        ]
        return np.array([trace.reward for trace in host.run(f"random {', '.join(changes)}", jobs)])


def _iteration_tokens(
    host: Host, config: RunConfig, first: str | None, costs: Mapping[str, float], from_here: Mapping[str, float]
) -> float:
    """Expected tokens of an iteration of a search, on ``first`` or on a mean component: base runs, proposals on half of
    the inputs, labels, and a gate."""
    search = config.optimize
    names = [first] if first else list(from_here)
    call = sum(costs.get(name, 0.0) for name in names) / len(names)
    behind = sum(from_here[name] for name in names) / len(names)
    proposals = search.demo_sets * 4 / 3 + search.instructions
    races = search.inputs * sum(costs.values()) / len(host.components) + proposals * search.inputs / 2 * call
    return races + proposals * search.labels * behind + search.gate_top * len(host.splits["val"]) * behind
