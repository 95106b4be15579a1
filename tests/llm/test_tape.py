import asyncio
import contextlib
import gc
import json
import logging
import random
import sqlite3
import threading

import pytest
from fakes import ScriptedCompleter, request

from optimas_jax.core.types import Outcome, StopRun
from optimas_jax.core.usage import Usage
from optimas_jax.llm.accounts.ledger import Budget, Ledger
from optimas_jax.llm.base import Completion, Message
from optimas_jax.llm.sandbox import Execution, ExecutionRequest
from optimas_jax.llm.tapes.tape import Tape, TapeError
from optimas_jax.llm.tapes.taped import NotOnTape, TapedCompleter
from optimas_jax.sandbox.limits import Limits
from optimas_jax.sandbox.unittests import Verdict


@contextlib.contextmanager
def busy(database):
    """A database whose thread is busy until ``end`` is called."""
    began, end = threading.Event(), threading.Event()

    def wait(connection, arguments):
        began.set()
        end.wait()
        return arguments

    thread = threading.Thread(target=database.do, args=(wait, None))
    thread.start()
    began.wait()
    try:
        yield end.set
    finally:
        end.set()
        thread.join()


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
    tape.put([(request(), Completion("x", Outcome.OK, 1, 1))])
    other = sqlite3.connect(path)  # another process would see it too
    assert other.execute("SELECT COUNT(*) FROM effects").fetchone() == (1,)
    other.close()
    tape.close()


def test_scores_are_kept(path):
    tape = Tape(path)
    tape.put_scores({f"k{i}": i / 7 for i in range(1200)})
    scores = tape.get_scores([f"k{i}" for i in range(1300)])
    assert len(scores) == 1200
    assert scores["k3"] == 3 / 7
    tape.close()


def test_a_damaged_tape_says_so(path):
    path.write_bytes(b"this is not a database, whatever its name says" * 100)
    with pytest.raises(TapeError, match="move it away"):
        Tape(path)


def test_a_damaged_entry_says_so(path):
    tape = Tape(path)
    tape.put([(request(), Completion("x", Outcome.OK, 1, 1))])
    tape._database.connection.execute("UPDATE effects SET result = '{'")
    with pytest.raises(TapeError, match="is damaged"):
        tape.get(request())
    tape.close()


DAMAGES = (
    *("{", "[]", "123", "{}", "null", "[" * 100_000, "9" * 5000, '{"text": "\\ud800"}', "NaN", "\x00"),
    *(b"\xff", b"{}"),
)


@pytest.mark.parametrize("result", DAMAGES)
def test_a_damaged_row_is_named_when_the_tape_is_opened(path, result):
    tape = Tape(path)
    results = [(request(name), Completion("x", Outcome.OK, 1, 1)) for name in "abc"]
    tape.put(results)
    tape.close()
    with contextlib.closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE effects SET result = ? WHERE key = ?", (result, request("b").key))
    with pytest.raises(
        TapeError, match=rf"{request('b').key}.*Put a copy of the file back; or delete these rows alone"
    ):
        Tape(path)
    with contextlib.closing(sqlite3.connect(path)) as other, other:
        other.execute("DELETE FROM effects WHERE key = ?", (request("b").key,))
    tape = Tape(path)
    assert [tape.get(request(name)) is None for name in "abc"] == [False, True, False]
    tape.close()


@pytest.mark.parametrize(
    "change",
    [
        {"text": None},
        {"text": ["x"]},
        {"outcome": "fine"},
        {"outcome": []},
        {"prompt_tokens": -1},
        {"prompt_tokens": 1.5},
        {"completion_tokens": True},
        {"usd": "1"},
        {"seconds": None},
        {"tokens": []},
        {"tokens": {"ids": [1]}},
        {"tokens": {"prompt_ids": ["a"], "ids": [], "logprobs": []}},
        {"more": 1},
    ],
)
def test_a_result_of_another_form_is_damage(path, change):
    good = Completion("x", Outcome.OK, 1, 1).to_json()
    with pytest.raises((TypeError, ValueError)):
        request().read({**good, **change})


@pytest.mark.parametrize("name", ["text", "outcome", "prompt_tokens", "completion_tokens", "usd", "seconds"])
def test_a_result_without_a_field_is_damage(name):
    whole = Completion("x", Outcome.OK, 1, 1).to_json()
    with pytest.raises(TypeError, match=f"{name} is missing"):
        request().read({key: value for key, value in whole.items() if key != name})


