"""The event loop that all calls of a process run on, in a thread of its own.

A client that a user's module makes at import keeps its connections for the whole run, and a program can be run from
where another loop runs already, such as a notebook.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import contextvars
import ctypes
import dataclasses
import functools
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_LOOK_SECONDS = 0.2  # between two checks for an interrupt or the end
_QUICK = 2_000  # characters that any reader of texts reads within about a millisecond
_WAIT_SECONDS = 60.0  # between two calls of ``Waiting.tell``
_END = 2.0  # seconds that the loop has to end; a function that blocks it never does
_LOCK = threading.Lock()


class _Threads(concurrent.futures.ThreadPoolExecutor):
    """Executor that starts a daemon thread for every call, so that a user's function that hangs (``asyncio.to_thread``)
    does not keep the process from ending."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        """Calls a function in a new thread; returns the future of its result."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=work, name="optimas_jax work", daemon=True).start()
        return future


@dataclasses.dataclass(frozen=True)
class Waiting:
    """Callbacks while a caller waits for a coroutine, and its patience after an interrupt.

    Attributes:
      tell: called every minute, in the waiting thread.
      in_flight: returns what an interrupted coroutine still waits for, as text; "" for nothing.
      grace: seconds that an interrupted coroutine has to end.
      held: returns whether no further call of ``core.running.execution.gather`` may begin for now.
    """

    tell: Callable[[], None] | None = None
    in_flight: Callable[[], str] = lambda: ""
    grace: float = 30.0
    held: Callable[[], bool] = lambda: False


QUIET = Waiting()


def run(coroutine: Coroutine[Any, Any, T], waiting: Waiting = QUIET) -> T:
    """Runs a coroutine on the loop and returns its result. An interrupt of the waiting thread cancels it, and is raised
    when it has ended, or after ``waiting.grace``; a second interrupt leaves it behind at once.

    Raises:
      RuntimeError: it is called on the loop itself, which would wait for itself.
    """
    loop, thread = _loop()
    if threading.current_thread() is thread:
        coroutine.close()
        raise RuntimeError("a call that blocks was made on the event loop of the run: await its asynchronous form")
    started: list[asyncio.Task[T]] = []
    # A plain lock: an interrupt inside the waiting of a Future or an Event can leave its own lock behind, locked.
    ended = threading.Lock()
    ended.acquire()

    def start() -> None:
        started.append(loop.create_task(coroutine))
        started[0].add_done_callback(lambda task: ended.release())

    def cancel() -> None:
        if started and not started[0].done():
            started[0].cancel()
            return
        if not started:  # interrupted before it was handed over
            coroutine.close()
        if ended.locked():
            ended.release()

    try:
        loop.call_soon_threadsafe(start)
        _acquire(ended, tell=waiting.tell)
    except BaseException:
        what = waiting.in_flight()
        loop.call_soon_threadsafe(cancel)
        if what or not _acquire(ended, _END):  # paid answers are recorded before the end
            what = what or "what runs"
            print(f"\nstopping: {what}, up to {waiting.grace:.0f} s; another signal leaves it behind", file=sys.stderr)
            if not _acquire(ended, waiting.grace):
                print(f"left behind after {waiting.grace:.0f} s: {waiting.in_flight() or what}", file=sys.stderr)
        raise
    return started[0].result()


def _acquire(lock: threading.Lock, seconds: float = math.inf, tell: Callable[[], None] | None = None) -> bool:
    """Waits for a lock; returns whether it was acquired. In threads other than the main one an interrupt
    (``in_thread``) arrives between two checks."""
    began = last_told = time.monotonic()
    while not lock.acquire(timeout=min(_LOOK_SECONDS, max(0.0, began + seconds - time.monotonic()))):
        if time.monotonic() - began >= seconds:
            return False
        if tell is not None and time.monotonic() - last_told >= _WAIT_SECONDS:
            tell()
            last_told = time.monotonic()
    return True


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs a blocking function in a thread of its own and returns its result. Cancelling raises ``KeyboardInterrupt``
    in the function, as Ctrl-C does in a main thread, and waits for its end."""
    loop, context = asyncio.get_running_loop(), contextvars.copy_context()
    ended: asyncio.Future[T] = loop.create_future()
    lock, returned = threading.Lock(), threading.Event()  # under the lock: no interrupt comes after the function's end

    def work() -> None:
        result, error = None, None
        try:
            try:
                result = context.run(function, *args, **kwargs)
            finally:
                with lock:
                    returned.set()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(finish, result, error)

    def finish(result: Any, error: BaseException | None) -> None:
        if error is None:
            ended.set_result(result)
        else:
            ended.set_exception(error)

    thread = threading.Thread(target=work, name=f"optimas_jax {function.__name__}", daemon=True)
    thread.start()
    try:
        while not ended.done():  # a notebook's interrupt cancels this without waking the loop
            await asyncio.wait([ended], timeout=_LOOK_SECONDS)
        return ended.result()
    except asyncio.CancelledError:
        with lock:
            if not returned.is_set():
                interrupt(thread)
        await asyncio.wait([ended])  # paid answers are recorded before the end
        ended.exception()  # seen
        raise


def interrupt(thread: threading.Thread) -> None:
    """Raises ``KeyboardInterrupt`` in a thread, as Ctrl-C does in the main one, as soon as it runs code of Python."""
    identity = ctypes.c_ulong(thread.ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(identity, ctypes.py_object(KeyboardInterrupt))


def running() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def run_beside(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine on the loop and returns its result, for callers on another loop."""
    loop, _ = _loop()
    if asyncio.get_running_loop() is loop:
        return await coroutine
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, loop))


def _loop() -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
    """The loop and its thread, the same for all callers of a process."""
    with _LOCK:
        return _started()


@functools.cache
def _started() -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
    """Starts the loop and its thread, which end with the process."""
    loop = asyncio.new_event_loop()
    loop.set_default_executor(_Threads())
    closing = threading.Event()

    def serve() -> None:
        while not closing.is_set():
            try:
                loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                continue  # of a task, which keeps it as its result

    def close() -> None:
        closing.set()
        with contextlib.suppress(TimeoutError):  # a function may block the loop
            asyncio.run_coroutine_threadsafe(_cancel_rest(), loop).result(_END / 2)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_END / 2)
        if not thread.is_alive():
            loop.close()

    thread = threading.Thread(target=serve, name="optimas_jax event loop", daemon=True)
    thread.start()
    atexit.register(close)
    return loop, thread


async def _cancel_rest() -> None:
    """Cancels the other tasks of the loop, and waits a little for their end: the process ends."""
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    if rest:
        ended, _ = await asyncio.wait(rest, timeout=_END / 4)
        for task in ended:
            _ = task.cancelled() or task.exception()  # marked as retrieved


os.register_at_fork(after_in_child=_started.cache_clear)  # the thread stays behind


async def off_loop(work: Callable[[], T], characters: int) -> T:
    """Runs ``work``, which reads a text of so many characters, and returns its result; in a thread if that may take
    more than a millisecond."""
    return work() if characters <= _QUICK else await asyncio.to_thread(work)
