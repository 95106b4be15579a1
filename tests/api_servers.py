"""Stand-ins for the APIs of OpenAI and Anthropic on this machine, which check every request against the SDK's wire
format and can fail on demand.

By hand, for runs of ``:paper`` configurations without paying:

    python -m tests.api_servers 8123
    python launch/run.py --config=configs/NAME.py:paper --config.server.base_url=http://127.0.0.1:8123/v1
        --config.anthropic.base_url=http://127.0.0.1:8123
"""

from __future__ import annotations

import asyncio
import collections
import inspect
import json
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any

import uvicorn
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsNonStreaming as TextParams
from pydantic import TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

_WIRE = {"chat": ChatParams, "text": TextParams, "messages": MessageCreateParamsNonStreaming}
_MORE = {
    "chat": {"return_token_ids"},
    "text": {"return_token_ids", "response_format"},
    "messages": {"temperature", "top_p"},
}
_ADAPTERS = {kind: TypeAdapter(params) for kind, params in _WIRE.items()}
_STATUSES = {"429": 429, "500": 500, "503": 503, "529": 529, "401": 401, "404": 404}
SLOW = 1.0  # seconds

Answer = Callable[[str, int], str]


def last_words(prompt: str, seed: int) -> str:
    """A few words of the end of the prompt, others with another seed."""
    words = prompt.split()[-12:]
    start = seed % max(len(words) - 3, 1)
    return " ".join(words[start : start + 4])


class ApiServers:
    """One application for both APIs.

    Attributes:
      faults: names of what goes wrong with the next requests, one each; "" for nothing.
      bodies: of all requests, in order.
      problems: what was wrong with them.
      delay: seconds of every answer; it is counted when its time has passed, whether or not anybody waits for it.
      answered: bodies of answers that were given, as text.
      odd: a response in place of the server's own, by kind of the request and its body; None for its own.
      stall: seconds of a late answer.
    """

    def __init__(self, answer: Answer = last_words):
        self._answer = answer
        self.delay, self.answered = 0.0, collections.Counter[str]()
        self.odd: Callable[[str, dict[str, Any]], Any] = lambda kind, body: None
        self.stall = 10.0
        self.faults: collections.deque[str] = collections.deque()
        self.bodies: list[dict[str, Any]] = []
        self.problems: list[str] = []
        routes = (("chat", "/v1/chat/completions"), ("text", "/v1/completions"), ("messages", "/v1/messages"))
        self.app = Starlette(routes=[Route(path, self._handler(kind), methods=["POST"]) for kind, path in routes])

    def _handler(self, kind: str) -> Callable:
        async def handle(request: Request) -> Response:
            body = await request.json()
            self.bodies.append(body)
            problems = [*wrong_headers(kind, request.headers), *wrong_body(kind, body)]
            if problems:
                self.problems += problems
                return failure(kind, 400, "; ".join(problems))
            odd = self.odd(kind, body)
            if odd is not None:
                return await odd if inspect.isawaitable(odd) else odd
            fault = self.faults.popleft() if self.faults else ""
            if self.delay:
                await asyncio.shield(asyncio.ensure_future(asyncio.sleep(self.delay)))
            self.answered[json.dumps(body, sort_keys=True)] += 1
            return await self._respond(kind, body, fault)

        return handle

    async def answer_with(self, kind: str, body: dict[str, Any], fault: str) -> Response:
        """The server's own answer: late (``stall``), in ``parts``, or with ``no usage``."""
        if fault == "stall":
            await asyncio.sleep(self.stall)
        answer = success(kind, body, self._answer(prompt_of(body), int(body.get("seed", 0))), "")
        if fault == "no usage":
            del answer["usage"]
        if fault == "parts":
            [choice] = answer["choices"]
            if "message" in choice:
                choice["message"]["content"] = [{"type": "text", "text": choice["message"]["content"]}]
            else:
                choice["text"] = [{"type": "text", "text": choice["text"]}]
        return JSONResponse(answer)

    async def _respond(self, kind: str, body: dict[str, Any], fault: str) -> Response:
        if fault in _STATUSES:
            return failure(kind, _STATUSES[fault], "on demand", {"retry-after": "0.01"} if fault == "429" else {})
        match fault:
            case "drop":  # ends before it has sent what it announced
                return StreamingResponse(iter([b'{"id":']), headers={"content-length": "1000"})
            case "not JSON":
                return HTMLResponse("<html>Bad gateway</html>")
            case "slow":
                await asyncio.sleep(SLOW)
            case "no temperature" if "temperature" in body:
                return failure(kind, 400, "Unsupported value: 'temperature' is deprecated for this model.")
            case "no form" if form := sorted({"response_format", "output_config", "tools"} & set(body)):
                return failure(kind, 400, f"{form[0]}: Extra inputs are not permitted")
            case "invalid schema" if form := sorted({"response_format", "output_config"} & set(body)):
                return failure(kind, 400, f"Invalid schema for {form[0]}: it is too deep")
            case "invalid tool" if "tools" in body:
                return failure(kind, 400, "Invalid schema for function 'calc': it is too deep")
            case "overflow":
                return failure(kind, 400, "prompt is too long: 9 tokens exceed the context window of 8")
        text = "" if fault == "empty" else self._answer(prompt_of(body), int(body.get("seed", 0)))
        return JSONResponse(success(kind, body, text, fault))


