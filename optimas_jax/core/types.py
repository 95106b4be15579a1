"""Frozen containers that flow through the host wing: examples, traces, groups."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import statistics
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


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
    """An error that no outcome can stand for: a spent budget, a full disk, a dead engine, an impossible request.

    It ends the run at once with its message. Everything paid for stays on the tape, so that the same command resumes.
    """


def freeze(value: Any) -> Any:
    """Read-only copy of JSON-like data: mappings become proxies, lists become tuples."""
    if isinstance(value, Mapping):
        return MappingProxyType({key: freeze(item) for key, item in value.items()})
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
    """20 hexadecimal digits that name JSON-like data by its content."""
    text = json.dumps([thaw(part) for part in parts], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def derive_seed(*parts: Any) -> int:
    """A 32-bit seed that depends on all parts and on nothing else (not on the hash seed, not on order of work)."""
    return int(digest(*parts)[:8], 16)


@dataclasses.dataclass(frozen=True)
class Example:
    """One row of a benchmark.

    Attributes:
      id: unique within the benchmark.
      inputs: what the system is given.
      gold: what the metric compares with.
      split: ``train``, ``val`` or ``test``.
      kind: a sub-population that scores are also shown by, or "".
    """

    id: str
    inputs: Mapping[str, Any]
    gold: Mapping[str, Any]
    split: str
    kind: str = ""


@dataclasses.dataclass(frozen=True)
class Step:
    """What one component did in one run."""

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    outcome: Outcome = Outcome.OK
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Trace:
    """What one run of a system did.

    Attributes:
      example_id: which example.
      seed: which run of it.
      steps: by component, in the system's order; components behind a failed one are absent.
      outputs: the system's final outputs; empty unless ``outcome`` is ok.
      outcome: ok, or the outcome of the first component that failed.
      score: the metric, or its failure score.
    """

    example_id: str
    seed: int
    steps: Mapping[str, Step]
    outputs: Mapping[str, Any]
    outcome: Outcome
    score: float


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One candidate output of a component on one input.

    Attributes:
      outputs: what the component answered.
      source: where it came from: ``current``, ``sampled`` or ``value:<digest>``.
      rewards: global reward of each Monte Carlo rollout.
    """

    outputs: Mapping[str, Any]
    source: str
    rewards: tuple[float, ...]

    @property
    def reward(self) -> float:
        """Mean over rollouts (paper, Eq. 3)."""
        return statistics.fmean(self.rewards)


@dataclasses.dataclass(frozen=True)
class Group:
    """One (component, input) with its M candidate outputs."""

    component: str
    example_id: str
    inputs: Mapping[str, Any]
    candidates: tuple[Candidate, ...]

    @property
    def rewards(self) -> tuple[float, ...]:
        return tuple(candidate.reward for candidate in self.candidates)
