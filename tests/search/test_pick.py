"""Which component next: unbiased gaps, turns by visits, a bandit without a unit."""

import collections
import dataclasses
import random

import numpy as np
import pytest
from systems import group

from optimas_jax.core.types import Candidate, Group
from optimas_jax.search.pick import pick_component, reward_gaps, upper_bounds

NAMES = ("a", "b", "c")
ANY = random.Random(0)


def sampled(rewards, name="e", configuration="now", component="a"):
    """Candidates of one group from their lists of rewards; the last one is the current value's."""
    sources = [*(f"sampled:{i}" for i in range(len(rewards) - 1)), "current"]
    candidates = tuple(Candidate({"o": i}, s, tuple(r)) for i, (s, r) in enumerate(zip(sources, rewards, strict=True)))
    return Group(component, name, {"q": name}, candidates, configuration)


# Gaps


def test_the_best_candidate_is_chosen_on_one_half_of_the_rewards_and_measured_on_the_other():
    one = sampled([(0.9, 0.1), (0.2, 0.6), (0.3, 0.3)])
    # on the first rewards: candidate 0, which gains 0.1 - 0.3; on the second: candidate 1, which gains 0.2 - 0.3
    assert reward_gaps([one], ("a", "b"), "now") == {"a": 0.0, "b": 0.0}
    steady = sampled([(0.9, 0.8), (0.2, 0.6), (0.3, 0.4)], name="f")
    assert reward_gaps([steady], ("a",), "now")["a"] == pytest.approx((0.4 + 0.6) / 2)
    assert reward_gaps([one, steady], ("a",), "now")["a"] == pytest.approx((-0.2 - 0.1 + 0.4 + 0.6) / 4)


def test_with_one_reward_each_a_source_is_chosen_on_half_of_the_inputs():
    def valued(name, best, other):
        base = group(({"o": 0}, 0.5), ({"o": 1}, best), ({"o": 2}, other), name=name)
        sources = ("current", "value:x", "value:y")
        candidates = tuple(dataclasses.replace(c, source=s) for c, s in zip(base.candidates, sources, strict=True))
        return dataclasses.replace(base, candidates=candidates[::-1], configuration="now")

    groups = [valued(f"e{i}", 0.75, 0.25) for i in range(6)]
    assert reward_gaps(groups, ("a",), "now")["a"] == pytest.approx(0.25)
    worse = [valued(f"e{i}", 0.25, 0.0) for i in range(6)]
    assert reward_gaps(worse, ("a",), "now")["a"] == 0.0
    assert reward_gaps(groups[:1], ("a",), "now")["a"] == 0.0  # one input cannot choose and measure


def test_only_groups_under_the_configuration_in_use_count_and_the_current_output_is_marked_by_source():
    old = sampled([(1.0, 1.0), (0.0, 0.0)], configuration="before")
    unmarked = dataclasses.replace(old, configuration="now", candidates=old.candidates[:1] * 2)
    assert reward_gaps([old, unmarked], ("a",), "now") == {"a": 0.0}
    assert reward_gaps([old], ("a",), "before") == {"a": 1.0}


@pytest.mark.parametrize("rollouts", [1, 4])
def test_noise_alone_is_no_gap(rollouts):
    """Forty inputs, five candidates that are all alike: the best one seems 0.58 better, and the gap is near 0."""
    rng, gaps = np.random.default_rng(0), []
    for _ in range(200):
        rewards = rng.normal(size=(40, 5, rollouts)) / 2
        groups = [sampled(rows.tolist(), name=f"e{i}") for i, rows in enumerate(rewards)]
        gaps.append(reward_gaps(groups, ("a",), "now")["a"])
    assert np.mean(gaps) < 0.05 and np.mean(np.array(gaps) == 0.0) > 0.3


def test_a_true_gap_is_measured_without_bias():
    rng, gaps = np.random.default_rng(1), []
    for _ in range(100):
        rewards = rng.normal(size=(30, 4, 4)) / 4
        rewards[:, 1] += 1.0  # clear, so that the choice is always right
        groups = [sampled(rows.tolist(), name=f"e{i}") for i, rows in enumerate(rewards)]
        gaps.append(reward_gaps(groups, ("a",), "now")["a"])
    assert np.mean(gaps) == pytest.approx(1.0, abs=0.02)


# The rules


def test_uniform_picks_ignore_what_is_known():
    picks = [
        pick_component("uniform", NAMES, {"a": 1.0}, {"a": 9}, {"a": [1.0]}, {}, random.Random(seed))
        for seed in range(300)
    ]
    counts = collections.Counter(picks)
    assert set(counts) == set(NAMES)
    assert min(counts.values()) > 60
    assert picks[0] == pick_component("uniform", NAMES, {}, {}, {}, {}, random.Random(0))


