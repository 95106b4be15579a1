"""A SQLite file that belongs to one thread, which serves callers in groups.

What waits when the thread is free is done in one transaction, so that many callers share the wait for the disk:

    caller 1 --+                             +--> result 1
    caller 2 --+--> waiting --> one commit --+--> result 2     (meanwhile others wait for the next one)
    caller 3 --+                             +--> result 3

A caller gets its result when that is on disk. An error of the disk undoes the whole group, and every caller gets it.

On a local disk the file has a write-ahead log, which needs memory that processes share. Network file systems have none:
there, the file has a rollback journal, and is locked as long as it is open, unless processes share it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import queue
import re
import sqlite3
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

A = TypeVar("A")
T = TypeVar("T")
Work = Callable[[sqlite3.Connection, Sequence[A]], Sequence[T]]  # a result for each argument
Tell = Callable[[Any, BaseException | None], None]  # takes a result, or an error

_GROUP = 1000  # callers that share a transaction, at most
_LOCKED_SECONDS = 60.0  # that the transactions of other processes may take
_MOUNTS = Path("/proc/mounts")
_NETWORK = re.compile(
    r"9p|afs|beegfs|ceph|cifs|fuse|gfs2|glusterfs|gpfs|lustre|ncpfs|nfs|ocfs2|panfs|smb|vboxsf|virtiofs|wekafs"
)


class WrongVersion(Exception):
    """A file of another version, which is the argument."""


@dataclasses.dataclass(frozen=True)
class _Call:
    """A caller that waits.

    Attributes:
      work: done once for the arguments of all callers of a group that ask for it.
      argument: of the caller.
      tell: see ``Tell``.
      loop: on which it is told; None for the database's own thread.
    """

    work: Work[Any, Any]
    argument: Any
    tell: Tell
    loop: asyncio.AbstractEventLoop | None = None


class Database:
    """An open file. Safe for use from several threads and event loops.

    Attributes:
      connection: belongs to the thread.
    """

    def __init__(self, path: Path, schema: str, version: int):
        """Opens a file, or makes one.

        Args:
          schema: statements that make the tables, if they are not there.
          version: of the schema.

        Raises:
          WrongVersion: it has tables of another version, and stays as it is.
          sqlite3.Error: it cannot be opened.
        """
        self.connection = sqlite3.connect(path, timeout=_LOCKED_SECONDS, check_same_thread=False)
        mounts = _MOUNTS.read_text(errors="replace") if _MOUNTS.is_file() else ""
        try:
            _open(self.connection, schema, version, remote=is_remote(path, mounts))
        except BaseException:
            self.connection.close()
            raise
        self._lock, self._closed = threading.Lock(), False
        self._waiting: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        thread = threading.Thread(target=_serve, args=(self.connection, self._waiting), name=path.name, daemon=True)
        thread.start()
        self._end = weakref.finalize(self, _end, self._waiting, thread)

    def do(self, work: Work[A, T], argument: A) -> T:
        """The result of ``work`` on one argument; raises what it raises. The calling thread waits."""
        told, lock = list[Any](), threading.Lock()  # a plain lock: an interrupt of the waiting leaves nothing behind
        lock.acquire()

        def tell(result: Any, error: BaseException | None) -> None:
            told.extend((result, error))
            lock.release()

        self._put(_Call(work, argument, tell))
        lock.acquire()
        result, error = told
        if error is not None:
            raise error
        return result

    async def wait_for(self, work: Work[A, T], argument: A) -> T:
        """The same on an event loop, which goes on meanwhile. The work is done even if its caller is cancelled."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[T] = loop.create_future()

        def tell(result: Any, error: BaseException | None) -> None:
            if ended.done():  # cancelled
                return
            if error is None:
                ended.set_result(result)
            else:
                ended.set_exception(error)

        self._put(_Call(work, argument, tell, loop))
        return await ended

    def close(self) -> None:
        """Does what waits, and closes the file."""
        with self._lock:
            self._closed = True
        self._end()

    def _put(self, call: _Call) -> None:
        with self._lock:
            if self._closed:
                raise sqlite3.ProgrammingError("it is closed")
            self._waiting.put(call)


def _open(connection: sqlite3.Connection, schema: str, version: int, *, remote: bool) -> None:
    """Chooses the journal of a file, and makes its tables."""
    if remote:  # before anything is read: a log of before is then read without shared memory
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    [found] = connection.execute("PRAGMA user_version").fetchone()
    [tables] = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    if tables and found != version:
        raise WrongVersion(found)
    connection.execute(f"PRAGMA journal_mode={'DELETE' if remote else 'WAL'}")
    # A commit survives a power cut, too. A rollback journal is gone for good when its folder is synced.
    connection.execute(f"PRAGMA synchronous={'EXTRA' if remote else 'FULL'}")
    # One transaction: tables without their version would be refused for ever if the process died in between.
    connection.executescript(f"BEGIN IMMEDIATE; {schema} PRAGMA user_version={version}; COMMIT;")


def _serve(connection: sqlite3.Connection, waiting: queue.SimpleQueue[_Call | None]) -> None:
    """Serves callers until None comes, which is the last."""
    group: list[_Call | None] = []
    while None not in group:
        group = [waiting.get()]
        with contextlib.suppress(queue.Empty):
            while len(group) < _GROUP:
                group.append(waiting.get_nowait())
        _do_together(connection, [call for call in group if call is not None])
    connection.close()


def _do_together(connection: sqlite3.Connection, calls: Sequence[_Call]) -> None:
    """One transaction; of equal work, one call for all arguments, in the order of asking."""
    of_work: dict[Work[Any, Any], list[_Call]] = {}
    for call in calls:
        of_work.setdefault(call.work, []).append(call)
    results: list[Any] = []
    error: BaseException | None = None
    try:
        with connection:
            for work, equal in of_work.items():
                results += work(connection, [call.argument for call in equal])
    except BaseException as failure:
        error, results = failure, [None] * len(calls)
    asked = [call for equal in of_work.values() for call in equal]
    _tell_all(list(zip(asked, results, strict=True)), error)


def _tell_all(told: Sequence[tuple[_Call, Any]], error: BaseException | None) -> None:
    """Tells callers of their results, those of an event loop together: each word to a loop wakes it."""
    of_loop: dict[asyncio.AbstractEventLoop | None, list[tuple[_Call, Any]]] = {}
    for call, result in told:
        of_loop.setdefault(call.loop, []).append((call, result))

    def tell(calls: Sequence[tuple[_Call, Any]]) -> None:
        for call, result in calls:
            call.tell(result, error)

    for loop, calls in of_loop.items():
        if loop is None:
            tell(calls)
            continue
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(tell, calls)


def _end(waiting: queue.SimpleQueue[_Call | None], thread: threading.Thread) -> None:
    waiting.put(None)
    if threading.current_thread() is not thread:  # which may be where nothing refers to the database any more
        thread.join()


def is_remote(path: Path, mounts: str) -> bool:
    """Whether a path is on a file system that other machines may have, too.

    Args:
      mounts: the text of ``/proc/mounts``; "" where there is none.
    """
    path, kind, longest = path.resolve(), "", -1
    for line in mounts.splitlines():
        _, name, kind_here, *_ = line.split(" ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), name))
        if path.is_relative_to(point) and len(point.parts) >= longest:  # the last one of those at one point
            kind, longest = kind_here, len(point.parts)
    return _NETWORK.match(kind) is not None
