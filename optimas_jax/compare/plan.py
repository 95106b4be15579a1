"""All cells of a comparison: what is done is not done again, what failed is a row that says so."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from optimas_jax.compare.cell import CELL, write_task
from optimas_jax.compare.optimizers import Optimizer
from optimas_jax.core.plain import to_dict
from optimas_jax.core.types import StopRun
from optimas_jax.loop.config import RunConfig

ROOT = Path(__file__).parents[2]
_INTERRUPTED = 130
Cells = dict[str, dict[int, dict[str, Any]]]  # optimiser -> seed -> cell.json, or {"error": words}
Runner = Callable[[Path], Awaitable[tuple[int, str]]]


class _Interrupted(Exception):
    """A cell was; the rest are to end, too."""


def run_cells(
    config: RunConfig,
    optimizers: Mapping[str, Optimizer],
    budget: int,
    seeds: Sequence[int],
    workdir: Path,
    line: Callable[[str], None],
    runner: Runner | None = None,
    jobs: int = 1,
) -> Cells:
    """Runs every optimiser with every seed, all optimisers of a seed before the next seed: a comparison that is stopped
    early is a fair one at fewer seeds.

    Args:
      runner: runs the cell of a folder, and returns an exit code and its last words; by default a process.
      jobs: cells that run at the same time.

    Raises:
      KeyboardInterrupt: if a cell was interrupted.
    """
    todo = [(name, seed) for seed in seeds for name in optimizers]
    cells: Cells = {name: {} for name in optimizers}
    queue = iter(enumerate(todo, start=1))

    async def work() -> None:
        for place, (name, seed) in queue:
            cells[name][seed] = await run_one(f"{place}/{len(todo)} {name}, seed {seed}", name, seed)

    async def run_one(label: str, name: str, seed: int) -> dict[str, Any]:
        folder = workdir / "cells" / f"{name}-{seed}"
        try:
            write_task(folder, name, to_dict(optimizers[name].config(config, seed, budget)))
            if not (folder / CELL).is_file():
                line(f"{label}: {folder / 'log.txt'}")
                code, words = await (runner or run_process)(folder)
                if code == _INTERRUPTED:
                    raise _Interrupted
                if not (folder / CELL).is_file():
                    raise StopRun(words or f"exit code {code}")
            return json.loads((folder / CELL).read_text(encoding="utf-8"))
        except (StopRun, ValueError, OSError) as error:
            line(f"{label} failed: {escape(str(error))}")
            return {"error": str(error)}

    async def run_all() -> None:
        await asyncio.gather(*(work() for _ in range(jobs)))

    try:
        asyncio.run(run_all())
    except _Interrupted:
        raise KeyboardInterrupt from None
    return {name: {seed: cells[name][seed] for seed in seeds} for name in optimizers}


async def run_process(folder: Path) -> tuple[int, str]:
    """A process of its own, which writes to the folder's ``log.txt``."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "optimas_jax.compare.cell", str(folder.resolve())]
    log = folder / "log.txt"
    with log.open("ab") as sink:
        start = sink.tell()
        process = await asyncio.create_subprocess_exec(
            *command, stdout=sink, stderr=asyncio.subprocess.STDOUT, env=environment
        )
        try:
            code = await process.wait()
        finally:
            if process.returncode is None:  # we are stopped: it ends with what it has on disk
                process.terminate()
                await process.wait()
    with log.open("rb") as source:
        source.seek(start)
        said = source.read().decode(errors="replace")
    _, error, words = said.rpartition("\nerror: ")
    return code, words.strip() if error else said.strip()[-500:]
