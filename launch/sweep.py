"""Runs a configuration with every combination of other values, each in a folder of its own. The same command resumes.

python launch/sweep.py --config=configs/hotpotqa.py:tiny --sweep='optimize.gate.kind=strict,paired seed=0:3'
    [--jobs=1] [--workdir=DIR] [--executor=local|slurm|ray] [--devices=N] [--cpus=N] [--sbatch=OPTIONS]
python launch/sweep.py --config=configs/hotpotqa.py --sweep=configs/sweeps/local_rewards.py [--jobs=1] [--workdir=DIR]

Any field of the configuration is an axis: ``config.`` in front of it may be left out. Values are separated by commas,
or by ``|`` if a value contains commas; ``0:3`` are the whole numbers from 0 to 2. Intervals are over seeds. A sweep may
grow: with further values or seeds the same folder is continued.

Results: a table on the screen while it runs; sweep.html, sweep.md, sweep.csv, points.jsonl (every test score) and a
PNG for each axis in the workdir; a run folder for every point. Equal requests of all points are paid only once.

Points run in processes of this machine, no two of which see the same accelerator; as tasks of a Ray cluster; or as one
Slurm array, which goes on without this command. With Ray and Slurm, --workdir, the working folder and this package must
be on all machines (docs/pods.md).
"""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

# Otherwise transformers reports that torch is absent, which is not needed here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from absl import app, flags
from ml_collections import config_flags
from rich.console import RenderableType

from optimas_jax.benchmarks.modules import title
from optimas_jax.core.types import StopRun
from optimas_jax.llm.shared import ResultFiles
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.loop.journal import TAPE
from optimas_jax.loop.stages import find_models, open_run
from optimas_jax.parallel.mesh import MeshConfig
from optimas_jax.report.commands import DEFAULT_CONFIG, exit_code, parse_flags
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.report.figures import check_matplotlib, save
from optimas_jax.report.live.grids import fitted
from optimas_jax.report.process import interrupt_on_terminate
from optimas_jax.sweep.executors.base import Resources
from optimas_jax.sweep.executors.choose import EXECUTORS, make_executor
from optimas_jax.sweep.folder import SHARED, open_sweep, read_progress
from optimas_jax.sweep.page import write_sweep_page
from optimas_jax.sweep.plot import axes_of, draw
from optimas_jax.sweep.points import Point, SweepError, read_points
from optimas_jax.sweep.record import POINTS, write_results
from optimas_jax.sweep.run import Results, remaining, run_points
from optimas_jax.sweep.summary import csv_text, figures_of, summarize
from optimas_jax.sweep.tables import markdown, table

Show = Callable[[Mapping[str, Any], Sequence[str]], None]

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, f"Configuration file, with :variant; without it {DEFAULT_CONFIG}."
)
_SWEEP = flags.DEFINE_string("sweep", "", "Axes ('optimize.rounds=1,3 seed=0:3'), or a file of configs/sweeps.")
_JOBS = flags.DEFINE_integer(
    "jobs",
    None,
    "Points that run at the same time; default 1, on a cluster as many as there is room for.",
    lower_bound=1,
)
_EXECUTOR = flags.DEFINE_enum("executor", "local", EXECUTORS, "Where points run.")
_DEVICES = flags.DEFINE_integer(
    "devices",
    None,
    "Accelerators of each point, 0 for none; default: local, those of this machine divided by --jobs; ray, one where "
    "the cluster has some; slurm, what --sbatch asks for.",
    lower_bound=0,
)
_CPUS = flags.DEFINE_integer("cpus", 1, "Cores that ray and slurm reserve for each point.", lower_bound=1)
_SBATCH = flags.DEFINE_string("sbatch", "", "More options of sbatch: '--partition=gpu --time=4:00:00'.")
_WORKDIR = flags.DEFINE_string(
    "workdir", "", "Folder; default runs/sweep-BENCHMARK-VARIANT, with the name of a sweep's file."
)


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    interrupt_on_terminate()  # points end with this process
    logging.disable(logging.INFO)  # libraries log too much
    return exit_code(sweep)


