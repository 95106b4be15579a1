"""A sweep: points that resume and grow, figures worked out by hand, and the folder's lock."""

from __future__ import annotations

import asyncio
import csv
import io
import json

import numpy as np
import pytest
from rich.console import Console
from runs import RESULTS, get_config

from optimas_jax.core.stats import two_level_interval
from optimas_jax.loop.config import parse_config, with_overrides
from optimas_jax.sweep.folder import open_sweep
from optimas_jax.sweep.plot import axes_of, draw, lines_of
from optimas_jax.sweep.points import Point, SweepError, read_points
from optimas_jax.sweep.record import read_results, write_results
from optimas_jax.sweep.run import run_points
from optimas_jax.sweep.summary import csv_text, short_names, summarize
from optimas_jax.sweep.tables import markdown, table

BASE = get_config("smoke").to_dict()
SWEEP = "optimize.gate.kind=strict,paired seed=0:2"
POINTS = read_points(BASE, SWEEP)
NAMES = [point.name for point in POINTS]
GAINS = dict(zip(NAMES, ([0.1, 0.3], [0.3, 0.5], [0.0, 0.0], [0.2, 0.0]), strict=True))


def result(gains):
    cost = {"calls": 1, "paid_calls": 1, "prompt_tokens": 90, "completion_tokens": 10, "usd": 0.0}
    after = {"mean": 0.5 + float(np.mean(gains)), "ci95": [0.0, 1.0], "scores": [0.5 + gain for gain in gains]}
    return {
        **RESULTS,
        "baseline": {"mean": 0.5, "ci95": [0.5, 0.5], "scores": [0.5, 0.5]},
        "optimized": after,
        "gain": {"mean": float(np.mean(gains)), "ci95": [min(gains), max(gains)], "p_value": 0.5},
        "confirmed": {"n": 2, "changes": None, "verdict": "confirmed" if sum(gains) > 0.5 else "not confirmed"},
        "ledger": {"collect": {"a": cost}, "optimize": {"a": cost, "b": cost}, "evaluate": {"a": cost}},
        "wall_seconds": 10.0,
        "peak_rss_mb": 100,
    }


class Runner:
    """Leaves results, or ends with what ``failing`` says of a point."""

    def __init__(self, folder, failing=()):
        self.folder, self.failing, self.ran, self.together = folder, dict(failing), [], []
        self.running = 0

    async def __call__(self, name):
        self.ran.append(name)
        self.running += 1
        self.together.append(self.running)
        await asyncio.sleep(0.01)
        self.running -= 1
        if name in self.failing:
            return self.failing[name]
        (self.folder / name).mkdir(exist_ok=True)
        (self.folder / name / "results.json").write_text(json.dumps(result(GAINS[name])))
        return 0, ""


def run(folder, runner, points=POINTS, jobs=1, show=lambda results, running: None):
    return run_points(points, folder, jobs, show, runner)


def test_what_is_done_is_not_done_again_and_what_failed_is(tmp_path):
    first = Runner(tmp_path, {NAMES[1]: (1, "no room")})
    results = run(tmp_path, first)
    assert first.ran == NAMES and results[NAMES[1]] == {"error": "no room"} and list(results) == NAMES
    again = Runner(tmp_path)
    assert "error" not in run(tmp_path, again)[NAMES[1]] and again.ran == [NAMES[1]]


def test_an_interrupted_point_ends_the_sweep_and_others_go_on_beside_it(tmp_path):
    runner = Runner(tmp_path, {NAMES[2]: (130, "")})
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, runner)
    assert runner.ran == NAMES[:3]
    both = Runner(tmp_path)
    run(tmp_path, both, jobs=2)
    assert both.ran == NAMES[2:] and max(both.together) == 2


def test_the_table_moves_with_what_runs(tmp_path):
    seen = []
    run(tmp_path, Runner(tmp_path), show=lambda results, running: seen.append((len(results), tuple(running))))
    assert seen[-1] == (4, ()) and seen == sorted(seen, key=lambda one: one[0])
    doing = {NAMES[0]: "seed 0: gate 2"}
    console = Console(file=io.StringIO(), width=200)
    console.print(table("hotpotqa", summarize(POINTS, {}), doing))
    assert "seed 0: gate 2" in console.file.getvalue() and "0/2" in console.file.getvalue()


