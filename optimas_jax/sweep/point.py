"""One point of a sweep: a whole run in a folder of its own.

    python -m optimas_jax.sweep.point FOLDER NAME     the command of ``launch/sweep.py`` for each point

Each point is a process: if it fails or is killed, the others continue, and its memory is free. Its folder is a run
folder like any other. Completions go through the results that all points share (``llm.shared``).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from optimas_jax.parallel.large_pages import use_large_pages

if __name__ == "__main__":
    use_large_pages()
# Otherwise transformers reports that torch, which is not needed here, is absent.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from optimas_jax.core.folder.files import read_file
from optimas_jax.loop.config import parse_config
from optimas_jax.loop.stages import run_stages
from optimas_jax.report.commands import run_alone
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.report.run import write_page_of
from optimas_jax.report.trackers.choose import with_trackers
from optimas_jax.sweep.folder import SHARED, SWEEP
from optimas_jax.sweep.locks import wait_for_run


def main(folder: Path, name: str) -> int:
    """Runs the point ``name`` of a sweep's folder; returns an exit code."""

    def run() -> None:
        (folder / name).mkdir(exist_ok=True)
        wait_for_run(folder / name)  # the same point, begun before on this machine or another, may still be ending
        config = parse_config((read_file(folder / SWEEP) or {})["points"][name])
        progress, callbacks = ConsoleProgress(), with_trackers((), config.trackers)
        run_stages(config, folder / name, "all", progress, shared=folder / SHARED, callbacks=callbacks)
        write_page_of(folder / name, progress)

    return run_alone(run)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
