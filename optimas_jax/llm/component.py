"""Components that ask a language model (prompt in, one text field out), and the choice of the model that they ask."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from optimas_jax.core.plain import ConfigError, from_dict, to_dict
from optimas_jax.core.ranges import NonNegativeFloat, PositiveInt, PositiveShare
from optimas_jax.core.render import render_chat, render_text
from optimas_jax.core.system import Component, ComponentFailure, RunContext
from optimas_jax.core.types import Outcome
from optimas_jax.core.values import (
    BASE,
    Adapter,
    Choice,
    Grid,
    Hyperparameters,
    LoraSpace,
    Models,
    Prompt,
    PromptSpace,
    Value,
)
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
    temperature: NonNegativeFloat = 0.0
    top_p: PositiveShare = 1.0
    max_tokens: PositiveInt = 256
    style: Literal["chat", "text"] = "chat"


SETTINGS = ("model", "temperature", "top_p", "max_tokens")  # of a language model, tunable by a grid


def _check_settings(language_model: LanguageModel, settings: Mapping[str, Any]) -> None:
    """Raises ``ConfigError`` for what is not among ``SETTINGS``, or a value that the language model cannot have."""
    for name in settings:
        if name not in SETTINGS:
            raise ConfigError(f"unknown setting {name!r} of a language model; known: {', '.join(SETTINGS)}")
    from_dict(LanguageModel, to_dict(language_model) | dict(settings), "grid")


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
    space: PromptSpace | LoraSpace | Grid | None = None,
    model_from: str = "",
) -> Component:
    """Builds a component whose output is the model's text, stripped.

    Its value is a ``Prompt``; with a ``LoraSpace`` the ``Adapter`` that answers to ``instruction``; with a ``Grid``
    over ``SETTINGS`` the ``Hyperparameters`` with which ``instruction`` is answered. An answer that was cut by the
    token limit is used as it is; an empty answer is a parse error.

    Args:
      model_from: the field that names the model to ask, such as a ``model_selector`` makes; it is not shown to the
        model. Empty for the one of ``language_model``.

    Raises:
      ValueError: for a grid with a setting or a value that no language model has, or without the default's.
    """
    asked = dataclasses.replace(language_model, max_tokens=max_tokens or language_model.max_tokens)
    prompted = Prompt(instruction)
    default: Value = prompted
    if isinstance(space, LoraSpace):
        default = BASE
    elif isinstance(space, Grid):
        try:
            for point in space.values():
                _check_settings(asked, point.settings)
            default = Hyperparameters({setting: getattr(asked, setting) for setting in space.settings})
            space.check(default)
        except ValueError as error:
            raise ValueError(f"component {name!r}: {error}") from error
    render = render_chat if language_model.style == "chat" else render_text

    async def run(fields: Mapping[str, Any], value: Value | None, context: RunContext) -> Mapping[str, Any]:
        assert isinstance(value, Prompt | Adapter | Hyperparameters)
        prompt = value if isinstance(value, Prompt) else prompted
        model = dataclasses.replace(asked, **value.settings) if isinstance(value, Hyperparameters) else asked
        request = CompletionRequest(
            model=fields[model_from] if model_from else model.model,
            messages=tuple(Message(role, text) for role, text in render(prompt, fields, inputs, output)),
            max_tokens=model.max_tokens,
            temperature=model.temperature if context.temperature is None else context.temperature,
            top_p=model.top_p,
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
        inputs=(*inputs, model_from) if model_from else inputs,
        outputs=(output,),
        run=run,
        space=space or PromptSpace(),
        default=default,
    )


def model_selector(*, name: str, description: str, inputs: tuple[str, ...], output: str, models: Models) -> Component:
    """Builds a component whose output is the name of one of ``models``, for ``model_from`` of another component.

    It asks nobody: its ``Choice`` is the same for every input, the first of ``models`` by default, and a
    ``PerInstance`` value lets its local reward choose by what it reads in ``inputs``.
    """

    async def run(fields: Mapping[str, Any], value: Value | None, context: RunContext) -> Mapping[str, Any]:
        assert isinstance(value, Choice)
        return {output: value.name}

    return Component(name, description, inputs, (output,), run, models, Choice(models.names[0]))
