"""OpenAI's wire format for chat and text completions: parsing of request bodies, and the fields of answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from optimas_jax.core.types import Outcome, derive_seed
from optimas_jax.llm.base import Completion, CompletionRequest, Message

_MOST_ANSWERS = 64
# Settings that would change the answer and that the engine does not have, each with the values that mean "not used".
_REFUSED: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "logit_bias": (None, {}),
    "top_logprobs": (None, 0),
    "top_k": (None, 0, -1),
    "tools": (None, []),
    "functions": (None, []),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
}
_FINISH = {Outcome.OK: "stop", Outcome.TRUNCATED: "length"}


class RequestError(Exception):
    """A request that is refused: HTTP status, message, and the ``param`` and ``code`` fields of OpenAI's errors."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def to_json(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclasses.dataclass(frozen=True)
class CompletionBody:
    """The parsed body of a completion request.

    Attributes:
      model: name of the base or of an adapter.
      prompts: conversations to answer, ``n`` times each; one for chat.
      max_tokens: most tokens of an answer; None for as many as fit, up to a limit of the server.
      temperature, top_p, stop: of sampling.
      seed: names the random numbers; None for a new seed at every request.
      n: number of answers to each prompt.
      logprobs: whether log-probs of the sampled tokens are wanted.
      token_ids: whether prompt and answer are also wanted as tokens (vLLM's ``return_token_ids``).
      stream: whether the answer is sent in parts.
      include_usage: whether the last part tells the numbers of tokens.
      schema: JSON Schema that answers keep to, or None.
    """

    model: str
    prompts: tuple[tuple[Message, ...], ...]
    max_tokens: int | None
    temperature: float
    top_p: float
    stop: tuple[str, ...]
    seed: int | None
    n: int
    logprobs: bool
    token_ids: bool
    stream: bool
    include_usage: bool
    schema: Mapping[str, Any] | None

    def requests(self, model: str, adapter: str, max_tokens: Sequence[int], seed: int) -> list[CompletionRequest]:
        """The engine's requests, in the order of the choices; ``max_tokens`` of each prompt."""
        return [
            CompletionRequest(
                model=model,
                messages=messages,
                max_tokens=limit,
                temperature=self.temperature,
                top_p=self.top_p,
                stop=self.stop,
                seed=derive_seed(seed, number),
                adapter=adapter,
                tokens=True,
                schema=self.schema,
            )
            for messages, limit in zip(self.prompts, max_tokens, strict=True)
            for number in range(self.n)
        ]


def parse(body: Any, *, chat: bool) -> CompletionBody:
    """Reads a body.

    Raises:
      RequestError: naming the parameter that is missing, wrong, or not supported.
    """
    if not isinstance(body, Mapping):
        raise RequestError(400, "the body must be a JSON object")
    for name, unused in _REFUSED.items():
        if body.get(name) not in unused:
            raise RequestError(400, f"{name} = {body[name]!r} is not supported by this server", name)
    stop = body.get("stop") or ()
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(text, str) and text for text in stop):
        raise RequestError(400, f"stop must be a text or a list of texts, got {body['stop']!r}", "stop")
    limit = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    options = body.get("stream_options") or {}
    return CompletionBody(
        model=_text(body, "model"),
        prompts=(_messages(body),) if chat else _prompts(body),
        max_tokens=_number(body, limit, None if chat else 16, int, 1),
        temperature=_number(body, "temperature", 1.0, float, 0.0, 2.0),
        top_p=_number(body, "top_p", 1.0, float, 1e-6, 1.0),
        stop=stop,
        seed=_number(body, "seed", None, int),
        n=_number(body, "n", 1, int, 1, _MOST_ANSWERS),
        logprobs=_wants_logprobs(body, chat=chat),
        token_ids=bool(body.get("return_token_ids")),
        stream=bool(body.get("stream")),
        include_usage=bool(options.get("include_usage")) if isinstance(options, Mapping) else False,
        schema=_schema(body),
    )


