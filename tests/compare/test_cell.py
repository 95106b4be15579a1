"""A cell of ours, with local rewards and a confirm split."""

from __future__ import annotations

import dataclasses
import json

import pytest
from fakes import ScriptedCompleter
from scripted import answer, scripted_config

from optimas_jax.benchmarks import hotpotqa
from optimas_jax.compare import stopwatch
from optimas_jax.compare.cell import run_cell
from optimas_jax.compare.optimizers import OPTIMIZERS
from optimas_jax.loop import stages
from optimas_jax.loop.config import EvaluateConfig
from optimas_jax.loop.stages import run_stages
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.rewards.scorer import RewardScorer
from optimas_jax.rewards.trainer import RewardTrainer

BUDGET = 150_000


class Clock:
    """A clock that stands still but for what is said to take time; stands in for the module ``time``."""

    def __init__(self):
        self.now = 5.0

    def monotonic(self):
        return self.now

    def takes(self, monkeypatch, owner, name, seconds):
        """A function of a module or class takes so many seconds, at its end."""
        function = getattr(owner, name)

        def timed(*args, **options):
            result = function(*args, **options)
            self.now += seconds
            return result

        monkeypatch.setattr(owner, name, timed)


@pytest.mark.long
def test_a_cell_of_ours_confirms_outside_the_budget_and_counts_the_seconds_of_local_rewards(tmp_path, monkeypatch):
    load = hotpotqa.load

    def load_with_confirm(config):
        data = load(dataclasses.replace(config, test=config.test + 4))
        *test, a, b, c, d = data.splits["test"]
        return dataclasses.replace(data, splits={**data.splits, "test": tuple(test), "confirm": (a, b, c, d)})

    monkeypatch.setattr(hotpotqa, "load", load_with_confirm)
    clock = Clock()
    monkeypatch.setattr(stopwatch, "time", clock)
    clock.takes(monkeypatch, stages, "optimize", 100.0)
    clock.takes(monkeypatch, stages, "confirm_search", 10_000.0)
    clock.takes(monkeypatch, RewardScorer, "logliks", 100_000.0)  # of the alignment
    clock.takes(monkeypatch, RewardTrainer, "train", 7.0)
    optimizer = OPTIMIZERS["ours"]
    config = optimizer.config(scripted_config(), 0, BUDGET)
    cell = run_cell(optimizer, config, tmp_path, ConsoleProgress(quiet=True), ScriptedCompleter(answer))
    assert 7.0 <= cell["reward_seconds"] < 1_000.0
    assert cell["seconds"] == 100.0 + cell["reward_seconds"]  # without confirmation and alignment
    assert cell["curve"][-1]["at"] == "end" and cell["curve"][-1]["tokens"] >= cell["curve"][-2]["tokens"]
    assert cell["confirm"]["n"] == len(cell["confirm"]["scores"]) == len(cell["confirm"]["baseline"]) == 4
    assert cell["n"] == len(cell["scores"]) == config.data.test
    assert cell["tested"]["tokens"] <= BUDGET and cell["tested"]["changes"] > 0
    assert sum(cell["scores"]) > sum(cell["baseline"])  # shown how, the scripted model answers shortly
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert "compare confirm" not in results["ledger"]
    # The cell tests the whole search, of which the run itself keeps what its confirmation holds up.
    folder = tmp_path / "run" / ("unconfirmed" if (tmp_path / "run" / "unconfirmed").is_dir() else "best")
    again = dataclasses.replace(config, evaluate=EvaluateConfig(folder=str(folder), changes=False))
    run_stages(again, tmp_path / "again", "evaluate", ConsoleProgress(quiet=True), ScriptedCompleter(answer))
    whole = json.loads((tmp_path / "again" / "results.json").read_text())
    assert cell["scores"] == whole["optimized"]["scores"] or cell["tested"]["later"]
    assert cell["baseline"] == whole["baseline"]["scores"] == results["baseline"]["scores"]
