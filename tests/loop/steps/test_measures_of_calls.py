"""Local reward and relevance of calls, by hand, with a scorer that looks them up."""

from __future__ import annotations

import pytest
from systems import system, tool

from optimas_jax.core.types import Call, Outcome, Trace, digest
from optimas_jax.loop.steps.blame import Contrasts, contrasts_of, measures_of, run_scores
from optimas_jax.search.blame import FAILED

SYSTEM = system(tool("add", ("q",), lambda q: q + 1), output="add_out")
X = [{"q": number} for number in range(3)]
Y = [{"add_out": number} for number in range(3)]
REWARDS = [[0.9, 0.2, 0.4], [0.1, 0.7, 0.3], [0.5, 0.6, 0.8]]  # by input and output
LOGLIKS = [[-1.0, -5.0, -9.0], [-2.0, -3.0, -8.0], [-6.0, -4.0, -7.0]]


class Known:
    """Scores that are looked up, and the groups that they were asked for."""

    def __init__(self):
        self.asked = []

    def scores(self, reward, groups):
        assert reward == "known"
        return self._of(REWARDS, groups)

    def logliks(self, groups):
        return self._of(LOGLIKS, groups)

    def _of(self, table, groups):
        self.asked += groups
        return [[table[group.fields["q"]][output["add_out"]] for output in group.outputs] for group in groups]


def call(x, y, outcome=Outcome.OK):
    return Call("add", X[x], Y[y] if outcome is Outcome.OK else {}, outcome)


def trace(*calls):
    return Trace("e", 0, calls, calls[-1].outputs, Outcome.OK, 1.0)


def contrasts(inputs, outputs):
    return Contrasts({digest(X[x]): X[x] for x in inputs}, {digest(Y[y]): Y[y] for y in outputs})


def test_both_measures_are_centred_on_other_calls() -> None:
    calls = [(X[0], Y[0]), (X[2], Y[2])]
    [first, second] = measures_of(Known(), SYSTEM, "known", "add", calls, contrasts([0, 1], [0, 1]))
    # The other output on x0 is y1; the other input is x1.
    assert first == pytest.approx((0.9 - 0.2, -1.0 - -2.0))
    assert second == pytest.approx((0.8 - (0.5 + 0.6) / 2, -7.0 - (-9.0 - 8.0) / 2))


def test_without_anything_to_compare_with_a_measure_is_0() -> None:
    assert measures_of(Known(), SYSTEM, "known", "add", [(X[0], Y[0])], contrasts([0], [0])) == [(0.0, 0.0)]
    assert measures_of(Known(), SYSTEM, "known", "add", [(X[0], Y[0])], contrasts([0], [0, 1])) == [(0.9 - 0.2, 0.0)]
    assert measures_of(Known(), SYSTEM, "known", "add", [], contrasts([0], [0])) == []


def test_likelihoods_are_of_one_output_at_a_time() -> None:
    """Beside other outputs, a long text would be truncated more."""
    known = Known()
    measures_of(known, SYSTEM, "known", "add", [(X[0], Y[0]), (X[2], Y[1])], contrasts([0, 1], [0, 1]))
    assert [len(group.outputs) for group in known.asked] == [2, 2, 1, 1, 1, 1, 1]


def test_calls_that_failed_are_below_all_others_and_are_no_contrasts() -> None:
    failed = trace(call(0, 0), call(1, 1, Outcome.TIMEOUT))
    others = contrasts_of([failed, trace(call(1, 1)), trace(call(1, 1))], ["add"], 0)
    assert sorted(x["q"] for x in others["add"].inputs.values()) == [0, 1] and len(others["add"].outputs) == 2
    [[(name, measures), (_, of_failed)]] = run_scores(Known(), SYSTEM, "known", others, [failed])
    assert name == "add" and measures == pytest.approx((0.9 - 0.2, -1.0 - -2.0))
    assert of_failed == (FAILED, FAILED)
    assert run_scores(Known(), SYSTEM, "known", {}, [failed]) == [[]]