def test_every_flipped_bit_of_a_row_is_noticed(path, tmp_path):
    tape = Tape(path)
    tape.put([(request("a" * 500), Completion("b" * 500, Outcome.OK, 1, 1))])
    tape.put_scores({"k": 0.5})
    tape.close()
    whole, rng = path.read_bytes(), random.Random(0)
    places = [index for index in range(len(whole)) if whole[index : index + 1] in (b"a", b"b")]
    for number, place in enumerate(rng.sample(places, 40)):
        data = bytearray(whole)
        data[place] ^= 1 << rng.randrange(8)
        bent = tmp_path / f"{number}.sqlite"
        bent.write_bytes(data)
        with pytest.raises(TapeError):
            Tape(bent).close()


def test_rows_of_an_earlier_version_get_their_checks(path):
    Tape(path).close()
    with contextlib.closing(sqlite3.connect(path)) as other, other:
        for table in ("effects", "scores", "attempts"):
            other.execute(f"ALTER TABLE {table} DROP COLUMN crc")
        text = json.dumps(Completion("x", Outcome.OK, 1, 1).to_json())
        other.execute("INSERT INTO effects VALUES (?, 'completion', '{}', ?)", (request().key, text))
        other.execute("INSERT INTO scores VALUES ('k', 0.25)")
    tape = Tape(path)
    assert tape.get(request()) is not None and tape.get_scores(["k"]) == {"k": 0.25}
    tape.put([(request("b"), Completion("y", Outcome.OK, 1, 1))])
    tape.close()
    with contextlib.closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE scores SET score = 0.75")
    with pytest.raises(TapeError, match="scores, key k"):
        Tape(path)


@pytest.mark.parametrize("left", [None, b""])
def test_a_tape_that_is_gone_beside_its_log_is_not_begun_anew(path, left):
    log = path.with_name("tape.sqlite-wal")
    log.write_bytes(b"results that were paid for")
    if left is not None:
        path.write_bytes(left)
    with pytest.raises(TapeError, match=r"is (gone|empty), and tape.sqlite-wal beside it holds results"):
        Tape(path)
    assert log.read_bytes()


def test_a_full_disk_stops_the_run_and_keeps_what_was_there(path):
    tape = Tape(path)
    tape.put([(request("a"), Completion("x", Outcome.OK, 1, 1))])
    tape._database.connection.execute("PRAGMA max_page_count=1")  # SQLite then reports a full disk
    with pytest.raises(TapeError, match=r"full.*Everything recorded before is kept"):
        for index in range(100):
            tape.put([(request(f"b{index}"), Completion("x" * 10_000, Outcome.OK, 1, 1))])
    assert issubclass(TapeError, StopRun)
    assert tape.get(request("a")) is not None
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


def test_nothing_is_said_of_other_requests_in_flight_when_one_fails(path, caplog):
    def answer(request):
        return StopRun("gone") if request.messages[0].content == "3" else "fine"

    class Failing(ScriptedCompleter):
        async def complete(self, request):
            try:
                return await super().complete(request)
            except asyncio.CancelledError:
                raise StopRun("the request was cancelled") from None  # as clients do while they wait to send

    async def all_in_a_group():
        async with asyncio.TaskGroup() as group:
            for i in range(10):
                group.create_task(completer.complete(request(str(i))))

    for ledger in (Ledger(), Ledger(Budget(tokens=300))):  # with and without requests that wait for others
        tape = Tape(path)
        completer = TapedCompleter(tape, ledger, Failing(answer, delay=0.01))
        with caplog.at_level(logging.DEBUG), pytest.raises(ExceptionGroup):
            asyncio.run(all_in_a_group())
        tape.close()
        gc.collect()
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


def test_executions_of_programs_are_effects_like_completions(path):
    execution = ExecutionRequest("x = 1", "", "", Limits(seconds=5), "executor")
    verdict = Verdict("failed", ("test_a",), {"": "no tests"}, 0.5)
    tape = Tape(path)
    tape.put([(execution, Execution(verdict)), (request(), Completion("x", Outcome.OK, 3, 2, 0.25, 0.5))])
    assert tape.get(execution) == Execution(verdict)
    assert tape.usage() == Usage(calls=2, prompt_tokens=3, completion_tokens=2, usd=0.5, seconds=0.75)
    rows = tape._database.connection.execute("SELECT kind, key FROM effects ORDER BY kind").fetchall()
    assert rows == [("completion", request().key), ("execution", execution.key)]
    tape.close()
    same = ExecutionRequest("x = 1", "", "", Limits(seconds=5), "metric")
    other = ExecutionRequest("x = 1", "", "", Limits(seconds=6), "executor")
    assert same.key == execution.key != other.key and execution.most() == Usage(calls=1)


def test_a_tape_of_before_is_refused_with_the_way_out(path):
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE completions (key TEXT PRIMARY KEY, request TEXT NOT NULL, completion TEXT NOT NULL)")
    db.commit()
    with pytest.raises(TapeError, match=r"^the tape .* has version 0, .*: use a new --workdir$"):
        Tape(path)
    assert db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone() == (2,)  # the table and its key, as before
    db.close()


