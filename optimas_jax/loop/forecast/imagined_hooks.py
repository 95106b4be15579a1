"""Hooks of a rehearsal: functions of the user's are not run for a plan; stand-ins replace them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optimas_jax.core.values import Choice, Grid, Hyperparameters, Models, Value, other_values
from optimas_jax.search.hooks import AcceptTask, Hooks, ProposeTask


def imagined_hooks(hooks: Hooks, requests: int, *, accepts: bool) -> Hooks:
    """Stand-ins for hooks.

    Args:
      requests: number of requests of an own proposer in an iteration, each of which yields a prompt; other values need
        no request.
      accepts: whether an own acceptance accepts everything.
    """

    def propose(task: ProposeTask) -> Sequence[Value | str]:
        if isinstance(task.space, Grid | Models):
            current = task.current if isinstance(task.current, Choice | Hyperparameters) else next(task.space.values())
            return other_values(task.space, current)[:requests]
        return [task.complete(f"{task.component}, {number}") or "Imagined." for number in range(requests)]

    def accept(task: AcceptTask) -> str:
        if accepts:
            return "accept"
        if len(task.after) < task.n:
            return "continue"
        return "accept" if sum(task.after) > sum(task.before) else "refuse"

    return Hooks(
        propose=dict.fromkeys(hooks.proposers, propose) or None,
        accept=accept if hooks.accept else None,
        local_reward=_no_reward if hooks.local_reward else None,
    )


def _no_reward(component: str, inputs: Mapping[str, Any], candidates: Sequence[Any]) -> list[float]:
    return [0.0] * len(candidates)