def sweep() -> int:
    """Runs the points, and shows their results; 1 if one of them failed."""
    progress = ConsoleProgress()
    points = read_points(_CONFIG.value.to_dict(), _SWEEP.value)
    check_matplotlib()
    executor = make_executor(_EXECUTOR.value, Resources(_JOBS.value, _CPUS.value, _DEVICES.value), _SBATCH.value)
    jobs = min(executor.jobs or len(points), len(points))
    first = points[0].config
    name = f"{title(first.benchmark)}:{first.variant}"
    of_file = f"-{Path(_SWEEP.value.strip()).stem}" if _SWEEP.value.strip().endswith(".py") else ""
    workdir = Path(_WORKDIR.value or f"runs/sweep-{title(first.benchmark)}-{first.variant}{of_file}")
    with open_sweep(workdir, points, check_points) as lock:
        progress.line(f"{name}, {len(points)} points, {_JOBS.value or jobs} at a time; {workdir}")
        with (
            executor.open(workdir, remaining(points, workdir), lock) as runner,
            live_table(progress, name, points, workdir) as show,
        ):
            results = run_points(points, workdir, jobs, show, runner)
        report(progress, name, points, results, workdir)
    return 0 if all("error" not in result for result in results.values()) else 1


def check_points(points: Sequence[Point]) -> None:
    """Builds the run of every point without running anything, so that a point that cannot work ends the sweep before
    the first one runs. Accelerators are not used: this machine may have none, or a point may need them.

    Raises:
      SweepError: names the point.
    """
    import jax

    jax.config.update("jax_platforms", "cpu")
    found_models: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        for index, point in enumerate(points):
            try:
                config = dataclasses.replace(point.config, mesh=MeshConfig())
                with open_run(config, Path(folder) / str(index), ConsoleProgress(quiet=True)) as run:
                    found_models.update(find_models(run, found_models))
            except (StopRun, ValueError) as error:
                raise SweepError(f"the point {point.name}: {error}") from None


@contextmanager
def live_table(progress: ConsoleProgress, name: str, points: Sequence[Point], workdir: Path) -> Iterator[Show]:
    """Shows a table that is updated in place on a terminal; elsewhere prints a line for each point that has ended."""
    seeds = {point.name: point.seed for point in points}
    reported: set[str] = set()
    latest: tuple[Mapping[str, Any], Sequence[str]] = {}, ()

    def view(width: int) -> RenderableType:
        results, running = latest
        doing = {key: f"seed {seeds[key]}: {read_progress(workdir, key) or 'begins'}" for key in running}
        return fitted(table(name, summarize(points, results), doing), width)

    with progress.in_place(view) as is_shown:

        def show(results: Mapping[str, Any], running: Sequence[str]) -> None:
            nonlocal latest
            latest = dict(results), tuple(running)
            for key in [key for key in results if not is_shown and key not in reported]:
                reported.add(key)
                figures = figures_of(results[key])
                words = f"failed: {figures['error']}" if figures["error"] else f"gain {figures['gain']:+.3f}"
                progress.line(f"{len(reported)}/{len(points)} {key}: {words}")

        yield show


def report(progress: ConsoleProgress, name: str, points: Sequence[Point], results: Results, workdir: Path) -> None:
    """Prints the table, and writes sweep.html, sweep.md, sweep.csv, points.jsonl and the pictures."""
    rows = summarize(points, results)
    paid, used = len(ResultFiles(workdir / SHARED)), sum(len_of(workdir / point.name / TAPE) for point in points)
    shared = f"The points used {used:,} results of models and programs, of which {paid:,} were paid for."
    (workdir / "sweep.md").write_text(markdown(name, rows, shared), encoding="utf-8")
    page = write_sweep_page(workdir, name, rows, points, shared)
    (workdir / "sweep.csv").write_text(csv_text(points, results), encoding="utf-8")
    write_results(workdir / POINTS, points, results, {"sweep": name})
    for axis in axes_of(rows):
        save(draw(rows, axis), workdir / f"{axis}.png")
    progress.table(table(name, rows))
    progress.line(f"{shared} {workdir / 'sweep.md'}, {page}")


def len_of(tape: Path) -> int:
    """Number of results on a tape; 0 without one."""
    if not tape.is_file():
        return 0
    opened = Tape(tape)
    try:
        return len(opened)
    finally:
        opened.close()


if __name__ == "__main__":
    app.run(main, flags_parser=partial(parse_flags, flags, config=DEFAULT_CONFIG))
