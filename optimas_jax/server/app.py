"""An OpenAI-compatible server over the local engine: chat and text completions, streaming, log-probs, adapters by name.

    GET  /health  /v1/models
    POST /v1/chat/completions  /v1/completions
    POST /v1/load_lora_adapter    {"lora_name": NAME, "lora_path": FOLDER[, "load_inplace": true]}, as vLLM has it
    POST /v1/unload_lora_adapter  {"lora_name": NAME}

Requests of all clients share the engine's batch, also those for different adapters; an adapter is named as the model.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from optimas_jax.checkpoints.peft import read_adapter
from optimas_jax.engine.constrain import SchemaError
from optimas_jax.llm.base import Completion, CompletionRequest
from optimas_jax.llm.local import EngineError, LocalCompleter
from optimas_jax.server.protocol import (
    CompletionBody,
    RequestError,
    choice,
    chunk_choice,
    last_choice,
    parse,
    token_ids,
    usage,
)

DEFAULT_TOKENS = 512  # most tokens of an answer where the request gives no limit
Handler = Callable[[Request], Awaitable[Response]]


def make_app(completer: LocalCompleter, model: str, name: str) -> Starlette:
    """The application.

    Args:
      completer: the engine; loads its model at the first request.
      model: the spec that the engine serves.
      name: the model's name for clients.
    """
    server = _Server(completer, model, name)
    return Starlette(
        routes=[
            Route("/health", server.health),
            Route("/v1/models", _guarded(server.models)),
            Route("/v1/chat/completions", _guarded(server.chat), methods=["POST"]),
            Route("/v1/completions", _guarded(server.text), methods=["POST"]),
            Route("/v1/load_lora_adapter", _guarded(server.load_adapter), methods=["POST"]),
            Route("/v1/unload_lora_adapter", _guarded(server.unload_adapter), methods=["POST"]),
        ]
    )


def _guarded(handler: Handler) -> Handler:
    async def guarded(request: Request) -> Response:
        try:
            return await handler(request)
        except RequestError as error:
            return JSONResponse(error.to_json(), error.status)

    return guarded


class _Server:
    """The handlers of the application's routes."""

    def __init__(self, completer: LocalCompleter, model: str, name: str):
        self._completer, self._model, self._name = completer, model, name
        self._started = int(time.time())

    async def health(self, _: Request) -> Response:
        return PlainTextResponse("")

    async def models(self, _: Request) -> Response:
        """The base and the loaded adapters, as OpenAI lists models."""
        sampler = await asyncio.to_thread(self._completer.sampler)
        names = [self._name, *sampler.adapters.names]
        described = [
            {
                "id": name,
                "object": "model",
                "created": self._started,
                "owned_by": "optimas_jax",
                "root": self._model,
                "parent": None if name == self._name else self._name,
                "max_model_len": sampler.network.config.max_positions,
            }
            for name in names
        ]
        return JSONResponse({"object": "list", "data": described})

    async def chat(self, request: Request) -> Response:
        return await self._answer(await _json(request), chat=True)

    async def text(self, request: Request) -> Response:
        return await self._answer(await _json(request), chat=False)

    async def load_adapter(self, request: Request) -> Response:
        """Loads an adapter from a folder on the server's machine."""
        body = await _json(request)
        name, path = (_field(body, field) for field in ("lora_name", "lora_path"))
        sampler = await asyncio.to_thread(self._completer.sampler)
        if name == self._name or (name in sampler.adapters.names and not body.get("load_inplace")):
            raise RequestError(400, f"{name!r} is served already: unload it first, or say load_inplace", "lora_name")
        try:
            read = await asyncio.to_thread(read_adapter, Path(path), sampler.network.config)
            sampler.adapters.load(name, *read)
        except ValueError as error:
            raise RequestError(400, str(error), "lora_path") from error
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload_adapter(self, request: Request) -> Response:
        """Unloads an adapter; requests in flight finish with it."""
        name = _field(await _json(request), "lora_name")
        sampler = await asyncio.to_thread(self._completer.sampler)
        try:
            sampler.adapters.unload(name)
        except ValueError as error:
            raise RequestError(404, str(error), "lora_name") from error
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def _answer(self, json_body: Any, *, chat: bool) -> Response:
        body = parse(json_body, chat=chat)
        sampler = await asyncio.to_thread(self._completer.sampler)
        adapter = "" if body.model == self._name else body.model
        if adapter and adapter not in sampler.adapters.names:
            known = ", ".join([self._name, *sampler.adapters.names])
            raise RequestError(404, f"no model {body.model!r}; served are {known}", "model", "model_not_found")
        limits = [self._limit(body, tokens) for tokens in map(self._completer.count_tokens, body.prompts)]
        seed = secrets.randbits(32) if body.seed is None else body.seed
        requests = body.requests(self._model, adapter, limits, seed)
        frame = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": body.model,
        }
        if body.stream:
            if chat:
                frame["object"] = "chat.completion.chunk"
            return StreamingResponse(self._stream(body, requests, frame, chat=chat), media_type="text/event-stream")
        async with _cancelled_together([self._complete(request) for request in requests]) as tasks:
            completions = await asyncio.gather(*tasks)
        choices = []
        for index, completion in enumerate(completions):
            ids = token_ids(completion) if body.token_ids else {}
            choices.append({**choice(completion, index, self._pieces(body, completion), chat=chat), **ids})
        return JSONResponse({**frame, "choices": choices, "usage": usage(completions)})

    def _limit(self, body: CompletionBody, prompt_tokens: int) -> int:
        """Most tokens of an answer to a prompt of that many tokens."""
        context = self._completer.sampler().network.config.max_positions
        room = context - prompt_tokens
        limit = min(DEFAULT_TOKENS, room) if body.max_tokens is None else body.max_tokens
        if not 0 < limit <= room:
            raise RequestError(
                400,
                f"the context is {context} tokens; the prompt has {prompt_tokens}, {limit} more are asked for: shorten "
                "the prompt or lower max_tokens",
                "messages",
                "context_length_exceeded",
            )
        return limit

    async def _complete(self, request: CompletionRequest, on_text: Callable[[str], None] | None = None) -> Completion:
        try:
            return await self._completer.complete(request, on_text)
        except EngineError as error:
            if isinstance(error.__cause__, SchemaError):
                raise RequestError(400, str(error), "response_format") from error
            raise RequestError(500, str(error)) from error

    def _pieces(self, body: CompletionBody, completion: Completion) -> list[str] | None:
        """The texts of an answer's tokens, if log-probs are wanted."""
        if not body.logprobs or completion.tokens is None:
            return None
        decode = self._completer.sampler().tokenizer.decode
        return [decode([token]) for token in completion.tokens.ids]

    async def _stream(
        self, body: CompletionBody, requests: list[CompletionRequest], frame: dict[str, Any], *, chat: bool
    ) -> AsyncIterator[str]:
        """Server-sent events: the new text of each answer, then its finish reason."""
        loop = asyncio.get_running_loop()
        updates: asyncio.Queue[tuple[int, str | Completion | RequestError]] = asyncio.Queue()

        async def run(index: int, request: CompletionRequest) -> None:
            def on_text(text: str) -> None:
                loop.call_soon_threadsafe(updates.put_nowait, (index, text))

            try:
                result: Completion | RequestError = await self._complete(request, on_text)
            except RequestError as error:
                result = error
            updates.put_nowait((index, result))

        sent = [""] * len(requests)
        completions: list[Completion] = []

        def event(*choices: dict[str, Any], **fields: Any) -> str:
            return f"data: {json.dumps({**frame, 'choices': choices, **fields})}\n\n"

        async with _cancelled_together([run(index, request) for index, request in enumerate(requests)]):
            for index in range(len(requests)):
                if chat:
                    yield event(chunk_choice(index, "", chat=chat, first=True))
            while len(completions) < len(requests):
                index, update = await updates.get()
                if isinstance(update, RequestError):
                    yield f"data: {json.dumps(update.to_json())}\n\n"
                    return
                text = update.text if isinstance(update, Completion) else update.removesuffix("\ufffd")
                new_text = text.removeprefix(sent[index])
                if new_text and text.startswith(sent[index]):
                    sent[index] = text
                    yield event(chunk_choice(index, new_text, chat=chat))
                if isinstance(update, Completion):
                    completions.append(update)
                    yield event(last_choice(update, index, self._pieces(body, update), chat=chat))
        if body.include_usage:
            yield event(usage=usage(completions))
        yield "data: [DONE]\n\n"


@contextlib.asynccontextmanager
async def _cancelled_together(calls: list[Any]) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Runs calls as tasks; cancels those that still run at the end (the client has left, or another call failed)."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()


async def _json(request: Request) -> Any:
    try:
        return await request.json()
    except ValueError as error:
        raise RequestError(400, f"the body is not JSON ({error})") from error


def _field(body: Any, name: str) -> str:
    if not isinstance(body, dict) or not isinstance(body.get(name), str) or not body[name]:
        raise RequestError(400, f"{name} must be a text", name)
    return body[name]
