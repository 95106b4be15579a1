"""A completer with a tape and a ledger: requests on the tape are not sent again, and count with their recorded cost."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from optimas_jax.core.running.tracking import ModelCall
from optimas_jax.core.types import StopRun
from optimas_jax.core.usage import Usage
from optimas_jax.llm.accounts.ledger import Ledger
from optimas_jax.llm.attempts import Attempts, Fault, ServerError
from optimas_jax.llm.base import (
    Completer,
    Completion,
    CompletionRequest,
    Effect,
    FunctionCall,
    Result,
    Returned,
    count_prompt,
)
from optimas_jax.llm.calls import call_of
from optimas_jax.llm.sandbox import Execution, ExecutionRequest
from optimas_jax.llm.specs import is_served
from optimas_jax.llm.tapes.tape import Tape

R = TypeVar("R", bound=Result)


class NotOnTape(StopRun):
    """A replay-only tape does not hold the result of a request."""


@dataclasses.dataclass(eq=False)
class _Flight:
    """A request in flight.

    Attributes:
      task: gets its result.
      waiting: number of callers that wait for the task.
    """

    task: asyncio.Task[Any]
    waiting: int = 0


class TapedCompleter:
    """Answers from the tape; asks ``inner`` only for results that are missing there, within the ledger's limits.

    Equal requests in flight share one task:

        caller 1 --+                on the tape: admit(true cost) ---------------------------> settle --> result
        caller 2 --+--> task of key
        caller 3 --+                missing:     admit(worst case) --> inner --> record  ----> settle --> result
                                                    ^                    |
                                                    +--- wait, again <---+ fault (``llm.attempts``)

    An attempt to reach a server is on disk before it is sent. Its worst case counts until its answer is recorded: it
    keeps counting if the attempt fails after the model may have worked, or if this process is killed.

    When the last caller is cancelled, the task is cancelled, too. If ``inner`` is working on the request by then,
    ``inner`` decides whether it can still be stopped: a result that it returns is recorded.

    With ``inner=None`` it only replays. Requests come from one event loop at a time.
    """

    def __init__(
        self, tape: Tape, ledger: Ledger, inner: Completer | None, told: Callable[[ModelCall], None] | None = None
    ):
        """``told``: callback for every completion that is not on the tape, and for every failure."""
        self._tape, self._ledger, self._inner, self._told = tape, ledger, inner, told
        self._flights: dict[str, _Flight] = {}
        self._attempts = Attempts(self._probe)

    async def complete(self, request: CompletionRequest) -> Completion:
        """Answers one request.

        Raises:
          NotOnTape: if it only replays, and the answer is missing.
          OverBudget, OutOfBudget: if the answer could cost more than is left, after the requests in flight have ended.
        """
        return await self._get(request, lambda inner: inner.complete(request))

    async def execute(self, request: ExecutionRequest) -> Execution:
        """Executes a program; raises what ``complete`` raises. ``inner`` must execute programs (``llm.sandbox``)."""
        return await self._get(request, lambda inner: inner.execute(request))

    async def call(self, request: FunctionCall) -> Returned:
        """Calls a user's function; raises what ``complete`` raises, and what the function raises."""

        async def perform(inner: Any) -> Returned:
            began = time.monotonic()
            return Returned(await request.perform(), time.monotonic() - began)

        return await self._get(request, perform)

    async def _get(self, effect: Effect[R], perform: Callable[[Any], Awaitable[R]]) -> R:
        """Waits for the task of a request; starts it if there is none."""
        key = effect.key
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.ensure_future(self._fly(effect, key, perform)))
            flight.task.add_done_callback(lambda task: self._land(key, task))
        flight.waiting += 1
        try:
            await asyncio.wait([flight.task])
            if flight.task.cancelled():
                raise StopRun("the request was cancelled")
            self._ledger.count_call(effect.role)
            return flight.task.result()
        except asyncio.CancelledError:
            if flight.waiting == 1 and not flight.task.done():
                flight.task.cancel()
                await asyncio.wait([flight.task])
            raise
        finally:
            flight.waiting -= 1

    def _land(self, key: str, task: asyncio.Task) -> None:
        del self._flights[key]
        if not task.cancelled():
            task.exception()  # marked as retrieved: all callers may have left

    async def _fly(self, effect: Effect[R], key: str, perform: Callable[[Any], Awaitable[R]]) -> R:
        """Gets a result from the tape, or from ``inner``; see the diagram of the class."""
        result = await self._tape.find(effect, key)
        if result is not None:
            ticket = await self._ledger.admit(effect.role, key, result.usage, paid=False)
            self._ledger.settle(ticket, result.usage)
            return result
        if self._inner is None:
            raise NotOnTape(f"the tape {self._tape.path} has no result for {json.dumps(effect.to_json())[:500]}")
        began = time.time()
        try:
            result = await self._attempts.get(effect.model, lambda: self._attempt(effect, key, perform))
            self._tell(effect, result, began)
            return result
        except Fault as fault:
            result: Any = fault.failure
            self._tell(effect, result, began)
        except BaseException as error:
            self._tell(effect, error, began)
            raise
        ticket = await self._ledger.admit(effect.role, key, result.usage, paid=True)
        await self._tape.record(effect, key, result)
        self._ledger.settle(ticket, result.usage)
        return result

    def _tell(self, effect: Effect[Any], result: Any, began: float) -> None:
        if self._told is not None and isinstance(effect, CompletionRequest):
            self._told(call_of(effect, result, self._ledger.phase_name, began, time.time()))

    async def _attempt(
        self, effect: Effect[R], key: str, perform: Callable[[Any], Awaitable[R]], *, keep: bool = True
    ) -> R:
        """One attempt, within the ledger's limits; its result is on disk before it is used.

        Args:
          keep: whether the result is recorded; else it is booked at its worst case.
        """
        most = self.most(effect)
        ticket = await self._ledger.admit(effect.role, key, most, paid=True)
        usage, lost, attempt = None, None, None
        try:
            if is_served(effect.model):
                attempt = await self._tape.begin(key, most)
            result = await perform(self._inner)
            if keep:
                await self._tape.record(effect, key, result, attempt)
                usage = result.usage
            else:
                lost = most
            self._check(effect, result.usage)
            return result
        except Fault as fault:
            if fault.reached:
                lost = most
            elif attempt is not None:
                await self._tape.end(attempt)
            raise
        except (ServerError, asyncio.CancelledError):  # it was not sent, or is not billed
            if attempt is not None and usage is None and lost is None:
                await self._tape.end(attempt)
            raise
        finally:
            self._ledger.settle(ticket, usage, lost)

    async def _probe(self, request: CompletionRequest) -> None:
        """Attempts a request that was answered before; raises ``Fault``."""
        await self._attempt(request, request.key, lambda inner: inner.complete(request), keep=False)

    def _check(self, effect: Effect[Any], used: Usage) -> None:
        """Raises ``ServerError`` for an answer that is longer than asked for, where costs are limited."""
        most = effect.most().completion_tokens
        if self._ledger.is_limited and used.completion_tokens > most:
            raise ServerError(
                f"{effect.model} wrote {used.completion_tokens:,} tokens where it was asked for at most {most:,}: no "
                "budget can be kept with a server that does not keep to max_tokens. Set no config.budget, or ask "
                "another server"
            )

    def prompt_tokens(self, request: CompletionRequest) -> int | None:
        """Exact number of tokens of a request's prompt, where ``inner`` knows it; else None."""
        return count_prompt(self._inner, request)

    def most(self, effect: Effect[Any]) -> Usage:
        """The worst case of a request; if costs are limited, with the exact length of its prompt where ``inner`` knows
        it."""
        exact = None
        if isinstance(effect, CompletionRequest) and self._ledger.is_limited:
            exact = count_prompt(self._inner, effect)
        return self._ledger.most(effect, exact)
