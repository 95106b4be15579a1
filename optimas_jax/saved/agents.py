"""Existing agents: clients, base URLs and a server that stand between agents and their models.

Within a run a request is a call of the run. Outside of all runs agents answer with the result of a run, where one is
given, and otherwise as they are declared.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimas_jax.bridges import proxy as bridge
from optimas_jax.bridges.agent import AgentDeclaration, declared_agents
from optimas_jax.bridges.client import make_client
from optimas_jax.bridges.door import Outside
from optimas_jax.core.system import System
from optimas_jax.core.types import Call, Example, freeze
from optimas_jax.core.values import Configuration
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.journal import BEST
from optimas_jax.saved.models import completer_of, language_model
from optimas_jax.saved.optimized import Optimized

if TYPE_CHECKING:
    import openai

Answers = Optimized | str | LanguageModel | None  # what answers outside of all runs


def client(outside: Answers = None, *, sync: bool = False) -> openai.AsyncOpenAI | openai.OpenAI | Any:
    """A client of OpenAI's SDK for agents: an ``AsyncOpenAI``, or with ``sync`` an ``OpenAI``. Its requests are
    answered in this process: chat completions and responses, with tools, streamed or not.

    Args:
      outside: what answers outside of all runs: an optimised program (``oj.load``, ``result.best``), or a model for the
        agents as they are declared, by default the embedded model.

    Raises:
      ValueError: for what is neither a program of a run nor a model.
      openai.APIStatusError: by a request: 404 for an unknown agent, 400 for what an answer cannot have, 409 where a
        request belongs to no single run.

    Example:
      ```python
      client = oj.client()
      plain = oj.client(sync=True)
      ```
    """
    return make_client(outside_of(outside), sync=sync)


def base_url() -> str:
    """The base URL, for any client of OpenAI's API, of the run that is current here. Called in a program, and handed to
    the processes and threads that it starts; a server on this machine answers, which starts when it is first needed.

    Raises:
      ProgramError: outside of a run.
      StopRun: the extra ``serve`` is not installed.

    Example:
      ```python
      @oj.program(components=[oj.agent("helper")])
      def ask(question):
          from openai import OpenAI

          helper = OpenAI(base_url=oj.base_url(), api_key="none")
          reply = helper.chat.completions.create(model="helper", messages=[{"role": "user", "content": question}])
          return {"answer": reply.choices[0].message.content}
      ```
    """
    return bridge.base_url(outside_of(None))


def api_key() -> str:
    """The key of the run that is current here, for agents whose base URL is fixed (``proxy``).

    Raises:
      ProgramError: outside of a run.

    Example:
      ```python
      @oj.program(components=[oj.agent("helper")])
      def ask(question):
          key = {"OPENAI_API_KEY": oj.api_key()}
          return {"answer": subprocess.check_output(["helper", question], env=key, text=True)}
      ```
    """
    return bridge.api_key()


def proxy(outside: Answers = None, *, port: int = 0, host: str = "127.0.0.1") -> contextlib.AbstractContextManager[str]:
    """Serves agents of other processes while its block runs: ``with oj.proxy(port=8000) as url: oj.optimize(...)``.

    Args:
      outside: as for ``client``.
      port: to listen on; 0 for a free one.
      host: address to listen on; addresses that other machines can reach need a key (``optimas proxy``).

    Raises:
      StopRun: the address cannot be used, or the extra ``serve`` is not installed.

    Example:
      ```python
      with oj.proxy(port=0) as url:
          print(f"OPENAI_BASE_URL={url}")
      ```
    """
    return bridge.serving(outside_of(outside), host, port)


def outside_of(answers: Answers, agents: Sequence[AgentDeclaration] | None = None) -> Callable[[], Outside]:
    """A function that makes, at the first request, what answers outside of all runs.

    Args:
      agents: agents that a model answers for; by default all that this process has declared.
    """
    if isinstance(answers, Optimized):
        return lambda: _of_system(answers.system, answers.configuration, answers.seed)
    if not isinstance(answers, str | LanguageModel | None):
        raise ValueError(f"{answers!r} answers nothing: give a program of a run (optimas_jax.load), or a model")
    if isinstance(answers, str) and Path(answers, BEST).is_dir():
        raise ValueError(f"{answers!r} is the folder of a run: give optimas_jax.load({answers!r})")
    completer = functools.cache(lambda model: completer_of("agents", model, {}, Path()))

    def declared() -> Outside:
        model = language_model(answers)
        components = tuple(agent.build(model) for agent in (declared_agents() if agents is None else agents))
        system = System(components, (), (), _no_metric, completer(model), program=_no_program)
        return _of_system(system, system.default_configuration(), 0)

    return declared


def _of_system(system: System, configuration: Configuration, seed: int) -> Outside:
    def call(name: str, inputs: Mapping[str, Any]) -> Awaitable[Call]:
        example = Example("", freeze({}), freeze({}), "")
        return system.run_component(Call(name, inputs, {}), configuration.get(name), example, seed)

    return Outside(system.by_name, call)


def _no_metric() -> float:
    return 0.0


async def _no_program(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}
