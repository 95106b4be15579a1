"""An OpenAI-compatible server over the local engine: chat and text completions, streaming, log-probs, adapters by name.

    GET  /health  /v1/models
    POST /v1/chat/completions  /v1/completions
    POST /v1/load_lora_adapter    {"lora_name": NAME, "lora_path": FOLDER[, "load_inplace": true]}, as vLLM has it
    POST /v1/unload_lora_adapter  {"lora_name": NAME}

Requests of all clients share the engine's batch, even for different adapters; the model's name chooses the adapter. A
request whose client disconnects is given up at the next step. Errors are JSON, in OpenAI's form.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from optimas_jax.checkpoints.peft import read_adapter
from optimas_jax.engine.sampler import Sampler
from optimas_jax.llm.base import CompletionRequest
from optimas_jax.llm.local import LocalCompleter, Refused
from optimas_jax.server.answers import choice, token_ids, usage
from optimas_jax.server.bodies import BodyError, read_object, refused
from optimas_jax.server.protocol import CompletionBody, RequestError, parse
from optimas_jax.server.system_app import left
from optimas_jax.server.work import Answering, answer_all, stream

DEFAULT_TOKENS = 512  # most tokens of an answer if the request gives no limit
_BODY = 2**20  # most bytes of a body, beside ``_BODY_PER_TOKEN``
_BODY_PER_TOKEN = 8  # further bytes of a body for each token of the context
_CHARACTERS_PER_TOKEN = 32  # prompts with more than this on average cannot fit, and are refused before tokenising
Handler = Callable[[Request], Awaitable[Response]]


def make_app(completer: LocalCompleter, model: str, name: str) -> Starlette:
    """The application of the server.

    Args:
      completer: the engine; loads its model at the first request.
      model: the spec that the engine serves.
      name: the model's name for clients.
    """
    server = _Server(completer, model, name)
    return Starlette(
        routes=[
            Route("/health", server.health),
            Route("/v1/models", server.models),
            Route("/v1/models/{name:path}", server.one_model),
            Route("/v1/chat/completions", server.chat, methods=["POST"]),
            Route("/v1/completions", server.text, methods=["POST"]),
            Route("/v1/load_lora_adapter", server.load_adapter, methods=["POST"]),
            Route("/v1/unload_lora_adapter", server.unload_adapter, methods=["POST"]),
        ],
        exception_handlers={
            RequestError: refused,
            BodyError: refused,
            HTTPException: refused,
            ClientDisconnect: left,
            Exception: _failed,
        },
    )


async def _failed(_: Request, error: Exception) -> Response:
    """The answer to an unexpected exception, whose message stays in the server's log."""
    message = f"the server failed on this request ({type(error).__name__}): its log has the reason"
    return JSONResponse(RequestError(500, message).to_json(), 500)


