"""Random programs against a plain interpreter: loops, branches, parallel blocks, equal inputs, any latency."""

import asyncio
import dataclasses
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from systems import example, system, tool

from optimas_jax.core.component import Component, ComponentBug, ComponentFailure
from optimas_jax.core.program import ProgramError, current_scope
from optimas_jax.core.running import event_loop
from optimas_jax.core.system import GraphError, System
from optimas_jax.core.types import Call, Outcome, StopRun, derive_seed
from optimas_jax.core.values import Configuration

NAMES = ("a", "b", "c")


def answer(name, x, seed):
    """Few different answers, so that equal inputs are common."""
    return derive_seed(name, x, seed) % 3


def components(sleep):
    def component(name):
        async def run(fields, value, context):
            await sleep()
            return {"y": answer(name, fields["x"], context.seed)}

        return Component(name, "", ("x",), ("y",), run)

    return tuple(component(name) for name in NAMES)


async def call(name, **inputs):
    made = await current_scope().call(name, inputs)
    if made.outcome is not Outcome.OK:
        raise ComponentFailure(made.outcome, made.detail)
    return made.outputs


# A block is a list of statements on one number:
# ("call", component), ("if", block, block), ("while", block), ("together", blocks)
blocks = st.recursive(
    st.lists(st.tuples(st.just("call"), st.sampled_from(NAMES)), min_size=1, max_size=2),
    lambda inner: st.lists(
        st.one_of(
            st.tuples(st.just("call"), st.sampled_from(NAMES)),
            st.tuples(st.just("if"), inner, inner),
            st.tuples(st.just("while"), inner),
            st.tuples(st.just("together"), st.lists(inner, min_size=2, max_size=3)),
        ),
        min_size=1,
        max_size=3,
    ),
    max_leaves=8,
)


async def execute(block, x):
    for kind, *parts in block:
        if kind == "call":
            x = (await call(parts[0], x=x))["y"]
        elif kind == "if":
            x = await execute(parts[x % 2], x)
        elif kind == "while":
            for _ in range(3):
                x = await execute(parts[0], x)
                if x == 0:
                    break
        else:
            x = sum(await asyncio.gather(*(execute(part, x) for part in parts[0]))) % 4
    return x


class Interpreter:
    """Runs a block one call after the other; calls up to ``index`` are as in a record."""

    def __init__(self, seed, record=(), index=-1, changed=None):
        self.seed, self.record, self.index, self.changed = seed, record, index, changed
        self.calls, self.repeats, self.occurrences = [], Counter(), Counter()

    def call(self, name, x):
        place, repeat, occurrence = len(self.calls), self.repeats[name, x], self.occurrences[name]
        self.repeats[name, x] += 1
        self.occurrences[name] += 1
        drawn = derive_seed(self.seed, "e", name, *([repeat] if repeat else []))
        y = answer(name, x, drawn)
        if place < self.index:
            y = self.record[place].outputs["y"]
        elif place == self.index:
            y = self.changed
        self.calls.append(Call(name, {"x": x}, {"y": y}, occurrence=occurrence, repeat=repeat))
        return y

    def execute(self, block, x):
        for kind, *parts in block:
            if kind == "call":
                x = self.call(parts[0], x)
            elif kind == "if":
                x = self.execute(parts[x % 2], x)
            elif kind == "while":
                for _ in range(3):
                    x = self.execute(parts[0], x)
                    if x == 0:
                        break
            else:
                x = sum([self.execute(part, x) for part in parts[0]]) % 4
        return x


def program_system(block, latency=None):
    rng = random.Random(latency)

    async def sleep():
        for _ in range(0 if latency is None else rng.randrange(12)):
            await asyncio.sleep(0)

    async def program(fields):
        return {"x": await execute(block, fields["q"])}

    return System(components(sleep), ("q",), (), lambda outputs, gold: float(outputs["x"]), program=program)


def run(some_system, seed=0, known=None, q=1):
    return event_loop.run(some_system.run(Configuration({}), example(q=q), seed, known))


@given(blocks, st.integers(0, 1000))
def test_records_and_seeds_are_those_of_the_program_s_order_whatever_the_latencies(block, latency):
    plain = Interpreter(0)
    score = plain.execute(block, 1)
    for one in (None, latency, latency + 1):
        trace = run(program_system(block, one))
        assert list(trace.calls) == plain.calls
        assert trace.score == score


