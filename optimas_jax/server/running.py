"""Serving an application until a signal, in order: what is in flight is finished, up to a time.

The first SIGTERM or SIGINT closes the gate: new requests get 503, and the process ends when the last answer is sent, or
after the grace. A second one ends it at once.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import time
from types import FrameType
from typing import Any

import uvicorn

from optimas_jax.server.gate import Gate

INTERRUPTED = 130  # exit code
_TIDY_SECONDS = 10.0  # between two looks for garbage


class _Stop:
    """The signal that came, if one did."""

    def __init__(self) -> None:
        self.signal, self.since = 0, 0.0

    def handle(self, sig: int, frame: FrameType | None) -> None:
        """Signal handler."""
        if self.signal:
            os._exit(128 + sig)  # threads inside XLA cannot be waited for
        self.signal, self.since = sig, time.monotonic()


class _Tidy:
    """Looks for garbage while nothing is asked for. To look through all that a model and its compiled programs have
    takes a tenth of a second, in which nobody is answered: it is set aside, and what is new is looked at in small
    parts."""

    def __init__(self) -> None:
        gc.set_threshold(5_000, 20, 1_000)
        self._set_aside()

    def look(self, *, idle: bool) -> None:
        """To be called now and then."""
        if idle and time.monotonic() > self._last + _TIDY_SECONDS:
            self._set_aside()

    def _set_aside(self) -> None:
        gc.collect()
        gc.freeze()
        self._last = time.monotonic()


def run_until_stopped(gate: Gate, listener: socket.socket, grace: float) -> int:
    """Serves until a signal; must be called in the main thread.

    Args:
      gate: the application.
      listener: listens already.
      grace: seconds that requests in flight have to end.

    Returns:
      The exit code: 143 after SIGTERM, 130 after SIGINT.
    """
    stop, tidy = _Stop(), _Tidy()

    async def look() -> None:
        """Ends the server when a signal came and all is answered, or the grace is over."""
        if not stop.signal:
            tidy.look(idle=not gate.active)
            return
        if not gate.closing:
            gate.closing = True
            _tell(gate.active, grace)
        if not gate.active or time.monotonic() > stop.since + grace:
            gate.give_up()
            server.should_exit = True

    settings: dict[str, Any] = {"log_config": None, "log_level": "warning", "timeout_graceful_shutdown": 1}
    server = uvicorn.Server(uvicorn.Config(gate, callback_notify=look, timeout_notify=0, **settings))
    server.handle_exit = stop.handle  # which uvicorn installs
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:  # before that
        return INTERRUPTED
    return 128 + stop.signal if stop.signal else 0


def _tell(active: int, grace: float) -> None:
    if active:
        requests = f"{active} request{'s' if active > 1 else ''} in flight"
        print(f"\nstopping: {requests}, up to {grace:g} seconds; once more ends at once", file=sys.stderr, flush=True)
