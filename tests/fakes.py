"""A language model that answers from a function, and counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from optimas_jax.core.types import Outcome
from optimas_jax.llm.base import Completion, CompletionRequest, Message


class ScriptedCompleter:
    """Answers with ``answer(request)``: a text, a completion, or an exception to raise."""

    def __init__(self, answer: Callable[[CompletionRequest], str | Completion | Exception], delay: float = 0.0):
        self._answer, self._delay = answer, delay
        self.requests: list[CompletionRequest] = []

    async def complete(self, request: CompletionRequest) -> Completion:
        self.requests.append(request)
        await asyncio.sleep(self._delay)
        answer = self._answer(request)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Completion):
            return answer
        most = request.most()
        turns = tuple(f"Message(role={turn.role!r}, content={turn.content!r})" for turn in request.messages)
        read = min(len(", ".join(turns)) + 3, most.prompt_tokens)  # as models do, no more than can be reserved
        return Completion(answer, Outcome.OK, read, min(len(answer), most.completion_tokens))


def request(text: str = "hello", **settings) -> CompletionRequest:
    fields = {"model": "m", "messages": (Message("user", text),), "max_tokens": 8, **settings}
    return CompletionRequest(**fields)
