"""Running totals of calls, tokens, dollars and seconds, per phase and role; and the budget, which is never overrun.

Two things are counted, and they answer two questions.

*What was paid* is what the budget limits. A call that the tape answers costs nothing; what the tape holds when a
command starts was paid for by commands before it. Budget and spending therefore belong to the run folder: the same
command again goes on with what is left, and a higher limit with more. Before a call is made, the most that it can cost
is reserved, calls in flight included, and given back when its true cost is known.

*What was used* (``Ledger.to_json``) is what a phase costs that starts with an empty tape: a request that is repeated
within a phase costs once. It does not depend on what was on the tape before, nor on the order in which calls in flight
end: between two decisions it is the same number in every repetition of a run. Searches stop by it (``loop.budget``).
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from optimas_jax.core.ranges import NonNegativeFloat, NonNegativeInt
from optimas_jax.core.types import StopRun
from optimas_jax.llm.base import Completion, CompletionRequest
from optimas_jax.llm.prices import Price, price_of

_TEMPLATE_TOKENS = 64  # of a chat template: its own words, and the marks around one turn


class OverBudget(StopRun):
    """The next call could cost more than is left."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """The most that completions of one run folder may cost; 0 for no limit.

    Attributes:
      usd: US dollars.
      tokens: read and written, local models included.
      calls: completions.
    """

    usd: NonNegativeFloat = 0.0
    tokens: NonNegativeInt = 0
    calls: NonNegativeInt = 0


@dataclasses.dataclass(frozen=True)
class Charge:
    """Of one call, or of many."""

    usd: float = 0.0
    tokens: int = 0
    calls: int = 0

    def __add__(self, other: Charge) -> Charge:
        return Charge(self.usd + other.usd, self.tokens + other.tokens, self.calls + other.calls)

    def __sub__(self, other: Charge) -> Charge:
        return Charge(self.usd - other.usd, self.tokens - other.tokens, self.calls - other.calls)

    def __str__(self) -> str:
        return f"{self.usd:.4f} US dollars, {self.tokens:,} tokens, {self.calls:,} calls"


def most_tokens(request: CompletionRequest) -> tuple[int, int]:
    """No more tokens than these are read and written. A token is at least one byte of UTF-8."""
    read = sum(len(message.content.encode()) + _TEMPLATE_TOKENS for message in request.messages)
    return read, request.max_tokens


@dataclasses.dataclass
class Totals:
    """What one role did in one phase.

    Attributes:
      calls: completions asked for, those from the tape included.
      paid_calls: completions that were not on the tape when this command started.
      requests: different ones.
      prompt_tokens, completion_tokens, usd, seconds: of all different requests, as recorded when they were paid for.
    """

    calls: int = 0
    paid_calls: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0


class Ledger:
    """Counts completions. The phase is set by the stage that runs; the role comes with each request."""

    def __init__(
        self, budget: Budget | None = None, spent: Charge | None = None, prices: Mapping[str, Price] | None = None
    ) -> None:
        """``spent``: what the tape's completions cost. ``prices``: those of ``config.prices``."""
        self._totals: dict[tuple[str, str], Totals] = collections.defaultdict(Totals)
        self._seen: dict[str, set[str]] = collections.defaultdict(set)  # keys of requests, by phase
        self._phase = "setup"
        self._lock = threading.Lock()
        self._budget, self._prices = budget or Budget(), prices or {}
        self._spent, self._reserved = spent or Charge(), Charge()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Books everything inside the block under ``name``; phases may nest."""
        outer, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = outer

    def add(self, role: str, key: str, completion: Completion, *, paid: bool) -> None:
        """Counts one call of a request with this key. ``paid``: it was not on the tape."""
        with self._lock:
            totals = self._totals[self._phase, role]
            totals.calls += 1
            totals.paid_calls += paid
            seen = self._seen[self._phase]
            if key in seen:
                return
            seen.add(key)
            totals.requests += 1
            totals.prompt_tokens += completion.prompt_tokens
            totals.completion_tokens += completion.completion_tokens
            totals.usd += completion.usd
            totals.seconds += completion.seconds

    def most(self, request: CompletionRequest) -> Charge:
        """The most that a request can cost."""
        if not request.max_tokens:  # asks no model, but for a program to be run (``llm.sandbox``)
            return Charge(calls=1)
        price = price_of(request.model, self._prices)
        if price is None and self._budget.usd:
            raise OverBudget(
                f"no price of {request.model} is known, and config.budget.usd is {self._budget.usd}: set "
                f"config.prices to {request.model}=PROMPT/COMPLETION, in US dollars per million tokens"
            )
        read, written = most_tokens(request)
        return Charge(price.usd(read, written) if price else 0.0, read + written, 1)

    def reserve(self, most: Charge) -> bool:
        """Sets the cost of a call aside; False if that and what is in flight could cost more than is left."""
        with self._lock:
            total = self._spent + self._reserved + most
            if any(0 < limit < amount for limit, amount in self._limits(total)):
                return False
            self._reserved += most
            return True

    def settle(self, most: Charge, completion: Completion | None) -> None:
        """Replaces what was reserved by what a call cost: nothing if there is no completion."""
        with self._lock:
            self._reserved -= most
            if completion is not None:
                self._spent += Charge(completion.usd, completion.prompt_tokens + completion.completion_tokens, 1)

    def refusal(self, most: Charge) -> OverBudget:
        """Why a call is not made, and how to go on."""
        with self._lock:
            spent = self._spent
        limits = self._limits(spent + most)
        names = [f.name for f in dataclasses.fields(Budget)]
        reached = ", ".join(
            f"config.budget.{name} = {limit}"
            for name, (limit, amount) in zip(names, limits, strict=True)
            if 0 < limit < amount
        )
        return OverBudget(
            f"the budget is spent ({reached}): {spent} so far in this run folder, and the next call may cost {most}. "
            "All of it is kept: raise the limit and run the same command again"
        )

    def _limits(self, cost: Charge) -> list[tuple[float, float]]:
        """(limit, amount), in the order of the fields."""
        return [(getattr(self._budget, f.name), getattr(cost, f.name)) for f in dataclasses.fields(Budget)]

    def to_json(self) -> dict[str, dict[str, dict[str, Any]]]:
        """{phase: {role: totals}}, in order of first use."""
        table: dict[str, dict[str, dict[str, Any]]] = {}
        for (phase, role), totals in self._totals.items():
            row = dataclasses.asdict(totals)
            table.setdefault(phase, {})[role] = {
                **row,
                "usd": round(row["usd"], 6),
                "seconds": round(row["seconds"], 3),
            }
        return table

    @property
    def paid_calls(self) -> int:
        return sum(totals.paid_calls for totals in self._totals.values())
