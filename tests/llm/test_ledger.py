"""Hard limits on what is used: who is admitted, who waits, and who is refused."""

import asyncio
import contextlib
import random
from pathlib import Path

import pytest
from fakes import ScriptedCompleter, request

from optimas_jax.core.types import Outcome, StopRun
from optimas_jax.core.usage import Limit, OutOfBudget, Usage
from optimas_jax.llm.accounts.ledger import Budget, Ledger, OverBudget
from optimas_jax.llm.base import Completion
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.llm.tapes.taped import TapedCompleter


class Varying:
    """A model whose answers use less than their worst case, in a time of their own."""

    def __init__(self, rng, least=0.05):
        self.rng, self.least, self.received = rng, least, []

    async def complete(self, request):
        self.received.append(request)
        for _ in range(self.rng.randrange(4)):
            await asyncio.sleep(0)
        most = request.most()
        read, written = (
            round(self.rng.uniform(self.least, 1) * n) for n in (most.prompt_tokens, most.completion_tokens)
        )
        return Completion("x", Outcome.OK, read, written)


def ask(completer, requests, concurrency=8):
    """Answers as far as the limits allow: the completions, and the errors of those refused."""

    async def ask_all():
        slots = asyncio.Semaphore(concurrency)

        async def ask_one(one):
            async with slots:
                return await completer.complete(one)

        return await asyncio.gather(*(ask_one(one) for one in requests), return_exceptions=True)

    return asyncio.run(ask_all())


def taped(inner, ledger=None, tape=None):
    tape = Tape(Path(":memory:")) if tape is None else tape
    return TapedCompleter(tape, ledger or Ledger(), inner)


def test_no_random_budget_is_overrun_and_most_of_it_is_used():
    shares = []
    for seed in range(200):
        rng, ledger = random.Random(seed), Ledger()
        completer = taped(Varying(rng), ledger)
        requests = [request("x" * rng.randrange(200), seed=i, temperature=1.0) for i in range(rng.randrange(40, 120))]
        limit = rng.randrange(3000, 9000)
        with ledger.limit(Limit(tokens=limit)) as allowance:
            answers = ask(completer, requests + rng.choices(requests, k=10), concurrency=rng.randrange(1, 17))
        assert allowance.used.tokens <= limit
        refused = [one for one in answers if isinstance(one, OutOfBudget)]
        assert bool(refused) == allowance.closed and not [one for one in answers if type(one) is StopRun]
        total = ledger.usage("setup")[""]
        assert total.tokens == allowance.used.tokens
        if refused:
            shares.append(allowance.used.tokens / limit)
    assert len(shares) > 50 and sum(shares) / len(shares) >= 0.9


def test_an_allowance_of_a_search_that_is_answered_by_the_tape_is_hard_too():
    tape, rng = Tape(Path(":memory:")), random.Random(0)
    requests = [request("x" * 100, seed=i, temperature=1.0) for i in range(60)]
    ask(taped(Varying(rng), tape=tape), requests)
    ledger = Ledger()
    with ledger.limit(Limit(tokens=2000)) as allowance:
        answers = ask(taped(None, ledger, tape), requests)
    costs = [one.usage.tokens for one in answers if isinstance(one, Completion)]
    assert sum(costs) == allowance.used.tokens <= 2000 < allowance.used.tokens + 172  # at its true cost, one more
    answered = [isinstance(one, Completion) for one in answers]
    assert answered == sorted(answered, reverse=True)  # the first ones, and then none


def test_requests_wait_for_those_in_flight_and_are_admitted_in_the_order_of_asking():
    order = []

    def answer(request):
        order.append(request.messages[0].content.strip("x"))
        return Completion("x", Outcome.OK, 10, 1)

    ledger = Ledger()
    inner = ScriptedCompleter(answer, delay=0.001)
    requests = [request(f"{i}{'x' * (300 if i == 2 else 30)}") for i in range(8)]
    with ledger.limit(
        Limit(tokens=450)
    ):  # the third does not fit beside the first two; smaller ones do not overtake it
        answers = ask(taped(inner, ledger), requests)
    assert order == [str(i) for i in range(8)] and not [one for one in answers if isinstance(one, Exception)]


def test_what_cannot_fit_is_refused_with_everything_behind_it():
    ledger, inner = Ledger(), ScriptedCompleter(lambda r: Completion("x", Outcome.OK, 10, 1), delay=0.001)
    requests = [request("a"), request("x" * 1000), request("b"), request("c")]
    with ledger.limit(Limit(tokens=400)) as allowance:
        first, *others = ask(taped(inner, ledger), requests)
        assert isinstance(first, Completion) and all(isinstance(one, OutOfBudget) for one in others)
        assert len({id(one) for one in others}) == 3  # callers add notes to them
        [late, again] = ask(taped(inner, ledger), [request("d"), request("a")])
        assert isinstance(late, OutOfBudget) and allowance.closed
        assert isinstance(again, Completion)  # it costs nothing more
    [after] = ask(taped(inner, ledger), [request("d")])
    assert isinstance(after, Completion) and "may use 1,072" in str(others[0])


