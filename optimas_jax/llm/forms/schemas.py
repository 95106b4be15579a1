"""JSON Schemas of answers: converts pydantic's to the form that servers, the engine and prompts use."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optimas_jax.core.types import thaw
from optimas_jax.llm.base import CompletionRequest, Message

# Keywords that no model needs, and that servers refuse.
_DROPPED = ("title", "default", "examples", "discriminator", "uniqueItems")
_FIRST = ("type", "description", "properties", "required")  # in the text of a schema; the others follow by name
_NAMED = ("properties", "$defs", "patternProperties")  # keywords whose keys are names, not keywords


def clean_schema(schema: Mapping[str, Any], *, all_required: bool = True) -> dict[str, Any]:
    """A schema of pydantic in the form that servers and the engine accept: its root is no reference, and keywords for
    people or for validation alone are removed.

    Args:
      all_required: whether every object names all its fields as required, and allows no others.
    """
    cleaned = _cleaned(schema, all_required)
    reference = cleaned.pop("$ref", None)
    if reference is not None:
        cleaned = {**cleaned["$defs"][reference.rpartition("/")[2]], **cleaned}
    refers = any("$ref" in subschema for subschema in subschemas(cleaned))
    return cleaned if refers else {key: value for key, value in cleaned.items() if key != "$defs"}


def _cleaned(schema: Any, all_required: bool) -> Any:
    if isinstance(schema, list):
        return [_cleaned(part, all_required) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    cleaned: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _NAMED:
            cleaned[key] = {name: _cleaned(part, all_required) for name, part in value.items()}
        elif key not in _DROPPED:
            data = key in ("enum", "const")
            cleaned["anyOf" if key == "oneOf" else key] = value if data else _cleaned(value, all_required)
    if all_required and cleaned.get("properties"):
        cleaned |= object_schema(cleaned["properties"])
    return {key: cleaned[key] for key in sorted(cleaned, key=_place)}


def _place(keyword: str) -> tuple[int, str]:
    """Sort key of a keyword: schemas are part of prompts, whose text must not change with the version of pydantic."""
    return _FIRST.index(keyword) if keyword in _FIRST else len(_FIRST), keyword


def object_schema(properties: Mapping[str, Any]) -> dict[str, Any]:
    """An object with these fields, all required, and no others."""
    required = {"required": list(properties), "additionalProperties": False}
    return {"type": "object", "properties": dict(properties), **required}


def subschemas(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A schema and all schemas in it."""
    yield schema
    for key, value in schema.items():
        if key in ("enum", "const"):
            continue
        parts = value.values() if key in _NAMED else value if isinstance(value, list | tuple) else [value]
        for part in parts:
            if isinstance(part, Mapping):
                yield from subschemas(part)


def is_closed(schema: Mapping[str, Any]) -> bool:
    """Whether every object in a schema names all its fields."""
    object_schemas = [subschema for subschema in subschemas(schema) if subschema.get("type") == "object"]
    return all(
        subschema.get("properties") and subschema.get("additionalProperties") is False for subschema in object_schemas
    )


def format_line(schema: Mapping[str, Any]) -> str:
    """The line of a prompt that gives the schema of its answers."""
    return f"Answer with JSON of this schema: {json.dumps(thaw(schema), ensure_ascii=False)}"


def with_line(text: str, schema: Mapping[str, Any]) -> str:
    """An instruction with a line on the form of answers below it."""
    return f"{text}\n\n{format_line(schema)}"


def told(request: CompletionRequest, *, results: bool = False) -> CompletionRequest:
    """A request whose messages describe the form of a reply, and hold calls of tools and their results as texts, for
    models whose API has no fields for tools.

    Args:
      results: whether results of tools stay turns of their own.
    """
    turns = plain_turns(request.messages, results=results)
    if request.tools and request.schema is not None:
        first, *rest = turns
        turns = (dataclasses.replace(first, content=with_line(first.content, request.schema)), *rest)
    if turns == request.messages and not request.tools:
        return request
    return dataclasses.replace(request, messages=turns, tools=(), choice="auto")


def plain_turns(messages: Sequence[Message], *, results: bool = False) -> tuple[Message, ...]:
    """A conversation whose calls of tools and their results are texts: each reply as JSON, then one turn of the user
    with all its results; with ``results``, one turn of a tool for each result."""
    turns: list[Message] = []
    names = {call.id: call.name for message in messages for call in message.calls}
    for index, message in enumerate(messages):
        if message.calls:
            text = native_reply(message.content, [(call.name, call.arguments) for call in message.calls])
            turns.append(Message("assistant", text, message.images))
        elif message.role == "tool" and not results:
            result = f"Result of {names.get(message.call_id) or 'the tool'}: {message.content}"
            if index and messages[index - 1].role == "tool":
                turns[-1] = dataclasses.replace(turns[-1], content=f"{turns[-1].content}\n\n{result}")
            else:
                turns.append(Message("user", result))
        else:
            turns.append(message)
    return tuple(turns)


def native_reply(text: str, calls: Sequence[tuple[str, Any]]) -> str:
    """A reply in the fields of an API, as JSON; without calls the text alone."""
    return whole_reply(text, calls) if calls else text


def whole_reply(text: str, calls: Sequence[tuple[str, Any]]) -> str:
    """A text and calls as JSON."""
    data = [{"name": name, "arguments": thaw(arguments)} for name, arguments in calls]
    return json.dumps({"text": text, "calls": data}, ensure_ascii=False)
