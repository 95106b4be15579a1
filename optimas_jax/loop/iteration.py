"""Optimise: improve one component at a time against its local reward, keep changes that the global score confirms
(paper, Algorithm 1).

An iteration is a pipeline of steps from state to state: pick a component, run the system on training inputs, propose
values (``loop.steps.propose``), label some of their answers, race them (``loop.steps.race``), test the best at the gate
(``loop.steps.gate``), adapt the local reward on the labels (``loop.local_rewards``).
"""

from __future__ import annotations

import dataclasses
import random
import statistics
from collections.abc import Sequence

from optimas_jax.core.folder import events
from optimas_jax.core.running.execution import Job
from optimas_jax.core.types import Example, Group, derive_seed
from optimas_jax.core.usage import OutOfBudget
from optimas_jax.core.values import (
    Demo,
    Grid,
    LoraSpace,
    Models,
    Prompt,
    other_values,
    plain_values,
    value_digest,
)
from optimas_jax.loop.budget import block, cost_so_far, costs_by_role, costs_from, emit_curve, hold_final
from optimas_jax.loop.config import OptimizeConfig, RunConfig
from optimas_jax.loop.context import Device, Host, report_failures
from optimas_jax.loop.folder.proposals import Drop, proposal_id, unraced, write_proposals
from optimas_jax.loop.hooks.pick import own_pick
from optimas_jax.loop.local_rewards import adapt, known_weights
from optimas_jax.loop.state import LabelUse, Proposal, Runs, State, Trials, groups_of_runs, groups_of_trials
from optimas_jax.loop.steps.choosing import choice_of_model, with_choosers
from optimas_jax.loop.steps.gate import gate
from optimas_jax.loop.steps.propose import count_drops, propose
from optimas_jax.loop.steps.race import Race, label, race
from optimas_jax.search.evidence import WeightEvidence, weight_evidence
from optimas_jax.search.hooks import own_name
from optimas_jax.search.optimisers.templates import ScoredInstruction
from optimas_jax.search.pareto import point_of, tell_exceeded
from optimas_jax.search.pick import pick_component, reward_gaps
from optimas_jax.traces.prompts import is_written

ITERATION = ("base runs", "propose", "label", "race", "gate", "adapt")  # parts of an iteration, as in the ledger's bill


def optimize(host: Host, device: Device, config: RunConfig, reward: str, groups: Sequence[Group]) -> State:
    """Runs the host loop from the default configuration; the journal has one event per decision.

    It ends after ``config.optimize.iterations``, when the budget does not allow the next step, or when every component
    has tried all its values.

    Args:
      reward: name of the local reward; empty without local rewards.
      groups: groups collected for it, also with a single candidate.
    """
    state = start(host, config.optimize, reward, groups)
    state = dataclasses.replace(state, known=known_weights(device, reward, state.configuration))
    try:
        hold_final(host, state.costs, len(state.val_traces), host.price.final_runs)
    except OutOfBudget as reason:
        return stopped(host, state, 0, reason)
    for number in range(config.optimize.iterations):
        state = with_choosers(host, device, config, state)
        if not open_components(host, config.optimize, state):
            host.progress.line("stopped: every value of every component was refused")
            return ended(host, state, number, "every value of every component was refused")
        try:
            state = iterate(host, device, config, state, number)
        except OutOfBudget as reason:
            return stopped(host, state, number, reason)
        emit_curve(host, "iteration", number, mean_score(state))
    return ended(host, state, config.optimize.iterations, "all iterations are done")


def stopped(host: Host, state: State, number: int, reason: OutOfBudget) -> State:
    """The state at which the budget ends the search; writes the end, and the costs of the unfinished iteration, to the
    journal and to progress."""
    emit_curve(host, "end", number, mean_score(state))
    host.folder.emit(events.OutOfBudget(spent=cost_so_far(host)))
    host.progress.line(f"stopped in iteration {number + 1}: {reason}")
    return ended(host, state, number, "the budget allows no further step")


def ended(host: Host, state: State, iterations: int, reason: str) -> State:
    """The state at which the search ends; writes the end to the journal."""
    accepted = len(state.accepted)
    host.folder.emit(
        events.SearchEnd(iterations=iterations, reason=reason, accepted=accepted, val_score=mean_score(state))
    )
    return state


