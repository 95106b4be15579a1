"""Optimise: improve one component at a time against its local reward, keep what the global score confirms (paper,
Algorithm 1).

One iteration: pick a component; propose values (``loop.propose``); rank them by local reward on training inputs, in
rounds, and adapt it on what they make, if that is due (``loop.rank``); let the best few that it has not refused yet pay
for the gate on validation examples (``loop.gate``). As in the paper, the best proposal pays whether or not it beats the
current value locally: a local reward that is wrong about what it has not seen costs one gate, and does not hide the
proposal for good. Further ones pay only if a gain is expected of them.

Deviations of ``improved`` mode from the paper: see ``MODES``; and in both modes a proposal whose outputs are those of
another or of the current value is dropped, and everything is paired by example and seed.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from optimas_jax.core.stats import Comparison
from optimas_jax.core.system import Job, run_many
from optimas_jax.core.types import Candidate, Example, Group, Trace, derive_seed
from optimas_jax.core.values import Configuration, Prompt, plain_values, value_to_json
from optimas_jax.loop.adapt import adapt
from optimas_jax.loop.budget import OutOfTokens, check_tokens, cost_so_far, costs_from, emit_curve, is_spent
from optimas_jax.loop.config import OptimizeConfig
from optimas_jax.loop.context import Run
from optimas_jax.loop.evaluate import report_failures
from optimas_jax.loop.gate import confirm, report_gate
from optimas_jax.loop.propose import propose
from optimas_jax.loop.rank import Proposal, Runs, Screen, emit_proposals
from optimas_jax.search.pick import pick_component, reward_gaps
from optimas_jax.search.templates import ScoredInstruction

MODES: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "pick": "uniform",
        "adapt": "after_accept",
        "pairs": "two",
        "ranking": "mean",
        "rounds": 1,
        "gate": "strict",
        "proposers": "opro",
        "per_instance": "sample",
    },
    "improved": {
        "pick": "gap",
        "adapt": "on_drift",
        "pairs": "all",
        "ranking": "corrected",
        "rounds": 3,
        "gate": "paired",
        "proposers": "demos,opro",
        "per_instance": "argmax",
    },
}
_CIRCLES = 50  # iterations in a row without a new request, after which no other is expected
_INSTRUCTIONS = ("instruction", "copro", "reflect")  # kinds that change the instruction alone


def resolve_mode(config: OptimizeConfig) -> OptimizeConfig:
    """Fills in the switches that were left to the mode. Without local rewards there are none to adapt."""
    bundle = MODES[config.mode]
    names = ("pick", "adapt", "pairs", "ranking", "rounds", "proposers", "per_instance")
    switches = {name: getattr(config, name) or bundle[name] for name in names}
    if config.score == "global":
        switches |= {"adapt": "never", "per_instance": "never"}
    gate = dataclasses.replace(config.gate, kind=config.gate.kind or bundle["gate"])
    return dataclasses.replace(config, **switches, gate=gate)


@dataclasses.dataclass(frozen=True)
class State:
    """What an iteration changes.

    Attributes:
      configuration: accepted so far.
      reward: name of the local reward; empty without one.
      groups: all groups so far.
      val_traces: validation runs under ``configuration``.
      accepted: a summary of each accepted proposal.
      gains: of the validation score, by component, of every proposal that paid for the gate, 0 for a rejected one and
        for an iteration without any.
      history: scored instructions by component.
      adaptations: of local rewards so far.
      rejected: digests of the configurations that the gate refused in place of this one.
      train_traces: training runs under ``configuration``, by id of the example.
    """

    configuration: Configuration
    reward: str
    groups: tuple[Group, ...]
    val_traces: tuple[Trace, ...]
    accepted: tuple[Mapping[str, Any], ...] = ()
    gains: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    history: Mapping[str, tuple[ScoredInstruction, ...]] = dataclasses.field(default_factory=dict)
    adaptations: int = 0
    rejected: frozenset[str] = frozenset()
    train_traces: Mapping[str, Trace] = dataclasses.field(default_factory=dict)

    def tried(self, name: str, gain: float) -> State:
        """With one more try of a component."""
        return dataclasses.replace(self, gains={**self.gains, name: (*self.gains.get(name, ()), gain)})


def optimize(run: Run, reward: str, groups: Sequence[Group]) -> State:
    """Runs the host loop from the default configuration; the journal has one event per decision.

    It ends after ``config.optimize.iterations``; with ``config.optimize.max_tokens`` as soon as it has used them, or
    where it goes in circles and never would.

    Args:
      reward, groups: the local reward and what it was trained on; empty where local rewards are off.
    """
    config = resolve_mode(run.config.optimize)
    configuration = run.system.default_configuration()
    val = run.splits["val"]
    with run.progress.bar("validation, default values", len(val)) as advance:
        jobs = [Job(configuration, example, run.config.seed) for example in val]
        traces = run_many(run.system, jobs, concurrency=run.config.concurrency, on_done=advance)
    report_failures(run, traces)
    run.progress.line(f"validation score of the default configuration: {_mean_score(traces):.3f}")
    state = State(configuration, reward, tuple(groups), tuple(traces))
    emit_curve(run, "start", 0, _mean_score(state.val_traces))
    known, circles = cost_so_far(run).tokens, 0
    for iteration in range(config.iterations):
        if is_spent(run) or circles == _CIRCLES:
            break
        state = _iterate(run, config, state, iteration)
        emit_curve(run, "iteration", iteration, _mean_score(state.val_traces))
        known, before = cost_so_far(run).tokens, known
        circles = circles + 1 if config.max_tokens and known == before else 0
    if is_spent(run):
        tokens = cost_so_far(run).tokens
        run.folder.emit("out_of_tokens", tokens=tokens, max_tokens=config.max_tokens)
        run.progress.line(f"stopped after {tokens:,} tokens of {config.max_tokens:,} (config.optimize.max_tokens)")
    elif circles == _CIRCLES:
        run.progress.line(f"stopped after {_CIRCLES} iterations that asked nothing new, {known:,} tokens in all")
    return state


def _iterate(run: Run, config: OptimizeConfig, state: State, iteration: int) -> State:
    seed = derive_seed(run.config.seed, "iteration", iteration)
    rng = random.Random(seed)
    gaps = reward_gaps(state.groups, run.components)
    name = pick_component(config.pick, run.components, gaps, state.gains, costs_from(run), rng)
    run.folder.emit("pick", iteration=iteration, component=name)
    run.progress.line(f"[bold]iteration {iteration + 1}/{config.iterations}: {name}[/bold]")
    inputs = _inputs(run, config, iteration)
    state, runs = _with_base_runs(run, state, inputs)
    gates = 0
    try:
        screen = Screen(run, config, state, name, runs, seed)
        proposals = screen.proposals(propose(run, config, state, name, runs, screen, rng, seed))
        emit_proposals(run, name, proposals)
        state = _remember_instructions(screen.state, name, proposals)
        fresh = [p for p in proposals if state.configuration.replace(name, p.value).digest not in state.rejected]
        hopeful = [p for place, p in enumerate(fresh) if place == 0 or p.expected_gain > 0]
        for proposal in hopeful[: config.gate_top]:
            check_tokens(run)
            result = confirm(run, config.gate, state.configuration, state.val_traces, name, proposal)
            accepted, comparison, val_traces = result
            report_gate(run, iteration, name, proposal, comparison, accepted)
            gates += 1
            state = state.tried(name, comparison.mean if accepted else 0.0)
            if accepted:
                state = _accept(run, state, iteration, name, proposal, comparison, val_traces)
                emit_curve(run, "accept", iteration, _mean_score(state.val_traces))
                if config.adapt == "after_accept":
                    state, runs = _with_base_runs(run, state, inputs)
                    state = adapt(run, config, state, run.components, runs, seed)
                break
            rejected = state.configuration.replace(name, proposal.value).digest
            state = dataclasses.replace(state, rejected=state.rejected | {rejected})
    except OutOfTokens:
        return state
    # The gap rule takes turns by tries: a component without proposals has had its turn once.
    if not gates and (config.pick == "bandit" or not state.gains.get(name)):
        state = state.tried(name, 0.0)
    return state


def _inputs(run: Run, config: OptimizeConfig, iteration: int) -> list[Example]:
    """Training inputs of an iteration. While components take turns (``gap``) a turn of all of them is on the same ones:
    what was run on them is known, but for what an accepted change touches."""
    turn = iteration // len(run.components) if config.pick == "gap" else iteration
    train = run.splits["train"]
    return random.Random(derive_seed(run.config.seed, "inputs", turn)).sample(train, min(config.inputs, len(train)))


def _with_base_runs(run: Run, state: State, inputs: Sequence[Example]) -> tuple[State, Runs]:
    """What the system does now on training inputs; those that are new are demonstrations of it, too."""
    new = [example for example in inputs if example.id not in state.train_traces]
    if new:
        with run.progress.bar("training inputs", len(new)) as advance:
            jobs = [Job(state.configuration, example, run.config.seed) for example in new]
            traces = run_many(run.system, jobs, concurrency=run.config.concurrency, on_done=advance)
        runs = list(zip(new, traces, strict=True))
        known = {**state.train_traces, **{example.id: trace for example, trace in runs}}
        state = dataclasses.replace(state, train_traces=known, groups=(*state.groups, *groups_of(runs)))
    return state, [(example, state.train_traces[example.id]) for example in inputs]


def groups_of(runs: Runs) -> list[Group]:
    """What every component did in the runs, as groups of one candidate: demonstrations of the system as it is."""
    return [
        Group(name, example.id, step.inputs, (Candidate(step.outputs, "current", (trace.score,)),))
        for example, trace in runs
        for name, step in trace.steps.items()
    ]


def _accept(
    run: Run,
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
    run.folder.save_best(configuration, {"val_score": _mean_score(val_traces), "accepted": [*state.accepted, summary]})
    return dataclasses.replace(
        state,
        configuration=configuration,
        val_traces=tuple(val_traces),
        accepted=(*state.accepted, summary),
        rejected=frozenset(),
        train_traces={},
    )


def _remember_instructions(state: State, name: str, proposals: Sequence[Proposal]) -> State:
    scored = [
        ScoredInstruction(value.instruction, proposal.local_gain)
        for proposal in reversed(proposals)
        if proposal.kind in _INSTRUCTIONS
        for value in plain_values(proposal.value)
        if isinstance(value, Prompt)
    ]
    return dataclasses.replace(state, history={**state.history, name: (*state.history.get(name, ()), *scored)})


def _mean_score(traces: Sequence[Trace]) -> float:
    return statistics.fmean(trace.score for trace in traces)
