"""A gate before an application: it checks the key of requests, and lets the application end in order.

The key is the bearer token of OpenAI's clients, or the password of a browser (Basic). ``/health`` needs no key, so that
a load balancer can ask for it. While the application ends, new requests get 503 and requests in flight are finished.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import ipaddress
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import JSONResponse, Response

from optimas_jax.core.text.secrets import key_problem
from optimas_jax.core.types import StopRun

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]
OPEN = "/health"  # the path that needs no key
CLOSING = "closing"  # field of a scope: a function that says whether the server is about to end, for endless answers


class Gate:
    """An ASGI application around another.

    Attributes:
      closing: whether new requests are refused.
    """

    def __init__(self, application: Application, key: str = "", challenge: str = "Bearer"):
        """
        Args:
          key: the key that requests must have; "" for none.
          challenge: scheme in which requests without the key are asked for it (``WWW-Authenticate``).
        """
        self._application, self._key, self._challenge = application, key.encode(), challenge
        self.closing, self._given_up = False, False
        self._tasks: set[asyncio.Future[None]] = set()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        refused = self._refusal(scope)
        if refused is not None:
            await refused(scope, receive, send)
            return
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        inner_scope = {**scope, CLOSING: lambda: self.closing}
        task = asyncio.ensure_future(self._application(inner_scope, receive, sending))
        self._tasks.add(task)
        try:
            await task
        except asyncio.CancelledError:
            if not self._given_up:
                raise
            if not begun:
                await _ending()(scope, receive, send)
        finally:
            self._tasks.discard(task)

    @property
    def active(self) -> int:
        """Number of requests in flight."""
        return len(self._tasks)

    def give_up(self) -> None:
        """Answers the requests in flight with 503, or cuts answers that have begun."""
        self.closing = self._given_up = True
        for task in self._tasks:
            task.cancel()

    def _refusal(self, scope: Message) -> Response | None:
        if self.closing:
            return _ending()
        if self._key and scope["path"] != OPEN and not hmac.compare_digest(_given(scope), self._key):
            message = "this server wants its key: send it as 'Authorization: Bearer KEY' (api_key of OpenAI's clients)"
            return _error(401, message, "invalid_api_key", {"www-authenticate": self._challenge})
        return None


def _ending() -> Response:
    return _error(503, "the server is about to end: ask again in a moment, or another one", "unavailable")


def _given(scope: Message) -> bytes:
    """The bearer token or the password of a request; b"" if it has neither."""
    header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    kind, _, token = header.partition(b" ")
    if kind.lower() == b"basic":
        with contextlib.suppress(ValueError):
            return base64.b64decode(token.strip(), validate=True).partition(b":")[2]
    return token.strip() if kind.lower() == b"bearer" else b""


def _error(status: int, message: str, code: str, headers: dict[str, str] | None = None) -> Response:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": None, "code": code}
    more = {"retry-after": "5"} if status == 503 else {}
    return JSONResponse({"error": error}, status, {"connection": "close", **more, **(headers or {})})


def read_key(variable: str, host: str) -> str:
    """The key that requests must have, from an environment variable.

    Args:
      variable: its name; "" for a server without a key.
      host: the host that the server listens on; if other machines reach it, a key is required.

    Raises:
      StopRun: for a variable without a key, a key that no header can hold, and an open address without a key.
    """
    if not variable:
        if not is_loopback(host):
            raise StopRun(
                f"--host={host} is reached from other machines, and whoever reaches it may use it: give "
                "--api-key-env=NAME, the environment variable with the key that requests must bring, or listen on "
                "127.0.0.1"
            )
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise StopRun(f"--api-key-env={variable}: the environment has no key under this name")
    if problem := key_problem(key):
        raise StopRun(f"--api-key-env={variable}: the key has what a header cannot hold: {problem}")
    return key


def is_loopback(host: str) -> bool:
    """Whether a host is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
