"""Rules on costs: a run of the system that became dearer, a bill above what was predicted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optimas_jax.report.look.finding import Finding
from optimas_jax.report.run_files import RunFiles

_GREW, _WITHOUT_GAIN = 2.0, 1.5  # times the cost of a run before, with a gain and without one
_ABOVE = 1.2  # times the most that was predicted
_UNITS = {"tokens": ("{:,.0f} tokens", 100), "dollars": ("${:,.6f}", 0), "seconds": ("{:,.2f} seconds", 0.5)}
_BILL = {"usd": "${:,.4f}", "tokens": "{:,.0f} tokens", "calls": "{:,.0f} calls"}
_FEWEST = {"usd": 0.01, "tokens": 1000, "calls": 20}  # above the prediction


def run_grew(run: RunFiles) -> list[Finding]:
    """A run of the kept configuration costs much more than a run of the start, by intervals that do not overlap."""
    start, kept = _ends(run)
    gain = (run.results or {}).get("gain")
    most = _GREW if gain is None or gain["ci95"][0] > 0 else _WITHOUT_GAIN
    grown = []
    for cost, (form, least) in _UNITS.items():
        before, after = (point and point.get(cost) for point in (start, kept))
        if not before or not after or after["mean"] - before["mean"] <= least:
            continue
        if after["ci95"][0] > before["ci95"][1] and after["mean"] >= most * before["mean"]:
            grown.append(f"{form.format(before['mean'])} to {form.format(after['mean'])}")
    if not grown:
        return []
    score_change = f"; the score changed by {gain['mean']:+.3f}" if gain else ""
    sentence = f"A run of the system has grown from {', from '.join(grown)}{score_change}."
    return [Finding("run_cost", sentence, "bill", 5)]


def _ends(run: RunFiles) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """The points of the start and of the kept configuration; or the costs of both under an objective."""
    result = run.results or run.optimized or {}
    points = result.get("pareto") or ()
    start = next((point for point in points if not point["changes"]), None)
    kept = next((point for point in points if point["kept"]), None)
    if start is not None and kept is not None and start is not kept:
        return start, kept
    costs = (result.get("objective") or {}).get("costs") or {}
    return costs.get("baseline"), costs.get("optimized")


def bill_above_plan(run: RunFiles) -> list[Finding]:
    """The steps took more than the most that was predicted for them."""
    rows = [row for row in _steps(run) if row["predicted"]]
    above = []
    for cost, form in _BILL.items():
        spent = sum(row["spent"][cost] for row in rows)
        most = sum(row["predicted"].get("high", {}).get(cost, 0) for row in rows)
        if spent > _ABOVE * most and spent - most > _FEWEST[cost]:
            above.append(f"{form.format(spent)}, and {form.format(most)} at most were predicted")
    if not above:
        return []
    return [Finding("bill", f"The run took more than its plan: {'; '.join(above)}.", "bill", 4)]


def _steps(run: RunFiles) -> list[Mapping[str, Any]]:
    """Spent and predicted costs of each step: from the results, and before there are any from the finished steps."""
    spent = (run.results or {}).get("spent") or {}
    if spent:
        return list(spent.values())
    planned = ((run.plan or {}).get("host") or {}).get("steps") or {}
    return [{"spent": row, "predicted": planned.get(name)} for name, row in (run.spent or {}).items()]


def bill_uncertain(run: RunFiles) -> list[Finding]:
    """Much of the bill is a worst case, because requests had no answer."""
    record = run.record or {}
    worst = (record.get("uncertain") or {}).get("tokens", 0)
    if worst <= 0.2 * max(1, record.get("tokens", 0)):
        return []
    sentence = (
        f"{worst:,} tokens of the bill are a worst case, and {record.get('tokens', 0):,} are sure: requests had no "
        "answer after the model may have worked on them."
    )
    return [Finding("bill_uncertain", sentence, "bill", 5)]