def iterate(host: Host, device: Device, config: RunConfig, state: State, number: int) -> State:
    """Runs one iteration; returns the new state.

    Raises:
      OutOfBudget: if the budget does not allow making and racing the proposals; the state is then unchanged.
    """
    seed, rollouts = derive_seed(host.seed, "iteration", number), config.collect.rollouts
    name = pick(host, config.optimize, state, number, random.Random(seed))
    search, current = config.optimize.for_component(name), state.configuration[name]
    with block(host, f"{number}/race"):
        inputs = training_inputs(host, search, state, name, number)
        with host.ledger.part("base runs"):
            state, runs = with_base_runs(host, state.visited(name), name, inputs)
        with host.ledger.part("propose"):
            proposals, rejected = propose(host, device, config, search, state, name, runs, seed, number)
        try:
            with host.ledger.part("label"):
                labels = label(host, search, state, name, proposals, runs, rollouts)
                tell_labels(host, search, number, name, proposals, labels, runs)
            with host.ledger.part("race"):
                ranking = race(host, device, search, state, name, proposals, labels, runs, rollouts)
        except OutOfBudget:  # proposals were paid for, too
            write_proposals(host.folder, number, name, current, proposals, (), unraced(proposals), rejected)
            raise
        ranking = ranking.over_whole_runs(len(runs) / len(inputs))
    rejected += [
        Drop("same outputs", kind=proposal.kind, value=proposal.value) for proposal in ranking.without_effect(proposals)
    ]
    state = count_drops(host, state, number, name, len(ranking.ranked), rejected).having_tried_rules(name, proposals)
    fresh = groups_of_trials(state, name, ranking.trials, runs, config.reward.batch.candidates)
    state = remember(host, search, state, number, name, ranking, runs, fresh)
    with host.ledger.part("gate"):
        state, verdicts = gate(host, search, state, name, ranking.ranked, number)
    write_proposals(host.folder, number, name, current, proposals, ranking.ranked, verdicts, rejected)
    with host.ledger.part("adapt"):
        return adapt(host, device, config, state, fresh, number)


def start(host: Host, config: OptimizeConfig, reward: str, groups: Sequence[Group]) -> State:
    """The first state of a search: the default configuration with its validation runs."""
    configuration = host.system.default_configuration()
    examples = host.splits["val"][: config.gate_examples or None]
    jobs = [Job(configuration, example, host.seed) for example in examples]
    with host.ledger.part("validation"), host.ledger.limit() as allowance:
        traces = host.run("validation, default values", jobs)
    report_failures(host, traces)
    evidence = tuple(
        group
        for group in groups
        if len(group.candidates) > 1 or any(candidate.recorded for candidate in group.candidates)
    )
    first = point_of(traces, configuration.digest, host.system.objective, seconds=not host.shared_engine)
    state = State(configuration, reward, evidence, tuple(traces), costs=(costs_by_role(allowance),), front=(first,))
    for sentence in tell_exceeded(first, host.system.objective) if host.system.objective is not None else ():
        host.progress.line(
            f"warning: the start {sentence}. Only what keeps to it, and is better, takes its place: "
            "start from cheaper values, or raise the limit in a new --workdir"
        )
    state = state.having_learned(
        {name: [group.example_id for group in groups if group.component == name] for name in host.components}
    )
    which = f"best of {config.start}" if config.start else "default configuration"
    which = "prompts that it starts from" if is_written(config.start) else which
    host.progress.line(f"validation score of the {which}: {mean_score(state):.3f}")
    emit_curve(host, "start", 0, mean_score(state))
    return state


def open_components(host: Host, config: OptimizeConfig, state: State) -> tuple[str, ...]:
    """Components with something new to try. Of a listed space all values may have been refused, and with them the
    choice of a model for every input by the local reward in use."""

    def is_open(name: str) -> bool:
        space, value = host.system.by_name[name].space, state.configuration[name]
        if not isinstance(space, Grid | Models):
            return True
        choice = choice_of_model(config.for_component(name), space, value, state.reward)
        if name in state.no_choice:
            choice = None
        values = [*other_values(space, value), *([choice] if choice else [])]
        return any(candidate != value and not state.is_refused(name, candidate) for candidate in values)

    return tuple(name for name in host.components if is_open(name))


def pick(host: Host, config: OptimizeConfig, state: State, number: int, rng: random.Random) -> str:
    """Chooses the component of an iteration, and writes it to the journal."""
    components = open_components(host, config, state)
    order = config.first_components
    if number < len(order) and order[number] in components:
        name, rule = order[number], "order"
    else:
        gaps, own = reward_gaps(state.evidence, components, state.configuration.digest), host.hooks.pick
        rule = config.pick if own is None else own_name(own)
        if own is None:
            name = pick_component(rule, components, gaps, state.visits, state.gains, costs_from(host), rng)
        else:
            name = own_pick(host, own, state, components, gaps, number)
    host.folder.emit(events.Pick(iteration=number, component=name, rule=rule))
    host.progress.line(f"iteration {number + 1}/{config.iterations}: {name}")
    return name


