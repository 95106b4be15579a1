"""All cells of a comparison, one after the other: what is done is not done again, what failed is a row that says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from optimas_jax.compare.cell import CELL, write_task
from optimas_jax.compare.optimizers import Optimizer
from optimas_jax.core.types import StopRun
from optimas_jax.loop.config import RunConfig, to_dict

ROOT = Path(__file__).parents[2]
_INTERRUPTED = 130
Cells = dict[str, dict[int, dict[str, Any]]]  # optimiser -> seed -> cell.json, or {"error": words}
Runner = Callable[[Path], tuple[int, str]]


def run_cells(
    config: RunConfig,
    optimizers: Mapping[str, Optimizer],
    budget: int,
    seeds: Sequence[int],
    workdir: Path,
    line: Callable[[str], None],
    runner: Runner | None = None,
) -> Cells:
    """Runs every optimiser with every seed, all optimisers of a seed before the next seed: a comparison that is stopped
    early is a fair one at fewer seeds.

    Args:
      runner: runs the cell of a folder, and returns an exit code and its last words; by default a process.

    Raises:
      KeyboardInterrupt: if a cell was interrupted.
    """
    cells: Cells = {name: {} for name in optimizers}
    todo = [(name, seed) for seed in seeds for name in optimizers]
    for place, (name, seed) in enumerate(todo, start=1):
        folder = workdir / "cells" / f"{name}-{seed}"
        label = f"{place}/{len(todo)} {name}, seed {seed}"
        try:
            write_task(folder, name, to_dict(optimizers[name].config(config, seed, budget)))
            if not (folder / CELL).is_file():
                line(f"{label}: {folder / 'log.txt'}")
                code, words = (runner or run_process)(folder)
                if code == _INTERRUPTED:
                    raise KeyboardInterrupt
                if not (folder / CELL).is_file():
                    raise StopRun(words or f"exit code {code}")
            cells[name][seed] = json.loads((folder / CELL).read_text(encoding="utf-8"))
        except (StopRun, ValueError, OSError) as error:
            cells[name][seed] = {"error": str(error)}
            line(f"{label} failed: {escape(str(error))}")
    return cells


def run_process(folder: Path) -> tuple[int, str]:
    """A process of its own, which writes to the folder's ``log.txt``."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "optimas_jax.compare.cell", str(folder.resolve())]
    log = folder / "log.txt"
    with log.open("ab") as sink:
        start = sink.tell()
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=environment)  # noqa: S603 - no shell, our own module
        try:
            code = process.wait()
        except KeyboardInterrupt:  # it has heard it, too, and ends with what it has on disk
            process.terminate()
            process.wait()
            raise
    with log.open("rb") as source:
        source.seek(start)
        said = source.read().decode(errors="replace")
    _, error, words = said.rpartition("\nerror: ")
    return code, words.strip() if error else said.strip()[-500:]
