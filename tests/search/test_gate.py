"""The gate: its decisions by hand, its rate of false acceptances with looks, and its power."""

import itertools

import numpy as np
import pytest
from scipy import stats

from optimas_jax.search.gate import GateConfig, chance_of_passing, decide, is_futile, looks, passes, replay

N = 32
LEVELS = (0.01, 0.05, GateConfig.level, 0.5)


def paired(level=0.05):
    return GateConfig("paired", level)


# Decisions


def test_looks_are_after_a_quarter_of_at_least_eight_half_and_all():
    assert looks(paired(), 32) == (8, 16, 32)
    assert looks(paired(), 31) == (15, 31)
    assert looks(paired(0.3), 2) == (1, 2) and looks(paired(0.5), 1) == (1,)
    assert looks(GateConfig("strict"), 32) == (32,) and looks(GateConfig("strict"), 1) == (1,)


def test_a_gate_that_nothing_could_pass_is_refused():
    with pytest.raises(ValueError, match=r"level 0\.05 needs at least 5 validation examples, got 4"):
        looks(paired(), 4)
    assert looks(paired(), 5) == (2, 5)
    with pytest.raises(ValueError, match=r"strict gate .* needs at least 1 validation examples, got 0"):
        looks(GateConfig("strict"), 0)


def test_the_strict_gate_wants_a_higher_sum():
    strict = GateConfig("strict")
    assert decide(strict, [0.1, 0, 0, 0], 4) == "accept"
    assert decide(strict, [0.1, -0.1, 0, 0], 4) == "reject"
    assert decide(strict, [0.1, -0.2, 0, 0], 4) == "reject"
    with pytest.raises(ValueError, match=r"a gate of 4 examples looks after \(4,\), got shape \(3,\)"):
        decide(strict, [1, 1, 1], 4)


def test_one_better_example_of_many_is_no_gain():
    one, five = np.zeros(N), np.zeros(N)
    one[0], five[::7] = 1, 1
    assert decide(paired(), one, N) == "reject"
    assert decide(paired(), five, N) == "accept", "5 better, none worse: p = 1/32"


def test_clear_cases_end_at_the_first_look_and_others_go_on():
    gate = paired(0.1)
    assert decide(gate, np.ones(8), N) == "accept", "p = 1/256, within 5 % of the level"
    assert decide(paired(0.05), np.ones(8), N) == "continue", "out of reach at this level"
    assert decide(paired(0.05), np.ones(16), N) == "accept"
    assert decide(gate, -np.ones(8), N) == "reject"
    assert decide(gate, np.zeros(8), N) == "continue", "no change so far is no evidence either way"
    assert decide(gate, [1, -1] * 4, N) == "continue"
    assert decide(gate, [1, -1, -1, -1, -1, 0, 0, 0], N) == "reject"


def test_a_look_out_of_reach_spends_nothing():
    """Five better of 32, at level 1/32: no early look can pass, and the whole level is left at the end."""
    differences = np.zeros(N)
    differences[:5] = 1
    assert decide(paired(1 / 32), differences, N) == "accept"
    many = np.concatenate([np.repeat([1.0, -1.0], [9, 7]), np.repeat([1.0, -1.0], [13, 3])])
    p_value = stats.binom.sf(21, 32, 0.5)
    assert decide(paired(p_value * 1.01), many, N) == "reject", "the look after half had 5 % of the level"
    assert decide(paired(p_value / 0.9 * 1.01), many, N) == "accept"


def test_the_unit_of_the_metric_does_not_matter():
    rng = np.random.default_rng(0)
    differences = rng.normal(0.1, 0.3, (50, N))
    assert all(
        np.array_equal(a, b)
        for unit in (1e-3, 1e4)
        for a, b in zip(replay(paired(), differences), replay(paired(), differences * unit), strict=True)
    )


@pytest.mark.parametrize("gate", [paired(), paired(GateConfig.level), GateConfig("strict")])
def test_a_replay_decides_as_the_looks_one_by_one(gate):
    rng = np.random.default_rng(1)
    differences = np.concatenate([rng.normal(0.1, 0.3, (30, N)), rng.integers(-1, 2, (30, N))])
    accepted, used = replay(gate, differences)
    for row, verdict, examples in zip(differences, accepted, used, strict=True):
        verdicts = [(decide(gate, row[:stop], N), stop) for stop in looks(gate, N)]
        assert next(v for v in verdicts if v[0] != "continue") == ("accept" if verdict else "reject", examples)


