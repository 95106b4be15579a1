"""Content-addressed record and replay of effects (and of local scores), in one SQLite file.

The result of every completion and of every execution is on disk before anything uses it. The same request again, in
this run or in the next, is answered from the tape. So the tape is the cache, the resume after a crash, the replay
without an API key, and the bill. No event loop waits for the disk, and results that come together share a commit
(``llm.tapes.database``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from optimas_jax.core.text.json_text import parse_json
from optimas_jax.core.types import StopRun
from optimas_jax.core.usage import Usage
from optimas_jax.llm.base import Effect, Result
from optimas_jax.llm.tapes.database import Database, WrongVersion
from optimas_jax.llm.tapes.row_checks import add_checks, find_damage, with_check

R = TypeVar("R", bound=Result)

VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS effects
    (key TEXT PRIMARY KEY, kind TEXT NOT NULL, request TEXT NOT NULL, result TEXT NOT NULL, crc INTEGER);
CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, score REAL NOT NULL, crc INTEGER);
CREATE TABLE IF NOT EXISTS attempts
    (id INTEGER PRIMARY KEY, key TEXT NOT NULL, most TEXT NOT NULL, crc INTEGER);
"""
_PART = 200  # most rows of a statement, which may hold 999 values in an older SQLite
_SHOWN = 3  # most damaged rows that a message names
_COSTS = ("prompt_tokens", "completion_tokens", "usd", "seconds")  # fields of Usage that a result holds


class TapeError(StopRun):
    """The tape cannot be read or written."""


