"""Running totals of calls, tokens, dollars and seconds, per phase and role."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

from optimas_jax.llm.base import Completion


@dataclasses.dataclass
class Totals:
    """What one role did in one phase.

    Attributes:
      calls: completions asked for, those from the tape included.
      paid_calls: completions that were not on the tape when this command started.
      prompt_tokens, completion_tokens, usd, seconds: of all calls, as recorded when they were paid for.
    """

    calls: int = 0
    paid_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0


class Ledger:
    """Counts completions. The phase is set by the stage that runs; the role comes with each request."""

    def __init__(self) -> None:
        self._totals: dict[tuple[str, str], Totals] = collections.defaultdict(Totals)
        self._phase = "setup"
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Books everything inside the block under ``name``; phases may nest."""
        outer, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = outer

    def add(self, role: str, completion: Completion, *, paid: bool) -> None:
        with self._lock:
            totals = self._totals[self._phase, role]
            totals.calls += 1
            totals.paid_calls += paid
            totals.prompt_tokens += completion.prompt_tokens
            totals.completion_tokens += completion.completion_tokens
            totals.usd += completion.usd
            totals.seconds += completion.seconds

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
