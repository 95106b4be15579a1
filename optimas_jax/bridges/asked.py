"""Requests of frameworks: reads and checks the fields that both of OpenAI's APIs (chat completions, responses) have."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from optimas_jax.core.text.json_text import parse_json
from optimas_jax.llm.forms.images import Image
from optimas_jax.programs.plain import PlainError, to_plain
from optimas_jax.server.protocol import RequestError

Turn = dict[str, Any]  # a message as it is recorded (``llm.agent``)
_TEXTS = ("text", "input_text", "output_text", "refusal")  # types of the parts of a content that are text
_IMAGE = "[image]"  # replaces an image in the text of a message
# Fields without effect here: they do not change the answer, or the run decides them.
_NO_MATTER = {
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("stream_options", "include", "truncation", "max_tool_calls", "include_obfuscation"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty", "top_k", "min_p"),
    *("reasoning", "reasoning_effort", "verbosity"),
}
# Fields that would change the answer, with the values that mean "not used".
_UNUSED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "modalities": (["text"],),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "background": (False,),
}
_WHY = {
    "previous_response_id": "nothing is kept between requests: send the whole conversation as input",
    "conversation": "nothing is kept between requests: send the whole conversation as input",
    "n": "a request has one answer: ask several times, each with a seed of its own",
    "functions": "send tools",
    "function_call": "send tool_choice",
}


@dataclasses.dataclass(frozen=True)
class Asked:
    """A parsed request of a framework.

    Attributes:
      model: the model's name.
      inputs: of the component's call, as they are recorded (``llm.agent``).
      stream: whether the answer is sent in parts.
      usage: whether the last part has the numbers of tokens.
      body: the body of the request, unchanged.
    """

    model: str
    inputs: Mapping[str, Any]
    stream: bool
    usage: bool
    body: Mapping[str, Any]


def wrong(path: str, expected: str, value: Any) -> RequestError:
    """The error for a wrong field: what it must be, and what it is."""
    shown = repr(value)
    got = "nothing" if value is None else shown if len(shown) <= 120 else f"{shown[:117]}..."
    return RequestError(400, f"{path} must be {expected}, got {got}", path)


def text_of(value: Any, path: str, expected: str = "a text") -> str:
    """The value, if it is a text that is not empty; else raises ``RequestError``."""
    if not isinstance(value, str) or not value:
        raise wrong(path, expected, value)
    return value


def object_of(value: Any, path: str) -> Mapping[str, Any]:
    """The value, if it is an object; else raises ``RequestError``."""
    if not isinstance(value, Mapping):
        raise wrong(path, "an object", value)
    return value


def refuse_others(body: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises ``RequestError`` for a field that would change the answer and is not supported."""
    for name, value in body.items():
        if name in known or name in _NO_MATTER or value is None:
            continue
        unused = _UNUSED.get(name, ())
        if not any(value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in unused):
            why = f": {_WHY[name]}" if name in _WHY else ""
            raise RequestError(400, f"{name[:100]} = {value!r:.100} is not supported by this server{why}", name)


def settings_of(body: Mapping[str, Any], limits: Sequence[str]) -> dict[str, Any]:
    """The settings of a request that are recorded.

    Args:
      limits: names of the field with the limit of tokens; the first one in the body counts.
    """
    settings: dict[str, Any] = {}
    for name in limits:
        value = body.get(name)
        if value is None:
            continue
        if not _is_number(value, int) or value < 1:
            raise wrong(name, "a number of at least 1", value)
        settings.setdefault("max_tokens", value)
    for name, kind in (("temperature", float), ("top_p", float), ("seed", int)):
        value = body.get(name)
        if value is not None:
            if not _is_number(value, kind):
                raise wrong(name, "a number" if kind is float else "a whole number", value)
            settings[name] = value
    stop = body.get("stop")
    if stop is not None:
        stops = [stop] if isinstance(stop, str) else stop
        if not isinstance(stops, list) or not all(isinstance(text, str) and text for text in stops):
            raise wrong("stop", "a text or a list of texts", stop)
        settings |= {"stop": stops} if stops else {}
    if body.get("parallel_tool_calls") is False:
        settings["parallel_tool_calls"] = False
    return settings


