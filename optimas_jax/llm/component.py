"""A component that asks a language model: prompt in, one text field out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from optimas_jax.core.render import render_chat, render_text
from optimas_jax.core.system import Component, ComponentFailure, RunContext
from optimas_jax.core.types import Outcome
from optimas_jax.core.values import BASE, Adapter, LoraSpace, Prompt, PromptSpace, Value
from optimas_jax.llm.base import Completion, CompletionRequest, Message


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """Which model answers, and how it samples.

    Attributes:
      model: model spec or provider's name.
      temperature, top_p: sampling of ordinary runs.
      max_tokens: default limit of an answer; components may set their own.
      style: ``chat`` (instruction, demonstrations and input as turns) or ``text`` (one text to continue, which small
        models follow better).
    """

    model: str
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 256
    style: Literal["chat", "text"] = "chat"


def llm_component(
    *,
    name: str,
    description: str,
    inputs: tuple[str, ...],
    output: str,
    instruction: str,
    language_model: LanguageModel,
    max_tokens: int | None = None,
    stop: tuple[str, ...] = (),
    space: PromptSpace | LoraSpace | None = None,
) -> Component:
    """Builds a component whose value is a ``Prompt``, or with a ``LoraSpace`` the ``Adapter`` that answers to
    ``instruction``, and whose output is the model's text, stripped.

    An answer that was cut by the token limit is used as it is; an empty answer is a parse error.
    """
    limit = max_tokens or language_model.max_tokens
    default = Prompt(instruction)
    render = render_chat if language_model.style == "chat" else render_text

    async def run(fields: Mapping[str, Any], value: Value | None, context: RunContext) -> Mapping[str, Any]:
        assert isinstance(value, Prompt | Adapter)
        prompt = value if isinstance(value, Prompt) else default
        request = CompletionRequest(
            model=language_model.model,
            messages=tuple(Message(role, text) for role, text in render(prompt, fields, inputs, output)),
            max_tokens=limit,
            temperature=language_model.temperature if context.temperature is None else context.temperature,
            top_p=language_model.top_p,
            stop=stop,
            seed=context.seed,
            role=context.component,
            adapter=value.digest if isinstance(value, Adapter) else "",
        )
        completion: Completion = await context.completer.complete(request)
        if completion.outcome not in (Outcome.OK, Outcome.TRUNCATED):
            raise ComponentFailure(completion.outcome, completion.text)
        text = completion.text.strip()
        if not text:
            raise ComponentFailure(Outcome.PARSE_ERROR, "empty answer")
        return {output: text}

    return Component(
        name=name,
        description=description,
        inputs=inputs,
        outputs=(output,),
        run=run,
        space=space or PromptSpace(),
        default=BASE if isinstance(space, LoraSpace) else default,
    )
