"""The application of ``optimas watch``: a page, its events, and requests to the run.

GET  /           the page                      GET  /events   what the run does, as server-sent events
GET  /report     report.html, in a sandbox     POST /pause, /resume, /stop?id=COMMAND
GET  /run.json   and others that it names

Only a page of this server can send requests to the run: they must use the server's own name (other names that resolve
to this machine are refused), and come from its own origin, with the token that the page has.
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import ipaddress
import json
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from optimas_jax.core.folder.control import WISHES, Wish, ask
from optimas_jax.core.folder.files import FolderError
from optimas_jax.report.watch.pages import HEADERS, error, routes
from optimas_jax.report.watch.state import Looker, to_json

_LOOK_SECONDS = 1.0  # between two looks at the folder
_QUIET_SECONDS = 15.0  # between two events, changes or not
_MOST = 64  # browsers at once


class Told:
    """The state that all browsers get: one look at the folder serves all requests within a second."""

    def __init__(self, folder: Path, name: str):
        self._looker, self._name, self._lock = Looker(folder), name, asyncio.Lock()
        self._at, self._state, self._text = -_LOOK_SECONDS, dict[str, Any](), ""
        self.readers = 0

    async def state(self, *, fresh: bool = False) -> dict[str, Any]:
        """The state of the run."""
        async with self._lock:
            if fresh or time.monotonic() - self._at >= _LOOK_SECONDS:
                look = await asyncio.to_thread(self._looker.look)
                self._state = {"server": self._name, **to_json(look)}
                self._text = json.dumps(self._state)
                self._at = time.monotonic()
            return self._state

    async def events(self, closing: Callable[[], bool]) -> AsyncGenerator[str, None]:
        """States of the run as server-sent events, until the server is ``closing``. A browser that reads slowly misses
        some, and a browser that does not read gets none: no event is kept in memory for it."""
        self.readers += 1
        try:
            sent, sent_at = "", 0.0
            while not closing():
                await self.state()
                if self._text != sent:
                    sent, sent_at = self._text, time.monotonic()
                    yield f"data: {sent}\n\n"
                elif time.monotonic() - sent_at >= _QUIET_SECONDS:
                    sent_at = time.monotonic()
                    yield ": still there\n\n"
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            self.readers -= 1


class OwnName:
    """Refuses requests to names other than localhost, where no key protects the server."""

    def __init__(self, application: ASGIApp):
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_loopback(Request(scope).headers.get("host", "")):
            refused = error(421, "this server answers to localhost and 127.0.0.1 alone")
            await refused(scope, receive, send)
            return
        await self._application(scope, receive, send)


def make_app(folder: Path, *, has_key: bool) -> Starlette:
    """The application.

    Args:
      folder: of the run, which need not exist yet.
      has_key: whether requests bring a key, so that they may come to any name of this machine.
    """
    token = secrets.token_urlsafe(32)
    shared = Told(folder, secrets.token_hex(8))

    async def state(request: Request) -> Response:
        return JSONResponse(await shared.state(fresh=True), headers=HEADERS)

    async def events(request: Request) -> Response:
        if shared.readers >= _MOST:
            return error(503, f"{_MOST} pages watch this run already: close some")
        headers = {**HEADERS, "x-accel-buffering": "no"}
        return StreamingResponse(
            shared.events(request.scope.get("closing", _never)), media_type="text/event-stream", headers=headers
        )

    async def wish(wanted: Wish, request: Request) -> Response:
        """Passes a wish, such as ``pause``, to the command that the page shows."""
        if (refusal := _foreign(request, token)) is not None:
            return refusal
        command = request.query_params.get("id", "")
        current = await shared.state(fresh=True)
        if not command or current["id"] != command:
            return error(409, "another command runs now, or none: look at the page again")
        if wanted not in current["can"]:
            return error(409, f"the run is {current['state']}: it cannot be told to {wanted}")
        try:
            await asyncio.to_thread(ask, folder, command, wanted)
        except FolderError as problem:
            return error(500, str(problem))
        return JSONResponse({"asked": wanted}, 202, headers=HEADERS)

    api = [
        Route("/state", state),
        Route("/events", events),
        *(Route(f"/{name}", functools.partial(wish, name), methods=["POST"]) for name in WISHES),
    ]
    return Starlette(routes=[*api, *routes(folder, token)], middleware=[] if has_key else [Middleware(OwnName)])


def _never() -> bool:
    return False


def _foreign(request: Request, token: str) -> Response | None:
    """The refusal of a request that is not from this server's own page; None if the request is allowed."""
    headers: Mapping[str, str] = request.headers
    host = headers.get("host", "")
    same = headers.get("origin", "") in (f"http://{host}", f"https://{host}")
    if not same or headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return error(403, "requests must come from the page of this server (Origin)")
    if not hmac.compare_digest(headers.get("x-optimas-token", "").encode(), token.encode()):
        return error(403, "the page is of a server that has ended: load it again")
    return None


def _is_loopback(host: str) -> bool:
    """Whether a Host header names this machine from within."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
