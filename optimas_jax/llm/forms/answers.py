"""Typed answers: the JSON Schema of a type, its description in a prompt, and the value that is read from an answer.

An answer is a JSON object, and is recorded as one. The fields of a dataclass, a pydantic model or a mapping of outputs
are its fields; any other value is in one field, which has the component's name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Protocol

from optimas_jax.core.component import ComponentFailure, RunContext
from optimas_jax.core.running.event_loop import off_loop
from optimas_jax.core.text.json_text import JsonError, find_json, parse_json
from optimas_jax.core.types import Outcome, thaw
from optimas_jax.core.values import Demo, Prompt
from optimas_jax.llm.base import Completion, CompletionRequest, Message, Tool
from optimas_jax.llm.forms.loose import NOTHING, loose_json, unfenced
from optimas_jax.llm.forms.schemas import clean_schema, format_line, object_schema, told

_LATEST = 20  # most JSON values of an answer that are tried, the last ones
_MOST_PROBLEMS = 5  # most problems that a message names


class AnswerError(ValueError):
    """An answer that is not of its type; the message says what is wrong, to the model or to the user."""


class Reader(Protocol):
    """Reads the answers to a prompt."""

    @property
    def schema(self) -> Mapping[str, Any]:
        """JSON Schema of answers."""
        ...

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of recorded fields."""
        ...

    @property
    def tools(self) -> tuple[Tool, ...]:
        """Tools that the model may ask for."""
        ...

    def shown(self, prompt: Prompt, output: str) -> Prompt:
        """The prompt with demonstrations in the form of answers, as the text of ``output``."""
        ...

    def read(self, text: str) -> dict[str, Any]:
        """The fields to record; raises ``AnswerError``."""
        ...


