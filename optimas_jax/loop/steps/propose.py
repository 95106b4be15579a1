"""Propose: new values for one component, by the kind of its space.

Values that an optimiser scores while it proposes (the points of TPE, COPRO's rounds) are tried here on
``config.trial_inputs`` inputs each, under the local reward at the start of the iteration.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import random
import statistics
from collections.abc import Mapping, Sequence
from typing import cast

from optimas_jax.core.folder import events
from optimas_jax.core.running.execution import Job
from optimas_jax.core.types import Outcome, Trace, derive_seed
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
    value_digest,
)
from optimas_jax.llm.base import CompletionRequest
from optimas_jax.loop.config import OptimizeConfig, RunConfig
from optimas_jax.loop.context import Device, Host
from optimas_jax.loop.folder.proposals import Drop
from optimas_jax.loop.folder.recorded import recorded_demos
from optimas_jax.loop.hooks.propose import own_values
from optimas_jax.loop.state import Proposal, Runs, State, current_trials
from optimas_jax.loop.steps.blame import blame_for_proposers
from optimas_jax.loop.steps.caps import above_cap, known_inputs
from optimas_jax.loop.steps.choosing import best_of, choice_of_model
from optimas_jax.loop.steps.race import labels_all
from optimas_jax.loop.steps.trials import answer, follow, local_scores
from optimas_jax.policy.reinforce import GlobalScores
from optimas_jax.policy.rollout import LocalScores, RandomScores, Scores
from optimas_jax.policy.tune import TuningRun, tune_weights
from optimas_jax.search.optimisers import llmselector
from optimas_jax.search.optimisers.choices import model_values, propose_values
from optimas_jax.search.optimisers.demos import demo_pool, labelled_demos
from optimas_jax.search.optimisers.instructions import drop_summary
from optimas_jax.search.optimisers.random_search import draw_values
from optimas_jax.search.optimisers.registry import FEEDBACK, OWN, PROPOSERS, REFLECT, REWRITING, proposer_names
from optimas_jax.search.optimisers.task import PromptTask, with_own_instruction

LOCAL_SCALE = "mean local reward minus that of the instruction in use"  # part of a prompt: a change voids tapes
GLOBAL_SCALE = "mean of the system's metric"
NET_SCALE = "mean of the system's metric minus what its costs are worth"
ABOVE_CAP = "above the cap on its prompt"
_USABLE = (Outcome.OK, Outcome.TRUNCATED)


@dataclasses.dataclass(frozen=True)
class Proposer:
    """Inputs of proposing values for one component.

    Attributes:
      host, device, config: parts and settings of the run.
      search: settings of this component's search.
      state: state of the search.
      name: name of the component.
      runs: training inputs, and the system's runs on them under ``state.configuration``.
      seed: seed of all randomness.
      current: the value to improve; for a best-of-N component the value that it samples from.
    """

    host: Host
    device: Device
    config: RunConfig
    search: OptimizeConfig
    state: State
    name: str
    runs: Runs
    seed: int
    current: Value

    def wrapped(self, value: Value) -> Value:
        """``value``, as best-of-N where the component's value in use is best-of-N."""
        whole = self.state.configuration[self.name]
        if isinstance(whole, PerInstance) and len(whole.values) == 1:
            return dataclasses.replace(whole, values=(value,))
        return value

    def gains(self, values: Sequence[Value]) -> list[float]:
        """Mean gain in score of each value over the value in use, on the first ``trial_inputs`` inputs; 0 for a value
        without a score."""
        runs = self.runs[: self.search.trial_inputs]
        wrapped = [self.wrapped(value) for value in values]
        trials = current_trials(self.state, self.name, runs, self.host.system.objective) | answer(
            self.host, self.name, wrapped, runs, {}
        )
        if self.search.score == "off" or labels_all(self.host, self.search, self.name):
            trials = follow(self.host, self.state, self.name, trials, runs, 1)
            scores = {key: trial.reward or 0.0 for key, trial in trials.items()}
        else:
            local = local_scores(self.host, self.device, self.state, self.name, trials, runs)
            scores = {key: score - trials[key].penalty for key, score in local.items()}
        current = value_digest(self.state.configuration[self.name])
        return [
            statistics.fmean(
                [scores[key, e.id] - scores[current, e.id] for e, _ in runs if (key, e.id) in scores] or [0.0]
            )
            for key in map(value_digest, wrapped)
        ]


