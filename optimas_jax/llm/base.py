"""Completions, and effects in general: requests that leave the process and are therefore recorded (``llm.tapes.tape``).

An effect knows its key, its worst case and how its result is read back. There are three kinds: completions of language
models and calls of users' functions, both here, and executions of programs (``llm.sandbox``).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

from optimas_jax.core.text.json_text import check_record
from optimas_jax.core.types import Outcome, digest, thaw, valid_text
from optimas_jax.core.usage import Usage

_TEMPLATE_TOKENS = 64  # tokens of a chat template: its own words, and the marks around one turn
_IMAGE_TOKENS = 50_000  # most tokens of an image (gpt-4o-mini: 2,833 and 5,667 for each of 8 tiles)
_RARE = ("detail", "reasoning", "estimated")  # fields of a completion that are recorded unless they are empty
_COSTS = {"prompt_tokens": int, "completion_tokens": int, "seconds": float, "usd": float}
_RECORDED = {"text": str, "outcome": str, **_COSTS}  # fields of every completion
_FORMAT_TOKENS = 512  # tokens of the text in which a provider shows a schema to its model


class Result(Protocol):
    """The result of an effect."""

    @property
    def usage(self) -> Usage:
        """Cost of the effect."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Plain data with everything that ``Effect.read`` needs; costs under the names of ``Usage``."""
        ...


R_co = TypeVar("R_co", bound=Result, covariant=True)


class Effect(Protocol[R_co]):
    """A request whose result is recorded.

    Attributes:
      kind: ``completion`` or ``execution``.
      key: content address; equal requests have equal keys.
      role: component or proposer that asks, for the ledger; not part of the key.
      model: the language model that answers, "" for none.
    """

    @property
    def kind(self) -> str: ...

    @property
    def key(self) -> str: ...

    @property
    def role(self) -> str: ...

    @property
    def model(self) -> str: ...

    def most(self) -> Usage:
        """The worst case: no result uses more calls or tokens. The ledger, which knows prices, adds dollars."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The part that affects the result, as plain data."""
        ...

    def read(self, data: Mapping[str, Any]) -> R_co:
        """The result that ``Result.to_json`` wrote."""
        ...


