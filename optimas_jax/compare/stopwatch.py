"""Seconds of a search, and of the local rewards in it, over all attempts at a cell."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from optimas_jax.core.folder.files import read_file, write_json
from optimas_jax.llm.accounts.ledger import Ledger


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Wall-clock seconds.

    Attributes:
      search: of the search, everything before the confirmation and the test.
      rewards: of these, training and scoring with local rewards.
    """

    search: float = 0.0
    rewards: float = 0.0


class Meter:
    """Adds up the seconds inside methods of objects; a call inside another counts once. Safe for several threads."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = threading.local()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def watching(self, target: Any, *names: str) -> Iterator[None]:
        """Times the methods ``names`` of ``target`` inside the block."""
        for name in names:
            setattr(target, name, self._timed(getattr(target, name)))
        try:
            yield
        finally:
            for name in names:
                delattr(target, name)

    def _timed(self, method: Any) -> Any:
        @functools.wraps(method)
        def call(*args: Any, **options: Any) -> Any:
            depth, started = getattr(self._depth, "value", 0), time.monotonic()
            self._depth.value = depth + 1
            try:
                return method(*args, **options)
            finally:
                self._depth.value = depth
                if not depth:
                    with self._lock:
                        self.seconds += time.monotonic() - started

        return call


@contextlib.contextmanager
def keeping_time(path: Path, meter: Meter) -> Iterator[Callable[[], None]]:
    """Adds the seconds of the block and of ``meter`` to the seconds in the file, which earlier, interrupted attempts
    wrote. If the block raises, an error of writing the file is suppressed.

    Yields:
      A function that stops the clock: what follows in the block does not count.
    """
    before, started, stopped = read_seconds(path), time.monotonic(), list[Seconds]()

    def now() -> Seconds:
        return Seconds(before.search + time.monotonic() - started, before.rewards + meter.seconds)

    def write() -> None:
        write_json(path, dataclasses.asdict(stopped[0] if stopped else now()))

    try:
        yield lambda: stopped.append(now())
    except BaseException:
        with contextlib.suppress(OSError):
            write()
        raise
    write()


@contextlib.contextmanager
def before_phase(ledger: Ledger, name: str, action: Callable[[], None]) -> Iterator[None]:
    """Inside the block, calls ``action`` whenever the ledger's phase ``name`` begins."""
    begin = ledger.phase

    def watched(phase: str) -> contextlib.AbstractContextManager[None]:
        if phase == name:
            action()
        return begin(phase)

    setattr(ledger, "phase", watched)  # noqa: B010 - a method of this one object
    try:
        yield
    finally:
        delattr(ledger, "phase")


def read_seconds(path: Path) -> Seconds:
    """What ``keeping_time`` wrote; zeros without a file."""
    return Seconds(**(read_file(path) or {}))
