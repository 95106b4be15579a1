"""What a completion is, and what answers one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from optimas_jax.core.types import Outcome, digest


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn: ``role`` is system, user or assistant; or ``text``, alone: a plain text to continue."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class CompletionRequest:
    """Everything that affects an answer, and who asks.

    Attributes:
      model: a model spec (``checkpoints.weights``) or a provider's model name.
      messages: the conversation to answer.
      max_tokens: most tokens of the answer.
      temperature: 0 asks for the most likely answer.
      top_p: nucleus mass.
      stop: texts that end the answer once it has begun.
      seed: names the random stream; left out of the key at temperature 0, where it changes nothing.
      role: who asks (a component's name, ``proposer``): for the ledger, not part of the key.
      adapter: digest of the LoRA weights that answer, "" for the model itself.
      tokens: whether the answer is wanted in tokens, too (``Completion.tokens``).
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

    @property
    def key(self) -> str:
        """Content address: equal requests have equal keys."""
        return digest(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The part that affects the answer, as plain data."""
        return {
            **({"adapter": self.adapter} if self.adapter else {}),
            **({"tokens": True} if self.tokens else {}),
            "model": self.model,
            "messages": [[message.role, message.content] for message in self.messages],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stop": list(self.stop),
            "seed": self.seed if self.temperature > 0 else None,
        }


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A request and its answer as the model read and wrote them.

    Attributes:
      prompt_ids: the whole prompt.
      ids: the answer, the token that ended it included.
      logprobs: of each token of the answer, at temperature 1.
    """

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Completion:
    """One answer of a language model.

    Attributes:
      text: the answer; empty if ``outcome`` says that there is none.
      outcome: ok, truncated (the token limit came first), refused, timeout or rate_limited.
      prompt_tokens, completion_tokens: as the model counted them.
      seconds: from request to answer; for a batch, this request's share.
      usd: price, 0 for local models.
      tokens: where the request asked for them.
    """

    text: str
    outcome: Outcome
    prompt_tokens: int
    completion_tokens: int
    seconds: float = 0.0
    usd: float = 0.0
    tokens: Tokens | None = None

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "outcome": str(self.outcome)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Completion:
        tokens = data.get("tokens")
        read = None if tokens is None else Tokens(**{name: tuple(part) for name, part in tokens.items()})
        return cls(**{**data, "outcome": Outcome(data["outcome"]), "tokens": read})


class Completer(Protocol):
    """Anything that answers completion requests."""

    async def complete(self, request: CompletionRequest) -> Completion:
        """Answers one request. What the model does wrong is an outcome; what the caller does wrong raises."""
        ...
