"""A saved program, or the local rewards of a run, as a web application; needs the extra ``serve``."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette

from optimas_jax.core.component import ComponentBug
from optimas_jax.core.running import event_loop
from optimas_jax.core.types import StopRun, Trace
from optimas_jax.programs.plain import PlainError
from optimas_jax.saved.optimized import Optimized, plain_outputs
from optimas_jax.saved.rewards import load_reward
from optimas_jax.server.reward_app import make_reward_app
from optimas_jax.server.system_app import make_system_app


def app_of(optimized: Optimized) -> Starlette:
    """The application of ``server.system_app`` over a program. Its runs use the event loop of the package, on which the
    clients of the program live."""

    async def run(fields: Mapping[str, Any]) -> Trace:
        try:
            return await event_loop.run_beside(optimized.run_fields(fields))
        except PlainError as error:  # about what the program returned: a fault of the program, not of the models
            raise ComponentBug(str(error)) from error

    inputs = optimized.inputs
    return make_system_app(run, plain_outputs, name=optimized.name, required=inputs.required, optional=inputs.optional)


def reward_app_of(folder: str | Path) -> Starlette:
    """The application of ``server.reward_app`` over the local rewards of a run. Requests are computed one after the
    other, so that scores do not depend on other requests.

    Raises:
      FolderError, NoLocalReward: as ``load_reward``.
    """
    rewards = load_reward(folder)
    thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="local-rewards")

    def compute(
        component: str, inputs: Mapping[str, Any], outputs: Sequence[Mapping[str, Any]], reward: str
    ) -> list[float]:
        if component not in rewards:
            raise ValueError(f"no local reward of {component!r}; there are those of {', '.join(rewards)}")
        local_reward = rewards[component]
        try:
            local_reward = local_reward if reward in ("", "served") else local_reward.under(reward)
        except StopRun:  # its message names folders of this machine
            raise ValueError(f"no local reward {reward!r} here; leave it out for the last one of the run") from None
        return local_reward.score(inputs, outputs)

    async def score(
        component: str, inputs: Mapping[str, Any], outputs: Sequence[Mapping[str, Any]], reward: str
    ) -> list[float]:
        return await asyncio.get_running_loop().run_in_executor(thread, compute, component, inputs, outputs, reward)

    return make_reward_app(score)
