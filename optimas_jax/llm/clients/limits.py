"""Limits of calls over a network: rate of requests, and size and duration of answers."""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

_MOST_BYTES = 64 * 2**20  # of the body of an answer
_MOST_PACKED = 2**18  # of a compressed body, which is at most a thousand times as large when unpacked


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


def limit_answers(seconds: float) -> Callable[[Any], None]:
    """Hook for the responses of a client: a body that is too large or never ends is an error of the connection. The
    client's own timeout limits each part of an answer, not the whole answer.

    Args:
      seconds: most time from the header of an answer to the end of its body.
    """

    def limit(response: Any) -> None:
        library = sys.modules[type(response).__module__.partition(".")[0]]
        response.stream = _limited_body(library)(response, seconds)

    return limit


@functools.cache
def _limited_body(library: Any) -> type:
    """The class of limited bodies. ``library``: ``httpx2``, or ``httpx`` where a framework wants an older SDK."""

    class Limited(library.SyncByteStream):
        """The body of a response, within the limits."""

        def __init__(self, response: Any, seconds: float):
            packed = response.headers.get("content-encoding", "identity") != "identity"
            self._inner, self._request = response.stream, response.request
            self._most = _MOST_PACKED if packed else _MOST_BYTES
            self._seconds, self._end = seconds, time.monotonic() + seconds

        def __iter__(self) -> Iterator[bytes]:
            size = 0
            for part in self._inner:
                size += len(part)
                if size > self._most:
                    message = f"the answer is larger than {self._most:,} bytes"
                    raise library.ReadError(message, request=self._request)
                if time.monotonic() > self._end:
                    message = f"the answer does not end within {self._seconds:g} seconds"
                    raise library.ReadTimeout(message, request=self._request)
                yield part

        def close(self) -> None:
            self._inner.close()

    return Limited