@dataclasses.dataclass(frozen=True)
class AnswerType:
    """The type of a component's answers.

    Attributes:
      name: of the component.
      kind: what pydantic reads: a dataclass, a model, a number, ``list[...]``, ``dict[str, ...]``, an enum, a
        ``Literal``, a union; or a mapping from outputs to their types.
    """

    name: str
    kind: Any

    def __post_init__(self) -> None:
        """Raises ``TypeError`` for a type that JSON cannot be read as."""
        from pydantic.errors import PydanticUserError

        try:
            _ = self.schema
        except (PydanticUserError, TypeError) as error:
            reason = str(error).split("\n")[0]
            raise TypeError(
                f"no JSON can be read as {self.kind!r} ({reason}); a type of answers is a dataclass, a pydantic model, "
                "int, float, bool, str, list[...], dict[str, ...], an enum, Literal[...], a union of these, or a "
                "mapping from names of outputs to types"
            ) from error

    @cached_property
    def _adapter(self) -> Any:
        from pydantic import TypeAdapter
        from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

        if inspect.isroutine(self.kind):
            raise TypeError("a function is no type")
        if not isinstance(self.kind, Mapping):
            return TypeAdapter(self.kind)
        if not self.kind or not all(isinstance(name, str) for name in self.kind):
            raise TypeError("outputs have names, at least one")
        return TypeAdapter(TypedDict("Outputs", dict(self.kind)))  # type: ignore[misc]

    @cached_property
    def _value_schema(self) -> dict[str, Any]:
        return clean_schema(self._adapter.json_schema())

    @cached_property
    def _in_field(self) -> bool:
        """Whether the value is in one field of the answer; else its fields are the fields of the answer."""
        return not self._value_schema.get("properties")

    @property
    def schema(self) -> Mapping[str, Any]:
        """JSON Schema of answers: an object; every field is required."""
        return self._schema

    @cached_property
    def _schema(self) -> dict[str, Any]:
        value = dict(self._value_schema)
        if not self._in_field:
            return value
        definitions = {"$defs": value.pop("$defs")} if "$defs" in value else {}
        return {**object_schema({self.name: value}), **definitions}

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of recorded fields."""
        return tuple(self.schema["properties"])

    @property
    def tools(self) -> tuple[Tool, ...]:
        return ()

    def shown(self, prompt: Prompt, output: str) -> Prompt:
        demos = (Demo(demo.inputs, {output: self._answer(demo.outputs)}) for demo in prompt.demos)
        return Prompt(prompt.instruction, tuple(demos))

    def _answer(self, outputs: Mapping[str, Any]) -> str:
        """The answer with recorded outputs; outputs of another type are written as they are."""
        data = thaw(outputs)
        with contextlib.suppress(ValueError):
            data = self._recorded(self.restore(outputs))
        return json.dumps(data, ensure_ascii=False)

    def read(self, text: str) -> dict[str, Any]:
        """The fields of the last JSON value in a text that has the type: drafts come before it. Fences around it and
        words before and after it are ignored. A number or a word must be the whole answer, since prose is full of them.

        Raises:
          AnswerError: there is no such value in the text.
        """
        problem = None
        try:
            for data in _json_values(text, words=self._in_field):
                fits = isinstance(data, dict) and self.name in data
                try:
                    return self._recorded(self._validated(data[self.name] if self._in_field and fits else data))
                except ValueError as error:
                    problem = problem or describe(error)
        except JsonError as error:
            problem = f"there is no complete JSON in the answer ({error})"
        raise AnswerError(problem or "there is no complete JSON in the answer")

    def restore(self, outputs: Mapping[str, Any]) -> Any:
        """The value of recorded fields; raises ``ValueError`` for fields of another type."""
        data = thaw(outputs)
        return self._validated(data.get(self.name) if self._in_field else data)

    def _validated(self, data: Any) -> Any:
        return self._adapter.validate_json(json.dumps(data, allow_nan=False))

    def _recorded(self, value: Any) -> dict[str, Any]:
        plain = self._adapter.dump_python(value, mode="json", by_alias=True)
        json.dumps(plain, allow_nan=False)  # a text may stand for a number that is not finite, which no file holds
        return {self.name: plain} if self._in_field else plain


def describe(error: ValueError) -> str:
    """A line that describes the errors of a value."""
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    problems = [
        f"{'.'.join(map(str, problem['loc'])) or 'the answer'}: {problem['msg']}"
        for problem in errors(include_url=False)
    ]
    omitted = [f"and {len(problems) - _MOST_PROBLEMS} more"] if len(problems) > _MOST_PROBLEMS else []
    return "; ".join(problems[:_MOST_PROBLEMS] + omitted)


async def ask(context: RunContext, request: CompletionRequest, reader: Reader) -> dict[str, Any]:
    """The fields of the answer to a request. A model whose answer cannot be read is asked once more, with its answer
    and a description of the error.

    Raises:
      ComponentFailure: there is no answer, or two that cannot be read: a parse error, or truncated if both were.
    """
    first = await completed(context, request)
    try:
        fields = await off_loop(lambda: reader.read(first.text), len(first.text))
        used_text(context, request, first)
        return fields
    except AnswerError as error:
        problem = _problem(error, first, request)
    second = await completed(context, repaired(request, first.text, problem, reader.schema))
    try:
        fields = await off_loop(lambda: reader.read(second.text), len(second.text))
        used_text(context, request, second)
        return fields
    except AnswerError as error:
        truncated = first.outcome is second.outcome is Outcome.TRUNCATED
        raise ComponentFailure(
            Outcome.TRUNCATED if truncated else Outcome.PARSE_ERROR,
            f"{_problem(error, second, request)}; asked twice, the last answer was {second.text[:200]!r}",
        ) from error


async def completed(context: RunContext, request: CompletionRequest) -> Completion:
    """The answer to a request of a component; its reasoning goes to the record of the call.

    Raises:
      ComponentFailure: there is no answer, or all of it was reasoning.
    """
    completion: Completion = await context.completer.complete(request)
    if completion.reasoning:
        context.notes.append(completion.reasoning)
    if completion.outcome not in (Outcome.OK, Outcome.TRUNCATED):
        raise ComponentFailure(completion.outcome, completion.detail or completion.text)
    if completion.outcome is Outcome.TRUNCATED and completion.reasoning and not completion.text.strip():
        raise ComponentFailure(
            Outcome.TRUNCATED, f"max_tokens = {request.max_tokens} ended before the reasoning did: set it higher"
        )
    return completion


def used_text(context: RunContext, request: CompletionRequest, completion: Completion) -> str:
    """The text of an answer that a component uses. If the token limit cut it, the record of the call notes that."""
    if completion.outcome is Outcome.TRUNCATED:
        context.cuts.append(f"cut at max_tokens = {request.max_tokens}")
    return completion.text


def _problem(error: AnswerError, completion: Completion, request: CompletionRequest) -> str:
    cut = f" (it was cut at max_tokens = {request.max_tokens})" if completion.outcome is Outcome.TRUNCATED else ""
    return f"{error}{cut}"


def repaired(request: CompletionRequest, text: str, problem: str, schema: Mapping[str, Any]) -> CompletionRequest:
    """The request, followed by its wrong answer, the problem with it, and the schema once more."""
    again = f"This answer cannot be read: {problem}\n{format_line(schema)}"
    text = text.strip() or "(nothing)"
    if [message.role for message in request.messages] == ["text"]:
        prompt_text = request.messages[0].content
        label = prompt_text.rsplit("\n", 1)[-1]
        return dataclasses.replace(request, messages=(Message("text", f"{prompt_text} {text}\n\n{again}\n\n{label}"),))
    messages = (*request.messages, Message("assistant", text), Message("user", again))
    return told(dataclasses.replace(request, messages=messages))  # tools are described: the answer is this JSON


def _json_values(text: str, *, words: bool) -> Iterator[Any]:
    """JSON values in a text: the text itself, without fences around it; or the objects and lists in its last fenced
    block, and then all others, from the last to the first.

    Args:
      words: whether the text as a word comes after them.

    Raises:
      JsonError: the text itself is meant as JSON, and there is none in it.
    """
    bare_text, problem = unfenced(text), None
    try:
        value = parse_json(bare_text)
        yield value
        if not isinstance(value, str):  # which may hold JSON again
            return
    except JsonError as error:
        problem = error
    data = loose_json(text)
    if data is not NOTHING:
        yield data
        return
    fenced = text.split("```")[1::2]
    candidates = [*find_json(text)[-_LATEST:], *find_json(fenced[-1] if fenced else "")[-_LATEST:]]
    yield from candidates[::-1]
    if words and bare_text and bare_text[0] not in '{["':
        yield bare_text
    elif problem is not None and not candidates and bare_text and bare_text[0] in '{["':
        raise problem
