"""The folder of a sweep: its points, a lock, and the results of points in their own folders."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.core.folder.files import FolderError, read_file, read_rows, write_json
from optimas_jax.core.schema import to_dict
from optimas_jax.loop.journal import RESOURCES, RESULTS, changed_fields
from optimas_jax.sweep.locks import LOCK, SECONDS, hold
from optimas_jax.sweep.points import Point, SweepError

SWEEP, SHARED = "sweep.json", "shared"  # the points with their configurations, and the results that they share
_LOCK_SECONDS = SECONDS  # that points of a killed sweep may take to end


@contextlib.contextmanager
def open_sweep(folder: Path, points: Sequence[Point], check: Callable[[Sequence[Point]], None]) -> Iterator[int]:
    """Makes the folder of a sweep, or checks that it is the same sweep, and keeps other sweeps out.

    Args:
      check: raises ``ValueError`` for points that cannot run; called with the points that are new to the folder.

    Yields:
      The descriptor of the lock. Points inherit it: while one of them lives, the folder is locked.

    Raises:
      SweepError: if the folder belongs to another sweep, or another sweep runs in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK).touch()
    except OSError as error:
        raise SweepError(f"cannot write to {folder} ({error}): use another --workdir") from error
    with contextlib.ExitStack() as held:
        try:
            lock = held.enter_context(hold(folder, _LOCK_SECONDS))
        except TimeoutError:
            raise SweepError(f"another sweep runs in {folder}: wait for its end, or use another --workdir") from None
        configs = {point.name: json.loads(json.dumps(to_dict(point.config))) for point in points}
        old = _read_points(folder / SWEEP, configs)
        check([point for point in points if point.name not in old])
        write_json(folder / SWEEP, {"points": configs})
        yield lock


def _read_points(path: Path, configs: dict[str, Any]) -> dict[str, Any]:
    """Configurations of the points that the file holds, by name.

    A sweep may grow: further seeds, further values.

    Raises:
      SweepError: for points that are not among ``configs``, or have other configurations there.
    """
    if not path.is_file():
        return {}
    try:
        old = (read_file(path) or {})["points"]
    except FolderError as error:
        raise SweepError(str(error)) from error
    missing = [f"it has the point {name}" for name in old if name not in configs]
    kept = [name for name in configs if name in old]
    changed = [line for name in kept for line in changed_fields(old[name], configs[name], RESOURCES)]
    differences = [*missing[:3], *list(dict.fromkeys(changed))[:5]]
    if not differences:
        return old
    raise SweepError(
        f"{path.parent} belongs to another sweep:\n  "
        + "\n  ".join(differences)
        + "\nUse another --workdir, or the same "
        "sweep to resume"
    )


def read_result(folder: Path, name: str) -> dict[str, Any] | None:
    """``results.json`` of a point, or None if it has not ended.

    Raises:
      SweepError: it is damaged.
    """
    path = folder / name / RESULTS
    try:
        # The folder is listed, as a network file system may still report the file itself as missing.
        return read_file(path) if RESULTS in os.listdir(path.parent) else None
    except FileNotFoundError:
        return None
    except FolderError as error:
        raise SweepError(f"{error}; the same command makes it again") from error


def read_progress(folder: Path, name: str) -> str:
    """The last event of a point's journal, as text, or ""."""
    path = folder / name / "journal.jsonl"
    with contextlib.suppress(OSError, FolderError, IndexError):
        event = read_rows(path)[-1]
        return f"{event['event']} {event['iteration'] + 1}" if "iteration" in event else event["event"]
    return ""
