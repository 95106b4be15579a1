"""Frozen containers that flow through the host wing: examples, traces, groups."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import json
import re
import statistics
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from optimas_jax.core.cost import NOTHING, Cost


class Outcome(enum.StrEnum):
    """How a component, or a whole run, ended."""

    OK = "ok"
    PARSE_ERROR = "parse_error"
    REFUSED = "refused"
    TRUNCATED = "truncated"
    TIMEOUT = "timeout"
    RATE_LIMITED = "rate_limited"
    CRASHED = "crashed"
    OVER_BUDGET = "over_budget"


class StopRun(Exception):
    """An error that ends the run: a spent budget, a full disk, a dead engine, an impossible request.

    The user sees its message. All paid results stay on the tape, so that the same command resumes.
    """


_INVALID = re.compile("[\0\ud800-\udfff]")


def valid_text(text: str) -> str:
    """The text as it can be written to any file and sent to any server: NUL and lone surrogates become U+FFFD."""
    return _INVALID.sub("\ufffd", text)


def freeze(value: Any) -> Any:
    """Read-only copy of JSON-like data: mappings become proxies, lists become tuples, texts are valid."""
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, Mapping):
        return MappingProxyType({freeze(key): freeze(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return tuple(freeze(item) for item in value)
    return value


def thaw(value: Any) -> Any:
    """The inverse of ``freeze``: plain dicts and lists, ready for ``json``."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [thaw(item) for item in value]
    return value


def digest(*parts: Any) -> str:
    """Content address of JSON-like data: 20 hexadecimal digits."""
    text = json.dumps([thaw(part) for part in parts], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def derive_seed(*parts: Any) -> int:
    """A 32-bit seed that depends on the parts alone (not on the hash seed or the order of work)."""
    return int(digest(*parts)[:8], 16)


@dataclasses.dataclass(frozen=True)
class Example:
    """One row of a benchmark.

    Attributes:
      id: unique within the benchmark.
      inputs: input fields of the system.
      gold: fields that the metric compares with.
      split: ``train``, ``val`` or ``test``.
      kind: subset with scores of its own in results, or "".

    It raises nothing by itself: rows are checked where they are read.

    Example:
      ```python
      row = oj.Example("row-1", {"question": "Where is Lima?"}, {"answer": "Peru"}, split="test", kind="places")
      ```
    """

    id: str
    inputs: Mapping[str, Any]
    gold: Mapping[str, Any]
    split: str
    kind: str = ""


@dataclasses.dataclass(frozen=True)
class Call:
    """Record of one call of a component in one run.

    Attributes:
      component: its name.
      inputs: fields that it read.
      outputs: fields that it wrote; empty unless ``outcome`` is ok.
      outcome, detail: how it ended; why it failed, or how a used answer was cut short.
      occurrence: number of the component's calls before it, in the order of the program.
      repeat: number of these earlier calls with equal inputs; each repetition has its own seed.
      position: in the order of the program (``core.program``).
      reasoning: reasoning of a model before its answer; no part of ``outputs``.
      cost: of all its requests.
    """

    component: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    outcome: Outcome = Outcome.OK
    detail: str = ""
    occurrence: int = 0
    repeat: int = 0
    position: tuple[int, ...] = dataclasses.field(default=(), compare=False)
    reasoning: str = dataclasses.field(default="", compare=False)
    cost: Cost = dataclasses.field(default=NOTHING, compare=False)

    @functools.cached_property
    def key(self) -> CallKey:
        """Name of the call within runs of one configuration and seed."""
        return self.component, digest(self.inputs), self.repeat


CallKey = tuple[str, str, int]  # component, digest of its inputs, number of calls before it with equal inputs


@dataclasses.dataclass(frozen=True)
class Trace:
    """Record of one run of a system.

    Attributes:
      example_id: the example.
      seed: seed of the run.
      calls: in the order of the program; a graph has one of each component, in the system's order, without descendants
        of a component that failed.
      outputs: the system's final outputs; empty unless ``outcome`` is ok.
      outcome: ok, or the outcome of the call that failed the run.
      score: the metric, or its failure score.
      feedback: the metric's reason for the score.
      parts: parts of the score, if the metric returns some.
      cost: of the run; the metric's own requests are no part of it.
      penalty: the cost in units of the score (``core.objective``).
    """

    example_id: str
    seed: int
    calls: tuple[Call, ...]
    outputs: Mapping[str, Any]
    outcome: Outcome
    score: float
    feedback: str = ""
    parts: Mapping[str, float] = dataclasses.field(default_factory=dict)
    cost: Cost = dataclasses.field(default=NOTHING, compare=False)
    penalty: float = dataclasses.field(default=0.0, compare=False)

    @property
    def reward(self) -> float:
        """The number by which runs are compared: score minus ``penalty``."""
        return self.score - self.penalty if self.penalty else self.score

    def calls_of(self, component: str) -> tuple[Call, ...]:
        """The component's calls, in the order of the program."""
        return tuple(call for call in self.calls if call.component == component)

    def indices(self, component: str) -> tuple[int, ...]:
        """Indices of the component's calls in ``calls``."""
        return tuple(index for index, call in enumerate(self.calls) if call.component == component)

    def reaches(self, component: str) -> bool:
        """Whether the component was called."""
        return any(call.component == component for call in self.calls)

    def first(self, component: str) -> Call:
        """The component's first call; raises ``KeyError`` if it was never called."""
        for call in self.calls:
            if call.component == component:
                return call
        raise KeyError(f"no call of {component!r} in the run of example {self.example_id!r}")


RECORDED = "trace:"  # beginning of the source of a recorded candidate


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One candidate output of a component on one input.

    Attributes:
      outputs: outputs of the component; empty if it failed.
      source: ``current`` for the value in use, ``sampled:<i>`` for hotter samples of it, ``value:<digest>`` for another
        value, ``variable:<text>`` in imported data, ``trace:<file, line>`` of a recorded call. Candidates have no
        order.
      rewards: global reward of each Monte Carlo rollout.
    """

    outputs: Mapping[str, Any]
    source: str
    rewards: tuple[float, ...]

    @property
    def recorded(self) -> str:
        """File and line of the recorded call that it comes from; "" for other candidates."""
        return self.source.removeprefix(RECORDED) if self.source.startswith(RECORDED) else ""

    @property
    def reward(self) -> float:
        """Mean over rollouts (paper, Eq. 3)."""
        return statistics.fmean(self.rewards)


@dataclasses.dataclass(frozen=True)
class Group:
    """One (component, input) with its M candidate outputs.

    Attributes:
      component: its name.
      example_id: names the input of the system, alike for all components.
      inputs: inputs of the component.
      candidates: different outputs.
      configuration: digest of the configuration under which rewards were measured; "" if unknown.
      occurrence: number of the call whose outputs differ (``Call``); all other calls are as in the run, or follow from
        it.
    """

    component: str
    example_id: str
    inputs: Mapping[str, Any]
    candidates: tuple[Candidate, ...]
    configuration: str = ""
    occurrence: int = 0

    @property
    def current(self) -> Candidate | None:
        """The candidate of the value in use, from a run or else from a recorded call; None if there is none."""
        recorded = next((candidate for candidate in self.candidates if candidate.recorded), None)
        return next((candidate for candidate in self.candidates if candidate.source == "current"), recorded)

    @property
    def rewards(self) -> tuple[float, ...]:
        return tuple(candidate.reward for candidate in self.candidates)
