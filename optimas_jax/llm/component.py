"""Components that call a language model (prompt in, one text field out), and components that choose this model."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from optimas_jax.core.component import Component, ComponentFailure, RunContext
from optimas_jax.core.schema import ConfigError, NonNegativeFloat, PositiveInt, PositiveShare, from_dict, to_dict
from optimas_jax.core.system import System
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
from optimas_jax.llm.base import CompletionRequest, Message
from optimas_jax.llm.forms.answers import Reader, ask, completed, used_text
from optimas_jax.llm.forms.schemas import with_line
from optimas_jax.llm.forms.templates import Template
from optimas_jax.llm.render import Turn, images_in, render_chat, render_text


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A language model and how it is sampled.

    Attributes:
      model: model spec or provider's name.
      temperature: sampling temperature in ordinary runs; 0 for greedy answers.
      top_p: share of the probability that is sampled from in ordinary runs.
      max_tokens: longest answer, in tokens, for components without a limit of their own.
      style: form of a prompt: ``chat`` (instruction, demonstrations and input as turns) or ``text`` (one text to
        continue, which small models follow better).

    Raises:
      ValueError: by ``optimize``, ``plan`` and commands, for a value out of its range.

    Example:
      ```python
      model = oj.LanguageModel("openai:gpt-4o-mini", temperature=0.7, max_tokens=512)
      planned = oj.plan(rag, grade, "questions.jsonl", model=model)
      ```
    """

    model: str
    temperature: NonNegativeFloat = 0.0
    top_p: PositiveShare = 1.0
    max_tokens: PositiveInt = 256
    style: Literal["chat", "text"] = "chat"


SETTINGS = ("model", "temperature", "top_p", "max_tokens")  # of a language model, tunable by a grid


def _check_settings(language_model: LanguageModel, settings: Mapping[str, Any]) -> None:
    """Raises ``ConfigError`` for a setting that is not one of ``SETTINGS``, or a value outside its range."""
    for name in settings:
        if name not in SETTINGS:
            raise ConfigError(f"unknown setting {name!r} of a language model; known: {', '.join(SETTINGS)}")
    from_dict(LanguageModel, to_dict(language_model) | dict(settings), "grid")


@dataclasses.dataclass(frozen=True)
class Form:
    """The form of a prompt and of its answers.

    Attributes:
      reader: reads typed answers or replies (``llm.forms``); None where the text itself is the output.
      template: of the text that the model reads; None for turns, or lines of fields.
    """

    reader: Reader | None = None
    template: Template | None = None


@dataclasses.dataclass(frozen=True)
class ModelCall:
    """The call of a language model behind ``llm_component``.

    Attributes:
      inputs: fields that the model reads; empty for all fields of the call.
      output: the field that holds its answer.
      prompt: shown to the model if the component's value is no prompt.
      language_model: the model that answers, unless the value or ``model_from`` names another.
      stop: texts that end the answer.
      model_from: the field that names the model, or "".
      form: of the prompt and of its answers.
    """

    inputs: tuple[str, ...]
    output: str
    prompt: Prompt
    language_model: LanguageModel
    stop: tuple[str, ...]
    model_from: str
    form: Form = Form()

    def default(self, space: PromptSpace | LoraSpace | Grid | None) -> Value:
        """The value before optimisation; raises ``ValueError`` for a grid that does not fit the language model."""
        if isinstance(space, LoraSpace):
            return BASE
        if not isinstance(space, Grid):
            return self.prompt
        for point in space.values():
            _check_settings(self.language_model, point.settings)
        default = Hyperparameters({setting: getattr(self.language_model, setting) for setting in space.settings})
        space.check(default)
        return default

    def request(self, fields: Mapping[str, Any], value: Value | None, context: RunContext) -> CompletionRequest:
        """The request for one input under a value of the component."""
        assert isinstance(value, Prompt | Adapter | Hyperparameters)
        prompt = value if isinstance(value, Prompt) else self.prompt
        settings = value.settings if isinstance(value, Hyperparameters) else {}
        model = dataclasses.replace(self.language_model, **settings)
        reader, template = self.form.reader, self.form.template
        tools = reader.tools if reader is not None and model.style == "chat" and template is None else ()
        if reader is not None:
            prompt = reader.shown(prompt, self.output)
            if not tools:
                prompt = dataclasses.replace(prompt, instruction=with_line(prompt.instruction, reader.schema))
        if template is not None:
            turns = [("user" if model.style == "chat" else "text", template.render(prompt, fields, self.output))]
        else:
            render = render_chat if model.style == "chat" else render_text
            turns = render(prompt, fields, self.inputs or tuple(fields), self.output)
        return CompletionRequest(
            model=fields[self.model_from] if self.model_from else model.model,
            messages=_with_images(turns, [*(demo.inputs for demo in prompt.demos), fields]),
            max_tokens=model.max_tokens,
            temperature=model.temperature if context.temperature is None else context.temperature,
            top_p=model.top_p,
            stop=self.stop,
            seed=context.seed,
            role=context.component,
            adapter=value.digest if isinstance(value, Adapter) else "",
            schema=None if reader is None else reader.schema,
            tools=tools,
        )

    async def run(self, fields: Mapping[str, Any], value: Value | None, context: RunContext) -> Mapping[str, Any]:
        """The stripped answer, or the fields that the reader reads from it; raises ``ComponentFailure`` if it is empty,
        cannot be read, or is missing."""
        request = self.request(fields, value, context)
        if self.form.reader is not None:
            return await ask(context, request, self.form.reader)
        text = used_text(context, request, await completed(context, request)).strip()
        if not text:
            raise ComponentFailure(Outcome.PARSE_ERROR, "empty answer")
        return {self.output: text}


