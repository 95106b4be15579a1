"""The split of inputs, and what is measured on its report part."""

import dataclasses
import json
import runpy
from types import SimpleNamespace

import numpy as np
import pytest
from runs import ROOT
from systems import group, system, tool

from optimas_jax.core.types import Candidate
from optimas_jax.rewards.alignment import (
    _spearman,
    measure_alignment,
    noise_ceiling,
    pair_accuracy,
    pair_accuracy_interval,
    pooled_pair_accuracy,
    report_groups,
    why_not_to_choose,
)
from optimas_jax.rewards.scorer import ScoredGroup
from optimas_jax.rewards.split import Shares, part_of

NAMES = [f"train-{i:04d}" for i in range(1000)]

# The split


def test_an_input_stays_in_its_part_for_good():
    parts = [part_of(name, Shares(0.15, 0.25)) for name in NAMES]
    assert 120 < parts.count("stop") < 180 and 210 < parts.count("report") < 290
    reported = [name for name in NAMES if part_of(name, Shares(0.0, 0.3)) == "report"]
    assert reported[:3] == ["train-0003", "train-0004", "train-0007"]  # in every process and version
    assert {part_of(name, Shares(0.0, 0.0)) for name in NAMES} == {"train"}
    assert {part_of(name, Shares(1.0, 0.0)) for name in NAMES} == {"stop"}
    assert {part_of(name, Shares(0.0, 1.0)) for name in NAMES} == {"report"}


def test_more_for_stopping_takes_from_training_alone():
    few, many = Shares(0.1, 0.2), Shares(0.3, 0.2)
    for name in NAMES:
        before, after = part_of(name, few), part_of(name, many)
        assert before == after or (before, after) == ("train", "stop")


def test_shares_beyond_everything_are_refused():
    with pytest.raises(ValueError, match=r"stop = 0\.5 and report = 0\.6 .*: together at most 1"):
        Shares(0.5, 0.6)


# Pair accuracy


def test_pairs_in_the_same_order_are_right():
    assert pair_accuracy([[1, 2, 3]], [[0.0, 0.5, 1.0]], 0.0) == (1.0, 3)
    assert pair_accuracy([[3, 2, 1]], [[0.0, 0.5, 1.0]], 0.0) == (0.0, 3)
    assert pair_accuracy([[2, 1, 3]], [[0.0, 0.5, 1.0]], 0.0)[0] == pytest.approx(2 / 3)
    assert pair_accuracy([], [], 0.0) == (0.5, 0)


def test_equal_scores_are_half_right_and_equal_rewards_are_no_pair():
    assert pair_accuracy([[1, 1, 2]], [[0.0, 1.0, 1.0]], 0.0) == (0.75, 2)


def test_differences_up_to_the_threshold_are_noise():
    assert pair_accuracy([[1, 2, 3]], [[0.0, 0.25, 1.0]], 0.25)[1] == 2


def test_accuracy_is_pooled_over_pairs():
    # three pairs right, then one wrong: 3 of 4, not the mean of 1 and 0
    assert pair_accuracy([[1, 2, 3], [1, 2]], [[0, 1, 2], [1, 0]], 0.0)[0] == 0.75


def test_the_interval_is_over_inputs_and_needs_five():
    scores, rewards = [[1, 2]] * 10, [[0.0, 1.0], [1.0, 0.0]] * 5  # every other pair right
    pairs_of_inputs = [f"e{i // 2}" for i in range(10)]
    assert pair_accuracy_interval(scores, rewards, pairs_of_inputs, 0.0) == (0.5, 0.5)
    low, high = pair_accuracy_interval(scores, rewards, [f"e{i}" for i in range(10)], 0.0)
    assert 0.1 <= low < 0.5 < high <= 0.9
    assert pair_accuracy_interval(scores, rewards, ["e0", "e1", "e2", "e3", "e0"] * 2, 0.0) is None


@pytest.mark.parametrize(
    ("scores", "rewards", "expected"),
    [([1, 2, 3], [0, 5, 9], 1.0), ([3, 2, 1], [0, 5, 9], -1.0), ([1, 3, 2], [0, 1, 2], 0.5), ([1, 1], [0, 1], 0.0)],
)
def test_rank_correlation_by_hand(scores, rewards, expected):
    assert _spearman(scores, rewards) == pytest.approx(expected)


