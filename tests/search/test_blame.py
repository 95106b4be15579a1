"""Blame by hand: percentiles with ties and few runs, the earliest of several low ones, calls that failed; what
proposers are told of it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimas_jax.core.types import Call, Example, Outcome, Trace
from optimas_jax.core.values import Prompt, PromptSpace
from optimas_jax.llm.component import LanguageModel, llm_component
from optimas_jax.search.blame import BEHIND, FAILED, FAULT, FEWEST, blame, passes, percentile, percentiles, summarise
from optimas_jax.search.optimisers import reflect
from optimas_jax.search.optimisers.task import Effort, PromptTask

NAMES = ("first", "second", "third")
AFTER = {"first": {"second", "third"}, "second": {"third"}, "third": set()}
LEVELS = [float(level) for level in range(19)]
PASSING = {name: [(level,) for level in LEVELS] for name in NAMES}


def run(*scores):
    """A run whose calls have one measure."""
    return [(name, (score,)) for name, score in zip(NAMES, scores, strict=True)]


def few(count):
    return {name: scores[:count] for name, scores in PASSING.items()}


def test_percentiles_count_equal_scores_half_and_need_enough_runs() -> None:
    assert percentile(-1.0, LEVELS) == 0.5 / 20 and percentile(99.0, LEVELS) == 19.5 / 20
    assert percentile(9.0, LEVELS) == pytest.approx(0.5)
    assert percentile(1.0, [1.0] * 9) == pytest.approx(0.5)  # all alike: neither low nor high
    assert percentile(FAILED, LEVELS) == 0.5 / 20 and percentile(FAILED, [FAILED] * 9) == pytest.approx(0.5)
    assert percentiles((0.0, 2.0), [(1.0, 1.0)] * FEWEST) == (0.5 / (FEWEST + 1), 1 - 0.5 / (FEWEST + 1))
    assert percentiles((0.0, 2.0), [(1.0, 1.0)] * (FEWEST - 1)) is None


def test_one_low_component_is_blamed() -> None:
    for guilty in NAMES:
        said = blame(run(*(-1.0 if name == guilty else 9.0 for name in NAMES)), PASSING, AFTER)
        assert said.component == guilty and sum(said.shares.values()) == pytest.approx(1.0)


def test_of_several_low_ones_the_earliest_explains_the_others() -> None:
    said = blame(run(9.0, -1.0, -1.0), PASSING, AFTER)
    assert said.component == "second"
    low = 0.5 / 20
    fault, later = (exponent * low ** (exponent - 1) for exponent in (FAULT, BEHIND))
    middle = FAULT * 0.5 ** (FAULT - 1), BEHIND * 0.5 ** (BEHIND - 1)
    likelihoods = dict(run(middle[0] * later * later, fault * later, fault))
    whole = sum(value for (value,) in likelihoods.values())
    assert said.shares == pytest.approx({name: value / whole for name, (value,) in likelihoods.items()})


def test_components_beside_each_other_explain_nothing_of_each_other() -> None:
    said = blame(run(1.0, -1.0, 9.0), PASSING, {name: set() for name in NAMES})
    assert said.component == "second" and said.shares["first"] > said.shares["third"]


def test_a_call_that_failed_is_below_every_score() -> None:
    assert blame(run(9.0, FAILED, 9.0), PASSING, AFTER).component == "second"


def test_too_few_runs_and_a_single_component_are_told() -> None:
    said = blame(run(0.0, 0.0, 0.0), few(3), AFTER)
    assert (said.component, said.shares) == ("", {}) and said.percentiles == dict.fromkeys(NAMES)
    assert said.reason == f"too few to say: 3 calls in passing runs, and {FEWEST} are needed"
    assert blame([("first", (0.0,))], PASSING, AFTER).reason == "too few to say: one component can be judged"
    assert blame([], {}, {}).component == ""
    new = blame([*run(9.0, -1.0, 9.0), ("never", (-9.0,))], PASSING, AFTER)  # no passing run calls it
    assert new.component == "second" and new.percentiles["never"] is None


def test_runs_pass_in_the_upper_half_of_their_range() -> None:
    assert passes([0.0, 1.0, 1.0, 0.0]) == [False, True, True, False]
    assert passes([0.1, 0.5, 0.9]) == [False, True, True]
    assert passes([0.3, 0.3]) == [True, True] and passes([]) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-8, 80), min_size=3, max_size=3), st.integers(1, 9), st.integers(-9, 9))
def test_scales_of_local_rewards_do_not_matter(quarters, scale, shift) -> None:
    """Each component's scores by an increasing function of their own."""
    maps = dict(zip(NAMES, (lambda x: scale * x + shift, math.exp, lambda x: x**3), strict=True))

    scores = run(*(quarter / 4 for quarter in quarters))
    mapped = [(name, (maps[name](score),)) for name, (score,) in scores]
    known = {name: [(maps[name](level),) for level in LEVELS] for name in NAMES}
    assert blame(mapped, known, AFTER) == blame(scores, PASSING, AFTER)


def test_in_a_loop_the_first_low_call_explains_those_that_follow() -> None:
    """The second call of the first component reads what the second one wrote, and is low by that."""
    loop = {"first": {"first", "second"}, "second": {"first", "second"}}
    calls = [("first", (9.0,)), ("second", (-1.0,)), ("first", (-1.0,)), ("second", (-1.0,))]
    said = blame(calls, PASSING, loop)
    assert said.component == "second" and said.percentiles == {"first": 0.5 / 20, "second": 0.5 / 20}
    assert blame([("first", (-1.0,)), *calls[1:]], PASSING, loop).component == "first"


