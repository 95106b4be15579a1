"""Content-addressed record and replay of effects (and of local scores), in one SQLite file.

The result of every completion and of every execution is on disk before anything uses it. The same request again, in
this run or in the next, is answered from the tape; that is the cache, the crash-resume, the key-less replay and the
bill in one mechanism. No event loop waits for the disk, and results that come together share a commit
(``llm.database``).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from optimas_jax.core.types import StopRun
from optimas_jax.core.usage import Usage
from optimas_jax.llm.base import (
    Completer,
    Completion,
    CompletionRequest,
    Effect,
    FunctionCall,
    Result,
    Returned,
    count_prompt,
)
from optimas_jax.llm.database import Database, WrongVersion
from optimas_jax.llm.ledger import Ledger
from optimas_jax.llm.sandbox import Execution, ExecutionRequest

R = TypeVar("R", bound=Result)

VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS effects
    (key TEXT PRIMARY KEY, kind TEXT NOT NULL, request TEXT NOT NULL, result TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, score REAL NOT NULL);
"""
_PART = 200  # rows of a statement, which may hold 999 values in an older SQLite
_COSTS = ("prompt_tokens", "completion_tokens", "usd", "seconds")  # fields of Usage that a result holds


class TapeError(StopRun):
    """The tape cannot be read or written."""


class NotOnTape(StopRun):
    """A replay-only tape does not hold the result of a request."""


class Tape:
    """The store behind a run. Safe for use from several threads and event loops."""

    def __init__(self, path: Path, earlier: Path | None = None, *, shared: bool = False):
        """Args:
        earlier: tape of another run, which is read where this one lacks a result, and never written.
        shared: whether several processes use the tape at once.

        Raises:
          TapeError: it cannot be opened.
        """
        self.path = path
        self._earlier = None if earlier is None else _read_only(earlier)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = Database(path, _SCHEMA, VERSION, shared=shared)
        except WrongVersion as error:
            raise TapeError(
                f"the tape {path} has version {error}, and this optimas_jax reads version {VERSION}: use a new "
                "--workdir"
            ) from None
        except (sqlite3.Error, OSError) as error:
            raise TapeError(
                f"cannot open the tape {path} ({error}). If the disk is full, make room; if it is a network file "
                "system without locks (Lustre mounted without flock, some FUSE), use a --workdir on a local disk; if "
                "another process uses the tape, wait for its end; if the file is damaged, move it away: what it held "
                "will be computed again"
            ) from error

    def close(self) -> None:
        """Closes the tape when all that waits is recorded."""
        self._database.close()
        if self._earlier is not None:
            self._earlier.close()

    @contextlib.contextmanager
    def _guard(self, doing: str) -> Iterator[Database]:
        try:
            yield self._database
        except sqlite3.Error as error:
            raise TapeError(
                f"cannot {doing} the tape {self.path} ({error}). Everything recorded before is kept: make room on "
                "the disk or mend the file, then run the same command again"
            ) from error

    def get(self, effect: Effect[R]) -> R | None:
        """The recorded result of an effect, or None."""
        key = effect.key
        with self._guard("read") as database:
            return self._read(effect, key, database.do(self._select, key))

    async def find(self, effect: Effect[R], key: str) -> R | None:
        """The same for a caller on an event loop. ``key``: of the effect."""
        with self._guard("read") as database:
            return self._read(effect, key, await database.wait_for(self._select, key))

    def put(self, results: Sequence[tuple[Effect[Any], Result]]) -> None:
        """Records results of effects; on return they are on disk."""
        with self._guard("write to") as database:
            database.do(_insert, [_row(effect, effect.key, result) for effect, result in results])

    async def record(self, effect: Effect[Any], key: str, result: Result) -> None:
        """Records a result; on return it is on disk. It is recorded even if the caller is cancelled meanwhile. ``key``:
        of the effect."""
        with self._guard("write to") as database:
            await database.wait_for(_insert, [_row(effect, key, result)])

    def get_scores(self, keys: Sequence[str]) -> dict[str, float]:
        """Recorded scores among ``keys``."""
        with self._guard("read") as database:
            return database.do(_select_scores, keys)

    def put_scores(self, scores: Mapping[str, float]) -> None:
        """Records scores; on return they are on disk."""
        with self._guard("write to") as database:
            database.do(_insert_scores, scores)

    def usage(self) -> Usage:
        """What all recorded results cost together."""
        sums = ", ".join(f"TOTAL(json_extract(result, '$.{name}'))" for name in _COSTS)
        calls, prompt_tokens, completion_tokens, usd, seconds = self._sums(sums)
        return Usage(calls, int(prompt_tokens), int(completion_tokens), usd, seconds)

    def __len__(self) -> int:
        """Number of recorded results."""
        return self._sums("0")[0]

    def _sums(self, sums: str) -> tuple[Any, ...]:
        """The number of recorded results, and sums over them."""
        query = f"SELECT COUNT(*), {sums} FROM effects"  # noqa: S608 (our own names)
        with self._guard("read") as database:
            return database.do(_rows, query)[0]

    def _select(self, connection: sqlite3.Connection, keys: Sequence[str]) -> list[str | None]:
        """Recorded results, as text."""
        query = "SELECT key, result FROM effects WHERE key IN ({})"
        found = dict(_in_parts(connection, query, keys))
        missing = [key for key in keys if key not in found]
        if self._earlier is not None and missing:
            found |= dict(_in_parts(self._earlier, query, missing))
        return [found.get(key) for key in keys]

    def _read(self, effect: Effect[R], key: str, text: str | None) -> R | None:
        if text is None:
            return None
        try:
            return effect.read(json.loads(text))
        except (ValueError, TypeError, KeyError) as error:
            raise TapeError(f"entry {key} of the tape {self.path} is damaged ({error}): move the file away") from error


