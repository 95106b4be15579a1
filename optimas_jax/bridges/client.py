"""The clients of OpenAI's SDK, whose requests are answered in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from optimas_jax.bridges.door import Answer, Door, Outside, Request
from optimas_jax.core.types import StopRun

if TYPE_CHECKING:
    import openai

_URL = "http://optimas-jax.invalid/v1"  # a placeholder: no request reaches the network


def make_client(outside: Callable[[], Outside], *, sync: bool = False) -> openai.OpenAI | openai.AsyncOpenAI:
    """An ``openai.AsyncOpenAI``, or with ``sync`` an ``openai.OpenAI``: every method, type, stream and error is the
    SDK's.

    Args:
      outside: makes the agents that answer outside of all runs.

    Raises:
      StopRun: the SDK is too old.
    """
    import openai

    if int(openai.__version__.split(".")[0]) < 3:
        raise StopRun(
            f"optimas_jax.client needs openai 3, and openai {openai.__version__} is installed: give the agent the base "
            "URL of its run, optimas_jax.base_url()"
        )
    import httpx2

    door = Door(outside)

    class Transport(httpx2.BaseTransport):
        """Hands requests to the door, in a thread."""

        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            return _response(door.answer_in_thread(read(request)))

    class AsyncTransport(httpx2.AsyncBaseTransport):
        """Hands requests to the door, on an event loop."""

        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            await request.aread()
            return _response(await door.answer(read(request)))

    def read(request: httpx2.Request) -> Request:
        headers = {name.lower(): value for name, value in request.headers.items()}
        content = request.read() if sync else request.content
        return Request(request.method, request.url.path, headers, _parsed(content))

    def _response(answer: Answer) -> httpx2.Response:
        headers = {"content-type": answer.kind, **answer.headers}
        return httpx2.Response(answer.status, headers=headers, content=answer.content)

    if sync:
        http = httpx2.Client(transport=Transport())
        return openai.OpenAI(base_url=_URL, api_key="none", http_client=http)
    return openai.AsyncOpenAI(base_url=_URL, api_key="none", http_client=httpx2.AsyncClient(transport=AsyncTransport()))


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content) if content else None
    except (ValueError, RecursionError):
        return None