def asks_model(run: Any) -> bool:
    """Whether the ``run`` of a component is ``llm_component``'s."""
    return isinstance(getattr(run, "__self__", None), ModelCall)


def _with_images(turns: Sequence[Turn], inputs: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Turns as messages. The images of each input are in the turn that shows it, or all in the only one."""
    images = [tuple(images_in(fields)) for fields in inputs]
    asking = [index for index, (role, _) in enumerate(turns) if role in ("user", "text")]
    if len(asking) == 1:
        images = [tuple(itertools.chain(*images))]
    shown = dict(zip(asking, images, strict=True))
    return tuple(Message(role, text, shown.get(index, ())) for index, (role, text) in enumerate(turns))


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
    form: Form = Form(),
) -> Component:
    """Builds a component whose output is the model's text, stripped.

    Its value is a ``Prompt``; with a ``LoraSpace`` an ``Adapter`` of the model, which gets ``instruction``; with a
    ``Grid`` over ``SETTINGS`` the ``Hyperparameters`` of the model, which gets ``instruction``. An answer that was cut
    by the token limit is used as it is; an empty answer is a parse error.

    Args:
      model_from: the field that names the model to call, such as the output of a ``model_selector``; the model does
        not see it. Empty for the model of ``language_model``.
      form: of the prompt and of its answers; the fields of what its reader reads are then the outputs.

    Raises:
      ValueError: for a grid with an unknown setting, a value outside its range, or without the default's settings.
    """
    language_model = dataclasses.replace(language_model, max_tokens=max_tokens or language_model.max_tokens)
    call = ModelCall(inputs, output, Prompt(instruction), language_model, stop, model_from, form)
    try:
        default = call.default(space)
    except ValueError as error:
        raise ValueError(f"component {name!r}: {error}") from error
    return Component(
        name=name,
        description=description,
        inputs=(*inputs, model_from) if model_from else inputs,
        outputs=(output,) if form.reader is None else form.reader.fields,
        run=call.run,
        space=space or PromptSpace(),
        default=default,
    )


def model_selector(*, name: str, description: str, inputs: tuple[str, ...], output: str, models: Models) -> Component:
    """Builds a component whose output is the name of one of ``models``, for ``model_from`` of another component.

    It sends no request. A ``Choice`` is the same for every input, by default the first of ``models``; a
    ``PerInstance`` value chooses by the local reward of each input.
    """

    async def run(fields: Mapping[str, Any], value: Value | None, context: RunContext) -> Mapping[str, Any]:
        assert isinstance(value, Choice)
        return {output: value.name}

    return Component(name, description, inputs, (output,), run, models, Choice(models.names[0]))


def models_of(system: System) -> dict[str, str]:
    """Language models by component, of all components that ask one; without components whose model another component
    chooses."""
    calls = {name: getattr(component.run, "__self__", None) for name, component in system.by_name.items()}
    models = {name: getattr(call, "language_model", None) for name, call in calls.items()}
    return {
        name: model.model
        for name, model in models.items()
        if isinstance(model, LanguageModel) and not getattr(calls[name], "model_from", "")
    }
