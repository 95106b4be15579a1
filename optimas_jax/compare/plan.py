"""All cells of a comparison. Finished cells are not run again; a failed one is a row with its error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.compare.cell import CELL, RUN, write_task
from optimas_jax.compare.optimizers import Optimizer
from optimas_jax.core.folder.files import read_file, read_rows
from optimas_jax.core.schema import to_dict
from optimas_jax.core.types import StopRun
from optimas_jax.loop.config import RunConfig
from optimas_jax.report.process import STOPPED, run_module

Cells = dict[str, dict[int, dict[str, Any]]]  # optimiser -> seed -> cell.json, or {"error": message}
Runner = Callable[[Path], Awaitable[tuple[int, str]]]


class _Interrupted(Exception):
    """A cell was interrupted, which ends the comparison."""


def run_cells(
    config: RunConfig,
    optimizers: Mapping[str, Optimizer],
    budget: int,
    seeds: Sequence[int],
    workdir: Path,
    line: Callable[[str], None],
    runner: Runner | None = None,
    jobs: int = 1,
    write: Callable[[Cells], object] = lambda cells: None,
) -> Cells:
    """Runs every optimiser with every seed. All optimisers of a seed run before the next seed, so that a comparison
    that is stopped early is still fair, at fewer seeds.

    Args:
      line: called with each line of progress.
      runner: runs the cell of a folder, and returns an exit code and its error message; by default ``run_process``.
      jobs: cells that run at the same time.
      write: called after each cell that ran, with all cells so far.

    Raises:
      KeyboardInterrupt: if a cell was interrupted.
    """
    todo = [(name, seed) for seed in seeds for name in optimizers]
    cells: Cells = {name: {} for name in optimizers}
    queue = iter(enumerate(todo, start=1))
    ended = {key: asyncio.Event() for key in todo}

    async def work() -> None:
        for number, (name, seed) in queue:
            leader = optimizers[name].order_of
            if leader:
                await ended[leader, seed].wait()
            finished = (cell_folder(workdir, name, seed) / CELL).is_file()
            cells[name][seed] = await run_one(f"{number}/{len(todo)} {name}, seed {seed}", name, seed)
            ended[name, seed].set()
            if not finished:
                write(so_far())

    def so_far() -> Cells:
        rows = {name: {seed: cells[name][seed] for seed in seeds if seed in cells[name]} for name in optimizers}
        return {name: by_seed for name, by_seed in rows.items() if by_seed}

    async def run_one(label: str, name: str, seed: int) -> dict[str, Any]:
        """Figures of one cell, or ``{"error": message}``."""
        folder, leader = cell_folder(workdir, name, seed), optimizers[name].order_of
        try:
            if leader and not (cell_folder(workdir, leader, seed) / CELL).is_file():
                raise StopRun(f"it follows the order of {leader!r}, which has no result with this seed")
            order = read_order(cell_folder(workdir, leader, seed) / RUN) if leader else ()
            write_task(folder, name, to_dict(optimizers[name].config(config, seed, budget, order)))
            if not (folder / CELL).is_file():
                line(f"{label}: {folder / 'log.txt'}")
                code, message = await (runner or run_process)(folder)
                if code in STOPPED:
                    raise _Interrupted
                if not (folder / CELL).is_file():
                    raise StopRun(message or f"exit code {code}")
            return read_file(folder / CELL) or {}
        except (StopRun, ValueError, OSError) as error:
            line(f"{label} failed: {error}")
            return {"error": str(error)}

    async def run_all() -> None:
        await asyncio.gather(*(work() for _ in range(jobs)))

    try:
        asyncio.run(run_all())
    except _Interrupted:
        raise KeyboardInterrupt from None
    return so_far()


def cell_folder(workdir: Path, name: str, seed: int) -> Path:
    """The folder of a cell, within the folder of its comparison."""
    return workdir / "cells" / f"{name}-{seed}"


def read_order(workdir: Path) -> list[str]:
    """Components in the order in which a run visited them.

    Raises:
      StopRun: if there is no such run.
    """
    journal = workdir / "journal.jsonl"
    if not journal.is_file():
        raise StopRun(f"no {journal}: the run whose order of components is followed has failed")
    events = [event for event in read_rows(journal) if event["event"] == "pick"]
    if damaged := [event for event in events if not event.keys() >= {"iteration", "component"}]:
        raise StopRun(f"{journal} has a damaged event, {damaged[0]}: the command that made the run mends it")
    picks = {event["iteration"]: event["component"] for event in events}
    return [picks[number] for number in sorted(picks)]


async def run_process(folder: Path) -> tuple[int, str]:
    """Runs the cell of a folder in a process of its own, which writes to the folder's ``log.txt`` (``run_module``)."""
    return await run_module("optimas_jax.compare.cell", [str(folder.resolve())], folder / "log.txt")