@given(blocks, st.integers(0, 1000), st.integers(0, 2), st.data())
def test_following_a_changed_call_is_running_again_from_scratch(block, latency, changed, data):
    some_system = program_system(block, latency)
    trace = run(some_system)
    index = data.draw(st.integers(0, len(trace.calls) - 1))
    for seed in (0, 7):
        plain = Interpreter(seed, trace.calls, index, changed)
        score = plain.execute(block, 1)
        followed = run(some_system, seed, some_system.followed(trace, {index: {"y": changed}}, seed))
        assert (list(followed.calls), followed.score) == (plain.calls, score)


@given(blocks, st.integers(0, 1000))
def test_what_is_recorded_is_not_executed_again(block, latency):
    some_system = program_system(block, latency)
    trace = run(some_system)
    executed = []

    async def refuse(fields, value, context):
        executed.append(context.component)
        return {"y": 0}

    again = dataclasses.replace(
        some_system, components=tuple(dataclasses.replace(one, run=refuse) for one in some_system.components)
    )
    assert run(again, 0, some_system.kept(trace)) == trace and not executed
    last = len(trace.calls) - 1
    run(again, 5, some_system.followed(trace, {last: {"y": trace.calls[last].outputs["y"]}}, 5))
    assert not executed  # all others are before it


def diamond_parts():
    return (
        tool("a", ("q",), lambda q: q + 1),
        tool("b", ("a_out",), lambda a: a * 2),
        tool("c", ("a_out",), lambda a: a * 3),
        tool("d", ("b_out", "c_out"), lambda b, c: b + c),
    )


async def in_parallel(fields):
    a = await call("a", q=fields["q"])
    b, c = await asyncio.gather(call("b", **a), call("c", **a))
    return await call("d", **b, **c)


async def one_by_one(fields):
    a = await call("a", q=fields["q"])
    b = await call("b", **a)
    c = await call("c", **a)
    return await call("d", **b, **c)


@pytest.mark.parametrize("program", [in_parallel, one_by_one])
def test_a_graph_and_the_same_as_a_program_have_one_record(program):
    graph = system(*diamond_parts(), output="d_out")
    same = dataclasses.replace(graph, program=program)
    assert run(same) == run(graph)
    trace = run(graph)
    for index in range(4):
        answers = {index: {f"{'abcd'[index]}_out": 100}}
        for seed in (0, 1):
            known = graph.followed(trace, answers, seed)
            assert run(same, seed, known) == run(graph, seed, known)


def asking(some_component, program, **settings):
    return System((some_component,), ("q",), (), lambda outputs, gold: float(outputs["x"]), program=program, **settings)


def failing_first(error, times=1):
    made = Counter()

    async def component(fields, value, context):
        made["all"] += 1
        if made["all"] <= times:
            raise error
        return {"y": 5}

    return Component("a", "", ("x",), ("y",), component)


def test_a_failure_may_be_caught_and_tried_again_with_a_seed_of_its_own():
    async def retrying(fields):
        for _ in range(3):
            try:
                return {"x": (await call("a", x=fields["q"]))["y"]}
            except ComponentFailure:
                continue
        raise AssertionError("the second try succeeds")

    trace = run(asking(failing_first(ComponentFailure(Outcome.PARSE_ERROR, "no number")), retrying))
    assert (trace.outcome, trace.score) == (Outcome.OK, 5.0)
    assert [(c.outcome, c.occurrence, c.repeat) for c in trace.calls] == [
        (Outcome.PARSE_ERROR, 0, 0),
        (Outcome.OK, 1, 1),
    ]


def test_a_failed_call_is_followed_with_its_own_outcome():
    """A program may tell a time-out from a refusal."""

    async def telling(fields):
        try:
            return {"x": (await call("a", x=fields["q"]))["y"]}
        except ComponentFailure as failure:
            return {"x": {Outcome.TIMEOUT: 2, Outcome.REFUSED: 3}.get(failure.outcome, 0)}

    some_system = asking(failing_first(ComponentFailure(Outcome.TIMEOUT, "late")), telling)
    trace = run(some_system)
    [failed] = trace.calls
    refused = dataclasses.replace(failed, outcome=Outcome.REFUSED, detail="no")
    for answer, score in ((failed, 2.0), ({}, 2.0), (refused, 3.0), ({"y": 7}, 7.0)):
        assert run(some_system, 0, some_system.followed(trace, {0: answer}, 0)).score == score


