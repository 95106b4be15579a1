"""Points as processes of this machine, of which no two see the same accelerator."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from optimas_jax.parallel.visible import accelerators
from optimas_jax.report.process import run_module
from optimas_jax.sweep.executors.base import Resources, Runner
from optimas_jax.sweep.points import SweepError


class Local:
    """Runs each point in a process of its own, which writes to ``log.txt`` in its folder and inherits the sweep's lock.

    Attributes:
      jobs: points that run at the same time; by default one.
    """

    def __init__(self, resources: Resources, environment: Mapping[str, str] = os.environ):
        self.jobs = resources.jobs or 1
        try:
            self._free = accelerators(environment).divide(self.jobs, resources.devices)
        except ValueError as error:
            raise SweepError(str(error)) from None

    @contextmanager
    def open(self, folder: Path, names: Sequence[str], lock: int) -> Iterator[Runner]:
        """Starts points as processes; see ``Executor.open``."""

        async def run(name: str) -> tuple[int, str]:
            (folder / name).mkdir(exist_ok=True)
            arguments, log = [str(folder.resolve()), name], folder / name / "log.txt"
            devices = self._free.pop()
            try:
                return await run_module("optimas_jax.sweep.point", arguments, log, inherit=[lock], variables=devices)
            finally:
                self._free.append(devices)

        yield run
