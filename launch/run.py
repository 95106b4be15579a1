"""Runs an experiment, or one stage of it, in a run folder; the same command resumes.

python launch/run.py --config=configs/hotpotqa.py[:variant] [--workdir=DIR]
    [--stage=all|probe|collect|train|optimize|refresh|align|evaluate] [--plan [--devices=NAME]] [--traces=FILE,...]
    [--trackers=NAME,...] [--settings] [--config.path.to.field=value ...]
    [--coordinator=HOST:PORT --num_processes=N --process_id=I | --coordinator=auto]

``--plan`` only prints the expected cost and time of the run, and needs no key, data or model; with ``--devices=v5e-16``
it also prints whether its local models fit these devices, which this machine need not have.

``--settings`` only prints every setting with its value and meaning, and marks settings that are not the default.

``--traces`` names recorded calls (JSON Lines: messages of OpenAI, OpenTelemetry spans, evaluations/*.jsonl of a run),
which become demonstrations and save the run a part of its calls; it is config.traces. ``--trackers=wandb,mlflow`` logs
the run there while it goes on; it is config.trackers, and TensorBoard by default.

With a coordinator the command is one of several processes, on several machines: the first process runs everything, the
others compute with it. ``auto`` is for TPU slices and Slurm; see launch/pod/. If one is lost, the others end with exit
code 75, or 134 where JAX notices first; the same commands resume.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from optimas_jax.parallel.large_pages import use_large_pages

if __name__ == "__main__":
    use_large_pages()
    # Libraries log too much, even at the import of a configuration; progress has its own lines.
    logging.disable(logging.INFO)
# Otherwise transformers reports that torch is absent, which is not needed here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from absl import app, flags
from ml_collections import config_flags

from optimas_jax.benchmarks.modules import title
from optimas_jax.loop.config import ALIGN, PROBE, REFRESH, STAGES, RunConfig, parse_config
from optimas_jax.loop.setup.completers import check_completers
from optimas_jax.report.commands import DEFAULT_CONFIG, RESUMES, exit_code, parse_flags
from optimas_jax.report.trackers.choose import with_trackers

if TYPE_CHECKING:
    from optimas_jax.parallel.lockstep import Leader

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, f"Configuration file, with :variant; without it {DEFAULT_CONFIG}."
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Run folder; default runs/BENCHMARK-VARIANT-SEED.")
_STAGE = flags.DEFINE_enum("stage", "all", ["all", PROBE, *STAGES, REFRESH, ALIGN], "Which stage to run.")
_PLAN = flags.DEFINE_bool("plan", False, "Say what the run is expected to take, and do nothing else.")
_DEVICES = flags.DEFINE_string("devices", "", "For --plan: devices by name, such as h100, 8xa100-80, v5e-16.")
_SETTINGS = flags.DEFINE_bool("settings", False, "Print every setting with its value and meaning, and do nothing else.")
_TRACKERS = flags.DEFINE_string("trackers", None, "Trackers, separated by commas; the same as config.trackers.")
_TRACES = flags.DEFINE_string("traces", "", "Files of recorded calls, separated by commas; the same as config.traces.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of the first of several processes, or auto.")
_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes; left out with auto.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0; left out with auto.")
_CLOSE_SECONDS = 20.0  # that the other processes have after an interrupt of the first one


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    return exit_code(start, kept="a plan keeps nothing" if _PLAN.value else RESUMES)


def start() -> int | None:
    """Starts what the flags ask for; returns the exit code."""
    several = _COORDINATOR.present or _PROCESSES.value is not None or _PROCESS.value is not None
    if several and not _COORDINATOR.value:
        raise ValueError(
            "--num_processes and --process_id need --coordinator=HOST:PORT, or --coordinator=auto in their place: "
            "without it every process would run the whole experiment, and pay for it"
        )
    if _DEVICES.value and not _PLAN.value:
        raise ValueError(f"--devices={_DEVICES.value} is for --plan: add it, or leave both out to start the run")
    return run_together() if several and not (_PLAN.value or _SETTINGS.value) else run()


def run_together() -> int:
    """``run`` as one of several processes; returns the exit code."""
    from optimas_jax.loop.follow import follow, lead
    from optimas_jax.parallel.distributed import join, leave
    from optimas_jax.parallel.link import ProcessLost
    from optimas_jax.report.console import ConsoleProgress

    link = join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    if link.count == 1:
        code = exit_code(run)
    elif link.index > 0:
        try:
            code = follow(link, ConsoleProgress(quiet=True))
        except ProcessLost as error:
            link.end_all(str(error))
    else:
        leader, code = lead(link), 1
        try:
            code = exit_code(partial(run, leader), _CLOSE_SECONDS)
        finally:
            leader.close(code)
    leave()
    return code


def run(leader: Leader | None = None) -> None:
    """Runs the stage, and shows its results. ``leader``: sends commands to the other processes of the run."""
    config = parse_config(_CONFIG.value.to_dict())
    if _TRACKERS.value is not None:
        config = dataclasses.replace(config, trackers=_TRACKERS.value)
    if _TRACES.value:
        config = dataclasses.replace(config, traces=_TRACES.value)
    if _SETTINGS.value:
        show(config)
        return
    workdir = Path(_WORKDIR.value or f"runs/{title(config.benchmark)}-{config.variant}-{config.seed}")
    if _PLAN.value:
        plan(config, workdir)
        return
    # Errors about a missing key or library come before slow imports.
    check_completers(config, workdir)
    trackers = with_trackers((), config.trackers)
    from optimas_jax.loop.stages import run_stages
    from optimas_jax.report.console import ConsoleProgress
    from optimas_jax.report.page.live import live_page
    from optimas_jax.report.run import report_alignment, report_probe, report_run

    progress = ConsoleProgress()
    with live_page(progress.line) as tell_page:
        callbacks = [tell_page, *trackers]
        label = run_stages(config, workdir, _STAGE.value, progress, leader=leader, callbacks=callbacks)
    if _STAGE.value == ALIGN:
        report_alignment(workdir, progress)
    elif _STAGE.value == PROBE:
        report_probe(workdir, progress)
    elif _STAGE.value in ("all", "evaluate"):
        report_run(workdir, progress, label)


def show(config: RunConfig) -> None:
    """Shows the settings of a run."""
    from optimas_jax.core.settings import sections
    from optimas_jax.report.console import ConsoleProgress
    from optimas_jax.report.settings import show_settings

    show_settings(sections(RunConfig, config), ConsoleProgress().console)


def plan(config: RunConfig, workdir: Path) -> None:
    """Shows the plan of a run, and saves it in its folder for the results of the run; that of a probe is only shown."""
    from optimas_jax.loop.forecast.plan import plan_run
    from optimas_jax.report.console import ConsoleProgress
    from optimas_jax.report.run import report_plan

    progress = ConsoleProgress()
    planned = plan_run(config, _STAGE.value, devices=_DEVICES.value, progress=progress)
    has_results = _STAGE.value != PROBE and not planned.save(workdir)
    report_plan(planned.to_json(), progress)
    if has_results:
        progress.line(f"{workdir} has results, and keeps the plan that they were compared with")
    planned.check()


if __name__ == "__main__":
    app.run(main, flags_parser=partial(parse_flags, flags, config=DEFAULT_CONFIG))
