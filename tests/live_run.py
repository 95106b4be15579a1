"""A small run on a scripted model, whose answers take time: ``python tests/live_run.py FOLDER SECONDS``.

Run as a program by tests that look at a run while it goes on."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any

from fakes import ScriptedCompleter
from scripted import answer, scripted_config

from optimas_jax.llm.base import Completion, CompletionRequest
from optimas_jax.loop.stages import run_stages
from optimas_jax.report.commands import exit_code
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.report.page.live import live_page
from optimas_jax.report.run import report_run


class SlowCompleter(ScriptedCompleter):
    """Answers after a while."""

    def __init__(self, seconds: float):
        super().__init__(answer)
        self._seconds = seconds

    async def complete(self, request: CompletionRequest) -> Completion:
        await asyncio.sleep(self._seconds)
        return await super().complete(request)


def config() -> Any:
    """The settings of the run: without local rewards, as nothing is compiled then."""
    base = scripted_config()
    return dataclasses.replace(base, concurrency=4, optimize=dataclasses.replace(base.optimize, score="global"))


def run(folder: Path, seconds: float) -> None:
    """Runs it, and shows its results."""
    progress = ConsoleProgress()
    with live_page(progress.line) as tell_page:
        label = run_stages(config(), folder, "all", progress, SlowCompleter(seconds), callbacks=[tell_page])
    report_run(folder, progress, label)


if __name__ == "__main__":
    logging.disable(logging.INFO)  # as launch/run.py does
    sys.exit(exit_code(partial(run, Path(sys.argv[1]), float(sys.argv[2]))))
