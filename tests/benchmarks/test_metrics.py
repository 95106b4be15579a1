import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimas_jax.benchmarks.metrics import exact_match, normalize_answer, pass_at_k, token_f1


@pytest.mark.parametrize(
    ("prediction", "gold", "f1", "em"),
    [
        ("The Eiffel Tower", "eiffel tower", 1.0, 1.0),
        ("Eiffel", "the Eiffel Tower", 2 / 3, 0.0),
        ("a big red dog", "big dog", 0.8, 0.0),
        ("yes", "yes", 1.0, 1.0),
        ("yes, it is", "yes", 0.0, 0.0),  # the official script: yes and no match as a whole
        ("no", "yes", 0.0, 0.0),
        ("the answer is no", "no", 0.0, 0.0),
        ("noanswer", "Paris", 0.0, 0.0),
        ("", "Paris", 0.0, 0.0),
        ("Paris Paris", "Paris", 2 / 3, 0.0),  # a bag of tokens: the second one is wrong
        ("U.S.A.", "USA", 1.0, 1.0),
        ("Chișinău", "Chișinău", 1.0, 1.0),
        ("An apple", "apple", 1.0, 1.0),
        ("theatre", "atre", 0.0, 0.0),  # articles are whole words only
    ],
)
def test_scores_by_hand(prediction, gold, f1, em):
    assert token_f1(prediction, gold) == pytest.approx(f1)
    assert exact_match(prediction, gold) == em


@given(st.text(), st.text())
def test_f1_is_symmetric_and_bounded(first, second):
    assert 0.0 <= token_f1(first, second) <= 1.0
    assert token_f1(first, second) == pytest.approx(token_f1(second, first))


@given(st.text())
def test_normalisation_is_idempotent_on_its_own_output(text):
    once = normalize_answer(text)
    assert normalize_answer(once) == once


def test_pass_at_k_by_hand():
    assert [pass_at_k(4, c, 1) for c in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert pass_at_k(4, 1, 2) == 0.5
    assert pass_at_k(5, 4, 2) == pass_at_k(3, 3, 3) == 1.0
    for wrong in ((4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5)):
        with pytest.raises(ValueError, match=r"no pass@-?\d+ for 4 answers"):
            pass_at_k(*wrong)


def test_pass_at_k_is_the_official_estimate_on_random_cases():
    def official(n, c, k):  # openai/human-eval: a running product instead of binomials
        estimate = 1.0
        for i in range(n - c + 1, n + 1):
            estimate *= 1.0 - k / i
        return 1.0 if n - c < k else 1.0 - estimate

    rng = random.Random(0)
    for _ in range(1000):
        n = rng.randint(1, 200)
        c, k = rng.randint(0, n), rng.randint(1, n)
        assert pass_at_k(n, c, k) == pytest.approx(official(n, c, k), abs=1e-12)


@given(st.integers(1, 7), st.data())
def test_pass_at_k_is_the_share_of_draws_with_a_right_answer(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    draws = list(itertools.combinations(range(n), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(min(draw) < c for draw in draws) / len(draws))
