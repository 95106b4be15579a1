"""The board of a run: what it is doing, for the progress that shows it and for ``live.json``.

lines, bars ---> Board ---> progress of the command
events -------->   |------> show(Status), twice a second
ledger -------->   |------> live.json, every second, until the command ends
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from optimas_jax.core.folder import events
from optimas_jax.core.folder.files import FolderError, read_file, write_text
from optimas_jax.core.folder.live import LIVE, Status
from optimas_jax.core.progress import Bars, Progress, ShowsStatus
from optimas_jax.core.usage import Usage
from optimas_jax.core.values import Choice, Hyperparameters, PerInstance, Prompt, Value
from optimas_jax.llm.ledger import Ledger
from optimas_jax.loop.config import RunConfig, key_of
from optimas_jax.loop.journal import PLAN
from optimas_jax.loop.live.left import Pace, seconds_left

_LOOK_SECONDS = 0.5  # between two looks
_WRITE_SECONDS = 1.0  # between two writes
_BEAT_SECONDS = 10.0  # the same, where nothing changes but the clock
_LONGEST = 200  # letters of a proposal
_DOING = {
    "base runs": "runs as it is",
    "propose": "proposals are written",
    "label": "proposals are labelled",
    "race": "proposals are ranked",
    "adapt": "local rewards are adapted",
    "validation": "the default is validated",
}


@dataclasses.dataclass(frozen=True)
class Subject:
    """The run that a board is about.

    Attributes:
      folder: of it.
      title: of it.
      ledger: of it.
      iterations: of its search.
      val_runs: of the system, in the validation of the default.
      final_runs: of the system, in confirmation and final test, under two configurations.
      plan: expected costs by step; None where it was not planned.
    """

    folder: Path
    title: str
    ledger: Ledger
    iterations: int
    val_runs: int
    final_runs: int
    plan: Mapping[str, Usage] | None


class Board:
    """Progress that also notes what it is told, until ``close``."""

    def __init__(self, progress: Progress):
        self._progress, self._bars, self._lock = progress, Bars(), threading.Lock()
        self._shown = progress if isinstance(progress, ShowsStatus) else None
        self._search, self._subject = _Search(), None
        self._id, self._ended = uuid.uuid4().hex, threading.Event()
        self._began, self._wrote, self._written = time.monotonic(), 0.0, ""
        self._run_seconds: float | None = None
        self._thread: threading.Thread | None = None

    def line(self, text: str) -> None:
        """Shows one line about one decision."""
        self._progress.line(text)

    @contextlib.contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[[], None]]:
        """Shows a bar, and notes its steps."""
        with self._bars.bar(label, total) as noted, self._progress.bar(label, total) as shown:

            def advance() -> None:
                noted()
                shown()

            yield advance

    def follow(self, event: events.Event) -> None:
        """Takes an event of the run; a resumed run repeats those of earlier commands."""
        with self._lock:
            paid = self._subject.ledger.paid_calls if self._subject else 0
            self._search = self._search.after(event, self._seconds, paid)

    def open(self, subject: Subject) -> None:
        """Begins to show the run and to write its ``live.json``."""
        self._subject = subject
        self._look()
        self._thread = threading.Thread(target=self._work, name="optimas_jax board", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends that; the file is gone."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._shown is not None:
            self._shown.show(None)
        if self._subject is not None:
            with contextlib.suppress(OSError):
                (self._subject.folder / LIVE).unlink(missing_ok=True)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _work(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        if self._subject is None:
            return
        status = self._status(self._subject)
        if self._shown is not None:
            self._shown.show(status)
        now = time.monotonic()
        text = json.dumps(status.to_json(), ensure_ascii=False)
        still = dataclasses.replace(status, seconds=0.0, left=None, bars=())
        same = json.dumps(still.to_json()) + str([(bar.label, bar.done) for bar in status.bars])
        if now - self._wrote >= (_BEAT_SECONDS if same == self._written else _WRITE_SECONDS):
            self._wrote, self._written = now, same
            with contextlib.suppress(OSError):  # a full disk is told of by what needs it
                write_text(self._subject.folder / LIVE, f"{text}\n", durable=False)

    def _status(self, subject: Subject) -> Status:
        ledger, bars = subject.ledger, self._bars.now
        with self._lock:
            search = self._search
        phase, _, part = ledger.step.partition(": ")
        used = {step: sum(list(roles.values()), Usage()) for step, roles in list(ledger.bill.used.items())}
        calls = sum(usage.calls for usage in used.values())
        in_search = phase == "optimize"
        validated = ledger.bill.waited.get("optimize: validation")  # until it is taken
        if validated and subject.val_runs:
            self._run_seconds = validated / subject.val_runs
        pace = Pace(
            phase=phase,
            iteration=search.iteration,
            iterations=subject.iterations,
            began=search.began,
            ends=search.ends,
            used=used,
            paid=min(1.0, ledger.paid_calls / calls) if calls else 1.0,
            seconds=self._seconds,
            run_seconds=self._run_seconds,
            final_runs=subject.final_runs,
            bars=bars,
        )
        return Status(
            id=self._id,
            title=subject.title,
            step=ledger.step,
            iteration=search.iteration,
            iterations=subject.iterations,
            component=search.component * in_search,
            proposal=search.doing(part) * in_search,
            score=search.score,
            start=search.start,
            spent=ledger.spent,
            steps=used,
            seconds=round(self._seconds, 1),
            left=_rounded(seconds_left(pace, subject.plan)),
            bars=tuple(dataclasses.replace(bar, seconds=round(bar.seconds, 1)) for bar in bars),
        )


@dataclasses.dataclass(frozen=True)
class _Search:
    """What the events of a search say about where it is.

    Attributes:
      iteration: that runs, from 1; 0 before the first one.
      component: of it.
      waiting: proposals of it that the gate has not tested yet, by id, in words.
      score, start: validation score now, and of the default.
      began: seconds since the command began at its beginning.
      ends: beginning and end of iterations that this command paid for.
      paid: completions that this command had paid at its beginning.
    """

    iteration: int = 0
    component: str = ""
    waiting: Mapping[str, str] = dataclasses.field(default_factory=dict)
    score: float | None = None
    start: float | None = None
    began: float = 0.0
    ends: tuple[tuple[float, float], ...] = ()
    paid: int = 0

    def after(self, event: events.Event, seconds: float, paid: int) -> _Search:
        """The same after one more event, which came ``seconds`` after the command began."""
        known = dataclasses.replace
        match event:
            case events.Pick():
                return known(
                    self,
                    iteration=event.iteration + 1,
                    component=event.component,
                    waiting={},
                    began=seconds,
                    paid=paid,
                )
            case events.Proposal():
                words = f"{event.kind}: {in_words(event.value)}"[:_LONGEST]
                return known(self, waiting={**self.waiting, event.id: words})
            case events.Gate():
                rest = {name: words for name, words in self.waiting.items() if name != event.id}
                return known(self, waiting=rest)
            case events.Curve():
                start = event.val_score if event.at == "start" else self.start
                ends = self.ends
                if event.at == "iteration" and paid > self.paid:
                    ends = (*ends, (self.began, seconds))
                return known(self, score=event.val_score, start=start, ends=ends)
        return self

    def doing(self, part: str) -> str:
        """What is proposed or tried in a part of an iteration."""
        if part == "gate":
            return next(iter(self.waiting.values()), "")
        return _DOING.get(part, "")


def in_words(value: Value) -> str:
    """A value in one line."""
    match value:
        case Prompt():
            shown = f" (and {len(value.demos)} demonstrations)" if value.demos else ""
            return value.instruction[:_LONGEST] + shown
        case Hyperparameters():
            return ", ".join(f"{name} = {setting}" for name, setting in value.settings.items())
        case Choice():
            return value.name
        case PerInstance():
            return "the best for each input"
    return type(value).__name__.lower()


def planned_steps(folder: Path, config: RunConfig) -> Mapping[str, Usage] | None:
    """Expected costs by step of the plan in a run folder; None where there is none of these settings."""
    try:
        plan: Any = read_file(folder / PLAN)
    except FolderError:
        return None
    if not plan or plan["config"] != key_of(config):
        return None
    return {step: Usage.from_json(costs["expected"]) for step, costs in plan["host"]["steps"].items()}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