def prompt_of(body: Mapping[str, Any]) -> str:
    content = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[0].get("text", "")


def wrong_headers(kind: str, headers: Mapping[str, str]) -> list[str]:
    problems = [] if headers.get("content-type") == "application/json" else ["content-type is not application/json"]
    if not headers.get("authorization", "").startswith("Bearer "):  # both SDKs of today
        problems += ["no bearer token"]
    if kind == "messages" and not headers.get("anthropic-version"):
        problems += ["no anthropic-version"]
    return problems


def wrong_body(kind: str, body: dict[str, Any]) -> list[str]:
    """What the SDK's own request types say against a body; they leave lists unread until somebody reads them."""
    unknown = sorted(set(body) - set(typing.get_type_hints(_WIRE[kind])) - _MORE[kind])
    problems = [f"unknown field {name}" for name in unknown]
    try:
        read_all(_ADAPTERS[kind].validate_python(body))
    except ValidationError as error:
        problems += [str(error)]
    stops = body.get("stop_sequences", [])
    return problems + [f"stop sequence {stop!r} is white space" for stop in stops if not stop.strip()]


def read_all(value: Any) -> None:
    if isinstance(value, Mapping):
        value = value.values()
    if not isinstance(value, str) and hasattr(value, "__iter__"):
        for part in value:
            read_all(part)


def failure(kind: str, status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    error = {"type": "invalid_request_error", "message": message}
    if kind == "messages":
        return JSONResponse({"type": "error", "error": error}, status, headers)
    return JSONResponse({"error": {**error, "param": None, "code": None}}, status, headers)


def success(kind: str, body: Mapping[str, Any], text: str, fault: str) -> dict[str, Any]:
    read, written = len(prompt_of(body).split()), len(text.split())
    calls = []
    if "tools" in body and text.startswith("{"):
        text, calls = json.loads(text).values()
    if kind == "messages":
        stop = {"refusal": "refusal", "truncated": "max_tokens"}.get(fault, "end_turn")
        thinking = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": [
                thinking,
                *([{"type": "text", "text": text}] if text else []),
                *({"type": "tool_use", "id": "1", "name": one["name"], "input": one["arguments"]} for one in calls),
            ],
            "stop_reason": stop,
            "stop_sequence": None,
            "usage": {"input_tokens": read, "cache_read_input_tokens": None, "output_tokens": written},
        }
    reason = {"refusal": "content_filter", "truncated": "length"}.get(fault, "stop")
    choice = {"index": 0, "finish_reason": reason, "logprobs": None}
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if calls:
        functions = [{"name": one["name"], "arguments": json.dumps(one["arguments"])} for one in calls]
        message["tool_calls"] = [{"id": "1", "type": "function", "function": one} for one in functions]
    return {
        "id": "1",
        "object": "text_completion" if kind == "text" else "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [{**choice, **({"text": text} if kind == "text" else {"message": message})}],
        "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
    }


if __name__ == "__main__":
    uvicorn.run(ApiServers().app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