def test_measures_are_multiplied_as_independent_ones() -> None:
    """The second component is low in one measure, the third in another; both together name the second."""
    both = {name: [(level, -level) for level in LEVELS] for name in NAMES}
    calls = [("first", (9.0, -9.0)), ("second", (-1.0, -9.0)), ("third", (9.0, -99.0))]
    said = blame(calls, both, AFTER)
    assert said.component == "second" and said.percentiles == {"first": 0.5, "second": 0.5 / 20, "third": 0.5 / 20}
    low, middle = 0.5 / 20, 0.5

    def density(exponent, *levels):
        return math.prod(exponent * level ** (exponent - 1) for level in levels)

    likelihoods = {
        "first": density(FAULT, middle, middle) * density(BEHIND, low, middle) * density(BEHIND, middle, low),
        "second": density(FAULT, low, middle) * density(BEHIND, middle, low),
        "third": density(FAULT, middle, low),
    }
    shares = {name: value / sum(likelihoods.values()) for name, value in likelihoods.items()}
    assert said.shares == pytest.approx(shares)


@pytest.mark.parametrize("length", [3, 6, 12])
def test_a_measure_that_never_differs_says_nothing(length: int) -> None:
    names = [f"c{index}" for index in range(length)]
    after = {name: set(names[index + 1 :]) for index, name in enumerate(names)}
    known = {name: [(level, 0.0) for level in LEVELS] for name in names}
    calls = [(name, (-1.0 if name == "c0" else 9.0, 0.0)) for name in names]
    said = blame(calls, known, after)
    alone = blame([(n, m[:1]) for n, m in calls], {n: [m[:1] for m in of] for n, of in known.items()}, after)
    assert said.shares == pytest.approx(alone.shares) and said.percentiles["c0"] == 0.5 / 20
    same = blame(calls, {**known, "c1": [(9.0, 0.0)] * 19}, after)
    assert same.percentiles["c1"] is None and same.shares["c1"] > 0


def test_where_nothing_differs_or_shares_are_equal_nobody_is_first() -> None:
    same = {name: [(1.0, 0.0)] * 19 for name in NAMES}
    said = blame([(name, (1.0, 0.0)) for name in NAMES], same, {})
    assert said.component == "" and "no measure differs between calls" in said.reason
    tie = blame(
        [(name, (-1.0, 0.0)) for name in NAMES], {name: [(level, 0.0) for level in LEVELS] for name in NAMES}, {}
    )
    assert tie.component == "" and tie.shares == pytest.approx(dict.fromkeys(NAMES, 1 / 3))
    assert tie.reason == "first and second and third have equal shares of it"


def test_a_summary_counts_who_is_first() -> None:
    runs = {
        "e1": blame(run(9.0, -1.0, -1.0), PASSING, AFTER),
        "e2": blame(run(9.0, 9.0, -1.0), PASSING, AFTER),
        "e3": blame(run(9.0, -1.0, 3.0), PASSING, AFTER),
    }
    said = summarise(19, runs)
    assert said.first == {"first": 0, "second": 2, "third": 1} and said.failing == 3 and not said.reason
    assert sum(said.shares.values()) == pytest.approx(1.0)
    unsaid = summarise(2, {"e": blame(run(0.0, 0.0, 0.0), few(2), AFTER)})
    assert unsaid.reason.startswith("too few to say") and unsaid.first == dict.fromkeys(NAMES, 0)
    assert summarise(9, {}).reason == "no run failed"


# --- what proposers are told


def asked(told, style="chat"):
    """The requests of reflective rewriting of ``first``, on one failing run."""
    component = llm_component(
        name="first",
        description="Write.",
        inputs=("q",),
        output="a",
        instruction="Go.",
        language_model=LanguageModel("m"),
    )
    call = Call("first", {"q": "why"}, {"a": "um"})
    trace = Trace("e1", 0, (call,), {"a": "um"}, Outcome.OK, 0.0)
    sent = []

    def ask(requests):
        sent.extend(requests)
        return ["" for _ in requests]

    task = PromptTask(
        component=component,
        space=PromptSpace(),
        current=Prompt("Go."),
        runs=[(Example("e1", {"q": "why"}, {"a": "so"}, "train"), trace)],
        pool=(),
        labelled=(),
        history=(),
        current_score=0.0,
        scale="",
        proposer=LanguageModel("m", style=style),
        effort=Effort(1, 1, 1, 1, 1, 1),
        seed=0,
        rng=None,
        ask=ask,
        gains=lambda prompts: [],
        blame=told,
    )
    reflect.propose(task)
    return sent[0].messages[-1].content


@pytest.mark.parametrize("style", ["chat", "text"])
def test_proposers_read_who_is_at_fault(style) -> None:
    other = blame(run(9.0, -1.0, -1.0), PASSING, AFTER)
    text = asked({"e1": other}, style)
    assert f"Likeliest at fault: second ({other.shares['second']:.0%} of the blame), not this component\n" in text
    own = blame(run(-1.0, 9.0, 9.0), PASSING, AFTER)
    assert f"Likeliest at fault: this component ({own.shares['first']:.0%} of the blame)\n" in asked({"e1": own}, style)
    unknown = blame(run(0.0, 0.0, 0.0), few(2), AFTER)
    assert asked({"e1": unknown}, style) == asked({}, style) == asked({"other": own}, style)
    assert "at fault" not in asked({}, style)
