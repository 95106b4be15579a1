"""Content-addressed record and replay of effects (and of local scores), in one SQLite file.

The result of every completion and of every execution is on disk before anything uses it. The same request again, in
this run or in the next, is answered from the tape; that is the cache, the crash-resume, the key-less replay and the
bill in one mechanism.

The file uses SQLite's write-ahead log, which needs shared memory between processes and therefore a local disk: network
file systems do not work.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sqlite3
import threading
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
from optimas_jax.llm.ledger import Ledger
from optimas_jax.llm.sandbox import Execution, ExecutionRequest

R = TypeVar("R", bound=Result)

VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS effects
    (key TEXT PRIMARY KEY, kind TEXT NOT NULL, request TEXT NOT NULL, result TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, score REAL NOT NULL);
"""
_COSTS = ("prompt_tokens", "completion_tokens", "usd", "seconds")  # fields of Usage that a result holds


class TapeError(StopRun):
    """The tape cannot be read or written."""


class NotOnTape(StopRun):
    """A replay-only tape does not hold the result of a request."""


class Tape:
    """The store behind a run. Safe for use from several threads."""

    def __init__(self, path: Path, earlier: Path | None = None):
        """``earlier``: tape of another run, which is read where this one lacks a result, and never written."""
        self.path = path
        self._earlier = None if earlier is None else _read_only(earlier)
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, check_same_thread=False)
            self._check_version()
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")  # a commit survives a power cut, too
            # One transaction: tables without their version would be refused for ever if the process died in between.
            self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={VERSION}; COMMIT;")
        except (sqlite3.Error, OSError) as error:
            raise TapeError(
                f"cannot open the tape {path} ({error}). If the disk is full, make room; if it is a network file "
                "system, use a --workdir on a local disk; if the file is damaged, move it away: what it held will be "
                "computed again"
            ) from error

    def _check_version(self) -> None:
        """Raises ``TapeError`` for the tape of another version; a file without tables is a new one."""
        [version] = self._db.execute("PRAGMA user_version").fetchone()
        [tables] = self._db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        if tables and version != VERSION:
            self._db.close()
            raise TapeError(
                f"the tape {self.path} has version {version}, and this optimas_jax reads version {VERSION}: use a new "
                "--workdir"
            )

    def close(self) -> None:
        with self._lock:
            self._db.close()
            if self._earlier is not None:
                self._earlier.close()

    @contextlib.contextmanager
    def _guard(self, doing: str) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                with self._db:
                    yield self._db
            except sqlite3.Error as error:
                raise TapeError(
                    f"cannot {doing} the tape {self.path} ({error}). Everything recorded before is kept: make room on "
                    "the disk or mend the file, then run the same command again"
                ) from error

    def get(self, effect: Effect[R]) -> R | None:
        """The recorded result of an effect, or None."""
        key = effect.key
        query = "SELECT result FROM effects WHERE key = ?"
        with self._guard("read") as db:
            row = db.execute(query, (key,)).fetchone()
            if row is None and self._earlier is not None:
                row = self._earlier.execute(query, (key,)).fetchone()
        if row is None:
            return None
        try:
            return effect.read(json.loads(row[0]))
        except (ValueError, TypeError, KeyError) as error:
            raise TapeError(f"entry {key} of the tape {self.path} is damaged ({error}): move the file away") from error

    def put(self, results: Sequence[tuple[Effect[Any], Result]]) -> None:
        """Records results of effects in one commit; on return they are on disk."""
        rows = [
            (effect.key, effect.kind, json.dumps(effect.to_json(), ensure_ascii=False), json.dumps(result.to_json()))
            for effect, result in results
        ]
        with self._guard("write to") as db:
            db.executemany("INSERT OR REPLACE INTO effects VALUES (?, ?, ?, ?)", rows)

    def get_scores(self, keys: Sequence[str]) -> dict[str, float]:
        """Recorded scores among ``keys``."""
        scores: dict[str, float] = {}
        with self._guard("read") as db:
            for start in range(0, len(keys), 500):
                part = keys[start : start + 500]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, score FROM scores WHERE key IN ({marks})"  # noqa: S608 (question marks only)
                scores.update(db.execute(query, part).fetchall())
        return scores

    def put_scores(self, scores: Mapping[str, float]) -> None:
        with self._guard("write to") as db:
            db.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", list(scores.items()))

    def usage(self) -> Usage:
        """What all recorded results cost together."""
        sums = ", ".join(f"TOTAL(json_extract(result, '$.{name}'))" for name in _COSTS)
        with self._guard("read") as db:
            row = db.execute(f"SELECT COUNT(*), {sums} FROM effects").fetchone()  # noqa: S608 (our own names)
        calls, prompt_tokens, completion_tokens, usd, seconds = row
        return Usage(calls, int(prompt_tokens), int(completion_tokens), usd, seconds)

    def __len__(self) -> int:
        """Number of recorded results."""
        with self._guard("read") as db:
            return db.execute("SELECT COUNT(*) FROM effects").fetchone()[0]


def _read_only(path: Path) -> sqlite3.Connection:
    """A tape of another run; raises ``TapeError`` if it cannot be read."""
    # Without a write-ahead log nothing is at work on the file, and nothing beside it need be made to read it.
    mode = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "immutable=1"
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
        caller 3 --+                missing:     admit(worst case) --> inner --> _record ----> settle --> result

    When the last caller is cancelled, the task is cancelled, too. If ``inner`` is working on the request by then,
    ``inner`` decides whether it can still be stopped: a result that it returns is recorded.

    With ``inner=None`` it only replays. Requests come from one event loop at a time.
    """

    def __init__(self, tape: Tape, ledger: Ledger, inner: Completer | None):
        self._tape, self._ledger, self._inner = tape, ledger, inner
        self._flights: dict[str, _Flight] = {}
        self._arrived: list[tuple[Effect[Any], Result, asyncio.Future[None]]] = []

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
        result = self._tape.get(effect)
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
            await self._record(effect, result)
            return result
        finally:
            self._ledger.settle(ticket, usage)

    async def _record(self, effect: Effect[R], result: R) -> None:
        """Puts a result on the tape. Results of one step of the event loop share a commit, which waits some
        milliseconds for the disk. The result is recorded even if its caller is cancelled meanwhile."""
        loop = asyncio.get_running_loop()
        if not self._arrived:
            loop.call_soon(self._commit)
        recorded = loop.create_future()
        self._arrived.append((effect, result, recorded))
        await recorded

    def _commit(self) -> None:
        arrived, self._arrived = self._arrived, []
        error: Exception | None = None
        try:
            self._tape.put([(effect, result) for effect, result, _ in arrived])
        except Exception as failure:
            error = failure
        for _, _, recorded in arrived:
            if not recorded.done() and error is None:
                recorded.set_result(None)
            elif not recorded.done() and error is not None:
                recorded.set_exception(error)
                recorded.exception()  # marked as retrieved: its caller may be cancelled first

    def most(self, effect: Effect[Any]) -> Usage:
        """The worst case of a request; with limits from the exact length of its prompt, where ``inner`` knows it."""
        exact = None
        if isinstance(effect, CompletionRequest) and self._ledger.is_limited:
            exact = count_prompt(self._inner, effect)
        return self._ledger.most(effect, exact)
