"""OpenAI's Responses API: reads requests, and writes answers and their events. Nothing is kept between requests."""

from __future__ import annotations

import itertools
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
from optimas_jax.bridges.chat import calls_of, event, pieces

_LIMITS = ("max_output_tokens",)
_KNOWN = {
    *("model", "input", "instructions", "tools", "tool_choice", "parallel_tool_calls", "text", "stream"),
    *(*_LIMITS, "temperature", "top_p"),
}
_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}


def read_responses(body: Mapping[str, Any]) -> Asked:
    """Reads a request; raises ``RequestError`` naming the field that is missing, wrong or not supported."""
    refuse_others(body, _KNOWN)
    conversation = Conversation()
    if body.get("instructions") is not None:
        conversation.say("system", text_of(body["instructions"], "instructions"), "instructions")
    items = body.get("input")
    if isinstance(items, str) and items:
        items = [{"role": "user", "content": items}]
    if not isinstance(items, list) or not items:
        raise wrong("input", "a text or a list of items", items)
    for index, item in enumerate(items):
        _read(conversation, object_of(item, f"input[{index}]"), f"input[{index}]")
    tools = tools_of(body.get("tools"), "")
    text = object_of(body.get("text") or {}, "text")
    return Asked(
        model=text_of(body.get("model"), "model"),
        inputs=inputs_of(
            conversation.turns,
            tools,
            choice_of(body.get("tool_choice"), tools),
            schema_of(text.get("format"), "text.format"),
            settings_of(body, _LIMITS),
        ),
        stream=is_true(body, "stream"),
        usage=True,
        body=body,
    )


def _read(conversation: Conversation, item: Mapping[str, Any], path: str) -> None:
    match item.get("type", "message"):
        case "message":
            conversation.say(item.get("role"), item.get("content"), path)
        case "function_call":
            if not conversation.turns or conversation.turns[-1]["role"] != "assistant":
                conversation.say("assistant", None, path)
            conversation.ask(item.get("call_id"), item.get("name"), item.get("arguments"), path)
        case "function_call_output":
            conversation.result(item.get("call_id"), item.get("output"), path)
        case "reasoning":  # of an earlier answer: later answers do not depend on it
            pass
        case other:
            raise wrong(f"{path}.type", "message, function_call, function_call_output or reasoning", other)


def responses_answer(asked: Asked, key: str, outputs: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a request.

    Args:
      key: part of the answer's id.
      outputs: of the component's call.
    """
    cut = outputs["finish"] == "length"
    status = "incomplete" if cut else "completed"
    items = [_message(key, outputs["text"], status)] if outputs["text"] or not outputs["calls"] else []
    items += [_call(call, "completed", call[2]) for call in calls_of(outputs)]
    details = {"reason": "max_output_tokens"} if cut else None
    return {**_frame(asked, key), "status": status, "incomplete_details": details, "output": items, "usage": _USAGE}


def responses_events(asked: Asked, key: str, outputs: Mapping[str, Any]) -> Iterator[str]:
    """The events of the same answer, sent in parts."""
    numbers = itertools.count()
    begun = {**_frame(asked, key), "status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
    answer = responses_answer(asked, key, outputs)

    def tell(kind: str, **fields: Any) -> str:
        return event({"type": kind, "sequence_number": next(numbers), **fields}, kind)

    yield tell("response.created", response=begun)
    yield tell("response.in_progress", response=begun)
    for index, item in enumerate(answer["output"]):
        item_position = {"item_id": item["id"], "output_index": index}
        if item["type"] == "message":
            [part] = item["content"]
            text_position = {**item_position, "content_index": 0}
            yield tell(
                "response.output_item.added", output_index=index, item={**item, "status": "in_progress", "content": []}
            )
            yield tell("response.content_part.added", **text_position, part={**part, "text": ""})
            for text in pieces(part["text"]):
                yield tell("response.output_text.delta", **text_position, delta=text, logprobs=[])
            yield tell("response.output_text.done", **text_position, text=part["text"], logprobs=[])
            yield tell("response.content_part.done", **text_position, part=part)
        else:
            added = {**item, "status": "in_progress", "arguments": ""}
            yield tell("response.output_item.added", output_index=index, item=added)
            for text in pieces(item["arguments"]):
                yield tell("response.function_call_arguments.delta", **item_position, delta=text)
            final_arguments = {"name": item["name"], "arguments": item["arguments"]}
            yield tell("response.function_call_arguments.done", **item_position, **final_arguments)
        yield tell("response.output_item.done", output_index=index, item=item)
    yield tell(f"response.{answer['status']}", response=answer)


def _frame(asked: Asked, key: str) -> dict[str, Any]:
    """The fields of an answer that repeat its request."""
    body = asked.body
    return {
        "id": f"resp_{key}",
        "object": "response",
        "created_at": int(time.time()),
        "model": asked.model,
        "error": None,
        "instructions": body.get("instructions"),
        "metadata": body.get("metadata") or {},
        "parallel_tool_calls": body.get("parallel_tool_calls", True) is not False,
        "temperature": body.get("temperature"),
        "top_p": body.get("top_p"),
        "max_output_tokens": body.get("max_output_tokens"),
        "previous_response_id": None,
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "text": body.get("text") or {"format": {"type": "text"}},
        "truncation": "disabled",
    }


def _message(key: str, text: str, status: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"id": f"msg_{key}", "type": "message", "role": "assistant", "status": status, "content": [part]}


def _call(call: tuple[str, str, str], status: str, arguments: str) -> dict[str, Any]:
    call_id, name, _ = call
    item = {"id": call_id.replace("call_", "fc_"), "type": "function_call", "call_id": call_id}
    return {**item, "name": name, "arguments": arguments, "status": status}
