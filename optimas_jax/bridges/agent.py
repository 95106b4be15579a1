"""Existing agents of frameworks as components: the model's name that an agent sends names a component to tune."""

from __future__ import annotations

import dataclasses
import re
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from optimas_jax.core.component import Component, Route
from optimas_jax.core.values import Demo, Prompt, PromptSpace
from optimas_jax.llm.agent import INPUTS, OUTPUTS, AgentCall
from optimas_jax.llm.component import LanguageModel
from optimas_jax.programs.declared import DeclarationError, Declared

_MOST_LETTERS = 8000  # of an instruction: agents have long ones
_DECLARED: weakref.WeakValueDictionary[str, AgentDeclaration] = weakref.WeakValueDictionary()  # by name, the latest one


def agent(
    name: str,
    instruction: str = "",
    *,
    sends: str = "",
    when: str | Mapping[str, str] = "",
    keep: bool = False,
    description: str = "",
    model: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    stop: Sequence[str] = (),
    demos: Sequence[Demo] = (),
    most_demos: int = 4,
) -> AgentDeclaration:
    """Declares an agent of a framework as a component: each of its requests is a call. In the agent only its client
    (``oj.client``) or its base URL (``oj.base_url``) changes.

    Its instruction and demonstrations are tuned. The model, its temperature and seed are the run's, whatever the agent
    asks for; its messages, tools, form of answers, stop texts and limit of tokens are kept.

    Args:
      name: of the component, and the model's name that the agent sends.
      instruction: where tuning starts: it replaces the agent's own system message. By default the agent's own system
        message is kept, and proposers start from it.
      sends: the model's name that the agent sends, if it is not ``name``.
      when: which requests are the agent's, if several agents send the same model's name: requests whose first system
        message begins with this text, or requests with these headers, ``{"x-agent": "researcher"}``.
      keep: whether the agent's own system message is kept below the instruction, and not replaced. Use it if the agent
        builds a new system message for each conversation.
      description: one sentence on its purpose, for proposers and local rewards; by default the instruction.
      model, max_tokens, temperature, stop: in place of the run's settings.
      demos: demonstrations to start with: ``Demo({"messages": [...]}, {"text": "...", "calls": []})``.
      most_demos: number of demonstrations that tuning may use.

    Raises:
      DeclarationError: for a name that no request can have, or a ``when`` that is neither a text nor headers.

    Example:
      ```python
      researcher = oj.agent("researcher")
      client = oj.client()

      @oj.program(components=[researcher])
      async def ask(question):
          messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]
          reply = await client.chat.completions.create(model="researcher", messages=messages)
          return {"answer": reply.choices[0].message.content}
      ```
    """
    for what, text in (("name", name), ("model's name that the agent sends", sends or name)):
        if not isinstance(text, str) or not text.strip() or not text.isprintable():
            raise DeclarationError(f"the {what} is {text!r}, expected a text of printable letters")
    if re.search(r"[/\\]|^\.", name):
        raise DeclarationError(
            f"the name is {name!r}, and names of components stand in paths: give it another, and this model's name by "
            f"sends={name!r}"
        )
    if not isinstance(instruction, str):
        raise DeclarationError(f"the instruction of an agent is {instruction!r}, expected a text, or none")
    settings = {"model": model, "max_tokens": max_tokens, "temperature": temperature, "stop": tuple(stop)}
    return AgentDeclaration(
        instruction,
        Route(sends or name, *_rule(when)),
        keep,
        settings,
        demos,
        most_demos,
        name=name,
        description=description or " ".join(instruction.split()) or f"Answers as the agent {name}.",
    )


def _rule(when: str | Mapping[str, str]) -> tuple[str, Mapping[str, str]]:
    """(prefix, headers) of a rule; raises ``DeclarationError`` for anything else."""
    if isinstance(when, str):
        return when, {}
    headers = dict(when) if isinstance(when, Mapping) else {}
    texts = all(isinstance(text, str) and text for pair in headers.items() for text in pair)
    if not headers or not texts:
        raise DeclarationError(
            f"when is {when!r}, expected the beginning of a system message, or headers such as "
            '{"x-agent": "researcher"}'
        )
    return "", {name.lower(): value for name, value in headers.items()}


class AgentDeclaration(Declared):
    """An agent of a framework; see ``agent``."""

    def __init__(
        self,
        instruction: str,
        route: Route,
        keep: bool,
        settings: Mapping[str, Any],
        demos: Sequence[Demo],
        most: int,
        **names: str,
    ):
        super().__init__(**names)
        self.instruction, self.route, self.demos = instruction, route, tuple(demos)
        self._keep, self._settings, self._most = keep, settings, most
        _DECLARED[self.name] = self

    @property
    def declared(self) -> Any:
        demos = [[demo.inputs, demo.outputs] for demo in self.demos]
        return [
            self.description,
            self.instruction,
            str(self.route),
            self._keep,
            dict(self._settings),
            demos,
            self._most,
        ]

    def build(self, language_model: LanguageModel) -> Component:
        """A component that asks the model of the run, or its own, with its own limits."""
        settings = {key: value for key, value in self._settings.items() if value is not None}
        stop = settings.pop("stop", ())
        call = AgentCall(dataclasses.replace(language_model, **settings), stop, "max_tokens" in settings, self._keep)
        longest = max(_MOST_LETTERS, 2 * len(self.instruction))
        return Component(
            name=self.name,
            description=self.description,
            inputs=INPUTS,
            outputs=OUTPUTS,
            run=call.run,
            space=PromptSpace(self._most, longest),
            default=Prompt(self.instruction, self.demos),
            route=self.route,
        )


def declared_agents() -> list[AgentDeclaration]:
    """The agents that this process has declared, sorted by name; of several with one name the latest."""
    return sorted(_DECLARED.values(), key=lambda agent: agent.name)
