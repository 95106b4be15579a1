from systems import example, system, tool

from optimas_jax.core.running import event_loop
from optimas_jax.core.types import Call, Outcome, Trace
from optimas_jax.core.values import Configuration
from optimas_jax.loop.steps.observe import called_after, first_difference, from_first_to_last, read_by


def run(q):
    diamond = system(
        tool("a", ("q",), lambda q: q + 1),
        tool("b", ("a_out",), lambda a: a * 20),
        tool("c", ("a_out",), lambda a: a * 300),
        tool("d", ("b_out", "c_out"), lambda b, c: b + c),
        output="d_out",
    )
    return event_loop.run(diamond.run(Configuration({}), example(q=q), 0))


def test_order_and_differences_of_runs():
    trace = run(1)
    assert called_after([trace]) == {
        "a": {"b", "c", "d"}, "b": {"c", "d"}, "c": {"d"}, "d": set()
    }  # fmt: skip
    other = run(5)
    assert first_difference(trace.calls, trace.calls) == ""
    assert first_difference(trace.calls, other.calls) == "call 1 of 'a' has another q"
    assert first_difference(trace.calls, trace.calls[:2]) == "call 1 of 'c' is made in one of them only"
    assert first_difference(trace.calls, trace.calls[1:]) == "one calls 'a' where the other calls 'b'"


def test_readers_are_those_that_get_a_value_or_a_text_with_it():
    assert read_by([run(1)]) == {
        "a": {"b", "c", "d"}, "b": {"d"}, "c": {"d"}, "d": set()
    }  # fmt: skip


def test_the_component_that_writes_the_answer_is_late_whichever_branch_came_first():
    short, long = ["sort", "write"], ["sort", "price", "mood", "write"]
    traces = [
        Trace("e", 0, tuple(Call(name, {}, {}) for name in names), {}, Outcome.OK, 0.0)
        for names in (short, long, short)
    ]
    assert from_first_to_last(traces) == ["price", "sort", "mood", "write"]
