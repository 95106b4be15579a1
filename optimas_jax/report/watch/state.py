"""The state of a run for browsers: plain data from its folder, which may be written, damaged or gone meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.core.folder import events
from optimas_jax.core.folder.control import is_locked
from optimas_jax.core.folder.files import FolderError, read_file
from optimas_jax.core.folder.live import Status, read_status
from optimas_jax.core.text.secrets import shareable
from optimas_jax.core.types import valid_text
from optimas_jax.core.usage import Usage
from optimas_jax.report.live.text import plain
from optimas_jax.report.live.view import clock, eta, score, spent, where
from optimas_jax.report.page.text import interval, is_number, number, signed

REPORT = "report.html"
_LONGEST = 300  # letters of a text
_DECISIONS = 100  # decisions that are shown: the last ones
_POINTS = 500  # points of the curve that are shown
_SILENT_SECONDS = 30.0  # without a change of ``live.json``: the command is gone, if no lock shows it
_BUSY = ("running", "pausing", "paused", "stopping")  # states of a command that runs


@dataclasses.dataclass(frozen=True)
class Look:
    """A look at a run folder.

    Attributes:
      folder: of the run.
      is_there: whether the folder exists.
      status: what its command does; None without one.
      runs: whether that command is still running; a killed command is not.
      results, unfinished, record, costs: ``results.json``, ``unfinished.json``, ``run.json``, ``spent.json``.
      events: of the journal.
      report: version of ``report.html``, which changes with the file; "" without it.
      problems: messages about files that cannot be read.
    """

    folder: Path
    is_there: bool = False
    status: Status | None = None
    runs: bool = False
    results: Mapping[str, Any] | None = None
    unfinished: Mapping[str, Any] | None = None
    record: Mapping[str, Any] | None = None
    costs: Mapping[str, Usage] = dataclasses.field(default_factory=dict)
    events: Sequence[events.Event] = ()
    report: str = ""
    problems: tuple[str, ...] = ()


class Looker:
    """Looks at a folder repeatedly; files that have not changed are not read again."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._read: dict[str, tuple[str, Any]] = {}  # by file: its version and its content
        self._beat, self._heard = "", 0.0

    def look(self) -> Look:
        """Reads what has changed; never raises for the content of the folder."""
        problems: list[str] = []

        def read_changed(name: str, read: Callable[[Path], Any], nothing: Any = None) -> Any:
            version = _version(self._folder / name)
            if not version:
                return nothing
            if self._read.get(name, ("", None))[0] != version:
                try:
                    self._read[name] = version, read(self._folder / name)
                except (FolderError, ValueError, KeyError, TypeError) as error:
                    problems.append(_text(str(error)))
                    return self._read.get(name, ("", nothing))[1]
            return self._read[name][1]

        status = read_changed("live.json", lambda path: read_status(path.parent))
        costs = read_changed("spent.json", read_file) or {}
        return Look(
            folder=self._folder,
            is_there=self._folder.is_dir(),
            status=status,
            runs=status is not None and self._is_alive(),
            results=read_changed("results.json", read_file),
            unfinished=read_changed("unfinished.json", read_file),
            record=read_changed("run.json", read_file),
            costs={step: Usage.from_json(row) for step, row in costs.items()},
            events=read_changed("journal.jsonl", lambda path: events.read_events(path.parent), ()),
            report=_version(self._folder / REPORT),
            problems=tuple(problems),
        )

    def _is_alive(self) -> bool:
        """Whether the command that writes the status is running: it holds the lock of the folder, or it writes."""
        beat = _version(self._folder / "live.json")
        if beat != self._beat:
            self._heard = time.monotonic() if self._beat else -_SILENT_SECONDS
            self._beat = beat
        locked = is_locked(self._folder)
        return bool(locked) or time.monotonic() - self._heard < _SILENT_SECONDS


