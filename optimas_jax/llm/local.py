"""Completions of local models: concurrent requests share the batch of the JAX engine.

Requests from any thread or event loop go into one queue; one worker thread lets them join the running batch as rows
become free (``engine.batching``), and hands each answer back when it is done. On CPU and in float32 an answer does not
depend on the other requests of its batch: concurrency changes speed alone.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optimas_jax.core.types import Outcome, StopRun, thaw
from optimas_jax.llm.base import Completion, CompletionRequest, Message, Tokens
from optimas_jax.llm.forms.schemas import told

if TYPE_CHECKING:
    from optimas_jax.checkpoints.tokenizer import Tokenizer
    from optimas_jax.engine.batching import ContinuousBatch
    from optimas_jax.engine.decode_batch import RowRequest
    from optimas_jax.engine.sampler import Sample, Sampler, SampleRequest
    from optimas_jax.engine.shared import SharedBatch

STEP_TOKENS = 16  # tokens between two updates of the batch, in which requests join and leave it
_STREAM_TOKENS = 4  # the same while a request has a callback for the answer so far
_LONG = 8192  # characters: longer prompts are tokenised in a thread, since they take some milliseconds
_ADAPTERS = 8  # most adapters loaded from the folder; the oldest is unloaded first
_GATHER_SECONDS = 0.01  # how long the worker waits for one more request before it goes on
_GATHER_MOST_SECONDS = (
    10 * _GATHER_SECONDS
)  # how long for all further ones: a steady trickle must not hold up the batch


class EngineError(StopRun):
    """The local engine cannot answer."""


class Refused(EngineError):
    """A request that the local engine does not take: its prompt, its adapter, its schema or its model."""


@dataclasses.dataclass(eq=False)
class _Entry:
    """A request that is queued or in the batch.

    Attributes:
      request, row: the request, in the forms of the sampler and of its batch.
      future: gets the answer and its share of the engine's seconds.
      on_text: callback for the answer so far.
      seconds: of the engine, so far.
    """

    request: SampleRequest
    row: RowRequest
    future: concurrent.futures.Future[tuple[Sample, float]]
    on_text: Callable[[str], None] | None = None
    seconds: float = 0.0

    def fail(self, error: BaseException) -> None:
        """Ends the request with an error: an ``EngineError`` of its own, since callers add notes to it."""
        if self.future.done() or not self.future.set_running_or_notify_cancel():
            return
        failure = EngineError(f"the local engine failed ({type(error).__name__}: {error})")
        failure.__cause__ = error
        self.future.set_exception(failure)

    def finish(self, sample: Sample) -> None:
        """Ends the request with its answer."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_result((sample, self.seconds))

    def show(self, text: str) -> None:
        """Hands the answer so far to ``on_text``; an error of the callback ends this request and no other."""
        try:
            if self.on_text is not None and not self.future.done():
                self.on_text(text)
        except Exception as error:
            self.fail(error)


