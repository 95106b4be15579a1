"""Programs: functions that call components. A run records the calls, and takes known answers from an earlier record.

A call is named by its component, its inputs, and the number of earlier calls with the same inputs. The name decides its
seed, and whether a record has its outputs. "Earlier" is in the order of the program, not of the clock: calls of one
task follow each other, and a task that the program starts (``asyncio.gather``, ``TaskGroup``) has the position at which
it was started. So latencies change neither records nor seeds, as long as only components take time in parallel tasks of
which one fails.

A program may depend only on its inputs and on the outputs of its components. Everything else that it does is repeated
whenever it is run again.
"""

from __future__ import annotations

import asyncio
import bisect
import contextvars
import dataclasses
import functools
import itertools
import secrets
from collections.abc import Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from optimas_jax.core.component import Component, ComponentBug
from optimas_jax.core.running import event_loop
from optimas_jax.core.running.arrivals import OUTSIDE, Arrivals, Position
from optimas_jax.core.types import Call, CallKey, Outcome, StopRun, digest
from optimas_jax.core.values import Hyperparameters, Value

_TICKS = 20  # turns of the event loop within which a task that got its answer makes its next call

T = TypeVar("T")
Execute = Callable[[str, Mapping[str, Any], int], Coroutine[Any, Any, Call]]  # (component, inputs, repeat) -> call


class ProgramError(StopRun):
    """A program that cannot be recorded; the message has the way out."""


class ProgramEnded(BaseException):
    """Ends the thread of a program whose run has ended. Not an ``Exception``, so that programs do not catch it."""


@dataclasses.dataclass
class Scope:
    """A task of a running program.

    Attributes:
      recorder: recorder of the run.
      ended: future that is done when the program has ended; it holds the error of a component that ended it.
      path: position of the task.
      numbers: counter of the calls that it makes and the tasks that it starts.
      task: the asyncio task; None for the program itself.
      log: events in their order: seconds of a call, a task that was started, None where all tasks before had ended.
      root: the task in which the program began; None for that task itself.
      token: name of the run, for callers that do not know it by its context.
    """

    recorder: Recorder
    ended: asyncio.Future[BaseException]
    path: Position = ()
    numbers: itertools.count[int] = dataclasses.field(default_factory=itertools.count)
    task: asyncio.Future[Any] | None = None
    log: list[float | Scope | None] = dataclasses.field(default_factory=list)
    root: Scope | None = None
    token: str = ""

    @functools.cached_property
    def arrivals(self) -> Arrivals:
        """Calls that frameworks make in the run."""
        return Arrivals(self) if self.root is None else self.root.arrivals

    def position(self) -> Position:
        """The next position in the task."""
        return (*self.path, next(self.numbers))

    def child(self) -> Scope:
        """The scope of a task that this one starts. It comes after the tasks before it if all of them have ended, else
        beside them."""
        before = itertools.takewhile(lambda entry: isinstance(entry, Scope), reversed(self.log))
        if all(isinstance(entry, Scope) and entry.task is not None and entry.task.done() for entry in before):
            self.log.append(None)
        child = Scope(self.recorder, self.ended, self.position(), root=self.root or self, token=self.token)
        self.log.append(child)
        return child

    @property
    def seconds(self) -> float:
        """Seconds of the longest chain of calls so far, in this task and in the tasks that it started. A call counts as
        after all tasks that were started before it, because whether they had ended depends on latencies."""
        clock = beside = 0.0
        for entry in self.log:
            if isinstance(entry, Scope):
                beside = max(beside, entry.seconds)
            else:
                clock, beside = clock + beside + (entry or 0.0), 0.0
        return clock + beside

    def stretch(self) -> Scope:
        """Begins a new part of the log, after everything in it, for calls that the task did not start
        (``took_beside``)."""
        part = Scope(self.recorder, self.ended, self.path)
        self.log += [None, part]
        return part

    def took_beside(self, seconds: float) -> None:
        """Logs a call that ran beside the other calls of this part of the log."""
        self.log.append(Scope(self.recorder, self.ended, self.path, log=[seconds]))

    async def call(self, component: str, inputs: Mapping[str, Any]) -> Call:
        """Calls a component from the task; a failure is a call with its outcome, any other error ends the program."""
        call = await self.recorder.call(component, inputs, self.position(), self.ended)
        self.log.append(call.cost.seconds)
        return call

    def fail(self, error: BaseException) -> BaseException:
        """Ends the program with an error that it cannot catch; returns what to raise here."""
        loop = self.ended.get_loop()
        loop.call_soon_threadsafe(lambda: self.ended.done() or self.ended.set_result(error))
        return asyncio.CancelledError() if event_loop.running() is loop else ProgramEnded()

    def read(self, component: str) -> Any:
        """The value of a setting."""
        return self.recorder.read(component, self.position(), self.ended)