def test_limits_nest_and_a_repeated_request_costs_nothing_inside():
    ledger, inner = Ledger(), ScriptedCompleter(lambda r: Completion("x", Outcome.OK, 50, 4))
    completer = taped(inner, ledger)
    with ledger.limit(Limit(tokens=1000)) as outer:
        ask(completer, [request("a")])
        with ledger.limit(Limit(tokens=100)) as inner_limit:
            answers = ask(completer, [request("a"), request("b"), request("c")])
            assert [type(one) for one in answers] == [Completion, Completion, OutOfBudget]
            assert inner_limit.used.tokens == 54 and ledger.left.tokens == 46 and ledger.used.tokens == 108
        assert ledger.left.tokens == 1000 - 108 and inner_limit.closed and not outer.closed
        with ledger.limit(), ledger.limit(Limit(tokens=10_000)):
            assert ledger.left.tokens == 1000 - 108
            assert isinstance(ask(completer, [request("c")])[0], Completion)
        assert outer.used == Usage(calls=3, prompt_tokens=150, completion_tokens=12)
    assert not ledger.is_limited and ledger.used == Usage()


def test_a_failed_request_uses_nothing_and_gives_its_reservation_back():
    ledger = Ledger(Budget(tokens=100))
    inner = ScriptedCompleter(lambda r: ConnectionError("gone") if "a" in r.messages[0].content else "fine")
    with ledger.limit(Limit(tokens=100)) as allowance:
        answers = ask(taped(inner, ledger), [request("a"), request("b")])
    assert [type(one) for one in answers] == [ConnectionError, Completion]
    assert allowance.used.calls == 1


def test_a_cancelled_request_gives_its_reservation_back():
    ledger, inner = Ledger(), ScriptedCompleter(lambda r: "fine", delay=10)

    async def cancel_all():
        tasks = [asyncio.create_task(completer.complete(request(text))) for text in "abc"]
        await asyncio.sleep(0.01)
        for task in reversed(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return [task.cancelled() for task in tasks]

    completer = taped(inner, ledger)
    with ledger.limit(Limit(tokens=80)):  # one in flight, two wait
        assert asyncio.run(cancel_all()) == [True] * 3
        assert ledger.left.tokens == 80 and not ledger._queue and len(inner.requests) == 1


def test_the_exact_length_of_a_prompt_is_reserved_where_it_is_known():
    class Counting(ScriptedCompleter):
        def prompt_tokens(self, request):
            return 5

    def answer(request):
        return Completion("x", Outcome.OK, 5, 8)

    for inner, answered in ((Counting(answer), 7), (ScriptedCompleter(answer), 3)):
        ledger = Ledger()
        with ledger.limit(Limit(tokens=100)):  # 13 tokens each; the bound of a prompt is 65
            answers = ask(taped(inner, ledger), [request(str(i)) for i in range(10)])
        assert sum(isinstance(one, Completion) for one in answers) == answered


def test_the_budget_of_a_folder_holds_under_a_limit():
    ledger, inner = Ledger(Budget(calls=2)), ScriptedCompleter(lambda r: "fine", delay=0.001)
    with ledger.limit(Limit(tokens=10_000)):
        answers = ask(taped(inner, ledger), [request(str(i)) for i in range(5)])
    assert [type(one) for one in answers] == [Completion] * 2 + [OutOfBudget] * 3
    assert "config.budget.calls = 2" in str(answers[2])


@pytest.mark.parametrize("late", [False, True])
def test_a_caller_that_leaves_does_not_take_a_shared_request_with_it(late):
    inner = ScriptedCompleter(lambda r: "fine", delay=0.01)
    completer = taped(inner)

    async def leave():
        first, second = (asyncio.create_task(completer.complete(request())) for _ in range(2))
        await asyncio.sleep(0.001)
        (second if late else first).cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await (second if late else first)
        return (await (first if late else second)).text

    assert asyncio.run(leave()) == "fine" and len(inner.requests) == 1


def test_a_limit_that_counts_only_never_refuses():
    ledger = Ledger()
    with ledger.limit() as allowance:
        answers = ask(taped(Varying(random.Random(0)), ledger), [request(str(i)) for i in range(50)])
    assert all(isinstance(one, Completion) for one in answers) and allowance.used.calls == 50


def test_what_is_uncharged_is_booked_apart_and_outside_all_limits_but_the_budget():
    ledger = Ledger(Budget(calls=3))
    completer = taped(ScriptedCompleter(lambda asked: "x"), ledger)
    with ledger.phase("search"), ledger.limit(Limit(calls=1)) as allowance:
        ask(completer, [request("a")])
        with ledger.uncharged("oracle"):
            ask(completer, [request("b")])
        assert allowance.used.calls == 1
        [refused] = ask(completer, [request("b")])  # on the tape, and charged all the same where it is charged
        assert isinstance(refused, OutOfBudget)
    assert {phase: sum(usage.calls for usage in ledger.usage(phase).values()) for phase in ("search", "oracle")} == {
        "search": 1,
        "oracle": 1,
    }
    with ledger.uncharged("oracle"):
        answers = ask(completer, [request(text) for text in "cdef"])
    assert sum(isinstance(answer, OverBudget) for answer in answers) == 3


def test_what_is_uncharged_leaves_what_is_set_aside():
    ledger = Ledger(Budget(calls=3))
    completer = taped(ScriptedCompleter(lambda asked: "x"), ledger)
    with ledger.limit(Limit(calls=3)):
        ledger.hold(Usage(calls=2))
        with ledger.uncharged("oracle"):
            answers = ask(completer, [request(text) for text in "ab"])
        assert [isinstance(answer, OutOfBudget) for answer in answers] == [False, True]