def _row(effect: Effect[Any], key: str, result: Result) -> tuple[str, ...]:
    return (key, effect.kind, json.dumps(effect.to_json(), ensure_ascii=False), json.dumps(result.to_json()))


def _insert(connection: sqlite3.Connection, puts: Sequence[Sequence[tuple[str, ...]]]) -> list[None]:
    """Many rows in a statement: between two statements the thread waits for its turn among busy ones."""
    rows = [row for put in puts for row in put]
    for start in range(0, len(rows), _PART):
        part = rows[start : start + _PART]
        values = ",".join(["(?, ?, ?, ?)"] * len(part))
        fields = [field for row in part for field in row]
        connection.execute(f"INSERT OR REPLACE INTO effects VALUES {values}", fields)  # noqa: S608 (question marks)
    return [None] * len(puts)


def _insert_scores(connection: sqlite3.Connection, puts: Sequence[Mapping[str, float]]) -> list[None]:
    for scores in puts:
        connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", list(scores.items()))
    return [None] * len(puts)


def _select_scores(connection: sqlite3.Connection, gets: Sequence[Sequence[str]]) -> list[dict[str, float]]:
    query = "SELECT key, score FROM scores WHERE key IN ({})"
    return [dict(_in_parts(connection, query, keys)) for keys in gets]


def _rows(connection: sqlite3.Connection, queries: Sequence[str]) -> list[list[tuple[Any, ...]]]:
    return [connection.execute(query).fetchall() for query in queries]


