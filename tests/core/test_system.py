import asyncio
import dataclasses
import subprocess
import sys

import pytest
from systems import example, system, tool

from optimas_jax.core.component import Component, ComponentBug, ComponentFailure
from optimas_jax.core.running.execution import Job, gather, run_many
from optimas_jax.core.system import GraphError
from optimas_jax.core.types import Outcome, StopRun
from optimas_jax.core.values import Choice, Configuration, Grid, Hyperparameters


def diamond(log=None, delay=0.0):
    """q -> a -> (b, c) -> d; d adds up."""

    def logged(name, function):
        def call(*args):
            if log is not None:
                log.append(name)
            return function(*args)

        return call

    return system(
        tool("d", ("b_out", "c_out"), logged("d", lambda b, c: b + c)),
        tool("c", ("a_out",), logged("c", lambda a, x: a * x), grid=(2, 3), delay=delay),
        tool("b", ("a_out",), logged("b", lambda a, x: a + x), grid=(1, 10), delay=delay),
        tool("a", ("q",), logged("a", lambda q: q)),
        output="d_out",
    )


def run(some_system, configuration=None, given=None, seed=0, one=None):
    configuration = configuration or some_system.default_configuration()
    return asyncio.run(some_system.run(configuration, one or example(q=5), seed, given))


def test_a_run_follows_the_graph():
    trace = run(diamond())
    assert trace.score == 5 * 2 + 5 + 1
    assert [call.component for call in trace.calls] == ["a", "c", "b", "d"]
    assert trace.first("d").inputs == {"b_out": 6, "c_out": 10}
    assert trace.outcome is Outcome.OK


def test_order_is_topological_and_otherwise_the_order_of_definition():
    assert diamond().order == ("a", "c", "b", "d")
    assert diamond().descendants("a") == {"b", "c", "d"}
    assert diamond().descendants("b") == {"d"}


def test_order_does_not_depend_on_the_hash_seed():
    code = "import sys; sys.path[:0] = ['tests', 'tests/core']; from test_system import diamond; print(diamond().order)"
    orders = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": str(seed), "PATH": ""}, capture_output=True, check=True
        ).stdout
        for seed in range(3)
    }
    assert len(orders) == 1


def test_given_outputs_are_not_computed_again():
    log = []
    some_system = diamond(log)
    trace = run(some_system)
    log.clear()
    again = run(some_system, given=some_system.followed(trace, {2: {"b_out": 100}}, 0))
    assert log == ["d"]
    assert again.score == 110


def test_a_changed_value_reruns_its_component_and_its_descendants_only():
    log = []
    some_system = diamond(log)
    trace = run(some_system)
    log.clear()
    configuration = some_system.default_configuration().replace("c", Hyperparameters({"x": 3}))
    again = run(some_system, configuration, given=some_system.kept(trace, "c"))
    assert log == ["c", "d"]
    assert again.score == 15 + 6


def test_only_what_is_last_is_scored_at_once_and_not_by_a_judge():
    async def judge(outputs, gold, context):
        return 1.0

    system = diamond()
    assert [name for name in system.order if system.scores_at_once(name)] == ["d"]
    assert not dataclasses.replace(system, metric=judge).scores_at_once("d")


def test_traces_are_read_only():
    trace = run(diamond())
    with pytest.raises(TypeError):
        trace.calls[0] = None
    with pytest.raises(TypeError):
        trace.first("a").outputs["a_out"] = 3


def test_independent_branches_run_at_the_same_time():
    barrier = asyncio.Barrier(2)

    def meeting(name):
        async def call(fields, value, context):
            async with asyncio.timeout(10):
                await barrier.wait()  # passes only if both branches are running
            return {f"{name}_out": 1}

        return Component(name, "", ("q",), (f"{name}_out",), call)

    join = tool("join", ("a_out", "b_out"), lambda a, b: a + b)
    assert run(system(meeting("a"), meeting("b"), join, output="join_out")).score == 2


def test_each_component_draws_from_its_own_seed():
    seeds = {}

    def probe(name):
        async def call(fields, value, context):
            seeds[name, context.component] = context.seed
            return {f"{name}_out": context.seed}

        return Component(name, "", ("q",), (f"{name}_out",), call)

    some_system = system(probe("a"), probe("b"), output="b_out")
    first, second = run(some_system), run(some_system, seed=1)
    assert first.first("a").outputs["a_out"] != first.first("b").outputs["b_out"]
    assert first.first("a").outputs["a_out"] != second.first("a").outputs["a_out"]
    assert run(some_system) == first
    call = asyncio.run(some_system.run_component(first.first("b"), None, example(q=5), 0))
    assert call == first.first("b")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([tool("a", ("b_out",), min), tool("b", ("a_out",), min)], "cycle: a -> b -> a|cycle: b -> a -> b"),
        ([tool("a", ("nothing",), min)], "'a' reads 'nothing', which no component or input provides"),
        ([tool("a", ("q",), min), tool("a", ("q",), min)], "component 'a' is defined twice"),
        ([tool("b", ("q",), min)], "output field 'a_out' is provided by no component or input"),
    ],
)
def test_graphs_that_do_not_hold_together(parts, message):
    with pytest.raises(GraphError, match=message):
        system(*parts, output="a_out")


def test_default_values_are_checked_against_the_space():
    with pytest.raises(GraphError, match=r"default value of component 'a'.*not on the grid"):
        Component("a", "", (), ("x",), tool("a", (), min).run, Grid({"x": (1,)}), Hyperparameters({"x": 2}))


