"""Whole runs of the smallest shipped configuration within random budgets, by the local engine."""

import dataclasses
import io
import json
import random
import re
import statistics

import pytest
from rich.console import Console
from runs import get_config

from optimas_jax.llm.accounts.ledger import Budget, OverBudget
from optimas_jax.loop.config import parse_config
from optimas_jax.loop.journal import load_best
from optimas_jax.loop.stages import run_stages
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.report.run import report_run

pytestmark = pytest.mark.long


def run(workdir, tokens):
    """Results, events and tokens used of a run."""
    smoke = parse_config(get_config("smoke").to_dict())
    search = dataclasses.replace(smoke.optimize, iterations=100)  # more than the budget allows
    config = dataclasses.replace(smoke, optimize=search, budget=Budget(tokens=tokens))
    progress = ConsoleProgress(Console(file=io.StringIO()))
    run_stages(config, workdir, "all", progress)
    report_run(workdir, progress)
    events = [json.loads(line) for line in (workdir / "journal.jsonl").read_text().splitlines()]
    used = json.loads((workdir / "used.json").read_text())
    return json.loads((workdir / "results.json").read_text()), events, sum(stage["tokens"] for stage in used.values())


def test_budgets_are_kept_and_used(tmp_path):
    with pytest.raises(OverBudget) as refusal:
        run(tmp_path / "refused", 1)
    least = int(re.search(r"([\d,]+) tokens, [\d,]+ calls: a few", str(refusal.value))[1].replace(",", ""))
    shares = []
    for index in range(20):
        limit = random.Random(index).randint(least, 4 * least)
        workdir = tmp_path / str(index)
        results, events, used = run(workdir, limit)
        accepted = [event for event in events if event["event"] == "curve" and event["at"] == "accept"]
        assert used <= limit and all(event["tokens"] <= limit for event in accepted)
        assert load_best(workdir / "best") and (workdir / "report.html").exists() and results["n"] == 16
        shares.append(used / limit)
    print(f"least {least:,}, mean share used {statistics.fmean(shares):.3f}")
    assert statistics.fmean(shares) >= 0.9
