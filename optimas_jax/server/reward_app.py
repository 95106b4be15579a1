"""A server over the local rewards of a run, for programs on machines without the reward model.

    GET  /health
    POST /score   {"component": NAME, "inputs": {...}, "outputs": [{...}, ...], "reward": NAME} -> {"scores": [...]}

Without ``reward`` the last reward of the run scores. Errors have the form of ``server.system_app``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from optimas_jax.server.system_app import HANDLERS, RunError, read_fields

Score = Callable[[str, Mapping[str, Any], Sequence[Mapping[str, Any]], str], Awaitable[Sequence[float]]]


def make_reward_app(score: Score) -> Starlette:
    """The application of the server.

    Args:
      score: (component, inputs, outputs, name of the reward) -> local rewards of the outputs; raises ``ValueError`` for
        outputs that cannot be scored. Its other exceptions are an error 500 without their messages.
    """

    async def health(_: Request) -> Response:
        return PlainTextResponse("")

    async def score_all(request: Request) -> Response:
        try:
            scores = await _scored(score, await read_fields(request))
        except RunError as error:
            return error.response()
        return JSONResponse({"scores": [*scores]})

    routes = [Route("/health", health), Route("/score", score_all, methods=["POST"])]
    return Starlette(routes=routes, exception_handlers=HANDLERS)


async def _scored(score: Score, body: Mapping[str, Any]) -> Sequence[float]:
    component, inputs, outputs = (body.get(name) for name in ("component", "inputs", "outputs"))
    if not isinstance(component, str) or not isinstance(inputs, dict) or not isinstance(outputs, list):
        raise RunError(400, "invalid_request_error", "component must be a text, inputs an object, outputs a list")
    for index, fields in enumerate(outputs):
        if not isinstance(fields, dict):
            raise RunError(400, "invalid_request_error", f"outputs[{index}] must be an object of output fields")
    try:
        return await score(component, inputs, outputs, str(body.get("reward") or ""))
    except ValueError as error:
        raise RunError(400, "invalid_request_error", str(error)) from error
