"""Costs used and costs paid, per phase and role; and hard limits on both.

*Paid* costs are limited by ``Budget``. A result that the tape holds costs nothing: it was paid for before.
Budget and spending therefore belong to the run folder: the same command again continues with the rest of the budget,
and a higher limit adds to it.

*Used* costs are what the same work costs with an empty tape: a repeated request costs once, and a request that the tape
answers costs as much as when it was paid for. They depend neither on the contents of the tape nor on the order in which
calls in flight end. ``Ledger.limit`` limits them, for a search or a part of one.

Neither limit is ever overrun. A request is admitted when its worst case fits beside the worst cases of those in flight:

    limit  |#### used ####|== in flight, at most ==|-- this request, at most --|   free   |

Otherwise it waits, as requests in flight mostly cost less than reserved. Requests are admitted strictly in the order in
which they ask. If the first one still does not fit when nothing is in flight, it and all behind it are refused.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optimas_jax.core.schema import NonNegativeFloat, NonNegativeInt
from optimas_jax.core.types import StopRun
from optimas_jax.core.usage import UNLIMITED, Allowance, Limit, OutOfBudget, Usage, Used
from optimas_jax.llm.accounts.bill import Bill
from optimas_jax.llm.accounts.prices import Price, price_of
from optimas_jax.llm.base import Effect


class OverBudget(StopRun):
    """The next call could cost more than is left of the run folder's budget."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """Limits on the cost of one run folder; 0 for no limit.

    Attributes:
      usd: US dollars for completions.
      tokens: tokens read and written by models, local ones included.
      calls: number of completions and executed programs.

    Raises:
      ValueError: by ``optimize``, ``plan`` and commands, for a negative number or a limit below what the run needs at
        least.
      StopRun: by the run, at a request that no longer fits; ``best/`` and results are there.

    Example:
      ```python
      oj.optimize(rag, grade, "questions.jsonl", budget=oj.Budget(usd=2, tokens=3_000_000))
      ```
    """

    usd: NonNegativeFloat = 0.0
    tokens: NonNegativeInt = 0
    calls: NonNegativeInt = 0

    @property
    def limit(self) -> Limit:
        """The same with infinity for no limit."""
        return Limit(self.usd or math.inf, self.tokens or math.inf, self.calls or math.inf)


@dataclasses.dataclass(eq=False)
class Ticket:
    """A request on its way through the ledger.

    Attributes:
      role, key: of the request.
      used: costs reserved of the allowance.
      paid: costs reserved of the budget.
      allowance: the limit it counts against, or None.
      admitted: resolved when both are reserved.
    """

    role: str
    key: str
    used: Usage
    paid: Usage
    allowance: Allowance | None
    admitted: asyncio.Future[None]


class Ledger:
    """Counts, and admits requests. The phase is set by the stage that runs; the role comes with each request.

    Requests come from one event loop at a time.

    Attributes:
      budget: the most that may be paid.
      bill: what each step used and waited for.
    """

    def __init__(
        self, budget: Budget | None = None, spent: Usage | None = None, prices: Mapping[str, Price] | None = None
    ) -> None:
        """``spent``: what the tape's results cost (``Tape.usage``). ``prices``: of ``config.prices``."""
        self._calls: collections.Counter[tuple[str, str]] = collections.Counter()  # by (phase, role)
        self._paid_calls: collections.Counter[tuple[str, str]] = collections.Counter()
        self._used: dict[tuple[str, str], Usage] = {}
        self._keys: dict[str, set[str]] = collections.defaultdict(set)  # of requests, by phase
        self._phase, self._step, self.bill = "setup", "setup", Bill()
        self.budget, self._prices = (budget or Budget()).limit, prices or {}
        self._spent, self._reserved = spent or Usage(), Usage()
        self._allowance: Allowance | None = None
        self._queue: collections.deque[Ticket] = collections.deque()
        self._in_flight = 0

    # --- scopes

    @property
    def phase_name(self) -> str:
        """The phase that holds now."""
        return self._phase

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Books everything inside the block under ``name``; phases may nest."""
        outer, self._phase, self._step = (self._phase, self._step), name, name
        try:
            yield
        finally:
            self._phase, self._step = outer

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Names a part of the phase, for ``bill``. Begin and end it when nothing is in flight."""
        outer, self._step = self._step, f"{self._phase}: {name}"
        try:
            yield
        finally:
            self._step = outer

    @contextlib.contextmanager
    def limit(self, limit: Limit = UNLIMITED) -> Iterator[Allowance]:
        """Limits costs inside the block to ``limit``; by default only counts them. Limits nest: an inner block also
        stays within the rest of the outer limits. Begin and end it when nothing is in flight.

        Raises:
          OutOfBudget: from every request that does not fit, and from all later ones in the same block.
        """
        outer, self._allowance = self._allowance, Allowance(limit, self._allowance)
        try:
            yield self._allowance
        finally:
            self._allowance = outer

    @contextlib.contextmanager
    def uncharged(self, phase: str) -> Iterator[None]:
        """Books everything inside the block under ``phase`` and outside the limits on use; ``budget`` still holds, and
        so does the part of it that is set aside. For controls, whose costs a search does not have. Begin and end it
        when nothing is in flight."""
        outer = self._allowance
        if outer is not None:
            self._allowance = Allowance(UNLIMITED, None)
            self._allowance.held = outer.chain[-1].held  # what comes after is paid for by the same budget
        try:
            with self.phase(phase):
                yield
        finally:
            self._allowance = outer

    def hold(self, usage: Usage) -> None:
        """Sets ``usage`` aside in the outermost limit that holds now, in place of the amount set aside before.

        Raises:
          OutOfBudget: if more is used already; nothing changes then.
        """
        outer = self._allowance.chain[-1] if self._allowance else None
        if outer is not None and outer.limit.exceeded(outer.used + usage):
            raise OutOfBudget(f"{outer.limit.rest(outer.used)} are left, and what comes after needs {usage}")
        if outer is not None:
            outer.held = usage

    @property
    def step(self) -> str:
        """The step that is booked now: ``PHASE: PART``, or the phase alone."""
        return self._step

    @property
    def left(self) -> Limit:
        """The rest of the limits that hold now."""
        return self._allowance.left if self._allowance else UNLIMITED

    @property
    def left_of_run(self) -> Limit:
        """The rest of the outermost limit that holds now, without the amount set aside."""
        return self._allowance.chain[-1].left if self._allowance else UNLIMITED

    @property
    def is_limited(self) -> bool:
        """Whether the worst case of a request matters."""
        return self.budget.is_set or self.left.is_set

    @property
    def in_flight(self) -> str:
        """Description of the requests in flight; "" for none."""
        return f"{self._in_flight} request{'s are' if self._in_flight > 1 else ' is'} in flight" * bool(self._in_flight)

    # --- admission

    def most(self, effect: Effect[Any], prompt_tokens: int | None = None) -> Usage:
        """The most that an effect can cost. ``prompt_tokens``: the exact number, where it is known.

        Raises:
          OverBudget: if dollars are limited and the price of its model is unknown.
        """
        most = effect.most()
        if prompt_tokens is not None:
            most = dataclasses.replace(most, prompt_tokens=prompt_tokens)
        if not effect.model:
            return most
        price = price_of(effect.model, self._prices)
        if price is None and self.budget.usd < math.inf:
            raise OverBudget(
                f"no price of {effect.model} is known, and config.budget.usd is {self.budget.usd}: set "
                f"config.prices to {effect.model}=PROMPT/COMPLETION, in US dollars per million tokens"
            )
        usd = price.usd(most.prompt_tokens, most.completion_tokens) if price else 0.0
        return dataclasses.replace(most, usd=usd)

    async def admit(self, role: str, key: str, most: Usage, *, paid: bool) -> Ticket:
        """Reserves the cost of a request, and waits until it fits; ``settle`` must follow.

        Args:
          most: its worst case; for a result on the tape its true cost.
          paid: whether it must be paid for: its result is not on the tape.

        Raises:
          OutOfBudget, OverBudget: if it does not fit when everything in flight has ended.
        """
        allowance = self._allowance
        used = Usage() if allowance is None or allowance.has(key) else most
        admitted = asyncio.get_running_loop().create_future()
        ticket = Ticket(role, key, used, most if paid else Usage(), allowance, admitted)
        if not paid and not used.calls:
            return ticket
        if allowance is not None and allowance.closed and used.calls:
            raise self._refusal(ticket)
        self._queue.append(ticket)
        self._advance()
        try:
            await admitted
        except asyncio.CancelledError:
            if ticket in self._queue:
                self._queue.remove(ticket)
                self._advance()
            elif not admitted.cancelled() and not admitted.exception():
                self.settle(ticket, None)
            raise
        return ticket

    def settle(self, ticket: Ticket, usage: Usage | None, lost: Usage | None = None) -> None:
        """Replaces the reserved cost of a request by its true cost, which is zero without a result.

        Args:
          lost: the cost that it may have had without a result.
        """
        if ticket.used.calls or ticket.paid.calls:
            self._in_flight -= 1
            self.bill.end(self._step)
            self._reserved -= ticket.paid
            if ticket.allowance is not None:
                ticket.allowance.release(ticket.used)
        self._spent += lost or Usage()
        if usage is not None:
            self._spent += usage if ticket.paid.calls else Usage()
            self._paid_calls[self._phase, ticket.role] += bool(ticket.paid.calls)
            self._use(ticket.role, ticket.key, usage, ticket.allowance)
        self._advance()

    def _advance(self) -> None:
        """Admits requests from the front of the queue while they fit; refuses all if the first one cannot ever fit."""
        while self._queue:
            first = self._queue[0]
            if first.admitted.done():  # cancelled
                self._queue.popleft()
            elif self._fits(first):
                self._queue.popleft()
                self._in_flight += 1
                self.bill.begin()
                self._reserved += first.paid
                if first.allowance is not None:
                    first.allowance.reserve(first.used)
                first.admitted.set_result(None)
            elif self._in_flight:
                return
            else:
                self._refuse_all()

    def _fits(self, ticket: Ticket) -> bool:
        if ticket.allowance is not None and ticket.allowance.left.exceeded(ticket.used):
            return False
        return not ticket.paid.calls or not self.budget.exceeded(self._to_be_spent(ticket))

    def _to_be_spent(self, ticket: Ticket) -> Usage:
        """Everything paid for after this request, with the amount set aside. It includes requests of earlier commands
        that this one does not make."""
        held = Usage() if ticket.allowance is None else ticket.allowance.chain[-1].held
        return self._spent + self._reserved + held + ticket.paid

    def _refuse_all(self) -> None:
        error = self._refusal(self._queue[0])
        tickets, self._queue = self._queue, collections.deque()
        for ticket in (ticket for ticket in tickets if not ticket.admitted.done()):
            if ticket.allowance is not None and isinstance(error, OutOfBudget):
                ticket.allowance.closed = True
            ticket.admitted.set_exception(type(error)(*error.args))  # one each: callers add notes to it
            ticket.admitted.exception()  # marked as retrieved: its caller may be cancelled first

    def _refusal(self, ticket: Ticket) -> OutOfBudget | OverBudget:
        """The error of a refused request: the reason, and how to continue."""
        left = UNLIMITED if ticket.allowance is None else ticket.allowance.left
        if left.exceeded(ticket.used) or (ticket.allowance is not None and ticket.allowance.closed):
            return OutOfBudget(
                f"{left} are left for this, and the next request, of {ticket.role!r}, may use "
                f"{ticket.used.tokens:,} tokens: raise config.budget, or config.optimize.max_tokens in a new --workdir"
            )
        exceeded = self.budget.exceeded(self._to_be_spent(ticket))
        reached = ", ".join(f"config.budget.{name} = {getattr(self.budget, name)}" for name in exceeded)
        error = OverBudget if ticket.allowance is None else OutOfBudget
        return error(
            f"the budget is spent ({reached}): {self._spent} so far in this run folder, and the next call may cost "
            f"{ticket.paid}. All of it is kept: raise the limit and run the same command again"
        )

    # --- counting

    def count_call(self, role: str) -> None:
        """Counts a request, whether the tape answered it or not."""
        self._calls[self._phase, role] += 1

    def replay(self, requests: Sequence[Used]) -> None:
        """Counts requests of an earlier command as used again (``Allowance.requests``)."""
        for role, key, usage in requests:
            self._use(role, key, usage, self._allowance)

    def _use(self, role: str, key: str, usage: Usage, allowance: Allowance | None) -> None:
        if allowance is not None:
            allowance.use(role, key, usage)
        if key not in self._keys[self._phase]:
            self._keys[self._phase].add(key)
            self._used[self._phase, role] = self._used.get((self._phase, role), Usage()) + usage
        self.bill.use(self._step, role, key, usage)

    def usage(self, phase: str) -> dict[str, Usage]:
        """Used by each role in a phase; ``calls`` are different requests."""
        return {role: usage for (name, role), usage in self._used.items() if name == phase}

    @property
    def used(self) -> Usage:
        """Used under the outermost limit that holds now; nothing without one."""
        return self._allowance.chain[-1].used if self._allowance else Usage()

    @property
    def spent(self) -> Usage:
        """Costs paid by all commands in the run folder, this one included."""
        return self._spent

    @property
    def paid_calls(self) -> int:
        """Number of results that were not on the tape when this command started."""
        return self._paid_calls.total()

    def to_json(self) -> dict[str, dict[str, dict[str, Any]]]:
        """{phase: {role: row}}, in order of first use: ``calls`` in all, ``paid_calls`` of them not on the tape,
        different ``requests``, and their costs."""
        table: dict[str, dict[str, dict[str, Any]]] = {}
        for (phase, role), usage in self._used.items():
            fields = usage.to_json()
            table.setdefault(phase, {})[role] = {
                "calls": self._calls[phase, role],
                "paid_calls": self._paid_calls[phase, role],
                "requests": usage.calls,
                **{name: fields[name] for name in ("prompt_tokens", "completion_tokens", "usd", "seconds")},
            }
        return table
