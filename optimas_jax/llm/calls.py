"""Records of calls of language models, for trackers."""

from __future__ import annotations

from typing import Any

from optimas_jax.core.running.tracking import ModelCall
from optimas_jax.core.types import Outcome
from optimas_jax.llm.base import Completion, CompletionRequest, Message
from optimas_jax.llm.specs import KEYS


def call_of(
    request: CompletionRequest, result: Completion | BaseException, phase: str, began: float, ended: float
) -> ModelCall:
    """The record of a call, from its answer or its exception; ``began`` and ``ended`` are seconds since the epoch."""
    provider, _, name = request.model.partition(":")
    completion = result if isinstance(result, Completion) else Completion("", Outcome.CRASHED, 0, 0)
    return ModelCall(
        component=request.role,
        phase=phase,
        provider=provider if provider in KEYS else "",
        model=name if provider in KEYS else request.model,
        messages=tuple(map(_message, request.messages)),
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        stop=request.stop,
        seed=request.seed if request.temperature > 0 else None,
        json=request.schema is not None,
        answer=completion.text,
        outcome=str(result.outcome) if isinstance(result, Completion) else type(result).__name__,
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=completion.completion_tokens,
        usd=completion.usd,
        began=began,
        ended=ended,
    )


def _message(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.calls:
        turn["calls"] = [{"id": call.id, "name": call.name, "arguments": call.written} for call in message.calls]
    return turn | ({"call_id": message.call_id} if message.call_id else {})
