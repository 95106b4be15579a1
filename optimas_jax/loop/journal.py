"""The run folder: its configuration, an append-only journal, results. Files are written whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimas_jax.core.plain import to_dict
from optimas_jax.core.types import StopRun, thaw
from optimas_jax.core.values import Adapter, Configuration, PerInstance, plain_values
from optimas_jax.loop.config import RunConfig, differences

TAPE, LOCK = "tape.sqlite", ".lock"
ADAPTERS = "adapters"  # of a run folder, and of its best/
CHECKPOINTS, REWARDS = "checkpoints", "rewards"  # local rewards in a run folder, and those that its best/ needs
_CLOCK = ("time", "seconds")  # fields of an event that differ from one execution to the next
# Fields that may differ from run to run in one folder: how fast, where and for how much models answer, not which.
_FREE = ("concurrency", "evaluate", "server", "anthropic", "prices", "budget")


class FolderError(StopRun):
    """A run folder that cannot be used; says why and what to do."""


def write_json(path: Path, data: Any) -> None:
    """Writes JSON in one step: a reader sees the old file or the new one, never a part."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


class RunFolder:
    """Everything a run leaves on disk."""

    def __init__(self, workdir: Path, config: RunConfig):
        """Creates the folder, or checks that it belongs to the same configuration, and keeps other processes out until
        ``close``.

        Raises:
          FolderError: if it belongs to another one (names every field that differs), another process runs in it, or it
            cannot be written.
        """
        self.path = workdir.resolve()
        plain = json.loads(json.dumps(to_dict(config)))
        file = self.path / "config.json"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.path)
            if file.is_file():
                old = json.loads(file.read_text(encoding="utf-8"))
                if not isinstance(old, dict):
                    raise ValueError(f"it holds {type(old).__name__}")
                self._check(old, plain)
            else:
                self.write("config.json", plain)
            self._events = self._read_events()
        except ValueError as error:  # not UTF-8, not JSON, not an object
            raise FolderError(f"{file} is damaged ({error}): use another --workdir") from error
        except OSError as error:
            raise FolderError(f"cannot write to {self.path} ({error})") from error
        self._cursor = 0

    def close(self) -> None:
        """Lets other processes use the folder, as does the end of this one, however it ends."""
        os.close(self._lock)

    def _check(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        for name in _FREE:
            old.pop(name, None)
            new.pop(name, None)
        changed = differences(old, new)
        if changed:
            raise FolderError(
                f"{self.path} belongs to another configuration:\n  "
                + "\n  ".join(changed)
                + "\nUse another --workdir, or "
                "the same configuration to resume"
            )

    def write(self, name: str, data: Any) -> None:
        """``write_json``, with a ``FolderError`` that says what to do."""
        path = self.path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, data)
        except OSError as error:
            raise FolderError(
                f"cannot write {path} ({error}). What was paid for is on the tape: make room and run the same command "
                "again"
            ) from error

    def read(self, name: str) -> Any | None:
        """JSON written before, or None."""
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except ValueError as error:
            raise FolderError(
                f"{path} is damaged ({error}): delete it and run the stage that makes it again"
            ) from error

    def _read_events(self) -> list[dict[str, Any]]:
        path = self.path / "journal.jsonl"
        if not path.is_file():
            return []
        events: list[dict[str, Any]] = []
        data = path.read_bytes()
        for line in data.split(b"\n"):  # only line feeds end an event: texts may hold other line separators
            try:
                events.append(json.loads(line.decode()))
            except ValueError:
                break  # behind the last line end, or the line that a killed process left half-written
        whole = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events).encode()
        if whole != data:
            path.with_suffix(".partial").write_bytes(whole)
            path.with_suffix(".partial").replace(path)
        return events

    def emit(self, event: str, **fields: Any) -> None:
        """Appends one event. A resumed run passes its old events again: those are recognised, not written twice."""
        entry = json.loads(json.dumps({"event": event, **thaw(fields)}, ensure_ascii=False))
        if self._cursor < len(self._events):
            if _without_clock(self._events[self._cursor]) == _without_clock(entry):
                self._cursor += 1
                return
            self._cursor = len(self._events)  # another stage, or a changed program: go on behind what is there
        try:
            with (self.path / "journal.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({**entry, "time": round(time.time(), 3)}, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise FolderError(f"cannot write the journal in {self.path} ({error})") from error

    def save_best(self, configuration: Configuration, info: Mapping[str, Any]) -> None:
        """Writes the portable result: ``best/configuration.json``, and beside it the adapters and local rewards that it
        names."""
        for made, carried, name in _parts(configuration):
            self.copy_in(self.path / made / name, self.path / "best" / carried)
        self.write("best/configuration.json", {"configuration": configuration.to_json(), **info})

    def take_parts(self, configuration: Configuration, best: Path) -> None:
        """Copies from a ``best/`` folder what its configuration names, so that this run can use it. A local reward that
        is not there is left to whoever needs it."""
        for made, carried, name in _parts(configuration):
            if (best / carried / name).is_dir() or made == ADAPTERS:
                self.copy_in(best / carried / name, self.path / made)

    def copy_in(self, part: Path, folder: Path) -> None:
        """Copies an adapter or a checkpoint into a folder, in one step; raises ``FolderError`` if that fails."""
        target, partial = folder / part.name, folder / f".{part.name}.partial"
        if target.is_dir():
            return
        try:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(part, partial)
            partial.rename(target)
        except OSError as error:
            raise FolderError(f"cannot copy {part} to {folder} ({error})") from error


def _lock(folder: Path) -> int:
    """A descriptor that holds the folder's lock; one process may hold it many times.

    Raises:
      FolderError: if another process holds it.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            os.close(descriptor)
            raise FolderError(
                f"another process runs in {folder}: wait for its end, or use another --workdir"
            ) from error
        # else a file system without locks, where nothing can be known
    return descriptor


def _parts(configuration: Configuration) -> list[tuple[str, str, str]]:
    """What a configuration names beside itself, as (folder in a run folder, folder in ``best/``, name)."""
    parts = [(CHECKPOINTS, REWARDS, value.reward) for value in configuration.values() if isinstance(value, PerInstance)]
    for value in configuration.values():
        adapters = [one.digest for one in plain_values(value) if isinstance(one, Adapter)]
        parts += [(ADAPTERS, ADAPTERS, name) for name in adapters if name]
    return parts


def _without_clock(event: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in _CLOCK}


def load_best(folder: Path) -> Configuration:
    """Reads a ``best/`` folder.

    Raises:
      FolderError: if there is none, or it is damaged.
    """
    path = folder / "configuration.json"
    try:
        return Configuration.from_json(json.loads(path.read_text(encoding="utf-8"))["configuration"])
    except FileNotFoundError as error:
        raise FolderError(f"no {path}: --stage=optimize makes it") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FolderError(f"{path} is not a saved configuration ({type(error).__name__}: {error})") from error