@dataclasses.dataclass(frozen=True)
class ToolUse:
    """A call of a tool that a model asked for in an earlier turn.

    Attributes:
      id: by which the turn with its result refers to it.
      name: of the tool.
      arguments: an object; or the text as it was written, if that is no JSON.
    """

    id: str
    name: str
    arguments: Mapping[str, Any] | str = dataclasses.field(hash=False)

    @property
    def written(self) -> str:
        """The arguments as JSON."""
        if isinstance(self.arguments, str):
            return self.arguments
        return json.dumps(thaw(self.arguments), ensure_ascii=False)


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
      role: system, user, assistant or tool; or ``text``, for a request that is one plain text to continue.
      content: its text.
      images: URLs of images; the text has a mark for each.
      calls: calls of tools that the assistant asked for in this turn.
      call_id: id of the call whose result this turn of a tool holds.
      name: of the speaker, where several share a role; "" otherwise.
    """

    role: str
    content: str
    images: tuple[str, ...] = ()
    calls: tuple[ToolUse, ...] = ()
    call_id: str = ""
    name: str = ""

    def to_json(self) -> list[Any]:
        calls = [[call.id, call.name, thaw(call.arguments)] for call in self.calls]
        fields = {"calls": calls, "call_id": self.call_id, "name": self.name}
        rare = {name: value for name, value in fields.items() if value}
        return [self.role, self.content, *([list(self.images)] if self.images else []), *([rare] if rare else [])]


@dataclasses.dataclass(frozen=True)
class Tool:
    """A function that a model may ask for.

    Attributes:
      name, description: as the model reads them.
      parameters: JSON Schema of its arguments, an object.
    """

    name: str
    description: str
    parameters: Mapping[str, Any] = dataclasses.field(hash=False)


@dataclasses.dataclass(frozen=True)
class CompletionRequest:
    """Everything that affects an answer, and the role that asks; an effect.

    Attributes:
      model: a model spec (``checkpoints.sources``) or a provider's model name.
      messages: the conversation to answer.
      max_tokens: most tokens of the answer.
      temperature: 0 asks for the most likely answer.
      top_p: nucleus mass.
      stop: texts that end the answer once it has begun.
      seed: names the random stream; left out of the key at temperature 0, where it changes nothing.
      role: the component's name or ``proposer``; for the ledger, not part of the key.
      adapter: digest of the LoRA weights that answer, "" for the model itself.
      tokens: whether the answer shall also come as tokens (``Completion.tokens``).
      schema: JSON Schema of the answer, for servers and engines that can keep to one; None for any text.
      tools: tools that the model may ask for; ``schema`` is then the schema of replies (``llm.forms.tools``), or None
        if ``choice`` is ``none``. The messages mention neither tools nor schema: APIs have fields for them, and for
        models without such fields ``llm.forms.schemas.told`` adds a line.
      choice: ``auto``, ``none``, ``required``, or the name of the tool to ask for.
      text_schema: JSON Schema of the text of a reply without calls; None for any text.
    """

    model: str
    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    role: str = ""
    adapter: str = ""
    tokens: bool = False
    schema: Mapping[str, Any] | None = dataclasses.field(default=None, hash=False)
    tools: tuple[Tool, ...] = ()
    choice: str = "auto"
    text_schema: Mapping[str, Any] | None = dataclasses.field(default=None, hash=False)

    @property
    def kind(self) -> str:
        return "completion"

    @property
    def key(self) -> str:
        """Content address: equal requests have equal keys."""
        return digest(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The part that affects the answer, as plain data."""
        return {
            **({"adapter": self.adapter} if self.adapter else {}),
            **({"tokens": True} if self.tokens else {}),
            **({} if self.schema is None else {"schema": thaw(self.schema)}),
            **({"tools": [thaw(vars(tool)) for tool in self.tools]} if self.tools else {}),
            **({} if self.choice == "auto" else {"choice": self.choice}),
            **({} if self.text_schema is None else {"text_schema": thaw(self.text_schema)}),
            "model": self.model,
            "messages": [message.to_json() for message in self.messages],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stop": list(self.stop),
            "seed": self.seed if self.temperature > 0 else None,
        }

    def most(self) -> Usage:
        """Upper bound of calls and tokens. A token is at least one byte of UTF-8, so the bound of a prompt is about
        four times its number of tokens; ``count_prompt`` may know the exact number. Providers show a schema to their
        models, so its tokens count, too."""
        prompt = sum(
            len(message.content.encode())
            + _TEMPLATE_TOKENS
            + _IMAGE_TOKENS * len(message.images)
            + sum(len((call.id + call.name + call.written).encode()) + _TEMPLATE_TOKENS for call in message.calls)
            for message in self.messages
        )
        if self.schema is not None or self.tools:
            shown = [self.schema, *(thaw(vars(tool)) for tool in self.tools)]
            prompt += len(json.dumps(thaw(shown)).encode()) + _FORMAT_TOKENS
        return Usage(calls=1, prompt_tokens=prompt, completion_tokens=self.max_tokens)

    def read(self, data: Mapping[str, Any]) -> Completion:
        """The completion in recorded data; raises ``TypeError``, ``KeyError`` or ``ValueError`` for other data."""
        return Completion.from_json(data)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids of a prompt and of its answer.

    Attributes:
      prompt_ids: of the whole prompt.
      ids: of the answer, the token that ended it included.
      logprobs: log-probability of each token of the answer, at temperature 1.
    """

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Completion:
    """One answer of a language model.

    Attributes:
      text: the answer; empty if there is none.
      outcome: ok, truncated (the token limit came first), refused, timeout or rate_limited.
      prompt_tokens, completion_tokens: as the model counted them.
      seconds: from request to answer; for a batch, this request's share.
      usd: price, 0 for local models.
      tokens: set if the request asked for them.
      detail: why there is no answer.
      reasoning: the model's thoughts before the answer; never part of the answer.
      estimated: True if the server did not report its usage: the numbers of tokens are then the worst case.
    """

    text: str
    outcome: Outcome
    prompt_tokens: int
    completion_tokens: int
    seconds: float = 0.0
    usd: float = 0.0
    tokens: Tokens | None = None
    detail: str = ""
    reasoning: str = ""
    estimated: bool = False

    def __post_init__(self) -> None:
        """Makes the texts valid UTF-8, so that an answer that was paid for can be written and read again."""
        for name in ("text", "detail", "reasoning"):
            object.__setattr__(self, name, valid_text(getattr(self, name)))

    @property
    def usage(self) -> Usage:
        return Usage(1, self.prompt_tokens, self.completion_tokens, self.usd, self.seconds)

    def to_json(self) -> dict[str, Any]:
        tokens = None if self.tokens is None else dict(vars(self.tokens))
        extra = {name: value for name in _RARE if (value := getattr(self, name))}
        fields = {name: value for name, value in vars(self).items() if name not in _RARE}
        return {**fields, "outcome": str(self.outcome), "tokens": tokens, **extra}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Completion:
        """The completion that ``to_json`` wrote; raises ``TypeError`` or ``ValueError`` for other data."""
        check_record(data, _RECORDED, tokens=dict | None, detail=str, reasoning=str, estimated=bool)
        tokens = data.get("tokens")
        parsed_tokens = None if tokens is None else _tokens(tokens)
        return cls(**{**data, "outcome": Outcome(data["outcome"]), "tokens": parsed_tokens})


def _tokens(data: Mapping[str, Any]) -> Tokens:
    """The tokens in recorded data; raises ``TypeError`` for other data."""
    check_record(data, {"prompt_ids": list, "ids": list, "logprobs": list})
    all_ids = [*data["prompt_ids"], *data["ids"]]
    are_ids = all(type(token) is int for token in all_ids)
    if not are_ids or not all(type(value) in (int, float) for value in data["logprobs"]):
        raise TypeError("tokens are whole numbers, and their log-probabilities numbers")
    return Tokens(**{name: tuple(values) for name, values in data.items()})


@dataclasses.dataclass(frozen=True)
class Returned:
    """The result of a user's function, as fields.

    Attributes:
      outputs: plain data.
      seconds: duration of the call.
    """

    outputs: Mapping[str, Any]
    seconds: float = 0.0

    @property
    def usage(self) -> Usage:
        return Usage(calls=1, seconds=self.seconds)

    def to_json(self) -> dict[str, Any]:
        return {"outputs": dict(self.outputs), "seconds": self.seconds}


@dataclasses.dataclass(frozen=True)
class FunctionCall:
    """A call of a user's function whose result is recorded; an effect.

    Attributes:
      name: digest of the function, its arguments and its seed.
      role: the component that calls it.
      perform: calls the function and returns its fields.
    """

    name: str
    role: str
    perform: Callable[[], Awaitable[Mapping[str, Any]]]
    kind = "function"
    model = ""

    @property
    def key(self) -> str:
        return digest(self.kind, self.name)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "component": self.role}

    def most(self) -> Usage:
        return Usage(calls=1)

    def read(self, data: Mapping[str, Any]) -> Returned:
        """The result in recorded data; raises ``TypeError`` or ``ValueError`` for other data."""
        check_record(data, {"outputs": dict, "seconds": float})
        return Returned(**data)


class Completer(Protocol):
    """Answers completion requests.

    A completer that can count the tokens of a prompt also has ``prompt_tokens(request) -> int | None``
    (``count_prompt``), and a completer that executes programs also has ``execute`` (``llm.sandbox.SandboxCompleter``).
    """

    async def complete(self, request: CompletionRequest) -> Completion:
        """Answers one request. Faults of the model are outcomes; faults of the caller raise."""
        ...


def count_prompt(completer: Any, request: CompletionRequest) -> int | None:
    """Exact number of tokens of a request's prompt; None where the completer does not know it."""
    count = getattr(completer, "prompt_tokens", None)
    return None if count is None else count(request)
