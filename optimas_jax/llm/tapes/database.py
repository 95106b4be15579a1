"""A SQLite file that belongs to one thread, which serves callers in groups.

All calls that wait when the thread is free are one transaction, so that many callers share the wait for the disk:

    caller 1 --+                             +--> result 1
    caller 2 --+--> waiting --> one commit --+--> result 2     (meanwhile others wait for the next one)
    caller 3 --+                             +--> result 3

A caller gets its result when it is on disk. An error of the disk undoes the whole group, and every caller gets it.

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
_LOCKED_SECONDS = 60.0  # longest wait for the transactions of other processes
_MOUNTS = Path("/proc/mounts")
_NETWORK = re.compile(
    r"9p|afs|beegfs|ceph|cifs|fuse|gfs2|glusterfs|gpfs|lustre|ncpfs|nfs|ocfs2|panfs|smb|vboxsf|virtiofs|wekafs"
)


class WrongVersion(Exception):
    """The file has another version, which is the argument."""


@dataclasses.dataclass(frozen=True)
class _Call:
    """A call that waits for its turn.

    Attributes:
      work: called once for the arguments of all calls of a group with the same work.
      argument: of the caller.
      tell: callback for the result or the error, see ``Tell``.
      loop: the event loop on which ``tell`` is called; None for the database's own thread.
    """

    work: Work[Any, Any]
    argument: Any
    tell: Tell
    loop: asyncio.AbstractEventLoop | None = None


class Database:
    """An open file. Safe for use from several threads and event loops.

    Attributes:
      connection: used by the database's own thread alone.
    """

    def __init__(self, path: Path, schema: str, version: int):
        """Opens a file, or creates it.

        Args:
          schema: statements that create missing tables.
          version: of the schema.

        Raises:
          WrongVersion: it has tables of another version, and is not changed.
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
        """The result of ``work`` on one argument; raises the errors of ``work``. The calling thread waits."""
        outcome, lock = list[Any](), threading.Lock()  # a plain lock: an interrupt of the waiting leaves nothing behind
        lock.acquire()

        def tell(result: Any, error: BaseException | None) -> None:
            outcome.extend((result, error))
            lock.release()

        self._put(_Call(work, argument, tell))
        lock.acquire()
        result, error = outcome
        if error is not None:
            raise error
        return result

    async def wait_for(self, work: Work[A, T], argument: A) -> T:
        """As ``do``, without blocking the event loop. The work is done even if its caller is cancelled."""
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
        """Does all calls that wait, and closes the file."""
        with self._lock:
            self._closed = True
        self._end()

    def _put(self, call: _Call) -> None:
        with self._lock:
            if self._closed:
                raise sqlite3.ProgrammingError("it is closed")
            self._waiting.put(call)


def _open(connection: sqlite3.Connection, schema: str, version: int, *, remote: bool) -> None:
    """Chooses the journal of a file, and creates its tables."""
    if remote:  # before anything is read: a log from an earlier process is then read without shared memory
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    [file_version] = connection.execute("PRAGMA user_version").fetchone()
    [tables] = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    if tables and file_version != version:
        raise WrongVersion(file_version)
    connection.execute(f"PRAGMA journal_mode={'DELETE' if remote else 'WAL'}")
    # A commit survives a power cut, too. A rollback journal is gone for good when its folder is synced.
    connection.execute(f"PRAGMA synchronous={'EXTRA' if remote else 'FULL'}")
    # One transaction: if the process died in between, the tables would have no version, and be refused from then on.
    connection.executescript(f"BEGIN IMMEDIATE; {schema} PRAGMA user_version={version}; COMMIT;")


def _serve(connection: sqlite3.Connection, waiting: queue.SimpleQueue[_Call | None]) -> None:
    """Serves callers until it takes None from the queue."""
    group: list[_Call | None] = []
    while None not in group:
        group = [waiting.get()]
        with contextlib.suppress(queue.Empty):
            while len(group) < _GROUP:
                group.append(waiting.get_nowait())
        _do_together(connection, [call for call in group if call is not None])
    connection.close()


def _do_together(connection: sqlite3.Connection, calls: Sequence[_Call]) -> None:
    """Does calls in one transaction: ``work`` is called once for all arguments of the calls that share it."""
    by_work: dict[Work[Any, Any], list[_Call]] = {}
    for call in calls:
        by_work.setdefault(call.work, []).append(call)
    results: list[Any] = []
    error: BaseException | None = None
    try:
        with connection:
            for work, calls_of_work in by_work.items():
                results += work(connection, [call.argument for call in calls_of_work])
    except BaseException as failure:
        error, results = failure, [None] * len(calls)
    calls_in_order = [call for calls_of_work in by_work.values() for call in calls_of_work]
    _tell_all(list(zip(calls_in_order, results, strict=True)), error)


def _tell_all(results: Sequence[tuple[_Call, Any]], error: BaseException | None) -> None:
    """Hands results to callers, with one callback for each event loop: every callback wakes its loop."""
    by_loop: dict[asyncio.AbstractEventLoop | None, list[tuple[_Call, Any]]] = {}
    for call, result in results:
        by_loop.setdefault(call.loop, []).append((call, result))

    def tell(calls: Sequence[tuple[_Call, Any]]) -> None:
        for call, result in calls:
            call.tell(result, error)

    for loop, calls in by_loop.items():
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
    """Whether a path is on a file system that other machines may share.

    Args:
      mounts: the text of ``/proc/mounts``; "" if there is no such file.
    """
    path, kind, longest = path.resolve(), "", -1
    for line in mounts.splitlines():
        _, name, kind_here, *_ = line.split(" ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), name))
        if (
            path.is_relative_to(point) and len(point.parts) >= longest
        ):  # of several mounts at one point, the last one holds
            kind, longest = kind_here, len(point.parts)
    return _NETWORK.match(kind) is not None