@pytest.mark.parametrize("done", range(6))
def test_a_process_that_dies_while_it_makes_a_tape_leaves_one_that_opens(path, done, monkeypatch):
    class Killed(sqlite3.Connection):
        def executescript(self, script):
            for statement in script.split(";")[:done]:
                self.execute(statement)
            self.close()
            raise KeyboardInterrupt

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **settings: connect(*args, factory=Killed, **settings))
    with pytest.raises(KeyboardInterrupt):
        Tape(path)
    monkeypatch.undo()
    assert ask(path, ScriptedCompleter(lambda r: "fine"), request())[0].text == "fine"


def test_a_commit_waits_for_the_disk_and_holds_all_that_arrive_together(path):
    tape, statements = Tape(path), []
    connection = tape._database.connection
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    connection.set_trace_callback(statements.append)

    async def all_at_once():
        with busy(tape._database) as end:
            tasks = [asyncio.create_task(record(tape, str(i))) for i in range(20)]
            await asyncio.sleep(0)  # the loop goes on while the disk is busy
            assert not any(task.done() for task in tasks) and count(path) == 0
            end()
            await asyncio.gather(*tasks)
        assert count(path) == 20

    asyncio.run(all_at_once())
    assert statements.count("COMMIT") == 1
    tape.close()


def count(path):
    """Results that are on disk: what another process sees."""
    other = sqlite3.connect(path)
    try:
        return other.execute("SELECT COUNT(*) FROM effects").fetchone()[0]
    finally:
        other.close()


async def record(tape, text, answer="x"):
    effect = request(text)
    await tape.record(effect, effect.key, Completion(answer, Outcome.OK, 1, 1))


def test_an_error_of_the_disk_reaches_all_that_wait_for_it(path):
    tape = Tape(path)
    tape.put([(request("a"), Completion("x", Outcome.OK, 1, 1))])
    tape._database.connection.execute("PRAGMA max_page_count=1")  # SQLite then reports a full disk

    async def all_at_once():
        with busy(tape._database) as end:
            tasks = [asyncio.create_task(record(tape, f"b{i}", "x" * 10_000)) for i in range(20)]
            await asyncio.sleep(0)
            end()
            return await asyncio.gather(*tasks, return_exceptions=True)

    errors = asyncio.run(all_at_once())
    assert all(isinstance(error, StopRun) and "full" in str(error) for error in errors) and len(set(errors)) == 20
    assert len(tape) == 1 and tape.get(request("a")) is not None
    tape.close()


def test_what_is_on_a_tape_does_not_depend_on_the_order_of_recording(tmp_path):
    contents = []
    for name, order in (("a", range(30)), ("b", reversed(range(30)))):
        tape = Tape(tmp_path / name)

        async def all_of_them(tape=tape, order=order):
            await asyncio.gather(*(record(tape, str(i), f"answer {i}") for i in order))

        asyncio.run(all_of_them())
        contents.append(tape._database.connection.execute("SELECT * FROM effects ORDER BY key").fetchall())
        tape.close()
    assert contents[0] == contents[1] and len(contents[0]) == 30


def test_a_result_whose_caller_is_cancelled_is_recorded_before_the_tape_is_closed(path):
    tape = Tape(path)

    async def cancelled():
        with busy(tape._database) as end:
            task = asyncio.create_task(record(tape, "a"))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            end()

    asyncio.run(cancelled())
    tape.close()
    assert count(path) == 1
    with pytest.raises(TapeError, match="closed"):
        tape.get(request("a"))


def test_no_statement_needs_a_sqlite_newer_than_3_37(path, monkeypatch):
    """The operators -> and ->> came with 3.38; systems in use have 3.37."""
    statements, connect = [], sqlite3.connect

    def traced(*arguments, **settings):
        db = connect(*arguments, **settings)
        db.set_trace_callback(statements.append)
        return db

    monkeypatch.setattr(sqlite3, "connect", traced)
    tape = Tape(path)
    tape.put([(request(), Completion("x", Outcome.OK, 3, 2, 0.25, 0.5))])
    tape.put_scores({"k": 0.5})
    assert tape.get(request()) is not None and tape.get_scores(["k"]) == {"k": 0.5} and len(tape) == 1
    assert tape.usage() == Usage(calls=1, prompt_tokens=3, completion_tokens=2, usd=0.5, seconds=0.25)
    tape.close()
    assert sum("prompt_tokens" in statement for statement in statements) >= 2  # the record, and the sums
    assert not [statement for statement in statements if "->" in statement]
