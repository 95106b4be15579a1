"""The run folder: its configuration, an append-only journal, results. Files are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.core.folder.control import LOCK
from optimas_jax.core.folder.events import Event, to_json
from optimas_jax.core.folder.files import (
    DAMAGED,
    FolderError,
    append_lines,
    json_line,
    mend_lines,
    read_file,
    replace_line,
    write_json,
    write_text,
)
from optimas_jax.core.schema import to_dict
from optimas_jax.core.selection import UNTRAINED
from optimas_jax.core.text.secrets import without_keys
from optimas_jax.core.values import Adapter, Configuration, PerInstance, plain_values
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.loop.config import RunConfig, differences, parse_config

PLAN = "plan.json"  # written by ``--plan``
TAPE, JOURNAL, RUN = "tape.sqlite", "journal.jsonl", "run.json"
CONFIGURATION, RESULTS = "configuration.json", "results.json"  # in a best/, and from the run's own evaluation
BEST, UNCONFIRMED = "best", "unconfirmed"  # the result, and the final state if it was not confirmed
UNFINISHED = "unfinished.json"  # in a run folder until it has results
ADAPTERS = "adapters"  # in a run folder, and in its best/
CHECKPOINTS, REWARDS = "checkpoints", "rewards"  # local rewards in a run folder, and in its best/
OPTIMIZED, REFRESHED_REWARD = "optimized.json", "refreshed.json"  # result of the search; a reward trained after it
_CLOCK = ("time", "seconds")  # fields of an event that differ from one execution to the next
_LATER = ("alignment", "evaluation")  # events of stages that can be run without those before them
# Fields on which no result depends.
RESOURCES = ("concurrency", "mesh", "server", "anthropic", "prices", "budget", "stop_grace", "trackers")
# Fields that may differ from command to command in one folder: also the stages whose results have files of their own.
_FREE = (*RESOURCES, "align", "probe", "refresh", "evaluate")


def is_unused(workdir: Path) -> bool:
    """Whether every command in a run folder so far ended before it paid for anything."""
    if (workdir / JOURNAL).is_file():
        return False
    if not (workdir / TAPE).is_file():
        return True
    with contextlib.closing(Tape(workdir / TAPE)) as tape:
        return not len(tape)


class RunFolder:
    """The folder of a run: its configuration, journal and results.

    Attributes:
      path: path of the folder.
      first: the configuration of the first command, as plain data.
      tell: callback for new events.
      follow: callback for all events.
      last_written: when a command before this one wrote to the journal or the tape (``time.time``); 0 if none did.
      events: events of earlier commands in the journal; a damaged line is ``{DAMAGED: text}``.
      damaged: number of damaged lines.
    """

    def __init__(
        self,
        workdir: Path,
        config: RunConfig,
        tell: Callable[[Event], None] = lambda event: None,
        follow: Callable[[Event], None] = lambda event: None,
    ):
        """Creates the folder, or checks that it belongs to the same configuration, and keeps other processes out until
        ``close``.

        Args:
          tell: callback for new events, once they are written to the journal.
          follow: callback for all events, also those that a resumed run repeats.

        Raises:
          FolderError: if it belongs to another configuration (names every field that differs), another process runs in
            it, or it cannot be written.
        """
        self.path = workdir.resolve()
        self.tell, self.follow = tell, follow
        self._lock: int | None = None
        self._cursor = 0
        self.last_written = _last_written(self.path)
        try:
            self.events = self._open(json.loads(json.dumps(to_dict(config))))
            self.damaged = sum(DAMAGED in event for event in self.events)
        except Exception:
            self.close()
            raise

    def _open(self, plain: dict[str, Any]) -> list[dict[str, Any]]:
        """Locks and checks the folder; returns the events of earlier commands."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.path)
            known = [read_file(path) for path in config_files(self.path)]
            if known:
                self._check(known[0], plain)
            self.first = plain if not known or (plain not in known and self.is_unused()) else known[0]
            if self.first is plain:
                (self.path / RUN).unlink(missing_ok=True)  # from a command that ended before it paid for anything
                self.write("config.json", plain)
            elif plain != known[-1]:  # free fields differ from the command before
                self.write(f"config-{len(known) + 1}.json", plain)
            return mend_lines(self.path / JOURNAL)
        except OSError as error:
            raise FolderError(f"cannot write to {self.path} ({error})") from error

    def close(self) -> None:
        """Releases the folder's lock, which the end of the process releases too."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def is_unused(self) -> bool:
        """Whether every command so far ended before it paid for anything."""
        return is_unused(self.path)

    def _check(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        if "align" not in old:
            raise FolderError(
                f"{self.path} was made by an earlier version, whose work cannot be resumed: use another --workdir (its "
                "best/ can still be evaluated: --stage=evaluate --config.evaluate.folder=.../best)"
            )
        changed = changed_fields(old, new, _free(old))
        if changed and not self.is_unused():
            rows = any(line.startswith("config.data.") for line in changed)
            raise FolderError(
                f"{self.path} belongs to another configuration{' or other rows' * rows}:\n  "
                + "\n  ".join(changed)
                + "\nUse another workdir= (--workdir), or the same configuration to resume"
            )

    def write(self, name: str, data: Any) -> None:
        """Writes JSON in one step; raises ``FolderError`` if that fails."""
        self._write(name, lambda path: write_json(path, data))

    def _write(self, name: str, write: Callable[[Path], None]) -> None:
        path = self.path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
        except OSError as error:
            raise FolderError(
                f"cannot write {path} ({error}). What was paid for is on the tape: make room and run the same command "
                "again"
            ) from error

    def read(self, name: str) -> Any:
        """Data of a JSON file in the folder, or None if there is none; raises ``FolderError`` if it is damaged."""
        return read_file(self.path / name)

    def emit(self, event: Event) -> None:
        """Appends one event, and calls ``tell``. A resumed run emits its old events again; these are neither written
        nor passed to ``tell`` twice."""
        self.follow(event)
        entry = json.loads(json_line(to_json(event)))
        for index in range(self._cursor, len(self.events)):  # a command may begin with a later stage
            if _is_again(self.events[index], entry):
                self._cursor = index + 1
                return
        line = json_line({**entry, "time": round(time.time(), 3)})
        if self._is_lost(entry["event"]):
            self._guarded(JOURNAL, lambda path: replace_line(path, self._cursor, line))
            self.events[self._cursor] = entry
            self._cursor += 1
            return
        self._cursor = len(self.events)  # new work, or a changed program: append after all lines
        self._guarded(JOURNAL, lambda path: append_lines(path, [line]))
        self.tell(event)

    def _is_lost(self, event: str) -> bool:
        """Whether the next line is damaged, and was this event. The first line counts as an event of a search, unless
        its text names another: a command may begin with a later stage."""
        lost = self.events[self._cursor].get(DAMAGED) if self._cursor < len(self.events) else None
        return lost is not None and (self._cursor > 0 or event not in _LATER or f'"{event}"' in lost)

    def append_new(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends rows to a file of JSON lines, without those that are in it already."""

        def append(path: Path) -> None:
            written = set(map(json_line, mend_lines(path)))
            append_lines(path, [line for line in map(json_line, rows) if line not in written])

        self._guarded(name, append)

    def _guarded(self, name: str, write: Callable[[Path], None]) -> None:
        try:
            write(self.path / name)
        except OSError as error:
            raise FolderError(f"cannot write {name} in {self.path} ({error})") from error

    def write_lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes a file of JSON lines in one step; raises ``FolderError`` if that fails."""
        self._write(name, lambda path: write_text(path, "".join(f"{json_line(row)}\n" for row in rows)))

    def save_best(self, configuration: Configuration, info: Mapping[str, Any], folder: str = BEST) -> None:
        """Writes a portable result: ``configuration.json``, with the settings of the run that a copy of it needs, and
        the adapters and local rewards that it names. The same result as before keeps its settings, even if this command
        has another server."""
        for source, carried, name in _parts(configuration):
            self.copy_in(self.path / source / name, self.path / folder / carried)
        saved = {"configuration": configuration.to_json(), **info}
        known = self.read(f"{folder}/{CONFIGURATION}") or {}
        settings = known.pop("settings", None)
        if settings is None or known != json.loads(json.dumps(saved)):
            settings = _portable(config_json(self.path) or {})
        self.write(f"{folder}/{CONFIGURATION}", {**saved, "settings": settings})

    def take_parts(self, configuration: Configuration, best: Path) -> None:
        """Copies the adapters and local rewards of a configuration from its ``best/`` folder into this one. A missing
        local reward is skipped; scoring under it raises."""
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
        # else the file system has no locks, and other processes cannot be detected
    return descriptor


def _last_written(folder: Path) -> float:
    """When the journal or the tape was last written to (``time.time``); 0 without them."""
    files = (folder / name for name in (JOURNAL, TAPE, f"{TAPE}-wal"))
    return max((path.stat().st_mtime for path in files if path.is_file()), default=0.0)


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any], free: Sequence[str]) -> list[str]:
    """``loop.config.differences`` of two configurations, without the sections in ``free``."""
    before, after = ({name: config[name] for name in config if name not in free} for config in (old, new))
    return differences(before, after)


def _free(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields that may differ; without prices where dollars are part of the objective of the search."""
    objective = config.get("optimize", {}).get("objective", {})
    dollars = objective.get("dollars") or objective.get("max_dollars")
    return tuple(name for name in _FREE if name != "prices" or not dollars)