def test_a_failure_that_is_not_caught_fails_the_run():
    async def plain(fields):
        return {"x": (await call("a", x=fields["q"]))["y"]}

    trace = run(asking(failing_first(ComponentFailure(Outcome.REFUSED, "no")), plain, failure_score=-1.0))
    assert (trace.outcome, trace.score, len(trace.calls)) == (Outcome.REFUSED, -1.0, 1)


def mixed(failing, latency):
    """Parallel branches of calls, of which some fail; what is recorded may not depend on which answers first."""
    rng = random.Random(latency)

    async def component(fields, value, context):
        for _ in range(rng.randrange(8)):
            await asyncio.sleep(0)
        if fields["x"] in failing:
            raise ComponentFailure(Outcome.PARSE_ERROR, str(fields["x"]))
        return {"y": fields["x"] + 1}

    return Component("a", "", ("x",), ("y",), component)


async def branches_of_a_gather(fields):
    async def branch(x):
        return (await call("a", x=(await call("a", x=x))["y"]))["y"]

    return {"x": sum(await asyncio.gather(branch(0), branch(10), branch(20)))}


async def branches_of_a_group(fields):
    async def branch(x):
        try:
            return (await call("a", x=(await call("a", x=x))["y"]))["y"]
        except ComponentFailure:
            return (await call("a", x=100 + x))["y"]

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(branch(x)) for x in (0, 10, 20)]
    return {"x": sum(task.result() for task in tasks)}


@pytest.mark.parametrize("program", [branches_of_a_gather, branches_of_a_group])
@pytest.mark.parametrize("failing", [(1,), (11,), (0, 21), (20, 11), (0, 10, 20), (0, 100), (20, 120, 1)])
def test_parallel_failures_leave_the_same_record_whatever_the_latencies(program, failing):
    traces = [run(asking(mixed(failing, latency), program)) for latency in range(12)]
    assert all(trace == traces[0] for trace in traces)


async def swallowing(fields):
    """Catches whatever it can, as programs do."""
    while True:
        try:
            results = await asyncio.gather(call("a", x=1), call("a", x=2), return_exceptions=True)
            return {"x": len(results)}
        except Exception:
            continue


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (StopRun("the budget is spent"), StopRun, "the budget is spent"),
        (KeyError("k"), ComponentBug, "component 'a' raised KeyError on example 'e'"),
    ],
)
def test_errors_that_stop_the_run_cannot_be_caught_by_the_program(error, raised, message):
    with pytest.raises(raised, match=message):
        run(asking(failing_first(error, times=99), swallowing))


def test_an_error_of_the_program_names_it_and_the_example():
    async def broken(fields):
        return {"x": fields["missing"]}

    with pytest.raises(ComponentBug, match="the program raised KeyError on example 'e': 'missing'") as caught:
        run(asking(failing_first(None, 0), broken))
    assert isinstance(caught.value.__cause__, KeyError)


def test_two_components_of_one_name_are_refused():
    with pytest.raises(GraphError, match="two components of the program have the name 'a'"):
        dataclasses.replace(asking(failing_first(None, 0), swallowing), components=(failing_first(None),) * 2)


def test_a_component_cannot_call_a_component():
    async def nested(fields, value, context):
        return {"y": await call("a", x=2)}

    async def plain(fields):
        return {"x": (await call("a", x=1))["y"]}

    with pytest.raises(ProgramError, match="component 'a' calls a component: only the program calls components"):
        run(asking(Component("a", "", ("x",), ("y",), nested), plain))


def test_a_program_gets_plain_copies_of_its_inputs():
    async def changing(fields):
        fields["q"].append({"x": 4})
        fields["q"][0]["x"] += 1
        return {"x": sum(one["x"] for one in fields["q"])}

    some_system = asking(failing_first(None, 0), changing)
    one = example(q=[{"x": 1}])
    for _ in range(2):
        assert event_loop.run(some_system.run(Configuration({}), one, 0)).score == 6.0


def test_an_order_that_never_settles_is_an_error():
    attempts = []

    async def branch(ticks):
        for _ in range(ticks):
            await asyncio.sleep(0)
        return (await call("a", x=len(attempts)))["y"]

    async def unsteady(fields):
        attempts.append(None)  # what it asks depends on how often it ran
        return {"x": sum(await asyncio.gather(branch(3), branch(0)))}

    with pytest.raises(ProgramError, match="another one in 4 runs of the program: give these calls different inputs"):
        run(asking(failing_first(None, 0), unsteady))