def test_the_gap_rule_visits_every_component_before_it_repeats_one():
    gaps, visits, picks = {"a": 0.1, "b": 0.3, "c": 0.2}, collections.Counter(), []
    for _ in range(6):
        picks.append(pick_component("gap", NAMES, gaps, visits, {}, {}, ANY))
        visits[picks[-1]] += 1
    assert picks == ["b", "c", "a"] * 2


def test_the_gap_rule_weighs_gaps_by_what_a_run_from_there_costs():
    gaps = {"a": 0.25, "b": 0.1, "c": 0.0}
    assert pick_component("gap", NAMES, gaps, {}, {}, {"a": 310, "b": 60}, ANY) == "b"
    assert pick_component("gap", NAMES, gaps, {}, {}, {"a": 100, "b": 60}, ANY) == "a"
    assert pick_component("gap", NAMES, gaps, {}, {}, {"a": 100, "b": 0}, ANY) == "b"  # costs no tokens


@pytest.mark.parametrize("gaps", [{}, {"grid": 1.0}, {"P1": 0.5, "grid": 0.1}])
def test_a_component_that_is_exhausted_starves_no_other(gaps):
    """A grid whose other two values are refused in its first two visits, beside prompts that always have more to try;
    the caller passes it over, and even where it does not, others have their turns."""
    for passed_over in (True, False):
        visits, picks = collections.Counter(), []
        for _ in range(30):
            exhausted = passed_over and visits["grid"] >= 2
            open_ = [name for name in ("P1", "grid", "P2") if not (name == "grid" and exhausted)]
            name = pick_component("gap", open_, gaps, visits, {}, {}, ANY)
            visits[name] += 1
            picks.append(name)
        assert visits["P1"] >= 10 and visits["P2"] >= 10
        assert visits["grid"] == (2 if passed_over else 10)


@pytest.mark.parametrize("kind", ["gap", "bandit"])
def test_one_useless_component_does_not_keep_the_other_from_its_turns(kind):
    """The describer gets the same useless instruction for ever; nothing is known to gain anything."""
    visits, picks = collections.Counter(), []
    for _ in range(20):
        picks.append(pick_component(kind, ("describer", "sorter"), {}, visits, {}, {}, ANY))
        visits[picks[-1]] += 1
    assert visits == {"describer": 10, "sorter": 10}


def test_upper_bounds_by_hand():
    bounds = upper_bounds(("a", "b"), {"a": 0.4}, {"a": 1, "b": 3}, {"b": [0.2]})
    # N = 2 + 4; s = 0.4; means 0.4 / 2 and 0.2 / 4
    assert bounds["a"] == pytest.approx(0.2 + 0.4 * np.sqrt(2 * np.log(6) / 2))
    assert bounds["b"] == pytest.approx(0.05 + 0.4 * np.sqrt(2 * np.log(6) / 4))


@pytest.mark.parametrize("unit", [0.01, 1.0, 1000.0])
def test_the_bandit_does_not_depend_on_the_unit_of_the_metric(unit):
    rng, visits, gains, picks = np.random.default_rng(0), collections.Counter(), collections.defaultdict(list), []
    gaps = {name: unit * gap for name, gap in {"a": 0.2, "b": 0.1, "c": 0.0}.items()}
    for _ in range(60):
        name = pick_component("bandit", NAMES, gaps, visits, gains, {}, ANY)
        visits[name] += 1
        if rng.random() < {"a": 0.1, "b": 0.9, "c": 0.1}[name]:
            gains[name].append(unit * 0.3)
        picks.append(name)
    assert picks[0] == "a" and set(picks) == set(NAMES)
    assert collections.Counter(picks)["b"] > 30
    assert "".join(picks[:12]) == "abbcbcbabbcb"


def test_the_bandit_weighs_gain_by_what_it_costs():
    gaps = {"a": 0.4, "b": 0.3}
    assert pick_component("bandit", ("a", "b"), gaps, {}, {}, {"a": 1000, "b": 1000}, ANY) == "a"
    assert pick_component("bandit", ("a", "b"), gaps, {}, {}, {"a": 1000, "b": 700}, ANY) == "b"


def test_an_unknown_rule_and_nothing_to_choose_from_are_named():
    with pytest.raises(ValueError, match="'best'; known: uniform, gap, bandit"):
        pick_component("best", NAMES, {}, {}, {}, {}, ANY)
    with pytest.raises(ValueError, match="no component to choose from"):
        pick_component("gap", (), {}, {}, {}, {}, ANY)