class Tape:
    """The store behind a run. Safe for use from several threads and event loops."""

    def __init__(self, path: Path, earlier: Path | None = None):
        """Args:
        earlier: tape of another run, which is read if this one lacks a result, and never written.

        Raises:
          TapeError: it cannot be opened, or is damaged: then nothing is read from it, and nothing is paid for again.
        """
        self.path = path
        _check_log(path)
        self._earlier = None if earlier is None else _read_only(earlier)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = Database(path, _SCHEMA, VERSION)
            damage = self._database.do(_prepare, None)
        except WrongVersion as error:
            raise TapeError(
                f"the tape {path} has version {error}, and this optimas_jax reads version {VERSION}: use a new "
                "--workdir"
            ) from None
        except (sqlite3.Error, OSError) as error:
            raise TapeError(
                f"cannot open the tape {path} ({error}). If the disk is full, make room; if it is a network file "
                "system without locks (Lustre mounted without flock, some FUSE), use a --workdir on a local disk; if "
                "another process uses the tape, wait for its end; if the file is damaged, put a copy of it back, or "
                "move it away: what it held will be computed, and paid for, again"
            ) from error
        if damage:
            self.close()
            raise _damaged(path, damage)

    def close(self) -> None:
        """Records all results that wait, and closes the tape."""
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
        """As ``get``, for a caller on an event loop. ``key``: of the effect."""
        with self._guard("read") as database:
            return self._read(effect, key, await database.wait_for(self._select, key))

    async def settle(self) -> None:
        """Waits until everything that was asked of the tape before is done."""
        with self._guard("read") as database:
            await database.wait_for(_nothing, None)

    def put(self, results: Sequence[tuple[Effect[Any], Result]]) -> None:
        """Records results of effects; on return they are on disk."""
        with self._guard("write to") as database:
            database.do(_insert, ([_row(effect, effect.key, result) for effect, result in results], None))

    async def record(self, effect: Effect[Any], key: str, result: Result, attempt: int | None = None) -> None:
        """Records a result; on return it is on disk. It is recorded even if the caller is cancelled meanwhile.

        Args:
          key: of the effect.
          attempt: number of the attempt that it answers (``begin``), which is forgotten.
        """
        with self._guard("write to") as database:
            await database.wait_for(_insert, ([_row(effect, key, result)], attempt))

    async def begin(self, key: str, most: Usage) -> int:
        """Notes an attempt at a request, before the request leaves this process; returns its number. The attempt counts
        as ``most`` until ``record`` or ``end`` forgets it. An attempt that may have cost something and has no result is
        never forgotten."""
        with self._guard("write to") as database:
            begun = asyncio.ensure_future(database.wait_for(_begin, (key, json.dumps(vars(most)))))
            try:
                return await asyncio.shield(begun)
            except asyncio.CancelledError:
                await self.end(await begun)
                raise

    async def end(self, attempt: int) -> None:
        """Forgets an attempt that cost nothing."""
        with self._guard("write to") as database:
            await database.wait_for(_end, attempt)

    def get_scores(self, keys: Sequence[str]) -> dict[str, float]:
        """Recorded scores among ``keys``."""
        with self._guard("read") as database:
            scores = database.do(_select_scores, keys)
        if wrong := [key for key, score in scores.items() if type(score) is not float]:
            raise _damaged(self.path, [f"scores, key {key}" for key in wrong])
        return scores

    def put_scores(self, scores: Mapping[str, float]) -> None:
        """Records scores; on return they are on disk."""
        with self._guard("write to") as database:
            database.do(_insert_scores, scores)

    def usage(self) -> Usage:
        """Costs of all recorded results, and the costs that attempts without a result may have had."""
        return self._sum("result", "effects") + self._sum("most", "attempts")

    def uncertain(self) -> Usage:
        """The part of ``usage`` that is a worst case: attempts without a result, and answers of servers that do not
        report their usage."""
        return self._sum("result", "effects WHERE json_extract(result, '$.estimated')") + self._sum("most", "attempts")

    def _sum(self, column: str, where: str) -> Usage:
        sums = ", ".join(f"TOTAL(json_extract({column}, '$.{name}'))" for name in _COSTS)
        query = f"SELECT COUNT(*), {sums} FROM {where}"  # noqa: S608 (our own names)
        with self._guard("read") as database:
            calls, prompt_tokens, completion_tokens, usd, seconds = database.do(_rows, query)[0]
        return Usage(calls, int(prompt_tokens), int(completion_tokens), usd, seconds)

    def __len__(self) -> int:
        """Number of recorded results."""
        return self._count("effects")

    @property
    def is_new(self) -> bool:
        """Whether it holds neither results nor attempts without one."""
        return not self._count("effects") + self._count("attempts")

    def _count(self, table: str) -> int:
        with self._guard("read") as database:
            return database.do(_rows, f"SELECT COUNT(*) FROM {table}")[0][0]  # noqa: S608 (our own names)

    def _select(self, connection: sqlite3.Connection, keys: Sequence[str]) -> list[str | None]:
        """Recorded results, as text."""
        query = "SELECT key, result FROM effects WHERE key IN ({})"
        results = dict(_in_parts(connection, query, keys))
        missing = [key for key in keys if key not in results]
        if self._earlier is not None and missing:
            results |= dict(_in_parts(self._earlier, query, missing))
        return [results.get(key) for key in keys]

    def _read(self, effect: Effect[R], key: str, text: str | None) -> R | None:
        if text is None:
            return None
        try:
            return effect.read(parse_json(text))
        except (ValueError, TypeError, KeyError) as error:
            raise _damaged(self.path, [f"effects, key {key}: {error}"]) from error


def _damaged(path: Path, damage: Sequence[str]) -> TapeError:
    """The error of damaged rows; its message gives the repair that loses least."""
    more = f"; and {len(damage) - _SHOWN} more" if len(damage) > _SHOWN else ""
    return TapeError(
        f"the tape {path} is damaged ({'; '.join(damage[:_SHOWN])}{more}). Put a copy of the file back; or delete "
        "these rows alone, with any SQLite client, or move the file away: what is deleted will be computed, and paid "
        "for, again"
    )


def _prepare(connection: sqlite3.Connection, callers: Sequence[None]) -> list[list[str]]:
    """Adds missing checksums to a tape that was opened; returns its damage, for each caller."""
    add_checks(connection)
    return [find_damage(connection)] * len(callers)


def _nothing(connection: sqlite3.Connection, callers: Sequence[None]) -> Sequence[None]:
    return callers


