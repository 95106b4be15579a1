"""An own acceptance, which replaces the gate's test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from optimas_jax.core.types import valid_text
from optimas_jax.loop.context import Host
from optimas_jax.loop.hooks.calls import call, returned
from optimas_jax.loop.state import Ranked, State
from optimas_jax.search.gate import Verdict, all_looks
from optimas_jax.search.hooks import AcceptTask, function_name, title

_VERDICTS: dict[str, Verdict] = {"accept": "accept", "refuse": "reject", "continue": "continue"}


def own_verdict(
    host: Host,
    function: Callable[..., Any],
    state: State,
    name: str,
    one: Ranked,
    after: Sequence[float],
    before: Sequence[float],
) -> tuple[Verdict, str]:
    """The verdict of an own acceptance at an interim look, and its reason.

    Args:
      one: the proposal, ranked by the race.
      after, before: scores of the proposal and of the value in use on the examples so far.

    Raises:
      HookBug: the function raised an exception, or returned no verdict.
    """
    n, what = len(state.val_traces), title("acceptance", function_name(function))
    task = AcceptTask(
        component=name,
        kind=one.proposal.kind,
        current=state.configuration[name],
        proposal=one.proposal.value,
        before=tuple(before),
        after=tuple(after),
        n=n,
        looks=all_looks(n),
        expected_gain=one.expected_gain,
    )
    value = call(what, function, task, waiting=host.waiting, watch=host.system.watch)
    verdict, reason = value if isinstance(value, tuple) and len(value) == 2 else (value, "")
    if not isinstance(verdict, str) or verdict not in _VERDICTS or not isinstance(reason, str):
        raise returned(what, value, "'accept', 'refuse' or 'continue', or one of them and a reason")
    if verdict == "continue" and len(after) == n:
        raise returned(what, value, f"'accept' or 'refuse' after all {n} validation examples")
    return _VERDICTS[verdict], valid_text(reason)