def config_files(folder: Path) -> list[Path]:
    """``config.json`` of the first command, then one file for every command whose settings changed, in fields on which
    no result of a search depends. The last file is in force."""
    first, later = folder / "config.json", folder.glob("config-*.json")
    numbers = sorted(int(path.stem.removeprefix("config-")) for path in later if path.stem[7:].isdigit())
    return [path for path in (first, *(folder / f"config-{number}.json" for number in numbers)) if path.is_file()]


def config_json(folder: Path) -> dict[str, Any] | None:
    """The latest configuration of a run folder as plain data, or None where there is none.

    Raises:
      FolderError: it is damaged.
    """
    files = config_files(folder)
    return read_file(files[-1]) if files else None


def config_of(folder: Path) -> RunConfig:
    """The latest configuration of a run folder.

    Raises:
      FolderError: the folder has none.
      ConfigError: it is not of this version.
    """
    plain = config_json(folder)
    if plain is None:
        raise FolderError(f"{folder} is no run folder: it has no config.json")
    return parse_config(plain)


def _portable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that a copy of its result needs: seed, language model, the form of its local rewards and
    how their samples are drawn, and servers. Passwords and keys are removed from the addresses of servers."""
    kept = {name: settings[name] for name in ("seed", "collect", "reward", "server", "anthropic") if name in settings}
    for name in {"server", "anthropic"} & kept.keys():
        kept[name] = {**kept[name], "base_url": without_keys(kept[name].get("base_url", ""))}
    model = settings.get("system", {}).get("language_model")
    return kept | ({"system": {"language_model": model}} if model else {})


def _parts(configuration: Configuration) -> list[tuple[str, str, str]]:
    """Local rewards and adapters of a configuration, as (folder in a run folder, folder in ``best/``, name)."""
    choices = [value for value in configuration.values() if isinstance(value, PerInstance)]
    parts = [(CHECKPOINTS, REWARDS, value.reward) for value in choices if value.reward not in UNTRAINED]
    for value in configuration.values():
        adapters = [plain.digest for plain in plain_values(value) if isinstance(plain, Adapter)]
        parts += [(ADAPTERS, ADAPTERS, name) for name in adapters if name]
    return parts


def _is_again(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a new event repeats an old one of the journal. A line of an earlier version may lack fields."""
    return all(key in new and new[key] == value for key, value in old.items() if key not in _CLOCK)


