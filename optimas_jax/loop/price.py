"""Price of a run's measurements before the first request: validation of the default, confirmation and final test.

The system runs on every example with a completer that sends no request: it adds up the worst case of each, and answers
with a text of the greatest length. A run that fails on such an answer ends there, and its price is too low. The price
is a plan; the ledger keeps the limit in any case.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optimas_jax.core.execution import gather
from optimas_jax.core.system import ComponentBug, NonFiniteScore, System
from optimas_jax.core.types import Example, Outcome
from optimas_jax.core.usage import Usage
from optimas_jax.llm.base import Completion, CompletionRequest, Effect
from optimas_jax.llm.sandbox import Execution, ExecutionRequest
from optimas_jax.sandbox.unittests import Verdict

_WORD = " word"  # a token of most vocabularies


@dataclasses.dataclass(frozen=True)
class Price:
    """The most that measurements are expected to cost.

    Attributes:
      confirm_runs, test_runs: runs of the system that confirmation and final test take under each of two
        configurations, the default and the last one.
      baseline: of the validation of the default.
      final: of confirmation and final test under both.
      largest: of one request, cost by cost.
    """

    confirm_runs: int = 0
    test_runs: int = 0
    baseline: Usage = Usage()
    final: Usage = Usage()
    largest: Usage = Usage()

    @property
    def final_runs(self) -> int:
        """Runs of confirmation and final test together, under each configuration."""
        return self.confirm_runs + self.test_runs

    @property
    def least(self) -> Usage:
        """The least that ``config.budget`` must allow."""
        return self.baseline + self.final

    def to_json(self) -> dict[str, Any]:
        costs = {name: getattr(self, name).to_json() for name in ("baseline", "final", "largest")}
        return {"confirm_runs": self.confirm_runs, "test_runs": self.test_runs, **costs}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Price:
        costs = {name: Usage.from_json(data[name]) for name in ("baseline", "final", "largest")}
        return cls(data["confirm_runs"], data["test_runs"], **costs)


class _Pricing:
    """Answers requests by itself, and adds up their worst case."""

    def __init__(self, most: Callable[[Effect[Any]], Usage]):
        self.total, self.largest, self._most = Usage(), Usage(), most

    async def complete(self, request: CompletionRequest) -> Completion:
        self._add(request)
        return Completion(_WORD * request.max_tokens, Outcome.OK, 0, 0)

    async def execute(self, request: ExecutionRequest) -> Execution:
        self._add(request)
        return Execution(Verdict("failed", (), {}))

    def _add(self, effect: Effect[Any]) -> None:
        usage = self._most(effect)
        self.total, self.largest = self.total + usage, self.largest.most(usage)


def price_of(
    system: System,
    most: Callable[[Effect[Any]], Usage],
    *,
    val: Sequence[Example],
    confirm: Sequence[Example],
    test: Sequence[Example],
    repeats: int,
    seed: int,
) -> Price:
    """Prices the measurements of a run under the default configuration.

    Args:
      most: the worst case of a request (``TapedCompleter.most``).
      val, confirm, test: the examples.
      repeats: runs of every example of ``test``.
    """
    baseline, confirmed, tested = (_price(system, most, examples, seed) for examples in (val, confirm, test))
    return Price(
        confirm_runs=len(confirm),
        test_runs=repeats * len(test),
        baseline=baseline.total,
        final=(confirmed.total + tested.total.times(repeats)).times(2),
        largest=baseline.largest.most(confirmed.largest).most(tested.largest),
    )


def _price(system: System, most: Callable[[Effect[Any]], Usage], examples: Sequence[Example], seed: int) -> _Pricing:
    pricing = _Pricing(most)
    dry = dataclasses.replace(system.using(pricing), meter=None)

    async def run(example: Example) -> None:
        with contextlib.suppress(ComponentBug, NonFiniteScore):
            await dry.run(system.default_configuration(), example, seed)

    gather([functools.partial(run, example) for example in examples], concurrency=len(examples) or 1)
    return pricing
