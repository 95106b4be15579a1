"""Attempts at requests, and what they cost: on the tape, in the ledger, in the words for the user."""

import asyncio

import pytest

from optimas_jax.core.types import Outcome
from optimas_jax.core.usage import Usage
from optimas_jax.llm.accounts.ledger import Budget, Ledger, OverBudget
from optimas_jax.llm.attempts import Fault, Retries, Server, ServerError
from optimas_jax.llm.base import Completion, CompletionRequest, Message
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.llm.tapes.taped import TapedCompleter

HASTY = Retries(attempts=3, first_wait=0.001)


def request(text="a", **changes):
    return CompletionRequest(**{"model": "openai:m", "messages": (Message("user", text),), "max_tokens": 10, **changes})


class Scripted:
    """A server: ``answers(text, attempt)`` returns a completion or keywords of a fault."""

    def __init__(self, answers, retries=HASTY):
        self.server, self._answers, self.asked, self.seconds = Server(retries), answers, [], {}

    async def complete(self, asked):
        text = asked.messages[0].content
        self.asked.append(text)
        answer = self._answers(text, self.asked.count(text))
        await asyncio.sleep(self.seconds.get(text, 0.0))
        if isinstance(answer, dict):
            raise Fault("it broke", self.server, **answer)
        self.server.note(asked)
        return answer


def answer(text="yes", **changes):
    return Completion(text, Outcome.OK, 5, 2, **changes)


def ask(completer, *texts, **changes):
    async def all_of_them():
        return await asyncio.gather(*(completer.complete(request(text, **changes)) for text in texts))

    return asyncio.run(all_of_them())


@pytest.fixture
def tape(tmp_path):
    with_file = Tape(tmp_path / "tape.sqlite")
    yield with_file
    with_file.close()


PASSES, STAYS = {"passes": True}, {}
MOST = request().most()


@pytest.mark.parametrize("reached", [False, True])
def test_an_attempt_that_may_have_reached_the_model_is_booked_at_its_worst_case(tape, reached):
    server = Scripted(lambda text, n: answer() if n == 3 else {"passes": True, "reached": reached})
    ledger = Ledger()
    ask(TapedCompleter(tape, ledger, server), "a")
    lost = MOST.times(2) if reached else Usage()
    assert ledger.spent.tokens == tape.usage().tokens == 7 + lost.tokens
    assert (tape.usage().calls, tape.uncertain().tokens) == (1 + lost.calls, lost.tokens)


def test_a_budget_holds_with_attempts_that_fail(tape):
    """Each attempt is admitted on its own: the second one of the second request does not fit any more."""
    server = Scripted(lambda text, n: answer() if n == 2 else {"passes": True, "reached": True})
    limit = 2 * MOST.tokens + 7 + MOST.tokens - 1
    completer = TapedCompleter(tape, Ledger(Budget(tokens=limit)), server)
    ask(completer, "a")
    with pytest.raises(OverBudget):
        ask(completer, "b")
    assert server.asked == ["a", "a", "b"] and tape.usage().tokens <= limit


def test_what_was_in_flight_when_a_process_was_killed_counts(tmp_path):
    tape = Tape(tmp_path / "tape.sqlite")

    async def killed():
        await tape.begin(request().key, MOST)
        await tape.begin(request("b").key, MOST)

    asyncio.run(killed())
    tape.close()
    again = Tape(tmp_path / "tape.sqlite")
    assert again.usage() == again.uncertain() == MOST.times(2) and len(again) == 0
    again.close()


def test_an_answer_without_usage_is_uncertain(tape):
    ask(TapedCompleter(tape, Ledger(), Scripted(lambda text, n: answer(estimated=text == "a"))), "a", "b")
    assert (tape.usage().tokens, tape.uncertain().tokens) == (14, 7)


