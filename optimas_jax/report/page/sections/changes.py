"""What changed: every accepted change with its texts compared, and its gains."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from optimas_jax.core.folder.search_events import Accept, Gate, Pick, Tuned
from optimas_jax.core.values import value_to_json
from optimas_jax.report.page import text
from optimas_jax.report.page.sections.values import ValueChange, value_change
from optimas_jax.report.page.svg import interval_bar, span_of
from optimas_jax.report.run_files import RunFiles

_MOST = 50  # changes that are shown


@dataclasses.dataclass(frozen=True)
class Brought:
    """A gain of a change: on what, its mean and interval, and whether it is a gain of the score."""

    where: str
    gain: Any
    bounds: Any
    of_score: bool = True

    def bar(self, span: tuple[float, float]) -> Markup:
        """Its picture on the scale of all gains of the score; nothing for a gain in other units."""
        return interval_bar(self.gain, self.bounds, span, words=self.where) if self.of_score else Markup("")


@dataclasses.dataclass(frozen=True)
class Change:
    """An accepted change.

    Attributes:
      iteration: from 1.
      component, optimiser: names.
      known: whether the value before is known.
      kept: whether the run ends with it; a change that was not confirmed is undone.
      value: how the new value follows from the one before.
      brought: gains on the validation split, and on the evaluated one where it was measured.
      tuned: a sentence on the tuning of weights, or "".
    """

    iteration: int
    component: str
    optimiser: str
    known: bool
    kept: bool
    value: ValueChange
    brought: Sequence[Brought]
    tuned: str


@dataclasses.dataclass(frozen=True)
class Changes:
    """The accepted changes of a run, in their order, how many are left out, the ends of pictures of their gains, and
    whether there was a search at all."""

    shown: Sequence[Change]
    left_out: int
    span: tuple[float, float]
    searched: bool


def changes(run: RunFiles) -> Changes:
    """The accepted changes of a run, finished or not."""
    accepted = accepted_of(run)
    values = first_values(run)
    confirmed = (run.results or {}).get("confirmed") or (run.optimized or {}).get("confirmed")
    kept = len(accepted) if confirmed is None else confirmed["changes"] or 0
    gates = {(gate.iteration, gate.component): gate for gate in run.events if isinstance(gate, Gate) and gate.accepted}
    gains = [_gains(change, gates, run.results) for change in accepted]
    scores = [row for rows in gains for row in rows if row.of_score]
    span = span_of(bound for row in scores for bound in (row.gain, *(row.bounds or ())))
    tuned = {event.adapter: event for event in run.events if isinstance(event, Tuned)}
    shown = []
    for index, (change, rows) in enumerate(zip(accepted, gains, strict=True)):
        name, value = change["component"], change.get("value")
        if value is None:
            continue
        old = values.get(name)
        shown.append(
            Change(
                change["iteration"] + 1,
                name,
                str(change.get("kind", "")),
                old is not None,
                index < kept,
                value_change(old, value),
                rows,
                _tuning(tuned.get(value.get("digest", ""))),
            )
        )
        values = {**values, name: value}
    searched = bool(run.proposals) or any(isinstance(event, Pick) for event in run.events)
    return Changes(shown[:_MOST], len(shown[_MOST:]), span, searched)


def accepted_of(run: RunFiles) -> Sequence[Mapping[str, Any]]:
    """The accepted changes: from the results, from the search, or from the journal so far."""
    for source in (run.results, run.optimized):
        if source is not None:
            return source["accepted"]
    accepts = [event for event in run.events if isinstance(event, Accept)]
    return [
        {
            "iteration": event.iteration,
            "component": event.component,
            "kind": event.kind,
            "value": value_to_json(event.value),
            "val_gain": event.val_gain,
        }
        for event in accepts
    ]


def first_values(run: RunFiles) -> dict[str, Mapping[str, Any]]:
    """The values that the search started from, by component; in older folders those that proposals repeat."""
    if run.system is not None:
        return {part["name"]: part["value"] for part in run.system["components"] if part["value"] is not None}
    first: dict[str, str] = {}
    for row in run.proposals:
        first.setdefault(str(row.get("component")), str(row.get("parent")))
    known = {(str(row.get("component")), str(row.get("digest"))): row.get("value") for row in run.proposals}
    return {name: value for name, parent in first.items() if (value := known.get((name, parent))) is not None}


def _gains(
    change: Mapping[str, Any], gates: Mapping[tuple[int, str], Gate], results: Mapping[str, Any] | None
) -> list[Brought]:
    gate = gates.get((change["iteration"], change["component"]))
    where = f"validation, {text.counted(gate.n, 'example')}" if gate else "validation"
    rows = [Brought(where, change.get("val_gain"), gate.ci95 if gate else None)]
    if results is not None:
        split = results["split"]
        measured = change.get(split) or {}
        if gain := measured.get("gain"):
            rows.append(Brought(split, gain["mean"], gain["ci95"]))
        if gain := measured.get("local_gain"):
            rows.append(
                Brought(f"local reward on {split}, in its own units", gain["mean"], gain["ci95"], of_score=False)
            )
    return rows


def _tuning(event: Tuned | None) -> str:
    if event is None:
        return ""
    return (
        f"Weights after {text.counted(event.updates, 'update')}, of which {event.learned} changed anything: on inputs "
        f"held back {text.number(event.before)} before and {text.number(event.score)} after, "
        f"{text.number(event.kl)} nats a token from the first weights."
    )
