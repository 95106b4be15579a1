"""Runs the points of a sweep, several at a time. Finished points are not run again; a failed point is a row with its
error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.report.process import STOPPED
from optimas_jax.sweep.executors.base import Runner
from optimas_jax.sweep.folder import read_result
from optimas_jax.sweep.points import Point

Results = dict[str, dict[str, Any]]  # name of a point -> results.json, or {"error": message}
_LOOK_SECONDS = 1.0  # between two looks at the journals of running points


class _Interrupted(Exception):
    """A point was interrupted, which ends the sweep."""


def remaining(points: Sequence[Point], folder: Path) -> list[str]:
    """Names of the points that have no result yet."""
    return [point.name for point in points if read_result(folder, point.name) is None]


def run_points(
    points: Sequence[Point],
    folder: Path,
    jobs: int,
    show: Callable[[Mapping[str, Any], Sequence[str]], None],
    runner: Runner,
) -> Results:
    """Runs every point that has no result yet.

    Args:
      folder: of the sweep (``folder.open_sweep``).
      jobs: points that run at the same time.
      show: callback with the results so far and the names of the running points, every second and after each point.
      runner: runs a point (``executors``).

    Returns:
      Results by name, in the order of the points.

    Raises:
      KeyboardInterrupt: if a point was interrupted.
    """
    ended = {point.name: read_result(folder, point.name) for point in points}
    results: Results = {name: result for name, result in ended.items() if result is not None}
    queue = iter([name for name in ended if name not in results])
    running: list[str] = []

    async def work() -> None:
        for name in queue:
            running.append(name)
            try:
                results[name] = await run_one(name)
            finally:
                running.remove(name)
                show(results, running)

    async def run_one(name: str) -> dict[str, Any]:
        code, message = await runner(name)
        if code in STOPPED:
            raise _Interrupted
        return read_result(folder, name) or {"error": message or f"exit code {code}"}

    async def look() -> None:
        while True:
            show(results, running)
            await asyncio.sleep(_LOOK_SECONDS)

    async def run_all() -> None:
        looking = asyncio.ensure_future(look())
        async with asyncio.TaskGroup() as group:
            for _ in range(jobs):
                group.create_task(work())
        looking.cancel()

    try:
        asyncio.run(run_all())
    except BaseExceptionGroup as group:
        if group.subgroup(_Interrupted) is None:
            raise
        raise KeyboardInterrupt from None
    return {point.name: results[point.name] for point in points}
