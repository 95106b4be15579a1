"""One cell of a comparison: one optimiser with one seed, in a run folder of its own.

    python -m optimas_jax.compare.cell FOLDER      what ``launch/compare.py`` runs for every cell

A process for each, so that a cell that fails or is killed takes nothing with it, and the next one finds the memory
free. The folder is that of an ordinary run: the same tape, the same stages, the same ``best/`` and ``results.json``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optimas_jax.parallel.large_pages import use_large_pages

if __name__ == "__main__":
    use_large_pages()
# Or it reports that torch, which nothing here needs, is absent.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from optimas_jax.compare.optimizers import OPTIMIZERS, Optimizer, Ours
from optimas_jax.compare.peer import run_peer
from optimas_jax.core.types import StopRun
from optimas_jax.llm.base import Completer
from optimas_jax.loop.budget import read_curve
from optimas_jax.loop.config import RunConfig, parse_config
from optimas_jax.loop.journal import write_json
from optimas_jax.loop.progress import ConsoleProgress
from optimas_jax.loop.stages import find_models, open_run, run_stage

TASK, CELL, RUN = "task.json", "cell.json", "run"  # what to do, what came out, the run folder
CLOCK = "seconds.json"  # of the search so far


def run_cell(
    optimizer: Optimizer,
    config: RunConfig,
    folder: Path,
    progress: ConsoleProgress | None = None,
    completer: Completer | None = None,
) -> dict[str, Any]:
    """Optimises and tests, and returns what ``cell.json`` holds; the same call on the same folder resumes.

    Args:
      config: of this run (``optimizer.config``).
      completer: see ``build_run``.

    Raises:
      ValueError: for a model that is nowhere.
      StopRun: with a message for the user; what was paid for is kept.
    """
    workdir, note = folder / RUN, ""
    with open_run(config, workdir, progress or ConsoleProgress(), completer) as run:
        if completer is None and isinstance(optimizer, Ours):  # a peer needs no local reward
            find_models(run)
        with _clock(folder / CLOCK):
            if isinstance(optimizer, Ours):
                for stage in ("collect", "train", "optimize"):
                    run_stage(run, stage)
                curve = read_curve(workdir)
            else:
                curve, note = run_peer(optimizer, run)
        seconds = _read_clock(folder / CLOCK)
        run_stage(run, "evaluate")
    results = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
    return {
        **{name: results[name] for name in ("metric", "chance", "n", "split", "outcomes")},
        "baseline": results["baseline"]["scores"],
        "scores": results["optimized"]["scores"],
        "curve": curve,
        "seconds": round(seconds, 1),
        "note": note,
    }


@contextlib.contextmanager
def _clock(path: Path) -> Iterator[None]:
    """Adds the seconds inside the block to those of earlier calls that were interrupted. A full disk costs them, and
    hides nothing that the block raises."""
    before, started = _read_clock(path), time.monotonic()
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            write_json(path, before + time.monotonic() - started)
        raise
    write_json(path, before + time.monotonic() - started)


def _read_clock(path: Path) -> float:
    return float(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else 0.0


def main(folder: Path) -> int:
    """Runs the cell of a folder, whose ``task.json`` names the optimiser and holds the configuration."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a peer ends with it, as with an interrupt
    logging.disable(logging.INFO)  # libraries narrate; progress has its own lines
    try:
        task = json.loads((folder / TASK).read_text(encoding="utf-8"))
        cell = run_cell(OPTIMIZERS[task["optimizer"]], parse_config(task["config"]), folder)
    except KeyboardInterrupt:
        return 130
    except (StopRun, ValueError) as error:
        notes = "".join(f"\n  ({note})" for note in getattr(error, "__notes__", ()))
        print(f"\nerror: {error}{notes}", file=sys.stderr)
        return 1
    write_json(folder / CELL, cell)
    return 0


def write_task(folder: Path, name: str, config: dict[str, Any]) -> None:
    """What ``main`` reads. A folder that has another task is refused.

    Raises:
      StopRun: if it does.
    """
    task = {"optimizer": name, "config": json.loads(json.dumps(config))}
    path = folder / TASK
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != task:
        raise StopRun(
            f"{folder} belongs to another configuration or budget: use another --workdir, or the same ones to resume"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, task)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
