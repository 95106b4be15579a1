"""The run folder: its configuration, an append-only journal, results. Files are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.core.schema import to_dict
from optimas_jax.core.selection import UNTRAINED
from optimas_jax.core.types import StopRun, thaw
from optimas_jax.core.values import Adapter, Configuration, PerInstance, plain_values
from optimas_jax.llm.tape import Tape
from optimas_jax.loop.config import RunConfig, differences, parse_config

TAPE, LOCK = "tape.sqlite", ".lock"
BEST, UNCONFIRMED = "best", "unconfirmed"  # the result, and the final state if it was not confirmed
ADAPTERS = "adapters"  # of a run folder, and of its best/
CHECKPOINTS, REWARDS = "checkpoints", "rewards"  # local rewards in a run folder, and in its best/
_CLOCK = ("time", "seconds")  # fields of an event that differ from one execution to the next
RESOURCES = ("concurrency", "server", "anthropic", "prices", "budget")  # fields on which no result depends
# Fields that may differ from run to run in one folder: of stages whose results have files of their own, too.
_FREE = (*RESOURCES, "align", "probe", "refresh", "evaluate")


class FolderError(StopRun):
    """A run folder that cannot be used; the message has the reason and the way out."""


def write_json(path: Path, data: Any) -> None:
    """Writes JSON in one step: a reader sees the old file or the new one, never a part."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


class RunFolder:
    """The folder of a run: its configuration, journal and results."""

    def __init__(self, workdir: Path, config: RunConfig):
        """Creates the folder, or checks that it belongs to the same configuration, and keeps other processes out until
        ``close``.

        Raises:
          FolderError: if it belongs to another one (names every field that differs), another process runs in it, or it
            cannot be written.
        """
        self.path = workdir.resolve()
        self._lock: int | None = None
        self._cursor = 0
        try:
            self._events = self._open(json.loads(json.dumps(to_dict(config))))
        except Exception:
            self.close()
            raise

    def _open(self, plain: dict[str, Any]) -> list[dict[str, Any]]:
        """Locks and checks the folder; returns the events of earlier commands."""
        file = self.path / "config.json"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.path)
            if file.is_file():
                old = json.loads(file.read_text(encoding="utf-8"))
                if not isinstance(old, dict):
                    raise ValueError(f"it holds {type(old).__name__}")
                self._check(old, plain)
                if old != plain:
                    self.write("config.json", plain)  # of the last command: free fields may differ
            else:
                self.write("config.json", plain)
            return self._read_events()
        except ValueError as error:  # not UTF-8, not JSON, not an object
            raise FolderError(f"{file} is damaged ({error}): use another --workdir") from error
        except OSError as error:
            raise FolderError(f"cannot write to {self.path} ({error})") from error

    def close(self) -> None:
        """Releases the folder's lock, which the end of the process releases too."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def is_unused(self) -> bool:
        """Whether every command so far ended before it paid for anything."""
        if (self.path / "journal.jsonl").is_file():
            return False
        if not (self.path / TAPE).is_file():
            return True
        with contextlib.closing(Tape(self.path / TAPE)) as tape:
            return not len(tape)

    def _check(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        if "align" not in old:
            raise FolderError(
                f"{self.path} was made by an earlier version, whose work cannot be resumed: use another --workdir (its "
                "best/ can still be evaluated: --stage=evaluate --config.evaluate.folder=.../best)"
            )
        changed = changed_fields(old, new, _FREE)
        if changed and not self.is_unused():
            raise FolderError(
                f"{self.path} belongs to another configuration:\n  "
                + "\n  ".join(changed)
                + "\nUse another --workdir, or "
                "the same configuration to resume"
            )

    def write(self, name: str, data: Any) -> None:
        """Writes JSON in one step; raises ``FolderError`` if that fails."""
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
        """JSON of a file in the folder, or None if there is none."""
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
        """Appends one event. A resumed run emits its old events again; they are not written twice."""
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

    def save_best(self, configuration: Configuration, info: Mapping[str, Any], folder: str = BEST) -> None:
        """Writes a portable result: ``configuration.json`` and the adapters and local rewards that it names."""
        for source, carried, name in _parts(configuration):
            self.copy_in(self.path / source / name, self.path / folder / carried)
        self.write(f"{folder}/configuration.json", {"configuration": configuration.to_json(), **info})

    def take_parts(self, configuration: Configuration, best: Path) -> None:
        """Copies the adapters and local rewards that a configuration names from its ``best/`` folder. A missing local
        reward is skipped; scoring under it raises."""
        for target, carried, name in _parts(configuration):
            if (best / carried / name).is_dir() or target == ADAPTERS:
                self.copy_in(best / carried / name, self.path / target)

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


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any], free: Sequence[str]) -> list[str]:
    """``loop.config.differences`` of two configurations, but for the sections in ``free``."""
    before, after = ({name: config[name] for name in config if name not in free} for config in (old, new))
    return differences(before, after)


def config_json(folder: Path) -> dict[str, Any] | None:
    """The configuration of a run folder as plain data, or None where there is none.

    Raises:
      FolderError: it is damaged.
    """
    file = folder / "config.json"
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except ValueError as error:
        raise FolderError(f"{file} is damaged ({error})") from error


def config_of(folder: Path) -> RunConfig:
    """The configuration of a run folder.

    Raises:
      FolderError: the folder has none.
      ConfigError: it is not of this version.
    """
    plain = config_json(folder)
    if plain is None:
        raise FolderError(f"{folder} is no run folder: it has no config.json")
    return parse_config(plain)


def _parts(configuration: Configuration) -> list[tuple[str, str, str]]:
    """Local rewards and adapters of a configuration, as (folder in a run folder, folder in ``best/``, name)."""
    choices = [value for value in configuration.values() if isinstance(value, PerInstance)]
    parts = [(CHECKPOINTS, REWARDS, value.reward) for value in choices if value.reward not in UNTRAINED]
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
