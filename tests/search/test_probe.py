"""The probe: forty simulated systems, hand-worked statistics, and what it says."""

from __future__ import annotations

import numpy as np
import pytest

from optimas_jax.core.usage import OutOfBudget
from optimas_jax.search.probe import LEVEL, Findings, Headroom, Plan, advice, interaction_test, noise_ceiling, probe

NAMES = ("rewriter", "keywords", "retriever", "hints", "answers")
UPSTREAM = NAMES[:-1]
PLAN = Plan(values=2, screen=4, test=12)


class Simulated:
    """A system with scores that are continuous, 0/1, or changed on a quarter of the inputs; gains of components add up.

    Attributes:
      gains: true gain of each value, in standard deviations of a difference of two scores.
    """

    def __init__(self, rng, gains, kind):
        self.gains, self.kind = gains, kind
        count = PLAN.screen + PLAN.test
        self.base = rng.normal(size=count)
        self.noise = {(n, k): rng.normal(size=count) for n, row in gains.items() for k in range(len(row))}
        self.touched = rng.random(count) < 0.25

    def measure(self, changes, inputs, repeat):
        inputs = list(inputs)
        scores = self.base[inputs].copy()
        for name, value in changes.items():
            difference = self.gains[name][value] + self.noise[name, value][inputs]
            if self.kind == "sparse":  # as large a mean gain on fewer inputs
                difference = np.where(self.touched[inputs], 2 * difference, 0.0)
            if self.kind == "0/1":
                difference = np.sign(difference) * (np.abs(difference) > 0.5)
            scores += difference
        return scores


def system(seed, headroom, kind="continuous"):
    """A simulated system: random values without a gain, but for one component, and half as much for a second one."""
    rng = np.random.default_rng(seed)
    gains = {name: list(-np.abs(rng.normal(scale=0.2, size=PLAN.values))) for name in NAMES}
    best, second = rng.choice(NAMES, 2, replace=False)
    if headroom:
        gains[best][rng.integers(PLAN.values)] = headroom
        gains[second][rng.integers(PLAN.values)] = headroom * rng.uniform(0, 0.5)
    else:
        gains = {name: [0.0] * PLAN.values for name in NAMES}
    return Simulated(rng, gains, kind), str(best)


def found(simulated):
    return probe(NAMES, UPSTREAM, dict.fromkeys(NAMES, PLAN.values), simulated.measure, PLAN)


@pytest.mark.parametrize("kind", ["continuous", "0/1", "sparse"])
def test_without_headroom_it_says_stop(kind):
    stops = [found(system(seed, 0.0, kind)[0]).first is None for seed in range(20)]
    assert sum(stops) >= 17
    many = [found(system(seed, 0.0, kind)[0]).first is None for seed in range(100, 1100)]
    assert np.mean(many) >= 1 - LEVEL - 2 * np.sqrt(LEVEL / 1000)


@pytest.mark.parametrize("kind", ["continuous", "0/1"])
def test_with_headroom_it_names_the_component_that_has_most(kind):
    sizes = np.linspace(0.5, 3, 20)
    right = []
    for seed, size in enumerate(sizes):
        simulated, best = system(seed, float(size), kind)
        findings = found(simulated)
        if size > 1.5:
            right.append(findings.first == best)
    assert len(right) >= 10 and np.mean(right) >= 0.8
    many = []
    for seed in range(300):
        simulated, best = system(1000 + seed, 1.5 + 1.5 * seed / 300, kind)
        many.append(found(simulated).first == best)
    assert np.mean(many) >= 0.8


def test_what_it_shows_is_measured_on_inputs_that_did_not_choose_it():
    gains = [found(system(seed, 0.0)[0]) for seed in range(300)]
    tested = [one for findings in gains for one in findings.components if one.gain is not None]
    screened = np.mean([one.screened for one in tested])
    assert screened > 0.3  # flattered
    assert abs(np.mean([one.gain for one in tested])) < 3 / np.sqrt(12 * len(tested))
    covered = np.mean([one.ci95[0] <= 0 <= one.ci95[1] for one in tested])
    assert 0.92 < covered < 0.98


def test_the_budget_ends_the_test_and_too_few_inputs_are_no_test():
    simulated, best = system(3, 3.0)

    def until(last):
        def measure(changes, inputs, repeat):
            if max(inputs) >= last:
                raise OutOfBudget("no more")
            return simulated.measure(changes, inputs, repeat)

        return probe(NAMES, UPSTREAM, dict.fromkeys(NAMES, PLAN.values), measure, PLAN)

    assert until(12).first == best and max(one.inputs for one in until(12).components) == 8
    assert until(8).first is None and all(one.gain is None for one in until(8).components)
    assert until(8).advice[0].startswith("cannot tell: 0 inputs were left to test a gain on")


def test_interaction_by_hand():
    additive = np.arange(2)[:, None, None] + 3 * np.arange(2)[None, :, None] + np.arange(5.0)[None, None]
    assert interaction_test(additive) == (0.0, 1.0)
    # i = s11 - s10 - s01 + s00 of three inputs is 1, 2, 3: F is the squared t of their mean, 4 / (1 / 3) = 12.
    cells = np.zeros((2, 2, 3))
    cells[1, 1] = [1.0, 2.0, 3.0]
    f, p_value = interaction_test(cells)
    assert f == pytest.approx(12.0) and p_value == pytest.approx(0.0742, abs=1e-4)  # two-sided t of 3.46, 2 dof
    assert interaction_test(np.ones((2, 2, 3)) * (np.arange(4).reshape(2, 2, 1) == 3))[1] == 0.0


def test_the_interaction_test_is_valid_at_its_level():
    rng = np.random.default_rng(0)
    p_values = [interaction_test(rng.normal(size=(3, 2, 8)))[1] for _ in range(2000)]
    assert np.mean(np.array(p_values) <= 0.05) == pytest.approx(0.05, abs=0.015)


def test_the_noise_ceiling_by_hand():
    first = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])  # on the second input all are equal
    second = np.array([[0.0, 1.0], [0.0, 0.0], [1.0, 5.0]])
    assert noise_ceiling(first, second) == pytest.approx((0.5 + 1 + 1) / 3)
    assert noise_ceiling(np.zeros((2, 2)), second[:2]) is None


def test_it_says_no_more_than_it_found():
    nothing = Findings(None, (Headroom("a", None, 0.0),), None, None, ())
    assert advice(nothing, ())[0].startswith("stop here: no random value")
    tested = Headroom("answers", 0, 0.5, 0.3, (0.1, 0.5), 0.01, 12, True)
    beside = Headroom("hints", 1, 0.1, 0.0, (-0.2, 0.2), 0.4, 12)
    lines = advice(Findings("answers", (beside, tested), None, 0.2, ()), ("hints",))
    assert lines[0].startswith("tune answers first: a random value of it gains +0.30 [0.10, 0.50]")
    assert lines[1].startswith("upstream components do not matter here")
    unchanged = Headroom("hints", 1, 0.1, 0.0, (0.0, 0.0), 1.0, 12)
    assert advice(Findings(None, (unchanged,), None, None, ()), ()) == (
        "stop here: no score of 12 fresh inputs changed (hints +0.00 [0.00, 0.00])",
    )
    below = Findings(None, (beside,), None, 0.25, ())
    assert (
        "below noise (hints +0.00 [-0.20, 0.20]). A gain of 0.25 would have been shown" in advice(below, ("hints",))[0]
    )
