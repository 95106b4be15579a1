"""The system: its components and what flows between them, with what was tuned."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from optimas_jax.report.page import text
from optimas_jax.report.page.sections.changes import accepted_of
from optimas_jax.report.page.sections.flow import Edge, Node, flow_picture
from optimas_jax.report.run_files import RunFiles

_RUNS = 200  # runs whose calls are read
_PARTS = 200  # components that are shown


@dataclasses.dataclass(frozen=True)
class Part:
    """A component.

    Attributes:
      name, description: of the component.
      reads, writes: its fields.
      status: what the search did with it, in a few words.
      changed, tuned: whether it was changed, whether it may be changed.
      calls: number of calls in a run, such as ``1`` or ``1 to 3``; "" where it is not known.
    """

    name: str
    description: str
    reads: Sequence[str]
    writes: Sequence[str]
    status: str
    changed: bool
    tuned: bool
    calls: str


@dataclasses.dataclass(frozen=True)
class System:
    """The components in their order, a picture of them, whether they form a program, and how many runs were read."""

    parts: Sequence[Part]
    picture: Markup
    program: bool
    runs: int


def system(run: RunFiles) -> System:
    """The components of a run, from its folder and the calls of its evaluated examples."""
    runs = [row["after"]["runs"][0].get("calls") or () for row in run.examples[:_RUNS]]
    described = {part["name"]: part for part in (run.system or {}).get("components", ())}
    names = list(dict.fromkeys([*described, *_in_order(runs), *_tuned_names(run)]))
    counts = {name: [sum(call["component"] == name for call in calls) for calls in runs] for name in names}
    program = run.system["program"] if run.system else any(max(numbers, default=1) != 1 for numbers in counts.values())
    parts = [_part(name, described.get(name), runs, counts[name], run) for name in names]
    edges = _calls_after(runs) if program else _data_flow(described, runs)
    parts = parts[:_PARTS]
    nodes = [Node(text.name(part.name), part.status, part.changed, part.tuned) for part in parts]
    what = "which component a run calls after which" if program else "which component reads what another one writes"
    return System(parts, flow_picture(nodes, edges, what) if nodes else Markup(""), program, len(runs))


def _in_order(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    """Components by the mean position of their first calls."""
    positions: dict[str, list[int]] = collections.defaultdict(list)
    for calls in runs:
        firsts = dict.fromkeys(call["component"] for call in calls)
        for position, name in enumerate(firsts):
            positions[name].append(position)
    return sorted(positions, key=lambda name: sum(positions[name]) / len(positions[name]))


def _tuned_names(run: RunFiles) -> list[str]:
    return [str(row["component"]) for row in run.proposals if row.get("component")]


def _part(
    name: str,
    described: Mapping[str, Any] | None,
    runs: Sequence[Sequence[Mapping[str, Any]]],
    counts: Sequence[int],
    run: RunFiles,
) -> Part:
    call = next((call for calls in runs for call in calls if call["component"] == name), None) or {}
    reads = (described or {}).get("inputs") or list(call.get("inputs") or ())
    writes = (described or {}).get("outputs") or list(call.get("outputs") or ())
    proposals = [row for row in run.proposals if row.get("component") == name]
    tested = sum(bool(row.get("gate")) for row in proposals)
    kept = sum(change["component"] == name for change in accepted_of(run))
    tuned = (described or {}).get("tuned", bool(proposals))
    if kept:
        status = f"changed: {kept} of {tested} tested"
    elif tested:
        status = f"{tested} tested, unchanged"
    elif proposals:
        status = f"{text.counted(len(proposals), 'proposal')}, none tested"
    else:
        status = "not tried" if tuned else "not tuned"
    low, high = min(counts, default=0), max(counts, default=0)
    calls = "" if not counts else f"{low}" if low == high else f"{low} to {high}"
    description = text.clip(str((described or {}).get("description", "")), 300)
    reads, writes = ([text.clip(str(field), 60) for field in fields] for fields in (reads, writes))
    return Part(name, description, reads, writes, status, bool(kept), bool(tuned), calls)


def _calls_after(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[Edge]:
    """Which component is called after which, with the share of runs that do so."""
    seen: collections.Counter[tuple[str, str]] = collections.Counter()
    for calls in runs:
        names = [call["component"] for call in calls]
        seen.update(set(itertools.pairwise(names)))
    return [
        Edge(text.name(start), text.name(end), "" if n == len(runs) else text.percent(n / len(runs)))
        for (start, end), n in seen.items()
    ]


def _data_flow(described: Mapping[str, Mapping[str, Any]], runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[Edge]:
    """Which component reads fields of which, from their declarations or from the fields of their calls."""
    fields: dict[tuple[str, str], list[str]] = {}
    parts = list(described.values()) or [
        {
            "name": call["component"],
            "inputs": list(call.get("inputs") or ()),
            "outputs": list(call.get("outputs") or ()),
        }
        for call in (runs[0] if runs else ())
    ]
    for part in parts:
        for other in parts:
            for name in part["outputs"]:
                if name in other["inputs"] and part is not other:
                    fields.setdefault((part["name"], other["name"]), []).append(str(name))
    return [
        Edge(text.name(start), text.name(end), text.clip(", ".join(names), 200))
        for (start, end), names in fields.items()
    ]