def test_figures_are_means_over_seeds_with_intervals_over_seeds_and_questions(tmp_path):
    results = {name: result(gains) for name, gains in GAINS.items()}
    [strict, paired] = summarize(POINTS, results)
    assert strict["setting"] == "kind=strict" and strict["overrides"] == {"optimize.gate.kind": "strict"}
    assert strict["gain"] == pytest.approx(0.3) and paired["gain"] == pytest.approx(0.05)
    assert strict["ci95"] == pytest.approx(two_level_interval([GAINS[NAMES[0]], GAINS[NAMES[1]]])[1])
    assert strict["gains"] == pytest.approx([0.2, 0.4]) and strict["confirmed"] == 1
    assert strict["search_tokens"] == 300 and strict["baseline"] == 0.5 and strict["seconds"] == 10
    [row, _] = summarize(POINTS, {NAMES[0]: {"error": "a\nno room"}})
    assert row["seeds"] == [] and "gain" not in row
    assert "seed 0 failed: no room" in markdown("t", [row], "Shared.")


def test_settings_are_compared_with_the_first_on_the_same_seeds_and_questions():
    results = {name: result(gains) for name, gains in GAINS.items()}
    [first, second] = summarize(POINTS, results)
    differences = [np.subtract(GAINS[NAMES[2 + seed]], GAINS[NAMES[seed]]) for seed in (0, 1)]
    assert "difference" not in first and second["difference"] == pytest.approx(-0.25)
    assert second["difference_ci95"] == pytest.approx(two_level_interval(differences)[1]) and not second["shown"]
    assert "-0.250" in markdown("t", [first, second], "") and ", not shown |" in markdown("t", [first, second], "")
    [_, alone] = summarize(POINTS, {name: results[name] for name in NAMES if name != NAMES[2]})
    assert alone["difference"] == pytest.approx(np.mean([-0.1, -0.5])) and alone["shown"] is None
    others = read_points(BASE, "data.seed=1,2 seed=0:2")
    [_, other_questions] = summarize(others, {point.name: result([0.1, 0.2]) for point in others})
    assert "difference" not in other_questions and other_questions["apart"] == "other questions than the first"
    assert ", 1 seed |" in markdown("t", [first, alone], "")
    assert "other questions" in markdown("t", [first, other_questions], "")


def test_settings_are_named_by_what_differs():
    points = read_points(BASE, "optimize.gate.kind=strict,paired optimize.iterations=2 seed=0:2")
    assert [row["setting"] for row in summarize(points, {})] == ["kind=strict", "kind=paired"]
    some = [{"optimize.iterations": 3}, {"optimize.iterations": 3, "optimize.rounds": 1}]
    points = [Point(row, parse_config(with_overrides(BASE, row))) for row in some]
    assert [row["setting"] for row in summarize(points, {})] == ["iterations=3", "rounds=1"]
    [row] = summarize(read_points(BASE, "optimize.iterations=2 seed=0:2"), {})
    assert row["setting"] == "iterations=2" and row["overrides"] == {"optimize.iterations": 2}


def test_the_figures_of_a_sweep_can_be_published_and_read_again(tmp_path):
    results = {name: result(gains) for name, gains in GAINS.items()} | {NAMES[3]: {"error": "no room"}}
    write_results(tmp_path / "points.jsonl", POINTS, results, {"sweep": "hotpotqa:smoke"})
    points, again, about = read_results(tmp_path / "points.jsonl")
    assert about == {"sweep": "hotpotqa:smoke"} and [point.name for point in points] == NAMES
    assert summarize(points, again) == summarize(POINTS, results)


def test_settings_of_several_values_are_read_as_they_were(tmp_path):
    points = [Point(row, parse_config(with_overrides(BASE, row))) for row in [{"reward.lora.targets": ("q", "v")}]]
    write_results(tmp_path / "points.jsonl", points, {points[0].name: result([0.1])}, {})
    [point], _, _ = read_results(tmp_path / "points.jsonl")
    assert point.overrides == points[0].overrides


