"""Optimise: improve one component at a time against its local reward, keep what the global score confirms (paper,
Algorithm 1).

One iteration: pick a component; adapt its local reward if it is due; propose values; rank them by mean local reward on
training inputs; let the best few pay for the gate on validation examples. As in the paper, the best proposal pays
whether or not it beats the current value locally: a local reward that is wrong about what it has not seen costs one
gate, and does not hide the proposal for good.

Deviations of ``improved`` mode from the paper: see ``MODES``; and in both modes the best proposal of each kind comes
before the second best of any, a proposal whose outputs are those of another or of the current value is dropped, and
everything is paired by example and seed.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from optimas_jax.core.render import ScoredInstruction
from optimas_jax.core.system import Job, gather, run_many
from optimas_jax.core.types import Example, Group, Trace, derive_seed
from optimas_jax.core.values import (
    Adapter,
    Configuration,
    Grid,
    LoraSpace,
    Models,
    Prompt,
    PromptSpace,
    Value,
    value_digest,
    value_to_json,
)
from optimas_jax.loop.adapt import adapt, is_due
from optimas_jax.loop.config import OptimizeConfig
from optimas_jax.loop.local_reward import text_group
from optimas_jax.loop.run import Run
from optimas_jax.loop.weights import tune_weights
from optimas_jax.search.choices import other_values
from optimas_jax.search.demos import demo_pool, propose_demos
from optimas_jax.search.gate import Comparison, accepts, compare, is_futile
from optimas_jax.search.pick import pick_component, reward_gaps
from optimas_jax.search.prompts import opro_requests, propose_instructions

MODES: Mapping[str, Mapping[str, Any]] = {
    "paper": {"pick": "uniform", "adapt": "after_accept", "pairs": "two", "gate": "strict"},
    "improved": {"pick": "gap", "adapt": "on_drift", "pairs": "all", "gate": "paired"},
}


def resolve_mode(config: OptimizeConfig) -> OptimizeConfig:
    """Fills in the switches that were left to the mode."""
    bundle = MODES[config.mode]
    switches = {name: getattr(config, name) or bundle[name] for name in ("pick", "adapt", "pairs")}
    gate = dataclasses.replace(config.gate, kind=config.gate.kind or bundle["gate"])
    return dataclasses.replace(config, **switches, gate=gate)


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A candidate value of one component with its local evidence.

    Attributes:
      local_gain: mean local reward minus that of the current value, on the same inputs.
      local_score: mean local reward.
    """

    value: Value
    kind: str
    local_gain: float
    local_score: float


@dataclasses.dataclass(frozen=True)
class State:
    """What an iteration changes.

    Attributes:
      configuration: accepted so far.
      reward: name of the local reward.
      groups: all groups so far.
      val_traces: validation runs under ``configuration``.
      accepted: a summary of each accepted proposal.
      gains: validation gain of every try, by component.
      history: scored instructions by component.
      stale: components whose groups were made under another configuration.
    """

    configuration: Configuration
    reward: str
    groups: tuple[Group, ...]
    val_traces: tuple[Trace, ...]
    accepted: tuple[Mapping[str, Any], ...] = ()
    gains: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    history: Mapping[str, tuple[ScoredInstruction, ...]] = dataclasses.field(default_factory=dict)
    stale: frozenset[str] = frozenset()


def optimize(run: Run, reward: str, groups: Sequence[Group]) -> State:
    """Runs the host loop from the default configuration; the journal has one event per decision."""
    config = resolve_mode(run.config.optimize)
    configuration = run.system.default_configuration()
    val = run.splits["val"]
    with run.progress.bar("validation, default values", len(val)) as advance:
        jobs = [Job(configuration, example, run.config.seed) for example in val]
        traces = run_many(run.system, jobs, concurrency=run.config.concurrency, on_done=advance)
    run.progress.line(f"validation score of the default configuration: {_mean_score(traces):.3f}")
    state = State(configuration, reward, tuple(groups), tuple(traces))
    for iteration in range(config.iterations):
        state = _iterate(run, config, state, iteration)
    return state


