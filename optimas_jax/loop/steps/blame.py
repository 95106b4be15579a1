"""Blame of a run: local rewards and relevance of the calls of runs, and which components they blame for failures
(``search.blame``)."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from optimas_jax.core.selection import UNTRAINED
from optimas_jax.core.system import System
from optimas_jax.core.types import Outcome, Trace, derive_seed, digest
from optimas_jax.loop.context import Device, Host
from optimas_jax.loop.state import State
from optimas_jax.loop.steps.observe import read_by
from optimas_jax.rewards.scorer import Fields, RewardScorer
from optimas_jax.rewards.text import text_group
from optimas_jax.search.blame import FAILED, Blame, Measures, Scores, Summary, blame, passes, summarise

_PASSING, _FAILING = 20, 10  # most runs of each kind that are scored
_CONTRASTS = 4  # other inputs, and other outputs, with which the calls of a component are compared

Calls = Sequence[tuple[Fields, Fields]]  # (inputs, outputs)


class Contrasts(NamedTuple):
    """Inputs and outputs of calls of a component in runs that passed, by digest."""

    inputs: dict[str, Fields]
    outputs: dict[str, Fields]


def contrasts_of(passing: Sequence[Trace], names: Sequence[str], seed: int) -> dict[str, Contrasts]:
    """A random draw of ``_CONTRASTS`` different inputs and outputs of each component in runs that passed."""
    contrasts = {}
    for name in names:
        calls = [call for trace in passing for call in trace.calls_of(name) if call.outcome is Outcome.OK]
        rng = random.Random(derive_seed(seed, "contrasts", name))
        contrasts[name] = Contrasts(
            _drawn((call.inputs for call in calls), rng), _drawn((call.outputs for call in calls), rng)
        )
    return contrasts


def _drawn(fields: Iterable[Fields], rng: random.Random) -> dict[str, Fields]:
    different = {digest(each): each for each in fields}
    return {key: different[key] for key in rng.sample(list(different), min(_CONTRASTS, len(different)))}


def run_scores(
    scorer: RewardScorer,
    system: System,
    reward: str,
    contrasts: Mapping[str, Contrasts],
    traces: Sequence[Trace],
) -> list[Scores]:
    """The measures of the calls of every run (``measures_of``), in their order.

    Args:
      contrasts: by component with a local reward (``contrasts_of``).
    """
    by_call: dict[tuple[int, int], Measures] = {}  # by run and call
    for name, others in contrasts.items():
        positions = [(number, index) for number, trace in enumerate(traces) for index in trace.indices(name)]
        calls = {position: traces[position[0]].calls[position[1]] for position in positions}
        ended = [position for position in positions if calls[position].outcome is Outcome.OK]
        pairs = [(calls[position].inputs, calls[position].outputs) for position in ended]
        by_call |= dict.fromkeys(positions, (FAILED, FAILED))
        by_call |= zip(ended, measures_of(scorer, system, reward, name, pairs, others), strict=True)
    return [
        [
            (call.component, by_call[number, index])
            for index, call in enumerate(trace.calls)
            if (number, index) in by_call
        ]
        for number, trace in enumerate(traces)
    ]


def measures_of(
    scorer: RewardScorer, system: System, reward: str, component: str, calls: Calls, others: Contrasts
) -> list[Measures]:
    """The local reward and the relevance of each call of a component, from its local reward r and likelihood p:

        r(x, y) - mean over y' of r(x, y')
        log p(y | x) - mean over x' of log p(y | x')

    A local reward is trained on differences between outputs on one input: a constant added to all of them is arbitrary.
    Relevance is an estimate of pointwise mutual information: how much better an output fits its own input than others.
    A measure is 0 without anything to compare with.

    Args:
      calls: (inputs, outputs) = (x, y) of each call.
      others: x' and y'; x and y themselves are left out of the means.
    """
    # Each output has an input of its own for its likelihood: where texts are truncated, outputs beside it take room.
    by_input, by_output = [], []
    for x, y in calls:
        inputs, outputs = {digest(x): x} | others.inputs, {digest(y): y} | others.outputs  # x and y are the first
        by_input.append(text_group(system, component, x, list(outputs.values())))
        by_output.append([text_group(system, component, each, [y]) for each in inputs.values()])
    rewards = scorer.scores(reward, by_input)
    logliks = iter(scorer.logliks([group for groups in by_output for group in groups]))
    return [
        (_above_others(scores), _above_others([next(logliks)[0] for _ in groups]))
        for scores, groups in zip(rewards, by_output, strict=True)
    ]


def _above_others(scores: Sequence[float]) -> float:
    """The first score less the mean of the others; 0 without others."""
    score, *others = scores
    return score - statistics.fmean(others or [score])


def by_component(runs: Iterable[Scores]) -> dict[str, list[Measures]]:
    """The measures of all calls of several runs, by component."""
    measures: dict[str, list[Measures]] = {}
    for name, of_call in (call for run in runs for call in run):
        measures.setdefault(name, []).append(of_call)
    return measures


def behind(system: System, trace: Trace) -> dict[str, frozenset[str]]:
    """Component -> components that read its outputs, directly or through others; for a program, in this run."""
    if system.program is not None:
        return read_by([trace])
    return {name: system.descendants(name) for name in system.order}


def is_blamed(state: State) -> bool:
    """Whether the search has a trained local reward, which blame needs."""
    return bool(state.reward) and state.reward not in UNTRAINED


def blame_runs(
    host: Host, device: Device, reward: str, passing: Sequence[Trace], failing: Sequence[Trace]
) -> dict[str, Blame]:
    """Blame of failing runs, by example."""
    scorer, contrasts = device.rewards.scorer, contrasts_of(passing, host.components, host.seed)
    passing_scores = by_component(run_scores(scorer, host.system, reward, contrasts, passing))
    scored = run_scores(scorer, host.system, reward, contrasts, failing)
    return {
        trace.example_id: blame(scores, passing_scores, behind(host.system, trace))
        for trace, scores in zip(failing, scored, strict=True)
    }


def divided(host: Host, traces: Sequence[Trace]) -> tuple[list[Trace], list[Trace]]:
    """Runs that passed and runs that failed; a random part of them if there are many."""
    passed = passes([trace.score for trace in traces])
    rng = random.Random(derive_seed(host.seed, "blame"))
    parts = []
    for which, most in ((True, _PASSING), (False, _FAILING)):
        part = [trace for trace, has_passed in zip(traces, passed, strict=True) if has_passed == which]
        parts.append(part if len(part) <= most else rng.sample(part, most))
    return parts[0], parts[1]


def blame_of(host: Host, device: Device, state: State) -> Summary | None:
    """Blame of the failing validation runs under the configuration in use; None without trained local rewards, and for
    a single component."""
    if not is_blamed(state) or len(host.components) < 2:
        return None
    passing, failing = divided(host, state.val_traces)
    return summarise(len(passing), blame_runs(host, device, state.reward, passing, failing))


def blame_for_proposers(host: Host, device: Device, state: State, traces: Sequence[Trace]) -> dict[str, Blame]:
    """Blame of the failing training runs by example, compared with validation runs that passed, all under the
    configuration in use; empty where ``blame_of`` is None."""
    if not is_blamed(state) or len(host.components) < 2:
        return {}
    unique = list({trace.example_id: trace for trace in traces}.values())
    passed = passes([trace.score for trace in (*unique, *state.val_traces)])
    failing = [trace for trace, has_passed in zip(unique, passed, strict=False) if not has_passed]
    passing = [trace for trace, has_passed in zip(state.val_traces, passed[len(unique) :], strict=True) if has_passed]
    return blame_runs(host, device, state.reward, passing[:_PASSING], failing) if failing else {}


def to_json(summary: Summary | None) -> dict[str, Any]:
    """Plain data; empty for None."""
    if summary is None:
        return {}
    return {
        "passing": summary.passing,
        "failing": summary.failing,
        "reason": summary.reason,
        "components": {
            name: {"first": summary.first[name], "share": summary.shares.get(name, 0.0)} for name in summary.first
        },
        "examples": [_run(example_id, run) for example_id, run in summary.runs.items()],
    }


def _run(example_id: str, run: Blame) -> Mapping[str, Any]:
    return {
        "id": example_id,
        "component": run.component,
        "shares": dict(run.shares),
        "percentiles": dict(run.percentiles),
        "reason": run.reason,
    }
