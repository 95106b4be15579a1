"""Serves answers that take a while, as ``launch/serve.py`` does, until a signal: python stopping_program.py GRACE."""

import asyncio
import socket
import sys

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from optimas_jax.server.gate import Gate
from optimas_jax.server.running import run_until_stopped


async def slow(request):
    await asyncio.sleep(float(request.query_params["seconds"]))
    return PlainTextResponse("done")


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    application = Starlette(routes=[Route("/", slow), Route("/health", lambda _: PlainTextResponse(""))])
    sys.exit(run_until_stopped(Gate(application), listener, float(sys.argv[1])))