def load_best(folder: Path) -> Configuration:
    """Reads a ``best/`` folder.

    Raises:
      FolderError: if there is none, or it is damaged.
    """
    path = folder / CONFIGURATION
    data = read_file(path)
    if data is None and not folder.is_dir() and folder.name != BEST:
        raise FolderError(f"there is no folder {folder}")
    if data is None:
        raise FolderError(
            f"{folder} is neither a run with a finished search nor its {BEST}/: there is no {CONFIGURATION}. The "
            "command that made the run resumes it; its stage is --stage=optimize"
        )
    try:
        return Configuration.from_json(data["configuration"])
    except ValueError as error:
        raise FolderError(
            f"{path} is not a saved configuration ({error}): put it back as it was, or delete {folder} and run "
            "--stage=optimize again"
        ) from error


def reward_name(folder: Path, configuration: Configuration) -> str:
    """The name of the last local reward of a run: from ``refresh``, if it was for this configuration; else from the
    search; else from the first training. "" if nothing was trained.

    Raises:
      FolderError: a file is damaged.
    """
    refreshed, search, trained = (read_file(folder / name) for name in (REFRESHED_REWARD, OPTIMIZED, "reward.json"))
    if refreshed and refreshed["configuration"] == configuration.to_json():  # a longer search may end with another one
        return refreshed["name"]
    return (search or {}).get("reward") or (trained or {}).get("name") or ""
