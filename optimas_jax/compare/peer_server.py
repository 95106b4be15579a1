"""The HTTP server that a peer searches against: it runs components, answers completions, scores outputs and counts.

A peer is another program in another environment, which contributes only its search. The task, component calls,
completions and scores come from this server, over HTTP on this machine. A peer therefore runs the same system as our
own arms (components, retriever, rendering of prompts, sampling, metric) on the same model and data. Its result is a
configuration of that system.

    GET  /task                                                        components, examples of train and val, limits
    POST /component  {name, inputs, value, example[, temperature, attempt]}   {outputs}, or {failed}
    POST /complete   {messages, max_tokens, temperature}              {text, prompt_tokens, completion_tokens}
    POST /score      {values, example, outputs[, temperature, attempt]}       {score}
    POST /run        {values, example[, temperature, attempt]}                {outputs, score, feedback, calls}
    GET  /unseen                                                      examples of test and confirm, inputs alone
    POST /choose     {values, example}                                {}

A graph's components are called one by one and its outputs are scored; a program (``task["program"]``) is run whole.
Runs with a temperature of their own say nothing of a configuration's validation score. A peer that chooses prompts for
each input asks for the unseen inputs last, and names its choices; nothing is run on them before the peer has ended.
``values`` are prompts by component, as ``core.values`` writes them; components that a peer cannot tune keep their
defaults. Status 402: the request could exceed the budget; 400: it cannot be answered, with the reason. A repeated
``/complete`` is sampled anew, the n-th time alike in every repetition of the run.
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

from optimas_jax.compare.account import Account, BudgetUsed
from optimas_jax.core.system import System
from optimas_jax.core.types import Call, Example, Outcome, derive_seed, freeze, thaw
from optimas_jax.core.values import Configuration, PromptSpace, value_from_json
from optimas_jax.llm.base import Completion, CompletionRequest, Message
from optimas_jax.llm.component import LanguageModel
from optimas_jax.llm.sandbox import Execution, ExecutionRequest

ANSWER_TOKENS = 256  # smallest limit of an answer to /complete: peers ask for reasons and marks around the answer
SHOWN = ("train", "val")  # splits of which a peer sees the rows
_MOST_BYTES = 1 << 24


class PeerServer:
    """The requests of one peer. Safe for use from several threads.

    Attributes:
      account: counts tokens and knows the best configuration.
      spent: set when a request was refused for the budget.
      chosen: id of an unseen example -> values that the peer chose for it.
    """

    def __init__(
        self,
        system: System,
        account: Account,
        proposer: LanguageModel,
        splits: Mapping[str, Sequence[Example]],
        seed: int,
    ):
        """``splits``: ``train`` and ``val`` are shown to the peer; of others its inputs, once it asks for them."""
        self.account, self.spent = account, threading.Event()
        # A run that a peer's prompt makes fail counts in the score of that prompt.
        self._system = dataclasses.replace(system, completer=account, watch=None)
        self._proposer, self._seed = proposer, seed
        self._splits = {split: tuple(splits[split]) for split in SHOWN}
        self._examples = {example.id: example for examples in self._splits.values() for example in examples}
        self._unseen = {row.id: row.inputs for split in splits if split not in SHOWN for row in splits[split]}
        self.chosen: dict[str, Mapping[str, Any]] = {}
        self._default = system.default_configuration()
        self._repeats: collections.Counter[str] = collections.Counter()  # of requests to /complete, by key

    async def answer(self, path: str, body: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
        """Status and answer of one request."""
        try:
            match path:
                case "/task":
                    return 200, self.task()
                case "/component":
                    return 200, await self._component(body)
                case "/complete":
                    return 200, await self._complete(body)
                case "/score":
                    return 200, {"score": await self._score(body)}
                case "/run":
                    return 200, await self._run(body)
                case "/unseen":
                    return 200, {"examples": [{"id": id, "inputs": thaw(row)} for id, row in self._unseen.items()]}
                case "/choose":
                    self._choose(body)
                    return 200, {}
        except BudgetUsed as error:
            self.spent.set()
            return 402, {"error": str(error)}
        return 404, {"error": f"no {path} here"}

    def task(self) -> dict[str, Any]:
        """The task as JSON: components, splits without test, and limits."""
        components = []
        for name in self._system.order:
            component = self._system.by_name[name]
            description: dict[str, Any] = {
                "name": name,
                "description": component.description,
                "inputs": list(component.inputs),
                "outputs": list(component.outputs),
            }
            if isinstance(component.space, PromptSpace):
                prompt = component.default
                description["instruction"] = getattr(prompt, "instruction", "")
                description["max_demos"] = component.space.max_demos
                description["max_instruction_chars"] = component.space.max_instruction_chars
            components.append(description)
        return {
            "program": self._system.program is not None,
            "components": components,
            "input_fields": list(self._system.input_fields),
            "output_fields": list(self._system.output_fields),
            "seed": self._seed,
            "max_tokens": max(ANSWER_TOKENS, self._proposer.max_tokens),
            "budget": self.account.budget,
            "tokens": self.account.cost.tokens,
            "splits": {
                split: [{"id": row.id, "inputs": thaw(row.inputs), "gold": thaw(row.gold)} for row in examples]
                for split, examples in self._splits.items()
            },
        }

    def _configuration(self, values: Mapping[str, Any]) -> Configuration:
        return read_configuration(self._system, values)

    def _choose(self, body: Mapping[str, Any]) -> None:
        if body["example"] not in self._unseen:
            raise KeyError(body["example"])
        self._configuration(body["values"])
        self.chosen[body["example"]] = body["values"]

    async def _component(self, body: Mapping[str, Any]) -> dict[str, Any]:
        name = body["name"]
        value = value_from_json(body["value"]) if body.get("value") else self._default.get(name)
        call = await self._system.run_component(
            Call(name, freeze(body["inputs"]), {}),
            value,
            self._examples[body["example"]],
            self._seed_of(body),
            body.get("temperature"),
        )
        return {"outputs": thaw(call.outputs)} if call.outcome is Outcome.OK else {"failed": str(call.outcome)}

    def _seed_of(self, body: Mapping[str, Any]) -> int:
        """Seed of a run; each further attempt has a seed of its own."""
        attempt = body.get("attempt") or 0
        return derive_seed(self._seed, "attempt", attempt) if attempt else self._seed

    async def _run(self, body: Mapping[str, Any]) -> dict[str, Any]:
        configuration, example = self._configuration(body["values"]), self._examples[body["example"]]
        temperature = body.get("temperature")
        system = self._system
        if temperature is not None:
            system = system.using(_Hot(self.account, temperature))
        trace = await system.run(configuration, example, self._seed_of(body))
        self.account.add_score(configuration, example.id, trace.score, sampled=temperature is not None)
        calls = [
            {"name": call.component, "inputs": thaw(call.inputs), "outputs": thaw(call.outputs)} for call in trace.calls
        ]
        return {"outputs": thaw(trace.outputs), "score": trace.score, "feedback": trace.feedback, "calls": calls}

    async def _complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        request = CompletionRequest(
            model=self._proposer.model,
            messages=tuple(Message(turn["role"], turn["content"]) for turn in body["messages"]),
            max_tokens=int(body["max_tokens"]),
            temperature=float(body["temperature"]),
            role="peer",
        )
        self._repeats[request.key] += 1
        request = dataclasses.replace(request, seed=derive_seed(self._seed, "peer", self._repeats[request.key]))
        completion = await self.account.complete(request)
        return {
            "text": completion.text if completion.outcome in (Outcome.OK, Outcome.TRUNCATED) else "",
            "prompt_tokens": completion.prompt_tokens,
            "completion_tokens": completion.completion_tokens,
        }

    async def _score(self, body: Mapping[str, Any]) -> float:
        example = self._examples[body["example"]]
        outputs = body["outputs"]
        is_complete = all(field in outputs for field in self._system.output_fields)
        score = self._system.failure_score
        if is_complete:
            score = (await self._system.score(freeze(outputs), example, self._seed)).value
        sampled = body.get("temperature") is not None
        self.account.add_score(self._configuration(body["values"]), example.id, score, sampled=sampled)
        return score


def read_configuration(system: System, values: Mapping[str, Any]) -> Configuration:
    """Values of a peer, by component, as a configuration; other components keep their defaults.

    Raises:
      ValueError: for a value that a component does not allow.
    """
    chosen = {name: value_from_json(value) for name, value in values.items()}
    configuration = Configuration({**system.default_configuration(), **chosen})
    system.check(configuration)
    return configuration


@dataclasses.dataclass(frozen=True)
class _Hot:
    """A completer that samples at another temperature."""

    inner: Account
    temperature: float

    async def complete(self, request: CompletionRequest) -> Completion:
        return await self.inner.complete(dataclasses.replace(request, temperature=self.temperature))

    async def execute(self, request: ExecutionRequest) -> Execution:
        return await self.inner.execute(request)


@contextmanager
def serve(server: PeerServer) -> Iterator[str]:
    """Serves on a free port of this machine; yields the address. Requests are answered side by side, in one event loop:
    equal completions in flight are one request."""
    loop = asyncio.new_event_loop()
    worker = threading.Thread(target=loop.run_forever, name="peer-server")
    worker.start()
    http = _Http(("127.0.0.1", 0), _handler(server, loop))
    listener = threading.Thread(target=http.serve_forever, name="peer-server-http")
    listener.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}"
    finally:
        http.shutdown()
        http.server_close()
        listener.join()
        asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        worker.join()
        loop.close()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


async def _cancel_all() -> None:
    """Cancels the requests in flight."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _handler(server: PeerServer, loop: asyncio.AbstractEventLoop) -> type[BaseHTTPRequestHandler]:
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
                task = asyncio.run_coroutine_threadsafe(server.answer(self.path, body), loop)
                status, answer = task.result()
            except Exception as error:  # of this request alone: the peer reads it, and others are answered
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
