"""Costs of work, as the tape, the ledger, a search and a comparison add them up; and limits on them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from optimas_jax.core.types import StopRun


@dataclasses.dataclass(frozen=True)
class Usage:
    """Costs; they add up (``+``).

    Attributes:
      calls: completions, and executions of programs.
      prompt_tokens, completion_tokens: read and written by language models.
      usd: US dollars.
      seconds: compute time of models and programs, not wall-clock time.
      system_runs: runs of the system, from the start or from given outputs, that executed a component.
      component_calls: executions of components, in these runs or alone.
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
        return Usage(**{field.name: getattr(self, field.name) + getattr(other, field.name) for field in _FIELDS})

    def __sub__(self, other: Usage) -> Usage:
        return Usage(**{field.name: getattr(self, field.name) - getattr(other, field.name) for field in _FIELDS})

    def __str__(self) -> str:
        return f"{self.usd:.4f} US dollars, {self.tokens:,} tokens, {self.calls:,} calls"

    def to_json(self) -> dict[str, Any]:
        """All fields, and ``tokens``; dollars and seconds rounded for display."""
        fields = {**dataclasses.asdict(self), "usd": round(self.usd, 6), "seconds": round(self.seconds, 3)}
        return {**fields, "tokens": self.tokens}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Usage:
        return cls(**{field.name: data[field.name] for field in _FIELDS})


_FIELDS = dataclasses.fields(Usage)

Used = tuple[str, str, Usage]  # (role, key, usage) of one answered request


class OutOfBudget(StopRun):
    """The next request could use more than is left under ``llm.ledger.Ledger.limit``."""


class Allowance:
    """Tokens that a search, or a part of one, may use (``llm.ledger.Ledger.limit``); a nested one is a share of the one
    around it. It only counts; the ledger admits requests by it.

    Attributes:
      tokens: at most, from its beginning on; infinite for no limit.
      used: since its beginning, by requests that were new to the outermost allowance.
      requests: answered since its beginning, repeated ones included.
      closed: whether a request was refused under it; nothing that costs tokens is admitted then, however small.
      chain: this allowance and those around it, the outermost last.
    """

    def __init__(self, tokens: int | None, outer: Allowance | None):
        self.tokens = math.inf if tokens is None else tokens
        self.used, self.requests = Usage(), list[Used]()
        self.closed = outer is not None and outer.closed
        self.chain: tuple[Allowance, ...] = (self, *(outer.chain if outer else ()))
        self._keys: set[str] = outer._keys if outer else set()
        self._reserved = 0

    def has(self, key: str) -> bool:
        """Whether a request was used already, so that it costs nothing more."""
        return key in self._keys

    @property
    def left(self) -> float:
        """Tokens that are neither used nor reserved, here and in every allowance around this one."""
        return min(one.tokens - one.used.tokens - one._reserved for one in self.chain)

    def reserve(self, tokens: int) -> None:
        """Sets tokens of requests in flight aside; gives them back if negative."""
        for allowance in self.chain:
            allowance._reserved += tokens

    def use(self, role: str, key: str, usage: Usage) -> None:
        """Counts an answered request."""
        new = Usage() if key in self._keys else usage
        self._keys.add(key)
        for allowance in self.chain:
            allowance.used += new
            allowance.requests.append((role, key, usage))
