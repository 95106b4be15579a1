import asyncio
import sqlite3

import pytest
from fakes import ScriptedCompleter, request

from optimas_jax.core.types import Outcome, StopRun
from optimas_jax.llm.base import Completion, Message
from optimas_jax.llm.ledger import Ledger
from optimas_jax.llm.tape import NotOnTape, Tape, TapedCompleter, TapeError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tape.sqlite"


def ask(path, inner, *requests, ledger=None):
    tape = Tape(path)
    completer = TapedCompleter(tape, ledger or Ledger(), inner)

    async def all_at_once():
        return await asyncio.gather(*(completer.complete(r) for r in requests))

    try:
        return asyncio.run(all_at_once())
    finally:
        tape.close()


def test_what_was_asked_once_is_replayed_without_a_model(path):
    inner = ScriptedCompleter(lambda r: f"echo {r.messages[0].content}")
    first = ask(path, inner, request("a"), request("b"))
    assert ask(path, None, request("b"), request("a")) == first[::-1]
    assert len(inner.requests) == 2


def test_an_unseen_request_fails_on_a_replay_only_tape(path):
    with pytest.raises(NotOnTape, match="hello"):
        ask(path, None, request())


def test_equal_requests_in_flight_are_asked_once(path):
    inner, ledger = ScriptedCompleter(lambda r: "x", delay=0.01), Ledger()
    assert len(set(ask(path, inner, *[request()] * 5, ledger=ledger))) == 1
    assert len(inner.requests) == 1
    totals = ledger.to_json()["setup"][""]
    assert (totals["calls"], totals["paid_calls"]) == (5, 1)


def test_a_repeated_request_costs_once_in_a_phase_whatever_is_on_the_tape(path):
    inner, used = ScriptedCompleter(lambda r: Completion("x", Outcome.OK, 10, 2, 0.5, 0.01)), []
    for _ in range(2):
        ledger = Ledger()
        for phase in ("collect", "optimize"):
            with ledger.phase(phase):
                ask(path, inner, request("a"), request("b"), request("a"), ledger=ledger)
        rows = [ledger.to_json()[phase][""] for phase in ("collect", "optimize")]
        used.append([(row["calls"], row["prompt_tokens"], row["completion_tokens"], row["usd"]) for row in rows])
    assert used == [[(3, 20, 4, 0.02)] * 2] * 2 and len(inner.requests) == 2


def test_a_failed_request_is_not_recorded_and_reaches_everyone_waiting(path):
    inner = ScriptedCompleter(lambda r: ConnectionError("gone"), delay=0.01)
    with pytest.raises(ConnectionError):
        ask(path, inner, request(), request())
    assert ask(path, ScriptedCompleter(lambda r: "fine"), request())[0].text == "fine"


@pytest.mark.parametrize(
    "change",
    [
        {"model": "n"},
        {"messages": (Message("system", "hello"),)},
        {"max_tokens": 9},
        {"temperature": 0.5},
        {"top_p": 0.9},
        {"stop": ("\n",)},
    ],
)
def test_everything_that_affects_the_answer_is_in_the_key(change):
    assert request(**change).key != request().key


def test_seed_counts_when_sampling_and_the_role_never():
    assert request(temperature=1.0, seed=1).key != request(temperature=1.0, seed=2).key
    assert request(seed=1).key == request(seed=2).key
    assert request(role="a").key == request(role="b").key


def test_completions_survive_the_round_trip(path):
    completion = Completion("ü\n\U0001f600", Outcome.TRUNCATED, 3, 4, 0.25, 0.001)
    ask(path, ScriptedCompleter(lambda r: completion), request())
    assert ask(path, None, request()) == [completion]


def test_what_is_recorded_is_on_disk_at_once(path):
    tape = Tape(path)
    tape.put(request(), Completion("x", Outcome.OK, 1, 1))
    other = sqlite3.connect(path)  # another process would see it too
    assert other.execute("SELECT COUNT(*) FROM completions").fetchone() == (1,)
    other.close()
    tape.close()


def test_scores_are_kept(path):
    tape = Tape(path)
    tape.put_scores({f"k{i}": i / 7 for i in range(1200)})
    found = tape.get_scores([f"k{i}" for i in range(1300)])
    assert len(found) == 1200
    assert found["k3"] == 3 / 7
    tape.close()


def test_a_damaged_tape_says_so(path):
    path.write_bytes(b"this is not a database, whatever its name says" * 100)
    with pytest.raises(TapeError, match="move it away"):
        Tape(path)


def test_a_damaged_entry_says_so(path):
    tape = Tape(path)
    tape.put(request(), Completion("x", Outcome.OK, 1, 1))
    tape._db.execute("UPDATE completions SET completion = '{'")
    with pytest.raises(TapeError, match="is damaged"):
        tape.get(request().key)
    tape.close()


def test_a_full_disk_stops_the_run_and_keeps_what_was_there(path):
    tape = Tape(path)
    tape.put(request("a"), Completion("x", Outcome.OK, 1, 1))
    tape._db.execute("PRAGMA max_page_count=1")  # SQLite then reports a full disk
    with pytest.raises(TapeError, match=r"full.*Everything recorded before is kept"):
        for index in range(100):
            tape.put(request(f"b{index}"), Completion("x" * 10_000, Outcome.OK, 1, 1))
    assert issubclass(TapeError, StopRun)
    assert tape.get(request("a").key) is not None
    tape.close()


def test_the_ledger_counts_by_phase_and_role(path):
    ledger = Ledger()
    inner = ScriptedCompleter(lambda r: Completion("x", Outcome.OK, 10, 2, 0.5, 0.01))
    with ledger.phase("collect"):
        ask(path, inner, request("a", role="rewriter"), request("b", role="proposer"), ledger=ledger)
        with ledger.phase("inner"):
            ask(path, inner, request("a", role="rewriter"), ledger=ledger)
    table = ledger.to_json()
    assert table["collect"]["rewriter"] == {
        "calls": 1,
        "paid_calls": 1,
        "requests": 1,
        "prompt_tokens": 10,
        "completion_tokens": 2,
        "usd": 0.01,
        "seconds": 0.5,
    }
    assert table["inner"]["rewriter"]["paid_calls"] == 0
    assert set(table["collect"]) == {"rewriter", "proposer"}
    assert ledger.paid_calls == 2