def test_the_ceiling_is_what_a_second_set_of_rewards_says_of_the_same_pairs():
    first = group(({"o": 1}, 0.0), ({"o": 2}, 0.5), ({"o": 3}, 1.0))
    second = group(({"o": 3}, 1.0), ({"o": 1}, 0.5), ({"o": 2}, 0.25))  # another order, one pair turned
    assert noise_ceiling([first], [second], 0.0) == pytest.approx(2 / 3)
    assert noise_ceiling([first], [first], 0.0) == 1.0
    assert noise_ceiling([first], [dataclasses.replace(second, example_id="other")], 0.0) is None
    assert noise_ceiling([first], [], 0.0) is None


# Alignment


class Scorer:
    """Scores fall with the length of the text; likelihood is the wrong way round."""

    config = SimpleNamespace(loss=SimpleNamespace(threshold=0.0))

    def scores(self, reward, texts):
        assert reward == "name"
        return [[-len(text) for text in one.candidates] for one in texts]

    def logliks(self, texts):
        return [[len(text) for text in one.candidates] for one in texts]


SYSTEM = system(
    tool("a", ("q",), lambda q, x: x, grid=(1, 2)),
    tool("b", ("a_out",), lambda a, x: x, grid=(1, 2)),
    tool("fixed", ("b_out",), lambda b: b),
    output="fixed_out",
)


def test_alignment_stands_beside_its_controls():
    groups = [
        group(({"a_out": "xx"}, 1.0), ({"a_out": "xxxx"}, 0.0), ({"a_out": "x"}, 0.5), name="e1"),
        group(({"a_out": "xx"}, 0.0), ({"a_out": "x"}, 1.0), name="e2"),
        group(({"a_out": "x"}, 1.0), ({"a_out": "xx"}, 1.0), name="tied"),
        group(({"b_out": 1}, 0.0), ({"b_out": 2}, 0.0), component="b"),
    ]
    [(name, row)] = measure_alignment(Scorer(), "name", SYSTEM, groups).items()
    assert name == "a"
    assert (row.n_pairs, row.n_inputs, row.ci95, row.ceiling) == (4, 2, None, None)
    assert row.pair_accuracy == row.shorter == 0.75
    assert row.loglik == 0.25
    assert row.majority == 0.5  # no output shares a word with another
    assert row.spearman == pytest.approx((0.5 + 1.0) / 2)
    assert measure_alignment(Scorer(), "name", SYSTEM, groups, groups)["a"].ceiling == 1.0


def test_only_report_inputs_under_the_final_configuration_count_and_candidates_once():
    shares = Shares(0.3, 0.3)
    groups = [
        dataclasses.replace(group(({"a_out": 1}, 1.0), ({"a_out": 2}, 0.0), name=name), configuration=configuration)
        for name in NAMES[:50]
        for configuration in ("default", "final", "")
    ]
    reported = report_groups([*groups, *groups], shares, "final")
    names = [name for name in NAMES[:50] if part_of(name, shares) == "report"]
    assert [one.example_id for one in reported] == names and len(names) > 5
    assert all(one.configuration == "final" and len(one.candidates) == 2 for one in reported)
    later = dataclasses.replace(reported[0], candidates=(Candidate({"a_out": 3}, "value:x", (0.5,)),))
    sizes = [len(one.candidates) for one in report_groups([*reported, later], shares, "final")]
    assert sizes == [3] + [2] * (len(names) - 1)


# Pooled over runs


def counted(**inputs):
    """{input: (right, pairs)} as a run's ``by_input``."""
    return {
        name: {"pairs": pairs, "local": right, "ceiling_pairs": pairs, "ceiling": pairs}
        for name, (right, pairs) in inputs.items()
    }


