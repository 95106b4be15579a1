"""Content-addressed record and replay of completions (and of local scores), in one SQLite file.

Every completion is on disk before anything uses it. Asking again for the same thing, in this run or in the next, is
answered from the tape; that is the cache, the crash-resume, the key-less replay and the bill in one mechanism.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from optimas_jax.core.types import StopRun
from optimas_jax.llm.base import Completer, Completion, CompletionRequest
from optimas_jax.llm.ledger import Charge, Ledger

_SCHEMA = """
CREATE TABLE IF NOT EXISTS completions (key TEXT PRIMARY KEY, request TEXT NOT NULL, completion TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, score REAL NOT NULL);
"""


class TapeError(StopRun):
    """The tape cannot be read or written."""


class NotOnTape(StopRun):
    """A replay-only tape was asked for something that was never recorded."""


class Tape:
    """The store behind a run. Safe for use from several threads."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
            self._db.commit()
        except (sqlite3.Error, OSError) as error:
            raise TapeError(
                f"cannot open the tape {path} ({error}). If the disk is full, make room; if the file is damaged, move "
                "it away: what it held will be computed again"
            ) from error

    def close(self) -> None:
        with self._lock:
            self._db.close()

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

    def get(self, key: str) -> Completion | None:
        with self._guard("read") as db:
            row = db.execute("SELECT completion FROM completions WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        try:
            return Completion.from_json(json.loads(row[0]))
        except (ValueError, TypeError, KeyError) as error:
            raise TapeError(f"entry {key} of the tape {self.path} is damaged ({error}): move the file away") from error

    def put(self, request: CompletionRequest, completion: Completion) -> None:
        """Records a completion; on return it is on disk."""
        row = (request.key, json.dumps(request.to_json(), ensure_ascii=False), json.dumps(completion.to_json()))
        with self._guard("write to") as db:
            db.execute("INSERT OR REPLACE INTO completions VALUES (?, ?, ?)", row)

    def get_scores(self, keys: Sequence[str]) -> dict[str, float]:
        """Recorded scores among ``keys``."""
        found: dict[str, float] = {}
        with self._guard("read") as db:
            for start in range(0, len(keys), 500):
                part = keys[start : start + 500]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, score FROM scores WHERE key IN ({marks})"  # noqa: S608 (question marks only)
                found.update(db.execute(query, part).fetchall())
        return found

    def put_scores(self, scores: Mapping[str, float]) -> None:
        with self._guard("write to") as db:
            db.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", list(scores.items()))

    def cost(self) -> Charge:
        """What all recorded completions cost together."""
        query = """
            SELECT TOTAL(completion ->> 'usd'), COUNT(*),
                   TOTAL((completion ->> 'prompt_tokens') + (completion ->> 'completion_tokens'))
            FROM completions"""
        with self._guard("read") as db:
            usd, calls, tokens = db.execute(query).fetchone()
        return Charge(usd, int(tokens), calls)

    def __len__(self) -> int:
        with self._guard("read") as db:
            return db.execute("SELECT COUNT(*) FROM completions").fetchone()[0]


class TapedCompleter:
    """Answers from the tape, and asks ``inner`` only for what is not there and what the ledger's budget allows.

    Equal requests in flight at the same time are asked once. With ``inner=None`` it only replays.
    """

    def __init__(self, tape: Tape, ledger: Ledger, inner: Completer | None):
        self._tape, self._ledger, self._inner = tape, ledger, inner
        self._in_flight: dict[str, asyncio.Future[Completion]] = {}
        self._paying: set[asyncio.Future[Completion]] = set()  # those in flight that hold a part of the budget

    async def complete(self, request: CompletionRequest) -> Completion:
        """Answers one request.

        Raises:
          NotOnTape: if it only replays, and the answer is not there.
          OverBudget: if the answer could cost more than is left. What is in flight ends first.
        """
        key = request.key
        completion = self._tape.get(key)
        paid = False
        if completion is None and key in self._in_flight:
            completion = await asyncio.shield(self._in_flight[key])
        elif completion is None:
            completion = await self._ask(key, request)
            paid = True
        self._ledger.add(request.role, key, completion, paid=paid)
        return completion

    async def _ask(self, key: str, request: CompletionRequest) -> Completion:
        if self._inner is None:
            raise NotOnTape(f"the tape {self._tape.path} has no answer for {json.dumps(request.to_json())[:500]}")
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._in_flight[key] = future
        try:
            completion = await self._pay(request, self._inner, future)
            future.set_result(completion)
            return completion
        except BaseException as error:
            future.set_exception(error if isinstance(error, Exception) else StopRun("the request was cancelled"))
            future.exception()  # mark as retrieved: nobody may be waiting
            raise
        finally:
            self._paying.discard(future)
            del self._in_flight[key]

    async def _pay(self, request: CompletionRequest, inner: Completer, future: asyncio.Future) -> Completion:
        """Asks, within the budget, and records the answer."""
        most = self._ledger.most(request)
        while not self._ledger.reserve(most):
            if not self._paying:
                raise self._ledger.refusal(most)
            await asyncio.wait(self._paying, return_when=asyncio.FIRST_COMPLETED)  # it may cost less than reserved
        self._paying.add(future)
        completion: Completion | None = None
        asked = asyncio.ensure_future(inner.complete(request))
        try:
            self._tape.put(request, completion := await asyncio.shield(asked))
            return completion
        except asyncio.CancelledError:
            asked.cancel()
            with contextlib.suppress(Exception, asyncio.CancelledError):
                # One that is paid for and could not be stopped any more is kept.
                self._tape.put(request, completion := await asked)
            raise
        finally:
            self._ledger.settle(most, completion)
