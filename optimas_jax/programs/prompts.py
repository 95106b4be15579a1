"""Prompts and settings: components that need no function of the user's."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from optimas_jax.core.component import Component, RunContext
from optimas_jax.core.values import Demo, Grid, Hyperparameters, Prompt, PromptSpace, Value
from optimas_jax.llm.component import Form, LanguageModel, llm_component
from optimas_jax.llm.forms.answers import AnswerType
from optimas_jax.llm.forms.templates import Template
from optimas_jax.llm.forms.tools import ReplyType
from optimas_jax.programs.declared import DeclarationError, Declared

T = TypeVar("T")


def prompt(
    instruction: str,
    *,
    output: Any = str,
    template: str | None = None,
    tools: Sequence[Callable[..., Any]] = (),
    name: str = "",
    description: str = "",
    model: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    stop: Sequence[str] = (),
    demos: Sequence[Demo] = (),
    most_demos: int = 4,
) -> PromptDeclaration:
    """Declares a prompt: called with fields, it asks the model of the run, and returns the text of its answer, or a
    value of the type ``output``. In ``component(prompt=...)`` it is the prompt of a function that asks its own model.

    Args:
      instruction: the first instruction, from which tuning starts.
      output: type of the answer, which is then asked for as JSON: a dataclass, a pydantic model, ``int``, ``float``,
        ``bool``, ``list[...]``, ``dict[str, ...]``, an enum, ``Literal[...]``, a union; or ``{"answer": str, "sources":
        list[str]}`` for several outputs, which come as a dict. Recorded are the fields of the answer.
      template: the text that the model reads in one message, with the places ``{instruction}`` and maybe ``{demos}``,
        and one for each field of a call, such as ``{question}``; ``{{`` and ``}}`` are braces. Without ``{demos}`` no
        demonstrations are tuned.
      tools: functions that the model may ask for; it reads their signatures and docstrings. The call returns an
        ``oj.Reply``, its text and its calls, which the program makes: ``search(**call.arguments)``.
      name: of the component; by default the variable's name.
      description: one sentence on its purpose, for proposers and local rewards; by default the instruction.
      model, max_tokens, temperature, stop: in place of the run's settings.
      demos: demonstrations to start with.
      most_demos: number of demonstrations that tuning may use.

    Raises:
      DeclarationError: for an empty instruction, an output that JSON cannot be read as, stop texts with a type (an
        answer of a type ends with its JSON), or a template that cannot be read.

    Example:
      ```python
      answer = oj.prompt("Answer the question.", output={"answer": str, "sure": bool}, max_tokens=64)

      async def ask(question):
          return await answer(question=question)
      ```
    """
    if not isinstance(instruction, str) or not instruction.strip():
        raise DeclarationError(f"the instruction of a prompt is {instruction!r}, expected a text")
    if stop and (tools or output is not str):
        raise DeclarationError(f"stop is {stop!r}: an answer with a type ends with its JSON; leave stop out")
    if tools and output is not str:
        raise DeclarationError(f"a prompt with tools returns an optimas_jax.Reply: leave output = {output!r} out")
    form = _Form(output, None if template is None else _declared(Template, template), tuple(tools))
    if demos and not form.shows_demos:
        raise DeclarationError("there are demonstrations, and the template has no place {demos} for them")
    form.reader(name or "answer")
    settings = {"model": model, "max_tokens": max_tokens, "temperature": temperature, "stop": tuple(stop)}
    return PromptDeclaration(
        instruction,
        settings,
        demos,
        most_demos if form.shows_demos else 0,
        form,
        name=name,
        description=description or " ".join(instruction.split()),
    )


def _declared(make: Callable[..., T], *arguments: Any) -> T:
    """Makes an object of a declaration; raises ``DeclarationError`` if the declaration is invalid."""
    try:
        return make(*arguments)
    except (TypeError, ValueError) as error:
        raise DeclarationError(str(error)) from error


@dataclasses.dataclass(frozen=True)
class _Form:
    """The form of a prompt and of its answers; see ``prompt``."""

    output: Any = str
    template: Template | None = None
    tools: tuple[Callable[..., Any], ...] = ()

    @property
    def shows_demos(self) -> bool:
        return self.template is None or self.template.shows_demos

    def declared(self, reader: AnswerType | ReplyType | None) -> dict[str, Any]:
        """The form as plain data; ``reader`` reads its answers."""
        template = None if self.template is None else self.template.text
        return {"schema": None if reader is None else reader.schema, "template": template}

    def reader(self, name: str) -> AnswerType | ReplyType | None:
        """The reader of a component's answers; None for answers that are plain text."""
        if self.tools:
            return _declared(ReplyType, self.tools)
        return None if self.output is str else _declared(AnswerType, name, self.output)


