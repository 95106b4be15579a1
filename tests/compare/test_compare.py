"""Cells that resume, and rows that say what failed."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import sys
import threading
import time

import pytest
from planted_cells import cell
from runs import run_config

from optimas_jax.compare.cell import CELL, TASK
from optimas_jax.compare.optimizers import OPTIMIZERS, CompareError, Ours, Peer, find_optimizers, with_settings
from optimas_jax.compare.plan import run_cells, run_process
from optimas_jax.compare.summary import summarize
from optimas_jax.compare.tables import title
from optimas_jax.loop.config import OfflineConfig, OptimizeConfig, parse_config


class Runner:
    """Writes what ``results`` says of a cell: its dictionary, or an exit code with last words."""

    def __init__(self, results):
        self.results, self.folders = results, []

    async def __call__(self, folder):
        self.folders.append(folder.name)
        result = self.results[folder.name]
        if isinstance(result, tuple):
            return result
        (folder / CELL).write_text(json.dumps(result))
        return 0, ""


CHOSEN = {name: OPTIMIZERS[name] for name in ("ours", "ours-global", "random")}


def run(tmp_path, runner, seeds=(0, 1), budget=1000, jobs=1, write=lambda cells: None):
    return run_cells(run_config(), CHOSEN, budget, seeds, tmp_path, lambda text: None, runner, jobs, write)


def results(**changes):
    every = {f"{name}-{seed}": cell([0.5, 1.0]) for name in CHOSEN for seed in (0, 1)}
    return {**every, **{name.replace("__", "-"): value for name, value in changes.items()}}


def test_all_optimisers_of_a_seed_come_before_the_next_seed_and_what_is_done_is_not_done_again(tmp_path):
    first = Runner(results(random__1=(1, "no room")))
    cells = run(tmp_path, first)
    assert first.folders == ["ours-0", "ours-global-0", "random-0", "ours-1", "ours-global-1", "random-1"]
    assert cells["random"][1] == {"error": "no room"} and cells["ours"][1]["scores"] == [0.5, 1.0]

    again = Runner(results())
    cells = run(tmp_path, again)
    assert again.folders == ["random-1"]  # what failed is tried again
    assert cells["random"][1]["scores"] == [0.5, 1.0]


def test_an_interrupted_cell_ends_the_comparison_and_keeps_what_was_done(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Runner(results(random__0=(130, ""))))
    resumed = Runner(results())
    run(tmp_path, resumed)
    assert resumed.folders[0] == "random-0"


def test_after_every_cell_that_ran_all_cells_so_far_can_be_shown(tmp_path):
    so_far = []
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Runner(results(ours__1=(130, ""), random__0=(1, "no room"))), write=so_far.append)
    assert [[(name, *by_seed) for name, by_seed in cells.items()] for cells in so_far] == [
        [("ours", 0)],
        [("ours", 0), ("ours-global", 0)],
        [("ours", 0), ("ours-global", 0), ("random", 0)],
    ]
    assert so_far[-1]["random"][0] == {"error": "no room"}
    assert title(summarize(so_far[0], {"benchmark": "b", "variant": "v"}, 500)).startswith("b:v, test split, n = 2")
    resumed = []
    run(tmp_path, Runner(results()), write=resumed.append)  # what is done is in, and is no news
    assert [len(cells["ours"]) for cells in resumed] == [1, 2, 2, 2]


def test_as_many_cells_at_the_same_time_as_asked_for_and_an_interrupt_ends_them_all(tmp_path):
    write, running, ended = Runner(results(ours__1=(130, ""))), [], []

    async def runner(folder):
        running.append(folder.name)
        together.append(len(running))
        try:
            await asyncio.sleep(60 if folder.name == "random-0" else 0.01)
            return await write(folder)
        finally:
            running.remove(folder.name)
            ended.append(folder.name)

    together = []
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, runner, jobs=2)
    assert max(together) == 2
    assert ended == ["ours-0", "ours-global-0", "ours-1", "random-0"] and not running


def test_cells_are_processes_of_their_own_which_end_with_the_comparison(tmp_path, monkeypatch):
    logs = [tmp_path / "cells" / name / "log.txt" for name in ("ours-0", "ours-global-0")]

    def terminate():
        while not all(log.exists() and log.read_text().endswith("\n") for log in logs):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    program = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    monkeypatch.setattr(sys, "executable", fake_python(sys.executable, tmp_path, program))
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command does
    try:
        threading.Thread(target=terminate, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, runner=None, jobs=2)
    finally:
        signal.signal(signal.SIGTERM, before)
    for log in logs:
        with pytest.raises(ProcessLookupError):
            os.kill(int(log.read_text()), 0)


def test_what_a_cell_says_last_is_why_it_failed(tmp_path, monkeypatch):
    failing = "print('begins'); print('\\nerror: no room'); raise SystemExit(1)"
    monkeypatch.setattr(sys, "executable", fake_python(sys.executable, tmp_path, failing))
    assert asyncio.run(run_process(tmp_path)) == (1, "no room")


def fake_python(python, folder, program):
    """A command that runs ``program`` whatever it is told to run."""
    command = folder / "python"
    command.write_text(f"#!{python}\n{program}\n")
    command.chmod(0o755)
    return str(command)


def test_a_folder_of_another_budget_or_configuration_is_refused(tmp_path):
    run(tmp_path, Runner(results()))
    other = run(tmp_path, Runner({}), budget=2000)
    assert "belongs to another configuration or budget" in other["ours"][0]["error"]


def test_every_cell_gets_its_seed_the_budget_and_its_switches(tmp_path):
    run(tmp_path, Runner(results()))
    task = json.loads((tmp_path / "cells" / "ours-global-1" / TASK).read_text())
    config = parse_config(task["config"])
    assert (task["optimizer"], config.seed, config.optimize.max_tokens) == ("ours-global", 1, 1000)
    assert config.optimize.score == "global" and config.optimize.iterations > 1000
    assert config.data == run_config().data


def test_each_of_ours_differs_from_its_twin_in_the_score_alone():
    base = run_config()
    for name in ("ours", "opro", "copro", "mipro", "reflect"):
        local, by_metric = (OPTIMIZERS[arm].config(base, 0, 9) for arm in (name, f"{name}-global"))
        assert local.optimize.score == "local"
        assert dataclasses.replace(local.optimize, score="global") == by_metric.optimize
    assert isinstance(OPTIMIZERS["random"], Ours) and isinstance(OPTIMIZERS["dspy-gepa"], Peer)


def test_an_arm_is_data_and_changes_what_it_names():
    base = run_config()
    arm = Ours({"offline.calls": 7})
    config = arm.config(base, 3, 9)
    assert config.offline == dataclasses.replace(base.offline, calls=7) and config.seed == 3
    assert config.system == base.system and config.reward == base.reward and config.data == base.data
    assert with_settings(base, {"optimize.gate": base.optimize.gate}) == base
    with pytest.raises(
        CompareError,
        match=r"OptimizeConfig has no field 'scores' \(of 'scores'\); did you mean 'score'\? it has mode, ",
    ):
        with_settings(base, {"optimize.scores": "local"})


def test_what_a_peer_found_outlives_a_change_of_our_search():
    base, peer = run_config(), OPTIMIZERS["dspy-gepa"]
    other = dataclasses.replace(base, optimize=OptimizeConfig(inputs=99), offline=OfflineConfig(calls=99))
    assert peer.config(base, 0, 9) == peer.config(other, 0, 9) != peer.config(other, 0, 10)


@pytest.mark.parametrize("names", [[], ["nobody"], ["ours", "ours"]])
def test_names_are_checked_before_anything_runs(names):
    with pytest.raises(CompareError, match="known: ours, opro"):
        find_optimizers(names)


def test_a_peer_without_its_environment_is_said_before_anything_runs(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "textgrad", Peer(("/nowhere/python", "x")))
    with pytest.raises(CompareError, match=r"textgrad: .*install_prompt_optimizers.sh"):
        find_optimizers(["ours", "textgrad"])
