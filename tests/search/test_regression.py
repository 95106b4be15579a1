"""The check of a new configuration against an old one: its level and power in simulation, and its rules."""

import math

import numpy as np
import pytest

from optimas_jax.core.usage import Usage
from optimas_jax.search.regression import LEVEL, decide, p_enough, p_worse

SIMULATIONS = 2000
WITHIN = LEVEL + 2 * math.sqrt(LEVEL * (1 - LEVEL) / SIMULATIONS)
FREE = (Usage(), Usage())


def rng():
    return np.random.default_rng(11)


def hard_and_easy(n):
    """Chances of success by example, which both systems share."""
    return rng().beta(0.7, 0.9, n)


def equal_pairs(kind, n):
    """[SIMULATIONS, n] differences of two systems that are equally good."""
    draws, size = rng(), (2, SIMULATIONS, n)
    match kind:
        case "normal":
            new, old = draws.normal(0.5, 0.3, size)
        case "right or wrong":
            new, old = draws.random(size) < hard_and_easy(n)
        case "rarely different":
            same = draws.random(size[1:]) < 0.9
            new, old = draws.random(size) < 0.5
            new = np.where(same, old, new)
        case "token F1":
            new, old = np.where(draws.random(size) < 0.4, draws.random(size), draws.random(size) < 0.3)
    return np.asarray(new, float) - np.asarray(old, float)


@pytest.mark.parametrize("n", [12, 40, 200])
@pytest.mark.parametrize("kind", ["normal", "right or wrong", "rarely different", "token F1"])
def test_equal_systems_fail_at_most_at_the_level(kind, n):
    differences = equal_pairs(kind, n)
    assert np.mean(p_worse(differences) <= LEVEL) <= WITHIN
    assert np.mean(p_enough(differences, 0.0) <= LEVEL) <= WITHIN  # nor is a gain shown where there is none


def steps(down, up, n):
    """[SIMULATIONS, n] differences of scores of 0 and 1: -1 and +1 with these probabilities."""
    return rng().choice([-1.0, 0.0, 1.0], (SIMULATIONS, n), p=[down, 1 - down - up, up])


def test_a_drop_of_a_tenth_fails():
    normal = rng().normal(-0.1, 0.4, (SIMULATIONS, 200))
    assert np.mean(p_worse(normal) <= LEVEL) >= 0.8
    assert np.mean(p_worse(steps(0.135, 0.035, 200)) <= LEVEL) >= 0.8  # sd 0.4, too


@pytest.mark.parametrize(("down", "up"), [(0.05, 0.1), (0.08, 0.03)])
def test_what_is_asked_for_is_rarely_shown_where_it_is_just_there(down, up):
    just = steps(down, up, 200)
    assert np.mean(p_enough(just, up - down) <= LEVEL) <= WITHIN + 0.01  # not symmetric around it: about the level
    assert np.mean(p_enough(just, up - down - 0.1) <= LEVEL) >= 0.8


def test_a_decision_is_that_of_its_test():
    differences = rng().normal(-0.02, 0.3, 50)
    old = rng().random(50)
    decided = decide(old + differences, old, FREE, level=0.2, min_gain=-0.05)
    assert decided.p_worse == pytest.approx(p_worse(differences))
    assert decided.p_enough == pytest.approx(p_enough(differences, -0.05))
    assert decided.gain.mean == pytest.approx(differences.mean())


WORSE, SAME, BETTER = [0.0] * 8, [1.0, 0.0] * 4, [1.0] * 8


@pytest.mark.parametrize(
    ("new", "old", "asked", "passed"),
    [
        (SAME, SAME, {}, True),
        (WORSE, BETTER, {}, False),
        (WORSE, BETTER, {"level": 0.001}, True),  # 1 / 256 is not below it
        (BETTER, WORSE, {}, True),
        (BETTER, WORSE, {"min_gain": 0.5}, True),
        (BETTER, WORSE, {"min_gain": 1.0}, False),  # just that much: not shown
        (SAME, SAME, {"min_gain": 0.0}, False),
        (SAME, SAME, {"min_gain": -0.02}, True),
    ],
)
def test_what_passes(new, old, asked, passed):
    decided = decide(new, old, FREE, **asked)
    assert decided.passed == passed == (not decided.reasons)


def test_costs_are_compared_in_the_first_unit_that_both_have():
    cheap, dear = Usage(prompt_tokens=100, usd=1.0), Usage(prompt_tokens=100, usd=3.0)
    decided = decide(SAME, SAME, (dear, cheap), max_cost=2.5)
    assert (decided.passed, decided.cost, decided.priced) == (False, 3.0, "usd")
    assert decided.reasons == ("it costs 3.00 times as much, and 2.5 is allowed",)
    assert decide(SAME, SAME, (dear, cheap), max_cost=3.0).passed
    local = decide(SAME, SAME, (Usage(completion_tokens=50), cheap), max_cost=0.6)
    assert (local.passed, local.cost, local.priced) == (True, 0.5, "tokens")
    own_clients = decide(SAME, SAME, (Usage(calls=30), Usage(calls=10)), max_cost=2.5)
    assert (own_clients.passed, own_clients.cost, own_clients.priced) == (False, 3.0, "calls")
    assert decide(SAME, SAME, (Usage(calls=30), Usage(calls=10, completion_tokens=9)), max_cost=2.5).cost == 3.0
    assert decide(SAME, SAME, FREE, max_cost=1.0).cost is None


@pytest.mark.parametrize("level", [0.0, 1.0, -1])
def test_a_level_is_a_probability(level):
    with pytest.raises(ValueError, match=r"the level is .*between 0 and 1"):
        decide(SAME, SAME, FREE, level=level)
