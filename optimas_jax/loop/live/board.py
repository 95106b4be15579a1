"""The board of a run: its status, shown by its progress and written to ``live.json``; and requests to pause or stop it.

lines, bars ---> Board ---> progress of the command
events -------->   |------> show(Status), twice a second
ledger -------->   |------> live.json, every second, until the command ends
control.json -->   |------> pause: no further run of the system, bar or step of training begins until it is resumed
                   |------> stop: an interrupt of the thread of the run, as by Ctrl-C
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from optimas_jax.core.folder import events
from optimas_jax.core.folder.control import CONTROL, take
from optimas_jax.core.folder.files import FolderError, read_file, write_text
from optimas_jax.core.folder.live import LIVE, ShowsStatus, State, Status
from optimas_jax.core.progress import Bars, Progress
from optimas_jax.core.running.event_loop import interrupt
from optimas_jax.core.usage import Usage
from optimas_jax.llm.accounts.ledger import Ledger
from optimas_jax.loop.config import RunConfig, key_of
from optimas_jax.loop.journal import PLAN
from optimas_jax.loop.live.left import Pace, seconds_left
from optimas_jax.loop.live.where import Where

_LOOK_SECONDS = 0.5  # between two updates
_WRITE_SECONDS = 1.0  # between two writes
_BEAT_SECONDS = 10.0  # between two writes where only the clock changes
_HELD_SECONDS = 0.2  # between two checks whether a pause is over
_STILL_SECONDS = 2.0  # a run counts as paused while something asked within this time whether it may begin


@dataclasses.dataclass(frozen=True)
class Subject:
    """The run that a board shows.

    Attributes:
      folder: its folder.
      title: its title.
      ledger: its ledger.
      iterations: number of iterations of its search.
      val_runs: runs of the system in the validation of the default.
      final_runs: runs of the system in confirmation and final test, under two configurations.
      plan: expected costs by step; None without a plan.
    """

    folder: Path
    title: str
    ledger: Ledger
    iterations: int
    val_runs: int
    final_runs: int
    plan: Mapping[str, Usage] | None


class Board:
    """Progress that also records lines, bars and events as the status of the run, and pauses or stops the run on
    request."""

    def __init__(self, progress: Progress):
        self._progress, self._bars = progress, Bars()
        self._shown = progress if isinstance(progress, ShowsStatus) else None
        self._where, self._lock = Where(), threading.Lock()
        self._subject: Subject | None = None
        self._id, self._began, self._ended = uuid.uuid4().hex, time.monotonic(), threading.Event()
        self._thread, self._stopping, self._stops = threading.current_thread(), False, threading.Lock()
        self._paused, self._waited = False, -math.inf  # and when something last waited because of the pause
        self._looked, self._pauses = time.monotonic(), 0.0  # seconds of pauses
        self._wrote, self._written = 0.0, ""
        self._run_seconds: float | None = None

    def line(self, text: str) -> None:
        """Shows one line about one decision."""
        self._progress.line(text)

    @contextlib.contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[[], None]]:
        """Shows a bar, and records its steps. A pause begins before the bar; or between two steps, if these are made by
        the run's own thread."""
        self._wait()
        with self._bars.bar(label, total) as noted, self._progress.bar(label, total) as shown:

            def advance() -> None:
                noted()
                shown()
                if threading.current_thread() is self._thread:  # not on the event loop, which ends what is in flight
                    self._wait()

            yield advance

    def follow(self, event: events.Event) -> None:
        """Callback for every event of the run; a resumed run repeats the events of earlier commands."""
        paid = self._subject.ledger.paid_calls if self._subject else 0
        with self._lock:
            self._where = self._where.after(event, self._seconds, paid)

    def held(self) -> bool:
        """Whether nothing more may begin for now. Callers that wait for the end of a pause ask again and again."""
        if self._paused and not self._ended.is_set():
            self._waited = time.monotonic()
            return True
        return False

    @contextlib.contextmanager
    def of(self, subject: Subject) -> Iterator[None]:
        """Shows the run and writes its ``live.json`` during the block; the file is deleted at its end."""
        self._subject = subject
        thread = threading.Thread(target=self._work, args=(subject,), name="optimas_jax board", daemon=True)
        try:
            take(subject.folder, self._id)  # removes a request to an earlier command
            self._look(subject)
            thread.start()
            yield
        finally:
            try:
                with self._stops:  # no interrupt is sent after this
                    self._ended.set()
            finally:  # an interrupt that was under way has arrived
                self._end(subject, thread)

    def _end(self, subject: Subject, thread: threading.Thread) -> None:
        """Ends the thread, deletes the files and clears the display."""
        self._ended.set()
        if thread.ident is not None:
            thread.join()
        for name in (LIVE, CONTROL):
            with contextlib.suppress(OSError):
                (subject.folder / name).unlink(missing_ok=True)
        if self._shown is not None:
            self._shown.show(None)

    def _work(self, subject: Subject) -> None:
        try:
            while not self._ended.wait(_LOOK_SECONDS):
                self._take(subject)
                now, looked = time.monotonic(), self._looked
                self._looked = now
                if self._state(subject) == "paused":
                    self._pauses += now - looked
                self._look(subject)
        finally:
            self._paused = False  # if progress has raised, this thread reads no request to resume any more

    def _take(self, subject: Subject) -> None:
        """Carries out a request to pause, resume or stop."""
        match take(subject.folder, self._id):
            case "pause":
                self._paused = True
            case "resume":
                self._paused = False
            case "stop" if not self._stopping:
                self._stopping, self._paused = True, False
                self._look(subject)
                with self._stops:
                    if not self._ended.is_set():
                        interrupt(self._thread)

    def _wait(self) -> None:
        """Waits in the thread of the run while it is paused."""
        while self.held():
            time.sleep(_HELD_SECONDS)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._began - self._pauses

    def _state(self, subject: Subject) -> State:
        if self._stopping:
            return "stopping"
        if not self._paused:
            return "running"
        still = not subject.ledger.in_flight and time.monotonic() - self._waited < _STILL_SECONDS
        return "paused" if still else "pausing"

    def _look(self, subject: Subject) -> None:
        """Shows the status of the run, and writes it if the last write is long enough ago."""
        status = self._status(subject)
        if self._shown is not None:
            self._shown.show(status)
        now = time.monotonic()
        still = dataclasses.replace(status, seconds=0.0, left=None, bars=())
        written = f"{still} {[(bar.label, bar.done) for bar in status.bars]}"
        pause = _BEAT_SECONDS if written == self._written else 0.0 if self._stopping else _WRITE_SECONDS
        if now - self._wrote >= pause:
            self._wrote, self._written = now, written
            text = json.dumps(status.to_json(), ensure_ascii=False)
            with contextlib.suppress(OSError):  # errors of the disk are shown by writers of important files
                write_text(subject.folder / LIVE, f"{text}\n", durable=False)

    def _status(self, subject: Subject) -> Status:
        ledger, bars = subject.ledger, self._bars.now
        with self._lock:
            where = self._where
        phase, _, part = ledger.step.partition(": ")
        used = {step: sum(list(roles.values()), Usage()) for step, roles in list(ledger.bill.used.items())}
        calls = sum(usage.calls for usage in used.values())
        validated = ledger.bill.waited.get("optimize: validation")  # seconds; gone once the bill is taken
        if validated and subject.val_runs:
            self._run_seconds = validated / subject.val_runs
        pace = Pace(
            phase=phase,
            iteration=where.iteration,
            iterations=subject.iterations,
            began=where.began,
            ends=where.ends,
            used=used,
            paid=min(1.0, ledger.paid_calls / calls) if calls else 1.0,
            seconds=self._seconds,
            run_seconds=self._run_seconds,
            final_runs=subject.final_runs,
            bars=bars,
        )
        left = seconds_left(pace, subject.plan)
        searches = phase == "optimize"
        return Status(
            id=self._id,
            title=subject.title,
            state=self._state(subject),
            step=ledger.step,
            iteration=where.iteration,
            iterations=subject.iterations,
            component=where.component * searches,
            proposal=where.doing(part) * searches,
            score=where.score,
            start=where.start,
            spent=ledger.spent,
            steps=used,
            seconds=round(max(0.0, self._seconds), 1),
            left=None if left is None else round(left, 1),
            bars=tuple(dataclasses.replace(bar, seconds=round(bar.seconds, 1)) for bar in bars),
        )


def planned_steps(folder: Path, config: RunConfig) -> Mapping[str, Usage] | None:
    """Expected costs by step of the plan in a run folder; None without a plan of these settings."""
    try:
        plan: Any = read_file(folder / PLAN)
    except FolderError:
        return None
    if not plan or plan["config"] != key_of(config):
        return None
    return {step: Usage.from_json(costs["expected"]) for step, costs in plan["host"]["steps"].items()}
