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

import numpy as np
import pytest
from rich.console import Console
from runs import run_config

from optimas_jax.compare.cell import CELL, TASK
from optimas_jax.compare.optimizers import OPTIMIZERS, CompareError, Ours, Peer, find_optimizers, with_settings
from optimas_jax.compare.plan import run_cells, run_process
from optimas_jax.compare.plot import MOST_CURVES, draw, mean_curve
from optimas_jax.compare.record import CELLS, read_cells, write_cells
from optimas_jax.compare.summary import reached, runs_to_reach, summarize
from optimas_jax.compare.tables import COLUMNS, markdown, table_rows, tables, title
from optimas_jax.core.stats import interval, mean_interval, two_level_interval
from optimas_jax.loop.config import OfflineConfig, OptimizeConfig, parse_config
from optimas_jax.loop.journal import write_json
from optimas_jax.report.figures import check_matplotlib, save


def point(tokens, runs, score, at="iteration"):
    return {"at": at, "tokens": tokens, "calls": tokens // 10, "usd": 0.5, "system_runs": runs, "val_score": score}


def cell(scores, curve=None, note="", val_score=0.5, confirm=None):
    return {
        "metric": "f1",
        "chance": 0.25,
        "n": len(scores),
        "split": "test",
        "outcomes": {"ok": len(scores)},
        "tested": {"val_score": val_score},
        "baseline": [0.0] * len(scores),
        "scores": scores,
        "confirm": confirm,
        "unchanged": not any(scores),
        "label_use": {},
        "commit": "abc",
        "curve": [point(100, 4, 0.1), point(200, 8, max(scores))] if curve is None else curve,
        "seconds": 10.0,
        "reward_seconds": 4.0,
        "note": note,
    }


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


def summary():
    confirm = {"n": 2, "baseline": [0.0, 0.5], "scores": [1.0, 0.5]}
    cells = {
        "ours": {
            0: cell([1.0, 0.5, 1.0, 0.5], [point(100, 4, 0.1), point(300, 10, 0.6)], val_score=1.0, confirm=confirm),
            1: cell([0.5] * 4, note="odd", confirm=confirm),
        },
        "ours-global": {
            0: cell([0.5] * 4, [point(50, 20, 0.2), point(400, 60, 0.6), point(501, 70, 0.9)], val_score=None),
            1: {"error": "a\nbad [/end] | here"},
        },
        "textgrad": {0: {"error": "gone"}, 1: {"error": "gone"}},
    }
    return summarize(cells, {"benchmark": "b", "variant": "v"}, 500)


def test_scores_are_means_over_seeds_with_differences_on_the_same_examples_and_seeds():
    result = summary()
    ours, other = result["rows"]["ours"], result["rows"]["ours-global"]
    assert ours["mean"] == pytest.approx(0.625) and ours["seed_means"] == [0.75, 0.5]
    assert ours["spread"] == pytest.approx(0.125 * 2**0.5) and "difference" not in ours
    assert other["difference"]["mean"] == pytest.approx(-0.25) and other["difference"]["seeds"] == [0]
    assert other["errors"] == {1: "a\nbad [/end] | here"} and other["seeds"] == [0]
    assert ours["tokens"] == 250 and ours["system_runs"] == 9 and ours["calls"] == 25 and ours["usd"] == 0.5
    assert (ours["seconds"], ours["reward_seconds"]) == (10, 4)
    assert result["baseline"]["mean"] == 0.0 and result["chance"] == 0.25
    assert result["rows"]["textgrad"]["seeds"] == []


def test_a_row_has_the_confirmed_gain_the_runs_below_start_and_validation_minus_test():
    result = summary()
    ours, other = result["rows"]["ours"], result["rows"]["ours-global"]
    assert ours["confirmed"]["mean"] == pytest.approx(0.5) and ours["confirmed"]["n"] == 2
    assert other["confirmed"] is None and other["val_minus_test"] is None
    assert ours["val_minus_test"] == pytest.approx(((1.0 - 0.75) + (0.5 - 0.5)) / 2)
    assert ours["below_start"] == 0.0
    cells = {0: cell([0.0, 0.5]) | {"baseline": [1.0, 0.0]}, 1: cell([1.0, 0.5]), 2: cell([0.0, 0.0])}
    assert summarize({"ours": cells}, {}, 500)["rows"]["ours"]["below_start"] == pytest.approx(1 / 3)


def test_what_lies_beyond_the_budget_is_no_part_of_curves():
    assert [row["tokens"] for row in summary()["curves"]["ours-global"][0]] == [50, 400]


def test_intervals_are_over_seeds_and_examples():
    """Equal examples: the interval over examples alone has no width, that over seeds is about the t interval."""
    scores = [[0.3] * 50, [0.5] * 50, [0.4] * 50]
    mean, (low, high) = interval(scores)
    assert mean == pytest.approx(0.4) and low < 0.3 and high > 0.5
    assert high - low == pytest.approx(2 * 4.303 * 0.1 / 3**0.5, rel=0.25)
    assert interval([[0.0, 1.0]]) == mean_interval([0.0, 1.0])


def test_the_intervals_of_a_row_hold_what_other_seeds_would_give():
    """Three seeds whose means are 0.2, 0.5 and 0.8, compared with a reference that is the same for every seed; examples
    alone, averaged over the seeds, hardly differ."""
    noise = np.tile([-0.1, 0.1], 20)
    ours = {seed: cell((0.2 + 0.3 * seed + noise).tolist()) for seed in range(3)}
    reference = {seed: cell([0.1] * 40) for seed in range(3)}
    row = summarize({"ours": reference, "random": ours}, {}, 500)["rows"]["random"]
    for known, shift in ((row, 0.0), (row["difference"], 0.1)):
        scores = np.array([one["scores"] for one in ours.values()]) - shift
        over_examples = mean_interval(scores.mean(0))[1]
        assert known["mean"] == pytest.approx(0.5 - shift)
        assert (known["mean"], known["ci95"]) == two_level_interval(scores)
        low, high = known["ci95"]
        assert low < 0.2 - shift and high > 0.8 - shift
        assert over_examples[1] - over_examples[0] < 0.1 < high - low


def test_the_smallest_difference_that_the_seeds_show_grows_with_their_spread():
    def smallest(spread):
        cells = {
            "ours": {seed: cell([0.5] * 4) for seed in range(3)},
            "random": {seed: cell([0.4 + spread * seed] * 4) for seed in range(3)},
        }
        return summarize(cells, {}, 500)["rows"]["random"]["difference"]["smallest"]

    # (t_0.975 + t_0.8) s / sqrt(3) with two degrees of freedom
    assert smallest(0.1) == pytest.approx((4.3027 + 1.0607) * 0.1 / 3**0.5, rel=1e-3)
    assert smallest(0.2) == pytest.approx(2 * smallest(0.1))


def test_runs_to_reach_what_the_global_metric_reaches():
    reach = summary()["runs_to_reach"]["ours, ours-global"]
    assert reach["seeds"] == [{"seed": 0, "val_score": 0.6, "local": 10, "global": 60, "ratio": pytest.approx(1 / 6)}]
    assert reach["ratio"] == pytest.approx(1 / 6) and reach["ci95"] is None and reach["predicted"] is None
    assert reached([point(1, 3, 0.2)], 0.3) is None
    assert runs_to_reach({0: [point(1, 3, 0.2)]}, {0: [point(1, 3, 0.2)]})["ratio"] is None


def test_a_search_that_never_reaches_the_score_counts_with_all_its_runs():
    """Two seeds: a quarter of the twin's 40 runs, and all 60 runs of a search that stays below."""
    rising, flat = [point(1, 3, 0.2), point(9, 40, 0.4)], [point(1, 3, 0.2), point(9, 60, 0.2)]
    early = [point(1, 3, 0.2), point(2, 10, 0.5)]
    reach = runs_to_reach({0: early, 1: flat}, {0: rising, 1: rising}, {0: 10.0, 1: 20.0})
    assert [row["local"] for row in reach["seeds"]] == [10, None]
    assert [row["ratio"] for row in reach["seeds"]] == [0.25, 1.5]
    assert reach["ratio"] == pytest.approx((0.25 * 1.5) ** 0.5)
    assert reach["predicted"] == pytest.approx((10 / 20 * 60 / 80) ** 0.5)
    low, high = reach["ci95"]
    # the t interval of two logarithms: 12.706 times half their distance
    assert np.log(high / low) == pytest.approx(12.7062 * np.log(1.5 / 0.25), rel=1e-4)


def test_the_twin_of_ours_is_compared_with_it_and_labels_predict_the_ratio():
    uses = {"a": {"labelled_runs": 30, "effective_runs": 50.0}, "b": {"labelled_runs": 10, "effective_runs": 30.0}}
    cells = {"ours": {0: cell([0.5, 1.0]) | {"label_use": uses}}, "twin": {0: cell([0.5, 1.0])}}
    # 8 runs until the score, and 40 more labels without local rewards
    assert summarize(cells, {}, 500)["runs_to_reach"]["ours, twin"]["predicted"] == pytest.approx(8 / 48)


def test_a_search_that_ended_early_without_the_score_has_saved_nothing():
    rising, short = [point(1, 3, 0.2), point(9, 500, 0.4)], [point(1, 3, 0.2), point(9, 400, 0.3)]
    cells = {name: {seed: cell([1.0], curve) for seed in (0, 1)} for name, curve in (("ours", short), ("twin", rising))}
    summary = summarize(cells, {"benchmark": "b", "variant": "v"}, 500)
    reach = summary["runs_to_reach"]["ours, twin"]
    assert reach["ratio"] == 1.0 and [row["local"] for row in reach["seeds"]] == [None, None]
    assert "| ours, twin | 2 of 2 |  | 2 not reached |  | at least 1.00 [1.00, 1.00] |" in markdown(summary)


def test_a_difference_whose_interval_holds_zero_is_not_shown_and_one_seed_has_no_verdict():
    cells = {
        "ours": {seed: cell([0.5] * 4) for seed in range(3)},
        "random": {seed: cell([0.3 + 0.2 * seed] * 4) for seed in range(3)},
        "twin": {seed: cell([0.9] * 4) for seed in range(3)},
        "bare": {0: cell([0.6] * 4)},
    }
    rows = {row[0]: row for row in table_rows(summarize(cells, {"benchmark": "b", "variant": "v"}, 500))}
    verdicts = {name: row[COLUMNS.index("verdict")] for name, row in rows.items()}
    assert verdicts == {"before optimisation": "", "twin": "ahead", "random": "not shown", "bare": "", "ours": ""}


def test_a_lead_of_one_lucky_seed_is_not_shown():
    """Five seeds, four of which lead by 0.05: seeds and examples resampled give an interval above zero, the t interval
    over seeds, 0.1 -+ 0.139, does not."""
    cells = {"ours": {seed: cell([0.2] * 40) for seed in range(5)}}
    cells["random"] = {seed: cell([0.5 if seed == 0 else 0.25] * 40) for seed in range(5)}
    difference = summarize(cells, {}, 500)["rows"]["random"]["difference"]
    assert difference["mean"] == pytest.approx(0.1) and difference["ci95"][0] > 0
    assert difference["shown"] is False


def test_a_row_has_the_share_of_runs_that_are_worse_beyond_doubt_and_of_unchanged_ones():
    """Four runs: worse on every example, worse in the mean alone, better, and unchanged."""
    cells = {
        0: cell([0.0, 0.1] * 20) | {"baseline": [1.0, 0.9] * 20},
        1: cell([0.0, 1.0] * 20) | {"baseline": [1.0, 0.1] * 20},
        2: cell([0.5, 1.0] * 20),
        3: cell([0.0] * 40),
    }
    row = summarize({"random": cells}, {}, 500)["rows"]["random"]
    assert (row["below_start"], row["worse"], row["unchanged"]) == (0.5, 0.25, 0.25)


def test_the_curve_of_several_seeds_is_the_mean_of_their_best_so_far():
    curves = [[point(10, 1, 0.2), point(30, 3, 0.6)], [point(20, 2, 0.4), point(40, 4, 0.3)]]
    corners, scores = mean_curve(curves, 50)
    assert corners == [20, 30, 40, 50] and scores == pytest.approx([0.3, 0.5, 0.5, 0.5])
    assert mean_curve([[]], 50) == ([], [])


def test_the_table_has_the_best_first_and_says_what_failed():
    result = summary()
    rows = table_rows(result)
    assert [row[0] for row in rows] == ["before optimisation", "ours", "ours-global", "textgrad"]
    assert {len(row) for row in rows} == {len(COLUMNS)}
    text = markdown(result)
    assert (
        "1 to 2 seeds (intervals over seeds and examples; of one seed over examples alone)" in text
        and "500 LM tokens each; means are over different seeds." in text
        and "seed 1: odd" in text
        and "seed 0 failed: gone" in text
        and "bad [/end] \\| here" in text
    )
    assert "| ours, ours-global | 0 | 0.600 | 10 | 60 | 0.17 |" in text
    console = Console(record=True, width=200)
    for table in tables(result):
        console.print(table)
    assert "ours-global" in console.export_text()


def test_the_first_table_on_the_screen_fits_120_columns_and_no_figure_is_lost():
    confirm = {"n": 2, "baseline": [0.9, 0.1], "scores": [0.1, 0.9]}
    arms = {"ours": 0.9, "random-search": 0.1, "dspy-miprov2": 0.7}
    cells = {
        name: {seed: cell([0.1, score - 0.1 * seed], confirm=confirm) for seed in range(5)}
        for name, score in arms.items()
    }
    result = summarize({**cells, "textgrad": {0: {"error": "gone " * 50}}}, {"benchmark": "b", "variant": "v"}, 500)
    scores, costs = tables(result)
    wide = Console(width=1_000, record=True)
    assert wide.measure(scores).maximum <= 120
    assert {str(column.header) for column in [*scores.columns, *costs.columns]} == set(COLUMNS)
    wide.print(scores, costs)
    text = wide.export_text()
    assert all(figure in text for row in table_rows(result) for figure in row)


def test_the_table_says_who_is_best_even_where_that_is_not_ours():
    cells = {"ours": {0: cell([0.5, 0.0])}, "random": {0: cell([1.0, 1.0])}, "textgrad": {0: cell([1.0, 1.0])}}
    assert "best mean: random, textgrad" in title(summarize(cells, {"benchmark": "b", "variant": "v"}, 500))


def test_a_comparison_without_any_result_is_a_table_of_errors():
    text = markdown(summarize({"textgrad": {0: {"error": "gone"}}}, {"benchmark": "b", "variant": "v"}, 500))
    assert "no result" in text and "gone" in text


def test_what_is_saved_is_json(tmp_path):
    write_json(tmp_path / "compare.json", summary())
    assert json.loads((tmp_path / "compare.json").read_text())["rows"]["ours"]["seeds"] == [0, 1]


def test_cells_in_one_file_are_the_same_table_and_cells_of_two_commits_are_none(tmp_path):
    about = {"benchmark": "b", "variant": "v", "budget": 500}
    cells = {
        "ours": {seed: cell([0.5, 0.1 * seed]) for seed in range(3)},
        "textgrad": {seed: {"error": "gone"} for seed in range(3)},
    }
    write_cells(tmp_path / CELLS, cells, about)
    again, known = read_cells(tmp_path / CELLS)
    assert again == cells and known == about
    assert markdown(summarize(again, known, known["budget"])) == markdown(summarize(cells, about, 500))
    cells["ours"][1]["commit"] = "other"
    write_cells(tmp_path / CELLS, cells, about)
    with pytest.raises(CompareError, match="cells of several commits, abc, other"):
        read_cells(tmp_path / CELLS)
    with pytest.raises(CompareError, match=r"a comparison writes it as cells.jsonl"):
        read_cells(tmp_path / "none.jsonl")


def test_curves_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    save(draw(summary()), tmp_path / "compare.png")
    assert (tmp_path / "compare.png").read_bytes()[:4] == b"\x89PNG"


def test_the_figure_shows_validation_score_against_tokens_up_to_the_budget():
    pytest.importorskip("matplotlib")
    [axes] = draw(summary()).axes
    *curves, budget = axes.get_lines()
    assert axes.get_title() == "Validation score against tokens: b:v"
    assert [curve.get_label() for curve in curves] == ["ours", "ours-global"]
    assert [max(curve.get_xdata()) for curve in curves] == [500, 500]  # of ours-global a point at 501 is left out
    assert [max(curve.get_ydata()) for curve in curves] == pytest.approx([0.55, 0.6])
    assert set(budget.get_xdata()) == {500} and budget.get_label() == "budget"


def test_the_figure_has_at_most_ten_curves_each_with_a_colour():
    pytest.importorskip("matplotlib")
    cells = {f"arm{i:02}": {0: cell([i / 20] * 2)} for i in range(14)} | {"ours": {0: cell([0.0, 0.0])}}
    [axes] = draw(summarize(cells, {"benchmark": "b", "variant": "v"}, 500)).axes
    *curves, _ = axes.get_lines()
    names = [curve.get_label() for curve in curves]
    assert names == ["ours", *(f"arm{i:02}" for i in range(13, 4, -1))] and len(names) == MOST_CURVES
    assert len({curve.get_color() for curve in curves}) == MOST_CURVES


def test_without_matplotlib_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pip install 'optimas_jax\[compare\]'"):
        check_matplotlib()
