"""Configurations that passed the gate: score against the cost of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from optimas_jax.report.page import text
from optimas_jax.report.page.svg import picture
from optimas_jax.report.pareto import Colors, pareto_svg, point_name, shows_pareto
from optimas_jax.report.run_files import RunFiles

_COLORS = Colors("var(--accent)", "var(--soft)", "var(--soft)")
_FORMS = {"dollars": text.dollars, "tokens": text.count, "seconds": lambda seconds: f"{text.number(seconds, 2)} s"}


@dataclasses.dataclass(frozen=True)
class Row:
    """A configuration: its name, score and costs with intervals as text, and its marks."""

    name: str
    score: str
    costs: Sequence[str]
    marks: str
    kept: bool


@dataclasses.dataclass(frozen=True)
class Pareto:
    """The picture and its numbers; ``objective`` is the gain of the objective as text, or ""."""

    picture: Markup
    rows: Sequence[Row]
    objective: str


def pareto(run: RunFiles) -> Pareto | None:
    """The section of a run; None where there is nothing to compare."""
    results = {**(run.optimized or {}), **(run.results or {})}
    if not shows_pareto(results):
        return None
    points = results["pareto"]
    source = pareto_svg(points, _COLORS)
    width = float(source.partition('width="')[2].partition('"')[0])
    inner = Markup(source[source.index(">") + 1 : source.rindex("</svg>")])  # noqa: S704  # it escapes its texts
    description = "; ".join(f"{point_name(point)}: {text.number(point['score']['mean'])}" for point in points)
    gain = (results.get("objective") or {}).get("gain")
    objective = f"{text.signed(gain['mean'])} {text.interval(gain['ci95'])}" if gain else ""
    drawn = picture("Score against the cost of a run", description, width, 300, inner, class_="pareto")
    return Pareto(drawn, [_row(point) for point in points], objective)


def _row(point: Mapping[str, Any]) -> Row:
    costs = [_estimate(point[name], form) for name, form in _FORMS.items()]
    marks = ["dominated" if point["dominated"] else "Pareto set", *(f"exceeds max_{cost}" for cost in point["exceeds"])]
    name = text.name(point_name(point))
    return Row(name, _estimate(point["score"], text.number), costs, ", ".join(marks), point["kept"])


def _estimate(value: Mapping[str, Any] | None, form: Any) -> str:
    if value is None:
        return "shared engine"
    low, high = value["ci95"]
    return f"{form(value['mean'])} [{form(low)}, {form(high)}]"
