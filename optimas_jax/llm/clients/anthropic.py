"""Client of Anthropic's messages API, and of servers with this API.

The API has no seed: only the tape repeats an answer. It cannot continue a plain text. It refuses stop texts of white
space alone: they are applied here, to the whole answer. A schema is sent as ``output_config``, reduced to the part of
JSON Schema that the API knows; a schema with free keys is only shown in the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optimas_jax.core.types import Outcome, thaw
from optimas_jax.llm.accounts.prices import Price
from optimas_jax.llm.attempts import ServerError
from optimas_jax.llm.base import Completion, CompletionRequest, Message, ToolUse
from optimas_jax.llm.clients.errors import Unknown, Unreadable, tokens_used
from optimas_jax.llm.clients.remote import Body, Remote, ServerConfig, settled
from optimas_jax.llm.forms.schemas import is_closed
from optimas_jax.llm.specs import model_name

URL = "https://api.anthropic.com"
_SAMPLING = ("temperature", "top_p")  # on the wire, but no longer arguments of the SDK
_CACHED = ("cache_creation_input_tokens", "cache_read_input_tokens")
_OUTCOMES = {
    "max_tokens": Outcome.TRUNCATED,
    "model_context_window_exceeded": Outcome.TRUNCATED,
    "pause_turn": Outcome.TRUNCATED,
    "refusal": Outcome.REFUSED,
}


class AnthropicCompleter:
    """Answers completion requests over the network. The client is made at the first request."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        prices: Mapping[str, Price] | None = None,
        say: Callable[[str], None] = lambda text: None,
        http_client: Any = None,
    ):
        """``prices``, ``say``: see ``Remote``. ``http_client``: an ``httpx2.Client`` to use."""
        self._remote = Remote("anthropic", URL, config, prices or {}, say)
        self._http_client = http_client

    async def complete(self, request: CompletionRequest) -> Completion:
        """Attempts one request.

        Raises:
          Fault: there is no answer that can be read.
          ServerError: the API cannot answer such a request (a plain text, an adapter, tokens), or the server would
            answer no request.
        """
        _check(request)
        return await self._remote.complete(request, lambda: self._complete(request))

    def _complete(self, request: CompletionRequest) -> Completion:
        client = self._remote.client(_sdk(), _sdk().Anthropic, self._http_client)
        create = client.messages.with_raw_response.create

        def send(sent: Body) -> Any:
            sampling = {name: sent[name] for name in _SAMPLING if name in sent}
            return create(**{name: sent[name] for name in sent if name not in sampling}, extra_body=sampling)

        def read() -> Completion:
            return _read(*self._remote.post(_sdk(), request, _body, send))

        try:
            return self._remote.call(_sdk(), read)
        except Unknown as error:
            raise Unknown(f"{error} (asked for {request.model!r})", error.server) from None


def _sdk() -> Any:
    import anthropic

    return anthropic


def _check(request: CompletionRequest) -> None:
    if any(message.role == "text" for message in request.messages):
        raise ServerError(
            f"{request.model} answers turns of a conversation, and the request is a plain text to continue: set "
            "language_model.style = chat"
        )
    if request.adapter or request.tokens:
        raise ServerError(
            f"{request.model} has no adapters and does not tell tokens: tune the weights of a local model"
        )


def _body(request: CompletionRequest) -> Body:
    system = "\n\n".join(message.content for message in request.messages if message.role == "system")
    stops = [stop for stop in request.stop if stop.strip()]
    return {
        "model": model_name(request.model),
        "max_tokens": request.max_tokens,
        **({"system": system} if system else {}),
        "messages": _turns([message for message in request.messages if message.role != "system"]),
        "temperature": request.temperature,
        **({"top_p": request.top_p} if request.top_p < 1 else {}),
        **({"stop_sequences": stops} if stops else {}),
        **_form(request),
    }


