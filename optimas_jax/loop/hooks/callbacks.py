"""Callbacks: functions of the user's, called with every event of a run (``core.folder.events``).

If a callback has a method ``on_call``, this gets every call of a language model (``core.running.tracking.ModelCall``).

Each callback has its own thread, and gets the events in their order: a slow one delays neither the run nor another
callback. The run waits for all of them at its end.
"""

from __future__ import annotations

import inspect
import queue
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from optimas_jax.core.folder.events import Event, name_of
from optimas_jax.core.running import event_loop
from optimas_jax.core.running.tracking import ModelCall
from optimas_jax.core.text.frames import describe_error, first_of
from optimas_jax.core.text.json_text import shown
from optimas_jax.search.hooks import HookError, check_callable, function_name

_LOOK = 0.2  # seconds between two checks whether a thread has ended


def checked_callbacks(callbacks: Any) -> tuple[Callable[[Event], Any], ...]:
    """Checks the callbacks of a run, and returns them as a tuple.

    Raises:
      HookError: they are no list of functions of an event.
    """
    if not isinstance(callbacks, list | tuple):
        raise HookError(f"callbacks is {shown(callbacks)}, expected a list of functions: callbacks=[function]")
    for index, callback in enumerate(callbacks):
        check_callable(callback, f"callbacks[{index}]", "event")
    return tuple(callbacks)


class Callbacks:
    """Hands events to callbacks, each in its own thread."""

    def __init__(self, functions: Sequence[Callable[[Event], Any]], warn: Callable[[str], None], grace: float):
        """
        Args:
          functions: callbacks, plain or ``async``; the latter run on the event loop of the run.
          warn: shows a line.
          grace: seconds of waiting for one event of a callback when the run is over.
        """
        self._listeners = [_Listener(function, warn) for function in functions]
        self._warn, self._grace = warn, grace

    def tell(self, event: Event) -> None:
        """Hands an event to every callback; does not wait for them."""
        for listener in self._listeners:
            listener.events.put(event)

    @property
    def teller_of_calls(self) -> Callable[[ModelCall], None] | None:
        """Hands a call to every callback with ``on_call``; None if there is no such callback."""
        listeners = [listener for listener in self._listeners if listener.takes_calls]

        def tell(call: ModelCall) -> None:
            for listener in listeners:
                listener.events.put(call)

        return tell if listeners else None

    def close(self) -> None:
        """Waits until every callback got all events; one that takes too long for an event is abandoned."""
        for listener in self._listeners:
            listener.events.put(None)
        for listener in self._listeners:
            if not listener.ended(self._grace):
                self._warn(
                    f"warning: callback {listener.name!r} is at {listener.at} since {self._grace:.0f} s "
                    f"and is left behind, {listener.events.qsize()} events before its end"
                )


class _Listener:
    """A callback with its queue of events, and the thread that calls it."""

    def __init__(self, function: Callable[[Event], Any], warn: Callable[[str], None]):
        self.name, self._function, self._warn = function_name(function), function, warn
        self.takes_calls = hasattr(function, "on_call")
        self._on_call: Callable[..., Any] = getattr(function, "on_call", function)
        self.events: queue.SimpleQueue[Event | ModelCall | None] = queue.SimpleQueue()
        self.at, self._told = "its first event", 0
        self._warned: set[type[BaseException]] = set()
        self._thread = threading.Thread(target=self._work, name=f"optimas_jax callback {self.name}", daemon=True)
        self._thread.start()

    def ended(self, grace: float) -> bool:
        """Waits for the thread to end, up to ``grace`` seconds for each event; returns whether it has."""
        waited, handled = 0.0, self._told
        while self._thread.is_alive() and waited < grace:
            self._thread.join(_LOOK)
            waited, handled = (waited + _LOOK, handled) if handled == self._told else (0.0, self._told)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (event := self.events.get()) is not None:
            self.at = "a call" if isinstance(event, ModelCall) else name_of(event)
            try:
                answer = self._on_call(event) if isinstance(event, ModelCall) else self._function(event)
                if inspect.isawaitable(answer):
                    event_loop.run(_awaited(answer))
            except BaseException as error:  # any error of a callback: the run continues
                self._failed(first_of(error))
            self._told += 1

    def _failed(self, error: BaseException) -> None:
        if type(error) not in self._warned:
            self._warned.add(type(error))
            self._warn(
                f"warning: callback {self.name!r} raised "
                f"{describe_error(error)} at {self.at}; the run goes on, and this is said once"
            )


async def _awaited(answer: Awaitable[Any]) -> None:
    await answer