def _iterate(run: Run, config: OptimizeConfig, state: State, iteration: int) -> State:
    seed = derive_seed(run.config.seed, "iteration", iteration)
    rng = random.Random(seed)
    name = pick_component(config.pick, run.components, reward_gaps(state.groups, run.components), state.gains, rng)
    run.folder.emit("pick", iteration=iteration, component=name)
    run.progress.line(f"[bold]iteration {iteration + 1}/{config.iterations}: {name}[/bold]")
    train = run.splits["train"]
    inputs = rng.sample(train, min(config.inputs, len(train)))
    if is_due(config.adapt, name, state.stale):
        state = adapt(run, config, state, [name], inputs, seed)
    with run.progress.bar("training inputs", len(inputs)) as advance:
        jobs = [Job(state.configuration, example, run.config.seed) for example in inputs]
        traces = run_many(run.system, jobs, concurrency=run.config.concurrency, on_done=advance)
    proposals = _rank(run, config, state, name, inputs, traces, rng, seed)
    state = _remember_instructions(state, name, proposals)
    for proposal in to_gate(proposals, config.gate_top):
        accepted, comparison, val_traces = _gate(run, config, state, name, proposal)
        _report_gate(run, iteration, name, proposal, comparison, accepted)
        gains = {**state.gains, name: (*state.gains.get(name, ()), comparison.mean if accepted else 0.0)}
        state = dataclasses.replace(state, gains=gains)
        if accepted:
            state = _accept(run, config, state, iteration, name, proposal, comparison, val_traces)
            if config.adapt == "after_accept":
                state = adapt(run, config, state, run.components, inputs, seed)
            break
    else:
        if not state.gains.get(name):
            state = dataclasses.replace(state, gains={**state.gains, name: (0.0,)})
    return state


def to_gate(proposals: Sequence[Proposal], count: int) -> list[Proposal]:
    """The proposals that may pay, of all proposals in their local order: the best of each kind, then the others."""
    kinds = [proposal.kind for proposal in proposals]
    best = [place for place, kind in enumerate(kinds) if kinds.index(kind) == place]
    others = [place for place in range(len(proposals)) if place not in best]
    return [proposals[place] for place in (*best, *others)[:count]]


def _accept(
    run: Run,
    config: OptimizeConfig,
    state: State,
    iteration: int,
    name: str,
    proposal: Proposal,
    comparison: Comparison,
    val_traces: Sequence[Trace],
) -> State:
    configuration = state.configuration.replace(name, proposal.value)
    summary = {
        "iteration": iteration,
        "component": name,
        "kind": proposal.kind,
        "value": value_to_json(proposal.value),
        "local_gain": proposal.local_gain,
        "val_gain": comparison.mean,
        "val_score": _mean_score(val_traces),
        "p_positive": comparison.p_positive,
    }
    related = {other for other in run.system.tunable if other in run.system.descendants(name)}
    upstream = {other for other in run.system.tunable if name in run.system.descendants(other)}
    run.folder.save_best(configuration, {"val_score": _mean_score(val_traces), "accepted": [*state.accepted, summary]})
    return dataclasses.replace(
        state,
        configuration=configuration,
        val_traces=tuple(val_traces),
        accepted=(*state.accepted, summary),
        stale=state.stale | related | upstream,
    )


def _rank(
    run: Run,
    config: OptimizeConfig,
    state: State,
    name: str,
    inputs: Sequence[Example],
    traces: Sequence[Trace],
    rng: random.Random,
    seed: int,
) -> list[Proposal]:
    """Proposals with their local gains, best first."""
    current = state.configuration[name]
    values = _propose(run, config, state, name, traces, rng, seed)
    if not values:
        return []
    steps = [(example, trace.steps[name]) for example, trace in zip(inputs, traces, strict=True) if name in trace.steps]
    tried = [current, *(value for _, value in values)]
    calls = [
        functools.partial(run.system.run_component, name, step.inputs, value, example, run.config.seed)
        for example, step in steps
        for value in tried
    ]
    with run.progress.bar("proposals on training inputs", len(calls)) as advance:
        made = gather(calls, concurrency=run.config.concurrency, on_done=advance)
    rows = [made[index * len(tried) : (index + 1) * len(tried)] for index in range(len(steps))]
    scores = run.engine.scores(
        state.reward,
        [
            text_group(run.system, name, step.inputs, [m.outputs for m in row])
            for (_, step), row in zip(steps, rows, strict=True)
        ],
    )
    proposals = []
    seen = [[row[0].outputs for row in rows]]
    for place, (kind, value) in enumerate(values, start=1):
        outputs = [row[place].outputs for row in rows]
        if outputs in seen:  # nothing tells this value from an earlier one
            continue
        seen.append(outputs)
        # A demonstration taken from an input says nothing about that input.
        own = {
            id(step)
            for _, step in steps
            if isinstance(value, Prompt) and any(d.inputs == step.inputs for d in value.demos)
        }
        fair = [row for (_, step), row in zip(steps, scores, strict=True) if id(step) not in own]
        if fair:
            gain = statistics.fmean(row[place] - row[0] for row in fair)
            proposals.append(Proposal(value, kind, gain, statistics.fmean(row[place] for row in fair)))
    proposals.sort(key=lambda proposal: -proposal.local_gain)
    for proposal in proposals:
        run.folder.emit(
            "proposal",
            component=name,
            kind=proposal.kind,
            value=value_to_json(proposal.value),
            local_gain=proposal.local_gain,
            local_score=proposal.local_score,
        )
    return proposals


