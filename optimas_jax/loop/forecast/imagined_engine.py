"""A local engine with a clock of its own: requests join its batches, and leave them, as in ``llm.local`` and
``engine.batching``; how long that takes follows from ``EngineSpeed``.

Simpler than the engine: prefixes of prompts are never dropped, prompts that share one and come together share it at
once, and engines of several models do not wait for each other.
"""

from __future__ import annotations

import asyncio
import bisect
import copy
import dataclasses
from collections.abc import Awaitable, Callable, Sequence

from optimas_jax.engine.batching import most_in_lane
from optimas_jax.engine.decode_batch import MANY, coarse_sizes, enough_done, rows_for
from optimas_jax.engine.memory import slot_bucket, wanted_slots
from optimas_jax.engine.speed import EngineSpeed, passes_of
from optimas_jax.llm.base import CompletionRequest
from optimas_jax.llm.local import STEP_TOKENS
from optimas_jax.models.flat import flat_tokens
from optimas_jax.models.layout import BLOCK
from optimas_jax.parallel.platform import Compute

_TURNS, _TICKS = 5, 20  # a caller that got an answer sends its next request within so many turns of the loop


@dataclasses.dataclass(eq=False)
class _Flight:
    """A request that waits or is in flight.

    Attributes:
      prompt, new: tokens of its prompt, and those that it does not share with an earlier one.
      limit: most tokens of its answer.
      length: tokens of its answer.
      ended: gets its seconds at the end.
      count: tokens of its answer so far.
      seconds: its share of the engine's so far.
    """

    prompt: int
    new: int
    limit: int
    length: int
    ended: asyncio.Future[float]
    count: int = 0
    seconds: float = 0.0

    @property
    def most(self) -> int:
        """Slots that it may need."""
        return slot_bucket(self.prompt + self.limit - 1)

    @property
    def slots(self) -> int:
        """Slots for its next tokens."""
        return wanted_slots(self.prompt, self.limit, self.count)


@dataclasses.dataclass
class _Batch:
    """See ``engine.decode_batch.DecodeBatch``."""

    flights: list[_Flight] = dataclasses.field(default_factory=list)
    rows: int = 0
    slots: int = 0
    reserved: int = 0


