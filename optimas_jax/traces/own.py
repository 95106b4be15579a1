"""Reads recorded calls in the forms of this project: rows of ``evaluations/*.jsonl``, and single calls with their
fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from optimas_jax.core.text.json_text import shown
from optimas_jax.traces.records import Recorded, TraceError, finite, first_text, read_score, whole

_SIDES = {"before": True, "after": False}  # side -> whether the declared values were in use


def is_own(item: Mapping[str, Any]) -> bool:
    """Whether an object is such a row or call."""
    return ("component" in item and "outputs" in item) or any("runs" in side for side in _sides(item))


def read_own(item: Mapping[str, Any], where: str) -> list[Recorded]:
    """The calls of a row.

    Raises:
      TraceError: a field is missing or has the wrong type; names the field.
    """
    if "component" in item:
        score, feedback = read_score(item, where)
        return [_call(item, where, first_text(item, "run"), None, score, feedback, None)]
    return list(_row(item, where))


def _sides(item: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [item[name] for name in _SIDES if isinstance(item.get(name), Mapping)]


def _row(item: Mapping[str, Any], where: str) -> Iterator[Recorded]:
    row = whole(item.get("inputs"), f"{where}: inputs")
    for side, declared in _SIDES.items():
        runs = item.get(side, {}).get("runs", []) if isinstance(item.get(side, {}), Mapping) else None
        if not isinstance(runs, list):
            raise TraceError(f"{where}: {side} is {shown(item[side])}, expected an object with a list of runs")
        for number, run in enumerate(runs):
            if not isinstance(run, Mapping) or not isinstance(run.get("calls"), list):
                raise TraceError(f"{where}: a run of {side} is {shown(run)}, expected an object with a list of calls")
            score = None if run.get("score") is None else finite(run["score"], f"{where}: score")
            feedback = first_text(run, "feedback")
            for call in run["calls"]:
                if not isinstance(call, Mapping):
                    raise TraceError(f"{where}: a call is {shown(call)}, expected an object")
                if call.get("outcome", "ok") == "ok":
                    yield _call(call, where, f"{where} {side} {number}", row, score, feedback, declared)


def _call(
    call: Mapping[str, Any],
    where: str,
    run: str,
    row: Mapping[str, Any] | None,
    score: float | None,
    feedback: str,
    declared: bool | None,
) -> Recorded:
    name = first_text(call, "component")
    if not name:
        raise TraceError(f"{where}: the component of a call is {shown(call.get('component'))}, expected its name")
    inputs = whole(call.get("inputs"), f"{where}: inputs of {name}")
    outputs = whole(call.get("outputs"), f"{where}: outputs of {name}")
    return Recorded(
        where,
        (name,),
        run,
        inputs=inputs,
        outputs=outputs,
        row=row,
        score=score,
        feedback=feedback,
        as_declared=declared,
    )
