"""A tracker: a callback that hands the entries (``points``) of events to a library.

``trackers/NAME.json`` in the folder of a run has the library's id of the run and how many events of the journal the
library has. A command that resumes a run, killed or not, therefore continues the same run of the library, and logs what
is missing there, nothing twice.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from optimas_jax.core.folder.events import Begin, End, Event, read_events
from optimas_jax.core.folder.files import read_file, write_json
from optimas_jax.core.folder.forms import TRACKERS
from optimas_jax.report.trackers.points import Entry, Position, entry, moved

_PAUSE = 60.0  # seconds until a library that failed is tried again


class Library(Protocol):
    """What a tracker needs of a library. All methods except ``check`` are called by one thread."""

    def check(self) -> None:
        """Raises ``TrackerError`` if the library cannot be used. The thread that starts the run calls it before
        anything is spent; a run of the library that is active in that thread is continued."""
        ...

    def begin(self, begin: Begin, known: str) -> str:
        """Begins a run, or continues an active run or the run with the id ``known``; returns its id."""
        ...

    def log(self, one: Entry) -> None:
        """Logs the scalars and texts of an event; when it returns they survive the end of the process."""
        ...

    def end(self, end: End) -> None:
        """Ends the run, if the tracker began it."""
        ...


class TrackerError(ValueError):
    """A tracker that cannot be used; the message has the way out."""


class Tracker:
    """A callback for ``optimize(callbacks=[...])``, of one run at a time.

    A library that fails raises once, is tried again with a later event, and never holds up the run.
    """

    def __init__(self, name: str, library: Library):
        self.__name__, self._library = name, library
        self._waiting: collections.deque[Entry] = collections.deque()
        self._has_run = False
        call = getattr(library, "call", None)
        if call is not None:
            self.on_call = lambda model_call: self._attempt(lambda: call(model_call)) if self._has_run else None

    def check(self) -> None:
        """Raises ``TrackerError`` if its library cannot be used."""
        self._library.check()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Begin):
            self._start(event)
        elif not self._has_run:
            return  # the tracker's file could not be read, which was reported at the begin of the run
        elif isinstance(event, End):
            self._end(event)
        else:
            self._take(event)
            self._attempt()

    def _start(self, begin: Begin) -> None:
        """Reads how many events of the run the library has. If it has all events of a resumed run, nothing begins
        there until there is a new event."""
        self._begin, self._is_open, self._not_before = begin, False, 0.0
        self._has_run = self._warned = False
        self._file = Path(begin.folder) / TRACKERS / f"{self.__name__}.json"
        known = read_file(self._file) or {"id": "", "logged": 0}
        self._id, self._logged = known["id"], known["logged"]
        self._position, self._number = Position(), 0
        self._waiting.clear()
        for event in read_events(begin.folder)[: begin.earlier] if begin.earlier else ():
            self._take(event)
        self._has_run = True
        if self._waiting or not begin.resumed:
            self._attempt()

    def _take(self, event: Event) -> None:
        self._position = moved(self._position, event)
        if self._number >= self._logged:
            self._waiting.append(entry(event, self._position, self._number))
        self._number += 1

    def _attempt(self, then: Callable[[], None] = lambda: None) -> None:
        """Logs waiting entries. Raises only the first error, so that callers report it once."""
        if time.monotonic() < self._not_before:
            return
        try:
            self._open()
            while self._waiting:
                self._library.log(self._waiting[0])
                self._waiting.popleft()
                self._logged += 1
                self._save()
            then()
        except Exception:
            self._not_before = time.monotonic() + _PAUSE
            if not self._warned:
                self._warned = True
                raise

    def _open(self) -> None:
        if self._is_open:
            return
        known = self._id
        self._id = self._library.begin(self._begin, known)
        self._is_open = True
        self._save()
        if not known:
            self._library.log(entry(self._begin, self._position))

    def _end(self, end: End) -> None:
        if self._waiting or (self._is_open and not end.finished):
            self._attempt()
        if self._is_open:
            self._attempt(lambda: self._library.log(entry(end, self._position)))
            self._library.end(end)

    def _save(self) -> None:
        self._file.parent.mkdir(exist_ok=True)
        write_json(self._file, {"id": self._id, "logged": self._logged})
