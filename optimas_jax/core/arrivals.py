"""Calls that frameworks make by a client or over a wire: what is tried again is the same call, and keeps its place.

A call from a task of the program has its place there. One from a thread that does not know its run, or from another
process, has none: it stands behind the calls that it follows from, as far as those who read its inputs know
(``Preceding``), and behind all that the program's tasks have called by then; others stand in the order of their
content. Equal ones are numbered as they arrive, and one that arrives while its equal is in flight is its repetition, by
a client that did not wait: both get one answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from optimas_jax.core.types import Call, Outcome, digest

_BESIDE: contextvars.ContextVar[bool] = contextvars.ContextVar("optimas_jax_beside", default=False)
OUTSIDE = -1  # in the position of a call from outside of the program's tasks; no number of a task or a call
Position = tuple[int, ...]  # in the order of a program: numbers of the tasks around a call, and its own
Content = tuple[str, str]  # component, digest of its inputs
Preceding = Callable[[Mapping[str, Any], Sequence[Call]], Sequence[bool]]  # which of the answered ones come before


def all_precede(inputs: Mapping[str, Any], answered: Sequence[Call]) -> Sequence[bool]:
    """A call follows from all that were answered when it came."""
    return [True] * len(answered)


@contextlib.contextmanager
def beside_programs() -> Iterator[None]:
    """Around what belongs to the run of a system and not to its program, such as a metric: whatever programs run
    meanwhile, its calls are none of theirs."""
    token = _BESIDE.set(True)
    try:
        yield
    finally:
        _BESIDE.reset(token)


def is_beside() -> bool:
    """Whether this is within ``beside_programs``."""
    return _BESIDE.get()


class RunEnded(Exception):
    """A call of a run that has ended."""


class Task(Protocol):
    """A task of a program (``core.program.Scope``)."""

    recorder: Any
    ended: asyncio.Future[BaseException]
    path: Position
    numbers: itertools.count[int]
    log: list[Any]

    def position(self) -> Position:
        """The next position in the task."""
        ...

    def stretch(self) -> Any:
        """A part of the log behind all that it has."""
        ...


@dataclasses.dataclass(frozen=True)
class _Open:
    """A call without an answer that its caller has: it failed, was given up, or its answer was not read."""

    position: Position
    answer: Call | None = None


class Arrivals:
    """Such calls of one run. For the event loop of the run alone."""

    def __init__(self, root: Task):
        self._root = root
        self._answered: list[tuple[int, Call]] = []  # with their levels
        self._numbers: list[int] = []  # of the levels, among those of the root's calls and tasks
        self._stretches: list[Any] = []  # of the root's log, one for each level
        self._own = 0  # calls of the program's tasks, when the last level began
        self._count = itertools.count()
        self._flying: dict[Content, asyncio.Task[Call]] = {}
        self._open: dict[Content, list[_Open]] = {}
        self._last: dict[Content, Call] = {}

    async def call(
        self,
        component: str,
        inputs: Mapping[str, Any],
        scope: Task | None = None,
        *,
        again: bool = False,
        preceding: Preceding = all_precede,
    ) -> Call:
        """The answer of a component, maybe a failure.

        Args:
          scope: the task of the program that calls; None from outside of them.
          again: whether the client says that it asked the same before.
          preceding: what a call from outside follows from.

        Raises:
          RunEnded: the run ended before, or meanwhile; to a caller outside of its tasks.
        """
        content = (component, digest(inputs))
        if scope is not None:
            return await self._from_task(content, inputs, scope, again)
        if (flying := self._flying.get(content)) is None:
            if again and content in self._last and not self._open.get(content):
                return self._last[content]
            call = self._from_outside(content, inputs, preceding)
            flying = self._flying[content] = asyncio.get_running_loop().create_task(call)
            flying.add_done_callback(lambda done: self._landed(content, done))
        try:
            return await asyncio.shield(flying)  # what is paid for is recorded, whoever left
        except asyncio.CancelledError:
            if flying.cancelled():
                raise RunEnded from None
            raise

    def unread(self, component: str, inputs: Mapping[str, Any], answer: Call) -> None:
        """Notes that a caller left before it had its answer: who asks the same again gets it."""
        content = (component, digest(inputs))
        if answer.outcome is Outcome.OK and content not in self._flying:
            self._open.setdefault(content, []).append(_Open((), answer))

    async def _from_task(self, content: Content, inputs: Mapping[str, Any], scope: Task, again: bool) -> Call:
        known = self._reopened(content)
        if known is None and again and content in self._last:
            return self._last[content]
        position = scope.position()
        call = await self._made(content, inputs, known or _Open(position), retried=known is not None)
        if known is None or known.answer is None:
            scope.log.append(call.cost.seconds)
        return call

    async def _from_outside(self, content: Content, inputs: Mapping[str, Any], preceding: Preceding) -> Call:
        known = self._reopened(content)
        if known is not None and known.answer is not None:
            return known.answer
        level = self._level(inputs, preceding)
        place = (*self._root.path, self._numbers[level], OUTSIDE, int(content[1][:12], 16), next(self._count))
        call = await self._made(content, inputs, known or _Open(place), retried=known is not None)
        self._answered.append((level, call))
        self._stretches[level].took_beside(call.cost.seconds)
        return call

    def _level(self, inputs: Mapping[str, Any], preceding: Preceding) -> int:
        """One above those of all calls that come before."""
        before = preceding(inputs, [call for _, call in self._answered])
        level = max((1 + one for (one, _), precedes in zip(self._answered, before, strict=True) if precedes), default=0)
        if self._own != (own := self._root.recorder.begun):
            level, self._own = len(self._numbers), own
        if level == len(self._numbers):
            self._numbers.append(next(self._root.numbers))
            self._stretches.append(self._root.stretch())
        return level

    async def _made(self, content: Content, inputs: Mapping[str, Any], place: _Open, *, retried: bool) -> Call:
        """Makes a call at its place; one that fails or is given up leaves it open for the next of its content."""
        if place.answer is not None:
            return place.answer
        recorder, ended = self._root.recorder, self._root.ended
        try:
            call = await recorder.call(content[0], inputs, place.position, ended, again=retried)
        except asyncio.CancelledError:
            self._open.setdefault(content, []).append(place)
            raise
        if call.outcome is not Outcome.OK:
            self._open.setdefault(content, []).append(place)
        self._last[content] = call
        return call

    def _reopened(self, content: Content) -> _Open | None:
        waiting = self._open.get(content)
        return waiting.pop(0) if waiting else None

    def _landed(self, content: Content, task: asyncio.Task[Call]) -> None:
        self._flying.pop(content, None)
        if not task.cancelled():
            task.exception()  # marked as retrieved: the caller may have left
