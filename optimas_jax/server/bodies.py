"""Bodies of requests, read up to a limit and parsed as JSON objects; and the answer to refused requests."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from optimas_jax.server.protocol import RequestError

_MOST_DISCARDED = 64 * 2**20  # bytes of a too large body that are still read, so that its sender sees the answer
_SECONDS = 60.0  # longest time for a body to arrive


class BodyError(Exception):
    """A body that cannot be read: HTTP status and message."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


async def read_object(request: Request, most: int) -> dict[str, Any]:
    """The JSON object of a body.

    Args:
      most: most bytes of a body; bytes beyond them are discarded.

    Raises:
      BodyError: for a body that is too large, too slow, no JSON, or no object.
    """
    try:
        async with asyncio.timeout(_SECONDS):
            body = await _read(request, most)
    except TimeoutError:
        raise BodyError(408, f"the body did not arrive within {_SECONDS:.0f} seconds") from None
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:  # or JSON that is nested too deep
        raise BodyError(400, f"the body is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise BodyError(400, f"the body is a JSON {type(value).__name__}, expected an object with the fields by name")
    return value


async def refused(request: Request, error: Exception) -> Response:
    """The answer to a refused request, in OpenAI's form: a handler of ``RequestError``, ``BodyError`` and
    ``HTTPException``."""
    if isinstance(error, RequestError):
        return JSONResponse(error.to_json(), error.status)
    if isinstance(error, BodyError):
        close = {"connection": "close"} if error.status in (408, 413) else None
        return JSONResponse(RequestError(error.status, str(error)).to_json(), error.status, close)
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(RequestError(error.status_code, message).to_json(), error.status_code, error.headers)


async def _read(request: Request, most: int) -> bytes:
    parts: list[bytes] = []
    size, announced = 0, request.headers.get("content-length", "")
    large = announced.isdecimal() and int(announced) > most
    async for part in request.stream():
        size += len(part)
        large = large or size > most
        if large:
            parts.clear()
        else:
            parts.append(part)
        if size > max(_MOST_DISCARDED, most):
            break
    if large:
        raise BodyError(413, f"the body is larger than {most:,} bytes, which this server reads at most")
    return b"".join(parts)
