"""Serving an application until a signal, in order: what is in flight is finished, up to a time.

The first SIGTERM or SIGINT closes the gate: new requests get 503, and the process ends when the last answer is sent, or
after the grace. A second one ends it at once.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from types import FrameType

import uvicorn

from optimas_jax.server.gate import Gate

_LOOK_SECONDS = 0.05  # between two looks at whether all is answered


class _Stop:
    """The signal that came, if one did."""

    def __init__(self) -> None:
        self.signal, self.since = 0, 0.0

    def handle(self, sig: int, frame: FrameType | None) -> None:
        """Signal handler."""
        if self.signal:
            os._exit(128 + sig)  # threads inside XLA cannot be waited for
        self.signal, self.since = sig, time.monotonic()


def run_until_stopped(gate: Gate, listener: socket.socket, grace: float) -> int:
    """Serves until a signal; must be called in the main thread.

    Args:
      gate: the application.
      listener: listens already.
      grace: seconds that requests in flight have to end.

    Returns:
      The exit code: 143 after SIGTERM, 130 after SIGINT.
    """
    stop = _Stop()
    server = uvicorn.Server(uvicorn.Config(gate, log_config=None, log_level="warning", timeout_graceful_shutdown=1))
    server.handle_exit = stop.handle  # which uvicorn installs

    async def serve() -> None:
        watching = asyncio.create_task(_watch(server, gate, stop, grace))
        try:
            await server.serve([listener])
        finally:
            watching.cancel()

    asyncio.run(serve())
    return 128 + stop.signal if stop.signal else 0


async def _watch(server: uvicorn.Server, gate: Gate, stop: _Stop, grace: float) -> None:
    """Ends the server when a signal came and all is answered, or the grace is over."""
    while not stop.signal:
        await asyncio.sleep(_LOOK_SECONDS)
    gate.closing = True
    if gate.active:
        print(
            f"\nstopping: {gate.active} requests in flight have up to {grace:g} seconds; once more ends at once",
            file=sys.stderr,
            flush=True,
        )
    while gate.active and time.monotonic() < stop.since + grace:
        await asyncio.sleep(_LOOK_SECONDS)
    gate.give_up()
    server.should_exit = True
