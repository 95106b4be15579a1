"""Compares optimisers at equal cost: same system, data, test seeds and budget of LM tokens. The same command resumes.

python launch/compare.py --config=configs/hotpotqa.py --budget=2000000 [--seeds=0,1,2] [--jobs=1] [--workdir=DIR]
    [--optimizers=ours,random,twin,bare,random-search,dspy-bootstrap,dspy-miprov2,dspy-gepa,textgrad,trace]

``ours`` uses local rewards. Its controls are ``random`` (random numbers instead), ``twin`` (the global metric, on the
same candidates and in the same order of components) and ``bare`` (the same without collected data). ``opro``,
``copro``, ``mipro`` and ``reflect`` write prompts in other ways; with the suffix ``-global``, by the global metric.
``random-search`` draws at random. The others are peers (third_party/peers/README.md lists them): install their
environment with third_party/peers/install_prompt_optimizers.sh.

The budget covers the search, and the state of the search at the budget is tested. The confirmation and the final test
are not part of the budget, for all optimisers alike. Results are written after every run: compare.html, compare.json,
compare.md and compare.png in the workdir; all cells in cells.jsonl, from which ``--cells=FILE`` makes the tables again;
a folder for every run in cells/.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from optimas_jax.benchmarks.modules import title
from optimas_jax.compare.optimizers import CompareError, find_optimizers
from optimas_jax.compare.page import PAGE, write_comparison_page
from optimas_jax.compare.plan import Cells, run_cells
from optimas_jax.compare.plot import draw
from optimas_jax.compare.record import CELLS, read_cells, write_cells
from optimas_jax.compare.summary import summarize
from optimas_jax.compare.tables import markdown, tables
from optimas_jax.loop.config import parse_config
from optimas_jax.loop.journal import write_json
from optimas_jax.report.commands import DEFAULT_CONFIG, exit_code, parse_flags
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.report.figures import check_matplotlib, save
from optimas_jax.report.process import interrupt_on_terminate

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, f"Configuration file, with :variant; without it {DEFAULT_CONFIG}."
)
_OPTIMIZERS = flags.DEFINE_list("optimizers", ["ours", "random", "twin", "bare"], "Names, separated by commas.")
_BUDGET = flags.DEFINE_integer("budget", 1_000_000, "LM tokens of each run, prompts and answers.", lower_bound=1)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "A run of every optimiser for each of these.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Cells that run at the same time.", lower_bound=1)
_CELLS = flags.DEFINE_string("cells", "", "A file of cells to make tables of; nothing runs.")
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder; default runs/compare-BENCHMARK-VARIANT.")


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    interrupt_on_terminate()  # cells and peers end with this process
    return exit_code(compare)


def compare() -> int:
    """Runs the cells, and shows their results; 1 if none has a result."""
    progress = ConsoleProgress()
    if _CELLS.value:
        cells, about = read_cells(Path(_CELLS.value))
        return _show(summarize(cells, about, about["budget"]), progress)
    config = parse_config(_CONFIG.value.to_dict())
    optimizers, seeds = find_optimizers(_OPTIMIZERS.value), _read_seeds(_SEEDS.value)
    check_matplotlib()
    workdir = Path(_WORKDIR.value or f"runs/compare-{title(config.benchmark)}-{config.variant}")
    about = {"benchmark": title(config.benchmark), "variant": config.variant, "budget": _BUDGET.value}
    write = partial(_write, workdir, about)
    cells = run_cells(config, optimizers, _BUDGET.value, seeds, workdir, progress.line, jobs=_JOBS.value, write=write)
    code = _show(write(cells), progress)
    progress.line(f"{workdir / 'compare.md'}, {workdir / PAGE}")
    return code


def _write(workdir: Path, about: Mapping[str, Any], cells: Cells) -> dict[str, Any]:
    """Writes the results of the cells so far, as a comparison takes hours and may be stopped; returns the summary."""
    write_cells(workdir / CELLS, cells, about)
    summary = summarize(cells, about, about["budget"])
    write_json(workdir / "compare.json", summary)
    (workdir / "compare.md").write_text(markdown(summary), encoding="utf-8")
    write_comparison_page(workdir, summary)
    save(draw(summary), workdir / "compare.png")
    return summary


def _show(summary: Mapping[str, Any], progress: ConsoleProgress) -> int:
    for table in tables(summary):
        progress.table(table)
    return 0 if any(row["seeds"] for row in summary["rows"].values()) else 1


def _read_seeds(texts: list[str]) -> list[int]:
    if not texts or not all(text.strip().isdecimal() for text in texts) or len(set(texts)) < len(texts):
        raise CompareError(f"seeds are {','.join(texts)!r}: whole numbers, separated by commas, each once")
    return [int(text) for text in texts]


if __name__ == "__main__":
    app.run(main, flags_parser=partial(parse_flags, flags, config=DEFAULT_CONFIG))
