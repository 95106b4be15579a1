import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimas_jax.benchmarks.metrics import exact_match, normalize_answer, token_f1


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
