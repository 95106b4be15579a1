"""Costs of one call of a component and of one run of a system, as if no answer came from the tape."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

_COSTS = ("complete", "execute", "call")  # methods of a completer whose results have a usage


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of a call or of a run. A result from the tape has the cost of its recording.

    Attributes:
      tokens: read and written by language models.
      usd: US dollars.
      seconds: of a call, the sum over its requests; of a run, the sum over its longest chain of calls.
    """

    tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.tokens + other.tokens, self.usd + other.usd, self.seconds + other.seconds)


NOTHING = Cost()


def total(costs: Iterable[Cost]) -> Cost:
    """The sum."""
    return sum(costs, NOTHING)


def side_by_side(costs: Iterable[Cost]) -> Cost:
    """Cost of calls that are made at the same time: the sum of all costs, but the seconds of the longest call."""
    costs = list(costs)
    return dataclasses.replace(total(costs), seconds=max((cost.seconds for cost in costs), default=0.0))


class Counted:
    """Wraps a completer, and adds the cost of every result to a list."""

    def __init__(self, completer: Any, costs: list[Cost]):
        self._completer, self._costs = completer, costs

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._completer, name)
        if name not in _COSTS:
            return method

        async def counted(*arguments: Any, **settings: Any) -> Any:
            result = await method(*arguments, **settings)
            usage = result.usage
            self._costs.append(Cost(usage.tokens, usage.usd, usage.seconds))
            return result

        return counted
