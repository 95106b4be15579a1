"""Checks a new best against an old one, for continuous integration: both run on the same rows and seeds.

python launch/check.py runs/NEW/best --against=runs/OLD/best --data=rows.jsonl [--min-gain=0.0] [--max-cost=1.5]
    [--level=0.05] [--output=check.md] [--model=openai:NAME]
python launch/check.py runs/X/best --model=openai:NAME --data=rows.jsonl       default and best, on both models

The exit code is 0 if the new best passes, and 1 if it fails or cannot be checked. It fails if a test shows that it is
worse (a paired one-sided test at --level: an equally good best fails with at most that probability), or if it costs
more than --max-cost times the old best, in dollars if both have prices, else in tokens. With --min-gain it fails unless
a test shows that gain; with --min-gain=-0.02 it must be shown to lose less than 0.02. With --model alone the best is
checked on the other model, against the default there.

Rows have the columns that the program reads and that its metric compares with; without --data the test examples of the
run's benchmark are used. Nothing is paid for twice: answers are on a tape in --workdir.
"""

from __future__ import annotations

import logging
import os
import sys
from functools import partial
from pathlib import Path

from optimas_jax.parallel.large_pages import use_large_pages

if __name__ == "__main__":
    use_large_pages()
# Otherwise transformers reports that torch is absent, which is not needed here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from absl import app, flags

from optimas_jax.report.commands import exit_code, parse_flags
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.saved.check import Bench, Gate, check_bests, move
from optimas_jax.saved.check_page import check_page, move_page
from optimas_jax.saved.folder import read_folder
from optimas_jax.saved.runs import CONCURRENCY
from optimas_jax.search.regression import LEVEL

_AGAINST = flags.DEFINE_string("against", "", "Folder of the old run, or its best/.")
_DATA = flags.DEFINE_string("data", None, "Rows: a .json, .jsonl, .csv or .parquet file.")
_MODEL = flags.DEFINE_string("model", None, "Answers in the place of the models of the runs.")
_MIN_GAIN = flags.DEFINE_float("min_gain", None, "Gain that the new one has to show.")
_MAX_COST = flags.DEFINE_float("max_cost", None, "Most that it may cost, as a multiple of the old one.", lower_bound=0)
_LEVEL = flags.DEFINE_float("level", LEVEL, "Of the test.")
flags.DEFINE_alias("min-gain", "min_gain")
flags.DEFINE_alias("max-cost", "max_cost")
_OUTPUT = flags.DEFINE_string("output", "", "Markdown file to write; it is printed anyway.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/check", "Folder of the tape.")
_CONCURRENCY = flags.DEFINE_integer("concurrency", CONCURRENCY, "Rows in flight.", lower_bound=1)


def main(argv: list[str]) -> int:
    if len(argv) != 2 or not (_AGAINST.value or _MODEL.value):
        raise app.UsageError("name one best, and --against or --model")
    logging.disable(logging.INFO)  # libraries log too much; progress has its own lines
    return exit_code(partial(check, argv[1]))


def check(folder: str) -> int:
    """Runs the check, and prints it; 1 if it fails."""
    gate = Gate(_LEVEL.value, _MIN_GAIN.value, _MAX_COST.value)
    progress = ConsoleProgress(stderr=True)  # standard output is Markdown
    bench = Bench(Path(_WORKDIR.value), progress, _CONCURRENCY.value)
    new = read_folder(folder)
    if _MODEL.value and not _AGAINST.value:
        moved = move(new, _DATA.value, gate, bench, _MODEL.value)
        page, passed = move_page(moved), moved.check.decision.passed
    else:
        checked = check_bests(new, read_folder(_AGAINST.value), _DATA.value, gate, bench, _MODEL.value)
        page, passed = check_page(checked), checked.decision.passed
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text(page + "\n", encoding="utf-8")
    sys.stdout.write(page + "\n")
    return int(not passed)


if __name__ == "__main__":
    app.run(main, flags_parser=partial(parse_flags, flags))