def propose(
    host: Host,
    device: Device,
    config: RunConfig,
    search: OptimizeConfig,
    state: State,
    name: str,
    runs: Runs,
    seed: int,
    number: int = 0,
) -> tuple[tuple[Proposal, ...], list[Drop]]:
    """Proposes new values of a component, each once, without the value in use and values refused under this
    configuration.

    Args:
      search: settings of this component's search.
      number: number of the iteration, for own proposers.

    Returns:
      The proposals; and the rejected answers and values.
    """
    value, space = state.configuration[name], host.system.by_name[name].space
    inner = value.values[0] if isinstance(value, PerInstance) and len(value.values) == 1 else value
    proposer = Proposer(host, device, config, search, state, name, runs, seed, inner)
    rejected: list[Drop] = []
    if isinstance(space, LoraSpace):
        candidates = _weights(proposer)
    elif isinstance(space, Grid | Models):
        candidates = _listed(proposer, space, rejected)
    else:
        candidates = _prompts_in_steps(proposer, rejected)
    names = proposer_names(search.proposers)
    if not isinstance(space, LoraSpace):
        candidates += own_values(host, config.proposer, state, name, runs, inner, names, number, seed, rejected)
    wrapped = [Proposal(kind, proposer.wrapped(candidate)) for kind, candidate in candidates]
    proposals: dict[str, Proposal] = {}
    if name in state.no_choice:
        host.progress.line(f"  {name} does not choose outputs by its local reward: {state.no_choice[name]}")
        rejected.append(Drop("local reward not ahead", kind="best_of"))
    several = None if name in state.no_choice else best_of(config, search, value, state.reward)
    for proposal in [*wrapped, *([Proposal("best_of", several)] if several else [])]:
        read_inputs = functools.partial(known_inputs, host, state, name)
        if reason := _why_not(state, name, proposal, proposals):
            rejected.append(Drop(reason, kind=proposal.kind, value=proposal.value))
        elif why := above_cap(host, name, proposal.value, read_inputs):
            rejected.append(Drop(ABOVE_CAP, kind=proposal.kind, value=proposal.value, detail=why))
        else:
            proposals[proposal.digest] = proposal
    return tuple(proposals.values()), rejected


def _why_not(state: State, name: str, proposal: Proposal, known: Mapping[str, Proposal]) -> str:
    """Why a value is not worth a try, or ""."""
    if proposal.value == state.configuration[name]:
        return "in use"
    if state.is_refused(name, proposal.value):
        return "refused before"
    return "repeated" if proposal.digest in known else ""


def count_drops(host: Host, state: State, number: int, name: str, usable: int, rejected: Sequence[Drop]) -> State:
    """Adds the rejected answers of an iteration to the state and the journal. ``usable``: number of proposals left."""
    for drop in rejected:
        if drop.text:
            fields = {"component": name, "reason": drop.reason, "text": drop.text[:200]}
            host.folder.emit(events.Dropped(**fields, iteration=number, kind=drop.kind))
    dropped = collections.Counter(drop.reason for drop in rejected)
    counts = dict(sorted(dropped.items()))
    host.folder.emit(events.Proposed(component=name, usable=usable, dropped=counts, iteration=number))
    if not usable:
        host.progress.line(f"  no usable proposal: {drop_summary(dropped) if dropped else 'nothing was proposed'}")
    if not dropped:
        return state
    counts = dict(collections.Counter(state.dropped.get(name, {})) + dropped)
    return dataclasses.replace(state, dropped={**state.dropped, name: counts})


def _weights(proposer: Proposer) -> list[tuple[str, Value]]:
    """The best adapter of a tuning run that starts from the current one: by PPO or GRPO on the local reward or its
    replacement, or by REINFORCE on the global reward. Empty if none is better."""
    host, device, state, current = proposer.host, proposer.device, proposer.state, cast(Adapter, proposer.current)
    run = TuningRun(
        host.system,
        host.completer,
        device.policies,
        host.progress,
        host.folder.emit,
        seed=host.seed,
        concurrency=host.concurrency,
    )
    scores: Scores
    match proposer.search.score:
        case "local" | "likelihood" | "own":
            scores = LocalScores(host.system, device.rewards.scorer, state.reward, proposer.name)
        case "random":
            scores = RandomScores(proposer.name, host.seed)
        case _:
            scores = GlobalScores(host.system, state.configuration, proposer.name, host.seed, host.concurrency)
    tuned = tune_weights(run, proposer.name, current, proposer.runs, scores, seed=proposer.seed)
    return [] if tuned is None or tuned.adapter == current.digest else [("weights", Adapter(tuned.adapter))]


def _listed(proposer: Proposer, space: Grid | Models, rejected: list[Drop]) -> list[tuple[str, Value]]:
    """Values of a grid or names of models, then the choice of a model for every input.

    Single values come first: of two proposals with equal answers the race keeps the first, and a single value is
    cheaper.
    """
    search, current = proposer.search, proposer.current
    names = proposer_names(search.proposers)
    if all(kind.startswith(OWN) for kind in names):
        return []
    if names == ("random",):
        count = search.instructions + search.demo_sets
        return [("random", value) for value in draw_values(other_values(space, current), count, proposer.seed)]
    models = model_values(space, current)
    if models and "llmselector" in names:
        values = [current, *(value for value in models if value != current)]
        return llmselector.propose(_selector_task(proposer, values, rejected))
    values = propose_values(space, current, proposer.gains, trials=search.trials, seed=proposer.seed)
    candidates: list[tuple[str, Value]] = [("grid", value) for value in values]
    choice = choice_of_model(search, space, current, proposer.state.reward)
    if proposer.name in proposer.state.no_choice:
        choice = None
    return candidates if choice is None else [*candidates, ("per_instance", choice)]