def _propose(
    run: Run, config: OptimizeConfig, state: State, name: str, traces: Sequence[Trace], rng: random.Random, seed: int
) -> list[tuple[str, Value]]:
    """New values for one component, as (kind, value)."""
    component, current = run.system.by_name[name], state.configuration[name]
    if isinstance(component.space, LoraSpace):
        assert isinstance(current, Adapter)
        return _propose_weights(run, state, name, current, seed)
    if isinstance(component.space, Grid | Models):
        return [("grid", value) for value in other_values(component.space, current)]
    assert isinstance(component.space, PromptSpace) and isinstance(current, Prompt)
    values: list[tuple[str, Value]] = []
    if config.demo_sets:
        own = [group for group in state.groups if group.component == name]
        pool = demo_pool(own, min_reward=config.demo_min_reward)
        size = min(config.demo_size, component.space.max_demos)
        values += [("demos", p) for p in propose_demos(pool, current, size=size, count=config.demo_sets, rng=rng)]
    if config.instructions:
        failures = sorted(
            ((trace.steps[name], trace.score) for trace in traces if name in trace.steps), key=lambda item: item[1]
        )[:3]
        history = [*state.history.get(name, ()), ScoredInstruction(current.instruction, 0.0)]
        requests = opro_requests(
            component, history[-5:], failures, run.config.proposer, count=config.instructions, seed=seed
        )
        answers = gather(
            [functools.partial(run.completer.complete, request) for request in requests],
            concurrency=run.config.concurrency,
        )
        instructed = propose_instructions([answer.text for answer in answers], current, component.space)
        values += [("instruction", prompt) for prompt in instructed]
    return values


def _propose_weights(run: Run, state: State, name: str, current: Adapter, seed: int) -> list[tuple[str, Value]]:
    """The best adapter of a tuning call that starts from the current one; nothing if none is better."""
    train = run.splits["train"]
    with run.progress.bar("training inputs for weights", len(train)) as advance:
        jobs = [Job(state.configuration, example, run.config.seed) for example in train]
        traces = run_many(run.system, jobs, concurrency=run.config.concurrency, on_done=advance)
    tuned = tune_weights(run, state.reward, name, current, train, traces, seed)
    return [] if tuned is None or tuned.adapter == current.digest else [("weights", Adapter(tuned.adapter))]


def _remember_instructions(state: State, name: str, proposals: Sequence[Proposal]) -> State:
    scored = [
        ScoredInstruction(p.value.instruction, p.local_gain)
        for p in reversed(proposals)
        if p.kind == "instruction" and isinstance(p.value, Prompt)
    ]
    return dataclasses.replace(state, history={**state.history, name: (*state.history.get(name, ()), *scored)})


def _gate(
    run: Run, config: OptimizeConfig, state: State, name: str, proposal: Proposal
) -> tuple[bool, Comparison, list[Trace]]:
    """The paired test on validation examples; everything upstream of the change is kept. Half first, if that allows
    to give up early."""
    configuration = state.configuration.replace(name, proposal.value)
    val, old = run.splits["val"], state.val_traces
    half = len(val) // 2 if config.gate.kind == "paired" else 0
    new: list[Trace] = []
    for start, stop in ((0, half), (half, len(val))):
        if start == stop:
            continue
        jobs = [
            Job(configuration, example, run.config.seed, run.system.kept(trace, name))
            for example, trace in zip(val[start:stop], old[start:stop], strict=True)
        ]
        with run.progress.bar(f"gate ({proposal.kind})", len(jobs)) as advance:
            new += run_many(run.system, jobs, concurrency=run.config.concurrency, on_done=advance)
        comparison = compare([t.score for t in new], [t.score for t in old[:stop]])
        if stop < len(val) and is_futile(config.gate, comparison):
            return False, comparison, new
    return accepts(config.gate, comparison), comparison, new


def _report_gate(
    run: Run, iteration: int, name: str, proposal: Proposal, comparison: Comparison, accepted: bool
) -> None:
    run.folder.emit(
        "gate",
        iteration=iteration,
        component=name,
        value=value_digest(proposal.value),
        kind=proposal.kind,
        local_gain=proposal.local_gain,
        val_gain=comparison.mean,
        ci95=comparison.ci95,
        p_positive=comparison.p_positive,
        n=comparison.n,
        accepted=accepted,
    )
    verdict = "[green]accepted[/green]" if accepted else "rejected"
    run.progress.line(
        f"  {verdict}: {proposal.kind}, local gain {proposal.local_gain:+.3f}, validation gain {comparison.mean:+.3f} "
        f"(P(gain > 0) = {comparison.p_positive:.2f}, n = {comparison.n})"
    )


def _mean_score(traces: Sequence[Trace]) -> float:
    return statistics.fmean(trace.score for trace in traces)