def training_inputs(host: Host, config: OptimizeConfig, state: State, name: str, number: int) -> list[Example]:
    """Training inputs of an iteration, in random order. Inputs on which the component's local reward was not trained
    come first, so that their labels are unseen, whatever its answers there were: labelled inputs are a random draw of
    these. Weights are tuned on all inputs.

    With ``pick="gap"`` components take turns, and all components of a turn share their inputs: the system's runs on
    them stay known until a change is accepted.
    """
    train = host.splits["train"]
    turn = number // len(host.components) if config.pick == "gap" else number
    rng = random.Random(derive_seed(host.seed, "inputs", turn))
    everything = isinstance(host.system.by_name[name].space, LoraSpace) or name in config.searched_globally
    count = len(train) if everything else config.inputs
    inputs = rng.sample(train, min(count, len(train)))
    return sorted(inputs, key=lambda example: example.id in state.learned.get(name, ()))


def with_base_runs(host: Host, state: State, name: str, inputs: Sequence[Example]) -> tuple[State, Runs]:
    """Runs of the current configuration on training inputs. New runs join the evidence, as groups of one candidate.
    Inputs on which the component is not reached are left out of the runs."""
    new = [example for example in inputs if example.id not in state.train_traces]
    traces = host.run("training inputs", [Job(state.configuration, example, host.seed) for example in new])
    traces_by_id = {**state.train_traces, **{e.id: trace for e, trace in zip(new, traces, strict=True)}}
    groups = groups_of_runs(state.configuration, list(zip(new, traces, strict=True)))
    state = dataclasses.replace(state, train_traces=traces_by_id, evidence=(*state.evidence, *groups))
    runs = [(example, traces_by_id[example.id]) for example in inputs]
    return state, [(example, trace) for example, trace in runs if trace.reaches(name)]


def tell_labels(
    host: Host,
    config: OptimizeConfig,
    number: int,
    name: str,
    proposals: Sequence[Proposal],
    labels: Trials,
    runs: Runs,
) -> None:
    """Writes to the journal for how many answers the rest of the system ran, up to the global reward."""
    labelled = sum(bool(trial.rewards) for trial in labels.values())
    inputs = len(runs[: config.labels])
    host.folder.emit(
        events.Label(iteration=number, component=name, proposals=len(proposals), inputs=inputs, labelled=labelled)
    )


def remember(
    host: Host,
    config: OptimizeConfig,
    state: State,
    number: int,
    name: str,
    ranking: Race,
    runs: Runs,
    fresh: Sequence[Group],
) -> State:
    """Adds the results of a race to the state: labelled groups, statistics of local scores against global rewards, and
    instructions with their expected scores."""
    by_metric = config.score == "global" or config.ranking == "corrected"
    before = statistics.fmean([trace.reward for _, trace in runs] or [0.0]) if by_metric else 0.0
    for ranked in ranking.ranked:
        host.folder.emit(
            events.Proposal(
                component=name,
                kind=ranked.proposal.kind,
                value=ranked.proposal.value,
                expected_gain=ranked.expected_gain,
                labelled_gain=ranked.labelled_gain,
                local_gain=ranked.local_gain,
                inputs=ranked.inputs,
                labelled=ranked.labelled,
                iteration=number,
                id=proposal_id(number, name, ranked.proposal.digest),
                parent=value_digest(state.configuration[name]),
            )
        )
    scored = [
        ScoredInstruction(value.instruction, before + ranked.expected_gain)
        for ranked in reversed(ranking.ranked)
        for value in plain_values(ranked.proposal.value)
        if isinstance(value, Prompt) and value.demos == _demos(state, name)
    ]
    history = {**state.history, name: (*state.history.get(name, ()), *scored)}
    labelled = int(ranking.evidence.labelled.sum())
    use = LabelUse(labelled, float(ranking.estimate.effective_runs), ranking.uses_local_reward)
    weight = float(ranking.estimate.weight)
    host.folder.emit(events.Race(component=name, **dataclasses.asdict(use), weight=weight, iteration=number))
    label_use = {**state.label_use, name: state.label_use.get(name, LabelUse()) + use}
    weights = {**state.weights, name: state.weights.get(name, WeightEvidence()) + weight_evidence(ranking.evidence)}
    evidence = (*state.evidence, *fresh)
    current = value_digest(state.configuration[name])
    followed = {example for (value, example), trial in ranking.trials.items() if value != current and trial.rewards}
    state = state.having_learned({name: followed})
    return dataclasses.replace(state, history=history, weights=weights, evidence=evidence, label_use=label_use)


def _demos(state: State, name: str) -> tuple[Demo, ...]:
    """Demonstrations in use."""
    value = plain_values(state.configuration[name])[0]
    return value.demos if isinstance(value, Prompt) else ()


def mean_score(state: State) -> float:
    """Validation score of the configuration in use."""
    return statistics.fmean(trace.score for trace in state.val_traces)