def _selector_task(proposer: Proposer, values: Sequence[Value], rejected: list[Drop]) -> llmselector.SelectorTask:
    host, state, name = proposer.host, proposer.state, proposer.name

    def run(tried: Sequence[Value]) -> list[list[Trace]]:
        jobs = [
            Job(state.configuration.replace(name, value), example, host.seed, host.system.kept(trace, name))
            for value in tried
            for example, trace in proposer.runs
        ]
        traces = iter(host.run("models on training inputs", jobs))
        return [[next(traces) for _ in proposer.runs] for _ in tried]

    module = llmselector.module_of(host.system, name)
    return llmselector.SelectorTask(
        module=host.system.by_name[module],
        terminal=not host.system.descendants(module),
        values=values,
        examples=[example for example, _ in proposer.runs],
        run=run,
        diagnoser=proposer.config.proposer,
        ask=functools.partial(ask, host),
        seed=proposer.seed,
        dropped=functools.partial(_drop, rejected, "llmselector"),
    )


def ask(host: Host, requests: Sequence[CompletionRequest]) -> list[str]:
    """Sends requests, and returns their answers; "" for a failed request."""
    calls = [functools.partial(host.completer.complete, request) for request in requests]
    answers = host.gather("answers about proposals", calls)
    return [completion.text if completion.outcome in _USABLE else "" for completion in answers]


def _drop(rejected: list[Drop], kind: str, reason: str, text: str) -> None:
    rejected.append(Drop(reason, text, kind))


def _prompts_in_steps(proposer: Proposer, rejected: list[Drop]) -> list[tuple[str, Value]]:
    """Prompts of all optimisers in ``local_steps`` steps (paper, Table 6). Each step starts from the best value of the
    steps before, by its score on the trial inputs."""
    candidates: list[tuple[str, Value]] = []
    for step in range(proposer.search.local_steps):
        seed = derive_seed(proposer.seed, "step", step) if step else proposer.seed
        current = proposer.current
        if candidates:
            gains = proposer.gains([value for _, value in candidates])
            best = max(range(len(gains)), key=lambda index: gains[index])
            current = candidates[best][1] if gains[best] > 0 else current
        candidates += _prompts(dataclasses.replace(proposer, seed=seed, current=current), rejected)
    return candidates


def _prompts(proposer: Proposer, rejected: list[Drop]) -> list[tuple[str, Value]]:
    """Prompts of all optimisers in one step."""
    host, state, name, search = proposer.host, proposer.state, proposer.name, proposer.search
    component = host.system.by_name[name]
    assert isinstance(component.space, PromptSpace)
    evidence = [group for group in state.evidence if group.component == name]
    by_metric = search.score == "global" or search.ranking == "corrected"
    by_all = NET_SCALE if search.objective.is_weighted else GLOBAL_SCALE
    task = PromptTask(
        component=component,
        space=component.space,
        current=with_own_instruction(component, cast(Prompt, proposer.current), proposer.runs),
        runs=proposer.runs,
        pool=demo_pool(evidence, component=component),
        labelled=labelled_demos(component, proposer.runs),
        recorded=recorded_demos(host.folder, name),
        history=state.history.get(name, ()),
        current_score=statistics.fmean([t.reward for _, t in proposer.runs] or [0.0]) if by_metric else 0.0,
        scale=by_all if by_metric else LOCAL_SCALE,
        proposer=proposer.config.proposer,
        effort=search.effort,
        seed=proposer.seed,
        rng=random.Random(proposer.seed),
        ask=functools.partial(ask, host),
        gains=proposer.gains,
    )
    prompts: list[tuple[str, Value]] = []
    kinds = [kind for kind in proposer_names(search.proposers) if kind in PROPOSERS]
    if FEEDBACK in kinds and _has_new_rules(proposer, task):
        kinds = [kind for kind in kinds if kind not in REWRITING]
    if REFLECT in kinds:
        traces = [trace for _, trace in proposer.runs]
        task = dataclasses.replace(task, blame=blame_for_proposers(host, proposer.device, state, traces))
    for kind in kinds:
        dropped = functools.partial(_drop, rejected, kind)
        prompts += PROPOSERS[kind](dataclasses.replace(task, dropped=dropped))
    return prompts


def _has_new_rules(proposer: Proposer, task: PromptTask) -> bool:
    """Whether the metric names a rule that was not tried with the instruction in use. Then rewriting of the instruction
    by a language model waits for an iteration: the rule is about to change that instruction, and rewrites cost
    labels."""
    tried = proposer.state.tried_rules.get(proposer.name, ())
    return any(value_digest(proposer.wrapped(prompt)) not in tried for _, prompt in PROPOSERS[FEEDBACK](task))
