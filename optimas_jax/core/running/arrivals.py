"""Calls that frameworks make by a client or over a wire. A call that is tried again stays one call at one position.

A call from a task of the program has its position in that task. A call from a thread that does not know its run, or
from another process, has no task. It comes after the calls that it follows from, as far as its inputs tell
(``Preceding``), and after all calls that the program's tasks have begun by then. Other calls are in the order of their
content. Calls with equal content are numbered as they arrive. A call that arrives while an equal one is in flight is a
repetition, by a client that did not wait: both get one answer.
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
Preceding = Callable[[Mapping[str, Any], Sequence[Call]], Sequence[bool]]  # whether each answered call precedes


def all_precede(inputs: Mapping[str, Any], answered: Sequence[Call]) -> Sequence[bool]:
    """``Preceding`` for calls that follow from every call that was answered before they arrived."""
    return [True] * len(answered)


@contextlib.contextmanager
def beside_programs() -> Iterator[None]:
    """Marks code that belongs to the run of a system and not to its program, such as a metric: its calls belong to no
    program, even if programs run at the same time."""
    token = _BESIDE.set(True)
    try:
        yield
    finally:
        _BESIDE.reset(token)


def is_beside() -> bool:
    """Whether this is within ``beside_programs``."""
    return _BESIDE.get()


class RunEnded(Exception):
    """Raised by a call of a run that has ended."""


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
        """Begins a new part of the log, after everything in it, and returns it."""
        ...


@dataclasses.dataclass(frozen=True)
class _Open:
    """A call whose caller has no answer: it failed, was given up, or its answer was not read."""

    position: Position
    answer: Call | None = None


class Arrivals:
    """The calls of frameworks in one run. Only for use on the event loop of the run."""

    def __init__(self, root: Task):
        self._root = root
        self._answered: list[tuple[int, Call]] = []  # (level, call)
        self._numbers: list[int] = []  # by level: its number among the root's calls and tasks
        self._stretches: list[Any] = []  # by level: its part of the root's log
        self._own = 0  # number of calls of the program's tasks when the last level began
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
        """Calls a component and returns its answer, which may be a failure.

        Args:
          scope: the calling task of the program; None for a call from outside of its tasks.
          again: whether the client marks the call as a repetition of an earlier one.
          preceding: decides which calls a call from outside follows from.

        Raises:
          RunEnded: the run has ended, before the call or during it; only for a call from outside of its tasks.
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
            return await asyncio.shield(flying)  # a paid answer is recorded even if its caller has left
        except asyncio.CancelledError:
            if flying.cancelled():
                raise RunEnded from None
            raise

    def unread(self, component: str, inputs: Mapping[str, Any], answer: Call) -> None:
        """Keeps an answer whose caller left before reading it, for the next equal call."""
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
        position = (*self._root.path, self._numbers[level], OUTSIDE, int(content[1][:12], 16), next(self._count))
        call = await self._made(content, inputs, known or _Open(position), retried=known is not None)
        self._answered.append((level, call))
        self._stretches[level].took_beside(call.cost.seconds)
        return call

    def _level(self, inputs: Mapping[str, Any], preceding: Preceding) -> int:
        """Level of a new call: one above the highest level of the calls that come before it."""
        before = preceding(inputs, [call for _, call in self._answered])
        levels = [level for (level, _), precedes in zip(self._answered, before, strict=True) if precedes]
        level = 1 + max(levels, default=-1)
        if self._own != (begun := self._root.recorder.begun):
            level, self._own = len(self._numbers), begun
        if level == len(self._numbers):
            self._numbers.append(next(self._root.numbers))
            self._stretches.append(self._root.stretch())
        return level

    async def _made(self, content: Content, inputs: Mapping[str, Any], opened: _Open, *, retried: bool) -> Call:
        """Makes a call at its position. If it fails or is given up, the position stays open for the next call of equal
        content."""
        if opened.answer is not None:
            return opened.answer
        recorder, ended = self._root.recorder, self._root.ended
        try:
            call = await recorder.call(content[0], inputs, opened.position, ended, again=retried)
        except asyncio.CancelledError:
            self._open.setdefault(content, []).append(opened)
            raise
        if call.outcome is not Outcome.OK:
            self._open.setdefault(content, []).append(opened)
        self._last[content] = call
        return call

    def _reopened(self, content: Content) -> _Open | None:
        waiting = self._open.get(content)
        return waiting.pop(0) if waiting else None

    def _landed(self, content: Content, task: asyncio.Task[Call]) -> None:
        self._flying.pop(content, None)
        if not task.cancelled():
            task.exception()  # marked as retrieved: the caller may have left
