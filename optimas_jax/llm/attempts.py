"""Attempts at a request: which faults are tried again, which fail one request, and which stop a run.

    attempt --> answer
       |
       +--> fault that may pass ------> wait, and attempt again (``Retries``)
       +--> fault that stays: does the server answer other requests?
                it has answered another request since ----> yes: this request failed, the run goes on
                it answers an earlier request once more --> yes
                it does not, or has never answered -------> no: the run stops

So one odd answer to one prompt never ends a run, and a server that is down never fills a tape with failures.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from optimas_jax.core.schema import NonNegativeFloat, PositiveInt
from optimas_jax.core.types import Outcome, StopRun
from optimas_jax.llm.base import Completer, Completion, CompletionRequest, count_prompt

R = TypeVar("R")

_CYCLES = 5  # rounds of attempts at a request that a rate limit refuses while others are answered
_PROBES = 3  # attempts at the last request that was answered
_MOST_ASKED = 300.0  # seconds that a server may ask to wait
_TOLD = 10.0  # seconds: shorter waits are not reported
_TELL_AGAIN = 30.0  # seconds between two reports of waiting


class ServerError(StopRun):
    """The server does not answer, or refuses what every request asks of it."""


@dataclasses.dataclass(frozen=True)
class Retries:
    """Exponential back-off with jitter.

    Attributes:
      attempts: largest number of attempts of a request, the first one included.
      first_wait: seconds before the second attempt. The wait doubles before every further attempt.
      longest_wait: longest wait, in seconds. If the server asks for a longer wait (Retry-After), up to five minutes are
        waited.
    """

    attempts: PositiveInt = 6
    first_wait: NonNegativeFloat = 1.0
    longest_wait: NonNegativeFloat = 60.0

    def wait(self, failures: int, retry_after: float, jitter: float) -> float:
        """Seconds before the next attempt.

        Args:
          failures: attempts so far.
          retry_after: what the server asked for (Retry-After); 0 if it did not.
          jitter: from 0 to 1; many clients must not come back at the same moment.
        """
        backoff = min(self.first_wait * 2 ** min(failures - 1, 30), self.longest_wait)
        return max(min(retry_after, _MOST_ASKED), backoff * (0.5 + 0.5 * jitter))


class Server:
    """State of a server as its answers show it. Safe for use from several threads.

    Attributes:
      retries: how a request to it is repeated.
    """

    def __init__(self, retries: Retries, say: Callable[[str], None] = lambda text: None):
        """``say``: callback for messages to the user."""
        self.retries, self._say = retries, say
        self._answered: dict[str, tuple[float, CompletionRequest]] = {}  # by model: time and request of its last answer
        self._told = -_TELL_AGAIN

    def note(self, request: CompletionRequest) -> None:
        """Notes that a request was answered."""
        self._answered[request.model] = time.monotonic(), request

    def last_answered(self, model: str) -> CompletionRequest | None:
        """The last request of a model that was answered."""
        return self._answered[model][1] if model in self._answered else None

    def answered_since(self, model: str, since: float) -> bool:
        """Whether a request of a model was answered after a moment of ``time.monotonic``."""
        return model in self._answered and self._answered[model][0] > since

    def tell_wait(self, fault: Fault, seconds: float) -> None:
        """Reports that a request waits, if the wait is long or the server has not answered yet, and none was reported
        lately."""
        if (seconds >= _TOLD or not self._answered) and time.monotonic() - self._told >= _TELL_AGAIN:
            self._told = time.monotonic()
            self._say(f"waiting {seconds:.0f} s: {fault}")


class Fault(Exception):
    """An attempt without an answer that can be used; the message is for the user.

    Attributes:
      server: the server that was asked.
      outcome: of the request, if the fault stays and concerns this request alone.
      passes: whether the same request may be answered later.
      reached: whether a model may have worked on the request, so that it may be billed.
      own: whether the fault certainly concerns this request alone, such as a prompt that is too long.
      retry_after: seconds that the server asks to wait; 0 if it does not.
    """

    def __init__(
        self,
        message: str,
        server: Server,
        *,
        outcome: Outcome = Outcome.REFUSED,
        passes: bool = False,
        reached: bool = False,
        own: bool = False,
        retry_after: float = 0.0,
    ):
        super().__init__(message)
        self.server, self.outcome, self.passes, self.reached, self.own = server, outcome, passes, reached, own
        self.retry_after = retry_after

    @property
    def failure(self) -> Completion:
        """A completion without text, to be recorded as the answer."""
        return Completion("", self.outcome, 0, 0, detail=str(self))


class Attempts:
    """Makes attempts until there is a result. Used from one event loop at a time."""

    def __init__(self, probe: Callable[[CompletionRequest], Awaitable[Any]]):
        """``probe``: sends once more a request that was answered before."""
        self._probe = probe
        self._probing: dict[str, asyncio.Task[bool]] = {}  # by model

    async def get(self, model: str, attempt: Callable[[], Awaitable[R]]) -> R:
        """The result of ``attempt``, a request to ``model``.

        Raises:
          Fault: the fault stays, and concerns this request alone.
          ServerError: other requests would meet the fault, too.
        """
        began = time.monotonic()
        failures = cycles = 0
        while True:
            latest = time.monotonic()
            try:
                return await attempt()
            except Fault as error:
                fault, failures = error, failures + 1
            retries = fault.server.retries
            limited = fault.outcome is Outcome.RATE_LIMITED and failures >= retries.attempts
            if limited and cycles < _CYCLES and fault.server.answered_since(model, began):  # it waits in a queue
                began, failures, cycles = time.monotonic(), 1, cycles + 1
            if not fault.passes or failures >= retries.attempts:
                concerns_request = fault.own and fault.server.last_answered(model) is not None
                if concerns_request or await self._others_are_answered(fault.server, model, latest):
                    raise fault
                raise ServerError(str(fault)) from None
            wait = retries.wait(failures, fault.retry_after, random.random())
            fault.server.tell_wait(fault, wait)
            await asyncio.sleep(wait)

    async def _others_are_answered(self, server: Server, model: str, since: float) -> bool:
        """Whether a server answers other requests than the one whose last attempt began at ``since``."""
        if server.answered_since(model, since):
            return True
        task = self._probing.get(model)
        if task is None:  # one probe for all requests that fail together
            task = self._probing[model] = asyncio.ensure_future(self._answers_again(server, model))
            task.add_done_callback(lambda done: self._probing.pop(model, None))
        await asyncio.wait([task])
        return not task.cancelled() and task.result()

    async def _answers_again(self, server: Server, model: str) -> bool:
        request = server.last_answered(model)
        if request is None:
            return False
        for failures in range(1, _PROBES + 1):
            try:
                await self._probe(request)
            except Fault as fault:
                if failures < _PROBES:
                    await asyncio.sleep(server.retries.wait(failures, fault.retry_after, random.random()))
            else:
                return True
        return False


class Persistent:
    """A completer that repeats attempts (``Attempts``), for callers without a tape (``llm.tapes.taped``)."""

    def __init__(self, inner: Completer):
        self._inner = inner
        self._attempts = Attempts(inner.complete)

    async def complete(self, request: CompletionRequest) -> Completion:
        try:
            return await self._attempts.get(request.model, lambda: self._inner.complete(request))
        except Fault as fault:
            return fault.failure

    def prompt_tokens(self, request: CompletionRequest) -> int | None:
        return count_prompt(self._inner, request)
