"""Replies to a conversation whose tools are JSON Schemas, as frameworks send them: a text, calls of tools, or both."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from optimas_jax.core.text.json_text import JsonError, find_json, parse_json
from optimas_jax.core.types import thaw
from optimas_jax.core.values import Demo, Prompt
from optimas_jax.llm.base import Tool
from optimas_jax.llm.forms.answers import AnswerError
from optimas_jax.llm.forms.loose import unfenced
from optimas_jax.llm.forms.schemas import clean_schema, native_reply, object_schema
from optimas_jax.llm.forms.tools import MEANT


@dataclasses.dataclass(frozen=True)
class ReplyForm:
    """Reads the replies to a conversation with tools.

    Attributes:
      tools: tools that the model may ask for, at least one.
      choice: ``auto``, ``required`` or the name of one of them (``llm.base.CompletionRequest``).
      text_schema: of the text of a reply without calls; None for any text.
    """

    tools: tuple[Tool, ...]
    choice: str = "auto"
    text_schema: Mapping[str, Any] | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        return ("text", "calls")

    @property
    def schema(self) -> Mapping[str, Any]:
        """JSON Schema of replies: ``{"text": ..., "calls": [{"name": ..., "arguments": {...}}]}``."""
        return self._schema

    @cached_property
    def _schema(self) -> dict[str, Any]:
        definitions: dict[str, Any] = {}
        allowed_tools = [tool for tool in self.tools if self.choice in ("auto", "required", tool.name)]
        kinds = [
            object_schema({"name": {"const": tool.name}, "arguments": _arguments(tool, number, definitions)})
            for number, tool in enumerate(allowed_tools)
        ]
        call = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
        calls = {"type": "array", "items": call}
        asks = object_schema({"text": {"type": "string"}, "calls": {**calls, "minItems": 1}})
        text = {"type": "string", "minLength": 1}
        if self.text_schema is not None:
            text = _inside(clean_schema(self.text_schema, all_required=False), "text", definitions)
        answers = object_schema({"text": text, "calls": {**calls, "maxItems": 0}})
        reply = {"anyOf": [answers, asks]} if self.choice == "auto" else asks
        return {**reply, **({"$defs": definitions} if definitions else {})}

    def shown(self, prompt: Prompt, output: str) -> Prompt:
        demos = (Demo(demo.inputs, {output: _as_text(demo.outputs)}) for demo in prompt.demos)
        return Prompt(prompt.instruction, tuple(demos))

    def read(self, text: str) -> dict[str, Any]:
        """The text and the calls of a reply. Prose that is no JSON is a reply with this text and no calls.

        Raises:
          AnswerError: for an empty reply, a reply or a call of another form, an unknown tool, or a missing call where
            one was asked for.
        """
        prose = text.strip()
        reply = next(_replies(text), None)
        if reply is None:
            if not prose or MEANT.search(prose):
                raise AnswerError("it is no complete JSON object with the fields text and calls")
            reply = {"text": prose, "calls": []}
        reply_text = reply.get("text") or ""
        reply_text = reply_text if isinstance(reply_text, str) else json.dumps(reply_text, ensure_ascii=False)
        calls = [self._call(call) for call in _listed(reply.get("calls"))]
        if not calls and self.choice != "auto":
            raise AnswerError(f"a call of {self._named()} was asked for, and there is none")
        if not calls and not reply_text.strip():
            raise AnswerError("there is neither a text nor a call")
        return {"text": reply_text, "calls": calls}

    def _call(self, call: Any) -> dict[str, Any]:
        if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
            raise AnswerError('a call is {"name": ..., "arguments": {...}}')
        name, arguments = call["name"], call.get("arguments", {})
        if name not in [tool.name for tool in self.tools]:
            raise AnswerError(
                f"there is no tool {name[:100]!r}; tools are {', '.join(tool.name for tool in self.tools)}"
            )
        if not isinstance(arguments, Mapping | str):
            raise AnswerError(f"the arguments of {name} are {type(arguments).__name__}, expected an object")
        return {"name": name, "arguments": thaw(arguments)}

    def _named(self) -> str:
        return "a tool" if self.choice == "required" else self.choice


def _as_text(outputs: Mapping[str, Any]) -> str:
    calls = [(call["name"], call["arguments"]) for call in outputs.get("calls", ())]
    return native_reply(outputs.get("text", ""), calls)


def _replies(text: str) -> Iterator[Mapping[str, Any]]:
    """Objects in a text that are meant as replies: the text itself, then all others, from the last to the first."""
    try:
        candidates = [parse_json(unfenced(text))]
    except JsonError:
        candidates = find_json(text)[::-1]
    for data in candidates:
        if isinstance(data, Mapping) and ("calls" in data or set(data) == {"text"}):
            yield data
        elif isinstance(data, Mapping) and set(data) == {"name", "arguments"}:  # a call alone
            yield {"text": "", "calls": [data]}


def _listed(calls: Any) -> Sequence[Any]:
    if calls is None:
        return []
    if not isinstance(calls, list):
        raise AnswerError(f"calls are {type(calls).__name__}, expected a list")
    return calls


def _arguments(tool: Tool, number: int, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a tool's arguments as a part of another schema."""
    schema = clean_schema(tool.parameters, all_required=False)
    return _inside({"type": "object", "properties": {}, **schema}, f"{number}", definitions)


def _inside(schema: Mapping[str, Any], name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """A schema as a part of another, to whose ``definitions`` its own are added under the prefix ``name``."""

    def renamed(node: Any) -> Any:
        if isinstance(node, Mapping):
            inner = {key: renamed(value) for key, value in node.items()}
            reference = inner.get("$ref")
            if isinstance(reference, str) and reference.startswith("#/$defs/"):
                inner["$ref"] = f"#/$defs/{name}.{reference.removeprefix('#/$defs/')}"
            return inner
        return [renamed(value) for value in node] if isinstance(node, list | tuple) else node

    part_schema = renamed({key: value for key, value in schema.items() if key not in ("$defs", "$schema")})
    definitions |= {f"{name}.{key}": renamed(value) for key, value in schema.get("$defs", {}).items()}
    return part_schema