def _turns(messages: Sequence[Message]) -> list[Body]:
    """Messages of the API: the results of all tools that a turn asked for are in one turn of the user."""
    turns: list[Body] = []
    for index, message in enumerate(messages):
        if message.role != "tool":
            turns.append({"role": message.role, "content": _content(message)})
            continue
        result = {"type": "tool_result", "tool_use_id": _id(message.call_id), "content": message.content}
        if index and messages[index - 1].role == "tool":
            turns[-1]["content"].append(result)
        else:
            turns.append({"role": "user", "content": [result]})
    return turns


def _id(call_id: str) -> str:
    """The id of a call, with characters that the API does not take replaced."""
    return re.sub(r"[^a-zA-Z0-9_-]", "-", call_id)


def _content(message: Message) -> Any:
    """A text, or blocks: the text and the images in it, and calls of tools."""
    if message.calls:
        text_blocks = [{"type": "text", "text": message.content}] if message.content.strip() else []
        return text_blocks + [
            {"type": "tool_use", "id": _id(call.id), "name": call.name, "input": _input(call)} for call in message.calls
        ]
    if not message.images:
        return message.content
    images = [{"type": "image", "source": _source(url)} for url in message.images]
    return [{"type": "text", "text": message.content}, *images]


def _input(call: ToolUse) -> Any:
    """Arguments as an object, which the API requires; a text that is no JSON becomes a field of one."""
    return {"arguments": call.arguments} if isinstance(call.arguments, str) else thaw(call.arguments)


def _source(url: str) -> Body:
    inside = re.fullmatch(r"data:(image/\w+);base64,(.*)", url, re.DOTALL)
    if inside is None:
        return {"type": "url", "url": url}
    return {"type": "base64", "media_type": inside.group(1), "data": inside.group(2)}


def _form(request: CompletionRequest) -> Body:
    """Fields of the body that ask for a form of the answer."""
    if request.tools:
        tools = [(tool.name, tool.description, thaw(tool.parameters)) for tool in request.tools]
        kinds = {"none": {"type": "none"}, "required": {"type": "any"}}
        choice = kinds.get(request.choice, {"type": "tool", "name": request.choice})
        return {
            "tools": [dict(zip(("name", "description", "input_schema"), tool, strict=True)) for tool in tools],
            **({} if request.choice == "auto" else {"tool_choice": choice}),
            **({} if request.text_schema is None else _format(request.text_schema)),
        }
    return {} if request.schema is None else _format(request.schema)


def _format(text_schema: Mapping[str, Any]) -> Body:
    """Fields of the body that ask for an answer of a schema."""
    schema = thaw(text_schema)
    try:
        accepted = _sdk().transform_schema(schema) if is_closed(schema) else None
    except ValueError:  # a field of any type
        accepted = None
    return {} if accepted is None else {"output_config": {"format": {"type": "json_schema", "schema": accepted}}}


def _read(request: CompletionRequest, answer: Mapping[str, Any]) -> Completion:
    """The completion in an answer; raises ``Unreadable`` for an answer that is not of the API's schema."""
    try:
        blocks = [(block["type"], block) for block in answer["content"]]
        text = "".join(block["text"] for kind, block in blocks if kind == "text")
        calls = [(block["name"], block["input"]) for kind, block in blocks if kind == "tool_use"]
        usage = answer["usage"] if isinstance(answer.get("usage"), dict) else {}
        parts = [usage.get("input_tokens"), *(usage.get(name) or 0 for name in _CACHED)]
        prompt_tokens, completion_tokens, estimated = tokens_used(parts, usage.get("output_tokens"), request.most())
        reason = answer.get("stop_reason")
        completion = Completion(
            text=text,
            outcome=_OUTCOMES.get(reason, Outcome.OK) if isinstance(reason, str) else Outcome.OK,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            reasoning="".join(str(block.get("thinking", "")) for kind, block in blocks if kind == "thinking"),
            estimated=estimated,
        )
        return settled(request, completion, calls)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise Unreadable(f"{type(error).__name__}: {error}; {str(answer)[:4000]}") from error
