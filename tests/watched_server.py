"""The server as ``launch/serve.py`` runs it, watched: python watched_server.py [MODEL]. Prints its port.

``GET /watch`` tells, since it was asked last, the longest time in seconds that the event loop computed without a pause
(of its thread's own) and that it did not get to its work, and megabytes in memory.
"""

import asyncio
import json
import resource
import socket
import sys
import time

from optimas_jax.engine.pool import Engines
from optimas_jax.llm.local import LocalCompleter
from optimas_jax.parallel.mesh import MeshConfig
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.server.app import make_app
from optimas_jax.server.gate import Gate
from optimas_jax.server.running import run_until_stopped


class Watched:
    """An ASGI application around another, which looks at its event loop every few milliseconds."""

    def __init__(self, application):
        self._application, self._looking = application, None
        self._busy = self._late = 0.0

    async def __call__(self, scope, receive, send):
        if self._looking is None and scope["type"] == "http":
            self._looking = asyncio.create_task(self._look())
        if scope["type"] != "http" or scope["path"] != "/watch":
            return await self._application(scope, receive, send)
        with open("/proc/self/statm") as file:
            memory = int(file.read().split()[1]) * resource.getpagesize() / 2**20
        body = json.dumps({"busy": self._busy, "late": self._late, "memory": memory}).encode()
        self._busy = self._late = 0.0
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        return await send({"type": "http.response.body", "body": body})

    async def _look(self):
        while True:
            wall, own = time.monotonic(), time.thread_time()
            await asyncio.sleep(0.002)
            self._late = max(self._late, time.monotonic() - wall - 0.002)
            self._busy = max(self._busy, time.thread_time() - own)


if __name__ == "__main__":
    model = sys.argv[1] if len(sys.argv) > 1 else "random:0"
    sampler = Engines(MeshConfig(data=1), ConsoleProgress(quiet=True)).sampler(model)
    completer = LocalCompleter(model, lambda: sampler)
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    sys.exit(run_until_stopped(Gate(Watched(make_app(completer, model, "m"))), listener, 5.0))
