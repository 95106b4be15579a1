"""Points as tasks of one Slurm array. They continue without the sweep, and the same command waits for them again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from optimas_jax.core.folder.files import read_file, write_json
from optimas_jax.core.shipped import python_path
from optimas_jax.sweep.executors.base import Resources, Runner
from optimas_jax.sweep.folder import read_result
from optimas_jax.sweep.points import SweepError

FOLDER, JOBS = "slurm", "jobs.json"  # of scripts and logs; names of the points of each job
_LOOK_SECONDS, _RESULT_SECONDS = 10.0, 1.0  # between two looks at the queue, and at a result
_GONE = "Invalid job id"  # answer of squeue about a job that ended some time ago


class Slurm:
    """Submits the points that no earlier array still runs, and waits for all.

    Attributes:
      jobs: None, as all points are awaited: the array itself limits how many run at the same time.
    """

    jobs = None

    def __init__(self, resources: Resources, options: str = ""):
        """``options``: for ``sbatch``, which override the array's script (``array_script``)."""
        self._resources, self._options = resources, shlex.split(options)
        missing = [name for name in ("sbatch", "squeue") if shutil.which(name) is None]
        if missing:
            raise SweepError(
                f"--executor=slurm needs {' and '.join(missing)}: start the sweep on a login node of Slurm"
            )

    @contextmanager
    def open(self, folder: Path, names: Sequence[str], lock: int) -> Iterator[Runner]:
        """Submits an array and waits for its tasks; see ``Executor.open``. The end of the block leaves them running."""
        tasks = self._tasks(folder.resolve(), names)
        logs, queue = folder.resolve() / FOLDER, _Queue()

        async def run(name: str) -> tuple[int, str]:
            job, index = tasks[name]
            while read_result(folder, name) is None:
                if not await queue.holds(job, index):
                    return 1, read_error(logs / f"{job}_{index}.txt", job, index)
                await asyncio.sleep(_RESULT_SECONDS)
            return 0, ""

        yield run

    def _tasks(self, folder: Path, names: Sequence[str]) -> dict[str, tuple[str, int]]:
        """Job and index of the task of each point: in an earlier array, or in a new one."""
        logs = folder / FOLDER
        logs.mkdir(exist_ok=True)
        jobs = _still_running(_read(logs / JOBS))
        waiting = {name for tasks in jobs.values() for name in tasks.values()}
        new = [name for name in names if name not in waiting]
        if new:
            jobs[self._submit(folder, new)] = dict(enumerate(new))
        write_json(
            logs / JOBS, {job: {str(index): name for index, name in tasks.items()} for job, tasks in jobs.items()}
        )
        if jobs:
            numbers = ",".join(jobs)
            print(f"Slurm runs it: squeue -j {numbers}; scancel {numbers} ends it; logs in {logs}")
        return {name: (job, index) for job, tasks in jobs.items() for index, name in tasks.items()}

    def _submit(self, folder: Path, names: Sequence[str]) -> str:
        """Submits a new array and returns its job number."""
        script = folder / FOLDER / "array.sh"
        script.write_text(array_script(folder, names, self._resources), encoding="utf-8")
        command = ["sbatch", "--parsable", *self._options, str(script)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise SweepError(f"{shlex.join(command)} failed: {done.stderr.strip()[-500:]}. --sbatch has its options")
        return done.stdout.strip().split(";")[0]  # a cluster's name may follow


class _Queue:
    """The tasks of arrays that ``squeue`` lists; it is called every ten seconds at most."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, set[int] | None]] = {}
        self._asking = asyncio.Lock()

    async def holds(self, job: str, index: int) -> bool:
        """Whether a task waits or runs; true, too, while Slurm does not answer."""
        async with self._asking:
            asked_at, left = self._known.get(job, (0.0, None))
            if time.monotonic() - asked_at > _LOOK_SECONDS:
                left = await asyncio.to_thread(tasks_left, job)
                self._known[job] = time.monotonic(), left
        return left is None or index in left


def tasks_left(job: str) -> set[int] | None:
    """Indices of the tasks of an array that wait or run; None if Slurm does not answer."""
    command = ["squeue", "--noheader", "--array", f"--jobs={job}", "--format=%K"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        return set() if _GONE in done.stderr else None
    return {int(line) for line in done.stdout.split() if line.isdecimal()}


def array_script(folder: Path, names: Sequence[str], resources: Resources) -> str:
    """The script of an array whose task i runs the point ``names[i]``. Tasks whose machine is lost are queued again."""
    at_a_time = f"%{resources.jobs}" if resources.jobs else ""
    log = str(folder / FOLDER).replace("%", "%%")
    options = [
        "--job-name=sweep",
        f"--array=0-{len(names) - 1}{at_a_time}",
        f'--output="{log}/%A_%a.txt"',
        "--open-mode=append",
        "--requeue",
        f"--cpus-per-task={resources.cpus}",
        *([f"--gpus={resources.devices}"] if resources.devices else []),
    ]
    paths = os.pathsep.join(python_path(os.environ.get("PYTHONPATH", "")))
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in options),
        f"names=({' '.join(map(shlex.quote, names))})",
        f"export PYTHONPATH={shlex.quote(paths)}",
        *(["export JAX_PLATFORMS=cpu"] if resources.devices == 0 else []),
        f"exec {shlex.quote(sys.executable)} -m optimas_jax.sweep.point {shlex.quote(str(folder))} "
        '"${names[$SLURM_ARRAY_TASK_ID]}"',
    ]
    return "\n".join(lines) + "\n"


def read_error(log: Path, job: str, index: int) -> str:
    """The error message of a task that ended without a result."""
    text = ""
    with contextlib.suppress(OSError):
        text = log.read_text(encoding="utf-8", errors="replace")
    _, error, message = text.rpartition("\nerror: ")
    return message.strip() if error else f"task {job}_{index} left no result: see {log}, and sacct -j {job}_{index}"


def _still_running(jobs: Mapping[str, Mapping[int, str]]) -> dict[str, dict[int, str]]:
    """Tasks of earlier arrays that still wait or run: names of points by index, by job."""
    running = {}
    for job, names in jobs.items():
        left = tasks_left(job)
        kept = {index: name for index, name in names.items() if left is None or index in left}
        if kept:
            running[job] = kept
    return running


def _read(path: Path) -> dict[str, dict[int, str]]:
    """Names of points by index, by job."""
    return {job: {int(index): name for index, name in names.items()} for job, names in (read_file(path) or {}).items()}
