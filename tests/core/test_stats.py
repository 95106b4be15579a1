import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from optimas_jax.core import stats as module
from optimas_jax.core.stats import (
    Comparison,
    compare,
    mean_interval,
    sign_flip_test,
    smallest_difference,
    two_level_interval,
)

# The sign-flip test


def enumerated(differences):
    """P(sum of flipped >= sum) over all flips, in exact arithmetic of integers."""
    flips = itertools.product(*[(d, -d) for d in differences])
    return np.mean([sum(flipped) >= sum(differences) for flipped in flips])


@pytest.mark.parametrize(
    ("differences", "p_value"),
    [
        ([1], 1 / 2),
        ([1, 1, 1], 1 / 8),
        ([1, 1, -1], 4 / 8),  # sums of at least 1: 3 (once), 1 (three times)
        ([3, 2, 1], 1 / 8),
        ([3, -2, -1], 5 / 8),  # 6, 4, 2, 0 and the other 0
        ([-1], 1.0),
        ([0.3, 0.3, 0.1 + 0.2], 1 / 8),  # equal but for rounding
    ],
)
def test_p_values_by_hand(differences, p_value):
    assert sign_flip_test(differences) == pytest.approx(p_value)
    assert sign_flip_test([*differences, 0.0, 0.0]) == pytest.approx(p_value), "zeros do not count"


@pytest.mark.parametrize("changed", range(33))
def test_with_few_changed_examples_of_many_the_test_is_exact(changed):
    differences = np.zeros(32)
    differences[:changed] = 1.0
    assert sign_flip_test(differences) == pytest.approx(0.5**changed), "where scipy draws flips and is off by 5 %"
    differences[:changed] = np.linspace(0.1, 1.0, changed)  # all different
    assert sign_flip_test(differences) == pytest.approx(max(0.5**changed, 2.0**-13))
    assert sign_flip_test(-differences) == 1.0


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_ties_of_the_sum_count_for_the_null(differences):
    assert sign_flip_test(differences) == pytest.approx(enumerated(differences))
    assert sign_flip_test(np.array(differences) / 10) == pytest.approx(enumerated(differences)), "rounded"


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=12), st.floats(0.01, 1e6))
@settings(max_examples=25)
def test_neither_unit_nor_order_matters(differences, unit):
    p_value = sign_flip_test(differences)
    assert sign_flip_test(np.array(differences) * unit) == pytest.approx(p_value)
    assert sign_flip_test(differences[::-1]) == pytest.approx(p_value)


def test_it_agrees_with_scipy_where_both_enumerate():
    rng = np.random.default_rng(0)
    for differences in rng.normal(0.1, 1, (5, 12)):
        other = stats.permutation_test(
            (differences,), lambda x, axis: x.mean(axis), permutation_type="samples", alternative="greater", axis=0
        )
        assert sign_flip_test(differences) == pytest.approx(other.pvalue)


def test_beyond_full_enumeration_it_is_close_to_it():
    rng = np.random.default_rng(0)
    differences = rng.normal(0.25, 1, (4, 17))
    flips = np.array(list(itertools.product([1, -1], repeat=17)))
    full = [np.mean(flips @ row >= row.sum() - 1e-9) for row in differences]
    assert sign_flip_test(differences) == pytest.approx(full, abs=0.004)


def test_a_subgroup_of_the_flips_is_valid_at_every_level(monkeypatch):
    """All sign patterns of 10 differences, tested with 32 of the 1,024 flips: still no level is exceeded."""
    monkeypatch.setattr(module, "_FLIPS", 32)
    module._sign_flips.cache_clear()
    for sizes in (np.arange(1.0, 11.0), np.repeat([1.0, 2.0], 5), 2.0 ** np.arange(10)):
        p_values = sign_flip_test(np.array(list(itertools.product([1, -1], repeat=10))) * sizes)
        for level in np.unique(p_values):
            assert np.mean(p_values <= level) <= level + 1e-12
    module._sign_flips.cache_clear()


def test_the_flips_are_a_group_and_the_first_columns_take_all_patterns():
    flips = module._sign_flips(20)
    assert flips.shape == (2**13, 20) and (flips[0] == 1).all()
    assert len(np.unique(flips[:, :13], axis=0)) == 2**13
    patterns = {row.tobytes() for row in flips}
    assert all((flips[i] * flips[j]).tobytes() in patterns for i, j in [(1, 2), (77, 5000), (8191, 4096)])
    assert (flips.sum(0) == 0).all()


