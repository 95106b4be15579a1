"""Locks on files, which the end of a process releases: one sweep in a folder, one process in a run folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LOCK = ".lock"  # of a sweep's folder; run folders have one of the same name (``loop.journal``)
SECONDS = 30.0  # that processes without a parent, which end in order, may take to end
_LOOK_SECONDS = 0.1


@contextlib.contextmanager
def hold(folder: Path, seconds: float = SECONDS) -> Iterator[int]:
    """Holds the lock of a sweep's folder.

    Yields:
      Its descriptor. Processes that inherit it hold the lock, too.

    Raises:
      TimeoutError: if another process holds it for longer than ``seconds``.
      OSError: if the folder cannot be written to.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _wait(lambda: fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB), seconds)
        yield descriptor
    finally:
        os.close(descriptor)


def is_held(folder: Path) -> bool:
    """Whether a process holds the lock of a sweep's folder, as far as this machine can tell."""
    try:
        with hold(folder, 0.0):
            return False
    except TimeoutError:
        return True


def wait_for_run(folder: Path, seconds: float = SECONDS) -> None:
    """Waits until no process runs in a run folder: a process that lost its parent, on this machine or another, may
    still be ending. Returns after ``seconds`` in any case: the run itself refuses a folder that is in use."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with contextlib.suppress(OSError):  # a time-out, or a file system without locks
            _wait(lambda: fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB), seconds)
    finally:
        os.close(descriptor)


def _wait(lock: Callable[[], None], seconds: float) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            return lock()
        except (BlockingIOError, PermissionError):  # lockf may raise either
            if time.monotonic() >= until:
                raise TimeoutError("another process holds the lock") from None
            time.sleep(_LOOK_SECONDS)
