import dataclasses
import math

import numpy as np
import pytest
from systems import example, system, tool

from optimas_jax.core.running import event_loop
from optimas_jax.core.scoring import MetricError, NonFiniteScore, Score, metric_arguments
from optimas_jax.core.types import Example, Outcome
from optimas_jax.core.values import Configuration


def run(metric, one=None):
    some_system = system(tool("a", ("q",), lambda q: q), output="a_out", metric=metric)
    return event_loop.run(some_system.run(Configuration({}), one or example(q=5), 0))


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (1, Score(1.0)),
        (True, Score(1.0)),
        (np.float32(0.5), Score(0.5)),
        (np.array(0.25), Score(0.25)),
        ((0.5, "too long"), Score(0.5, "too long")),
        (Score(0.5, "so so", {"length": 1}), Score(0.5, "so so", {"length": 1.0})),
    ],
)
def test_numbers_pairs_and_scores(returned, expected):
    trace = run(lambda outputs, gold: returned)
    assert Score(trace.score, trace.feedback, trace.parts) == expected
    assert type(trace.score) is float and trace.outcome is Outcome.OK


@pytest.mark.parametrize(
    "returned",
    [None, "0.5", (0.5, None), (0.5, 0.5), [0.5, "x"], {"score": 1}, np.zeros(2), Score(1.0, parts={"a": "b"})],
)
def test_what_is_no_score_is_an_error_that_says_what_is(returned):
    def graded(outputs, gold):
        return returned

    with pytest.raises(
        MetricError, match=r"the metric 'graded' returned .* on example 'e', expected a number, a number"
    ):
        run(graded)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e308])
def test_numbers_that_are_not_finite_are_errors_in_parts_too(bad):
    for returned in (bad, (bad, "why"), Score(0.0, parts={"speed": bad})):
        with pytest.raises(NonFiniteScore, match="expected a finite number"):
            run(lambda outputs, gold, returned=returned: returned)


def test_arguments_are_known_by_their_names():
    assert metric_arguments(lambda outputs, gold: 0) == ("outputs", "gold")
    assert metric_arguments(lambda gold, outputs: 0) == ("gold", "outputs")
    assert metric_arguments(lambda example, outputs, trace: 0) == ("example", "outputs", "trace")
    assert metric_arguments(lambda example, made: 0) == ("example", "outputs")
    assert metric_arguments(lambda row, pred, trace=None: 0) == ("example", "outputs", "trace")
    assert metric_arguments(lambda outputs: 0) == ("outputs",)
    assert metric_arguments(lambda made: 0) == ("outputs",)
    assert metric_arguments(lambda made, gold: 0) == ("outputs", "gold")
    assert metric_arguments(lambda outputs, gold, strict=False: 0) == ("outputs", "gold")
    assert metric_arguments(lambda outputs, *, gold=None: 0) == ("outputs",)


@pytest.mark.parametrize("metric", [lambda a, b, c: 0, lambda outputs, gold, question: 0, lambda one, two, gold: 0])
def test_unknown_arguments_are_refused_when_the_system_is_built(metric):
    with pytest.raises(MetricError, match="known are example, outputs, gold, trace, context, such as"):
        run(metric)


def test_a_metric_sees_plain_copies_of_the_row_and_the_outputs_and_the_calls():
    def metric(example, outputs, trace):
        example["items"].append(1)
        outputs["a_out"].append(1)
        assert trace.first("a").outputs == {"a_out": (1, 2)}
        return len(outputs["a_out"]) + example["wanted"]

    one = Example("e", {"q": [1, 2], "items": [0]}, {"wanted": 10}, "train")
    assert run(metric, one).score == run(metric, one).score == 13.0


def test_a_judge_may_tell_why():
    async def judge(outputs, gold, context):
        return 0.5, f"asked as {context.component}"

    trace = run(judge)
    assert (trace.score, trace.feedback) == (0.5, "asked as metric")


def test_feedback_is_part_of_the_trace_and_of_nothing_that_names_results():
    with_text, without = run(lambda outputs, gold: (1.0, "good")), run(lambda outputs, gold: 1.0)
    assert dataclasses.replace(with_text, feedback="") == without