def _in_parts(connection: sqlite3.Connection, query: str, keys: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Rows of a query with some keys at a time."""
    for start in range(0, len(keys), _PART):
        part = keys[start : start + _PART]
        yield from connection.execute(query.format(",".join("?" * len(part))), part).fetchall()


def _read_only(path: Path) -> sqlite3.Connection:
    """A tape of another run; raises ``TapeError`` if it cannot be read."""
    # Without a log or journal nothing is at work on the file, and nothing beside it need be made to read it.
    at_work = any(path.with_name(f"{path.name}-{kind}").exists() for kind in ("wal", "journal"))
    mode = "mode=ro" if at_work else "immutable=1"
    try:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True, check_same_thread=False)
        [version] = db.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            raise TapeError(f"the tape {path} has version {version}, and this optimas_jax reads version {VERSION}")
    except sqlite3.Error as error:
        raise TapeError(f"cannot read the tape {path} ({error}): mend it, or move it away") from error
    return db


@dataclasses.dataclass(eq=False)
class _Flight:
    """A request in flight.

    Attributes:
      task: gets its result.
      waiting: callers that wait for the task.
    """

    task: asyncio.Task[Any]
    waiting: int = 0


class TapedCompleter:
    """Answers from the tape; asks ``inner`` only for results that are missing there, within the ledger's limits.

    Equal requests in flight share one task:

        caller 1 --+                on the tape: admit(true cost) ---------------------------> settle --> result
        caller 2 --+--> task of key
        caller 3 --+                missing:     admit(worst case) --> inner --> record  ----> settle --> result

    When the last caller is cancelled, the task is cancelled, too. If ``inner`` is working on the request by then,
    ``inner`` decides whether it can still be stopped: a result that it returns is recorded.

    With ``inner=None`` it only replays. Requests come from one event loop at a time.
    """

    def __init__(self, tape: Tape, ledger: Ledger, inner: Completer | None):
        self._tape, self._ledger, self._inner = tape, ledger, inner
        self._flights: dict[str, _Flight] = {}

    async def complete(self, request: CompletionRequest) -> Completion:
        """Answers one request.

        Raises:
          NotOnTape: if it only replays, and the answer is missing.
          OverBudget, OutOfBudget: if the answer could cost more than is left, after the requests in flight have ended.
        """
        return await self._get(request, lambda inner: inner.complete(request))

    async def execute(self, request: ExecutionRequest) -> Execution:
        """Executes a program; raises what ``complete`` raises. ``inner`` must execute programs (``llm.sandbox``)."""
        return await self._get(request, lambda inner: inner.execute(request))

    async def call(self, request: FunctionCall) -> Returned:
        """Calls a function of the user's; raises what ``complete`` raises, and what the function raises."""

        async def perform(inner: Any) -> Returned:
            began = time.monotonic()
            return Returned(await request.perform(), time.monotonic() - began)

        return await self._get(request, perform)

    async def _get(self, effect: Effect[R], perform: Callable[[Any], Awaitable[R]]) -> R:
        """Waits for the task of a request; starts it if there is none."""
        key = effect.key
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.ensure_future(self._fly(effect, key, perform)))
            flight.task.add_done_callback(lambda task: self._land(key, task))
        flight.waiting += 1
        try:
            await asyncio.wait([flight.task])
            if flight.task.cancelled():
                raise StopRun("the request was cancelled")
            self._ledger.count_call(effect.role)
            return flight.task.result()
        except asyncio.CancelledError:
            if flight.waiting == 1 and not flight.task.done():
                flight.task.cancel()
                await asyncio.wait([flight.task])
            raise
        finally:
            flight.waiting -= 1

    def _land(self, key: str, task: asyncio.Task) -> None:
        del self._flights[key]
        if not task.cancelled():
            task.exception()  # marked as retrieved: all callers may have left

    async def _fly(self, effect: Effect[R], key: str, perform: Callable[[Any], Awaitable[R]]) -> R:
        """Gets a result from the tape, or from ``inner``; see the drawing of the class."""
        result = await self._tape.find(effect, key)
        if result is not None:
            ticket = await self._ledger.admit(effect.role, key, result.usage, paid=False)
            self._ledger.settle(ticket, result.usage)
            return result
        if self._inner is None:
            raise NotOnTape(f"the tape {self._tape.path} has no result for {json.dumps(effect.to_json())[:500]}")
        ticket = await self._ledger.admit(effect.role, key, self.most(effect), paid=True)
        usage = None
        try:
            result = await perform(self._inner)
            usage = result.usage
            await self._tape.record(effect, key, result)
            return result
        finally:
            self._ledger.settle(ticket, usage)

    def most(self, effect: Effect[Any]) -> Usage:
        """The worst case of a request; with limits from the exact length of its prompt, where ``inner`` knows it."""
        exact = None
        if isinstance(effect, CompletionRequest) and self._ledger.is_limited:
            exact = count_prompt(self._inner, effect)
        return self._ledger.most(effect, exact)