def _is_number(value: Any, kind: type) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | kind):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def is_true(body: Mapping[str, Any], name: str) -> bool:
    """Whether a flag is set; raises ``RequestError`` for a value that is neither true nor false."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise wrong(name, "true or false", value)
    return bool(value)


def content_of(content: Any, path: str) -> Turn:
    """``content`` and ``images`` of a message whose content is a text, a list of parts, or None."""
    if content is None or isinstance(content, str):
        return {"content": content or ""}
    if not isinstance(content, list):
        raise wrong(path, "a text or a list of parts", content)
    texts: list[str] = []
    images: list[Mapping[str, Any]] = []
    for index, part in enumerate(content):
        where = f"{path}[{index}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in _TEXTS:
            text = part.get("text", part.get("refusal"))
            if not isinstance(text, str):
                raise wrong(f"{where}.text", "a text", text)
            texts.append(text)
        elif kind in ("image_url", "input_image"):
            images.append(_image(part, where))
            texts.append(_IMAGE)
        else:
            raise wrong(where, "a part that is a text or an image", part)
    return {"content": "".join(texts), **({"images": images} if images else {})}


def _image(part: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    url = part.get("image_url")
    url = url.get("url") if isinstance(url, Mapping) else url
    if not isinstance(url, str) or not url.startswith(("http://", "https://", "data:image/")):
        raise wrong(f"{where}.image_url", "an address (https:) or a data: URL of an image", url)
    image = Image(url)
    return {"image_url": image.image_url, "sha256": image.sha256}


class Conversation:
    """The turns of a conversation, in order. Calls of tools get ids by their order, because the ids of frameworks
    differ from run to run."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self._ids: dict[str, str] = {}

    def say(self, role: Any, content: Any, path: str, name: Any = None) -> None:
        """Adds a turn of the system, the user or the assistant; ``name``: of the speaker."""
        role = "system" if role == "developer" else role
        if role not in ("system", "user", "assistant"):
            raise wrong(f"{path}.role", "system, developer, user, assistant or tool", role)
        if content is None and role != "assistant":
            raise wrong(f"{path}.content", "a text or a list of parts", content)
        speaker = {} if name is None else {"name": text_of(name, f"{path}.name")}
        self.turns.append({"role": role, **content_of(content, f"{path}.content"), **speaker})

    def ask(self, call_id: Any, name: Any, arguments: Any, path: str) -> None:
        """Adds a call of a tool to the last turn, in which the assistant asked for it."""
        call_id = text_of(call_id, f"{path}.id", "a text, the name of the call")
        if not isinstance(arguments, str | None):
            raise wrong(f"{path}.arguments", "a text with JSON", arguments)
        call = {
            "id": self._ids.setdefault(call_id, f"call_{len(self._ids) + 1}"),
            "name": text_of(name, f"{path}.name"),
            "arguments": _arguments(arguments),
        }
        self.turns[-1].setdefault("calls", []).append(call)

    def result(self, call_id: Any, output: Any, path: str) -> None:
        """Adds the result of a call, as a turn of the tool."""
        call_id = text_of(call_id, f"{path}.call_id", "a text, the name of the call whose result this is")
        if call_id not in self._ids:
            raise wrong(f"{path}.call_id", "the name of a call in an earlier turn of the assistant", call_id)
        self.turns.append({"role": "tool", **content_of(output, path), "call_id": self._ids[call_id]})


def _arguments(text: str | None) -> Any:
    """Arguments as an object; the text itself if it is no JSON object."""
    try:
        value = parse_json(text or "{}")
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


def tools_of(tools: Any, inner: str) -> list[dict[str, Any]]:
    """Tools as they are recorded.

    Args:
      inner: the field of a tool that holds its name and its schema; "" for the tool itself.
    """
    if tools is None:
        return []
    if not isinstance(tools, list):
        raise wrong("tools", "a list", tools)
    recorded: list[dict[str, Any]] = []
    for index, tool in enumerate(tools):
        path = f"tools[{index}]"
        kind = object_of(tool, path).get("type")
        if kind != "function":
            raise RequestError(
                400,
                f"{path} is of type {kind!r:.100}: a tool here is a function, which the agent runs itself; those that "
                "OpenAI runs are not had here",
                path,
            )
        function = object_of(tool.get(inner), f"{path}.{inner}") if inner else tool
        description = function.get("description") or ""
        if not isinstance(description, str):
            raise wrong(f"{path}.description", "a text", description)
        parameters = function.get("parameters")
        parameters = {} if parameters is None else object_of(parameters, f"{path}.parameters")
        recorded.append(
            {
                "name": text_of(function.get("name"), f"{path}.name"),
                "description": description,
                "parameters": {"type": "object", "properties": {}, **parameters},
            }
        )
    names = [tool["name"] for tool in recorded]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RequestError(400, f"two tools have the name {twice[0]!r}", "tools")
    return recorded


def choice_of(choice: Any, tools: Sequence[Mapping[str, Any]]) -> Any:
    """``tool_choice`` as it is recorded; "auto" by default."""
    names = [tool["name"] for tool in tools]
    if choice in (None, "auto", "none") or (choice == "required" and tools):
        return choice or "auto"
    named = choice.get("function", choice) if isinstance(choice, Mapping) and choice.get("type") == "function" else {}
    if isinstance(named, Mapping) and named.get("name") in names:
        return {"name": named["name"]}
    listed = f", or one of the tools {', '.join(names)}" if names else "; there are no tools"
    raise wrong("tool_choice", f"auto, none, required{listed}", choice)


def schema_of(wanted: Any, path: str) -> Mapping[str, Any] | None:
    """The JSON Schema that an answer must have; None for any text. Each API has it in a field of its own."""
    if wanted is None:
        return None
    kind = object_of(wanted, path).get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    named = wanted.get("json_schema", wanted) if kind == "json_schema" else None
    schema = named.get("schema") if isinstance(named, Mapping) else None
    if not isinstance(schema, Mapping):
        raise wrong(path, "of type text, json_object, or json_schema with its schema", wanted)
    return schema


def inputs_of(
    turns: Sequence[Turn],
    tools: Sequence[Mapping[str, Any]],
    choice: Any,
    schema: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
) -> Mapping[str, Any]:
    """The inputs of the call; raises ``RequestError`` for what cannot be recorded."""
    if not turns:
        raise RequestError(400, "there is no message to answer", "messages")
    inputs = {
        "messages": turns,
        **({"tools": tools} if tools else {}),
        **({"tool_choice": choice} if tools and choice != "auto" else {}),
        **({} if schema is None else {"response_format": schema}),
        **({"settings": settings} if settings else {}),
    }
    try:
        return to_plain(inputs, "the request")
    except PlainError as error:
        raise RequestError(400, str(error)) from None
