"""The bridge to the device wing: concurrent completion requests share the JAX engine's batch.

Requests from any thread or event loop go into one queue; one worker thread lets them join the running batch as rows
become free (``engine.batching``), and hands each answer back when it is done. What a request gets does not depend on
what shares its batch, so concurrency changes speed and nothing else.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optimas_jax.core.types import Outcome, StopRun
from optimas_jax.llm.base import Completion, CompletionRequest, Message, Tokens

if TYPE_CHECKING:
    from optimas_jax.checkpoints.tokenizer import Tokenizer
    from optimas_jax.engine.batching import ContinuousBatch
    from optimas_jax.engine.decode_batch import RowRequest
    from optimas_jax.engine.sampler import Sample, Sampler, SampleRequest

_STREAM_TOKENS = 4  # tokens between two looks at the answers so far, while somebody listens
_ADAPTERS = 8  # loaded from the folder; the oldest goes first
_GATHER_SECONDS = 0.01  # how long the worker waits for one more request before it goes on


class EngineError(StopRun):
    """The local engine cannot answer."""


@dataclasses.dataclass(eq=False)
class _Entry:
    """A request on its way: what was asked, who waits for it, who listens to its text, and the engine's seconds that it
    took so far."""

    request: SampleRequest
    row: RowRequest
    future: concurrent.futures.Future[tuple[Sample, float]]
    on_text: Callable[[str], None] | None = None
    seconds: float = 0.0


class LocalCompleter:
    """Answers completion requests with a local model.

    The model is loaded at the first request, not before: a run that finds everything on its tape never loads it.
    """

    def __init__(self, model: str, load: Callable[[], Sampler], adapters: Path | None = None):
        """``load`` builds the engine for ``model``; requests for any other model are refused. ``adapters`` is the
        folder whose adapters (``checkpoints.peft``) requests may name."""
        self._model, self._load, self._adapters = model, load, adapters
        self._sampler: Sampler | None = None
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()  # None: stop
        self._lock = threading.Lock()
        self._worker: threading.Thread | None = None

    def sampler(self) -> Sampler:
        """The engine, loaded if it is not yet."""
        with self._lock:
            if self._sampler is None:
                self._sampler = self._load()
            return self._sampler

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt."""
        return len(_encode(self.sampler().tokenizer, messages))

    def _load_adapter(self, sampler: Sampler, name: str) -> None:
        """Raises ``ValueError`` if there is none of that name, or none that can be read."""
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

    async def complete(self, request: CompletionRequest, on_text: Callable[[str], None] | None = None) -> Completion:
        """Answers one request.

        Args:
          on_text: is told the answer so far, again and again, from another thread.

        Raises:
          EngineError: for another model, an adapter that cannot be read, a prompt that does not fit the context, or a
            failure of the engine.
        """
        from optimas_jax.engine.sampler import SampleRequest

        if request.model != self._model:
            raise EngineError(f"this engine serves {self._model!r}, not {request.model!r}")
        sampler = await asyncio.to_thread(self.sampler)
        sample_request = SampleRequest(
            prompt_ids=tuple(_encode(sampler.tokenizer, request.messages)),
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            stop=request.stop,
            adapter=request.adapter,
        )
        try:
            if request.adapter and request.adapter not in sampler.adapters.names:
                await asyncio.to_thread(self._load_adapter, sampler, request.adapter)
            sampler.check(sample_request)
        except ValueError as error:
            raise EngineError(str(error)) from error
        future: concurrent.futures.Future[tuple[Sample, float]] = concurrent.futures.Future()
        self._queue.put(_Entry(sample_request, sampler.row_request(sample_request), future, on_text))
        self._start_worker()
        sample, seconds = await asyncio.wrap_future(future)
        return Completion(
            text=sample.text,
            outcome=Outcome.OK if sample.finish == "stop" else Outcome.TRUNCATED,
            prompt_tokens=len(sample_request.prompt_ids),
            completion_tokens=len(sample.ids),
            seconds=seconds,
            tokens=Tokens(sample_request.prompt_ids, sample.ids, sample.logprobs) if request.tokens else None,
        )

    def _start_worker(self) -> None:
        with self._lock:
            if self._worker is None or not self._worker.is_alive():
                self._worker = threading.Thread(target=self._serve, name="local-engine", daemon=True)
                self._worker.start()
                atexit.register(self.close)

    def close(self) -> None:
        """Ends the worker when the requests in flight are done; what still waits gets no answer.

        Called when the process exits, however it does: a thread inside XLA must not outlive the interpreter.
        """
        worker = self._worker
        if worker is not None and worker.is_alive():
            self._queue.put(None)
            worker.join()

    def _serve(self) -> None:
        """Serves requests until it is told to stop; an idle worker sleeps in ``queue.get``."""
        batch: ContinuousBatch[_Entry] = self.sampler().batch()
        waiting: list[_Entry] = []
        stopping = False
        while not stopping or batch.active:
            stopping = stopping or not self._gather(waiting, idle=not (waiting or batch.active))
            waiting = [entry for entry in waiting if not entry.future.cancelled() and not stopping]
            waiting = self._advance(batch, waiting)

    def _gather(self, waiting: list[_Entry], *, idle: bool) -> bool:
        """Adds what has come in, and waits for the first entry if ``idle``; False means stop."""
        if idle:
            self.sampler().rest()
        while True:
            try:
                entry = self._queue.get(timeout=None if idle else _GATHER_SECONDS)
            except queue.Empty:
                return True
            if entry is None:
                return False
            waiting.append(entry)
            idle = False

    def _advance(self, batch: ContinuousBatch[_Entry], waiting: list[_Entry]) -> list[_Entry]:
        """Lets requests in, decodes for a while, and answers what is done; returns what still waits."""
        started = time.perf_counter()
        flying = batch.active
        try:
            batch.admit([(entry, entry.row) for entry in waiting])
            flying = batch.active
            listening = any(entry.on_text for entry in flying)
            made = batch.step(_STREAM_TOKENS) if listening else batch.step()
            finished = [(entry, self.sampler().sample(entry.request, *one)) for entry, *one in made]
            for entry, tokens in batch.partial() if listening else ():
                if entry.on_text:
                    entry.on_text(self.sampler().text(tokens.tolist()))
        except Exception as error:
            # Whoever is in the batch or was a moment ago; if nobody could even be let in, whoever waits.
            flying = list({*flying, *batch.active}) or waiting
            for entry in flying:
                if entry.future.set_running_or_notify_cancel():
                    failure = EngineError(f"the local engine failed ({type(error).__name__}: {error})")
                    failure.__cause__ = error
                    entry.future.set_exception(failure)  # one each: callers add notes to it
            batch.clear()
        else:
            share = (time.perf_counter() - started) / max(len(flying), 1)
            for entry in flying:
                entry.seconds += share
            for entry, sample in finished:
                if entry.future.set_running_or_notify_cancel():
                    entry.future.set_result((sample, entry.seconds))
        return [entry for entry in waiting if entry not in flying]


def _encode(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    if len(messages) == 1 and messages[0].role == "text":
        return tokenizer.encode(messages[0].content)
    return tokenizer.encode_chat([{"role": message.role, "content": message.content} for message in messages])
