"""Costs of work, which tape, ledger, search and comparison add up, and limits on these costs."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping
from typing import Any

from optimas_jax.core.types import StopRun


@dataclasses.dataclass(frozen=True)
class Usage:
    """Costs of some work; ``+`` adds them up.

    Attributes:
      calls: completions, and executions of programs.
      prompt_tokens, completion_tokens: tokens that language models read and wrote.
      usd: US dollars.
      seconds: compute time of models and programs, not wall-clock time.
      system_runs: runs of the system, from the start or from given outputs, that executed at least one component.
      component_calls: executions of components, in these runs or outside of runs.
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0
    system_runs: int = 0
    component_calls: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(*map(operator.add, vars(self).values(), vars(other).values()))

    def __sub__(self, other: Usage) -> Usage:
        return Usage(*map(operator.sub, vars(self).values(), vars(other).values()))

    def __str__(self) -> str:
        return f"{self.usd:.4f} US dollars, {self.tokens:,} tokens, {self.calls:,} calls"

    def to_json(self) -> dict[str, Any]:
        """All fields, and ``tokens``; dollars and seconds are rounded, which removes the rounding noise of sums."""
        fields = {**vars(self), "usd": round(self.usd, 12), "seconds": round(self.seconds, 3)}
        return {**fields, "tokens": self.tokens}

    def times(self, factor: float) -> Usage:
        """All costs multiplied by a number; counts are rounded up."""
        values = {field.name: getattr(self, field.name) * factor for field in _FIELDS}
        return Usage(**{name: x if name in ("usd", "seconds") else math.ceil(x) for name, x in values.items()})

    def most(self, other: Usage) -> Usage:
        """The larger of the two values of each cost."""
        return Usage(**{field.name: max(getattr(self, field.name), getattr(other, field.name)) for field in _FIELDS})

    def least(self, other: Usage) -> Usage:
        """The smaller of the two values of each cost."""
        return Usage(**{field.name: min(getattr(self, field.name), getattr(other, field.name)) for field in _FIELDS})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Usage:
        return cls(**{field.name: data[field.name] for field in _FIELDS})


_FIELDS = dataclasses.fields(Usage)


@dataclasses.dataclass(frozen=True)
class Limit:
    """Upper limits on costs; infinity stands for no limit.

    Attributes:
      usd: US dollars.
      tokens: read and written.
      calls: completions, and executions of programs.
    """

    usd: float = math.inf
    tokens: float = math.inf
    calls: float = math.inf

    def exceeded(self, usage: Usage) -> list[str]:
        """Names of the limits that ``usage`` exceeds."""
        return [name for name, limit in dataclasses.asdict(self).items() if getattr(usage, name) > limit]

    def rest(self, usage: Usage) -> Limit:
        """The limits that are left after ``usage``; never below 0."""
        return Limit(**{name: max(0, limit - getattr(usage, name)) for name, limit in dataclasses.asdict(self).items()})

    def share(self, part: float) -> Limit:
        """The finite limits multiplied by ``part``; counts are rounded down."""

        def scaled(name: str, limit: float) -> float:
            return limit if limit == math.inf else limit * part if name == "usd" else math.floor(limit * part)

        return Limit(**{name: scaled(name, limit) for name, limit in dataclasses.asdict(self).items()})

    def within(self, other: Limit) -> Limit:
        """The smaller of the two values of each limit."""
        return Limit(min(self.usd, other.usd), min(self.tokens, other.tokens), min(self.calls, other.calls))

    @property
    def is_set(self) -> bool:
        """Whether there is any limit."""
        return self != Limit()

    def __str__(self) -> str:
        words = {"usd": "US dollars", "tokens": "tokens", "calls": "calls"}
        limits = {words[name]: limit for name, limit in dataclasses.asdict(self).items() if limit < math.inf}
        return ", ".join(f"{x:,.4f} {w}" if w == "US dollars" else f"{x:,.0f} {w}" for w, x in limits.items()) or "all"


UNLIMITED = Limit()
Used = tuple[str, str, Usage]  # (role, key, usage) of one answered request


class OutOfBudget(StopRun):
    """The next request could use more than is left under ``llm.accounts.ledger.Ledger.limit``."""


class Allowance:
    """Counts what a run, or a part of a run, uses under a limit (``Ledger.limit``). The ledger admits requests by these
    counts. A nested allowance is a share of the allowance around it.

    Attributes:
      limit: the most that may be used since its beginning.
      used: since its beginning, by requests that were new to the outermost allowance.
      held: costs that are set aside for later work.
      requests: answered requests since its beginning, repeated ones included.
      closed: whether a request was refused under it; then no request with a cost is admitted any more, however small.
      chain: this allowance and those around it, the outermost last.
    """

    def __init__(self, limit: Limit, outer: Allowance | None):
        self.limit = limit
        self.used, self.held, self.requests = Usage(), Usage(), list[Used]()
        self.closed = outer is not None and outer.closed
        self.chain: tuple[Allowance, ...] = (self, *(outer.chain if outer else ()))
        self._keys: set[str] = outer._keys if outer else set()
        self._reserved = Usage()

    def has(self, key: str) -> bool:
        """Whether a request was counted already, so that it costs nothing more."""
        return key in self._keys

    @property
    def left(self) -> Limit:
        """What is neither used, held nor reserved, here and in every allowance around this one."""
        left = UNLIMITED
        for allowance in self.chain:
            left = left.within(allowance.limit.rest(allowance.used + allowance.held + allowance._reserved))
        return left

    def reserve(self, usage: Usage) -> None:
        """Sets aside the costs of a request in flight."""
        for allowance in self.chain:
            allowance._reserved += usage

    def release(self, usage: Usage) -> None:
        """Gives back the costs that ``reserve`` set aside."""
        for allowance in self.chain:
            allowance._reserved -= usage

    def use(self, role: str, key: str, usage: Usage) -> None:
        """Counts an answered request; a repeated one adds no costs."""
        new = Usage() if key in self._keys else usage
        self._keys.add(key)
        for allowance in self.chain:
            allowance.used += new
            allowance.requests.append((role, key, usage))