def test_configurations_are_checked_all_at_once():
    some_system = diamond()
    with pytest.raises(ValueError, match=r"(?s)no component 'z'.*c: .*b: None is not on the grid"):
        some_system.check(Configuration({"z": Choice("x"), "c": Choice("x")}))


def test_a_missing_input_field_is_named():
    with pytest.raises(GraphError, match=r"example 'e' lacks input field q; it has \['question'\]"):
        run(diamond(), one=example(question="?"))


def failing(error):
    async def call(fields, value, context):
        raise error

    return Component("bad", "", ("q",), ("bad_out",), call)


def test_a_component_that_fails_gives_an_outcome_and_the_failure_score():
    some_system = system(
        failing(ComponentFailure(Outcome.REFUSED, "no")), tool("after", ("bad_out",), min), output="after_out"
    )
    trace = run(some_system)
    assert (trace.outcome, trace.score, dict(trace.outputs)) == (Outcome.REFUSED, 0.0, {})
    assert [call.component for call in trace.calls] == ["bad"]
    assert trace.first("bad").detail == "no"


def test_a_bug_stops_the_run_at_once_and_says_where():
    with pytest.raises(ComponentBug, match="component 'bad' raised KeyError on example 'e'") as caught:
        run_many(
            system(failing(KeyError("k")), output="bad_out"), [Job(Configuration({}), example(), 0)], concurrency=2
        )
    assert isinstance(caught.value.__cause__, KeyError)


def test_errors_that_stop_the_run_pass_through_with_a_note():
    with pytest.raises(StopRun, match="disk full") as caught:
        run_many(
            system(failing(StopRun("disk full")), output="bad_out"),
            [Job(Configuration({}), example(), 0)],
            concurrency=1,
        )
    assert "component 'bad' ran on example 'e'" in caught.value.__notes__[0]


def test_wrong_output_fields_are_a_bug():
    async def call(fields, value, context):
        return {"other": 1}

    with pytest.raises(ComponentBug, match=r"returned fields \['other'\].*declared are \['a_out'\]"):
        run_many(
            system(Component("a", "", ("q",), ("a_out",), call), output="a_out"),
            [Job(Configuration({}), example(), 0)],
            concurrency=1,
        )


@pytest.mark.parametrize("returned", [None, "text", ["a_out"], 3])
def test_what_is_no_mapping_is_a_bug_that_says_where(returned):
    async def call(fields, value, context):
        return returned

    kind = type(returned).__name__
    with pytest.raises(ComponentBug, match=rf"component 'a' returned {kind} on example 'e', .*fields \['a_out'\]"):
        some_system = system(Component("a", "", ("q",), ("a_out",), call), output="a_out")
        run_many(some_system, [Job(Configuration({}), example(), 0)], concurrency=1)


def test_a_metric_that_raises_names_the_example():
    def metric(outputs, gold):
        raise ZeroDivisionError("division by zero")

    some_system = system(tool("a", ("q",), lambda q: q), output="a_out", metric=metric)
    with pytest.raises(ComponentBug, match="the metric 'metric' raised ZeroDivisionError on example 'e'"):
        run_many(some_system, [Job(Configuration({}), example(), 0)], concurrency=1)


def test_results_keep_the_order_of_the_calls():
    async def after(seconds, result):
        await asyncio.sleep(seconds)
        return result

    calls = [lambda s=s, i=i: after(s, i) for i, s in enumerate((0.06, 0.0, 0.03, 0.01))]
    assert gather(calls, concurrency=4) == [0, 1, 2, 3]
    assert gather([], concurrency=1) == []


def test_concurrency_is_bounded():
    running, most = 0, 0

    async def call():
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1

    gather([call] * 20, concurrency=3)
    assert most == 3


def test_any_concurrency_gives_the_same_traces():
    some_system = diamond(delay=0.001)
    jobs = [Job(some_system.default_configuration(), example(f"e{i}", q=i), 0) for i in range(12)]
    reference = run_many(some_system, jobs, concurrency=1)
    assert [trace.example_id for trace in reference] == [f"e{i}" for i in range(12)]
    assert all(run_many(some_system, jobs, concurrency=n) == reference for n in (4, 16))


def judged(judge):
    return dataclasses.replace(system(tool("a", ("q",), lambda q: q), output="a_out"), metric=judge, completer="asked")


def test_a_judge_asks_like_a_component():
    async def judge(outputs, gold, context):
        await asyncio.sleep(0)
        return outputs["a_out"] + gold["answer"] + (context.completer == "asked") + (context.component == "metric")

    trace = run(judged(judge))
    assert (trace.score, trace.outcome) == (5 + 1 + 1 + 1, Outcome.OK)


def test_a_judge_that_gets_no_answer_is_an_outcome_and_its_bug_is_a_bug():
    async def refused(outputs, gold, context):
        raise ComponentFailure(Outcome.RATE_LIMITED, "busy")

    trace = run(judged(refused))
    assert (trace.score, trace.outcome, dict(trace.outputs)) == (0.0, Outcome.RATE_LIMITED, {})

    async def wrong(outputs, gold, context):
        return outputs["nothing"]

    with pytest.raises(ComponentBug, match="the metric 'wrong' raised KeyError"):
        run(judged(wrong))

    async def spent(outputs, gold, context):
        raise StopRun("spent")

    with pytest.raises(StopRun, match="spent"):
        run(judged(spent))
