"""Rate limits and the one retry policy of calls over a network."""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from optimas_jax.core.schema import NonNegativeFloat, PositiveInt

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Retries:
    """Exponential back-off with jitter.

    Attributes:
      attempts: at most, the first one included; as many failures in a row stop a run.
      first_wait: seconds before the second attempt, doubled before every further one.
      longest_wait: seconds, at most; a server that asks for more (Retry-After) gets it.
    """

    attempts: PositiveInt = 6
    first_wait: NonNegativeFloat = 1.0
    longest_wait: NonNegativeFloat = 60.0

    def wait(self, failures: int, retry_after: float | None, jitter: float) -> float:
        """Seconds before the next attempt.

        Args:
          failures: attempts so far.
          retry_after: what the server asked for (Retry-After), or None.
          jitter: from 0 to 1; many clients must not come back at the same moment.
        """
        backoff = min(self.first_wait * 2 ** (failures - 1), self.longest_wait)
        return max(retry_after or 0.0, backoff * (0.5 + 0.5 * jitter))


def retry(
    call: Callable[[], T],
    transient: Callable[[Exception], float | None],
    retries: Retries,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Calls until it succeeds, fails for good, or attempts run out; the last error is raised.

    Args:
      transient: seconds to wait after an error (0 if the server names none), or None for an error that is final.
    """
    for failures in range(1, retries.attempts + 1):
        try:
            return call()
        except Exception as error:
            retry_after = transient(error)
            if retry_after is None or failures == retries.attempts:
                raise
            sleep(retries.wait(failures, retry_after, random.random()))
    raise AssertionError("unreachable: the last attempt returns or raises")


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
