"""MLflow: the user's active run, or a run of the tracker's own in the active experiment."""

from __future__ import annotations

import sys
import time
from typing import Any

from optimas_jax.core.folder.events import Begin, End
from optimas_jax.report.trackers.extras import check_installed, check_options, library
from optimas_jax.report.trackers.points import Entry, settings_of, title_of

_MOST = 100  # parameters of a request
_LONGEST = 500  # letters of a parameter
_TAG = "optimas_jax"


class Mlflow:
    """Scalars are metrics, texts are files ``NAME/NUMBER.txt`` of the run, by their number in the journal."""

    def __init__(self, **options: Any):
        """``options``: options of ``mlflow.start_run``, such as ``experiment_id`` and ``tags``."""
        self._options, self._active = options, _active_run()

    def check(self) -> None:
        check_installed("mlflow")
        if self._options:
            check_options("mlflow", library("mlflow").start_run, self._options)
        self._active = self._active or _active_run()

    def begin(self, begin: Begin, known: str) -> str:
        mlflow = library("mlflow")
        self._client = mlflow.MlflowClient()
        self._own = not self._active
        if self._own:
            start = {"run_id": known} if known else {"run_name": title_of(begin), **self._options}
            self._id = mlflow.start_run(**start).info.run_id
        else:
            self._id = self._active
        if not known:  # parameters never change
            self._log_settings(begin)
        return self._id

    def log(self, one: Entry) -> None:
        entities, now = library("mlflow.entities"), round(time.time() * 1000)
        for name, text in one.texts.items():
            self._client.log_text(self._id, text, f"{name}/{max(one.number, 0):06d}-{one.event}.txt")
        if one.points:
            metrics = [entities.Metric(point.name, point.value, now, point.step) for point in one.points]
            self._client.log_batch(self._id, metrics=metrics, synchronous=True)

    def end(self, end: End) -> None:
        if self._own:
            library("mlflow").end_run("FINISHED" if end.finished else "FAILED")

    def _log_settings(self, begin: Begin) -> None:
        """Logs settings as parameters; in a user's run their names have a prefix."""
        entities = library("mlflow.entities")
        prefix = "" if self._own else f"{_TAG}."
        params = [
            entities.Param(f"{prefix}{name}", str(value)[:_LONGEST]) for name, value in settings_of(begin).items()
        ]
        for first in range(0, len(params), _MOST):
            self._client.log_batch(self._id, params=params[first : first + _MOST], synchronous=True)


def _active_run() -> str:
    """The id of the run that is active in this thread; "" without one."""
    mlflow = sys.modules.get("mlflow")
    active = None if mlflow is None else mlflow.active_run()
    return "" if active is None else active.info.run_id
