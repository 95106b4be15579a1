"""A cell of ours, with local rewards and a confirm split."""

from __future__ import annotations

import dataclasses
import json

from fakes import ScriptedCompleter
from scripted import answer, scripted_config

from optimas_jax.benchmarks import hotpotqa
from optimas_jax.compare.cell import run_cell
from optimas_jax.compare.optimizers import OPTIMIZERS
from optimas_jax.loop.config import EvaluateConfig
from optimas_jax.loop.stages import run_stages
from optimas_jax.report.console import ConsoleProgress

BUDGET = 150_000


def test_a_cell_of_ours_confirms_outside_the_budget_and_counts_the_seconds_of_local_rewards(tmp_path, monkeypatch):
    load = hotpotqa.load

    def load_with_confirm(config):
        data = load(dataclasses.replace(config, test=config.test + 4))
        *test, a, b, c, d = data.splits["test"]
        return dataclasses.replace(data, splits={**data.splits, "test": tuple(test), "confirm": (a, b, c, d)})

    monkeypatch.setattr(hotpotqa, "load", load_with_confirm)
    optimizer = OPTIMIZERS["ours"]
    config = optimizer.config(scripted_config(), 0, BUDGET)
    cell = run_cell(optimizer, config, tmp_path, ConsoleProgress(quiet=True), ScriptedCompleter(answer))
    assert 0 < cell["reward_seconds"] <= cell["seconds"]
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
