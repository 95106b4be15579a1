"""Tools that a model may ask for: their schemas from functions, and replies, which are a text, calls, or both.

The program runs the tools. A reply is recorded and shown as JSON: ``{"text": ..., "calls": [{"name": ..., "arguments":
{...}}]}``. Models whose API has no field for calls are asked for this JSON.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from optimas_jax.core.values import Prompt
from optimas_jax.llm.base import Tool
from optimas_jax.llm.forms.answers import AnswerError, AnswerType
from optimas_jax.llm.forms.schemas import clean_schema

_NAMELESS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
# Text that is meant as a reply or as a call. It is never taken for prose, which would lose the call.
MEANT = re.compile(r'\A(```\w*)?\s*\{\s*"text"\s*:|"(calls|arguments)"\s*:')


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """A call that a model asks for.

    Attributes:
      name: of the tool.
      arguments: in the types that the tool declares.

    It raises nothing by itself: arguments that do not fit a tool are an answer that cannot be read.

    Example:
      ```python
      call = oj.ToolCall("search", {"query": "iron", "limit": 3})
      ```
    """

    name: str
    arguments: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Reply:
    """The answer of a model that may ask for tools.

    Attributes:
      text: maybe empty with calls.
      calls: that it asks for; none where the text is its answer.

    A prompt with ``tools`` returns it; it raises nothing by itself.

    Example:
      ```python
      reply = oj.Reply("", (oj.ToolCall("search", {"query": "iron"}),))
      for call in reply.calls:
          print(call.name, call.arguments)
      ```
    """

    text: str = ""
    calls: tuple[ToolCall, ...] = ()


@dataclasses.dataclass(frozen=True)
class ReplyType:
    """Reads the replies to a prompt with tools.

    Attributes:
      functions: the tools; their names are different.
    """

    functions: tuple[Callable[..., Any], ...]

    def __post_init__(self) -> None:
        """Raises ``TypeError`` for a function or an argument without a name, or types that JSON cannot hold."""
        names = [tool.name for tool in self.tools]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise TypeError(f"two tools have the name {', '.join(twice)}")

    @property
    def tools(self) -> tuple[Tool, ...]:
        """Descriptions of the tools, for the model."""
        return self._tools

    @cached_property
    def _tools(self) -> tuple[Tool, ...]:
        return tuple(_tool(function) for function in self.functions)

    @cached_property
    def _answers(self) -> AnswerType:
        from pydantic import Field
        from typing_extensions import TypedDict

        calls = []
        for tool, function in zip(self.tools, self.functions, strict=True):
            fields = {"name": Literal[tool.name], "arguments": _arguments(function)}
            calls.append(TypedDict("Call", fields))  # type: ignore[misc]
            calls[-1].__doc__ = tool.description
        kind = calls[0] if len(calls) == 1 else Annotated[typing.Union[tuple(calls)], Field(discriminator="name")]  # noqa: UP007
        return AnswerType("reply", {"text": str, "calls": list[kind]})

    @property
    def schema(self) -> Mapping[str, Any]:
        return self._answers.schema

    @property
    def fields(self) -> tuple[str, ...]:
        return self._answers.fields

    def shown(self, prompt: Prompt, output: str) -> Prompt:
        return self._answers.shown(prompt, output)

    def read(self, text: str) -> dict[str, Any]:
        """The fields of a reply. Prose, with or without braces, is a reply with this text and no calls.

        Raises:
          AnswerError: for an empty text, or for a reply or a call of another form.
        """
        prose = text.strip()
        try:
            fields = self._answers.read(text)
        except AnswerError:
            if not prose or MEANT.search(prose):
                raise
            return {"text": prose, "calls": []}
        if not fields["text"].strip() and not fields["calls"]:
            raise AnswerError("there is neither a text nor a call")
        return fields

    def restore(self, outputs: Mapping[str, Any]) -> Reply:
        value = self._answers.restore(outputs)
        return Reply(value["text"], tuple(ToolCall(call["name"], call["arguments"]) for call in value["calls"]))


def _tool(function: Callable[..., Any]) -> Tool:
    name = getattr(function, "name", "") or getattr(function, "__name__", "")
    if not callable(function) or not name.isidentifier():
        raise TypeError(f"a tool is a function with a name, got {function!r}")
    from pydantic import TypeAdapter

    description = inspect.getdoc(inspect.unwrap(function)) or name
    schema = clean_schema(TypeAdapter(_arguments(function)).json_schema(), all_required=False)
    return Tool(name, description, {"properties": {}, **schema})


def _arguments(function: Callable[..., Any]) -> Any:
    """The arguments of a function as a type: arguments with a default may be missing, and no others are allowed."""

    from pydantic import ConfigDict, with_config
    from typing_extensions import TypedDict

    plain = inspect.unwrap(function)
    parameters = inspect.signature(plain).parameters
    if nameless := [name for name, parameter in parameters.items() if parameter.kind in _NAMELESS]:
        raise TypeError(f"the tool {plain.__name__!r} takes {', '.join(nameless)} without a name")
    hints = typing.get_type_hints(plain, include_extras=True)
    kinds = {name: hints.get(name, Any) for name in parameters}
    optional = {name for name, parameter in parameters.items() if parameter.default is not parameter.empty}
    fields = {name: typing.NotRequired[kind] if name in optional else kind for name, kind in kinds.items()}
    return with_config(ConfigDict(extra="forbid"))(TypedDict("Arguments", fields))  # type: ignore[misc]
