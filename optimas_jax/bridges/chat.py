"""OpenAI's chat completions API: reads requests, and writes answers and their events."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from optimas_jax.bridges.asked import (
    Asked,
    Conversation,
    choice_of,
    inputs_of,
    is_true,
    object_of,
    refuse_others,
    schema_of,
    settings_of,
    text_of,
    tools_of,
    wrong,
)
from optimas_jax.core.types import thaw

_LIMITS = ("max_completion_tokens", "max_tokens")
_KNOWN = {
    *("model", "messages", "tools", "tool_choice", "parallel_tool_calls", "response_format", "stream"),
    *(*_LIMITS, "temperature", "top_p", "seed", "stop"),
}
NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}  # the run's ledger counts tokens


def read_chat(body: Mapping[str, Any]) -> Asked:
    """Reads a request; raises ``RequestError`` naming the field that is missing, wrong or not supported."""
    refuse_others(body, _KNOWN)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", "a list of at least one message", messages)
    conversation = Conversation()
    for index, message in enumerate(messages):
        _read(conversation, object_of(message, f"messages[{index}]"), f"messages[{index}]")
    tools = tools_of(body.get("tools"), "function")
    options = body.get("stream_options") or {}
    return Asked(
        model=text_of(body.get("model"), "model"),
        inputs=inputs_of(
            conversation.turns,
            tools,
            choice_of(body.get("tool_choice"), tools),
            schema_of(body.get("response_format"), "response_format"),
            settings_of(body, _LIMITS),
        ),
        stream=is_true(body, "stream"),
        usage=is_true(object_of(options, "stream_options"), "include_usage"),
        body=body,
    )


def _read(conversation: Conversation, message: Mapping[str, Any], path: str) -> None:
    if message.get("role") == "tool":
        conversation.result(message.get("tool_call_id"), message.get("content"), path)
        return
    conversation.say(message.get("role"), message.get("content"), path, message.get("name"))
    if message.get("function_call"):
        raise wrong(f"{path}.function_call", "left out, with the call in tool_calls", message["function_call"])
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list) or (calls and message.get("role") != "assistant"):
        raise wrong(f"{path}.tool_calls", "a list of calls in a message of the assistant", calls)
    for number, call in enumerate(calls):
        where = f"{path}.tool_calls[{number}]"
        function = object_of(object_of(call, where).get("function"), f"{where}.function")
        conversation.ask(call.get("id"), function.get("name"), function.get("arguments"), where)


def calls_of(outputs: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(id, name, arguments as JSON) of the calls in an answer."""
    arguments = [
        call["arguments"]
        if isinstance(call["arguments"], str)
        else json.dumps(thaw(call["arguments"]), ensure_ascii=False)
        for call in outputs["calls"]
    ]
    names = [call["name"] for call in outputs["calls"]]
    return list(zip(outputs["ids"], names, arguments, strict=True))


def pieces(text: str) -> list[str]:
    """A text in parts, for a stream."""
    return re.findall(r"(?s).{1,32}", text)


def event(data: Any, kind: str = "") -> str:
    """A server-sent event."""
    name = f"event: {kind}\n" if kind else ""
    return f"{name}data: {data if isinstance(data, str) else json.dumps(data)}\n\n"


def chat_answer(asked: Asked, key: str, outputs: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a request.

    Args:
      key: part of the answer's id.
      outputs: of the component's call.
    """
    calls = [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for call_id, name, arguments in calls_of(outputs)
    ]
    message = {
        "role": "assistant",
        "content": outputs["text"] or (None if calls else ""),
        "refusal": None,
        **({"tool_calls": calls} if calls else {}),
    }
    choice = {"index": 0, "message": message, "finish_reason": outputs["finish"], "logprobs": None}
    return {**_frame(asked, key, "chat.completion"), "choices": [choice], "usage": NO_USAGE}


def chat_events(asked: Asked, key: str, outputs: Mapping[str, Any]) -> Iterator[str]:
    """The events of the same answer, sent in parts."""
    frame = _frame(asked, key, "chat.completion.chunk")

    def chunk(delta: Mapping[str, Any], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return event({**frame, "choices": [choice]})

    yield chunk({"role": "assistant", "content": ""})
    for text in pieces(outputs["text"]):
        yield chunk({"content": text})
    for index, (call_id, name, arguments) in enumerate(calls_of(outputs)):
        begun = {"index": index, "id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
        yield chunk({"tool_calls": [begun]})
        for part in pieces(arguments):
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
    yield chunk({}, outputs["finish"])
    if asked.usage:
        yield event({**frame, "choices": [], "usage": NO_USAGE})
    yield event("[DONE]")


def _frame(asked: Asked, key: str, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{key}", "object": kind, "created": int(time.time()), "model": asked.model}