def _schema(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The schema of ``response_format``."""
    name, wanted = "response_format", body.get("response_format")
    match wanted:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {"type": "object"}
        case {"type": "json_schema", "json_schema": {"schema": Mapping() as schema}}:
            return schema
    raise RequestError(
        400,
        f"{name} must be of type text, json_object, or json_schema with json_schema.schema, got {wanted!r}",
        name,
    )


def _wants_logprobs(body: Mapping[str, Any], *, chat: bool) -> bool:
    """Whether log-probs of the sampled tokens are wanted; log-probs of other tokens are not supported. In text
    completions the field is a number of other tokens, 0 or 1."""
    value = body.get("logprobs")
    if chat or value is None or isinstance(value, bool):
        return bool(value)
    if value not in (0, 1):
        raise RequestError(400, f"logprobs = {value!r}: this server knows those of the sampled tokens, 0", "logprobs")
    return True


def _text(body: Mapping[str, Any], name: str) -> str:
    if not isinstance(body.get(name), str) or not body[name]:
        raise RequestError(400, f"{name} must be a text, got {body.get(name)!r}", name)
    return body[name]


def _number(
    body: Mapping[str, Any], name: str, default: Any, kind: type, least: float = -(2**63), most: float = 2**63
) -> Any:
    value = body.get(name)
    if value is None:
        return default
    allowed = int if kind is int else int | float
    if isinstance(value, bool) or not isinstance(value, allowed) or not least <= value <= most:
        limits = f"from {least:g} to {most:g}" if most < 2**63 else f"of at least {least:g}"
        raise RequestError(400, f"{name} must be a number {limits}, got {value!r}", name)
    return kind(value)


def _messages(body: Mapping[str, Any]) -> tuple[Message, ...]:
    turns = body.get("messages")
    if not isinstance(turns, list) or not turns:
        raise RequestError(400, "messages must be a list of at least one message", "messages")
    messages = []
    for number, turn in enumerate(turns):
        where = f"messages[{number}]"
        role = turn.get("role") if isinstance(turn, Mapping) else None
        if role not in ("system", "developer", "user", "assistant"):
            raise RequestError(400, f"{where}.role must be system, user or assistant, got {role!r}", where)
        content = turn.get("content")
        if isinstance(content, list):  # parts
            if not all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
                raise RequestError(400, f"{where} has a part that is not text: this server reads text only", where)
            content = "".join(str(part.get("text", "")) for part in content)
        if not isinstance(content, str):
            raise RequestError(400, f"{where}.content must be a text, got {content!r}", where)
        messages.append(Message("system" if role == "developer" else role, content))
    return tuple(messages)


def _prompts(body: Mapping[str, Any]) -> tuple[tuple[Message, ...], ...]:
    prompt = body.get("prompt")
    texts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise RequestError(400, "prompt must be a text or a list of texts; token ids are not read", "prompt")
    return tuple((Message("text", text),) for text in texts)


def usage(completions: Sequence[Completion]) -> dict[str, int]:
    """Numbers of tokens of all completions of a request."""
    prompt = sum(completion.prompt_tokens for completion in completions)
    answer = sum(completion.completion_tokens for completion in completions)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def choice(completion: Completion, index: int, pieces: Sequence[str] | None, *, chat: bool) -> dict[str, Any]:
    """One entry of ``choices``; ``pieces`` are the texts of the answer's tokens, where log-probs are wanted."""
    logprobs = None if pieces is None else _logprobs(completion, pieces, chat=chat)
    entry = {"index": index, "finish_reason": _FINISH[completion.outcome], "logprobs": logprobs}
    if not chat:
        return {**entry, "text": completion.text}
    return {**entry, "message": {"role": "assistant", "content": completion.text, "refusal": None}}


def token_ids(completion: Completion) -> dict[str, list[int]]:
    """Prompt and answer in tokens, for an entry of ``choices``."""
    assert completion.tokens is not None
    return {"prompt_token_ids": list(completion.tokens.prompt_ids), "token_ids": list(completion.tokens.ids)}


def chunk_choice(index: int, text: str | None, *, chat: bool, first: bool = False) -> dict[str, Any]:
    """One entry of ``choices`` of a part of a streamed answer."""
    entry: dict[str, Any] = {"index": index, "finish_reason": None, "logprobs": None}
    if not chat:
        return {**entry, "text": text or ""}
    role = {"role": "assistant"} if first else {}
    return {**entry, "delta": {**role, **({} if text is None else {"content": text})}}


def last_choice(completion: Completion, index: int, pieces: Sequence[str] | None, *, chat: bool) -> dict[str, Any]:
    """The last entry of ``choices`` of a streamed answer."""
    complete = choice(completion, index, pieces, chat=chat)
    entry = {name: complete[name] for name in ("index", "finish_reason", "logprobs")}
    return {**entry, "delta": {}} if chat else {**entry, "text": ""}


def _logprobs(completion: Completion, pieces: Sequence[str], *, chat: bool) -> dict[str, Any]:
    assert completion.tokens is not None
    values = [float(value) for value in completion.tokens.logprobs]
    if chat:
        content = [
            {"token": piece, "logprob": value, "bytes": list(piece.encode()), "top_logprobs": []}
            for piece, value in zip(pieces, values, strict=True)
        ]
        return {"content": content, "refusal": None}
    offsets = [sum(map(len, pieces[:index])) for index in range(len(pieces))]
    return {"tokens": list(pieces), "token_logprobs": values, "top_logprobs": None, "text_offset": offsets}
