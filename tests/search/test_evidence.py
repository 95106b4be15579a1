"""What proposals are worth, from local rewards everywhere and global rewards here and there."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimas_jax.search.evidence import Change, expected_gains, rounds, survivors

SURE = 40.0  # a local difference that is as good as certain


def test_without_known_rewards_local_wins_rank():
    [much, little, none, loss] = expected_gains(
        [[Change(3.0)] * 2, [Change(3.0), None], [None] * 2, [Change(-1.0)] * 2]
    )
    assert much == pytest.approx(0.25 * math.tanh(1.5)) and little == pytest.approx(much / 2)
    assert much > little > none == 0.0 > loss


def test_known_rewards_by_hand():
    # worth = (0.25 + 1 * 0.5) / (1 + 1) = 0.375; missed by 0.125 of three (1 + 2): 1/24 for every change
    [one, other] = expected_gains([[Change(SURE, 0.5), Change(SURE), None, None], [Change(-SURE), None, None, None]])
    assert one == pytest.approx((0.375 + 0.125 / 3) * 2 / 4)
    assert other == pytest.approx(-0.375 / 4)


def test_a_local_reward_that_is_wrong_gets_no_weight():
    wrong = [Change(SURE, -1.0), Change(-SURE, 1.0)] * 4
    gains = expected_gains([wrong, [Change(SURE)], [Change(-SURE)]])
    assert gains == [0.0, 0.0, 0.0]
    # and what is known decides
    better, worse = expected_gains([[Change(-SURE, 1.0)] * 4, [Change(SURE, -1.0)] * 4])
    assert better == pytest.approx(4 / 6) and worse == pytest.approx(-4 / 6)


DIFFERENCES = st.lists(st.tuples(st.floats(-3, 3), st.none() | st.floats(-1, 1)), min_size=1, max_size=8)


@given(st.lists(DIFFERENCES, min_size=1, max_size=4))
def test_losses_are_wins_the_other_way_round(values):
    gains = expected_gains([[Change(local, known) for local, known in changes] for changes in values])
    turned = [[Change(-local, None if known is None else -known) for local, known in changes] for changes in values]
    assert expected_gains(turned) == pytest.approx([-gain for gain in gains])


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=8))
def test_without_known_rewards_the_order_is_that_of_local_rewards(locals_):
    gains = expected_gains([[Change(local)] for local in locals_])
    assert all(
        g >= h for x, g in zip(locals_, gains, strict=True) for y, h in zip(locals_, gains, strict=True) if x > y
    )


def test_correction_beats_both_of_its_parts():
    """Noisy local rewards on all inputs and true ones on a fifth: closer to the truth than either alone."""
    rng = random.Random(0)
    errors: dict[str, list[float]] = {"both": [], "local": [], "known": []}
    for _ in range(60):
        truths, values = [], []
        for _ in range(8):
            quality = rng.gauss(0.0, 0.3)
            true = [max(-1.0, min(1.0, quality + rng.gauss(0.0, 0.5))) for _ in range(30)]
            noisy = [2.0 * (x + rng.gauss(0.0, 0.5) + 0.3 * quality) for x in true]
            values.append([Change(n, t if rng.random() < 0.2 else None) for n, t in zip(noisy, true, strict=True)])
            truths.append(sum(true) / len(true))
        guesses = {
            "both": expected_gains(values),
            "local": expected_gains([[Change(c.local) for c in changes] for changes in values]),
            "known": expected_gains([[Change(0.0, c.known) for c in changes] for changes in values]),
        }
        for name, guess in guesses.items():
            errors[name].append(sum((g - t) ** 2 for g, t in zip(guess, truths, strict=True)))
    mean = {name: sum(found) / len(found) for name, found in errors.items()}
    assert mean["both"] < 0.8 * min(mean["local"], mean["known"])


def test_rounds_double_the_inputs_and_halve_the_values():
    assert rounds(16, 3) == [4, 8, 16]
    assert rounds(9, 3) == [3, 5, 9]
    assert rounds(1, 3) == [1]
    assert [survivors(n, 2) for n in (8, 5, 3, 2, 1)] == [4, 3, 2, 2, 1]


@given(st.integers(1, 500), st.integers(1, 12))
def test_the_last_round_has_all_inputs_and_none_is_repeated(inputs, count):
    found = rounds(inputs, count)
    assert found[-1] == inputs and found == sorted(set(found)) and 1 <= len(found) <= count and found[0] >= 1
