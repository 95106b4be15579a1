"""The interface for reporting the progress of long work; ``report.console`` shows it on a console."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol


class Progress(Protocol):
    """Receives lines and the steps of long work."""

    def line(self, text: str) -> None:
        """Shows one line about one decision: plain text, in which brackets are no markup."""
        ...

    def bar(self, label: str, total: int) -> AbstractContextManager[Callable[[], None]]:
        """Shows a bar of ``total`` steps; the block calls the function that the bar gives it once per step."""
        ...


@dataclasses.dataclass(frozen=True)
class Bar:
    """State of a progress bar: steps of long work.

    Attributes:
      label: what is done.
      done, total: numbers of steps.
      seconds: since its beginning.
    """

    label: str
    done: int
    total: int
    seconds: float

    @property
    def left(self) -> float | None:
        """Seconds until its end at the pace so far; None before the first step."""
        return self.seconds / self.done * (self.total - self.done) if self.done else None


class Bars:
    """The open bars, nested or side by side. Several threads may report steps."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[int, tuple[str, int, int, float]] = {}
        self._next = 0

    @contextlib.contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[[], None]]:
        """A bar that is open during the block."""
        with self._lock:
            key, self._next = self._next, self._next + 1
            self._open[key] = label, 0, total, time.monotonic()

        def advance() -> None:
            with self._lock:
                if key in self._open:
                    name, done, most, since = self._open[key]
                    self._open[key] = name, done + 1, most, since

        try:
            yield advance
        finally:
            with self._lock:
                del self._open[key]

    @property
    def now(self) -> tuple[Bar, ...]:
        """The current state of the open bars, in the order in which they began."""
        with self._lock:
            rows = list(self._open.values())
        return tuple(Bar(label, done, total, time.monotonic() - since) for label, done, total, since in rows)
