"""Costs of each step of a run, and its time of waiting for answers. A request counts in the step that made it first."""

from __future__ import annotations

import dataclasses
import time

from optimas_jax.core.usage import Usage


class Bill:
    """Costs by step; a step is ``PHASE: PART``, or the phase alone.

    All steps together cost what a run with an empty tape pays, whatever was on the tape.

    Attributes:
      used: by step and role, in order of first use.
      waited: wall-clock seconds with requests in flight, by step.
    """

    def __init__(self) -> None:
        self.used: dict[str, dict[str, Usage]] = {}
        self.waited: dict[str, float] = {}
        self._seen: set[str] = set()
        self._in_flight, self._since = 0, 0.0

    def use(self, step: str, role: str, key: str, usage: Usage) -> None:
        """Counts an answered request, unless one with the same key was counted before."""
        if key not in self._seen:
            self._seen.add(key)
            roles = self.used.setdefault(step, {})
            roles[role] = roles.get(role, Usage()) + usage

    def begin(self) -> None:
        """Notes that a request is sent."""
        if not self._in_flight:
            self._since = time.monotonic()
        self._in_flight += 1

    def end(self, step: str) -> None:
        """Notes that a request was answered or given up."""
        self._in_flight -= 1
        if not self._in_flight:
            self.waited[step] = self.waited.get(step, 0.0) + time.monotonic() - self._since

    def take(self) -> dict[str, Usage]:
        """Costs of every step. ``seconds`` is its time of waiting since the last call of ``take``, not compute time."""
        waited, self.waited = self.waited, {}
        return {
            step: dataclasses.replace(sum(roles.values(), Usage()), seconds=waited.get(step, 0.0))
            for step, roles in self.used.items()
        }