def _version(path: Path) -> str:
    """A text that changes with a file; "" without a file."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return ""
    return f"{status.st_mtime_ns}-{status.st_size}-{status.st_ino}"


def to_json(look: Look) -> dict[str, Any]:
    """A look as the page shows it; texts are one line each, without secrets."""
    status = look.status
    shown = status or Status(id="", title="")
    search = _search(look.events)
    if status is None and search:
        shown = dataclasses.replace(shown, score=search[-1].val_score, start=search[0].val_score)
    bill = shown.steps or look.costs
    total = sum(bill.values(), Usage())
    state = state_of(look)
    return {
        "id": shown.id,
        "folder": _text(str(look.folder)),
        "title": _text(shown.title or _title(look)),
        "state": state,
        "says": _says(look, state),
        "can": _can(state),
        "where": _text(where(shown)) if status else "",
        "cells": {
            "component": _text(shown.component),
            "proposal": _text(shown.proposal),
            "score": score(shown),
            "spent": spent(shown.spent if status else total),
            "time": clock(shown.seconds) if status else "-",
            "left": eta(shown) if look.runs else "-",
        },
        "bars": [{"label": _text(bar.label), "done": bar.done, "total": bar.total} for bar in shown.bars * look.runs],
        "curve": _curve(search, total if look.runs else None),
        "bill": [
            {"step": _text(step), "calls": usage.calls, "tokens": usage.tokens, "usd": round(usage.usd, 6)}
            for step, usage in bill.items()
        ],
        "total": {"calls": total.calls, "tokens": total.tokens, "usd": round(total.usd, 6)},
        "decisions": [_text(line) for line in map(decision, look.events) if line][-_DECISIONS:],
        "report": look.report,
        "problems": list(look.problems),
    }


def state_of(look: Look) -> str:
    """``absent``, ``begun``, ``running``, ``pausing``, ``paused``, ``stopping``, ``killed``, ``stopped`` or
    ``finished``."""
    if look.runs and look.status is not None:
        return look.status.state
    if look.status is not None:
        return "killed"
    if look.results is not None:
        return "finished"
    if look.unfinished is not None:
        return "stopped"
    return "begun" if look.is_there and look.record is not None else "absent"


def _can(state: str) -> list[str]:
    """Wishes that a run in a state accepts."""
    return {"running": ["pause", "stop"], "pausing": ["resume", "stop"], "paused": ["resume", "stop"]}.get(state, [])


def _says(look: Look, state: str) -> str:
    """A sentence about the state."""
    go_on = _text((look.unfinished or {}).get("go_on", ""))
    resumes = f"the same command resumes: {go_on}" if go_on else "the same command resumes"
    return {
        "absent": "no run here yet: this page waits for it",
        "begun": "no command is at work here",
        "running": "running",
        "pausing": "pausing: what is in flight ends first",
        "paused": "paused: the process waits, and nothing is paid for until it is resumed",
        "stopping": "stopping: what was paid for is written",
        "killed": f"the command is gone without an end: {resumes}",
        "stopped": f"stopped ({_text((look.unfinished or {}).get('reason', ''))}): {resumes}",
        "finished": "finished",
    }[state]


def _title(look: Look) -> str:
    results = look.results
    return f"{results['benchmark']}:{results['variant']}" if results else look.folder.name


def _search(journal: Sequence[events.Event]) -> list[events.Curve]:
    return [event for event in journal if isinstance(event, events.Curve) and is_number(event.val_score)]


def _curve(points: Sequence[events.Curve], now: Usage | None) -> list[list[float]]:
    """Tokens and score, step by step; while the run goes on, the last point is its current state."""
    curve = [[point.spent.tokens, point.val_score] for point in points]
    step = max(1, -(-len(curve) // _POINTS))
    curve = curve[::-1][::step][::-1]
    if curve and now is not None and now.tokens > curve[-1][0]:
        curve.append([now.tokens, curve[-1][1]])
    return curve


def decision(event: events.Event) -> str:
    """An event in one line; "" for an event that decides nothing."""
    match event:
        case events.Pick():
            return f"iteration {event.iteration + 1}: {event.component}"
        case events.Gate():
            verdict = "accepted" if event.accepted else "refused"
            numbers = f"{signed(event.val_gain)} on validation, p = {number(event.p_value)}, n = {event.n}"
            return f"{verdict}: {event.component}, {event.kind}, {numbers}"
        case events.Confirmation():
            return f"confirmation: {event.verdict}"
        case events.SearchEnd():
            return f"the search ended: {event.reason}"
        case events.Evaluation():
            mean, bounds = event.gain.get("mean"), event.gain.get("ci95")
            return f"{event.split}: gain {signed(mean)} {interval(bounds)}, n = {event.n}"
    return ""


def _text(text: str) -> str:
    with contextlib.suppress(UnicodeError):
        return plain(valid_text(shareable(text)))[:_LONGEST]
    return ""
