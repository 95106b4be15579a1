"""Serves existing agents to OpenAI clients on this machine, with the optimised prompts of a run.

python launch/proxy.py --system=runs/X/best [--port=8000]
python launch/proxy.py --agents=FILE.py [--model=openai:NAME] [--port=8000]
                       [--host=0.0.0.0 --api-key-env=NAME]

Give an agent the base URL ``http://127.0.0.1:8000/v1``; it sends the model's name with which it is declared
(``oj.agent``) to ``POST /v1/chat/completions`` or ``/v1/responses``, with or without tools and streaming. With --system
it gets the tuned prompt and the model of the run, with --agents the prompt that the file declares. During a search
agents have a base URL for each run: ``oj.base_url()``.

The server is reached from this machine alone unless --host names another address. Then requests must have the key of
the environment variable that --api-key-env names. SIGTERM and Ctrl-C let requests in flight end, up to --grace seconds.
"""

from __future__ import annotations

import logging
import os
import runpy
import sys
from typing import Any

from optimas_jax.parallel.large_pages import use_large_pages

if __name__ == "__main__":
    use_large_pages()
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from absl import app, flags

from optimas_jax.bridges.agent import AgentDeclaration
from optimas_jax.bridges.proxy import make_app
from optimas_jax.core.types import StopRun
from optimas_jax.report.commands import exit_code
from optimas_jax.saved.agents import outside_of
from optimas_jax.saved.optimized import load

_SYSTEM = flags.DEFINE_string("system", "", "Folder of a run, or its best/: serves the agents of its program.")
_AGENTS = flags.DEFINE_string("agents", "", "A Python file that declares agents: serves them as they are.")
_MODEL = flags.DEFINE_string("model", "", "That answers; default: the run's, or the embedded one.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
_PORT = flags.DEFINE_integer("port", 8000, "Port to listen on.")
_KEY = flags.DEFINE_string("api_key_env", "", "Environment variable with the key that requests must bring.")
flags.DEFINE_alias("api-key-env", "api_key_env")
_GRACE = flags.DEFINE_float("grace", 30.0, "Seconds that requests in flight have after SIGTERM or Ctrl-C.", 0.0)


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if bool(_SYSTEM.value) == bool(_AGENTS.value):
        raise app.UsageError("give --system=FOLDER of a run, or --agents=FILE.py that declares agents")
    logging.disable(logging.INFO)  # libraries log too much
    return exit_code(serve_agents)


def serve_agents() -> int:
    """Serves until it is stopped; returns the exit code."""
    try:
        from optimas_jax.server.running import serve
    except ImportError as error:
        raise StopRun(f"{error}; install the server with: pip install 'optimas_jax[serve]'") from None
    return serve(agents_app, _HOST.value, _PORT.value, _KEY.value, _GRACE.value)


def agents_app() -> tuple[Any, str]:
    """The application over agents, and a line that describes it, with a place for its address."""
    outside, names = system_agents() if _SYSTEM.value else declared_agents()
    return make_app(outside), f"agents {', '.join(names)}: {{}}/v1"


def system_agents():
    """The agents of a program with the result of its run (``bridges.door.Outside``), and their names."""
    optimized = load(_SYSTEM.value, model=_MODEL.value or None)
    names = [component.name for component in optimized.system.components if component.route is not None]
    if not names:
        raise StopRun(
            f"{optimized.name} of {_SYSTEM.value} has no agents (optimas_jax.agent): serve it by launch/serve.py"
        )
    return outside_of(optimized), names


def declared_agents():
    """The agents that a file declares (``bridges.door.Outside``), and their names."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(_AGENTS.value)))
    try:
        variables = runpy.run_path(_AGENTS.value)
    except OSError as error:
        raise StopRun(f"--agents={_AGENTS.value}: {error}") from None
    agents = [agent for agent in variables.values() if isinstance(agent, AgentDeclaration)]
    if not agents:
        raise StopRun(f"--agents={_AGENTS.value} declares no agent: NAME = optimas_jax.agent(...) at its top")
    return outside_of(_MODEL.value or None, agents), [agent.name for agent in agents]


if __name__ == "__main__":
    app.run(main)
