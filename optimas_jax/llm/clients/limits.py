"""Rate limits of calls over a network."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Rate:
    """A bucket that fills steadily, by ``per_minute`` a minute and up to ``per_minute``; 0 for no limit.

    Amounts may be borrowed: the caller waits until the bucket has refilled. Callers are served in the order of their
    calls. An amount larger than the bucket waits longer, for a finite time.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic):
        self._per_second, self._most, self._clock = per_minute / 60, per_minute, clock
        self._level, self._filled = per_minute, clock()
        self._lock = threading.Lock()

    def take(self, amount: float) -> float:
        """Takes an amount (a negative one is given back); returns the seconds to wait before it may be used."""
        if not self._most:
            return 0.0
        with self._lock:
            now = self._clock()
            level = min(self._most, self._level + (now - self._filled) * self._per_second)
            self._level, self._filled = level - amount, now
            return max(0.0, -self._level / self._per_second)
