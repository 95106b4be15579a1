"""A recorded call, and functions that the readers of all forms share."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from optimas_jax.core.text.json_text import JsonError, parse_json, shown
from optimas_jax.core.types import freeze, valid_text
from optimas_jax.llm.forms.schemas import native_reply

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"
_CALLS = ("tool_call", "tool_use")  # types of the parts of a message that are calls
_ROLES = {
    "system": SYSTEM,
    "developer": SYSTEM,
    "user": USER,
    "human": USER,
    "assistant": ASSISTANT,
    "model": ASSISTANT,
    "ai": ASSISTANT,
    "tool": TOOL,
    "function": TOOL,
}


class TraceError(ValueError):
    """Recorded calls that cannot be read; the message names the file, the line and the way out."""


Turn = tuple[str, str]  # (role, text)


@dataclasses.dataclass(frozen=True)
class Recorded:
    """One recorded call.

    Attributes:
      where: file and line that it comes from.
      names: possible names of its component, the likeliest first.
      run: id of its run, or "".
      turns: messages before the answer; empty if ``inputs`` are known.
      answer: answer of the model; "" if ``outputs`` are known.
      inputs, outputs: fields of the component, if the file has them; else None.
      row: inputs of the whole run, if the file has them; else None.
      score: of the call or of its run, or None.
      feedback: reason for the score, or "".
      as_declared: whether the declared values of the program were in use; None if the file does not tell.
    """

    where: str
    names: tuple[str, ...] = ()
    run: str = ""
    turns: tuple[Turn, ...] = ()
    answer: str = ""
    inputs: Mapping[str, Any] | None = None
    outputs: Mapping[str, Any] | None = None
    row: Mapping[str, Any] | None = None
    score: float | None = None
    feedback: str = ""
    as_declared: bool | None = None

    @property
    def instruction(self) -> str:
        """The system messages before the answer; "" without any."""
        return "\n\n".join(text for role, text in self.turns if role == SYSTEM)

    @property
    def asked(self) -> str:
        """The last message of the user, if the answer directly follows it; "" between calls of tools."""
        role, text = self.turns[-1] if self.turns else ("", "")
        return text if role == USER else ""

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts that the call read."""
        if self.inputs is not None:
            return tuple(leaves(self.inputs))
        return tuple(text for _, text in self.turns)


def leaves(value: Any) -> list[str]:
    """Texts and numbers in plain data, as texts; empty ones are left out."""
    if isinstance(value, Mapping):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in leaves(item)]
    return [] if value is None or isinstance(value, bool) or not str(value).strip() else [str(value).strip()]


def read_role(value: Any, where: str) -> str:
    """One of the four roles; raises ``TraceError`` for any other name."""
    role = _ROLES.get(value.lower()) if isinstance(value, str) else None
    if role is None:
        raise TraceError(f"{where}: a message has the role {shown(value)}; known: {', '.join(_ROLES)}")
    return role


def read_text(content: Any, where: str) -> str:
    """The text of a message, from a text or a list of parts, in which images become ``[image]``; "" for no content."""
    match content:
        case None:
            return ""
        case str():
            return valid_text(content)
        case list():
            return "\n".join(filter(None, (_part(part, where) for part in content)))
        case {"parts": list(parts)}:
            return read_text(parts, where)
        case _:
            raise TraceError(
                f"{where}: the content of a message is {shown(content)}, expected a text or a list of parts"
            )


def read_message(message: Mapping[str, Any], where: str) -> str:
    """The text of a message; with calls of tools the reply that ``llm.forms.tools`` reads."""
    return native_reply(*text_and_calls(message, where))


def text_and_calls(message: Mapping[str, Any], where: str) -> tuple[str, list[tuple[str, Any]]]:
    """The text and the calls of tools (name, arguments) of a message: in fields of its own, as parts of its content, or
    an item that is a call itself."""
    content = message.get("parts", message.get("content", message.get("output")))
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise TraceError(f"{where}: tool_calls is {shown(calls)}, expected a list")
    if message.get("type") == "function_call":
        calls = [message]
    elif not calls and message.get("function_call"):  # an older form
        calls = [message["function_call"]]
    parts = content if isinstance(content, list) and not calls else []  # some libraries write calls in both places
    calls = [*calls, *(part for part in parts if isinstance(part, Mapping) and part.get("type") in _CALLS)]
    return read_text(content, where), [_tool_call(call, where) for call in calls]


def _tool_call(call: Any, where: str) -> tuple[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise TraceError(f"{where}: a call of a tool is {shown(call)}, expected an object")
    arguments = function.get("arguments", function.get("input"))
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments, mend=True)
        except JsonError:  # models write such arguments, too
            arguments = {}
    return first_text(function, "name"), arguments or {}


def _part(part: Any, where: str) -> str:
    match part:
        case str():
            return valid_text(part)
        case {"text": str(text)} | {"type": "text", "content": str(text)} | {"refusal": str(text)}:
            return valid_text(text)
        case {"type": "reasoning" | "thinking"}:
            return ""
        case {"type": "tool_call_response", **rest}:
            return _as_text(rest.get("response", rest.get("result")))
        case {"type": str(kind)} if kind in _CALLS:
            return ""  # ``read_message`` has it
        case {"type": "tool_result" | "function_call_output", **rest}:
            return _as_text(rest.get("content", rest.get("output")))
        case {"type": str(kind)} if "image" in kind or kind in ("uri", "blob", "file", "input_file", "input_audio"):
            return "[image]"
        case {"type": str()}:  # a part of a later version, or of a single server
            return ""
        case _:
            raise TraceError(f"{where}: a part of a message is {shown(part)}, expected an object with a type")


def _as_text(value: Any) -> str:
    return valid_text(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def read_score(item: Mapping[str, Any], where: str) -> tuple[float | None, str]:
    """Score and feedback of an object, or of its ``metadata``; (None, "") if it has none.

    Raises:
      TraceError: the score is no finite number.
    """
    metadata = item.get("metadata")
    for data in (item, metadata if isinstance(metadata, Mapping) else {}):
        feedback = data.get("feedback")
        for name in ("score", "reward"):
            if data.get(name) is not None:
                return finite(data[name], f"{where}: {name}"), feedback if isinstance(feedback, str) else ""
    return None, ""


def finite(value: Any, what: str) -> float:
    """A score as a number: numbers, truth values, texts of numbers; raises ``TraceError`` for others."""
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise TraceError(f"{what} is {shown(value)}, expected a finite number, or leave it out")
    return number


def first_text(item: Mapping[str, Any], *names: str) -> str:
    """The first of the named fields that is a text or a whole number, as text; "" if there is none."""
    values = (item.get(name) for name in names)
    texts = (str(value) for value in values if isinstance(value, str | int) and not isinstance(value, bool))
    return next(filter(None, texts), "")


def whole(fields: Any, what: str) -> Mapping[str, Any]:
    """Fields of a component, frozen; raises ``TraceError`` if they are no object."""
    if not isinstance(fields, Mapping):
        raise TraceError(f"{what} is {shown(fields)}, expected an object of fields")
    return freeze(fields)