def test_a_fault_of_one_request_is_its_outcome_and_is_recorded(tape):
    odd = {"outcome": Outcome.PARSE_ERROR, "passes": True, "reached": True}
    server = Scripted(lambda text, n: odd if text == "odd" else answer())
    for _ in range(2):  # the second time from the tape
        [_, failed] = ask(TapedCompleter(tape, Ledger(), server), "a", "odd")
        assert (failed.outcome, failed.text, failed.detail) == (Outcome.PARSE_ERROR, "", "it broke")
    assert server.asked.count("odd") == 3 and server.asked.count("a") == 2  # once more, to see whether it answers


def test_with_other_answers_in_between_nobody_is_asked_twice(tape):
    def answers(text, n):
        return {"passes": True} if text == "odd" else answer()

    server = Scripted(answers, HASTY)
    server.seconds["odd"] = 0.5  # in which others are answered

    async def together():
        completer = TapedCompleter(tape, Ledger(), server)
        odd = asyncio.create_task(completer.complete(request("odd")))
        while not odd.done():
            await completer.complete(request(f"{len(server.asked)}"))
            await asyncio.sleep(0.005)
        return odd.result()

    assert asyncio.run(together()).outcome is Outcome.REFUSED
    others = [text for text in server.asked if text != "odd"]
    assert len(others) == len({*others})


@pytest.mark.parametrize("fault", [PASSES, STAYS, {"own": True}])
def test_a_server_that_never_answered_stops_the_run_and_leaves_no_failure_behind(tape, fault):
    completer = TapedCompleter(tape, Ledger(), Scripted(lambda text, n: fault))
    with pytest.raises(ServerError, match="it broke"):
        ask(completer, "a", "b")
    assert len(tape) == 0


def test_a_server_that_stops_answering_stops_the_run_after_one_more_look(tape):
    server = Scripted(lambda text, n: answer() if text == "a" and n == 1 else {"passes": True})
    completer = TapedCompleter(tape, Ledger(), server)
    ask(completer, "a")
    with pytest.raises(ServerError):
        ask(completer, *(f"b{i}" for i in range(20)))
    assert server.asked.count("a") == 4 and len(tape) == 1  # three attempts for all of them


def test_a_request_that_a_rate_limit_starves_goes_on_while_others_are_answered(tape):
    limited = {"outcome": Outcome.RATE_LIMITED, "passes": True}
    server = Scripted(lambda text, n: limited if text == "late" and n < 8 else answer())

    async def together():
        completer = TapedCompleter(tape, Ledger(), server)
        late = asyncio.create_task(completer.complete(request("late")))
        while not late.done():
            await completer.complete(request(f"{len(server.asked)}"))
        return late.result()

    assert asyncio.run(together()).text == "yes"


def test_long_waits_are_told_and_not_for_every_request():
    said = []
    server = Server(Retries(), said.append)
    for _ in range(30):
        server.tell_wait(Fault("busy", server), 42.0)
    server.tell_wait(Fault("busy", server), 1.0)
    assert said == ["waiting 42 s: busy"]


def test_a_server_that_ignores_the_limit_of_an_answer_ends_a_run_with_a_budget(tape):
    long = Completion("yes", Outcome.OK, 5, 99)
    server = Scripted(lambda text, n: long)
    with pytest.raises(ServerError, match=r"wrote 99 tokens .* at most 10: no budget can be kept"):
        ask(TapedCompleter(tape, Ledger(Budget(tokens=10_000)), server), "a")
    assert tape.usage().tokens == 104  # it is paid for
    ask(TapedCompleter(tape, Ledger(), server), "b")  # without a budget the client tells of it once


def test_a_local_model_has_no_attempts_on_disk(tape):
    ask(TapedCompleter(tape, Ledger(), Scripted(lambda text, n: answer())), "a", model="random:0")
    assert tape.uncertain() == Usage()


def test_a_request_that_was_cancelled_before_it_left_costs_nothing(tape):
    class Held:
        async def complete(self, asked):
            await asyncio.Event().wait()

    async def cancelled():
        task = asyncio.create_task(TapedCompleter(tape, Ledger(), Held()).complete(request()))
        while not tape.uncertain().calls:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(cancelled())
    assert tape.usage() == Usage()
