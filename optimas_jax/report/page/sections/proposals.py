"""Every proposal with its verdict and the reason for it."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from optimas_jax.core.folder.search_events import Proposed
from optimas_jax.report.page import text
from optimas_jax.report.page.svg import interval_bar, span_of
from optimas_jax.report.run_files import RunFiles

MOST = 200  # proposals that are shown
_CHARACTERS = 500_000  # of their texts together
_LINES = 200  # reasons of drops that are shown
_ORDER = ("accepted", "refused", "given up early", "not tested", "not tried")


@dataclasses.dataclass(frozen=True)
class Row:
    """A proposal.

    Attributes:
      anchor: id of its row.
      iteration: from 1.
      component, optimiser, verdict, reason: words.
      promised: gain that the race expected; measured: gain at the gate, with ``bounds`` on ``n`` of ``of`` examples.
      bar: its picture.
      text: the value as a person reads it.
      parent: what it would replace.
      tested: whether a gate has seen it.
    """

    anchor: str
    iteration: int
    component: str
    optimiser: str
    verdict: str
    reason: str
    promised: Any
    measured: Any
    bounds: Any
    n: Any
    of: Any
    bar: Markup
    text: str
    parent: str
    tested: bool


@dataclasses.dataclass(frozen=True)
class Proposals:
    """The proposals of a run.

    Attributes:
      rows: proposals that are shown, in the order of the run; where there are too many, tested ones are kept first.
      total: number of all.
      verdicts: number of each verdict.
      dropped: component, reason and number of answers and values that came to nothing before the gate.
    """

    rows: Sequence[Row]
    total: int
    verdicts: Mapping[str, int]
    dropped: Sequence[tuple[str, str, int]]


def proposals(run: RunFiles) -> Proposals:
    """All proposals of a run; of many the accepted ones, the tested ones, then the others, up to ``MOST``."""
    ranked = sorted(range(len(run.proposals)), key=lambda index: _rank(run.proposals[index]))
    shown = [run.proposals[index] for index in sorted(ranked[:MOST])]
    gates = [row["gate"] for row in shown if row.get("gate")]
    span = span_of(bound for gate in gates for bound in (*(gate.get("ci95") or ()), gate.get("gain")))
    names = {row.get("digest"): row["id"] for row in run.proposals}
    most = _CHARACTERS // max(1, len(shown))
    verdicts = {name: sum(row.get("verdict") == name for row in run.proposals) for name in _ORDER}
    rows = [_row(row, span, most, names) for row in shown]
    return Proposals(rows, len(run.proposals), {name: n for name, n in verdicts.items() if n}, _dropped(run)[:_LINES])


def _dropped(run: RunFiles) -> list[tuple[str, str, int]]:
    """Drops from the results, or from the journal so far; the most frequent reason of a component first."""
    dropped = (run.results or {}).get("dropped") or (run.optimized or {}).get("dropped")
    if not dropped:
        counts: dict[str, collections.Counter[str]] = {}
        for event in run.events:
            if isinstance(event, Proposed):
                counts.setdefault(event.component, collections.Counter()).update(event.dropped)
        dropped = counts
    return [
        (name, reason, amount)
        for name, reasons in dropped.items()
        for reason, amount in sorted(reasons.items(), key=lambda item: -item[1])
    ]


def _rank(row: Mapping[str, Any]) -> int:
    verdict = row.get("verdict")
    return _ORDER.index(verdict) if verdict in _ORDER else len(_ORDER)


def _row(row: Mapping[str, Any], span: tuple[float, float], most: int, names: Mapping[Any, str]) -> Row:
    gate, race, iteration = row.get("gate") or {}, row.get("race") or {}, row.get("iteration")
    parent = row.get("parent")
    gain, bounds = gate.get("gain"), gate.get("ci95")
    return Row(
        anchor=proposal_anchor(row["id"]),
        iteration=iteration + 1 if isinstance(iteration, int) else 0,
        component=text.name(row.get("component", "")),
        optimiser=text.name(row.get("optimiser", "")),
        verdict=str(row.get("verdict") or "not known"),
        reason=text.clip(str(row.get("reason") or ""), 600),
        promised=race.get("expected_gain"),
        measured=gain,
        bounds=bounds,
        n=gate.get("n"),
        of=gate.get("of"),
        bar=interval_bar(gain, bounds, span, words=f"{text.signed(gain)} {text.interval(bounds)}"),
        text=text.clip(str(row.get("text") or ""), most),
        parent=f"proposal {names[parent]}" if parent in names else "the default value",
        tested=bool(row.get("gate")),
    )


def proposal_anchor(name: str) -> str:
    """The id of a proposal's row on the page."""
    return text.slug("proposal", name)
