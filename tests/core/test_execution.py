"""A window over many calls, on a clock that jumps to whatever comes next."""

import asyncio
import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimas_jax.core.running.execution import await_all
from optimas_jax.core.types import Outcome
from optimas_jax.llm.accounts.ledger import Ledger
from optimas_jax.llm.base import Completion, CompletionRequest, Message
from optimas_jax.llm.tapes.taped import TapedCompleter


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when nothing else is to be done."""

    def __init__(self):
        super().__init__()
        self._now, select = 0.0, self._selector.select

        def jump(timeout=None):
            assert timeout is not None, "nothing will ever happen"
            self._now += timeout
            return select(0)

        self._selector.select = jump

    def time(self):
        return self._now


class Nothing:
    """A tape that holds nothing."""

    async def find(self, effect, key):
        return None

    async def record(self, effect, key, result, attempt):
        await asyncio.sleep(0)


def window(latencies, concurrency):
    """When each call starts, if one starts whenever another ends."""
    free, starts = [0.0] * concurrency, []
    for latency in latencies:
        starts.append(heapq.heappop(free))
        heapq.heappush(free, starts[-1] + latency)
    return starts


def run(coroutine):
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coroutine)


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 20))
def test_as_many_calls_as_the_window_holds_are_in_flight_until_work_runs_out(latencies, concurrency):
    starts, done, in_flight = {}, [], [0]

    class Sleeping:
        async def complete(self, request):
            number = int(request.messages[0].content)
            starts[number] = asyncio.get_running_loop().time()
            in_flight.append(in_flight[-1] + 1)
            await asyncio.sleep(latencies[number])
            in_flight.append(in_flight[-1] - 1)
            return Completion(str(number), Outcome.OK, 1, 1)

    async def ask_all():
        taped = TapedCompleter(Nothing(), Ledger(), Sleeping())
        requests = [CompletionRequest("m", (Message("user", str(i)),), 8) for i in range(len(latencies))]
        calls = [lambda one=one: taped.complete(one) for one in requests]
        return await await_all(calls, concurrency, lambda: done.append(1))

    numbers = range(len(latencies))
    assert [answer.text for answer in run(ask_all())] == [str(i) for i in numbers]
    assert [starts[i] for i in numbers] == window(latencies, concurrency)
    assert max(in_flight) <= concurrency and len(done) == len(latencies)


def test_a_failure_ends_the_window():
    begun = []

    async def call(number):
        begun.append(number)
        await asyncio.sleep(number)
        if number == 2:
            raise OSError("gone")

    with pytest.raises(ExceptionGroup) as raised:
        run(await_all([lambda i=i: call(i) for i in range(100)], 3))
    assert [str(error) for error in raised.value.exceptions] == ["gone"] and begun == [0, 1, 2, 3, 4]
