"""What a run of a system costs: every request once for each call that makes it, whatever was on the tape; seconds along
the longest chain of calls."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from fakes import ScriptedCompleter, request
from systems import example, system

import optimas_jax as oj
from optimas_jax.core.component import Component, ComponentFailure
from optimas_jax.core.cost import Cost, side_by_side, total
from optimas_jax.core.objective import Objective
from optimas_jax.core.running.execution import Job, global_rewards, run_many
from optimas_jax.core.system import System
from optimas_jax.core.types import Example, Outcome
from optimas_jax.core.values import Prompt, PromptSpace
from optimas_jax.llm.accounts.ledger import Ledger
from optimas_jax.llm.base import Completion
from optimas_jax.llm.component import LanguageModel
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.llm.tapes.taped import TapedCompleter
from optimas_jax.programs.program import program as declare

SECONDS = {"a": 1.0, "b": 2.0, "c": 4.0, "d": 8.0}


def model(asked: Any) -> Completion:
    """Answers in as many seconds as the first letter of what it is asked says."""
    name = asked.messages[-1].content.split("\n")[0][:1]
    return Completion(f"{name}!", Outcome.OK, 10, 3, SECONDS[name], 0.5)


def asking(name: str, inputs: tuple[str, ...], times: int = 1, *, fails: bool = False) -> Component:
    async def run(fields: Any, value: Any, context: Any) -> dict[str, Any]:
        for index in range(times):
            await context.completer.complete(request(f"{name} {index}", role=name, seed=index, temperature=1.0))
        if fails:
            raise ComponentFailure(Outcome.PARSE_ERROR, "unreadable")
        return {f"{name}_out": 1}

    return Component(name, f"Asks {name}.", inputs, (f"{name}_out",), run, PromptSpace(), Prompt("go"))


def diamond(**changes: Any) -> System:
    """a -> (b, c) -> d; c asks twice."""
    parts = {
        "a": asking("a", ("q",)),
        "b": asking("b", ("a_out",)),
        "c": asking("c", ("a_out",), 2),
        "d": asking("d", ("b_out", "c_out")),
    }
    return dataclasses.replace(
        system(*(parts | changes).values(), output="d_out"), completer=ScriptedCompleter(model), objective=Objective()
    )


def run(of: System, *, given: Any = None, seed: int = 0) -> Any:
    return run_many(of, [Job(of.default_configuration(), example(), seed, given)], concurrency=1)[0]


def test_a_graph_costs_all_its_calls_and_takes_its_longest_chain() -> None:
    trace = run(diamond())
    assert [call.cost for call in trace.calls] == [
        Cost(13, 0.5, 1.0),
        Cost(13, 0.5, 2.0),
        Cost(26, 1.0, 8.0),
        Cost(13, 0.5, 8.0),
    ]
    assert trace.cost == Cost(65, 2.5, 1.0 + 8.0 + 8.0)
    assert total(call.cost for call in trace.calls).seconds == 19.0
    assert side_by_side([Cost(1, 1.0, 2.0), Cost(2, 0.0, 5.0)]) == Cost(3, 1.0, 5.0)


def test_a_failed_call_costs_what_it_asked() -> None:
    trace = run(diamond(c=asking("c", ("a_out",), 2, fails=True)))
    assert trace.outcome is Outcome.PARSE_ERROR and trace.cost == Cost(13 + 13 + 26, 2.0, 9.0)


def test_kept_calls_cost_what_they_cost_when_they_were_made() -> None:
    of = diamond()
    trace = run(of)
    again = run(of, given=of.kept(trace, "d"))
    assert again.cost == trace.cost and len(of.completer.requests) == 5 + 1


@pytest.mark.parametrize("replays", [1, 2])
def test_a_run_from_the_tape_costs_what_it_cost(tmp_path: Path, replays: int) -> None:
    costs = []
    for _ in range(1 + replays):
        bare = diamond()
        tape = Tape(tmp_path / "tape.sqlite")
        costs.append(run(bare.using(TapedCompleter(tape, Ledger(), bare.completer))).cost)
        tape.close()
    assert len(set(costs)) == 1


def test_a_request_that_two_calls_make_costs_each_of_them(tmp_path: Path) -> None:
    """The tape asks once; without one it would be asked twice."""

    async def run_same(fields: Any, value: Any, context: Any) -> dict[str, Any]:
        await context.completer.complete(request("a", role="x"))
        return dict.fromkeys(("one",) if "q" in fields else ("two",), 1)

    first = Component("x", "X.", ("q",), ("one",), run_same)
    second = Component("y", "Y.", ("one",), ("two",), run_same)
    with_tape = Tape(tmp_path / "tape.sqlite")
    inner = ScriptedCompleter(model)
    of = dataclasses.replace(system(first, second, output="two"), completer=TapedCompleter(with_tape, Ledger(), inner))
    assert run(of).cost == Cost(26, 1.0, 2.0) and len(inner.requests) == 1
    with_tape.close()


def test_the_reward_is_the_score_minus_what_the_cost_is_worth() -> None:
    weights = Objective(dollars=0.1, tokens=2.0, seconds=0.01)
    of = dataclasses.replace(diamond(), objective=weights)
    trace = run(of)
    assert trace.score == 1.0
    assert trace.penalty == pytest.approx(0.1 * 2.5 + 2.0 * 0.065 + 0.01 * 17.0)
    assert trace.reward == pytest.approx(1.0 - 0.55)
    [reward] = asyncio.run(
        global_rewards(of, of.default_configuration(), example(), trace, {3: trace.calls[3].outputs}, [0])
    )
    assert reward == trace.reward


# --- programs


async def pause(of: Any) -> None:
    await asyncio.sleep(0)


a, b, c, d = (oj.prompt(f"{name} x", name=name) for name in "abcd")


async def in_a_row(q):
    await a(q=q)
    await b(q=q)
    return await d(q=q)


async def in_parallel(q):
    await a(q=q)
    await asyncio.gather(b(q=q), c(q=q))
    return await d(q=q)


async def two_stages(q):
    await asyncio.gather(a(q=q), b(q=q))
    return (await asyncio.gather(c(q=q), d(q=q)))[0]


async def branches(q):
    async def left():
        await a(q=q)
        return await b(q=q)

    async def right():
        return await c(q=q)

    async with asyncio.TaskGroup() as group:
        group.create_task(left())
        task = group.create_task(right())
    return task.result()


def plain(q):
    a(q=q)
    return b(q=q)


async def beside(q):
    """It goes on while a task runs: that counts as one after the other."""
    task = asyncio.create_task(b(q=q))
    await c(q=q)
    return await task


@pytest.mark.parametrize(
    ("function", "seconds", "calls"),
    [
        (in_a_row, 1 + 2 + 8, 3),
        (in_parallel, 1 + 4 + 8, 4),
        (two_stages, 2 + 8, 4),
        (branches, 4.0, 3),
        (plain, 1 + 2, 2),
        (beside, 2 + 4, 2),
    ],
)
@pytest.mark.parametrize("delay", [0.0, 0.002])
def test_a_program_takes_its_longest_chain_of_calls(function, seconds, calls, delay) -> None:
    declared = declare(function)
    built = declared.system(lambda example, outputs: 1.0, ("q",), LanguageModel("m", style="text", max_tokens=8))
    of = dataclasses.replace(built, completer=ScriptedCompleter(model, delay))
    row = Example("e", {"q": "why"}, {}, "train")
    [trace] = run_many(of, [Job(of.default_configuration(), row, 0)], concurrency=1)
    assert trace.cost == Cost(13 * calls, 0.5 * calls, seconds)
    [again] = run_many(of, [Job(of.default_configuration(), row, 0, of.kept(trace))], concurrency=1)
    assert again.cost == trace.cost
