"""Answers rows with the optimised program of a run; needs no metric and no gold.

python launch/predict.py --run=runs/X --input=rows.csv --output=out.jsonl [--best_of=8] [--model=openai:NAME]

Writes one line of JSON for each row: id, inputs, outputs, outcome. A row that failed has its outcome and the reason;
the exit code is 0 unless all rows failed. The same command again resumes, and pays nothing for answered rows.
"""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path

from optimas_jax.parallel.large_pages import use_large_pages

if __name__ == "__main__":
    use_large_pages()
# Otherwise transformers reports that torch is absent, which is not needed here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from absl import app, flags

from optimas_jax.benchmarks.tables import read_table
from optimas_jax.report.commands import exit_code, parse_flags
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.saved.optimized import load
from optimas_jax.saved.predict import predict
from optimas_jax.saved.runs import CONCURRENCY

_RUN = flags.DEFINE_string("run", "", "Folder of a run, or its best/.")
_INPUT = flags.DEFINE_string("input", "", "Rows: a .json, .jsonl, .csv or .parquet file.")
_OUTPUT = flags.DEFINE_string("output", "", "JSONL file to write.")
_BEST_OF = flags.DEFINE_integer("best_of", 0, "Samples of the last prompt, of which its local reward keeps one.")
_REWARD_URL = flags.DEFINE_string("reward_url", "", "Address of a server with the local rewards of the run.")
_MODEL = flags.DEFINE_string("model", None, "Answers in the place of the model of the run.")
_CONCURRENCY = flags.DEFINE_integer("concurrency", CONCURRENCY, "Rows in flight.", lower_bound=1)


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if not (_RUN.value and _INPUT.value and _OUTPUT.value):
        raise app.UsageError("--run, --input and --output are needed")
    logging.disable(logging.INFO)  # libraries log too much; progress has its own lines
    return exit_code(run)


def run() -> int:
    """Answers all rows; 1 if all failed."""
    rows = read_table(_INPUT.value)
    optimized = load(_RUN.value, model=_MODEL.value, best_of=_BEST_OF.value, reward=_REWARD_URL.value)
    predictions = predict(optimized, rows, Path(_OUTPUT.value), ConsoleProgress(), concurrency=_CONCURRENCY.value)
    failed = [prediction for prediction in predictions if prediction["outcome"] != "ok"]
    print(f"{len(predictions)} rows in {_OUTPUT.value}, {len(failed)} failed")
    if failed:
        print(f"the first is {failed[0]['id']}: {failed[0]['outcome']} {failed[0]['detail']}".rstrip())
    return int(len(failed) == len(predictions))


if __name__ == "__main__":
    app.run(main, flags_parser=partial(parse_flags, flags))