class LocalCompleter:
    """Answers completion requests with a local model.

    The model is loaded at the first request, not before: a run that finds everything on its tape never loads it. If a
    budget needs the length of a prompt, only the tokenizer is loaded.
    """

    def __init__(self, model: str, load: Callable[[], Sampler], adapters: Path | None = None):
        """``load`` builds the engine for ``model``; requests for any other model are refused. ``adapters`` is the
        folder whose adapters (``checkpoints.peft``) requests may name."""
        self._model, self._load, self._adapters = model, load, adapters
        self._sampler: Sampler | None = None
        # None: stop. No SimpleQueue: in CPython 3.11 its get(timeout) waits without end if its thread is preempted past
        # the deadline between two readings of the clock.
        self._queue: queue.Queue[_Entry | None] = queue.Queue()
        self._lock = threading.Lock()  # of the sampler
        self._worker_lock = threading.Lock()  # of the worker, and of the queue's end
        self._worker: threading.Thread | None = None
        self._flying = 0
        # Joined at the end of the process: a thread inside XLA must not outlive the interpreter.
        self._loading = concurrent.futures.ThreadPoolExecutor(1, "local-engine-loading")

    @property
    def in_flight(self) -> int:
        """Number of requests in the batch, at its last step."""
        return self._flying

    def sampler(self) -> Sampler:
        """The engine, loaded at the first call."""
        if self._sampler is not None:  # without the lock, which may be held for long
            return self._sampler
        with self._lock:
            if self._sampler is None:
                self._sampler = self._load()
            return self._sampler

    async def encode(self, request: CompletionRequest) -> tuple[int, ...]:
        """The tokens of a request's prompt; a long prompt does not hold up the event loop.

        Raises:
          Refused: for images, and for messages that the chat template does not take.
        """
        sampler = await asyncio.get_running_loop().run_in_executor(self._loading, self.sampler)
        long = sum(len(message.content) for message in request.messages) > _LONG
        encode = functools.partial(_prompt_ids, sampler.tokenizer, request)
        return tuple(await asyncio.to_thread(encode) if long else encode())

    def prompt_tokens(self, request: CompletionRequest) -> int | None:
        """Number of tokens of a request's prompt; None for a model that is not loaded and cannot be found, which a run
        whose requests are all on its tape does not need. Raises ``Refused`` for images."""
        tokenizer = self._tokenizer if self._sampler is None else self._sampler.tokenizer
        return None if tokenizer is None else len(_prompt_ids(tokenizer, request))

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer | None:
        from optimas_jax.checkpoints.sources import WeightsError, resolve
        from optimas_jax.checkpoints.tokenizer import load_tokenizer

        try:
            return load_tokenizer(resolve(self._model))
        except WeightsError:
            return None

    def _load_adapter(self, sampler: Sampler, name: str) -> None:
        """Loads an adapter from the folder; raises ``ValueError`` if it is missing or cannot be read."""
        from optimas_jax.checkpoints.peft import read_adapter

        if self._adapters is None:
            raise ValueError(f"a request names the adapter {name!r}, and this engine has no folder of adapters")
        with self._lock:  # requests come together, and one adapter must not become several
            if name in sampler.adapters.names:
                return
            config, params = read_adapter(self._adapters / name, sampler.network.config)
            sampler.adapters.load(name, config, params)
            for oldest in sampler.adapters.names[:-_ADAPTERS]:
                sampler.adapters.unload(oldest)

    def _row_request(self, sampler: Sampler, request: SampleRequest) -> RowRequest:
        """The request in the form of the batch; raises ``ValueError`` for a schema that the answer cannot keep to."""
        try:
            with self._lock:  # one schema is compiled once
                return sampler.row_request(request)
        except RecursionError:
            raise ValueError("the schema is nested too deep") from None

    async def complete(
        self,
        request: CompletionRequest,
        on_text: Callable[[str], None] | None = None,
        prompt_ids: tuple[int, ...] | None = None,
    ) -> Completion:
        """Answers one request. A cancelled request leaves the batch at its next step.

        Args:
          on_text: streaming callback with the text so far, the white space before the answer included; called from the
            engine's thread. The end of a text is held back while a stop text may begin there.
          prompt_ids: from ``encode``, if it was called.

        Raises:
          Refused: for another model, an adapter that cannot be read, a prompt that does not fit the context, or a
            schema that cannot be kept to within ``max_tokens``.
          EngineError: for a failure of the engine.
        """
        sample_request, row = await self.prepare(request, prompt_ids)
        future: concurrent.futures.Future[tuple[Sample, float]] = concurrent.futures.Future()
        self._submit(_Entry(sample_request, row, future, on_text))
        sample, seconds = await asyncio.wrap_future(future)
        return Completion(
            text=sample.text,
            outcome=Outcome.OK if sample.finish == "stop" else Outcome.TRUNCATED,
            prompt_tokens=len(sample_request.prompt_ids),
            completion_tokens=len(sample.ids),
            seconds=seconds,
            tokens=Tokens(sample_request.prompt_ids, sample.ids, sample.logprobs) if request.tokens else None,
        )

    async def prepare(
        self, request: CompletionRequest, prompt_ids: tuple[int, ...] | None = None
    ) -> tuple[SampleRequest, RowRequest]:
        """The request in the two forms that ``complete`` hands to the engine; raises ``Refused`` as it does."""
        from optimas_jax.engine.sampler import SampleRequest

        if request.model != self._model:
            raise Refused(f"this engine serves {self._model!r}, not {request.model!r}")
        loop = asyncio.get_running_loop()
        sampler = await loop.run_in_executor(self._loading, self.sampler)
        sample_request = SampleRequest(
            prompt_ids=await self.encode(request) if prompt_ids is None else prompt_ids,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            stop=request.stop,
            adapter=request.adapter,
            schema="" if request.schema is None else json.dumps(thaw(request.schema)),
        )
        try:
            if request.adapter and request.adapter not in sampler.adapters.names:
                await loop.run_in_executor(self._loading, self._load_adapter, sampler, request.adapter)
            sampler.check(sample_request)
            # A new schema is compiled, and a new stop text looked for in all tokens: both take a while.
            making = functools.partial(self._row_request, sampler, sample_request)
            slow = sample_request.schema or sample_request.stop
            row = await asyncio.to_thread(making) if slow else making()
        except ValueError as error:
            raise Refused(str(error)) from error
        return sample_request, row

    def _submit(self, entry: _Entry) -> None:
        """Queues a request, and starts a worker if none is alive."""
        with self._worker_lock:
            self._queue.put(entry)
            if self._worker is None or not self._worker.is_alive():
                self._worker = threading.Thread(target=self._serve, name="local-engine", daemon=True)
                self._worker.start()
                atexit.register(self.close)

    def close(self) -> None:
        """Ends the worker when the requests in flight are done; requests that still wait fail.

        Registered with ``atexit``: a thread inside XLA must not outlive the interpreter.
        """
        atexit.unregister(self.close)  # would keep the model
        worker = self._worker
        if worker is not None and worker.is_alive():
            self._queue.put(None)
            worker.join()

    def _serve(self) -> None:
        """Serves requests until ``close``; an idle worker sleeps in ``queue.get``. Requests that are open when it ends
        fail."""
        pending: list[_Entry] = []  # waiting or in flight
        error: BaseException = StopRun("it was closed")
        try:
            batch: ContinuousBatch[_Entry] | SharedBatch[_Entry] = self.sampler().batch()
            stopping, has_answered, used = False, True, False
            while not stopping or batch.active:
                pending = _unanswered(pending)
                idle = not (pending or batch.active)
                if idle and used:
                    batch.clear()  # a cache for long answers may be large
                    used = False
                stopping = stopping or not self._gather(pending, idle=idle, more=has_answered)
                flying = set(batch.active)
                waiting = [] if stopping else [entry for entry in _unanswered(pending) if entry not in flying]
                has_answered, used = self._advance(batch, waiting), True
        except BaseException as fault:
            error = fault
        finally:
            self._flying = 0
            self._give_up(pending, error)

    def _give_up(self, entries: list[_Entry], error: BaseException) -> None:
        """Fails these requests and all that are queued; the next one gets a new worker."""
        with self._worker_lock:
            self._worker = None
            while not self._queue.empty():
                entries += [entry for entry in [self._queue.get()] if entry is not None]
        for entry in entries:
            entry.fail(error)

    def _gather(self, pending: list[_Entry], *, idle: bool, more: bool = True) -> bool:
        """Moves queued entries to ``pending``, and waits for the first one if ``idle``; returns False to stop.

        Args:
          more: whether to wait a little for further requests: callers that were just answered may ask again.
        """
        if idle:
            self._flying = 0
            self.sampler().rest()
        deadline = time.monotonic() + (_GATHER_MOST_SECONDS if more or idle else 0.0)
        while True:
            remaining = deadline - time.monotonic()  # once it is over, only what is queued already is taken
            try:
                entry = self._queue.get(timeout=None if idle else min(_GATHER_SECONDS, max(remaining, 0.0)))
            except queue.Empty:
                return True
            if entry is None:
                return False
            pending.append(entry)
            if idle:
                idle, deadline = False, time.monotonic() + _GATHER_MOST_SECONDS

    def _advance(self, batch: ContinuousBatch[_Entry] | SharedBatch[_Entry], waiting: list[_Entry]) -> bool:
        """Removes requests that were given up from the batch, admits waiting ones, decodes for a while, and answers the
        finished ones; returns whether any request ended."""
        started = time.perf_counter()
        flying = batch.active
        try:
            if given_up := [entry for entry in flying if entry.future.done()]:
                batch.drop(given_up)
            batch.admit([(entry, entry.row) for entry in waiting])
            flying = batch.active
            self._flying = len(flying)
            listening = any(entry.on_text for entry in flying)
            ended = batch.step(_STREAM_TOKENS if listening else STEP_TOKENS)
            sampler = self.sampler()
            samples = [(entry, sampler.sample(entry.request, tokens, logprobs)) for entry, tokens, logprobs in ended]
            parts = [
                (entry, sampler.text_so_far(entry.request, tokens))
                for entry, tokens in (batch.partial() if listening else ())
                if entry.on_text
            ]
        except Exception as error:
            # Requests in the batch now or before this step; all waiting ones if none was admitted.
            for entry in {*flying, *batch.active} or waiting:
                entry.fail(error)
            batch.clear()
            return True
        else:
            share = (time.perf_counter() - started) / max(len(flying), 1)
            for entry in flying:
                entry.seconds += share
            for entry, text in parts:
                entry.show(text)
            for entry, sample in samples:
                entry.finish(sample)
            return bool(samples)


def _unanswered(entries: Sequence[_Entry]) -> list[_Entry]:
    """The requests without an answer or an error."""
    return [entry for entry in entries if not entry.future.done()]


def _prompt_ids(tokenizer: Tokenizer, request: CompletionRequest) -> list[int]:
    """Tokens of the prompt; raises ``Refused`` for images, and for messages that the chat template does not take."""
    if any(message.images for message in request.messages):
        raise Refused(f"{request.model} reads no images: ask a provider's model that does (openai:, anthropic:)")
    if any(message.role == "tool" for message in request.messages) and tokenizer.knows_tools:
        with contextlib.suppress(ValueError):  # the template may want turns of tools in another form
            return _encode(tokenizer, told(request, results=True).messages)
    try:
        return _encode(tokenizer, told(request).messages)
    except ValueError as error:
        raise Refused(str(error)) from error


def _encode(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    if len(messages) == 1 and messages[0].role == "text":
        return tokenizer.encode(messages[0].content)
    return tokenizer.encode_chat([{"role": message.role, "content": message.content} for message in messages])
