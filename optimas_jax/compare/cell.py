"""One cell of a comparison: one optimiser with one seed, in a run folder of its own.

    python -m optimas_jax.compare.cell FOLDER      the command of ``launch/compare.py`` for each cell

Each cell is a process: if it fails or is killed, the others continue, and its memory is free. The folder is an ordinary
run folder with tape, stages, ``best/`` and ``results.json``. The state of the search at the budget (``compare.state``)
is tested and, outside the budget, compared with the default on the ``confirm`` split.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optimas_jax.parallel.large_pages import use_large_pages

if __name__ == "__main__":
    use_large_pages()
# Otherwise transformers reports that torch, which is not needed here, is absent.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from optimas_jax.compare.optimizers import OPTIMIZERS, Optimizer, Ours
from optimas_jax.compare.peer import run_peer
from optimas_jax.compare.state import Point, SearchState, state_at
from optimas_jax.compare.stopwatch import Meter, before_phase, keeping_time, read_seconds
from optimas_jax.core.folder.files import read_file, write_json
from optimas_jax.core.running.execution import Job
from optimas_jax.core.shipped import PACKAGE
from optimas_jax.core.types import StopRun
from optimas_jax.llm.base import Completer
from optimas_jax.loop.budget import read_curve
from optimas_jax.loop.config import RunConfig, parse_config
from optimas_jax.loop.context import Run
from optimas_jax.loop.evaluate import Evaluation
from optimas_jax.loop.folder.record import commit
from optimas_jax.loop.journal import RESULTS
from optimas_jax.loop.stages import find_models, open_run, run_stage
from optimas_jax.report.commands import run_alone
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.report.run import write_page_of

TASK, CELL, RUN = "task.json", "cell.json", "run"  # the optimiser and its configuration, the result, the run folder
CLOCK = "seconds.json"  # ``stopwatch.Seconds`` so far
CONFIRM = "confirm"  # the split that no search sees, and the ledger's phase of the measurement on it


def run_cell(
    optimizer: Optimizer,
    config: RunConfig,
    folder: Path,
    progress: ConsoleProgress | None = None,
    completer: Completer | None = None,
) -> dict[str, Any]:
    """Optimises and tests; the same call on the same folder resumes.

    Args:
      config: of this run (``optimizer.config``).
      completer: see ``build_run``.

    Returns:
      The content of ``cell.json``: scores of every example of the test split under the default configuration
      (``baseline``) and under the state at the budget (``scores``), which ``tested`` describes; the same for the
      confirm split (``confirm``, None without such a split); whether the state is the default (``unchanged``);
      ``curve``; ``label_use`` of our races, by component; the ``commit`` that ran it; wall-clock ``seconds`` of the
      search and ``reward_seconds`` of local rewards in it; a ``note`` for the reader, or "".

    Raises:
      ValueError: for a model that cannot be found.
      StopRun: with a message for the user; what was paid for is kept.
    """
    workdir = folder / RUN
    with open_run(config, workdir, progress or ConsoleProgress(), completer) as run:
        if completer is None and isinstance(optimizer, Ours):  # a peer needs no local reward
            find_models(run)
        state, curve, note = _timed_search(optimizer, run, folder)
        seconds = read_seconds(folder / CLOCK)
        run_stage(run, "evaluate")
        baseline, optimized = _evaluate(run, state, "test")
        confirm = None
        if run.host.splits.get(CONFIRM):
            before, after = _evaluate(run, state, CONFIRM)
            confirm = {"n": len(after.scores), "baseline": before.scores, "scores": after.scores}
        unchanged = not state.chosen and state.configuration == run.host.system.default_configuration()
    results = read_file(workdir / RESULTS) or {}
    return {
        **{name: results[name] for name in ("metric", "chance")},
        "split": "test",
        "n": len(optimized.scores),
        "outcomes": optimized.outcomes,
        "tested": state.to_json(),
        "baseline": baseline.scores,
        "scores": optimized.scores,
        "confirm": confirm,
        "unchanged": unchanged,
        "curve": curve,
        "label_use": results.get("label_use") or {},
        "commit": commit(PACKAGE.parent) or "",
        "seconds": round(seconds.search, 1),
        "reward_seconds": round(seconds.rewards, 1),
        "note": note,
    }


def _timed_search(optimizer: Optimizer, run: Run, folder: Path) -> tuple[SearchState, Sequence[Point], str]:
    """Searches, and leaves the seconds in the folder's ``CLOCK``: without the confirmation and the alignment after it,
    which are no part of the search."""
    meter, rewards = Meter(), run.device.rewards
    with (
        keeping_time(folder / CLOCK, meter) as stop,
        before_phase(run.host.ledger, CONFIRM, stop),
        meter.watching(rewards.trainer, "train"),
        meter.watching(rewards.scorer, "scores"),
    ):
        return _search(run, folder / RUN) if isinstance(optimizer, Ours) else run_peer(optimizer, run)


def _search(run: Run, workdir: Path) -> tuple[SearchState, Sequence[Point], str]:
    """Runs our search; its state at the budget, its curve, and a note."""
    for stage in ("collect", "train", "optimize"):
        run_stage(run, stage)
    curve = read_curve(workdir)
    accepted = (run.host.folder.read("optimized.json") or {})["accepted"]
    state = state_at(run.config.optimize.max_tokens, curve, accepted, run.host.system.default_configuration())
    note = f"{state.later} accepted beyond the budget, left out" if state.later else ""
    return state, curve, note


def _evaluate(run: Run, state: SearchState, split: str) -> tuple[Evaluation, Evaluation]:
    """The default configuration and this state on all examples of a split, outside the search budget."""
    default, examples = run.host.system.default_configuration(), run.host.splits[split]
    jobs = [Job(default, example, run.host.seed) for example in examples]
    jobs += [Job(state.chosen.get(row.id, state.configuration), row, run.host.seed) for row in examples]
    with run.host.ledger.phase(f"compare {split}"):
        traces = run.host.run("evaluation runs", jobs)
    before, after = traces[: len(examples)], traces[len(examples) :]
    return Evaluation((tuple(before),)), Evaluation((tuple(after),))


def main(folder: Path) -> int:
    """Runs the cell of a folder by its ``task.json`` (name of the optimiser, configuration); returns an exit code."""

    def run() -> None:
        task = read_file(folder / TASK) or {}
        cell = run_cell(OPTIMIZERS[task["optimizer"]], parse_config(task["config"]), folder)
        write_page_of(folder / RUN, ConsoleProgress())
        write_json(folder / CELL, cell)

    return run_alone(run)


def write_task(folder: Path, name: str, config: dict[str, Any]) -> None:
    """Writes the file that ``main`` reads.

    Raises:
      StopRun: if the folder belongs to another task.
    """
    task = {"optimizer": name, "config": json.loads(json.dumps(config))}
    path = folder / TASK
    existing = read_file(path)
    if existing is not None and existing != task:
        raise StopRun(
            f"{folder} belongs to another configuration or budget: use another --workdir, or the same ones to resume"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, task)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
