"""Plan of a race: the sizes of its rounds, and the number of survivors."""

from hypothesis import given
from hypothesis import strategies as st

from optimas_jax.search.race import rounds, survivors


def test_rounds_double_the_inputs_and_halve_the_values():
    assert rounds(16, 3) == [4, 8, 16]
    assert rounds(9, 3) == [3, 5, 9]
    assert rounds(1, 3) == [1]
    assert [survivors(n, 2) for n in (8, 5, 3, 2, 1)] == [4, 3, 2, 2, 1]


@given(st.integers(1, 500), st.integers(1, 12))
def test_the_last_round_has_all_inputs_and_none_is_repeated(inputs, count):
    sizes = rounds(inputs, count)
    assert sizes[-1] == inputs and sizes == sorted(set(sizes)) and 1 <= len(sizes) <= count and sizes[0] >= 1
