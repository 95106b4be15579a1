"""Weights & Biases: the user's active run, or a run of the tracker's own in the project ``optimas_jax``."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from optimas_jax.core.folder.events import Begin, End
from optimas_jax.report.trackers.extras import check_installed, check_options, library
from optimas_jax.report.trackers.points import ITERATION, TOKENS, Entry, settings_of, title_of
from optimas_jax.report.trackers.tracker import TrackerError
from optimas_jax.report.trackers.wandb_file import last_number

_PROJECT = "optimas_jax"
_NUMBER = "event"  # key in a row: number of the event in the journal
_FLUSH = 0.1  # seconds between two writings of W&B's process; by default 15, which a killed command would lose
_WRITTEN = 3 * _FLUSH  # seconds until a row is on disk


class Wandb:
    """Logs a row for each event, with its position on every axis."""

    def __init__(self, **options: Any):
        """``options``: options of ``wandb.init``, such as ``project`` and ``entity``."""
        self._options = options

    def check(self) -> None:
        check_installed("wandb")
        wandb = library("wandb")
        check_options("wandb", wandb.init, self._options)
        mode = self._options.get("mode") or os.environ.get("WANDB_MODE") or wandb.setup().settings.mode
        if wandb.run is None and mode in ("online", "shared", "run") and not wandb.login(prompt=False, verify=False):
            raise TrackerError(
                "wandb has no key of yours: run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline, which "
                "keeps the run on this machine"
            )

    def begin(self, begin: Begin, known: str) -> str:
        active = library("wandb").run
        self._own, self._run = active is None, active or self._init(begin, known)
        if not self._own:
            self._run.config.update({_PROJECT: settings_of(begin)}, allow_val_change=True)
        self._last = self._last_number(begin, known) if self._own and known else -1
        self._run.define_metric(ITERATION, hidden=True)
        self._run.define_metric(TOKENS, hidden=True)
        self._axes: dict[str, str] = {}
        return self._run.id

    def log(self, one: Entry) -> None:
        """Logs the scalars and texts of an event as a row, unless the row is already there."""
        if 0 <= one.number <= self._last:  # written, and the process was killed before that was recorded
            return
        row: dict[str, Any] = dict(one.texts)
        for point in one.points:
            if point.name not in self._axes:
                self._axes[point.name] = point.axis
                self._run.define_metric(point.name, step_metric=point.axis)
            row |= {point.name: point.value, point.axis: point.step}
        if row:
            positions = {ITERATION: one.position.iteration, TOKENS: one.position.tokens, _NUMBER: one.number}
            self._run.log({**positions, **row})
            if self._own:
                time.sleep(_WRITTEN)

    def end(self, end: End) -> None:
        if self._own:
            self._run.finish(exit_code=0 if end.finished else 1)

    def _last_number(self, begin: Begin, known: str) -> int:
        folder = self._options.get("dir") or os.environ.get("WANDB_DIR", begin.folder)
        online = self._run.summary.get(_NUMBER, -1)
        return max(int(online), last_number(Path(folder), known, _NUMBER))

    def _init(self, begin: Begin, known: str) -> Any:
        wandb = library("wandb")
        options = {
            "project": os.environ.get("WANDB_PROJECT", _PROJECT),
            "name": title_of(begin),
            "dir": os.environ.get("WANDB_DIR", begin.folder),
            "config": settings_of(begin),
            # The console is the run's: W&B neither writes to it nor keeps what it shows. The command line, which W&B
            # would keep too, may hold keys.
            "settings": wandb.Settings(
                console="off", silent=True, x_disable_meta=True, x_transaction_log_flush_interval=_FLUSH
            ),
            **self._options,
        }
        if known:
            options |= {"id": known, "resume": "allow"}
        return wandb.init(**options)
