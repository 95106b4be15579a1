"""Many runs of a system: concurrent calls in the order of their arguments, and Monte Carlo global rewards."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import gc
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from optimas_jax.core.running import event_loop
from optimas_jax.core.running.event_loop import QUIET, Waiting
from optimas_jax.core.system import System
from optimas_jax.core.text.frames import first_of
from optimas_jax.core.types import Call, CallKey, Example, Trace, derive_seed
from optimas_jax.core.values import Configuration

T = TypeVar("T")
_HELD_SECONDS = 0.2  # between two checks whether the next call may begin


@dataclasses.dataclass(frozen=True)
class Job:
    """Arguments of one ``System.run``."""

    configuration: Configuration
    example: Example
    seed: int
    given: Mapping[CallKey, Call] | None = None


def run_many(
    system: System,
    jobs: Sequence[Job],
    *,
    concurrency: int,
    on_done: Callable[[], None] | None = None,
    waiting: Waiting = QUIET,
) -> list[Trace]:
    """Runs all jobs and returns their traces in the order of the jobs; see ``gather``."""
    calls = [functools.partial(system.run, job.configuration, job.example, job.seed, job.given) for job in jobs]
    return gather(calls, concurrency=concurrency, on_done=on_done, waiting=waiting)


def gather(
    calls: Sequence[Callable[[], Awaitable[T]]],
    *,
    concurrency: int,
    on_done: Callable[[], None] | None = None,
    waiting: Waiting = QUIET,
) -> list[T]:
    """Awaits all calls, at most ``concurrency`` at once; results are in the order of the calls.

    The first error cancels the rest and is raised. ``on_done`` is called once per finished call, for progress bars.
    """

    try:
        with _older_objects_at_rest():
            return event_loop.run(await_all(calls, concurrency, on_done, waiting.held), waiting)
    except BaseExceptionGroup as group:
        error = first_of(group)
        raise error from error.__cause__


@contextlib.contextmanager
def _older_objects_at_rest() -> Iterator[None]:
    """Within the block, garbage collections skip the objects that existed before. With the array libraries imported one
    full collection takes 0.3 s, and a round of 2,000 calls causes several."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def await_all(
    calls: Sequence[Callable[[], Awaitable[T]]],
    concurrency: int,
    on_done: Callable[[], None] | None = None,
    held: Callable[[], bool] = lambda: False,
) -> list[T]:
    """The coroutine of ``gather``, for the running event loop. Whenever a call ends, the next one starts.

    Raises:
      BaseExceptionGroup: if a call fails.
    """
    slots = asyncio.Semaphore(concurrency)

    async def run_one(call: Callable[[], Awaitable[T]]) -> T:
        try:
            result = await call()
        finally:
            slots.release()
        if on_done is not None:
            on_done()
        return result

    tasks = list[asyncio.Task[T]]()
    async with asyncio.TaskGroup() as group:
        for call in calls:
            await slots.acquire()
            while held():
                await asyncio.sleep(_HELD_SECONDS)
            tasks.append(group.create_task(run_one(call)))
    return [task.result() for task in tasks]


async def global_rewards(
    system: System,
    configuration: Configuration,
    example: Example,
    trace: Trace,
    answers: Mapping[int, Call | Mapping[str, Any]],
    seeds: Sequence[int],
) -> tuple[float, ...]:
    """Global rewards (``Trace.reward``) of other outputs of some calls of a run (paper, Eq. 3): the rest of the run is
    executed once with every seed.

    Args:
      answers: as in ``System.followed``.
      seeds: from ``rollout_seeds``.
    """
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(system.run(configuration, example, seed, system.followed(trace, answers, seed)))
            for seed in seeds
        ]
    return tuple(task.result().reward for task in tasks)


def rollout_seeds(seed: int, rollouts: int) -> list[int]:
    """Seeds of Monte Carlo runs; the first one is the seed of the run itself."""
    return [seed, *(derive_seed(seed, "rollout", index) for index in range(1, rollouts))]
