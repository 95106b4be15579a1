"""Cells that resume, rows that say what failed, and the figures of a comparison, worked out by hand."""

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
from rich.console import Console
from runs import run_config

from optimas_jax.compare.cell import CELL, TASK
from optimas_jax.compare.optimizers import OPTIMIZERS, CompareError, Ours, Peer, find_optimizers
from optimas_jax.compare.plan import run_cells, run_process
from optimas_jax.compare.report import check_plots, draw, markdown, mean_curve, table_rows, tables, title
from optimas_jax.compare.summary import over_seeds, reached, runs_to_reach, summarize
from optimas_jax.loop.config import OfflineConfig, OptimizeConfig, parse_config
from optimas_jax.loop.journal import write_json


def point(tokens, runs, score, at="iteration"):
    return {"at": at, "tokens": tokens, "calls": tokens // 10, "usd": 0.5, "system_runs": runs, "val_score": score}


def cell(scores, curve=None, note="", seconds=10.0):
    return {
        "metric": "f1",
        "chance": 0.25,
        "n": len(scores),
        "split": "test",
        "outcomes": {"ok": len(scores)},
        "baseline": [0.0] * len(scores),
        "scores": scores,
        "curve": [point(100, 4, 0.1), point(200, 8, max(scores))] if curve is None else curve,
        "seconds": seconds,
        "note": note,
    }


class Runner:
    """Writes what ``results`` says of a cell: its dictionary, or an exit code with last words."""

    def __init__(self, results):
        self.results, self.asked = results, []

    async def __call__(self, folder):
        self.asked.append(folder.name)
        result = self.results[folder.name]
        if isinstance(result, tuple):
            return result
        (folder / CELL).write_text(json.dumps(result))
        return 0, ""


CHOSEN = {name: OPTIMIZERS[name] for name in ("ours", "ours-global", "random")}


def run(tmp_path, runner, seeds=(0, 1), budget=1000, jobs=1):
    return run_cells(run_config(), CHOSEN, budget, seeds, tmp_path, lambda text: None, runner, jobs)


def results(**changes):
    made = {f"{name}-{seed}": cell([0.5, 1.0]) for name in CHOSEN for seed in (0, 1)}
    return {**made, **{name.replace("__", "-"): value for name, value in changes.items()}}


def test_all_optimisers_of_a_seed_come_before_the_next_seed_and_what_is_done_is_not_done_again(tmp_path):
    first = Runner(results(random__1=(1, "no room")))
    cells = run(tmp_path, first)
    assert first.asked == ["ours-0", "ours-global-0", "random-0", "ours-1", "ours-global-1", "random-1"]
    assert cells["random"][1] == {"error": "no room"} and cells["ours"][1]["scores"] == [0.5, 1.0]

    again = Runner(results())
    cells = run(tmp_path, again)
    assert again.asked == ["random-1"]  # what failed is tried again
    assert cells["random"][1]["scores"] == [0.5, 1.0]


def test_an_interrupted_cell_ends_the_comparison_and_keeps_what_was_done(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Runner(results(random__0=(130, ""))))
    resumed = Runner(results())
    run(tmp_path, resumed)
    assert resumed.asked[0] == "random-0"


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
        local, by_metric = (OPTIMIZERS[one].config(base, 0, 9) for one in (name, f"{name}-global"))
        assert local.optimize.score == "local"
        assert dataclasses.replace(local.optimize, score="global") == by_metric.optimize
    assert isinstance(OPTIMIZERS["random"], Ours) and isinstance(OPTIMIZERS["dspy-gepa"], Peer)


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


def summary():
    cells = {
        "ours": {
            0: cell([1.0, 0.5, 1.0, 0.5], [point(100, 4, 0.1), point(300, 10, 0.6)]),
            1: cell([0.5] * 4, note="odd"),
        },
        "ours-global": {
            0: cell([0.5] * 4, [point(50, 20, 0.2), point(400, 60, 0.6)]),
            1: {"error": "a\nbad [/end] | here"},
        },
        "textgrad": {0: {"error": "gone"}, 1: {"error": "gone"}},
    }
    return summarize(cells, {"benchmark": "b", "variant": "v"}, 500)


def test_scores_are_means_over_seeds_with_differences_on_the_same_examples_and_seeds():
    found = summary()
    ours, other = found["rows"]["ours"], found["rows"]["ours-global"]
    assert ours["mean"] == pytest.approx(0.625) and ours["seed_means"] == [0.75, 0.5]
    assert ours["spread"] == pytest.approx(0.125 * 2**0.5) and "difference" not in ours
    assert other["difference"]["mean"] == pytest.approx(-0.25) and other["difference"]["seeds"] == [0]
    assert other["errors"] == {1: "a\nbad [/end] | here"} and other["seeds"] == [0]
    assert ours["tokens"] == 250 and ours["system_runs"] == 9 and ours["calls"] == 25 and ours["usd"] == 0.5
    assert found["baseline"]["mean"] == 0.0 and found["chance"] == 0.25
    assert found["rows"]["textgrad"]["seeds"] == []


def test_runs_to_reach_what_the_global_metric_reaches():
    [row] = summary()["runs_to_reach"]["ours"]
    assert row == {"seed": 0, "val_score": 0.6, "local": 10, "global": 60, "ratio": pytest.approx(1 / 6)}
    assert reached([point(1, 3, 0.2)], 0.3) is None
    [row] = runs_to_reach({0: cell([0.0])}, {0: cell([1.0])})
    assert row["local"] is None and row["ratio"] is None
    assert runs_to_reach({0: cell([1.0])}, {0: cell([1.0], [point(1, 3, 0.2), point(9, 9, 0.2)])}) == []


def test_over_seeds_keeps_examples_apart():
    assert over_seeds([[1.0, 0.0], [0.0, 0.0]]) == [0.5, 0.0]


def test_the_curve_of_several_seeds_is_the_mean_of_their_best_so_far():
    curves = [[point(10, 1, 0.2), point(30, 3, 0.6)], [point(20, 2, 0.4), point(40, 4, 0.3)]]
    places, scores = mean_curve(curves, "tokens")
    assert places == [20, 30, 40] and scores == pytest.approx([0.3, 0.5, 0.5])
    assert mean_curve([[]], "tokens") == ([], [])


def test_the_table_has_the_best_first_and_says_what_failed():
    found = summary()
    assert [row[0] for row in table_rows(found)] == ["before optimisation", "ours", "ours-global", "textgrad"]
    text = markdown(found)
    assert (
        "500 LM tokens each; best mean: ours." in text
        and "seed 1: odd" in text
        and "seed 0 failed: gone" in text
        and "bad [/end] \\| here" in text
    )
    assert "| ours | 0 | 0.600 | 10 | 60 | 0.17 |" in text
    console = Console(record=True, width=200)
    for table in tables(found):
        console.print(table)
    assert "ours-global" in console.export_text()


def test_the_table_says_who_is_best_even_where_that_is_not_ours():
    cells = {"ours": {0: cell([0.5, 0.0])}, "random": {0: cell([1.0, 1.0])}, "textgrad": {0: cell([1.0, 1.0])}}
    assert "best mean: random, textgrad" in title(summarize(cells, {"benchmark": "b", "variant": "v"}, 500))


def test_a_comparison_without_any_result_is_a_table_of_errors():
    found = summarize({"textgrad": {0: {"error": "gone"}}}, {"benchmark": "b", "variant": "v"}, 500)
    assert "no result" in markdown(found) and "gone" in markdown(found)


def test_what_is_saved_is_json(tmp_path):
    write_json(tmp_path / "compare.json", summary())
    assert json.loads((tmp_path / "compare.json").read_text())["rows"]["ours"]["seeds"] == [0, 1]


def test_curves_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    draw(summary(), tmp_path / "compare.png")
    assert (tmp_path / "compare.png").read_bytes()[:4] == b"\x89PNG"


def test_without_matplotlib_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(CompareError, match=r"pip install -e '\.\[compare\]'"):
        check_plots()