class _Server:
    """The handlers of the application's routes."""

    def __init__(self, completer: LocalCompleter, model: str, name: str):
        self._completer, self._model, self._name = completer, model, name
        self._started = int(time.time())

    async def health(self, _: Request) -> Response:
        return PlainTextResponse("")

    async def models(self, _: Request) -> Response:
        """The base and the loaded adapters, as OpenAI lists models."""
        sampler = await self._sampler()
        names = [self._name, *sampler.adapters.names]
        return JSONResponse({"object": "list", "data": [self._described(name, sampler) for name in names]})

    async def one_model(self, request: Request) -> Response:
        """One model of ``models``."""
        sampler, name = await self._sampler(), request.path_params["name"]
        self._adapter(name, sampler)
        return JSONResponse(self._described(name, sampler))

    def _described(self, name: str, sampler: Sampler) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "optimas_jax",
            "root": self._model,
            "parent": None if name == self._name else self._name,
            "max_model_len": sampler.network.config.max_positions,
        }

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, chat=True)

    async def text(self, request: Request) -> Response:
        return await self._answer(request, chat=False)

    async def load_adapter(self, request: Request) -> Response:
        """Loads an adapter from a folder on the server's machine."""
        body, sampler = await read_object(request, _BODY), await self._sampler()
        name, path = (_field(body, field) for field in ("lora_name", "lora_path"))
        if name == self._name:
            raise RequestError(400, f"{name!r} is the model itself: give the adapter another name", "lora_name")
        if name in sampler.adapters.names and body.get("load_inplace") is not True:
            message = f"{name!r} has already been loaded: unload it first, or say load_inplace: true"
            raise RequestError(400, message, "lora_name")
        try:
            adapter = await asyncio.to_thread(read_adapter, Path(path), sampler.network.config)
            await asyncio.to_thread(sampler.adapters.load, name, *adapter)
        except ValueError as error:
            raise RequestError(400, str(error), "lora_path") from error
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload_adapter(self, request: Request) -> Response:
        """Unloads an adapter; requests in flight finish with it."""
        name = _field(await read_object(request, _BODY), "lora_name")
        sampler = await self._sampler()
        try:
            await asyncio.to_thread(sampler.adapters.unload, name)
        except ValueError as error:
            raise RequestError(404, str(error), "lora_name") from error
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def _answer(self, request: Request, *, chat: bool) -> Response:
        sampler = await self._sampler()
        context = sampler.network.config.max_positions
        json_body = await read_object(request, _BODY + _BODY_PER_TOKEN * context)
        try:
            body = parse(json_body, chat=chat)
            requests, prompts = await self._requests(body, sampler, context)
        except RecursionError:
            raise RequestError(400, "the body is nested too deep") from None
        frame = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": body.model,
        }
        work = Answering(self._completer, sampler, requests, prompts, body.logprobs)
        if body.stream:
            await work.check()
            if chat:
                frame["object"] = "chat.completion.chunk"
            events = stream(work, frame, chat=chat, answers=body.n, include_usage=body.include_usage)
            return StreamingResponse(events, media_type="text/event-stream")
        completions = await answer_all(work, request)
        choices = []
        for index, completion in enumerate(completions):
            ids = token_ids(completion) if body.token_ids else {}
            choices.append({**choice(completion, index, work.pieces(completion), chat=chat), **ids})
        return JSONResponse({**frame, "choices": choices, "usage": usage(completions, body.n)})

    async def _requests(
        self, body: CompletionBody, sampler: Sampler, context: int
    ) -> tuple[list[CompletionRequest], list[tuple[int, ...]]]:
        """The engine's requests, and the tokens of their prompts."""
        adapter = self._adapter(body.model, sampler)
        seed = secrets.randbits(32) if body.seed is None else body.seed
        where = "messages" if body.prompts[0][0].role != "text" else "prompt"
        tokens, limits = [], []
        for number, request in enumerate(body.requests(self._model, adapter, [1] * len(body.prompts), seed)):
            if number % body.n:
                continue
            characters = sum(len(message.content) for message in request.messages)
            if characters > _CHARACTERS_PER_TOKEN * context:
                raise _too_long(context, f"{characters} characters", body.max_tokens, where)
            try:
                ids = await self._completer.encode(request)
            except Refused as error:
                raise RequestError(400, str(error), where) from error
            room = context - len(ids)
            limit = min(DEFAULT_TOKENS, room) if body.max_tokens is None else body.max_tokens
            if not ids:
                raise RequestError(400, f"{where} must have at least one token", where)
            if not 0 < limit <= room:
                raise _too_long(context, f"{len(ids)} tokens", limit, where)
            tokens.append(ids)
            limits.append(limit)
        requests = body.requests(self._model, adapter, limits, seed)
        return requests, [ids for ids in tokens for _ in range(body.n)]

    def _adapter(self, name: str, sampler: Sampler) -> str:
        """The adapter that a model's name chooses; "" for the base."""
        if name != self._name and name not in sampler.adapters.names:
            served = ", ".join([self._name, *sampler.adapters.names])
            raise RequestError(404, f"no model {name[:200]!r}; served are {served}", "model", "model_not_found")
        return "" if name == self._name else name

    async def _sampler(self) -> Sampler:
        return await asyncio.to_thread(self._completer.sampler)


def _too_long(context: int, prompt: str, more: int | None, where: str) -> RequestError:
    answer = "" if more is None else f", {more} tokens more are asked for"
    message = (
        f"the context is {context} tokens; the prompt has {prompt}{answer}: shorten the prompt or lower max_tokens"
    )
    return RequestError(400, message, where, "context_length_exceeded")


def _field(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value or not value.isprintable():
        raise RequestError(400, f"{name} must be a text, got {value!r:.200}", name)
    return value
