"""Calls of the user's hooks, and what is wrong with what they raise and return."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from optimas_jax.core import event_loop
from optimas_jax.core.event_loop import QUIET, Waiting
from optimas_jax.core.frames import UserBug, describe_error, first_of
from optimas_jax.core.json_text import shown
from optimas_jax.core.types import StopRun
from optimas_jax.core.watch import Watch
from optimas_jax.programs.functions import call_function


class HookBug(UserBug):
    """A hook raised an exception, or returned what cannot be used; its cause is the hook's own exception."""


async def called(title: str, function: Callable[..., Any], *arguments: Any, watch: Watch | None = None) -> Any:
    """What a hook returns: an ``async`` one runs here, a plain one in a thread of its own.

    Args:
      title: of the hook, for messages.
      watch: is told what is waited for.

    Raises:
      HookBug: it raised an exception.
      StopRun: as what it called raised, such as the end of the budget.
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
    """``called``, for a thread that waits for it."""
    return event_loop.run(called(title, function, *arguments, watch=watch), waiting)


def returned(title: str, value: Any, expected: str) -> HookBug:
    """The error of a hook that returned a value which cannot be used."""
    nothing = ": a way through it has no return" * (value is None)
    return HookBug(f"{title} returned {shown(value, 300)}, expected {expected}{nothing}")
