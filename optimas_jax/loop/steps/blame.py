"""Blame of a run: local rewards of the calls of runs, and which components they blame for failures
(``search.blame``)."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optimas_jax.core.selection import UNTRAINED
from optimas_jax.core.system import System
from optimas_jax.core.types import Outcome, Trace, derive_seed, digest
from optimas_jax.loop.context import Device, Host
from optimas_jax.loop.state import State
from optimas_jax.loop.steps.observe import read_by
from optimas_jax.rewards.scorer import Fields, RewardScorer, score_outputs
from optimas_jax.search.blame import FAILED, Blame, Scores, Summary, blame, passes, summarise

_PASSING, _FAILING = 20, 10  # most runs of each kind that are scored
_CONTRASTS = 4  # other outputs with which an output is compared on its input


def contrasts_of(passing: Sequence[Trace], names: Sequence[str], seed: int) -> dict[str, list[Fields]]:
    """A random draw of ``_CONTRASTS`` different outputs of each component in runs that passed. Outputs of other calls
    are compared with these on their own inputs."""
    contrasts = {}
    for name in names:
        calls = [call for trace in passing for call in trace.calls_of(name) if call.outcome is Outcome.OK]
        outputs = list({digest(call.outputs): call.outputs for call in calls}.values())
        rng = random.Random(derive_seed(seed, "contrasts", name))
        contrasts[name] = rng.sample(outputs, min(_CONTRASTS, len(outputs)))
    return contrasts


def run_scores(
    scorer: RewardScorer,
    system: System,
    reward: str,
    contrasts: Mapping[str, Sequence[Fields]],
    traces: Sequence[Trace],
) -> list[Scores]:
    """The local rewards of the calls of every run, in their order.

    A local reward is trained on differences between outputs on one input: a constant added to all of them is arbitrary.
    Therefore the mean local reward of other outputs on the same input, the contrasts, is subtracted.

    Args:
      contrasts: other outputs by component with a local reward (``contrasts_of``).
    """
    scores_by_call: dict[tuple[int, int], float] = {}  # by run and call
    for name, others in contrasts.items():
        positions = [(number, index) for number, trace in enumerate(traces) for index in trace.indices(name)]
        calls = {position: traces[position[0]].calls[position[1]] for position in positions}
        ended = [position for position in positions if calls[position].outcome is Outcome.OK]
        outputs = [(calls[position].inputs, calls[position].outputs) for position in ended]
        rows = [(inputs, [output, *(other for other in others if other != output)]) for inputs, output in outputs]
        scores = score_outputs(scorer, system, reward, name, rows) if rows else []
        scores_by_call |= dict.fromkeys(positions, FAILED)
        for position, (score, *of_others) in zip(ended, scores, strict=True):
            scores_by_call[position] = score - statistics.fmean(of_others or [0.0])
    return [
        [
            (call.component, scores_by_call[number, index])
            for index, call in enumerate(trace.calls)
            if (number, index) in scores_by_call
        ]
        for number, trace in enumerate(traces)
    ]


def by_component(runs: Iterable[Scores]) -> dict[str, list[float]]:
    """The local rewards of all calls of several runs, by component."""
    scores: dict[str, list[float]] = {}
    for name, score in (call for run in runs for call in run):
        scores.setdefault(name, []).append(score)
    return scores


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