def test_the_file_has_a_row_for_each_point(tmp_path):
    results = {name: result(gains) for name, gains in GAINS.items()} | {NAMES[3]: {"error": "no room"}}
    rows = list(csv.DictReader(io.StringIO(csv_text(POINTS, results))))
    assert [row["point"] for row in rows] == NAMES
    assert rows[1]["optimize.gate.kind"] == "strict" and rows[1]["seed"] == "1" and float(rows[1]["gain"]) == 0.4
    assert rows[1]["confirmed"] == "True" and rows[3]["error"] == "no room" and rows[3]["gain"] == ""


def test_each_axis_has_a_picture_with_a_line_for_each_other_setting():
    points = read_points(BASE, "optimize.gate.kind=strict,paired reward.lora.rank=4,8,16 seed=0:2")
    rows = summarize(points, {point.name: result([0.1, 0.2]) for point in points})
    assert axes_of(rows) == ["optimize.gate.kind", "reward.lora.rank"]
    assert len(lines_of(rows, "reward.lora.rank")) == 2 and len(lines_of(rows, "optimize.gate.kind")) == 3
    [plot] = draw(rows, "reward.lora.rank").axes
    assert [container.get_label() for container in plot.containers] == [
        "optimize.gate.kind=strict",
        "optimize.gate.kind=paired",
    ]
    assert plot.containers[0].lines[0].get_xdata().tolist() == [4, 8, 16]
    assert plot.containers[0].lines[0].get_ydata() == pytest.approx([0.15] * 3)
    seeds_alone = read_points(BASE, "seed=0:2")
    draw(summarize(seeds_alone, {point.name: result([0.1, 0.2]) for point in seeds_alone}), "setting")


def test_values_that_are_lists_have_a_picture_and_names_of_their_own():
    layers = [{"reward.lora.targets": ["q"]}, {"reward.lora.targets": ["q", "v"]}]
    points = [Point(row, parse_config(with_overrides(BASE, row))) for row in layers]
    [plot] = draw(summarize(points, {point.name: result([0.1, 0.2]) for point in points}), "reward.lora.targets").axes
    assert [label.get_text() for label in plot.get_xticklabels()] == ["['q']", "['q', 'v']"]
    colon, slash = (Point({"proposer.model": name}, points[0].config).name for name in ("openai:a", "openai/a"))
    assert colon != slash and {colon[:23], slash[:23]} == {"proposer.model=openai_a"}


def test_names_are_as_short_as_they_can_be():
    assert short_names(["optimize.gate.kind", "reward.lora.rank", "policy.lora.rank", "rounds"]) == {
        "optimize.gate.kind": "kind",
        "reward.lora.rank": "reward.lora.rank",
        "policy.lora.rank": "policy.lora.rank",
        "rounds": "rounds",
    }


def test_a_sweep_may_grow_and_another_one_is_refused(tmp_path):
    new = []
    with open_sweep(tmp_path, POINTS[:2], new.extend):
        pass
    with open_sweep(tmp_path, POINTS, new.extend):
        pass
    assert [point.name for point in new] == NAMES  # each is checked once
    with (
        pytest.raises(SweepError, match=r"belongs to another sweep:\n  it has the point optimize.gate.kind=strict"),
        open_sweep(tmp_path, read_points(BASE, "seed=0:2"), new.extend),
    ):
        pass
    free = with_overrides(BASE, {"concurrency": 7, "budget.calls": 9})  # no result depends on it
    with open_sweep(tmp_path, read_points(free, SWEEP), new.extend):
        pass
    other = read_points(with_overrides(BASE, {"optimize.iterations": 9}), SWEEP)
    with (
        pytest.raises(SweepError, match=r"config\.optimize\.iterations: \d -> 9"),
        open_sweep(tmp_path, other, new.extend),
    ):
        pass


def test_points_that_cannot_run_leave_the_folder_as_it_was(tmp_path):
    def refuse(points):
        raise SweepError("no")

    with pytest.raises(SweepError, match="no"), open_sweep(tmp_path, POINTS, refuse):
        pass
    with open_sweep(tmp_path, read_points(BASE, "seed=0:2"), lambda points: None):
        pass


def test_two_sweeps_at_a_time_in_one_folder_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("optimas_jax.sweep.folder._LOCK_SECONDS", 0.2)
    with (
        open_sweep(tmp_path, POINTS, lambda points: None),
        pytest.raises(SweepError, match="another sweep runs in"),
        open_sweep(tmp_path, POINTS, lambda points: None),
    ):
        pass