def test_futility_is_the_predictive_probability_of_passing():
    """At half, z of the first half and z_0.95: Phi((z - 1.645 sqrt(1/2)) / sqrt(1/2)) < 0.1 where z < 0.257."""
    for positive, futile in ((8, True), (9, False)):  # of 16: z = 0, 0.5
        differences = np.repeat([1.0, -1.0], [positive, 16 - positive])
        assert is_futile(paired(), differences, N) == futile == (chance_of_passing(paired(), differences, N) < 0.1)


# Without a gain


def split_of(changed):
    """How many of the changed examples each part between looks has: spread, and as early or as late as can be."""
    parts = (8, 8, 16)
    spread = np.diff([0, *(round(changed * stop / N) for stop in (8, 16, 32))])
    early = np.diff([0, *(min(changed, stop) for stop in (8, 16, 32))])
    late = [max(0, min(part, changed - rest)) for part, rest in zip(parts, (24, 16, 0), strict=True)]
    return {tuple(int(k) for k in split) for split in (spread, early, late)}


def pass_probability(gate, split):
    """Exact: every number of better examples in each part, with its binomial probability under the null."""
    counts = np.array(list(itertools.product(*(range(k + 1) for k in split))))
    differences = np.zeros((len(counts), N))
    for start, changed, better in zip((0, 8, 16), split, counts.T, strict=True):
        index = np.arange(changed)
        differences[:, start : start + changed] = np.where(index < better[:, None], 1, -1)
    weights = np.prod(stats.binom.pmf(counts, split, 0.5), axis=1)
    assert weights.sum() == pytest.approx(1)
    return weights @ replay(gate, differences)[0]


@pytest.mark.parametrize("level", LEVELS)
def test_sparse_changes_pass_at_most_at_the_level(level):
    for changed in range(1, N + 1):
        for split in split_of(changed):
            assert sum(split) == changed
            assert pass_probability(paired(level), split) <= level + 1e-12


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("changed", [1, 3, 6, 10])
def test_sparse_changes_of_different_sizes_pass_at_most_at_the_level(level, changed):
    """Exact: all signs of the changes, which lie anywhere and have any size."""
    rng = np.random.default_rng(changed)
    signs = np.array(list(itertools.product([1, -1], repeat=changed)))
    for _ in range(3):
        differences = np.zeros((len(signs), N))
        differences[:, rng.choice(N, changed, replace=False)] = signs * rng.exponential(size=changed)
        assert replay(paired(level), differences)[0].mean() <= level


SIDES = {
    "continuous": lambda rng, shape: rng.normal(0.5, 0.2, shape),
    "heavy tails": lambda rng, shape: rng.standard_t(2, shape),
    "0/1": lambda rng, shape: rng.random(shape) < 0.4,
    "F1": lambda rng, shape: (rng.random(shape) < 0.5) * rng.choice([0.4, 0.5, 2 / 3, 1.0], shape),
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("metric", SIDES)
def test_two_equal_sides_pass_at_most_at_the_level(metric, level):
    rng = np.random.default_rng(0)
    new, old = (np.asarray(SIDES[metric](rng, (2000, N)), float) for _ in range(2))
    share = replay(paired(level), new - old)[0].mean()
    assert share <= level + 2 * np.sqrt(level * (1 - level) / 2000)
    assert share >= level / 4, "nor is the level wasted"


# With a gain of 0.2


def test_power_of_continuous_scores():
    rng = np.random.default_rng(0)
    accepted, used = replay(paired(), 0.2 + rng.normal(0, 0.2, (2000, N)) - rng.normal(0, 0.2, (2000, N)))
    assert accepted.mean() >= 0.95
    assert used.mean() < 28


def test_power_of_right_and_wrong_drawn_anew():
    rng = np.random.default_rng(0)
    new, old = rng.random((2000, N)) < 0.6, rng.random((2000, N)) < 0.4
    assert replay(paired(), new.astype(float) - old)[0].mean() >= 0.33


def test_futility_costs_little_power_and_saves_a_third_where_there_is_no_gain():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.2, (2000, N)) - rng.normal(0, 0.2, (2000, N))
    at_the_end = passes(paired(), 0.1 + noise, N).mean()
    assert replay(paired(), 0.1 + noise)[0].mean() >= at_the_end - 0.05
    assert replay(paired(), noise)[1].mean() <= 22


def test_without_a_gate_everything_passes_after_all_runs():
    gate = GateConfig("none")
    assert looks(gate, 32) == (32,)
    assert decide(gate, [-1.0, 0.0], 2) == "accept"
    accepted, used = replay(gate, [[-1.0, 0.0], [1.0, 1.0]])
    assert accepted.all() and used.tolist() == [2, 2]
