"""Trackers by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from optimas_jax.core.running.tracking import TRACKERS, tracker_names
from optimas_jax.core.text.json_text import shown
from optimas_jax.core.text.nearest import did_you_mean
from optimas_jax.report.trackers.mlflow import Mlflow
from optimas_jax.report.trackers.otel import OpenTelemetry
from optimas_jax.report.trackers.tensorboard import TensorBoard
from optimas_jax.report.trackers.tracker import Library, Tracker, TrackerError
from optimas_jax.report.trackers.wandb import Wandb

_LIBRARIES: Mapping[str, Callable[..., Library]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": Mlflow,
    "otel": OpenTelemetry,
}


def tracker(name: str, **options: Any) -> Tracker:
    """A callback of ``optimize`` that logs the run as it happens, in place of the tracker of the same name in
    ``config.trackers``.

    Args:
      name: ``tensorboard``, ``wandb``, ``mlflow`` or ``otel``.
      options: for ``wandb`` the options of ``wandb.init``; for ``mlflow`` the options of ``mlflow.start_run``; for
        ``otel`` ``provider`` (a ``TracerProvider``; by default the global one) and ``content`` (whether messages are
        recorded).

    Raises:
      TrackerError: the name or an option is unknown, or the library is missing.

    Example:
      ```python
      oj.optimize(rag, metric, rows, callbacks=[oj.tracker("wandb", project="rag")])
      ```
    """
    if not isinstance(name, str) or name not in TRACKERS:
        near = did_you_mean(name, TRACKERS) or ";"
        raise TrackerError(f"there is no tracker {shown(name)}{near} known: {', '.join(TRACKERS)}")
    library = _LIBRARIES[name]
    try:
        inspect.signature(library).bind(**options)
    except TypeError as error:
        raise TrackerError(f"tracker({name!r}): {error}") from None
    new_tracker = Tracker(name, library(**options))
    new_tracker.check()
    return new_tracker


def with_trackers(callbacks: Iterable[Callable[..., Any]], names: str) -> tuple[Callable[..., Any], ...]:
    """Callbacks and the trackers of ``config.trackers`` that are not among them, each checked.

    Raises:
      TrackerError: the library of a tracker cannot be used.
    """
    given = tuple(callbacks)
    kinds = [callback.__name__ for callback in given if isinstance(callback, Tracker)]
    for callback in given:
        if isinstance(callback, Tracker):
            callback.check()
    return (*given, *(tracker(name) for name in tracker_names(names) if name not in kinds))
