"""Trials: answers of one component's values on training inputs, their global rewards and their local scores."""

from __future__ import annotations

import dataclasses
import functools
import random
import statistics
from collections.abc import Sequence

from optimas_jax.core.running.execution import global_rewards, rollout_seeds
from optimas_jax.core.selection import JUDGE, ORACLE, RANDOM, random_score
from optimas_jax.core.types import derive_seed, digest
from optimas_jax.core.values import Value, shows, value_digest
from optimas_jax.loop.budget import expected_cost, require
from optimas_jax.loop.context import Device, Host
from optimas_jax.loop.state import Runs, State, Trial, Trials, penalty_of
from optimas_jax.rewards.judge import judge_examples, judge_scores
from optimas_jax.rewards.scorer import Fields, score_outputs
from optimas_jax.rewards.text import text_group

_JUDGED_FROM = 64  # most groups from which the judge's examples are drawn


def answer(host: Host, name: str, values: Sequence[Value], runs: Runs, known: Trials) -> dict[tuple[str, str], Trial]:
    """Runs the component alone with every value, on the inputs of all its calls in every run.

    Trials that are ``known``, and examples from which a demonstration of the value comes, are left out.
    """
    unique = {value_digest(value): value for value in values}
    tries = [
        (key, value, example, calls)
        for example, calls in ((example, trace.calls_of(name)) for example, trace in runs)
        for key, value in unique.items()
        if (key, example.id) not in known and not any(shows(value, example.id, call.inputs) for call in calls)
    ]
    every = [
        functools.partial(host.system.run_component, call, value, example, host.seed)
        for _, value, example, calls in tries
        for call in calls
    ]
    answers = iter(host.gather("proposals on training inputs", every))
    results = [(key, value, example, tuple(next(answers) for _ in calls)) for key, value, example, calls in tries]
    return {
        (key, example.id): Trial(
            value,
            tuple(call.outputs for call in calls),
            calls=calls,
            penalty=penalty_of(calls, host.system.objective),
        )
        for key, value, example, calls in results
    }


def follow(
    host: Host, state: State, name: str, trials: Trials, runs: Runs, rollouts: int
) -> dict[tuple[str, str], Trial]:
    """The same trials with their global rewards, from Monte Carlo runs of the rest of the system. Later calls of the
    component in these runs have the trial's value, too. Trials that cannot differ, neither in outputs nor in costs, run
    once.

    Args:
      rollouts: Monte Carlo runs of the rest of the system, per trial (paper, Eq. 3).
    """
    pairs = {example.id: (example, trace) for example, trace in runs}

    def what(key: tuple[str, str], trial: Trial) -> tuple[str, ...]:
        """Key of equal trials: the example and the answers; in a program also the value, which later calls may use."""
        same = host.system.calls_once or list(trial.answers) == [c.outputs for c in pairs[key[1]][1].calls_of(name)]
        named = (key[1], digest(trial.answers)) if same else (key[1], digest(trial.answers), key[0])
        return (*named, repr(trial.penalty)) if trial.penalty else named

    names = {key: what(key, trial) for key, trial in trials.items()}
    rewards = {names[key]: trial.rewards for key, trial in trials.items() if len(trial.rewards) >= rollouts}
    new = {names[key]: (key[1], trial) for key, trial in trials.items() if names[key] not in rewards}
    calls = []
    for example_id, trial in new.values():
        example, trace = pairs[example_id]
        configuration = state.configuration.replace(name, trial.value)
        answers = dict(zip(trace.indices(name), trial.calls or trial.answers, strict=True))
        seeds = rollout_seeds(host.seed, rollouts)
        calls.append(functools.partial(global_rewards, host.system, configuration, example, trace, answers, seeds))
    require(host, expected_cost(host, name, runs=rollouts * len(calls)))
    rewards |= dict(zip(new, host.gather("answers followed to their global reward", calls), strict=True))
    return {key: dataclasses.replace(trial, rewards=rewards[names[key]]) for key, trial in trials.items()}


def local_scores(
    host: Host, device: Device, state: State, name: str, trials: Trials, runs: Runs
) -> dict[tuple[str, str], float]:
    """Local scores of all trials under ``state.reward``, by digest of the value and id of the example: means over the
    component's calls.

    Under ``RANDOM`` they are random numbers, one for each answer; under ``ORACLE`` global rewards, whose runs of the
    system are outside all limits and booked separately.
    """
    if state.reward == RANDOM:
        return {
            (value, example_id): statistics.fmean(
                random_score(host.seed, name, example_id, outputs) for outputs in trial.answers
            )
            for (value, example_id), trial in trials.items()
        }
    if state.reward == ORACLE:
        apart = dataclasses.replace(host, system=dataclasses.replace(host.system, meter=None))
        with host.ledger.uncharged(ORACLE):
            followed = follow(apart, state, name, trials, runs, rollouts=1)
        return {key: trial.reward or 0.0 for key, trial in followed.items()}
    rows = []  # one for each call: (example, inputs, outputs by trial)
    for example, trace in runs:
        by_key = {key: trial.answers for key, trial in trials.items() if key[1] == example.id}
        if by_key:
            for number, call in enumerate(trace.calls_of(name)):
                rows.append((example.id, call.inputs, {key: answers[number] for key, answers in by_key.items()}))
    answers = [(inputs, list(by_key.values())) for _, inputs, by_key in rows]
    if state.reward == JUDGE:
        several = [index for index, (_, outputs) in enumerate(answers) if len(set(map(digest, outputs))) > 1]
        judged = _judged(host, state, name, [answers[index] for index in several], [example.id for example, _ in runs])
        scores = [[0.0] * len(outputs) for _, outputs in answers]  # alone or alike: there is no difference to judge
        for index, row in zip(several, judged, strict=True):
            scores[index] = row
    else:
        scores = score_outputs(device.rewards.scorer, host.system, state.reward, name, answers)
    by_trial: dict[tuple[str, str], list[float]] = {}
    for (_, _, by_key), row in zip(rows, scores, strict=True):
        for key, score in zip(by_key, row, strict=True):
            by_trial.setdefault(key, []).append(score)
    return {key: statistics.fmean(of_calls) for key, of_calls in by_trial.items()}


def _judged(
    host: Host, state: State, name: str, answers: Sequence[tuple[Fields, Sequence[Fields]]], inputs: Sequence[str]
) -> list[list[float]]:
    """Scores of a language model as judge. Its prompt has labelled answers to other inputs than ``inputs``."""
    assert host.judge is not None
    groups_with_labels = [g for g in state.evidence if g.component == name and g.example_id not in inputs]
    rng = random.Random(derive_seed(host.seed, JUDGE, name, inputs))
    groups_with_labels = rng.sample(groups_with_labels, min(len(groups_with_labels), _JUDGED_FROM))
    texts = [text_group(host.system, name, g.inputs, [c.outputs for c in g.candidates]) for g in groups_with_labels]
    examples = judge_examples(texts, [g.rewards for g in groups_with_labels], host.seed)
    groups = [text_group(host.system, name, fields, outputs) for fields, outputs in answers]
    judged = judge_scores(host.completer, host.judge, groups, examples, seed=host.seed, concurrency=host.concurrency)
    if judged.malformed:
        host.progress.line(f"  {judged.malformed} of {len(groups)} answers of the judge are no list of scores")
    return judged.scores
