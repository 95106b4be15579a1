"""Shows a run in the terminal, or compares several runs. Nothing is run, and no run folder is changed.

python launch/show.py runs/A [--label=test-2]
python launch/show.py runs/A runs/B [runs/C ...] [--html=FILE]

One run: score before and after, points to look at first, changes, proposals with their verdicts, examples that flipped,
bill: the contents of its page (report.html). With --html=FILE its page is written there.

Several runs: the settings in which they differ, each run compared with its own start, each with the first run on the
examples that both have, with an interval, their final configurations, the examples that flip between their final
states, their bills; and a page of all this, which is written beside the folder of the first run, or to --html=FILE.

A run is named by its folder; another evaluation of it by --label, or as runs/A/evaluations/LABEL.json.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from absl import app, flags
from rich.console import Console

from optimas_jax.core.folder.control import is_locked
from optimas_jax.report.commands import exit_code, parse_flags
from optimas_jax.report.show.compare import compare_runs
from optimas_jax.report.show.one import show_run
from optimas_jax.report.show.page import write_comparison, write_run
from optimas_jax.report.show.read import read_runs
from optimas_jax.report.show.several import show_runs

_HTML = flags.DEFINE_string("html", "", "Page to write.")
_LABEL = flags.DEFINE_string("label", "", "Evaluation that is shown: the name of a file in evaluations/.")


def main(argv: list[str]) -> int:
    if len(argv) < 2:
        raise app.UsageError("name the folder of a run, or several")
    return exit_code(partial(show, argv[1:]))


def show(arguments: list[str]) -> None:
    """Prints one run or a comparison, and writes its page."""
    console = Console(highlight=False)
    path = Path(_HTML.value) if _HTML.value else None
    runs = read_runs(arguments, _LABEL.value)
    if len(runs) < len(arguments):
        console.print("The same run is named more than once: it is shown once.", markup=False)
    if len(runs) > 1:
        comparison = compare_runs(runs)
        show_runs(comparison, console)
        page = write_comparison(comparison, path)
        console.print(f"\n{page}", markup=False, soft_wrap=True)
        return
    running = bool(is_locked(runs[0].run.folder))
    show_run(runs[0].run, console, running=running)
    if path is not None:
        write_run(runs[0].run, path, running=running)
        console.print(f"\n{path}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    app.run(main, flags_parser=partial(parse_flags, flags))
