"""The bill: by phase and role, and step by step beside its predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from optimas_jax.report.page import text
from optimas_jax.report.run_files import RunFiles

_COSTS = ("calls", "tokens", "usd", "seconds")
_FORMS = {"calls": text.count, "tokens": text.count, "usd": text.dollars, "seconds": text.duration}
_ROWS = 400


@dataclasses.dataclass(frozen=True)
class Line:
    """Completions of a role in a phase; ``role`` is "" for the sum of a phase."""

    phase: str
    role: str
    calls: int
    paid: int
    prompt: int
    completion: int
    dollars: float


@dataclasses.dataclass(frozen=True)
class Cell:
    """Actual and predicted cost of a step; ``outside``: whether the actual cost is outside of the predicted range."""

    took: str
    predicted: str
    outside: bool


@dataclasses.dataclass(frozen=True)
class Bill:
    """The bill of a run.

    Attributes:
      lines: by phase, the sum of a phase first.
      steps: name and cells in the order calls, tokens, dollars, seconds.
      planned: whether there are predictions.
    """

    lines: Sequence[Line]
    steps: Sequence[tuple[str, Sequence[Cell]]]
    planned: bool


def bill(run: RunFiles) -> Bill:
    """The bill of a run; before its results, the bill of the finished steps."""
    spent = (run.results or {}).get("spent") or {}
    if not spent:
        planned = ((run.plan or {}).get("host") or {}).get("steps") or {}
        spent = {name: {"spent": row, "predicted": planned.get(name)} for name, row in (run.spent or {}).items()}
    steps = [(name, _cells([row])) for name, row in spent.items()]
    if steps:
        steps.append(("all", _cells(list(spent.values()))))
    return Bill(_lines(run)[:_ROWS], steps, any(row.get("predicted") for row in spent.values()))


def _lines(run: RunFiles) -> list[Line]:
    lines = []
    for phase, roles in ((run.results or {}).get("ledger") or {}).items():
        rows = [_line(phase, role, [row]) for role, row in roles.items()]
        lines += [_line(phase, "", list(roles.values())), *(rows if len(rows) > 1 else ())]
    return lines


def _line(phase: str, role: str, rows: Sequence[Mapping[str, Any]]) -> Line:
    keys = ("calls", "paid_calls", "prompt_tokens", "completion_tokens", "usd")
    return Line(phase, role, *(sum(row[key] for row in rows) for key in keys))


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[Cell]:
    cells = []
    for cost in _COSTS:
        form, took = _FORMS[cost], sum(row["spent"][cost] for row in rows)
        known = [row["predicted"] for row in rows if row.get("predicted")]
        ranges = {}
        if known:
            ranges = {name: sum(step[name][cost] for step in known) for name in ("low", "expected", "high")}
        words = ""
        if known:
            low, expected, high = (form(ranges[name]) for name in ("low", "expected", "high"))
            words = expected if low == high else f"{expected} ({low} to {high})"
        cells.append(Cell(form(took), words, bool(known) and not ranges["low"] <= took <= ranges["high"]))
    return cells
