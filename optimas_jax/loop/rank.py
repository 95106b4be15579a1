"""Rank: what values of a component are worth on training inputs, by its local reward or by the global metric.

By the local reward a value costs one call of the component per input. By the global metric everything behind the
component runs again. Where a local reward was just adapted, the global rewards that it learned from are known; where
nothing is behind the component, those of all outputs. They correct it (``search.evidence``). All values are tried on a
few inputs, and the better half of them goes on to more.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from optimas_jax.core.system import Job, gather, run_many
from optimas_jax.core.types import Example, Trace, digest
from optimas_jax.core.values import Prompt, Value, plain_values, value_digest, value_to_json
from optimas_jax.loop.adapt import adapt, is_due
from optimas_jax.loop.budget import check_tokens
from optimas_jax.loop.config import OptimizeConfig
from optimas_jax.loop.context import Run
from optimas_jax.rewards.scorer import score_outputs
from optimas_jax.search.evidence import Change, expected_gains, rounds, survivors

if TYPE_CHECKING:
    from optimas_jax.loop.iteration import State

Runs = Sequence[tuple[Example, Trace]]
T = TypeVar("T")
_BLOCK = 32  # calls or runs of the system between two looks at the tokens


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A candidate value of one component with its evidence on training inputs.

    Attributes:
      expected_gain: by which proposals are ranked (``Screen.gains``).
      local_gain: mean score minus that of the current value, on the same inputs.
      local_score: mean score: local reward, or global metric where local rewards are off.
      inputs: on which it was tried.
    """

    value: Value
    kind: str
    expected_gain: float
    local_gain: float
    local_score: float
    inputs: int


@dataclasses.dataclass(frozen=True)
class _Tried:
    """What a component made with a value on the first inputs, and the score of it."""

    value: Value
    outputs: tuple[Mapping[str, Any], ...] = ()
    scores: tuple[float, ...] = ()


