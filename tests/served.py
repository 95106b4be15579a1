"""Applications on a free port of this machine, each in a thread."""

import contextlib
import threading
import time

import uvicorn

from optimas_jax.llm.local import LocalCompleter
from optimas_jax.server.app import make_app


@contextlib.contextmanager
def serving(sampler, name, port=0):
    """Serves a sampler, called ``name`` by clients; yields the address."""
    completer = LocalCompleter("random:0", lambda: sampler)
    try:
        with serving_app(make_app(completer, "random:0", name), port) as address:
            yield address
    finally:
        completer.close()


@contextlib.contextmanager
def serving_app(app, port=0, log_level="warning"):
    """Serves an application; yields the address."""
    server = uvicorn.Server(
        uvicorn.Config(
            app, host="127.0.0.1", port=port, log_config=None, log_level=log_level, timeout_graceful_shutdown=5
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
