"""An own pick rule, which replaces ``config.optimize.pick``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optimas_jax.core.types import derive_seed
from optimas_jax.loop.budget import costs_from
from optimas_jax.loop.context import Host
from optimas_jax.loop.hooks.calls import call, returned
from optimas_jax.loop.state import State
from optimas_jax.search.hooks import Pickable, PickTask, function_name, title


def own_pick(
    host: Host,
    function: Callable[..., Any],
    state: State,
    components: Sequence[str],
    gaps: Mapping[str, float],
    number: int,
) -> str:
    """The component that an own rule picks among ``components``, which have something left to try.

    Raises:
      HookBug: the rule raised an exception, or returned another name.
    """
    costs, what = costs_from(host), title("pick rule", function_name(function))
    pickable = tuple(
        Pickable(name, gaps[name], state.visits.get(name, 0), state.gains.get(name, ()), costs[name])
        for name in components
    )
    task = PickTask(pickable, number, derive_seed(host.seed, "own pick", number))
    name = call(what, function, task, waiting=host.waiting, watch=host.system.watch)
    if not isinstance(name, str) or name not in components:
        raise returned(what, name, f"the name of a component with something left to try: {', '.join(components)}")
    return name
