"""The confirmation: its rules by hand, and whole searches without a gain."""

import json

import numpy as np
import pytest
from null_searches import DRAW, at_most, null_searches

from optimas_jax.search.confirm import EARLIER_LEVEL, FINAL_LEVEL, Confirmation, confirm
from optimas_jax.search.gate import GateConfig


def better(count, n=32):
    """Scores of which ``count`` are better than a default of zeros: p = 2 ** -count."""
    return [1.0] * count + [0.0] * (n - count)


DEFAULT = better(0)


def test_the_final_state_is_tested_first_and_alone():
    result = confirm(DEFAULT, [None, better(5)])
    assert (result.changes, result.verdict, result.n) == (2, "confirmed", 32)
    (test,) = result.tests
    assert (test.changes, test.gain, test.p_value, test.level, test.confirmed) == (2, 5 / 32, 1 / 32, 0.04, True)
    assert test.ci95[0] < 5 / 32 < test.ci95[1]
    assert confirm(DEFAULT, [better(20), better(5)]) == result, "earlier scores are not looked at"


def test_where_it_is_not_confirmed_earlier_states_are_tested_by_holm():
    result = confirm(DEFAULT, [better(8), better(7), better(6), better(4)])
    assert [test.changes for test in result.tests] == [4, 1, 2, 3]
    assert [test.p_value for test in result.tests] == [2**-4, 2**-8, 2**-7, pytest.approx(2**-6)]
    # 2**-8 = 0.0039 is above 0.01 / 3, which ends the tests.
    assert [test.level for test in result.tests] == [FINAL_LEVEL, EARLIER_LEVEL / 3, EARLIER_LEVEL / 2, EARLIER_LEVEL]
    assert (result.changes, result.verdict) == (None, "not confirmed")
    result = confirm(DEFAULT, [better(9), better(8), better(7), better(4)])  # 0.002, 0.0039, 0.0078: all below
    assert [test.confirmed for test in result.tests] == [False, True, True, True]
    assert (result.changes, result.verdict) == (3, "confirmed: the state after 3 of 4 accepted changes")


def test_a_later_state_with_a_small_p_value_is_not_confirmed_after_a_gap():
    """Holm stops at the first p-value above its level, whatever comes later."""
    result = confirm(DEFAULT, [better(9), better(6), better(6), better(0)])
    assert [test.confirmed for test in result.tests] == [False, True, False, False]
    assert result.changes == 1


def test_states_that_were_not_run_are_not_tested():
    result = confirm(DEFAULT, [better(7), None, better(0)])
    assert [test.changes for test in result.tests] == [3, 1] and result.changes == 1


@pytest.mark.parametrize(("n", "few"), [(0, True), (4, True), (5, False)])
def test_too_few_examples_are_named(n, few):
    result = confirm([0.0] * n, [[1.0] * n])
    assert result.verdict == (f"not confirmed: too few ({n} examples)" if few else "confirmed")
    assert result.changes == (None if few else 1)


def test_without_an_accepted_change_there_is_nothing_to_confirm():
    assert confirm(DEFAULT, []) == Confirmation(32, None, "nothing to confirm: no change was accepted")


def test_a_loss_is_never_confirmed():
    assert confirm(better(20), [better(20), DEFAULT]).changes is None


def test_scores_that_do_not_pair_and_a_missing_final_state_are_refused():
    with pytest.raises(ValueError, match="got 31 and 32"):
        confirm(DEFAULT, [better(5, n=31)])
    with pytest.raises(ValueError, match="scores of the final state, got None"):
        confirm(DEFAULT, [better(5), None])


def test_it_is_plain_data():
    result = confirm(np.zeros(32), [better(8), better(0)])
    data = json.loads(json.dumps(result.to_json()))
    assert data["changes"] == 1 and data["tests"][1]["confirmed"] is True
    assert set(data) == {"n", "changes", "verdict", "tests"}


@pytest.mark.parametrize("metric", ["continuous", "0/1"])
def test_at_most_five_percent_of_null_searches_end_with_anything_confirmed(metric):
    """2,000 searches of 20 proposals, by the gate at its default level; most of them accept something."""
    accepted, confirmed = null_searches(GateConfig("paired"), DRAW[metric])
    assert accepted > 0.5
    assert confirmed <= at_most(0.05)
