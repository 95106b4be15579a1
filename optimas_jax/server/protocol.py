"""OpenAI's wire format for chat and text completions: bodies of requests, by a schema.

A field that would change the answer and that the engine does not support is refused by name, and so are unknown fields:
an answer is what was asked for, or an error gives the reason.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pydantic
from pydantic_core import PydanticCustomError

from optimas_jax.core.text.secrets import redact
from optimas_jax.core.types import derive_seed
from optimas_jax.llm.base import CompletionRequest, Message

MOST_ANSWERS = 64  # most answers to one prompt
MOST_IN_ALL = 1024  # prompts times answers to each
_MOST_MESSAGES, _MOST_STOPS, _MOST_STOP = 4096, 16, 1000
# Settings that would change the answer and that the engine does not support, with the values that mean "not used".
_REFUSED: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "logit_bias_exp": ({},),
    "top_logprobs": (0,),
    "top_k": (0, -1),
    "min_p": (0,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "use_beam_search": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "modalities": (["text"],),
}
# Fields that do not change the answer.
_NO_MATTER = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
}


class RequestError(Exception):
    """A request that is refused: HTTP status, message, and the ``param`` and ``code`` fields of OpenAI's errors."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def to_json(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        message, param = (
            text and redact(text).encode(errors="replace").decode() for text in (self.message, self.param)
        )
        return {"error": {"message": message, "type": kind, "param": param, "code": self.code}}


