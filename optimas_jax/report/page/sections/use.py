"""How to use the result, and how it was made: command, commit, versions, settings, files."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shlex
from collections.abc import Sequence
from typing import Any

from optimas_jax.report.page import text
from optimas_jax.report.run_files import RunFiles

_NAMED = re.compile(r"\.\.\., config=(\{.*\})\) from Python$", re.DOTALL)
FILES = {
    "best/configuration.json": "what the run found",
    "results.json": "scores, alignment, bill",
    "proposals.jsonl": "every proposal with its verdict",
    "journal.jsonl": "every decision in its order",
    "config.json": "all settings",
    "run.json": "what the run took",
    "plan.json": "what it was expected to take",
    "pareto.svg": "score against cost",
}


@dataclasses.dataclass(frozen=True)
class Use:
    """What the section shows.

    Attributes:
      code: three lines of Python.
      command, commit: of the run; "" where they are not known.
      versions: name and version.
      machine: platform and devices.
      preset: the configuration that ``settings`` change; "" where it is not known.
      settings: path and value of each setting that the command changed.
      files: path in the folder, and content.
    """

    code: str
    command: str
    commit: str
    versions: Sequence[tuple[str, str]]
    machine: str
    preset: str
    settings: Sequence[tuple[str, str]]
    files: Sequence[tuple[str, str]]


def use(run: RunFiles) -> Use:
    """The section of a run."""
    record = run.record or {}
    command = str(record.get("command") or "")
    versions = record.get("versions") or (run.results or {}).get("versions") or {}
    devices = record.get("devices") or {}
    machine = [str(record.get("platform") or "")]
    if devices:
        machine.append(f"{devices.get('count')} × {devices.get('kind')}")
    preset, settings = given_settings(command)
    return Use(
        _code(run),
        text.clip(f"python {command}" if command.split(" ", maxsplit=1)[0].endswith(".py") else command, 2_000),
        text.name(record.get("commit") or ""),
        [(str(name), str(version)) for name, version in versions.items()],
        ", ".join(filter(None, machine)),
        text.clip(preset, 200),
        [(text.clip(name, 120), text.clip(value, 300)) for name, value in settings[:200]],
        [(name, what) for name, what in (_examples_of(run) | FILES).items() if (run.folder / name).is_file()],
    )


def _examples_of(run: RunFiles) -> dict[str, str]:
    label = (run.results or {}).get("label")
    return {f"evaluations/{label}.jsonl": "every evaluated example before and after"} if label else {}


def _code(run: RunFiles) -> str:
    folder = json.dumps(str(run.folder / "best"), ensure_ascii=False)
    names = list((run.system or {}).get("inputs") or (run.examples[0]["inputs"] if run.examples else ())) or [
        "question"
    ]
    row = run.examples[0]["inputs"] if run.examples else {}
    inputs = ", ".join(_argument(str(name), row.get(name)) for name in names[:6])
    return f"import optimas_jax as oj\nprogram = oj.load({folder})\nprogram({inputs})"


def _argument(name: str, value: Any) -> str:
    short = isinstance(value, str | int | float | bool) and len(str(value)) <= 80
    shown = repr(value) if short else "..."
    return f"{name}={shown}" if name.isidentifier() else f"**{{{json.dumps(text.clip(name, 60))}: {shown}}}"


def given_settings(command: str) -> tuple[str, list[tuple[str, str]]]:
    """The preset of a command, and the settings that it changed: ``--config.PATH=VALUE`` of a command line, ``config``
    of a call from Python."""
    if named := _NAMED.search(command):
        with contextlib.suppress(ValueError):
            return "", [(name, text.plain(value)) for name, value in json.loads(named[1]).items()]
    try:
        words = shlex.split(command)
    except ValueError:  # of a text that is no command line
        return "", []
    flags = [word.lstrip("-").partition("=") for word in words if word.startswith("-")]
    preset = next((value for name, _, value in flags if name == "config"), "")
    return preset, [(name.removeprefix("config."), value) for name, _, value in flags if name.startswith("config.")]
