"""The figures of a comparison, worked out by hand, and its tables and pictures."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from planted_cells import cell, point
from rich.console import Console

from optimas_jax.compare.optimizers import CompareError
from optimas_jax.compare.plot import MOST_CURVES, draw, mean_curve
from optimas_jax.compare.record import CELLS, read_cells, write_cells
from optimas_jax.compare.summary import reached, runs_to_reach, summarize
from optimas_jax.compare.tables import COLUMNS, markdown, table_rows, tables, title
from optimas_jax.core.stats import interval, mean_interval, two_level_interval
from optimas_jax.loop.journal import write_json
from optimas_jax.report.figures import check_matplotlib, save


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