class ImaginedEngine:
    """The seconds of a local model's answers."""

    def __init__(self, speed: EngineSpeed, compute: Compute, settle: Callable[[], Awaitable[object]]):
        """``settle`` waits until callers that have something to write on the tape have done so."""
        self._speed, self._compute, self._settle = speed, compute, settle
        self._sizes = compute.decode_rows
        self._batches = [_Batch() for _ in range(compute.lanes)]
        self._waiting: list[_Flight] = []
        self._sent = 0  # number of requests so far
        self._prompts: list[str] = []  # in order
        self._programs: set[tuple[int, ...]] = set()  # by size: tokens of a pass, or rows and slots of a step
        self._clock: asyncio.Task[None] | None = None

    async def answer(self, request: CompletionRequest, prompt: int, answer: int) -> float:
        """Waits for the end of an answer.

        Args:
          prompt, answer: tokens.

        Returns:
          The request's share of the engine's seconds.
        """
        # Decoding reads the last token, and a pass has one token at least.
        shared = max(min(int(prompt * self._shared(request)), prompt - 2), 0) // BLOCK * BLOCK
        ended = asyncio.get_running_loop().create_future()
        new = max(prompt - 1 - shared, 0)
        self._waiting.append(_Flight(prompt, new, request.max_tokens, answer, ended))
        self._sent += 1
        if self._clock is None or self._clock.done():
            self._clock = asyncio.ensure_future(self._run())
        return await ended

    def forget_programs(self) -> None:
        """See ``engine.pool.Engines.forget_programs``."""
        self._programs.clear()

    def _shared(self, request: CompletionRequest) -> float:
        """The share of a prompt with which an earlier one began."""
        text = request.adapter + "\n".join(message.content for message in request.messages)
        position = bisect.bisect_left(self._prompts, text)
        neighbours = self._prompts[max(position - 1, 0) : position + 1]
        longest = max((_common(text, other) for other in neighbours), default=0)
        self._prompts.insert(position, text)
        return longest / max(len(text), 1)

    @property
    def _flying(self) -> list[_Flight]:
        return [flight for batch in self._batches for flight in batch.flights]

    async def _run(self) -> None:
        """Answers requests until there are none."""
        answered = True
        try:
            while self._waiting or self._flying:
                if answered:
                    await self._gather()
                answered = self._advance()
        except Exception as error:
            for flight in _open((*self._waiting, *self._flying)):
                flight.ended.set_exception(copy.copy(error))
        finally:
            self._waiting, self._batches = [], [_Batch() for _ in self._batches]

    async def _gather(self) -> None:
        """Waits for requests of those who were just answered, which then join at once."""
        sent = -1
        while sent != self._sent:
            sent = self._sent
            for _ in range(_TURNS):
                await self._settle()
                for _ in range(_TICKS):
                    await asyncio.sleep(0)

    def _advance(self) -> bool:
        """Lets waiting requests join, decodes for a while, and answers those that are done; returns whether any is."""
        self._waiting = _open(self._waiting)
        for batch in self._batches:
            batch.flights = _open(batch.flights)
        seconds = self._prefill(self._admit()) + self._decode()
        flying = self._flying
        for flight in flying:
            flight.seconds += seconds / len(flying)
            if flight.count >= flight.length:
                flight.ended.set_result(flight.seconds)
        for batch in self._batches:
            batch.flights = _open(batch.flights)
        return len(self._flying) < len(flying)

    def _admit(self) -> list[_Flight]:
        """The waiting requests that join a batch now."""
        admitted: list[_Flight] = []
        most = most_in_lane(len(self._waiting) + len(self._flying), len(self._batches), self._sizes[-1])
        for batch in self._batches:
            slots = batch.reserved if batch.flights else 0
            wanted = [flight.most for flight in self._waiting]
            if wanted and min(wanted) > slots:
                slots = max(set(wanted), key=lambda size: (wanted.count(size), -size))
            fitting = [flight for flight in self._waiting if flight.most <= slots]
            joining = fitting[: max(min(most, self._sizes[-1]) - len(batch.flights), 0)]
            if joining:
                first = max(flight.slots for flight in joining)
                batch.slots, batch.reserved = max(first, batch.slots if batch.flights else 0), slots
                batch.flights += joining
                batch.rows = rows_for(len(batch.flights), self._sizes)
                self._waiting = [flight for flight in self._waiting if flight not in joining]
                admitted += joining
        return admitted

    def _prefill(self, admitted: Sequence[_Flight]) -> float:
        """Seconds of the prompts of requests that join."""
        prompts = [flight for flight in admitted if flight.new]
        seconds = 0.0
        for members in passes_of([flight.new for flight in prompts], self._compute):
            tokens = sum(prompts[index].new for index in members)
            each = [prompts[index].new * self._speed.prompt_seconds(prompts[index].prompt) for index in members]
            size = flat_tokens(tokens)
            seconds += self._loaded((size,), self._speed.load_prompts)
            seconds += self._speed.prompts + size * sum(each) / tokens
        return seconds

    def _decode(self) -> float:
        """Seconds of the next steps, which are side by side in all batches; counts down the tokens of answers."""
        seconds, steps, flying = 0.0, 0, self._flying
        for batch in self._batches:
            if not batch.flights:
                continue
            batch.rows = min(batch.rows, rows_for(len(batch.flights), coarse_sizes(self._sizes)))
            limit = max(flight.most for flight in batch.flights)
            batch.reserved = limit if MANY * limit <= batch.reserved else batch.reserved
            wanted = max(flight.slots for flight in batch.flights)
            batch.slots = batch.slots if wanted <= batch.slots < MANY * wanted else wanted
            seconds += self._loaded((batch.rows, batch.slots), self._speed.load_step)
            lefts = sorted(flight.length - flight.count for flight in batch.flights)
            count = min(lefts[enough_done(len(lefts)) - 1], STEP_TOKENS)
            for flight in batch.flights:
                flight.count += count
            steps = max(steps, count)
        longest = max((flight.prompt + flight.count for flight in flying), default=0)
        return seconds + steps * self._speed.step_seconds(len(flying), longest)

    def _loaded(self, size: tuple[int, ...], seconds: float) -> float:
        """``seconds`` if the program for this size is not loaded; it is from now on."""
        if size in self._programs:
            return 0.0
        self._programs.add(size)
        return seconds


def _open(flights: Sequence[_Flight]) -> list[_Flight]:
    """The requests that were not given up."""
    return [flight for flight in flights if not flight.ended.done()]


def _common(text: str, other: str) -> int:
    """Number of characters with which both texts begin."""
    low, high = 0, min(len(text), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if text[:middle] == other[:middle] else (low, middle - 1)
    return low
