"""What runs cost whose calls agents make by a client: tokens, dollars, and seconds along the longest chain."""

import asyncio
import threading

import pytest
from fakes import ScriptedCompleter
from tool_agents import adder, adds, plain_tool_loop, system_of, tool_loop

import optimas_jax as oj
from optimas_jax.core.cost import Cost
from optimas_jax.core.running import event_loop
from optimas_jax.core.types import Example, Outcome
from optimas_jax.llm.base import Completion

ASYNC, SYNC = oj.client(), oj.client(sync=True)


def timed(request):
    """Two seconds a turn."""
    return Completion(adds(request), Outcome.OK, 10, 3, 2.0, 0.25)


async def in_a_row(question):
    return [await tool_loop(ASYNC, f"{question}{part}") for part in ("", "a")]


async def in_parallel(question):
    return list(await asyncio.gather(*(tool_loop(ASYNC, f"{question}{part}") for part in ("", "a", "bb"))))


def plain(question):
    return plain_tool_loop(SYNC, question)


def in_threads(question):
    """Of which the run knows nothing but that they came to it."""
    client, answers = SYNC.with_options(base_url=oj.base_url()), []
    threads = [
        threading.Thread(target=lambda part=part: answers.append(plain_tool_loop(client, f"{question}{part}")))
        for part in ("a", "bb")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(answers)


class InPairs(ScriptedCompleter):
    """Answers a request when the other one of its pair is there."""

    async def complete(self, request):
        self.requests.append(request)
        pair = (len(self.requests) + 1) // 2
        while len(self.requests) < 2 * pair:
            await asyncio.sleep(0.01)
        return timed(request)


@pytest.mark.parametrize(
    ("function", "calls", "seconds"), [(in_a_row, 4, 8.0), (in_parallel, 6, 4.0), (plain, 2, 4.0), (in_threads, 4, 4.0)]
)
def test_a_run_of_agents_costs_its_calls_and_takes_its_longest_chain(function, calls, seconds):
    system, _ = system_of(oj.program(function, components=[adder()]), timed)
    if function is in_threads:  # that run side by side, however busy the machine is
        system = system.using(InPairs(timed))
    example = Example("e", {"question": "q"}, {}, "train")
    trace = event_loop.run(system.run(system.default_configuration(), example, 0))
    assert len(trace.calls) == len(system.completer.requests) == calls
    assert trace.cost == Cost(13 * calls, 0.25 * calls, seconds)
