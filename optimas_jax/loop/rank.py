"""Rank: what values of a component are worth on training inputs, by its local reward or by the global metric.

By the local reward a value costs one call of the component per input. By the global metric everything behind the
component runs again.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from optimas_jax.core.system import Job, gather, run_many
from optimas_jax.core.types import Example, Trace
from optimas_jax.core.values import Configuration, Prompt, Value, plain_values, value_digest, value_to_json
from optimas_jax.loop.config import OptimizeConfig
from optimas_jax.loop.cost import check_tokens
from optimas_jax.loop.run import Run
from optimas_jax.loop.scoring import score_outputs

Runs = Sequence[tuple[Example, Trace]]


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A candidate value of one component with its evidence on training inputs.

    Attributes:
      local_gain: mean score minus that of the current value, on the same inputs.
      local_score: mean score: local reward, or global metric where local rewards are off.
    """

    value: Value
    kind: str
    local_gain: float
    local_score: float


@dataclasses.dataclass(frozen=True)
class _Tried:
    """What a component made with a value on each input, and the score of it."""

    outputs: list[Mapping[str, Any]]
    scores: list[float]


class Screen:
    """Scores values of one component on fixed training inputs; no value is scored twice."""

    def __init__(
        self, run: Run, config: OptimizeConfig, configuration: Configuration, reward: str, name: str, runs: Runs
    ):
        """``runs`` are those of the training inputs under ``configuration``; inputs on which the component was not
        reached are left out."""
        self._run, self._config, self._configuration = run, config, configuration
        self._reward, self._name = reward, name
        self._runs = [(example, trace) for example, trace in runs if name in trace.steps]
        self._tried: dict[str, _Tried] = {}

    def proposals(self, values: Sequence[tuple[str, Value]]) -> list[Proposal]:
        """(kind, value) pairs with their gains, best first. A value whose outputs are those of the current value or of
        an earlier one is left out: nothing tells them apart."""
        if not values or not self._runs:
            return []
        self._try([value for _, value in values])
        found: list[Proposal] = []
        seen = [self._current.outputs]
        for kind, value in values:
            tried = self._tried[value_digest(value)]
            if tried.outputs in seen:
                continue
            seen.append(tried.outputs)
            fair = self._fair(value)
            if fair:
                gain = statistics.fmean(tried.scores[place] - self._current.scores[place] for place in fair)
                found.append(Proposal(value, kind, gain, statistics.fmean(tried.scores[place] for place in fair)))
        return sorted(found, key=lambda proposal: -proposal.local_gain)

    def gains(self, values: Sequence[Value]) -> list[float]:
        """Mean gain of each value over the current one; 0 where no input says anything about it.

        Raises:
          OutOfTokens: if the search has used its tokens before this.
        """
        if not values or not self._runs:
            return [0.0] * len(values)
        self._try(values)
        gains = []
        for value in values:
            tried, fair = self._tried[value_digest(value)], self._fair(value)
            gains.append(statistics.fmean(tried.scores[p] - self._current.scores[p] for p in fair) if fair else 0.0)
        return gains

    @property
    def _current(self) -> _Tried:
        return self._tried[value_digest(self._configuration[self._name])]

    def _fair(self, value: Value) -> list[int]:
        """Places of the inputs that none of the value's demonstrations was taken from."""
        shown = [demo.inputs for one in plain_values(value) if isinstance(one, Prompt) for demo in one.demos]
        return [p for p, (_, trace) in enumerate(self._runs) if trace.steps[self._name].inputs not in shown]

    def _try(self, values: Sequence[Value]) -> None:
        every = {value_digest(value): value for value in (self._configuration[self._name], *values)}
        fresh = {key: value for key, value in every.items() if key not in self._tried}
        if fresh:
            check_tokens(self._run)
            make = self._by_local_reward if self._config.score == "local" else self._by_metric
            self._tried.update(zip(fresh, make(list(fresh.values())), strict=True))

    def _by_local_reward(self, values: Sequence[Value]) -> list[_Tried]:
        run, name = self._run, self._name
        calls = [
            functools.partial(run.system.run_component, name, trace.steps[name].inputs, value, example, run.config.seed)
            for example, trace in self._runs
            for value in values
        ]
        with run.progress.bar("proposals on training inputs", len(calls)) as advance:
            made = gather(calls, concurrency=run.config.concurrency, on_done=advance)
        rows = [
            (trace.steps[name].inputs, [step.outputs for step in made[place * len(values) : (place + 1) * len(values)]])
            for place, (_, trace) in enumerate(self._runs)
        ]
        scores = score_outputs(run.engine, run.system, self._reward, name, rows)
        return [
            _Tried([outputs[column] for _, outputs in rows], [row[column] for row in scores])
            for column in range(len(values))
        ]

    def _by_metric(self, values: Sequence[Value]) -> list[_Tried]:
        run, name, current = self._run, self._name, self._configuration[self._name]
        others = [value for value in values if value != current]
        jobs = [
            Job(self._configuration.replace(name, value), example, run.config.seed, run.system.kept(trace, name))
            for value in others
            for example, trace in self._runs
        ]
        with run.progress.bar("proposals on training inputs", len(jobs)) as advance:
            made = iter(run_many(run.system, jobs, concurrency=run.config.concurrency, on_done=advance))
        known = [trace for _, trace in self._runs]
        tried = [known if value == current else [next(made) for _ in self._runs] for value in values]
        return [_Tried([t.steps[name].outputs for t in traces], [t.score for t in traces]) for traces in tried]


def emit_proposals(run: Run, name: str, proposals: Sequence[Proposal]) -> None:
    """One journal event per proposal."""
    for proposal in proposals:
        run.folder.emit(
            "proposal",
            component=name,
            kind=proposal.kind,
            value=value_to_json(proposal.value),
            local_gain=proposal.local_gain,
            local_score=proposal.local_score,
        )
