"""Serves an application until a signal, and then finishes the requests in flight, within a limit of time.

The first SIGTERM or SIGINT closes the gate: new requests get 503, and the process ends when the last answer is sent, or
after the grace time. A second signal ends it at once.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from optimas_jax.core.types import StopRun
from optimas_jax.server.gate import Gate, read_key

INTERRUPTED = 130  # exit code
_TIDY_SECONDS = 10.0  # least time between two full garbage collections


class _Stop:
    """State of the shutdown: the first signal that came, and when; ``signal`` is 0 before."""

    def __init__(self, gate: Gate) -> None:
        self._gate, self._told = gate, False
        self.signal, self.since = 0, 0.0

    def handle(self, sig: int, frame: FrameType | None) -> None:
        """Closes the gate at the first signal, and ends the process at the second one."""
        if self.signal:
            os._exit(128 + sig)  # without waiting: threads inside XLA cannot be interrupted
        self.signal, self.since = sig, time.monotonic()
        self._gate.closing = True

    def tell(self, grace: float) -> None:
        """Prints, once, how many requests the shutdown waits for."""
        if not self._told and (active := self._gate.active):
            requests = f"{active} request{'s' if active > 1 else ''} in flight"
            message = f"\nstopping: {requests}, up to {grace:g} seconds; once more ends at once"
            print(message, file=sys.stderr, flush=True)
        self._told = True


class _Tidy:
    """Garbage collection of a server, while no request is in flight. A full collection over the objects of a model and
    its compiled programs blocks the event loop for a tenth of a second: so these objects are frozen (``gc.freeze``),
    and full collections are rare."""

    def __init__(self) -> None:
        gc.set_threshold(5_000, 20, 1_000)
        self._set_aside()

    def look(self, *, idle: bool) -> None:
        """Collects garbage if the server is idle and the last collection is some time ago; to be called regularly."""
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
      listener: a socket that listens already.
      grace: seconds that requests in flight have to end.

    Returns:
      The exit code: 143 after SIGTERM, 130 after SIGINT.
    """
    stop, tidy = _Stop(gate), _Tidy()

    async def look() -> None:
        """Ends the server when a signal came and all requests are answered, or the grace time is over."""
        if not stop.signal:
            tidy.look(idle=not gate.active)
            return
        stop.tell(grace)
        if not gate.active or time.monotonic() > stop.since + grace:
            gate.give_up()
            server.should_exit = True

    settings: dict[str, Any] = {"log_config": None, "log_level": "warning", "timeout_graceful_shutdown": 1}
    server = uvicorn.Server(uvicorn.Config(gate, callback_notify=look, timeout_notify=0, **settings))
    server.handle_exit = stop.handle  # uvicorn installs it as the signal handler
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:  # before the handler was installed
        return INTERRUPTED
    return 128 + stop.signal if stop.signal else 0


def serve(
    make: Callable[[], tuple[Any, str]],
    host: str,
    port: int,
    key_variable: str,
    grace: float,
    challenge: str = "Bearer",
) -> int:
    """Serves an application until it is stopped. Obstacles, such as an address in use, raise before the application is
    made.

    Args:
      make: makes the application, and a line for the user that describes it; ``{}`` in the line is replaced by the
        address.
      key_variable: name of the environment variable with the key that requests must have; "" for none.
      grace: seconds that requests in flight have to end.
      challenge: scheme in which requests without the key are asked for it.

    Returns:
      The exit code.

    Raises:
      StopRun: the address is not available, or needs a key.
    """
    key = read_key(key_variable, host)
    with bound(host, port) as listener:
        application, line = make()
        try:
            listener.listen()
        except OSError as error:  # another server began to listen while this one loaded
            raise unavailable(host, port, error) from error
        print(line.replace("{}", address_of(listener)), flush=True)
        return run_until_stopped(Gate(application, key, challenge), listener, grace)


def address_of(listener: socket.socket) -> str:
    """The URL at which a socket listens."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def bound(host: str, port: int) -> socket.socket:
    """A socket that is bound to an address, and does not listen yet.

    Raises:
      StopRun: the address is not available.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as opened:
            listener = opened.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            opened.pop_all()
    except (OSError, OverflowError) as error:
        raise unavailable(host, port, error) from error
    return listener


def unavailable(host: str, port: int, error: Exception) -> StopRun:
    """The error for an address that is not available."""
    return StopRun(f"cannot listen on {host}:{port} ({error}): choose another port or host")
