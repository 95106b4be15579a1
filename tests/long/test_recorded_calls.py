"""What 200 recorded calls of the rag case spare a search, over seeds; ``pytest -n 0 -m long -s`` prints it."""

import asyncio
import dataclasses
import math
import statistics

import pytest
import rag_case
from scipy import stats

import optimas_jax as oj
from optimas_jax.benchmarks.data import DataConfig, deal
from optimas_jax.benchmarks.tables import SHARES, examples_of, sizes_of
from optimas_jax.loop.budget import read_curve
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.rewards.data import load_groups

pytestmark = pytest.mark.long
SEEDS = range(10)
CALLS = 200
QUESTIONS, TIMES = 12, 6  # popular ones, of the training rows, each asked at most so often


def train_rows(rows, seed):
    """The rows that a search with this seed trains on."""
    examples, _ = examples_of(rows, ("question",))
    sizes = dataclasses.replace(DataConfig(seed=seed), **sizes_of(len(examples), SHARES))
    train = {example.inputs["question"] for example in deal(examples, sizes)["train"]}
    return [row for row in rows if row["question"] in train]


def search(folder, seed, traces=()):
    """Points (validation score, calls) of a search."""
    rows = rag_case.questions()
    with rag_case.serving(rag_case.Model(seed, rows)), rag_case.pipeline(folder) as module:
        module.draft = oj.component(module.draft, DRAFT=oj.prompt(module.DRAFT))
        module.check = oj.component(module.check, CHECK=oj.prompt(module.CHECK))
        module.answer = oj.component(module.answer, ANSWER=oj.prompt(module.ANSWER))
        oj.optimize(
            module.pipeline,
            module.metric,
            rows,
            model=oj.LanguageModel("random:0", max_tokens=4),
            workdir=folder / "run",
            seed=seed,
            traces=traces,
            config={"reward.model": "random:0", "optimize.instructions": 0},
            progress=ConsoleProgress(quiet=True),
        )
    return [(point["val_score"], point["calls"]) for point in read_curve(folder / "run")]


def calls_to(score, points):
    """Calls until a score is reached; all of them, and it is told, where it never is."""
    reached = [calls for found, calls in points if found >= score - 1e-9]
    return (reached[0], "") if reached else (points[-1][1], " (never reached)")


@pytest.mark.skipif(rag_case.CASE is None, reason="no shared cases")
def test_recorded_calls_spare_three_tenths_of_the_calls(tmp_path):
    ratios = []
    for seed in SEEDS:
        folders = [tmp_path / f"{name}{seed}" for name in ("recorded", "without", "with")]
        for folder in folders:
            folder.mkdir()
        recording, without, beside = folders
        rows = rag_case.questions()
        model, file = rag_case.Model(1000 + seed, rows), recording / "calls.jsonl"
        with rag_case.serving(model), rag_case.pipeline(recording) as module:
            asked = train_rows(rows, seed)[:QUESTIONS] * TIMES
            count = asyncio.run(rag_case.record(module, model, asked, file, CALLS))
        plain, helped = search(without, seed), search(beside, seed, file)
        groups = [g for g in load_groups(beside / "run" / "groups" / "offline") if g.candidates[0].recorded]
        assert len(groups) > 3 * QUESTIONS and any(len(group.candidates) > 1 for group in groups)
        best = max(score for score, _ in plain)
        needed, (used, never) = calls_to(best, plain)[0], calls_to(best, helped)
        ratios.append(used / needed)
        print(f"seed {seed}: {count} recorded; {best:.3f} after {needed} calls without, {used} with{never}")
    logs = [math.log(ratio) for ratio in ratios]
    mean, error = statistics.fmean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
    most = stats.t.ppf(0.975, len(logs) - 1) * error
    low, middle, high = (math.exp(mean + shift) for shift in (-most, 0.0, most))
    print(f"calls with / without: {middle:.3f} [{low:.3f}, {high:.3f}], {len(ratios)} seeds")
    assert middle <= 0.7
