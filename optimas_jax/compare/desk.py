"""The desk that a peer comes to: it runs components, answers completions and scores outputs, and keeps the books.

A peer is another program in another environment. It brings nothing but its search: what it reads of the task, every
component call, every completion and every score comes from here, over HTTP on this machine alone. So a peer runs the
same system as ours (components, retriever, rendering of prompts, sampling, metric), on the same model and data, and
what it finds is a configuration of that system.

    GET  /task                                                        components, examples of train and val, limits
    POST /component  {name, inputs, value, example[, temperature, attempt]}   {outputs}, or {failed}
    POST /complete   {messages, max_tokens, temperature}              {text, prompt_tokens, completion_tokens}
    POST /score      {values, example, outputs}                               {score}

``values`` are prompts by component, as ``core.values`` writes them; what a peer cannot tune keeps its default. Status
402 says that the budget is used; 400 that a request cannot be answered, and why. A peer's own question that is asked
again is sampled anew, the n-th time alike in every repetition of the run.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from optimas_jax.compare.books import Books
from optimas_jax.core.system import System
from optimas_jax.core.types import Example, Outcome, derive_seed, freeze, thaw
from optimas_jax.core.values import Configuration, PromptSpace, value_from_json
from optimas_jax.llm.base import CompletionRequest, Message
from optimas_jax.llm.component import LanguageModel

OWN_TOKENS = 256  # of an answer to a peer's own prompts, at least: they ask for reasons and marks around the answer
_MOST_BYTES = 1 << 24


class Desk:
    """What the handlers of requests share. Safe for use from several threads.

    Attributes:
      books: what the peer did.
      spent: set when the budget is used.
    """

    def __init__(
        self,
        system: System,
        books: Books,
        proposer: LanguageModel,
        splits: Mapping[str, Sequence[Example]],
        seed: int,
    ):
        """``system`` has its requests going to ``books.completer``."""
        self.books, self.spent = books, threading.Event()
        self._system, self._proposer, self._seed = system, proposer, seed
        self._splits = {split: tuple(splits[split]) for split in ("train", "val")}  # never the test split
        self._examples = {example.id: example for examples in self._splits.values() for example in examples}
        self._default = system.default_configuration()
        self._asked: collections.Counter[str] = collections.Counter()

    async def answer(self, path: str, body: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
        """Status and answer of one request."""
        if path == "/task":
            return 200, self.task()
        if path == "/score":
            return 200, {"score": await self._score(body)}
        if not self.books.admit():
            self.spent.set()
            return 402, {"error": "the budget is used"}
        if path == "/component":
            return 200, await self._component(body)
        if path == "/complete":
            return 200, await self._complete(body)
        return 404, {"error": f"no {path} here"}

    def task(self) -> dict[str, Any]:
        """What a peer is told of its task."""
        components = []
        for name in self._system.order:
            component = self._system.by_name[name]
            made: dict[str, Any] = {
                "name": name,
                "description": component.description,
                "inputs": list(component.inputs),
                "outputs": list(component.outputs),
            }
            if isinstance(component.space, PromptSpace):
                prompt = component.default
                made |= {"instruction": getattr(prompt, "instruction", ""), "max_demos": component.space.max_demos}
                made["max_instruction_chars"] = component.space.max_instruction_chars
            components.append(made)
        return {
            "components": components,
            "input_fields": list(self._system.input_fields),
            "output_fields": list(self._system.output_fields),
            "seed": self._seed,
            "max_tokens": max(OWN_TOKENS, self._proposer.max_tokens),
            "budget": self.books.budget,
            "tokens": self.books.cost.tokens,
            "splits": {
                split: [{"id": one.id, "inputs": thaw(one.inputs), "gold": thaw(one.gold)} for one in examples]
                for split, examples in self._splits.items()
            },
        }

    def _configuration(self, values: Mapping[str, Any]) -> Configuration:
        configuration = Configuration({**self._default, **{name: value_from_json(v) for name, v in values.items()}})
        self._system.check(configuration)
        return configuration

    async def _component(self, body: Mapping[str, Any]) -> dict[str, Any]:
        name = body["name"]
        value = value_from_json(body["value"]) if body.get("value") else self._default.get(name)
        attempt = body.get("attempt") or 0
        seed = derive_seed(self._seed, "attempt", attempt) if attempt else self._seed
        step = await self._system.run_component(
            name, body["inputs"], value, self._examples[body["example"]], seed, body.get("temperature")
        )
        return {"outputs": thaw(step.outputs)} if step.outcome is Outcome.OK else {"failed": str(step.outcome)}

    async def _complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        request = CompletionRequest(
            model=self._proposer.model,
            messages=tuple(Message(turn["role"], turn["content"]) for turn in body["messages"]),
            max_tokens=int(body["max_tokens"]),
            temperature=float(body["temperature"]),
            role="peer",
        )
        self._asked[request.key] += 1
        request = dataclasses.replace(request, seed=derive_seed(self._seed, "peer", self._asked[request.key]))
        made = await self.books.completer.complete(request)
        text = made.text if made.outcome in (Outcome.OK, Outcome.TRUNCATED) else ""
        return {"text": text, "prompt_tokens": made.prompt_tokens, "completion_tokens": made.completion_tokens}

    async def _score(self, body: Mapping[str, Any]) -> float:
        example = self._examples[body["example"]]
        outputs = body["outputs"]
        whole = all(field in outputs for field in self._system.output_fields)
        score = self._system.failure_score
        if whole:
            score = await self._system.score(freeze(outputs), example, self._seed)
        self.books.scored(self._configuration(body["values"]), example.id, score)
        return score


@contextmanager
def open_desk(desk: Desk) -> Iterator[str]:
    """Serves on a free port of this machine; yields the address. Requests are answered side by side, in one event loop:
    equal completions in flight are asked once."""
    loop = asyncio.new_event_loop()
    worker = threading.Thread(target=loop.run_forever, name="desk")
    worker.start()
    server = _Server(("127.0.0.1", 0), _handler(desk, loop))
    listener = threading.Thread(target=server.serve_forever, name="desk-http")
    listener.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        listener.join()
        asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        worker.join()
        loop.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


async def _cancel_all() -> None:
    """Ends what nobody waits for any more."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _handler(desk: Desk, loop: asyncio.AbstractEventLoop) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._respond({})

        def do_POST(self) -> None:
            try:
                body = json.loads(self.rfile.read(min(int(self.headers.get("content-length", 0)), _MOST_BYTES)))
            except ValueError as error:
                return self._send(400, {"error": f"the body is not JSON ({error})"})
            return self._respond(body)

        def _respond(self, body: Any) -> None:
            try:
                task = asyncio.run_coroutine_threadsafe(desk.answer(self.path, body), loop)
                status, answer = task.result()
            except Exception as error:  # whatever is wrong with this request, the peer hears it and others go on
                status, answer = 400, {"error": f"{type(error).__name__}: {error}"}
            self._send(status, answer)

        def _send(self, status: int, answer: Mapping[str, Any]) -> None:
            data = json.dumps(answer).encode()
            try:
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except ConnectionError:
                pass  # the peer has ended

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
