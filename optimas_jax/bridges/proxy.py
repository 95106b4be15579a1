"""The door as a server on this machine, for agents in other processes; needs the extra ``serve``.

    GET  /health  /v1/models
    POST /v1/chat/completions  /v1/responses
    ...  /run/TOKEN/v1/...      the same, for the run with this token (``base_url``)

The server has a thread of its own, and hands requests over to the event loop of the package, which runs programs. It is
started by the first ``base_url`` of a process, and ends with the process; ``serving`` starts one on a given port.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

from optimas_jax.bridges.door import Answer, Door, Outside, Request
from optimas_jax.core.program import ProgramError, current_scope
from optimas_jax.core.types import StopRun
from optimas_jax.server.protocol import RequestError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request as WebRequest
    from starlette.responses import Response

MOST_BYTES = 64 * 2**20  # of a body, which may have images
_END = 5.0  # seconds that requests in flight have when the server is ended
_OPEN: list[str] = []  # addresses of the servers of this process; the last one is in use


def make_app(outside: Callable[[], Outside]) -> Starlette:
    """The application of the server.

    Args:
      outside: makes the agents that answer outside of all runs.

    Raises:
      StopRun: the extra ``serve`` is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.requests import ClientDisconnect
        from starlette.responses import JSONResponse, PlainTextResponse
        from starlette.routing import Route
    except ImportError as error:
        raise StopRun(f"{error}; install the server with: pip install 'optimas_jax[serve]'") from None
    from optimas_jax.server.bodies import BodyError, read_object, refused
    from optimas_jax.server.system_app import left

    door = Door(outside)

    async def answer(request: WebRequest) -> Response:
        body = await read_object(request, MOST_BYTES) if request.method == "POST" else None
        return await _respond(door, request, body)

    async def health(_: WebRequest) -> Response:
        return PlainTextResponse("")

    async def unexpected(_: WebRequest, error: Exception) -> Response:
        message = f"the door failed on this request ({type(error).__name__}): the log of its process has the reason"
        return JSONResponse(RequestError(500, message).to_json(), 500, {"x-should-retry": "false"})

    return Starlette(
        routes=[Route("/health", health), Route("/{path:path}", answer, methods=["GET", "POST"])],
        exception_handlers={
            BodyError: refused,
            HTTPException: refused,
            ClientDisconnect: left,
            Exception: unexpected,
        },
    )


async def _respond(door: Door, request: WebRequest, body: Any) -> Response:
    from starlette.responses import Response, StreamingResponse

    headers = {name.lower(): value for name, value in request.headers.items()}
    answer = await door.answer(Request(request.method, request.url.path, headers, body))
    if await request.is_disconnected():
        answer.unread()
    if not answer.streams:
        return Response(answer.content, answer.status, dict(answer.headers), answer.kind)
    return StreamingResponse(_events(answer), answer.status, dict(answer.headers), answer.kind)


async def _events(answer: Answer) -> AsyncIterator[str]:
    sent = False
    try:
        for part in answer.body:
            yield str(part)
        sent = True
    finally:
        if not sent:
            answer.unread()


def base_url(outside: Callable[[], Outside]) -> str:
    """The address for agents of the current run, to be given to the processes that the program starts.

    Raises:
      ProgramError: outside of a run.
      StopRun: the extra ``serve`` is not installed, or no port is free.
    """
    return f"{_address(outside)}/run/{api_key()}/v1"


def api_key() -> str:
    """The key of the current run, for agents whose base URL is fixed.

    Raises:
      ProgramError: outside of a run.
    """
    scope = current_scope()
    if scope is None:
        raise ProgramError(
            "base_url and api_key name the run that a request belongs to, and this is outside of a run: call them in "
            "the program, and hand them to the threads and processes that it starts"
        )
    return scope.token


@contextlib.contextmanager
def serving(outside: Callable[[], Outside], host: str, port: int) -> Iterator[str]:
    """Serves the door; yields its address, which ``base_url`` uses meanwhile.

    Raises:
      StopRun: the address is not available, or the extra ``serve`` is not installed.
    """
    address, stop = _start(outside, host, port)
    _OPEN.append(address)
    try:
        yield f"{address}/v1"
    finally:
        _OPEN.remove(address)
        stop()


def _address(outside: Callable[[], Outside]) -> str:
    """The address of the server of this process, which is started if there is none."""
    if not _OPEN:
        address, stop = _start(outside, "127.0.0.1", 0)
        _OPEN.append(address)
        atexit.register(stop)
    return _OPEN[-1]


os.register_at_fork(after_in_child=_OPEN.clear)  # a forked process does not have the server


def _start(outside: Callable[[], Outside], host: str, port: int) -> tuple[str, Callable[[], None]]:
    """Starts a server; returns its address, and a function that ends it."""
    application = make_app(outside)
    import uvicorn

    from optimas_jax.server.gate import Gate
    from optimas_jax.server.running import address_of, bound

    listener = bound(host, port)
    listener.listen(1024)  # from now on requests wait, until the server takes them
    gate, loop = Gate(application), asyncio.new_event_loop()
    settings: dict[str, Any] = {"log_config": None, "log_level": "warning", "timeout_graceful_shutdown": 1}
    server = uvicorn.Server(uvicorn.Config(gate, lifespan="off", **settings))

    def serve() -> None:
        with contextlib.closing(loop):
            loop.run_until_complete(server.serve(sockets=[listener]))

    thread = threading.Thread(target=serve, name="optimas_jax proxy", daemon=True)
    thread.start()

    def stop() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(gate.give_up)  # requests in flight are told
        server.should_exit = True
        thread.join(_END)

    return address_of(listener), stop
