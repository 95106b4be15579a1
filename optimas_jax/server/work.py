"""The answers to one request of a client: all together, or as a stream of parts.

A client that disconnects cancels its requests. For a client that reads slowly, only the latest text of each answer is
kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from starlette.requests import ClientDisconnect, Request

from optimas_jax.core.types import valid_text
from optimas_jax.engine.sampler import Sampler
from optimas_jax.llm.base import Completion, CompletionRequest
from optimas_jax.llm.local import EngineError, LocalCompleter, Refused
from optimas_jax.server.answers import Piece, chunk_choice, last_choice, usage
from optimas_jax.server.protocol import RequestError


@dataclasses.dataclass(frozen=True)
class Answering:
    """The engine's requests for one request of a client.

    Attributes:
      completer: the engine.
      sampler: of the engine.
      requests: in the order of the choices.
      prompts: the tokens of their prompts.
      logprobs: whether answers are wanted with their log-probs.
    """

    completer: LocalCompleter
    sampler: Sampler
    requests: Sequence[CompletionRequest]
    prompts: Sequence[tuple[int, ...]]
    logprobs: bool

    async def check(self) -> None:
        """Raises ``RequestError`` for a request that the engine does not take."""
        for index, request in enumerate(self.requests):
            if index == 0 or self.prompts[index] is not self.prompts[index - 1]:
                with _as_request_error(request):
                    await self.completer.prepare(request, self.prompts[index])

    async def complete(self, index: int, on_text: Callable[[str], None] | None = None) -> Completion:
        """One answer, with the white space before it.

        Raises:
          RequestError: with status 400 for a request that the engine does not take, and 500 for failures of the engine.
        """
        request = self.requests[index]
        with _as_request_error(request):
            completion = await self.completer.complete(request, on_text, self.prompts[index])
        assert completion.tokens is not None
        space = self.sampler.space_before(completion.tokens.ids)
        return dataclasses.replace(completion, text=space + completion.text)

    def pieces(self, completion: Completion) -> list[Piece] | None:
        """The tokens of an answer, if log-probs are wanted."""
        if not self.logprobs or completion.tokens is None:
            return None
        tokenizer = self.sampler.tokenizer
        return [Piece(tokenizer.decode([token]), tokenizer.token_bytes(token)) for token in completion.tokens.ids]


@contextlib.contextmanager
def _as_request_error(request: CompletionRequest) -> Iterator[None]:
    """Raises errors of the engine as ``RequestError``."""
    try:
        yield
    except Refused as error:
        raise RequestError(400, str(error), None if request.schema is None else "response_format") from error
    except EngineError as error:
        raise RequestError(500, str(error)) from error


async def answer_all(work: Answering, request: Request) -> list[Completion]:
    """All answers to a request of a client.

    Raises:
      RequestError: one of the answers failed; the others are given up.
      ClientDisconnect: the client disconnected before.
    """
    async with _cancelled_together([work.complete(index) for index in range(len(work.requests))]) as tasks:
        answers = asyncio.gather(*tasks)
        answers.add_done_callback(lambda done: done.cancelled() or done.exception())  # marked as retrieved
        leaving = asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait([answers, leaving], return_when=asyncio.FIRST_COMPLETED)
            if not answers.done():
                answers.cancel()
                raise ClientDisconnect
            return list(await answers)
        finally:
            leaving.cancel()
            await asyncio.wait([leaving])


async def _left(request: Request) -> None:
    """Returns when the client has disconnected; the body of the request must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Latest:
    """Updates of several answers: keeps the latest text of each until it is taken."""

    def __init__(self) -> None:
        self._new: dict[int, str | Completion | RequestError] = {}
        self._event = asyncio.Event()

    def put(self, index: int, update: str | Completion | RequestError) -> None:
        self._new[index] = update
        self._event.set()

    async def take(self) -> list[tuple[int, str | Completion | RequestError]]:
        await self._event.wait()
        self._event.clear()
        new, self._new = self._new, {}
        return sorted(new.items(), key=lambda item: item[0])


async def stream(
    work: Answering, frame: dict[str, Any], *, chat: bool, answers: int, include_usage: bool
) -> AsyncIterator[str]:
    """Server-sent events: the new text of each answer, then its finish reason.

    Args:
      frame: fields of every event.
      answers: number of answers to each prompt.
    """
    loop, latest = asyncio.get_running_loop(), _Latest()
    sent = [""] * len(work.requests)
    completions: dict[int, Completion] = {}
    ended: set[int] = set()

    async def run(index: int) -> None:
        """Answers one prompt; its text is shown as it grows, and an error takes the place of its end."""

        def on_text(text: str) -> None:
            loop.call_soon_threadsafe(show, text)

        def show(text: str) -> None:
            if index not in ended:
                latest.put(index, valid_text(text))  # as the whole answer's text will be

        try:
            result: Completion | RequestError = await work.complete(index, on_text)
        except RequestError as error:
            result = error
        except Exception as error:  # otherwise the stream would never end
            result = RequestError(500, f"the server failed on this request ({type(error).__name__})")
        ended.add(index)
        latest.put(index, result)

    def event(*choices: dict[str, Any], **fields: Any) -> str:
        return f"data: {json.dumps({**frame, 'choices': choices, **fields})}\n\n"

    async with _cancelled_together([run(index) for index in range(len(work.requests))]):
        for index in range(len(work.requests)):
            if chat:
                yield event(chunk_choice(index, "", chat=chat, first=True))
        while len(completions) < len(work.requests):
            for index, update in await latest.take():
                if isinstance(update, RequestError):
                    yield f"data: {json.dumps(update.to_json())}\n\n"
                    return
                text = update.text if isinstance(update, Completion) else update
                new_text = text.removeprefix(sent[index])
                if new_text and text.startswith(sent[index]):
                    sent[index] = text
                    yield event(chunk_choice(index, new_text, chat=chat))
                if isinstance(update, Completion):
                    completions[index] = update
                    yield event(last_choice(update, index, work.pieces(update), chat=chat))
    if include_usage:
        yield event(usage=usage([completions[index] for index in sorted(completions)], answers))
    yield "data: [DONE]\n\n"


@contextlib.asynccontextmanager
async def _cancelled_together(calls: list[Any]) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Runs calls as tasks; cancels running ones at the end (the client has disconnected, or another call failed)."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
