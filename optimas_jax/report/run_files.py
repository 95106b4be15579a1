"""The content of a run folder that reports show. Everything in a report is a pure function of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.core.folder.events import Event, read_events
from optimas_jax.core.folder.files import read_file, read_rows


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """The files of a run, finished or not.

    Attributes:
      folder: of the run.
      config: ``config.json``.
      record: ``run.json``, what its commands took; None before the first command has begun.
      results: of the evaluation: ``results.json``, or ``evaluations/LABEL.json``; None before there is one.
      optimized: ``optimized.json``, what the search found; None before its end.
      unfinished: ``unfinished.json``, why a run has ended without results; None elsewhere.
      probe, plan: ``probe.json``, ``plan.json``; None without them.
      events: of the journal, in their order.
      proposals: rows of ``proposals.jsonl``, the last one of each id.
      examples: rows of ``evaluations/LABEL.jsonl``: every evaluated example before and after.
      system: ``system.json``, the components with the values that the search starts from; None in older folders.
      spent: ``spent.json``, what each step took; None before collecting is done, and in older folders.
    """

    folder: Path
    config: Mapping[str, Any]
    record: Mapping[str, Any] | None
    results: Mapping[str, Any] | None
    optimized: Mapping[str, Any] | None
    unfinished: Mapping[str, Any] | None
    probe: Mapping[str, Any] | None
    plan: Mapping[str, Any] | None
    events: Sequence[Event]
    proposals: Sequence[Mapping[str, Any]]
    examples: Sequence[Mapping[str, Any]]
    system: Mapping[str, Any] | None = None
    spent: Mapping[str, Any] | None = None


def read_run(folder: Path, label: str = "") -> RunFiles:
    """Reads a run folder; it may be written meanwhile.

    Args:
      label: of the evaluation; by default the run's own.

    Raises:
      FolderError: a file cannot be read, or is damaged.
    """
    results = read_file(folder / "results.json")
    if label and (results or {}).get("label") != label:
        results = read_file(folder / "evaluations" / f"{label}.json")
    shown = (results or {}).get("label", label)
    proposals = read_rows(folder / "proposals.jsonl")
    return RunFiles(
        folder=folder,
        config=read_file(folder / "config.json") or {},
        record=read_file(folder / "run.json"),
        results=results,
        optimized=read_file(folder / "optimized.json"),
        unfinished=read_file(folder / "unfinished.json"),
        probe=read_file(folder / "probe.json"),
        plan=read_file(folder / "plan.json"),
        events=read_events(folder),
        proposals=list({row["id"]: row for row in proposals}.values()),
        examples=read_rows(folder / "evaluations" / f"{shown}.jsonl") if shown else [],
        system=read_file(folder / "system.json"),
        spent=read_file(folder / "spent.json"),
    )
