"""The account of a peer: its tokens, and the best configuration among those that it evaluated."""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
import threading
from collections.abc import Sequence
from typing import Any

from optimas_jax.core.types import StopRun
from optimas_jax.core.usage import Usage
from optimas_jax.core.values import Configuration
from optimas_jax.llm.base import Completion, CompletionRequest, count_prompt
from optimas_jax.llm.sandbox import Execution, ExecutionRequest
from optimas_jax.llm.tapes.taped import TapedCompleter

_REPEATS = 20_000  # requests in a row that cost nothing new, after which a peer is taken to repeat itself without end
_WAIT_SECONDS = 0.01


class BudgetUsed(StopRun):
    """The next request could exceed the budget."""


class Account:
    """Counts and records. Safe for use from several threads.

    A request that is repeated counts once, as for an optimiser with a cache, and as in each stage of our own runs.

    Attributes:
      budget: most tokens, prompts and answers together; 0 for no limit. A request that could exceed it is refused
        before it starts.
      curve: points of best validation score against cost, as ``loop.budget`` writes them.
    """

    def __init__(self, inner: TapedCompleter, budget: int, default: Configuration, validation: Sequence[str]):
        """``validation``: ids of the examples on which a configuration is judged."""
        self.budget, self.curve = budget, list[dict[str, Any]]()
        self._inner, self._validation = inner, tuple(validation)
        self._best, self._best_score = default, 0.0
        self._scores: dict[str, dict[str, float]] = {}
        self._paid: set[str] = set()
        self._reserved = 0
        self._repeats = 0
        self._cost = Usage()
        self._lock = threading.Lock()

    @property
    def cost(self) -> Usage:
        """Usage so far."""
        return self._cost

    async def complete(self, request: CompletionRequest) -> Completion:
        """Answers a request and counts it.

        Raises:
          BudgetUsed: if it could exceed the budget, with nothing in flight.
        """
        most = await self._reserve(request)
        try:
            completion = await self._inner.complete(request)
        except BaseException:
            self._settle(request, most, None)
            raise
        self._settle(request, most, completion)
        return completion

    async def execute(self, request: ExecutionRequest) -> Execution:
        """Runs a program; costs no tokens."""
        return await self._inner.execute(request)

    async def _reserve(self, request: CompletionRequest) -> int:
        """Reserves the most tokens that a request can cost, by the exact length of its prompt where that is known, as
        for our own runs."""
        most = request.most()
        exact = count_prompt(self._inner, request)
        if exact is not None:
            most = dataclasses.replace(most, prompt_tokens=exact)
        return await self._reserve_tokens(request.key, most.tokens)

    async def _reserve_tokens(self, key: str, most: int) -> int:
        """Waits while only the reservations of requests in flight leave no room: most requests cost less than was
        reserved for them."""
        while True:
            with self._lock:
                self._repeats += 1
                if self._repeats > _REPEATS:
                    raise BudgetUsed(f"{_REPEATS} requests in a row cost nothing new")
                if key in self._paid:
                    return 0
                if not self.budget or self._cost.tokens + self._reserved + most <= self.budget:
                    self._reserved += most
                    return most
                if not self._reserved:
                    raise BudgetUsed(
                        f"{self._cost.tokens:,} of {self.budget:,} tokens are used, a request needs {most:,}"
                    )
                self._repeats -= 1
            await asyncio.sleep(_WAIT_SECONDS)

    def _settle(self, request: CompletionRequest, most: int, completion: Completion | None) -> None:
        """Replaces what was reserved by what the request cost."""
        with self._lock:
            self._reserved -= most
            if completion is None or request.key in self._paid:
                return
            self._paid.add(request.key)
            self._repeats = 0
            self._cost += completion.usage

    def add_score(self, configuration: Configuration, example_id: str, score: float, sampled: bool = False) -> None:
        """Records one run of the system. A configuration with scores on all validation examples is a candidate; of
        candidates with equal means the first stays the best.

        Args:
          sampled: the run had a temperature of its own: it counts, but does not measure the configuration.
        """
        with self._lock:
            self._cost += Usage(system_runs=1)
            if sampled or example_id not in self._validation:
                return
            scores = self._scores.setdefault(configuration.digest, {})
            before = len(scores)
            scores[example_id] = score
            if len(scores) == before or len(scores) < len(self._validation):
                return
            mean = statistics.fmean(scores.values())
            if not self.curve or mean > self._best_score:
                self._best, self._best_score = configuration, mean
            self._mark("candidate")

    def result(self) -> tuple[Configuration, str]:
        """The best candidate and an empty note; without candidates the default configuration and a note that explains
        it."""
        with self._lock:
            if not self.curve:
                return self._best, "nothing was evaluated on all validation examples: the default configuration"
            self._mark("end")
            return self._best, ""

    def _mark(self, at: str) -> None:
        cost = {field: getattr(self._cost, field) for field in ("calls", "tokens", "usd", "seconds", "system_runs")}
        self.curve.append({"at": at, "val_score": self._best_score, **cost})