_SCOPE: contextvars.ContextVar[Scope | None] = contextvars.ContextVar("optimas_jax_scope", default=None)
_COMPONENT: contextvars.ContextVar[str] = contextvars.ContextVar("optimas_jax_component", default="")
RUN_MARK = "optimas_run_"  # beginning of the tokens of runs
_RUNNING: dict[str, Scope] = {}  # programs that run in this process, by token


def is_running() -> bool:
    """Whether a program runs anywhere in this process."""
    return bool(_RUNNING)


def running_programs() -> dict[str, Scope]:
    """The programs that run in this process, each by the token of its run."""
    return dict(_RUNNING)


def current_scope() -> Scope | None:
    """The scope of the task of a program in which the caller runs, or None outside of a run.

    Raises:
      ProgramError: within a component.
    """
    if name := _COMPONENT.get():
        raise ProgramError(f"component {name!r} calls a component: only the program calls components")
    return _SCOPE.get()


class Recorder:
    """Records the calls of one run, and answers calls whose outputs are known.

    Args:
      execute: runs a component.
      given: calls with known outputs, by ``Call.key``.
      components: that may be called, by name.
      inputs: of the program.
      values: values of the components, by name.
    """

    def __init__(
        self,
        execute: Execute,
        given: Mapping[CallKey, Call],
        components: Mapping[str, Component] = MappingProxyType({}),
        inputs: Mapping[str, Any] = MappingProxyType({}),
        values: Mapping[str, Value] = MappingProxyType({}),
    ):
        self.components, self._inputs, self._values = components, inputs, values
        self._execute = execute
        self._given = given
        self._done: dict[CallKey, Call] = {}
        self._begun: dict[Position, CallKey] = {}
        self._arrived: dict[Position, CallKey] = {}  # like ``_begun``, for calls from outside of the program's tasks
        self._made: dict[Position, Call] = {}
        self._in_flight: set[asyncio.Task[Call]] = set()
        self._failed: list[Position] = []
        self._root: Scope | None = None
        placed = [call for call in given.values() if call.position and OUTSIDE not in call.position]
        recorded = {call.position: call.key for call in placed}
        self._places = {content: places for content, places in _places(recorded).items() if len(places) > 1}

    @property
    def begun(self) -> int:
        """Number of calls that the program's tasks have begun."""
        return len(self._begun)

    @property
    def calls(self) -> tuple[Call, ...]:
        """All calls, in the order of the program."""
        counts: dict[str, itertools.count[int]] = {}
        return tuple(
            dataclasses.replace(
                call, occurrence=next(counts.setdefault(call.component, itertools.count())), position=position
            )
            for position, call in sorted(self._made.items())
        )

    @property
    def seconds(self) -> float:
        """Seconds of the longest chain of a program's calls, by recorded costs (``Scope.seconds``)."""
        return 0.0 if self._root is None else self._root.seconds

    async def call(
        self,
        component: str,
        inputs: Mapping[str, Any],
        position: Position,
        ended: asyncio.Future[BaseException] | None = None,
        *,
        again: bool = False,
    ) -> Call:
        """Calls a component at a position: returns the known call, or executes the component.

        Args:
          ended: future of the program, which errors complete; None for a graph, whose calls raise errors.
          again: whether a call at this position has failed in this run, and is now executed once more.
        """
        if ended is not None and ended.done():
            raise asyncio.CancelledError
        key = self._key((component, digest(inputs)), position)
        call = self._given.get(key) or (None if again else self._done.get(key))
        if call is None:
            call = self._done[key] = await self._executed(component, inputs, key[-1], ended)
        if ended is not None and call.outcome is not Outcome.OK:
            await self._all_quiet(position)
        if ended is not None and ended.done():
            raise asyncio.CancelledError
        self._made[position] = call
        return call

    def _key(self, content: tuple[str, str], position: Position) -> CallKey:
        """The key of a call, with its number among the calls with equal inputs. Calls from outside of the program's
        tasks are numbered as they arrive, after all others."""
        if OUTSIDE in position:
            if position not in self._arrived:
                begun = [*self._begun.values(), *self._arrived.values()]
                self._arrived[position] = (*content, sum(key[:2] == content for key in begun))
            return self._arrived[position]
        places = self._places.setdefault(content, [])
        if position not in places:
            bisect.insort(places, position)
        key = self._begun[position] = (*content, places.index(position))
        return key

    async def _all_quiet(self, position: Position) -> None:
        """Waits until no other call is in flight. A failure may end the program, and the calls that parallel tasks had
        made by then would depend on latencies. Of several failures the program gets the first in its order."""
        failed, quiet = self._failed, 0
        failed.append(position)
        try:
            while quiet < _TICKS:
                if self._in_flight:
                    await asyncio.wait(self._in_flight, return_when=asyncio.FIRST_COMPLETED)
                else:
                    await asyncio.sleep(0)
                first = not self._in_flight and position == min(failed)
                quiet = quiet + 1 if first else 0
        finally:
            failed.remove(position)

    def read(self, component: str, position: Position, ended: asyncio.Future[BaseException]) -> Any:
        """The value of a setting in this run. All reads of a run are one call, of the inputs of the program."""
        if ended.done():
            raise asyncio.CancelledError
        value = self._values[component]
        assert isinstance(value, Hyperparameters)
        call = Call(component, self._inputs, value.settings)
        call = self._given.get(call.key, call)
        earlier = next((at for at, known in self._made.items() if known.component == component), None)
        if earlier is None or position < earlier:  # in parallel tasks the first read may come later
            self._made.pop(earlier or position, None)
            self._made[position] = call
        return call.outputs["value"]

    async def _executed(
        self, component: str, inputs: Mapping[str, Any], repeat: int, ended: asyncio.Future[BaseException] | None
    ) -> Call:
        """Executes a component. In a program it runs in a task outside of the program, and its errors end the
        program."""
        execution = self._execute(component, inputs, repeat)
        if ended is None:
            return await execution
        context = contextvars.copy_context()
        context.run(_SCOPE.set, None)
        context.run(_COMPONENT.set, component)
        task = asyncio.get_running_loop().create_task(execution, context=context)
        self._in_flight.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if task.cancelled() and not _is_cancelled():  # by itself
                error = ComponentBug(f"component {component!r} raised CancelledError")
                if not ended.done():
                    ended.set_result(error)
            raise
        except Exception as error:
            if not ended.done():
                ended.set_result(error)
            raise asyncio.CancelledError from error
        finally:
            self._in_flight.discard(task)

    async def run(self, program: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Runs a program and returns its result; its calls are then in ``calls``.

        Parallel calls with equal inputs are numbered as they arrive. If that is not the order of the program, the
        program is run again with the right numbers and the known answers; every repetition gives at least one more call
        its right number.

        Raises:
          ProgramError: the order never settles, because the program depends on more than its inputs and components.
          Exception: what the program raises, or a component other than as its failure.
        """
        loop = asyncio.get_running_loop()
        _number_tasks(loop)
        attempts = 0
        while True:
            attempts += 1
            self._begun, self._arrived, self._made, self._failed = {}, {}, {}, []
            ended: asyncio.Future[BaseException] = loop.create_future()
            scope = Scope(self, ended, token=f"{RUN_MARK}{secrets.token_hex(12)}")
            context = contextvars.copy_context()
            self._root = scope
            context.run(_SCOPE.set, scope)
            context.run(_COMPONENT.set, "")
            _RUNNING[scope.token] = scope
            task = loop.create_task(program(), context=context)
            try:
                await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                del _RUNNING[scope.token]
                if not task.done():
                    task.cancel()
                    await asyncio.wait({task})
                error = ended.result() if ended.done() else None
                ended.cancel()  # tasks that the program left behind end at their next call
                if task.done() and not task.cancelled():
                    task.exception()  # marked as retrieved: the program may be run again
            if error is not None:
                raise error
            self._places = _places(self._begun)
            if all(self._places[key[:2]].index(position) == key[2] for position, key in self._begun.items()):
                return task.result()
            if attempts > len(self._begun) + 1:
                raise ProgramError(
                    f"the order of parallel calls with equal inputs was another one in {attempts} runs of the program: "
                    "give these calls different inputs, such as a number"
                )


def _places(keys: Mapping[Position, CallKey]) -> dict[tuple[str, str], list[Position]]:
    """Positions of calls with equal inputs, in order."""
    places: dict[tuple[str, str], list[Position]] = {}
    for position, key in sorted(keys.items()):
        places.setdefault(key[:2], []).append(position)
    return places


def _is_cancelled() -> bool:
    """Whether the task that runs is being cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _number_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Makes the loop give every task of a program its position in the program."""
    inner = loop.get_task_factory()
    if getattr(inner, "numbers_tasks", False):
        return

    def create(loop: asyncio.AbstractEventLoop, coroutine: Any, context: contextvars.Context | None = None) -> Any:
        """Creates a task; a task that a program starts gets a scope."""
        scope = _SCOPE.get() if context is None else context.get(_SCOPE)
        child = None
        if scope is not None:
            context = contextvars.copy_context() if context is None else context
            child = scope.child()
            context.run(_SCOPE.set, child)
        if inner is None:
            task = asyncio.Task(coroutine, loop=loop, context=context)
        else:
            task = inner(loop, coroutine) if context is None else inner(loop, coroutine, context=context)  # type: ignore[call-arg]
        if child is not None:
            child.task = task
        return task

    create.numbers_tasks = True  # type: ignore[attr-defined]
    loop.set_task_factory(create)