# Comparisons


def test_a_paired_comparison_by_hand():
    comparison = compare([1, 1, 0], [0, 1, 0])  # differences 1, 0, 0
    assert comparison.n == 3
    assert comparison.mean == pytest.approx(1 / 3)
    assert comparison.ci95 == (0.0, 1.0)  # all three draws hit the one with probability 1/27 > 2.5 %
    assert comparison.p_value == 0.5


def test_equal_scores_have_no_gain():
    assert compare([0.3, 0.7, 0.1], [0.3, 0.7, 0.1]) == Comparison(3, 0.0, (0.0, 0.0), 1.0)


SCORES = st.lists(st.tuples(*[st.sampled_from([0.0, 0.25, 0.5, 1.0])] * 2), min_size=1, max_size=6)


@settings(max_examples=20)
@given(SCORES)
def test_comparing_the_other_way_round_mirrors_the_result(scores):
    new, old = zip(*scores, strict=True)
    forth, back = compare(new, old), compare(old, new)
    assert back.mean == pytest.approx(-forth.mean)
    assert back.ci95 == pytest.approx((-forth.ci95[1], -forth.ci95[0]))
    assert forth.p_value + back.p_value >= 1
    assert compare(new, old) == forth


@pytest.mark.parametrize(("new", "old"), [([1.0], [1.0, 2.0]), ([], []), ([], [1.0])])
def test_scores_that_do_not_pair_are_refused(new, old):
    with pytest.raises(ValueError, match=f"as many new scores as old ones, got {len(new)} and {len(old)}"):
        compare(new, old)


def test_the_interval_of_a_mean():
    assert mean_interval([0.0, 1.0]) == (0.5, (0.0, 1.0))
    assert mean_interval([0.25] * 5) == (0.25, (0.25, 0.25))


# Seeds and examples


def test_seeds_that_agree_leave_the_interval_over_examples():
    examples = np.random.default_rng(0).normal(size=40)
    mean, ci95 = two_level_interval([examples] * 4)
    assert (mean, ci95) == (pytest.approx(examples.mean()), pytest.approx(mean_interval(examples)[1]))


def test_examples_that_agree_leave_the_t_interval_over_seeds():
    seeds = np.random.default_rng(1).normal(size=20)
    mean, ci95 = two_level_interval(np.repeat(seeds[:, None], 3, axis=1))
    t_interval = stats.t.interval(0.95, 19, seeds.mean(), stats.sem(seeds))
    assert mean == pytest.approx(seeds.mean())
    assert ci95 == pytest.approx(t_interval, abs=0.06)


def test_the_interval_over_five_seeds_covers_the_truth():
    """Effects of seed, example and both; an interval over examples alone covers 57 % here."""
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(200):
        seeds, examples, both = rng.normal(0, 0.5, (5, 1)), rng.normal(0, 0.5, (1, 30)), rng.normal(0, 0.5, (5, 30))
        _, (low, high) = two_level_interval(seeds + examples + both)
        hits += low <= 0 <= high
    assert hits >= 184  # 95 % less two standard errors


def test_the_smallest_difference_by_hand():
    # 3 seeds: means 0, 0.1, 0.2, sd 0.1; t quantiles with 2 degrees of freedom: 4.303 and 1.061
    assert smallest_difference([[-0.1, 0.1], [0.1, 0.1], [0.2, 0.2]]) == pytest.approx(
        (4.30265 + 1.06066) * 0.1 / np.sqrt(3), rel=1e-4
    )


@pytest.mark.parametrize(("seeds", "power"), [(3, 0.77), (5, 0.79), (10, 0.80), (30, 0.80)])
def test_the_smallest_difference_is_shown_with_the_stated_power(seeds, power):
    """The formula is an approximation of the noncentral t distribution, close from five seeds on."""
    delta = np.sqrt(seeds) * smallest_difference(stats.zscore(np.arange(seeds), ddof=1)[:, None])
    critical = special.stdtrit(seeds - 1, 0.975)
    assert stats.nct.sf(critical, seeds - 1, delta) == pytest.approx(power, abs=0.01)


@pytest.mark.parametrize("scores", [[[0.1, 0.2]], [0.1, 0.2], [[], []]])
@pytest.mark.parametrize("function", [two_level_interval, smallest_difference])
def test_one_seed_shows_no_spread(function, scores):
    with pytest.raises(ValueError, match=r"at least two seeds, got shape"):
        function(scores)
