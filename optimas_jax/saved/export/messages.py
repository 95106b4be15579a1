"""The messages that components send, with placeholders for their fields, as a file for use without this package."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

from optimas_jax.core.component import Component, RunContext
from optimas_jax.core.system import System
from optimas_jax.core.text.json_text import shown
from optimas_jax.core.values import Configuration, Prompt, plain_values
from optimas_jax.llm.component import ModelCall
from optimas_jax.llm.render import is_image, render_demos, render_value
from optimas_jax.saved.export.prompts import ExportError

_BEGIN, _END = "\ue000", "\ue001"  # around the names of fields, until braces of the texts are doubled


def to_messages(system: System, configuration: Configuration) -> dict[str, Any]:
    """Entries by component: model, sampling, and messages, of which the last has placeholders such as ``{question}``.
    Braces of texts are doubled, as ``str.format`` reads them. A component that writes its messages itself has only its
    prompt.

    Raises:
      ExportError: no component has a prompt, or its fields are not known.
    """
    entries = {}
    for name in system.order:
        component = system.by_name[name]
        model_call = getattr(component.run, "__self__", None)
        value = configuration.get(name, component.default)
        plain = None if value is None else plain_values(value)[0]
        if isinstance(model_call, ModelCall):
            entries[name] = _entry(component, model_call, plain)
        elif isinstance(plain, Prompt):
            text = _doubled(render_demos(plain.instruction, plain.demos))
            entries[name] = {"messages": [{"role": "system", "content": text}], "fields": []}
    if not entries:
        raise ExportError("no component asks a model")
    return entries


def _entry(component: Component, call: ModelCall, value: Any) -> dict[str, Any]:
    fields = call.inputs or component.inputs
    if not fields and call.form.template is None:
        raise ExportError(
            f"nothing is known of the fields that {component.name!r} reads: it was not called in the first runs of its "
            "program"
        )
    placeholders = {name: f"{_BEGIN}{name}{_END}" for name in fields}
    if call.model_from:
        placeholders[call.model_from] = call.language_model.model
    request = call.request(placeholders, value, RunContext(None, 0, component.name))
    if any(message.images for message in request.messages):
        raise ExportError(f"the demonstrations of {component.name!r} have images, which messages here have not")
    messages = [{"role": _role(message.role), "content": _placed(message.content)} for message in request.messages]
    entry: dict[str, Any] = {
        "model": request.model,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "max_tokens": request.max_tokens,
        "fields": list(fields),
        "messages": messages,
    }
    if request.stop:
        entry["stop"] = list(request.stop)
    if request.schema is not None and not request.tools:
        schema = {"name": component.name, "schema": request.schema, "strict": True}
        entry["response_format"] = {"type": "json_schema", "json_schema": schema}
    if request.tools:
        entry["tools"] = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
            }
            for tool in request.tools
        ]
    return entry


def _role(role: str) -> str:
    return "user" if role == "text" else role


def _doubled(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _placed(text: str) -> str:
    return _doubled(text).replace(_BEGIN, "{").replace(_END, "}")


def fill(entry: Mapping[str, Any], fields: Mapping[str, Any]) -> list[dict[str, str]]:
    """The messages of a component on one input, as the program itself sends them.

    Args:
      entry: of the component, from ``to_messages``.
      fields: texts, numbers, lists, dicts.

    Raises:
      ExportError: fields are missing, unknown or images, or ``entry`` is not an entry.
    """
    if not isinstance(entry, Mapping) or not isinstance(entry.get("messages"), list):
        raise ExportError(f"expected an entry with fields and messages, got {shown(entry)}")
    known: Sequence[str] = entry.get("fields", [])
    missing, unknown = [name for name in known if name not in fields], [name for name in fields if name not in known]
    if missing or unknown:
        raise ExportError(
            f"the component reads {', '.join(known) or 'no field'}; missing: {', '.join(missing) or 'none'}, unknown: "
            f"{', '.join(unknown) or 'none'}"
        )
    if images := [name for name, value in fields.items() if is_image(value)]:
        raise ExportError(f"{', '.join(images)} is an image, which these messages have no place for")
    texts = {name: render_value(value) for name, value in fields.items()}
    return [{"role": turn["role"], "content": _filled(turn["content"], texts)} for turn in entry["messages"]]


def _filled(content: str, texts: Mapping[str, str]) -> str:
    parts = []
    for literal, name, _, _ in string.Formatter().parse(content):
        parts += [literal, texts[name] if name else ""]
    return "".join(parts)
