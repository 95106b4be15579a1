"""The application of ``optimas watch``: a page, its events, and what may be asked of the run.

GET  /         the page                      GET  /events   what the run does, as server-sent events
GET  /report   report.html, in a sandbox     POST /pause, /resume, /stop?id=COMMAND

Only a page of this server can ask anything: requests must come to its own name (a name that leads here by DNS is
another one), from its own origin, with the token that the page has.
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
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from optimas_jax.core.folder.control import WISHES, Wish, ask
from optimas_jax.core.folder.files import FolderError
from optimas_jax.report.watch.state import REPORT, Looker, to_json

_TEMPLATES = Path(__file__).parent / "templates"
_LOOK_SECONDS = 1.0  # between two looks at the folder
_QUIET_SECONDS = 15.0  # between two events, changes or not
_MOST = 64  # browsers at once
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# A report runs its own script, and nothing of it reaches this server: its origin is none.
_REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


class Told:
    """What browsers are told, the same for all of them: one look at the folder serves all that ask within a second."""

    def __init__(self, folder: Path, name: str):
        self._looker, self._name, self._lock = Looker(folder), name, asyncio.Lock()
        self._at, self._state, self._text = -_LOOK_SECONDS, dict[str, Any](), ""
        self.readers = 0

    async def state(self, *, fresh: bool = False) -> dict[str, Any]:
        """What the run does."""
        async with self._lock:
            if fresh or time.monotonic() - self._at >= _LOOK_SECONDS:
                look = await asyncio.to_thread(self._looker.look)
                self._state = {"server": self._name, **to_json(look)}
                self._text = json.dumps(self._state)
                self._at = time.monotonic()
            return self._state

    async def events(self, closing: Callable[[], bool]) -> AsyncGenerator[str, None]:
        """What the run does as server-sent events, until the server is ``closing``. A browser that reads slowly misses
        some, and one that does not read gets none: nothing waits for it in memory."""
        self.readers += 1
        try:
            sent, at = "", 0.0
            while not closing():
                await self.state()
                if self._text != sent:
                    sent, at = self._text, time.monotonic()
                    yield f"data: {sent}\n\n"
                elif time.monotonic() - at >= _QUIET_SECONDS:
                    at = time.monotonic()
                    yield ": still there\n\n"
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            self.readers -= 1


class OwnName:
    """Refuses requests to a name that is not this machine's, where no key protects the server."""

    def __init__(self, application: ASGIApp):
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_loopback(Request(scope).headers.get("host", "")):
            refused = _error(421, "this server answers to localhost and 127.0.0.1 alone")
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
    told = Told(folder, secrets.token_hex(8))
    page = (_TEMPLATES / "watch.html").read_text(encoding="utf-8").replace("{{token}}", token)
    keeper = (_TEMPLATES / "keeper.js").read_text(encoding="utf-8")

    async def index(request: Request) -> Response:
        return HTMLResponse(page, headers={**_HEADERS, "content-security-policy": _POLICY})

    async def file(request: Request) -> Response:
        name = request.url.path.removeprefix("/")
        kind = "text/css" if name.endswith(".css") else "text/javascript"
        return Response((_TEMPLATES / name).read_text(encoding="utf-8"), media_type=kind, headers=_HEADERS)

    async def state(request: Request) -> Response:
        return JSONResponse(await told.state(fresh=True), headers=_HEADERS)

    async def events(request: Request) -> Response:
        if told.readers >= _MOST:
            return _error(503, f"{_MOST} pages watch this run already: close some")
        headers = {**_HEADERS, "x-accel-buffering": "no"}
        return StreamingResponse(
            told.events(request.scope.get("closing", _never)), media_type="text/event-stream", headers=headers
        )

    async def report(request: Request) -> Response:
        try:
            text = await asyncio.to_thread((folder / REPORT).read_text, "utf-8", "replace")
        except OSError:
            return _error(404, "the run has no report yet")
        head, tag, rest = text.partition("<head>")  # before the page's own policy, which allows its own script alone
        body = f"{head}{tag}<script>{keeper}</script>{rest}" if tag else text
        return HTMLResponse(body, headers={**_HEADERS, "content-security-policy": _REPORT_POLICY})

    async def wish(wanted: Wish, request: Request) -> Response:
        if (problem := _foreign(request, token)) is not None:
            return problem
        command = request.query_params.get("id", "")
        now = await told.state(fresh=True)
        if not command or now["id"] != command:
            return _error(409, "another command runs now, or none: look at the page again")
        if wanted not in now["can"]:
            return _error(409, f"the run is {now['state']}: it cannot be told to {wanted}")
        try:
            await asyncio.to_thread(ask, folder, command, wanted)
        except FolderError as error:
            return _error(500, str(error))
        return JSONResponse({"asked": wanted}, 202, headers=_HEADERS)

    routes = [
        Route("/", index),
        Route("/state", state),
        Route("/events", events),
        Route("/report", report),
        *(Route(f"/{name}", file) for name in ("watch.js", "watch.css")),
        *(Route(f"/{name}", functools.partial(wish, name), methods=["POST"]) for name in WISHES),
    ]
    return Starlette(routes=routes, middleware=[] if has_key else [Middleware(OwnName)])


def _never() -> bool:
    return False


def _foreign(request: Request, token: str) -> Response | None:
    """The refusal of a request that is not from this server's own page; None for one that is."""
    headers: Mapping[str, str] = request.headers
    host = headers.get("host", "")
    same = headers.get("origin", "") in (f"http://{host}", f"https://{host}")
    if not same or headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return _error(403, "requests must come from the page of this server (Origin)")
    if not hmac.compare_digest(headers.get("x-optimas-token", "").encode(), token.encode()):
        return _error(403, "the page is of a server that has ended: load it again")
    return None


def _is_loopback(host: str) -> bool:
    """Whether a Host header names this machine from within."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status, headers=_HEADERS)