class Screen:
    """Scores values of one component on fixed training inputs, in rounds; no value is scored twice on an input.

    The values that it is asked about are what the local reward is adapted on, where that is due: it learns from the
    very outputs that it is to rank. Global rewards that it learned from correct it, and so do those that cost nothing,
    as nothing is behind the component.
    """

    def __init__(self, run: Run, config: OptimizeConfig, state: State, name: str, runs: Runs, seed: int):
        """``runs`` are those of the training inputs under ``state.configuration``; inputs on which the component was
        not reached are left out."""
        self._run, self._config, self._state, self._name, self._seed = run, config, state, name, seed
        self._runs = [(example, trace) for example, trace in runs if name in trace.steps]
        self._rounds = rounds(len(self._runs), config.rounds)
        self._tried: dict[str, _Tried] = {}
        self._adapted = 0  # inputs
        self._rewards: dict[tuple[str, str], float] = {}  # global ones that are known, by input and outputs

    @property
    def state(self) -> State:
        """With the local reward as it is by now."""
        return self._state

    def reward(self, values: Sequence[Value] = ()) -> str:
        """The local reward that ranks, adapted on what ``values`` make on the inputs of the first round if that is due,
        or on what the current value makes on all inputs; empty without one."""
        if not self._adapted and self._runs:
            self._adapt(values, self._rounds[0] if values else len(self._runs))
        return self._state.reward

    def _adapt(self, values: Sequence[Value], stop: int) -> None:
        start, self._adapted = self._adapted, max(stop, self._adapted)
        if start >= stop or not is_due(self._config.adapt):
            return
        before, runs = len(self._state.groups), self._runs[start:stop]
        self._state = adapt(self._run, self._config, self._state, [self._name], runs, self._seed, values)
        for group in self._state.groups[before:]:
            self._rewards |= {(group.example_id, digest(c.outputs)): c.reward for c in group.candidates}

    def proposals(self, values: Sequence[tuple[str, Value]]) -> list[Proposal]:
        """(kind, value) pairs with their gains, best first; those that were left behind in an early round come last.

        A value whose outputs are those of the current value or of an earlier one is left out: nothing tells them apart.
        """
        if not values or not self._runs:
            return []
        alive = [value for _, value in values]
        for inputs in self._rounds:
            gains = self._gains(alive, inputs)
            ranked = sorted(zip(gains, alive, strict=True), key=lambda pair: -pair[0])
            alive = [value for _, value in ranked[: survivors(len(ranked), self._config.gate_top)]]
        found: list[Proposal] = []
        seen: list[tuple[Mapping[str, Any], ...]] = []
        gains = self._gains([value for _, value in values], 0)
        for (kind, value), gain in zip(values, gains, strict=True):
            tried, fair = self._tried[value_digest(value)], self._fair(value)
            if tried.outputs in (*seen, self._current.outputs[: len(tried.outputs)]) or not fair:
                continue
            seen.append(tried.outputs)
            score = statistics.fmean(tried.scores[place] for place in fair)
            found.append(Proposal(value, kind, gain, self._mean_gain(tried), score, len(tried.outputs)))
        return sorted(found, key=lambda proposal: (-proposal.inputs, -proposal.expected_gain))

    def gains(self, values: Sequence[Value]) -> list[float]:
        """Gain of each value over the current one on the inputs of the first round: mean difference of scores, or what
        ``search.evidence`` expects; 0 where no input says anything about it.

        Raises:
          OutOfTokens: if the search has used its tokens before all values are scored.
        """
        return self._gains(values, self._rounds[0]) if values and self._runs else [0.0] * len(values)

    def _gains(self, values: Sequence[Value], inputs: int) -> list[float]:
        """Gains on at least so many inputs, and on all that a value was tried on."""
        self._try(values, inputs)
        if self._config.score == "global" or self._config.ranking == "mean":
            return [self._mean_gain(self._tried[value_digest(value)]) for value in values]
        changes = {key: [self._change(tried, p) for p in self._fair(tried.value)] for key, tried in self._tried.items()}
        gains = dict(zip(changes, expected_gains([*changes.values()]), strict=True))
        return [gains[value_digest(value)] for value in values]

    def _mean_gain(self, tried: _Tried) -> float:
        """Mean difference of a value's scores to those of the current one."""
        fair = self._fair(tried.value)
        return statistics.fmean(tried.scores[p] - self._current.scores[p] for p in fair) if fair else 0.0

    def _change(self, tried: _Tried, place: int) -> Change | None:
        """What a value changes on one input; None if it makes the same outputs."""
        current = self._current
        if tried.outputs[place] == current.outputs[place]:
            return None
        example = self._runs[place][0]
        old, new = (self._rewards.get((example.id, digest(one.outputs[place]))) for one in (current, tried))
        known = None if old is None or new is None else new - old
        return Change(tried.scores[place] - current.scores[place], known)

    @property
    def _current(self) -> _Tried:
        return self._tried[value_digest(self._state.configuration[self._name])]

    def _fair(self, value: Value) -> list[int]:
        """Places of the inputs that a value was tried on and that none of its demonstrations was taken from."""
        shown = [demo.inputs for one in plain_values(value) if isinstance(one, Prompt) for demo in one.demos]
        tried = len(self._tried[value_digest(value)].outputs)
        return [p for p in range(tried) if self._runs[p][1].steps[self._name].inputs not in shown]

    def _try(self, values: Sequence[Value], inputs: int) -> None:
        """Tries values, and the current one, on the first inputs."""
        every = {value_digest(value): value for value in (self._state.configuration[self._name], *values)}
        behind: dict[int, list[Value]] = {}
        for key, value in every.items():
            start = len(self._tried.setdefault(key, _Tried(value)).outputs)
            if start < inputs:
                behind.setdefault(start, []).append(value)
        make = self._by_local_reward if self._config.score == "local" else self._by_metric
        for start, late in sorted(behind.items()):
            for more in make(late, start, inputs):
                before = self._tried[value_digest(more.value)]
                self._tried[value_digest(more.value)] = _Tried(
                    more.value, (*before.outputs, *more.outputs), (*before.scores, *more.scores)
                )

    def _by_local_reward(self, values: Sequence[Value], start: int, stop: int) -> list[_Tried]:
        run, name, runs = self._run, self._name, self._runs[start:stop]
        calls = [
            functools.partial(run.system.run_component, name, trace.steps[name].inputs, value, example, run.config.seed)
            for example, trace in runs
            for value in values
        ]
        made = self._in_blocks(calls)
        rows = [
            (trace.steps[name].inputs, [step.outputs for step in made[place * len(values) : (place + 1) * len(values)]])
            for place, (_, trace) in enumerate(runs)
        ]
        self._adapt([value for value in values if value != self._state.configuration[name]], stop)
        scores = score_outputs(run.engine.scorer, run.system, self._state.reward, name, rows)
        if self._config.ranking == "corrected" and run.system.scores_at_once(name):
            self._score_at_once(runs, [outputs for _, outputs in rows])
        return [
            _Tried(value, tuple(outputs[column] for _, outputs in rows), tuple(row[column] for row in scores))
            for column, value in enumerate(values)
        ]

    def _score_at_once(self, runs: Runs, made: Sequence[Sequence[Mapping[str, Any]]]) -> None:
        """Notes the global rewards of all outputs, by input; where the component failed, the failure score."""
        run, name = self._run, self._name
        jobs = {
            (example.id, digest(outputs)): Job(
                self._state.configuration, example, run.config.seed, run.system.kept(trace, name, outputs)
            )
            for (example, trace), row in zip(runs, made, strict=True)
            for outputs in row
            if outputs
        }
        ends = run_many(run.system, list(jobs.values()), concurrency=run.config.concurrency)
        failed = {(example.id, digest({})): run.system.failure_score for example, _ in runs}
        self._rewards |= failed | {place: end.score for place, end in zip(jobs, ends, strict=True)}

    def _by_metric(self, values: Sequence[Value], start: int, stop: int) -> list[_Tried]:
        run, name, current = self._run, self._name, self._state.configuration[self._name]
        runs = self._runs[start:stop]
        others = [value for value in values if value != current]
        calls = [
            functools.partial(
                run.system.run,
                self._state.configuration.replace(name, value),
                example,
                run.config.seed,
                run.system.kept(trace, name),
            )
            for value in others
            for example, trace in runs
        ]
        made = iter(self._in_blocks(calls))
        known = [trace for _, trace in runs]
        tried = [(value, known if value == current else [next(made) for _ in runs]) for value in values]
        return [
            _Tried(value, tuple(t.steps[name].outputs for t in traces), tuple(t.score for t in traces))
            for value, traces in tried
        ]

    def _in_blocks(self, calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
        """Awaits all calls, a block at a time: a search ends within a block of the tokens that it was given."""
        run, made = self._run, list[T]()
        with run.progress.bar("proposals on training inputs", len(calls)) as advance:
            for start in range(0, len(calls), _BLOCK):
                check_tokens(run)
                block = calls[start : start + _BLOCK]
                made += gather(block, concurrency=run.config.concurrency, on_done=advance)
        return made


def emit_proposals(run: Run, name: str, proposals: Sequence[Proposal]) -> None:
    """One journal event per proposal."""
    for proposal in proposals:
        run.folder.emit(
            "proposal",
            component=name,
            kind=proposal.kind,
            value=value_to_json(proposal.value),
            expected_gain=proposal.expected_gain,
            local_gain=proposal.local_gain,
            local_score=proposal.local_score,
            inputs=proposal.inputs,
        )
