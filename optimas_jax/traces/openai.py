"""Recorded calls as OpenAI's messages: requests with their answers, fine-tuning files, whole runs.

{"messages": [...], "choices": [{"message": ...}], "model": ..., "score": ...}     a call
{"request": {"messages": ...}, "response": {"choices": ...}}                       as a proxy logs it
{"messages": [..., {"role": "assistant", "content": ...}]}                         a line of a fine-tuning file
{"instructions": ..., "input": ..., "output": [...]}                               a response
{"run": ..., "score": ..., "calls": [...]}                                         a run
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from optimas_jax.core.text.json_text import shown
from optimas_jax.llm.forms.schemas import native_reply
from optimas_jax.traces.records import (
    ASSISTANT,
    SYSTEM,
    USER,
    Recorded,
    TraceError,
    Turn,
    first_text,
    read_message,
    read_role,
    read_score,
    read_text,
    text_and_calls,
)

_KEYS = ("messages", "request", "body", "input", "calls", "prompt")
_RUN = ("run", "run_id", "trace", "trace_id", "session_id")


def is_openai(item: Mapping[str, Any]) -> bool:
    """Whether an object has one of the forms."""
    return any(key in item for key in _KEYS)


def read_openai(item: Mapping[str, Any], where: str) -> list[Recorded]:
    """The calls of an object, one for each choice.

    Raises:
      TraceError: the object has no known form; names the field.
    """
    if isinstance(item.get("calls"), list):
        return list(_run(item, where))
    request = _object(item, "request", where) or _object(item, "body", where) or item
    request = _object(request, "body", where) or request
    response = _object(item, "response", where) or _object(item, "completion", where) or item
    response = _object(response, "body", where) or response
    turns = _turns(request, where)
    answers = list(_answers(response, where))
    if not answers and turns and turns[-1][0] == ASSISTANT:  # a fine-tuning file ends with its answer
        answers = [turns[-1][1]]
        turns = turns[:-1]
    metadata = item.get("metadata") if isinstance(item.get("metadata"), Mapping) else request.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    names = [first_text(data, "component", "agent", "agent_name", "name") for data in (item, metadata)]
    names += [first_text(data, "model") for data in (request, response)]
    run = first_text(item, *_RUN) or first_text(metadata, *_RUN)
    score, feedback = read_score({**item, "metadata": metadata}, where)
    return [
        Recorded(where, tuple(dict.fromkeys(filter(None, names))), run, turns, answer, score=score, feedback=feedback)
        for answer in answers or [""]
    ]


def _run(item: Mapping[str, Any], where: str) -> Iterator[Recorded]:
    """The calls of a run; a call without a score gets the score of the run."""
    from optimas_jax.traces.own import is_own, read_own

    score, feedback = read_score(item, where)
    run = first_text(item, *_RUN, "id") or where
    row = item["inputs"] if isinstance(item.get("inputs"), Mapping) else None
    for number, call in enumerate(item["calls"], start=1):
        call_where = f"{where}, call {number}"
        if not isinstance(call, Mapping):
            raise TraceError(f"{call_where} is {shown(call)}, expected an object")
        whole = {"score": score, "feedback": feedback, **call, "run": run, "calls": None}
        for recorded in read_own(whole, call_where) if is_own(call) else read_openai(whole, call_where):
            yield recorded if row is None else Recorded(**{**vars(recorded), "row": row})


def _object(item: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any] | None:
    value = item.get(name)
    if value is None or isinstance(value, Mapping):
        return value
    if name in ("response", "completion") and isinstance(value, str):
        return {"output_text": value}
    raise TraceError(f"{where}: {name} is {shown(value)}, expected an object")


def _turns(request: Mapping[str, Any], where: str) -> tuple[Turn, ...]:
    """Messages of a request, in one form."""
    turns: list[Turn] = []
    if (instructions := request.get("instructions")) is not None:
        turns.append((SYSTEM, read_text(instructions, where)))
    messages = next((request[name] for name in ("messages", "input", "prompt") if request.get(name) is not None), None)
    if isinstance(messages, str):
        return (*turns, (USER, read_text(messages, where)))
    if not isinstance(messages, list):
        raise TraceError(f"{where}: messages are {shown(messages)}, expected a list of messages")
    return (*turns, *(_turn(message, where) for message in messages))


def _turn(message: Any, where: str) -> Turn:
    if not isinstance(message, Mapping):
        raise TraceError(f"{where}: a message is {shown(message)}, expected an object with role and content")
    kind = message.get("type")
    if "role" not in message and kind in ("function_call", "function_call_output", "reasoning"):
        role = "tool" if kind == "function_call_output" else "assistant"
        return read_role(role, where), read_message(message, where)
    return read_role(message.get("role"), where), read_message(message, where)


def _answers(response: Mapping[str, Any], where: str) -> Iterator[str]:
    """Answers of a response, one for each choice."""
    match response:
        case {"choices": list(choices)}:
            for choice in choices:
                message = choice.get("message", choice) if isinstance(choice, Mapping) else None
                if isinstance(message, str):
                    yield read_text(message, where)
                elif isinstance(message, Mapping):
                    yield read_text(message["text"], where) if "text" in message else read_message(message, where)
                else:
                    raise TraceError(f"{where}: a choice is {shown(choice)}, expected an object with a message")
        case {"output_text": str(text)} | {"output": str(text)} | {"answer": str(text)}:
            yield read_text(text, where)
        case {"output": list(items)}:
            messages = [item for item in items if isinstance(item, Mapping) and item.get("type") != "reasoning"]
            read = [text_and_calls(message, where) for message in messages]
            calls = [call for _, of_message in read for call in of_message]
            yield native_reply("\n".join(filter(None, (text for text, _ in read))), calls)
        case {"output": {**message}} | {"message": {**message}} if message:
            yield read_message(message, where)
