"""A server over a whole program: requests have its inputs as JSON, answers its outputs.

    GET  /          the fields that the program reads, and an example of a call
    GET  /health
    POST /run       {"question": "..."} -> the outputs of the program; with ?trace=1 {"outputs": ..., "calls": [...]}

An error is {"error": {"message": ..., "type": ...}}: 400 for a body that does not fit the program, with the wrong
fields, 413 for a body above 8 MiB, 502 with the outcome for a component that failed, 503 for models that do not answer,
500 for an exception of the program.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from optimas_jax.core.component import ComponentBug
from optimas_jax.core.text.secrets import redact
from optimas_jax.core.types import Call, Outcome, StopRun, Trace, thaw
from optimas_jax.server.bodies import BodyError, read_object

MOST_BYTES = 8 * 2**20  # of a body
Run = Callable[[Mapping[str, Any]], Awaitable[Trace]]


class RunError(Exception):
    """A request that is answered by an error: HTTP status, kind and message."""

    def __init__(self, status: int, kind: str, message: str):
        super().__init__(message)
        self.status, self.kind = status, kind

    def response(self, headers: Mapping[str, str] | None = None) -> Response:
        return JSONResponse({"error": {"message": redact(str(self)), "type": self.kind}}, self.status, headers)


def make_system_app(
    run: Run, outputs: Callable[[Trace], Any], *, name: str, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Starlette:
    """The application of the server.

    Args:
      run: runs the program on fields, and returns the record; raises ``ValueError`` for unknown and missing fields.
      outputs: the outputs of the program in a run, as plain data.
      name: of the program.
      required, optional: the fields that it reads.
    """

    async def about(_: Request) -> Response:
        call = {"method": "POST", "path": "/run", "body": dict.fromkeys(required, "...")}
        return JSONResponse({"program": name, "required": required, "optional": optional, "call": call})

    async def health(_: Request) -> Response:
        return PlainTextResponse("")

    async def run_one(request: Request) -> Response:
        try:
            trace = await _run(run, await read_fields(request))
            answer = outputs(trace)
        except RunError as error:
            return error.response()
        if request.query_params.get("trace") not in (None, "", "0"):
            return JSONResponse({"outputs": answer, "calls": [_call(call) for call in trace.calls]})
        return JSONResponse(answer)

    return Starlette(
        routes=[Route("/", about), Route("/health", health), Route("/run", run_one, methods=["POST"])],
        exception_handlers=HANDLERS,
    )


async def unexpected(_: Request, error: Exception) -> Response:
    """The answer to an unexpected exception, whose message stays in the server's log."""
    message = f"the server failed on this request ({type(error).__name__}): its log has the reason"
    return RunError(500, "server_error", message).response()


async def refused(request: Request, error: Exception) -> Response:
    """The answer to a path or a method that the server does not have."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return RunError(error.status_code, "invalid_request_error", message).response(error.headers)


async def left(_: Request, error: Exception) -> Response:
    """The answer to a client that has disconnected; it is not sent."""
    return Response(status_code=499)


HANDLERS = {HTTPException: refused, ClientDisconnect: left, Exception: unexpected}


async def _run(run: Run, fields: Mapping[str, Any]) -> Trace:
    """The record of a successful run; raises ``RunError`` for any other."""
    try:
        trace = await run(fields)
    except ComponentBug as error:
        raise RunError(500, "program_error", str(error)) from error
    except StopRun as error:
        raise RunError(503, "unavailable", str(error)) from error
    except ValueError as error:
        raise RunError(400, "invalid_request_error", str(error)) from error
    if trace.outcome is not Outcome.OK:
        failed = next((call for call in trace.calls if call.outcome is not Outcome.OK), None)
        where = "" if failed is None else f" at {failed.component}: {failed.detail}"
        raise RunError(502, str(trace.outcome), f"the run ended with {trace.outcome}{where}".rstrip(": "))
    return trace


async def read_fields(request: Request) -> Mapping[str, Any]:
    """The JSON object of a body; raises ``RunError`` if there is none."""
    try:
        return await read_object(request, MOST_BYTES)
    except BodyError as error:
        raise RunError(error.status, "invalid_request_error", str(error)) from error


def _call(call: Call) -> dict[str, Any]:
    fields = {"component": call.component, "inputs": thaw(call.inputs), "outputs": thaw(call.outputs)}
    return {**fields, "outcome": str(call.outcome), **({"detail": redact(call.detail)} if call.detail else {})}
