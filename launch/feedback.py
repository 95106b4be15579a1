"""Measures the effect of a metric's feedback texts: calls until a target is reached, with feedback and without it.

python launch/feedback.py --model=qwen2.5-coder-0.5b-instruct-q4_k_m.gguf [--seeds=10] [--workdir=runs/feedback]

The model answers questions, and writes the proposals. The metric scores only the form of an answer; with feedback it
also names the broken rule. Both arms have the same rows, seeds and settings. A run ends when its validation score
reaches the target; calls of all roles count, from the first call on. A run that does not reach the target counts with
all its calls, which are fewer than it would have needed. The same command resumes.
"""

from __future__ import annotations

import logging
import os
import random
import statistics
from collections.abc import Callable
from pathlib import Path

# Otherwise transformers reports that torch is absent, which is not needed here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from absl import app, flags

import optimas_jax as oj
from optimas_jax.benchmarks.countries import load_countries
from optimas_jax.core.types import StopRun
from optimas_jax.engine.pool import Engines
from optimas_jax.llm.local import LocalCompleter
from optimas_jax.loop.budget import read_curve
from optimas_jax.loop.config import overridden
from optimas_jax.loop.journal import write_json
from optimas_jax.loop.stages import run_stages
from optimas_jax.parallel.mesh import MeshConfig
from optimas_jax.presets import EMBEDDED, own_system
from optimas_jax.report.commands import exit_code
from optimas_jax.report.console import ConsoleProgress

_MODEL = flags.DEFINE_string("model", EMBEDDED, "Model spec, see optimas_jax/checkpoints/sources.py.")
_SEEDS = flags.DEFINE_integer("seeds", 10, "Runs of each arm.", lower_bound=2)
_FIRST = flags.DEFINE_integer("first_seed", 0, "The first of them.", lower_bound=0)
_TARGET = flags.DEFINE_float("target", 0.75, "Validation score to be reached.", 0.0, 1.0)
_ITERATIONS = flags.DEFINE_integer("iterations", 12, "After which a run has not reached it.", lower_bound=1)
_WORKDIR = flags.DEFINE_string("workdir", "runs/feedback", "Folder of all runs.")

RULE = "The answer must have at most three words."
_RESAMPLES = 10_000


class Reached(StopRun):
    """Raised when the target is reached, to end the run."""


class Watch(ConsoleProgress):
    """A progress without output that ends a run at its target."""

    def __init__(self, folder: Path, target: float):
        super().__init__(quiet=True)
        self._folder, self._target = folder, target

    def line(self, text: str) -> None:
        if calls_to(self._folder, self._target)[0]:
            raise Reached("the target is reached")


def calls_to(folder: Path, target: float) -> tuple[bool, int]:
    """Whether the validation score of a run has reached the target, and its calls until then or so far."""
    curve = read_curve(folder) if (folder / "journal.jsonl").is_file() else []
    reached = next((point["calls"] for point in curve if point["val_score"] >= target), None)
    if reached is not None:
        return True, reached
    return False, curve[-1]["calls"] if curve else 0


def metric_of(words: bool) -> Callable[..., oj.Score]:
    """The metric, with or without feedback texts (``words``)."""

    def at_most_three_words(outputs: str) -> oj.Score:
        is_short = len(outputs.split()) <= 3
        return oj.Score(float(is_short), RULE if words and not is_short else "")

    return at_most_three_words


def run_one(completer: LocalCompleter, folder: Path, words: bool, seed: int) -> tuple[bool, int]:
    """Searches until the target is reached; see ``calls_to``."""
    answer = oj.prompt("Answer the question and explain.", name="answer", max_tokens=16, stop=("\n",))

    async def program(question: str) -> str:
        return await answer(question=question)

    rows = [{"question": f"What is the capital of {country.name}?"} for country in load_countries()]
    random.Random(seed).shuffle(rows)
    config = overridden(
        own_system(__file__, train=32, val=16, confirm=0, test=1),
        {
            "seed": seed,
            "data.seed": seed,
            "system.language_model.model": _MODEL.value,
            "proposer.model": _MODEL.value,
            "optimize.score": "off",  # local rewards would cost time, and change neither arm's words
            "optimize.iterations": _ITERATIONS.value,
            "optimize.proposers": "feedback,reflect",  # demonstrations would show the form without any words
            "optimize.labels": 12,  # all inputs of an iteration
            "optimize.rewrites": 1,
            "offline.groups": 0,
        },
    )
    declared = oj.program(program, components=[answer])
    benchmark = oj.benchmark(declared, metric_of(words), rows)
    progress = Watch(folder, _TARGET.value)
    try:
        for stage in ("collect", "optimize"):
            run_stages(config, folder, stage, progress, completer=completer, benchmark=benchmark)
    except Reached:
        pass
    return calls_to(folder, _TARGET.value)


def interval_of_ratio(with_words: list[int], without: list[int]) -> tuple[float, float]:
    """95 % interval of the ratio of the two medians, by bootstrap over the seeds, which both arms share."""
    rng, pairs = random.Random(0), list(zip(with_words, without, strict=True))
    draws = (rng.choices(pairs, k=len(pairs)) for _ in range(_RESAMPLES))
    medians = ([statistics.median(arm) for arm in zip(*drawn, strict=True)] for drawn in draws)
    ratios = sorted(with_median / without_median for with_median, without_median in medians)
    return ratios[int(0.025 * _RESAMPLES)], ratios[int(0.975 * _RESAMPLES)]


def measure() -> None:
    """Runs both arms, and prints their numbers of calls."""
    workdir, progress = Path(_WORKDIR.value), ConsoleProgress()
    engines = Engines(MeshConfig(), progress)
    completer = LocalCompleter(_MODEL.value, lambda: engines.sampler(_MODEL.value))
    results: dict[str, list[tuple[bool, int]]] = {"with": [], "without": []}
    for seed in range(_FIRST.value, _FIRST.value + _SEEDS.value):
        for arm, runs in results.items():
            runs.append(run_one(completer, workdir / f"{arm}-{seed}", arm == "with", seed))
            reached, calls = runs[-1]
            progress.line(f"seed {seed}, {arm} feedback: {'' if reached else 'not reached in '}{calls} calls")
    calls = {arm: [count for _, count in runs] for arm, runs in results.items()}
    medians = {arm: statistics.median(counts) for arm, counts in calls.items()}
    for arm, runs in results.items():
        reached = sum(reached for reached, _ in runs)
        progress.line(f"{arm} feedback: {reached} of {len(runs)} seeds reach it, median {medians[arm]} calls")
    low, high = interval_of_ratio(calls["with"], calls["without"])
    ratio = medians["with"] / medians["without"]
    progress.line(f"ratio of medians {ratio:.2f} [{low:.2f}, {high:.2f}]")
    write_json(
        workdir / "feedback.json",
        {"model": _MODEL.value, "target": _TARGET.value, "runs": results, "ratio": ratio, "ci95": [low, high]},
    )


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.disable(logging.INFO)  # libraries log too much; progress has its own lines
    return exit_code(measure)


if __name__ == "__main__":
    app.run(main)
