"""What a peer did: its tokens, and the best configuration among those that it evaluated."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Sequence
from typing import Any

from optimas_jax.core.values import Configuration
from optimas_jax.llm.base import Completer, Completion, CompletionRequest
from optimas_jax.loop.budget import Cost

_CIRCLES = 20_000  # requests in a row that cost nothing new: a peer that goes in circles would never use its budget


class Books:
    """Counts and records. Safe for use from several threads.

    A request that is repeated counts once, as an optimiser with a cache pays for it once, and as ours are counted.

    Attributes:
      budget: tokens, prompts and answers together, after which nothing more is answered.
      curve: points of best validation score against cost, as ``loop.budget`` writes them.
    """

    def __init__(self, inner: Completer, budget: int, default: Configuration, validation: Sequence[str]):
        """``validation`` are the ids of the examples on which a configuration is judged."""
        self.budget, self.curve = budget, list[dict[str, Any]]()
        self._inner, self._validation = inner, tuple(validation)
        self._best, self._best_score = default, 0.0
        self._scores: dict[str, dict[str, float]] = {}
        self._paid: set[str] = set()
        self._idle = 0
        self._cost = Cost()
        self._lock = threading.Lock()

    @property
    def completer(self) -> Completer:
        """Answers, and counts."""
        return self

    async def complete(self, request: CompletionRequest) -> Completion:
        completion = await self._inner.complete(request)
        with self._lock:
            if request.key not in self._paid:
                self._paid.add(request.key)
                tokens = completion.prompt_tokens + completion.completion_tokens
                self._idle = 0
                self._cost += Cost(calls=1, tokens=tokens, usd=completion.usd, seconds=completion.seconds)
        return completion

    def admit(self) -> bool:
        """Whether one more request is answered: not once the budget is used, nor for a peer that goes in circles."""
        with self._lock:
            self._idle += 1
            return self._idle <= _CIRCLES and not (self.budget and self._cost.tokens >= self.budget)

    @property
    def cost(self) -> Cost:
        return self._cost

    def scored(self, configuration: Configuration, example_id: str, score: float) -> None:
        """Notes one run of the system. A configuration that has all validation examples is a candidate; of equal ones
        the first stays the best."""
        with self._lock:
            self._cost += Cost(system_runs=1)
            if example_id not in self._validation:
                return
            known = self._scores.setdefault(configuration.digest, {})
            before = len(known)
            known[example_id] = score
            if len(known) == before or len(known) < len(self._validation):
                return
            mean = statistics.fmean(known.values())
            if not self.curve or mean > self._best_score:
                self._best, self._best_score = configuration, mean
            self._mark("candidate")

    def result(self) -> tuple[Configuration, str]:
        """The best candidate, which is the one to test; without any, the default configuration and words that say
        so."""
        with self._lock:
            if not self.curve:
                return self._best, "nothing was evaluated on all validation examples: the default configuration"
            self._mark("end")
            return self._best, ""

    def _mark(self, at: str) -> None:
        cost = {field: getattr(self._cost, field) for field in ("calls", "tokens", "usd", "seconds", "system_runs")}
        self.curve.append({"at": at, "val_score": self._best_score, **cost})