def setting(default: Any, choices: Sequence[Any], *, name: str = "", description: str = "") -> SettingDeclaration:
    """Declares a number or word to be tuned: ``k.value`` in the program, or an argument of ``component``.

    Args:
      default: one of the choices, where tuning starts.
      choices: all allowed values.
      name: of the component; by default the variable's name.
      description: one sentence on its purpose, for proposers; by default none.

    Raises:
      ValueError: for a default that is no choice, or a choice that is no number or word.

    Example:
      ```python
      passages = oj.setting(3, choices=(1, 3, 5))

      async def ask(question):
          return {"answer": await answer(question=question, passages=search(question)[: passages.value])}
      ```
    """
    if default not in list(choices):
        raise DeclarationError(f"the default of a setting is {default!r}, expected one of its choices {list(choices)}")
    return SettingDeclaration(default, choices, name=name, description=description or f"Chooses one of {choices}.")


choice = setting


class PromptDeclaration(Declared):
    """A request to the model of the run, with an instruction and demonstrations that are tuned; see ``prompt``."""

    def __init__(
        self,
        instruction: str,
        settings: Mapping[str, Any],
        demos: Sequence[Demo],
        most: int,
        form: _Form,
        **names: str,
    ):
        super().__init__(**names)
        self.instruction, self.demos, self.most = instruction, tuple(demos), most
        self._settings, self._form = settings, form

    @functools.cached_property
    def reader(self) -> AnswerType | ReplyType | None:
        """The reader of the answers; None for answers that are plain text. The component must have its name."""
        return self._form.reader(self.name)

    @property
    def declared(self) -> Any:
        demos = [[demo.inputs, demo.outputs] for demo in self.demos]
        form = [] if self._form == _Form() else [self._form.declared(self.reader)]
        return [self.description, self.instruction, demos, self.most, dict(self._settings), *form]

    def build(self, language_model: LanguageModel) -> Component:
        """A component that asks the model of the run, or its own, with its own limits."""
        settings = {key: value for key, value in self._settings.items() if value is not None}
        stop = settings.pop("stop", ())
        built = llm_component(
            name=self.name,
            description=self.description,
            inputs=(),
            output=self.name,
            instruction=self.instruction,
            language_model=dataclasses.replace(language_model, **settings),
            stop=stop,
            space=self.space,
            form=Form(self.reader, self._form.template),
        )
        return dataclasses.replace(built, default=Prompt(self.instruction, self.demos))

    @property
    def space(self) -> PromptSpace:
        """The space of prompts: at most ``most`` demonstrations, and instructions up to at least twice the length of
        the first."""
        return PromptSpace(self.most, max(PromptSpace().max_instruction_chars, 2 * len(self.instruction)))

    def check_own(self) -> None:
        """Raises ``DeclarationError`` for a prompt with parts that only the model of the run can use."""
        if self._form != _Form():
            raise DeclarationError(
                "output, template and tools belong to a prompt that asks the model of the run; a function with its own "
                "model writes its messages and reads its answers itself, and says in its return type what they are"
            )

    def __call__(self, *texts: Any, **fields: Any) -> Any:
        """Asks the model about the fields; returns its answer. Fields are given by name."""
        if texts:
            problem = f"prompt {self.name!r} got {len(texts)} argument(s) without a name: give fields by name, such as "
            raise self._scope().fail(DeclarationError(f"{problem}{self.name}(question=...)"))
        if self._form.template is not None:
            try:
                self._form.template.check(fields)
            except ValueError as error:
                raise self._scope().fail(DeclarationError(f"prompt {self.name!r}: {error}")) from error
        return self.call(self.plain(fields))

    def restore(self, outputs: Mapping[str, Any]) -> Any:
        return super().restore(outputs) if self.reader is None else self.reader.restore(outputs)


class SettingDeclaration(Declared):
    """A number or word that is tuned; see ``setting``."""

    def __init__(self, default: Any, choices: Sequence[Any], **names: str):
        super().__init__(**names)
        self.default, self.space = Hyperparameters({"value": default}), Grid({"value": tuple(choices)})
        self.space.check(self.default)

    @property
    def declared(self) -> Any:
        return [self.description, self.default["value"], self.space.settings["value"]]

    def build(self, language_model: LanguageModel) -> Component:
        async def run(fields: Mapping[str, Any], value: Value | None, context: RunContext) -> Mapping[str, Any]:
            assert isinstance(value, Hyperparameters)
            return {"value": value["value"]}

        return Component(self.name, self.description, (), ("value",), run, self.space, self.default)

    @property
    def value(self) -> Any:
        """The value in use; outside of a run the default."""
        return self.default["value"] if self.outside() else self._scope().read(self.name)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __eq__(self, other: object) -> bool:
        return self is other or self.value == other

    def __hash__(self) -> int:
        return hash(self.value)

    def __lt__(self, other: Any) -> bool:
        return self.value < other

    def __le__(self, other: Any) -> bool:
        return self.value <= other

    def __gt__(self, other: Any) -> bool:
        return self.value > other

    def __ge__(self, other: Any) -> bool:
        return self.value >= other

    def __index__(self) -> int:
        return self.value.__index__()

    def __int__(self) -> int:
        return int(self.value)

    def __float__(self) -> float:
        return float(self.value)

    def __str__(self) -> str:
        return str(self.value)
