"""Calls of the user's hooks, and errors for exceptions and wrong return values."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from optimas_jax.core.running import event_loop
from optimas_jax.core.running.event_loop import QUIET, Waiting
from optimas_jax.core.running.watch import Watch
from optimas_jax.core.text.frames import UserBug, describe_error, first_of
from optimas_jax.core.text.json_text import shown
from optimas_jax.core.types import StopRun
from optimas_jax.programs.functions import call_function


class HookBug(UserBug):
    """A hook raised an exception, or returned an unusable value; its cause is the hook's own exception."""


async def called(title: str, function: Callable[..., Any], *arguments: Any, watch: Watch | None = None) -> Any:
    """Calls a hook, and returns its value: an ``async`` hook runs here, a plain one in its own thread.

    Args:
      title: title of the hook, for messages.
      watch: shows that the run waits for the hook.

    Raises:
      HookBug: the hook raised an exception.
      StopRun: raised by something that the hook called, such as at the end of the budget.
    """
    try:
        with (watch or Watch()).waiting("hook", title):
            return await call_function(functools.partial(function, *arguments), {})
    except Exception as group:
        error = first_of(group)
        if isinstance(error, StopRun):
            raise error from error.__cause__
        raise HookBug(f"{title} raised {describe_error(error)}") from error


def call(
    title: str,
    function: Callable[..., Any],
    *arguments: Any,
    waiting: Waiting = QUIET,
    watch: Watch | None = None,
) -> Any:
    """Calls a hook as ``called``, and blocks until it returns."""
    return event_loop.run(called(title, function, *arguments, watch=watch), waiting)


def returned(title: str, value: Any, expected: str) -> HookBug:
    """The error for a hook that returned an unusable value."""
    nothing = ": a way through it has no return" * (value is None)
    return HookBug(f"{title} returned {shown(value, 300)}, expected {expected}{nothing}")
