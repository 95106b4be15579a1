"""Pages of sweeps, comparisons at equal cost and runs beside each other, from results written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import planted_runs as planted
from planted_harms import HARMS
from runs import RESULTS, get_config

from optimas_jax.compare.page import write_comparison_page
from optimas_jax.compare.summary import summarize as summarize_cells
from optimas_jax.report.show.compare import compare_runs
from optimas_jax.report.show.page import write_comparison
from optimas_jax.report.show.read import read_runs
from optimas_jax.sweep.page import write_sweep_page
from optimas_jax.sweep.points import read_points
from optimas_jax.sweep.summary import summarize

HOSTILE = '</script><script>alert("x")</script> {{ 7*7 }} [b] \u202e'
_GAINS = ([0.1, 0.3], [0.3, 0.5], [0.0, -0.1])


def sweep_page(folder: Path) -> Path:
    """A sweep of four points, of which one failed; one has a page."""
    points = read_points(get_config("embedded").to_dict(), "optimize.gate.kind=strict,paired seed=0:2")
    results: dict[str, Any] = {point.name: _result(gains) for point, gains in zip(points, _GAINS, strict=False)} | {
        points[3].name: {"error": f"a traceback\n{HOSTILE}"}
    }
    _leave_page(folder / points[0].name)
    return write_sweep_page(folder, "hotpotqa:embedded", summarize(points, results), points, "Points shared 3 results.")


def _result(gains: list[float]) -> dict[str, Any]:
    after = {"mean": 0.5 + sum(gains) / 2, "ci95": [0.0, 1.0], "scores": [0.5 + gain for gain in gains]}
    before = {"mean": 0.5, "ci95": [0.5, 0.5], "scores": [0.5, 0.5]}
    gain = {"mean": sum(gains) / 2, "ci95": [min(gains), max(gains)], "p_value": 0.5}
    return {**RESULTS, "baseline": before, "optimized": after, "gain": gain}


def compare_page(folder: Path) -> Path:
    """A comparison of three optimisers, of which one failed; one run has a page."""
    cells = {
        "ours": {0: _cell([1.0, 0.5, 1.0, 0.5], 0.6), 1: _cell([0.5] * 4, 0.4)},
        "ours-global": {0: _cell([0.5] * 4, 0.5), 1: {"error": HOSTILE}},
        "textgrad": {0: {"error": "gone"}, 1: {"error": "gone"}},
    }
    _leave_page(folder / "cells" / "ours-0" / "run")
    return write_comparison_page(folder, summarize_cells(cells, {"benchmark": "b", "variant": HOSTILE}, 500))


def _cell(scores: list[float], reached: float) -> dict[str, Any]:
    curve = [
        {"at": "iteration", "tokens": tokens, "calls": 9, "usd": 0.5, "system_runs": 4, "val_score": score}
        for tokens, score in ((100, 0.1), (300, reached))
    ]
    counts = {"n": 4, "outcomes": {"ok": 4}, "tested": {"val_score": 0.5}, "baseline": [0.0] * 4, "confirm": None}
    times = {"seconds": 10.0, "reward_seconds": 4.0, "note": "", "unchanged": False, "label_use": {}}
    return {"metric": "f1", "chance": 0.25, "split": "test", "scores": scores, "curve": curve, **counts, **times}


def show_page(folder: Path) -> Path:
    """Three runs beside each other: one without results, one with other settings, answers and hostile texts."""
    planted.write(planted.clean_run(1, 40), folder / "a")
    other = planted.plant(planted.clean_run(1, 40), HARMS["refusals"].plant)
    other.config["optimize"] |= {"rounds": 3, HOSTILE: HOSTILE}
    planted.answer(other.rows[0], HOSTILE, 1 - other.rows[0]["after"]["score"])
    planted.write(other, folder / "b")
    planted.write(planted.clean_run(2, 20), folder / "c")
    for name in ("results.json", "journal.jsonl"):
        (folder / "c" / name).unlink()
    _leave_page(folder / "a")
    return write_comparison(compare_runs(read_runs([str(folder / name) for name in "abc"])), None)


def _leave_page(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.html").write_text("<!doctype html><title>a run</title>", encoding="utf-8")


PAGES = {"sweep": sweep_page, "compare": compare_page, "show": show_page}