def _check_log(path: Path) -> None:
    """Raises ``TapeError`` if the tape is gone and its log still holds results: SQLite would delete the log."""
    log = path.with_name(f"{path.name}-wal")
    if log.is_file() and log.stat().st_size and not (path.is_file() and path.stat().st_size):
        raise TapeError(
            f"the tape {path} is {'empty' if path.exists() else 'gone'}, and {log.name} beside it holds results that "
            "were paid for: put the file back that belongs to it; or move the log away, and all is paid for again"
        )


def _row(effect: Effect[Any], key: str, result: Result) -> tuple[Any, ...]:
    request, recorded = json.dumps(effect.to_json(), ensure_ascii=False), json.dumps(result.to_json())
    return with_check((key, effect.kind, request, recorded))


def _insert(connection: sqlite3.Connection, puts: Sequence[tuple[Sequence[tuple[Any, ...]], int | None]]) -> list[None]:
    """Writes many rows in a statement: between two statements the thread may have to wait for busy threads."""
    rows = [row for put, _ in puts for row in put]
    _end(connection, [attempt for _, attempt in puts if attempt is not None])
    for start in range(0, len(rows), _PART):
        chunk = rows[start : start + _PART]
        values = ",".join(["(?, ?, ?, ?, ?)"] * len(chunk))
        fields = [field for row in chunk for field in row]
        connection.execute(f"INSERT OR REPLACE INTO effects VALUES {values}", fields)  # noqa: S608 (question marks)
    return [None] * len(puts)


def _begin(connection: sqlite3.Connection, begun: Sequence[tuple[str, str]]) -> list[int]:
    [last] = connection.execute("SELECT COALESCE(MAX(id), 0) FROM attempts").fetchone()
    numbers = range(last + 1, last + 1 + len(begun))
    rows = [with_check((number, *row)) for number, row in zip(numbers, begun, strict=True)]
    connection.executemany("INSERT INTO attempts VALUES (?, ?, ?, ?)", rows)
    return [*numbers]


def _end(connection: sqlite3.Connection, attempts: Sequence[int]) -> list[None]:
    for start in range(0, len(attempts), _PART):
        chunk = attempts[start : start + _PART]
        connection.execute(f"DELETE FROM attempts WHERE id IN ({','.join('?' * len(chunk))})", chunk)  # noqa: S608
    return [None] * len(attempts)


def _insert_scores(connection: sqlite3.Connection, puts: Sequence[Mapping[str, float]]) -> list[None]:
    for scores in puts:
        rows = [with_check((key, float(score))) for key, score in scores.items()]
        connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", rows)
    return [None] * len(puts)


def _select_scores(connection: sqlite3.Connection, gets: Sequence[Sequence[str]]) -> list[dict[str, float]]:
    query = "SELECT key, score FROM scores WHERE key IN ({})"
    return [dict(_in_parts(connection, query, keys)) for keys in gets]


def _rows(connection: sqlite3.Connection, queries: Sequence[str]) -> list[list[tuple[Any, ...]]]:
    return [connection.execute(query).fetchall() for query in queries]


def _in_parts(connection: sqlite3.Connection, query: str, keys: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Rows of a query, which is made for ``_PART`` keys at a time."""
    for start in range(0, len(keys), _PART):
        chunk = keys[start : start + _PART]
        yield from connection.execute(query.format(",".join("?" * len(chunk))), chunk).fetchall()


def _read_only(path: Path) -> sqlite3.Connection:
    """A tape of another run; raises ``TapeError`` if it cannot be read."""
    # Without a log or journal no process uses the file, and no file beside it need be created to read it.
    at_work = any(path.with_name(f"{path.name}-{kind}").exists() for kind in ("wal", "journal"))
    mode = "mode=ro" if at_work else "immutable=1"
    try:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True, check_same_thread=False)
        [version] = db.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            raise TapeError(f"the tape {path} has version {version}, and this optimas_jax reads version {VERSION}")
        if damage := find_damage(db):
            raise _damaged(path, damage)
    except sqlite3.Error as error:
        raise TapeError(f"cannot read the tape {path} ({error}): mend it, or move it away") from error
    return db