@dataclasses.dataclass(frozen=True)
class CompletionBody:
    """The parsed body of a completion request.

    Attributes:
      model: name of the base or of an adapter.
      prompts: conversations to answer, ``n`` times each; one for chat.
      max_tokens: most tokens of an answer; None for as many as fit, up to a limit of the server.
      temperature, top_p, stop: of sampling.
      seed: of the random numbers; None for a new seed at every request.
      n: number of answers to each prompt.
      logprobs: whether log-probs of the sampled tokens are wanted.
      token_ids: whether prompt and answer are also wanted as tokens (vLLM's ``return_token_ids``).
      stream: whether the answer is sent in parts.
      include_usage: whether the last part has the numbers of tokens.
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


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("value", message)  # type: ignore[arg-type] - a literal is wanted for translations alone


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _joined(content: Any) -> Any:
    """The text of a message whose content may be a list of parts."""
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise _wrong("a text or parts that are text: this server reads text only")
        if not isinstance(part.get("text"), str):
            raise _wrong("a text or parts whose text is a text")
    return "".join(part["text"] for part in content)


def _read_schema(response_format: Any) -> Mapping[str, Any] | None:
    """The schema of ``response_format``."""
    match response_format:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {"type": "object"}
        case {"type": "json_schema", "json_schema": {"schema": dict() as schema}}:
            _valid(json.dumps(schema, ensure_ascii=False))
            return schema
    raise _wrong("of type text, json_object, or json_schema with json_schema.schema")


def _as_flag(value: Any) -> Any:
    """``logprobs`` of text completions: the number of further tokens whose log-probs are wanted. The engine knows only
    the log-probs of the sampled tokens, so 0 and 1 mean True."""
    number = isinstance(value, int) and not isinstance(value, bool)
    return True if number and value in (0, 1) else value


def _valid(text: str) -> str:
    """The text, if it can be encoded: JSON can hold single halves of characters (surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _wrong("text without halves of characters (surrogates)") from None
    return text


AnyText = Annotated[str, pydantic.AfterValidator(_valid)]
Text = Annotated[AnyText, pydantic.Field(min_length=1)]
Number = Annotated[float, pydantic.Field(allow_inf_nan=False)]
_MODEL = pydantic.ConfigDict(strict=True, extra="allow", frozen=True)


class _Turn(pydantic.BaseModel):
    model_config = _MODEL
    role: Literal["system", "developer", "user", "assistant"] = pydantic.Field(description="system, user or assistant")
    content: Annotated[AnyText, pydantic.BeforeValidator(_joined)] = pydantic.Field(description="a text")
    name: str | None = pydantic.Field(None, description="a text")


class _Stream(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="ignore", frozen=True)
    include_usage: bool | None = pydantic.Field(None, description="true or false")


class _Fields(pydantic.BaseModel):
    """Fields that both kinds of completion have; ``description`` says what a field must be."""

    model_config = _MODEL
    model: Text = pydantic.Field(description="a text")
    max_tokens: int | None = pydantic.Field(None, ge=1, description="a number of at least 1")
    max_completion_tokens: int | None = pydantic.Field(None, ge=1, description="a number of at least 1")
    temperature: Number | None = pydantic.Field(None, ge=0, le=2, description="a number from 0 to 2")
    top_p: Number | None = pydantic.Field(None, ge=1e-6, le=1, description="a number from 1e-06 to 1")
    stop: Annotated[
        list[Annotated[Text, pydantic.Field(max_length=_MOST_STOP)]] | None, pydantic.BeforeValidator(_as_list)
    ] = pydantic.Field(
        None,
        max_length=_MOST_STOPS,
        description=f"a text or a list of up to {_MOST_STOPS} texts of up to {_MOST_STOP} characters",
    )
    seed: int | None = pydantic.Field(None, ge=-(2**63), lt=2**64, description="a whole number of 64 bits")
    n: int | None = pydantic.Field(None, ge=1, le=MOST_ANSWERS, description=f"a number from 1 to {MOST_ANSWERS}")
    return_token_ids: bool | None = pydantic.Field(None, description="true or false")
    stream: bool | None = pydantic.Field(None, description="true or false")
    stream_options: _Stream | None = pydantic.Field(None, description="an object")
    response_format: Annotated[Any, pydantic.AfterValidator(_read_schema)] = None


class _Chat(_Fields):
    messages: list[_Turn] = pydantic.Field(
        min_length=1,
        max_length=_MOST_MESSAGES,
        description=f"a list of at least one message, and at most {_MOST_MESSAGES}",
    )
    logprobs: bool | None = pydantic.Field(None, description="true or false")


class _Completion(_Fields):
    prompt: Annotated[list[Text], pydantic.BeforeValidator(_as_list)] = pydantic.Field(
        min_length=1,
        max_length=MOST_IN_ALL,
        description=f"a text or a list of 1 to {MOST_IN_ALL} texts; token ids are not read",
    )
    logprobs: Annotated[bool | None, pydantic.BeforeValidator(_as_flag)] = pydantic.Field(
        None, description="0: this server knows the log-probs of the sampled tokens"
    )


def parse(body: Any, *, chat: bool) -> CompletionBody:
    """Reads a body.

    Raises:
      RequestError: naming the parameter that is missing, wrong, or not supported.
    """
    if not isinstance(body, Mapping):
        raise RequestError(400, "the body must be a JSON object")
    kind = _Chat if chat else _Completion
    _refuse_others(body, kind)
    try:
        fields: Any = kind.model_validate(body)
    except pydantic.ValidationError as error:
        raise _request_error(error, kind) from None
    if chat:
        for index, turn in enumerate(fields.messages):
            _refuse_others(turn.model_extra or {}, _Turn, f"messages[{index}].")
        turns = [Message("system" if turn.role == "developer" else turn.role, turn.content) for turn in fields.messages]
        prompts = (tuple(turns),)
    else:
        prompts = tuple((Message("text", text),) for text in fields.prompt)
    count = 1 if fields.n is None else fields.n
    if len(prompts) * count > MOST_IN_ALL:
        raise RequestError(400, f"{len(prompts)} prompts with n = {count}: at most {MOST_IN_ALL} answers at once", "n")
    limit = fields.max_tokens if fields.max_completion_tokens is None else fields.max_completion_tokens
    return CompletionBody(
        model=fields.model,
        prompts=prompts,
        max_tokens=16 if limit is None and not chat else limit,
        temperature=1.0 if fields.temperature is None else float(fields.temperature),
        top_p=1.0 if fields.top_p is None else float(fields.top_p),
        stop=tuple(fields.stop or ()),
        seed=fields.seed,
        n=count,
        logprobs=bool(fields.logprobs),
        token_ids=bool(fields.return_token_ids),
        stream=bool(fields.stream),
        include_usage=bool(fields.stream_options and fields.stream_options.include_usage),
        schema=fields.response_format,
    )


def _refuse_others(body: Mapping[str, Any], kind: type[pydantic.BaseModel], where: str = "") -> None:
    """Refuses fields that are not in the schema, unless they have no effect; null means that a field is left out."""
    for name, value in body.items():
        if name in kind.model_fields or name in _NO_MATTER or value is None:
            continue
        if not any(value == unused and isinstance(value, bool) == isinstance(unused, bool) for unused in _unused(name)):
            raise RequestError(
                400, f"{where}{name} = {_short(value)} is not supported by this server", f"{where}{name}"
            )


def _unused(name: str) -> tuple[Any, ...]:
    return _REFUSED.get(name, ())


def _request_error(error: pydantic.ValidationError, kind: type[pydantic.BaseModel]) -> RequestError:
    """The first error of a body: the path of the field, and what it must be."""
    first = error.errors(include_url=False, include_context=False)[0]
    if not first["loc"]:
        return RequestError(400, "names of fields must be text without halves of characters (surrogates)")
    location = first["loc"][:1] if first["loc"][0] in ("stop", "prompt") else first["loc"]  # of one text, too
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    expected = first["msg"] if first["type"] == "value" else _expected(kind, first["loc"])
    got = "nothing" if first["type"] == "missing" else _short(first["input"])
    message = f"{path} must be {expected}, got {got}"
    if path == "logprobs" and kind is _Completion:
        message = f"logprobs = {got}: this server knows those of the sampled tokens, 0"
    return RequestError(400, message, path)


def _expected(kind: type[pydantic.BaseModel], path: Sequence[int | str]) -> str:
    """Description of what the field at a path must be; the innermost one on the path."""
    expected, fields = "another value", kind.model_fields
    inner = {"messages": _Turn, "stream_options": _Stream}
    for part in path:
        if isinstance(part, int) and expected.startswith("a list of at least one message"):
            expected = "a message: an object with role and content"
        if isinstance(part, str) and part in fields:
            expected = fields[part].description or expected
            fields = inner[part].model_fields if part in inner else {}
    return expected


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
