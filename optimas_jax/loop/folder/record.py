"""Time and costs of commands in a run folder: ``run.json`` for the run's first execution, ``run-2.json`` and so on for
others.

run.json      start ... killed | the same command ... interrupted | the same command ... results.json, and stays
run-2.json                                                          a replay, another evaluation, an alignment
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import platform
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimas_jax.core import shipped
from optimas_jax.core.folder.files import FolderError
from optimas_jax.core.usage import Usage
from optimas_jax.engine.pool import Engines
from optimas_jax.llm.accounts.ledger import Ledger
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.loop.journal import RUN, RunFolder

_ROOT = Path(__file__).parents[3]
_PACKAGES = (
    *("optimas_jax", "jax", "jaxlib", "flax", "optax", "numpy", "transformers", "tokenizers"),
    *("openai", "anthropic"),
)


@dataclasses.dataclass(frozen=True)
class Record:
    """A command, from its start to its end.

    Attributes:
      folder, ledger, tape, engines: parts of its run.
      facts: command, commit, versions and platform of the command that began the execution.
      command: text of this command.
      parts: time and costs of earlier commands of the same execution, which did not finish; None after the first
        execution.
      started: date and time.
      clock: start by ``time.monotonic``.
      paid_before: costs that earlier commands in the folder paid.
    """

    folder: RunFolder
    ledger: Ledger
    tape: Tape
    engines: Engines
    facts: Mapping[str, Any]
    command: str
    parts: tuple[Mapping[str, Any], ...] | None
    started: str
    clock: float
    paid_before: Usage


def begin(folder: RunFolder, ledger: Ledger, tape: Tape, engines: Engines, command: str = "") -> Record:
    """Starts the record of a command, and writes it to ``run.json`` if the run has not finished.

    Args:
      command: text of the command; by default the command line of the process.
    """
    earlier = folder.read(RUN)
    command = command or command_line(sys.argv)
    now = _date(time.time())
    facts = {"command": command, "commit": commit(_ROOT), "started": now, **surroundings()}
    parts: tuple[Mapping[str, Any], ...] | None = ()
    if earlier is not None:
        parts = None
        if earlier["finished"] is None:
            facts = {name: earlier[name] for name in facts}
            parts = tuple(_closed(part, folder.last_written) for part in earlier["parts"])
    record = Record(folder, ledger, tape, engines, facts, command, parts, now, time.monotonic(), ledger.spent)
    if parts is not None:
        folder.write(RUN, _as_json(record, (*parts, {"command": command, "started": now, "seconds": None})))
    return record


def took(record: Record) -> dict[str, Any]:
    """Wall-clock seconds, peak memory in MB, and costs: of the whole first execution, killed parts included, or of a
    later command alone."""
    parts = (*(record.parts or ()), _part(record))
    paid = record.ledger.spent - (Usage() if record.parts is not None else record.paid_before)
    return {
        "seconds": round(sum(part["seconds"] for part in parts), 1),
        "peak_rss_mb": max(part.get("peak_rss_mb", 0) for part in parts),
        "paid_calls": paid.calls,
        "prompt_tokens": paid.prompt_tokens,
        "completion_tokens": paid.completion_tokens,
        "tokens": paid.tokens,
        "usd": round(paid.usd, 12),
    }


def finish(record: Record) -> None:
    """Ends the first execution: the run has results."""
    if record.parts is not None and not _has_finished(record.folder):
        record.folder.write(RUN, _as_json(record, (*record.parts, _part(record)), finished=time.time()))


def close(record: Record) -> None:
    """Ends the record of the command. A command after the first execution gets its own file, unless it is a replay that
    paid nothing and has a file from before."""
    with contextlib.suppress(FolderError):  # nothing depends on it, and an error of the disk was shown before
        if record.parts is None:
            _write_later(record)
        elif not _has_finished(record.folder):
            record.folder.write(RUN, _as_json(record, (*record.parts, _part(record))))


def _write_later(record: Record) -> None:
    number, mine = 2, _as_json(record, (_part(record),), finished=time.time())
    while (earlier := record.folder.read(f"run-{number}.json")) is not None:
        if earlier["command"] == mine["command"] and not earlier["paid_calls"] and not mine["paid_calls"]:
            return
        number += 1
    record.folder.write(f"run-{number}.json", mine)


def _has_finished(folder: RunFolder) -> bool:
    return (folder.read(RUN) or {}).get("finished") is not None


def _part(record: Record) -> dict[str, Any]:
    """Time, memory and paid calls of the command so far."""
    return {
        "command": record.command,
        "started": record.started,
        "seconds": round(time.monotonic() - record.clock, 1),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "paid_calls": (record.ledger.spent - record.paid_before).calls,
    }


def _closed(part: Mapping[str, Any], last_written: float) -> Mapping[str, Any]:
    """A part with its seconds; a killed part counts as ended when it last wrote something."""
    if part["seconds"] is not None:
        return part
    started = datetime.datetime.fromisoformat(part["started"]).timestamp()
    return {**part, "seconds": round(max(0.0, last_written - started), 1)}


def _as_json(record: Record, parts: tuple[Mapping[str, Any], ...], finished: float | None = None) -> dict[str, Any]:
    return {
        **record.facts,
        "finished": finished and _date(finished),
        "devices": _devices(record.engines),
        **took(record),
        "uncertain": record.tape.uncertain().to_json(),
        "parts": list(parts),
    }


def _devices(engines: Engines) -> dict[str, Any] | None:
    """The devices that the run has used; None if it has used none yet."""
    if "mesh" not in vars(engines):  # a run with remote models only uses none
        return None
    devices = list(engines.mesh.devices.flat)
    return {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)}


def _date(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def surroundings() -> dict[str, Any]:
    """Versions of the packages on which results depend, and the platform; no names or settings of the machine."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"versions": versions, "platform": f"{platform.system()} {platform.machine()}"}


def commit(root: Path) -> str | None:
    """The commit of a checkout, with ``-dirty`` where files differ from it; None elsewhere."""
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None


def command_line(arguments: list[str]) -> str:
    """A command as it was typed, without the folders of absolute paths: where results depend on them, they are in
    ``config.json``. The command ``optimas`` replaces its name by a whole path, which is undone."""
    file, *rest = arguments
    typed = Path(file).is_absolute() and Path(file).parent == shipped.folder("launch")
    start = ["optimas", Path(file).stem] if typed else [_without_folders(file)]
    return shlex.join([*start, *map(_without_folders, rest)])


def _without_folders(argument: str) -> str:
    name, equals, value = argument.rpartition("=")
    if not value.startswith("/"):
        return argument
    shipped_config = Path(value).is_relative_to(shipped.folder("configs"))
    return f"{name}{equals}{'configs/' * shipped_config}{Path(value).name}"
