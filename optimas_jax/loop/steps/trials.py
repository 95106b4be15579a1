"""Trials: answers of one component's values on training inputs, their global rewards and their local scores."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Sequence

from optimas_jax.core.execution import global_rewards
from optimas_jax.core.selection import JUDGE, ORACLE, RANDOM, random_score
from optimas_jax.core.types import derive_seed, digest
from optimas_jax.core.values import Value, shows, value_digest
from optimas_jax.loop.budget import expected_cost, require
from optimas_jax.loop.context import Device, Host
from optimas_jax.loop.state import Runs, State, Trial, Trials
from optimas_jax.rewards.judge import judge_examples, judge_scores
from optimas_jax.rewards.scorer import Fields, score_outputs
from optimas_jax.rewards.text import text_group

_JUDGED_FROM = 64  # groups at most from which the judge's examples are drawn


def answer(host: Host, name: str, values: Sequence[Value], runs: Runs, known: Trials) -> dict[tuple[str, str], Trial]:
    """Runs the component alone with every value on every input.

    Trials that are ``known``, and inputs from which a demonstration of the value comes, are left out.
    """
    unique = {value_digest(value): value for value in values}
    tries = [
        (value, example, trace)
        for example, trace in runs
        for key, value in unique.items()
        if (key, example.id) not in known and not shows(value, example.id, trace.steps[name].inputs)
    ]
    calls = [
        functools.partial(host.system.run_component, name, trace.steps[name].inputs, value, example, host.seed)
        for value, example, trace in tries
    ]
    steps = host.gather("proposals on training inputs", calls)
    return {
        (value_digest(value), example.id): Trial(step.outputs)
        for (value, example, _), step in zip(tries, steps, strict=True)
    }


def follow(
    host: Host, state: State, name: str, trials: Trials, runs: Runs, rollouts: int
) -> dict[tuple[str, str], Trial]:
    """The same trials with their global rewards; equal answers on one input are followed once.

    Args:
      rollouts: Monte Carlo runs of the component's descendants, per answer (paper, Eq. 3).
    """
    pairs = {example.id: (example, trace) for example, trace in runs}
    rewards = {
        (example_id, digest(trial.outputs)): trial.rewards
        for (_, example_id), trial in trials.items()
        if len(trial.rewards) >= rollouts
    }
    answers = {(example_id, digest(trial.outputs)): trial.outputs for (_, example_id), trial in trials.items()}
    answers = {key: outputs for key, outputs in answers.items() if key not in rewards}
    calls = []
    for (example_id, _), outputs in answers.items():
        example, trace = pairs[example_id]
        calls.append(
            functools.partial(
                global_rewards, host.system, state.configuration, example, trace, name, outputs, host.seed, rollouts
            )
        )
    require(host, expected_cost(host, name, runs=rollouts * len(calls)))
    rewards |= dict(zip(answers, host.gather("answers followed to their global reward", calls), strict=True))
    return {key: Trial(trial.outputs, rewards[key[1], digest(trial.outputs)]) for key, trial in trials.items()}


def local_scores(
    host: Host, device: Device, state: State, name: str, trials: Trials, runs: Runs
) -> dict[tuple[str, str], float]:
    """Local scores of all answers under ``state.reward``, by digest of the value and id of the example.

    Under ``RANDOM`` they are random numbers, one for each answer; under ``ORACLE`` global rewards, whose runs of the
    system are outside all limits and booked apart.
    """
    if state.reward == RANDOM:
        return {
            (value, example_id): random_score(host.seed, name, example_id, trial.outputs)
            for (value, example_id), trial in trials.items()
        }
    if state.reward == ORACLE:
        apart = dataclasses.replace(host, system=dataclasses.replace(host.system, meter=None))
        with host.ledger.uncharged(ORACLE):
            known = follow(apart, state, name, trials, runs, rollouts=1)
        return {key: trial.reward or 0.0 for key, trial in known.items()}
    rows = []
    for example, trace in runs:
        here = {key: trial.outputs for key, trial in trials.items() if key[1] == example.id}
        if here:
            rows.append((trace.steps[name].inputs, here))
    answers = [(inputs, list(here.values())) for inputs, here in rows]
    if state.reward == JUDGE:
        several = [index for index, (_, outputs) in enumerate(answers) if len(set(map(digest, outputs))) > 1]
        judged = _judged(host, state, name, [answers[index] for index in several], [example.id for example, _ in runs])
        scores = [[0.0] * len(outputs) for _, outputs in answers]  # alone or alike: there is no difference to judge
        for index, row in zip(several, judged, strict=True):
            scores[index] = row
    else:
        scores = score_outputs(device.rewards.scorer, host.system, state.reward, name, answers)
    return {
        key: score for (_, here), row in zip(rows, scores, strict=True) for key, score in zip(here, row, strict=True)
    }


def _judged(
    host: Host, state: State, name: str, answers: Sequence[tuple[Fields, Sequence[Fields]]], inputs: Sequence[str]
) -> list[list[float]]:
    """Scores of a language model as judge, which has seen labelled answers to other inputs than ``inputs``."""
    assert host.judge is not None
    known = [g for g in state.evidence if g.component == name and g.example_id not in inputs]
    rng = random.Random(derive_seed(host.seed, JUDGE, name, inputs))
    known = rng.sample(known, min(len(known), _JUDGED_FROM))
    texts = [text_group(host.system, name, g.inputs, [c.outputs for c in g.candidates]) for g in known]
    examples = judge_examples(texts, [g.rewards for g in known], host.seed)
    groups = [text_group(host.system, name, fields, outputs) for fields, outputs in answers]
    judged = judge_scores(host.completer, host.judge, groups, examples, seed=host.seed, concurrency=host.concurrency)
    if judged.malformed:
        host.progress.line(f"  {judged.malformed} of {len(groups)} answers of the judge are no list of scores")
    return judged.scores