def test_counts_by_input_add_up_to_the_pair_accuracy():
    groups = [
        group(({"a_out": "xx"}, 1.0), ({"a_out": "xxxx"}, 0.0), ({"a_out": "x"}, 0.5), name="e1"),
        group(({"a_out": "xx"}, 0.0), ({"a_out": "x"}, 1.0), name="e2"),
    ]
    row = measure_alignment(Scorer(), "name", SYSTEM, groups, groups)["a"]
    counts = {"pairs": 3, "local": 2, "shorter": 2, "loglik": 1, "majority": 1.5, "ceiling": 3, "ceiling_pairs": 3}
    assert row.by_input["e1"] == counts
    counts = {"pairs": 1, "local": 1, "shorter": 1, "loglik": 0, "majority": 0.5, "ceiling": 1, "ceiling_pairs": 1}
    assert row.by_input["e2"] == counts
    assert sum(counts["local"] for counts in row.by_input.values()) / row.n_pairs == row.pair_accuracy


def test_runs_are_pooled_by_pairs_with_an_interval_over_seeds_and_inputs():
    first, second = counted(a=(3, 4), b=(1, 1)), counted(a=(0, 1), c=(2, 2))
    accuracy, (low, high) = pooled_pair_accuracy([first, second], "local")
    assert accuracy == pytest.approx(6 / 8) and low < accuracy < high
    assert pooled_pair_accuracy([first, second], "ceiling") == (1.0, (1.0, 1.0))
    with pytest.raises(ValueError, match="no pairs"):
        pooled_pair_accuracy([{}, {}], "local")


@pytest.mark.parametrize("spread", [0.0, 0.15])
def test_the_interval_over_five_seeds_covers_the_truth(spread):
    """Coins: seeds differ in how good they are, inputs have 1 to 6 pairs that agree with each other."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(200):
        runs = []
        for quality in np.clip(0.6 + spread * rng.standard_normal(5), 0, 1):
            pairs = rng.integers(1, 7, 17)
            right = np.where(rng.random(17) < quality, pairs, 0)
            runs.append(counted(**{f"e{i}": (r, n) for i, (r, n) in enumerate(zip(right, pairs, strict=True))}))
        _, (low, high) = pooled_pair_accuracy(runs, "local")
        covered += low <= 0.6 <= high
    assert covered >= 180


def test_the_table_of_several_runs_names_every_component(tmp_path, capsys):
    for number, inputs in enumerate(({"a": (3, 4), "b": (1, 1)}, {"a": (0, 1), "c": (2, 2)})):
        rows = {
            name: {**row, "shorter": 0.0, "loglik": row["pairs"], "majority": 1.0}
            for name, row in counted(**inputs).items()
        }
        (tmp_path / str(number)).mkdir()
        data = {"alignment": {"writer": {"by_input": rows}}}
        (tmp_path / str(number) / "alignment.json").write_text(json.dumps(data))
    main = runpy.run_path(str(ROOT / "launch" / "pool_alignment.py"))["main"]
    assert main([str(tmp_path / "0"), str(tmp_path / "1")]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith("| writer | 2, 2 | 8 | 0.750 [") and row.endswith("| 1.000 [1.000, 1.000] |")
    assert main([str(tmp_path / "0")]) == 2


def scored(count, local=(0.0, 1.0, 2.0), loglik=(0.0, 0.0, 0.0), agreed=(0.0, 0.0, 0.0)):
    return [ScoredGroup("now", f"e{index}", (0.0, 0.5, 1.0), local, loglik, agreed) for index in range(count)]


def test_a_local_reward_may_choose_where_it_is_ahead_of_chance_likelihood_and_majority():
    assert why_not_to_choose(scored(5), 0.0) == ""
    assert "4 inputs have different rewards, and 5" in why_not_to_choose(scored(4), 0.0)
    assert "likelihood 1.00" in why_not_to_choose(scored(5, loglik=(0.0, 1.0, 2.0)), 0.0)
    assert "majority 1.00" in why_not_to_choose(scored(5, agreed=(0.0, 1.0, 2.0)), 0.0)
    mixed = [*scored(3), *(one._replace(scores=(2.0, 1.0, 0.0), example_id=f"o{one.example_id}") for one in scored(2))]
    assert "pair accuracy 0.60 [" in why_not_to_choose(mixed, 0.0)  # above chance, but not shown to be
    ties = [one._replace(rewards=(0.5, 0.5, 0.5), example_id=f"t{one.example_id}") for one in scored(9)]
    assert "4 inputs" in why_not_to_choose([*scored(4), *ties], 0.0)
