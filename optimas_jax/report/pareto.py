"""The Pareto set: a table, and a picture of score against each cost of a run, an SVG that needs no library."""

from __future__ import annotations

import html
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from optimas_jax.report.page.text import interval

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _RIGHT = 380, 300, 60, 30, 50, 90  # of a panel, in pixels


class Colors(NamedTuple):
    """Colours of a picture: of the Pareto set, of dominated points, of lines and texts."""

    front: str = "#1f77b4"
    dominated: str = "#b0b0b0"
    line: str = "#404040"


_PLAIN = Colors()


_COSTS = (("dollars", "{:.6f}"), ("tokens", "{:,.1f}"), ("seconds", "{:.2f}"))
_AXIS = {"dollars": "US dollars a run", "tokens": "tokens a run", "seconds": "seconds a run"}


def shows_pareto(results: Mapping[str, Any]) -> bool:
    """Whether there is something to compare: a configuration beside the start, or an objective."""
    return len(results.get("pareto", ())) > 1 or bool(results.get("pareto") and results.get("objective"))


def pareto_table(points: Sequence[Mapping[str, Any]]) -> Table:
    """Configurations that passed the gate, quality against cost of a run, on the validation split."""
    table = Table(title="Configurations that passed the gate: score and cost of a run on the validation split")
    for column in ("", "score", "dollars", "tokens", "seconds", "set"):
        table.add_column(column, justify="left" if column in ("", "set") else "right")
    for point in points:
        score = point["score"]
        cells = [f"{score['mean']:.3f} {interval(score['ci95'])}"]
        for name, form in _COSTS:
            cost = point[name]
            if cost is None:
                cells.append("shared engine")
                continue
            low, high = (form.format(bound) for bound in cost["ci95"])
            cells.append(f"{form.format(cost['mean'])} [{low}, {high}]")
        marks = [
            "dominated" if point["dominated"] else "Pareto",
            *(f"exceeds max_{limit}" for limit in point["exceeds"]),
        ]
        table.add_row(point_name(point), *cells, ", ".join(marks), style="bold" if point["kept"] else None)
    return table


def point_name(point: Mapping[str, Any]) -> str:
    """A name of a configuration for tables: the change that leads to it."""
    return f"{point['changes']}: {point['component']}" if point["changes"] else "start"


def pareto_svg(points: Sequence[Mapping[str, Any]], colors: Colors = _PLAIN) -> str:
    """Score against dollars, tokens and seconds, a panel for each cost that differs; tokens if none does. Points of the
    set are blue and joined, the kept point has a ring, thin lines are 95 % intervals."""
    costs = [name for name, _ in _COSTS if all(point[name] is not None for point in points)]
    shown = [name for name in costs if len({point[name]["mean"] for point in points}) > 1] or ["tokens"]
    panels = "".join(_panel(points, name, index * _WIDTH, colors) for index, name in enumerate(shown))
    width = _WIDTH * len(shown)
    size = f'width="{width}" height="{_HEIGHT}" viewBox="0 0 {width} {_HEIGHT}"'
    style = 'font-family="sans-serif" font-size="11"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{panels}</svg>\n'


def _panel(points: Sequence[Mapping[str, Any]], cost: str, offset: int, colors: Colors) -> str:
    """One panel, its left edge at ``offset``."""
    left, bottom = offset + _LEFT, _HEIGHT - _BOTTOM
    right, top = offset + _WIDTH - _RIGHT, _TOP
    costs, scores = ([bound for point in points for bound in point[name]["ci95"]] for name in (cost, "score"))

    def x(value: float) -> float:
        return _scaled(value, costs, left, right)

    def y(value: float) -> float:
        return _scaled(value, scores, bottom, top)

    parts = [_line(left, bottom, right, bottom, colors.line), _line(left, bottom, left, top, colors.line)]
    parts += [_text(x(bound), bottom + 16, f"{bound:,.4g}", "middle") for bound in sorted({min(costs), max(costs)})]
    parts += [_text(left - 6, y(bound) + 4, f"{bound:.3f}", "end") for bound in sorted({min(scores), max(scores)})]
    parts += [_text((left + right) / 2, bottom + 36, _AXIS[cost], "middle"), _text(left, top - 12, "score", "start")]
    front = sorted((point for point in points if not point["dominated"]), key=lambda point: point[cost]["mean"])
    corners = [(x(point[cost]["mean"]), y(point["score"]["mean"])) for point in front]
    parts += [_line(*start, *end, colors.front) for start, end in itertools.pairwise(corners)]
    for point in points:
        x_at, y_at = x(point[cost]["mean"]), y(point["score"]["mean"])
        color = colors.dominated if point["dominated"] else colors.front
        low, high = point[cost]["ci95"]
        parts.append(_line(x(low), y_at, x(high), y_at, color))
        low, high = point["score"]["ci95"]
        parts.append(_line(x_at, y(low), x_at, y(high), color))
        ring = f' stroke="{colors.line}" stroke-width="2"' if point["kept"] else ""
        parts.append(f'<circle cx="{x_at:.1f}" cy="{y_at:.1f}" r="5" fill="{color}"{ring}/>')
        parts.append(_text(x_at + 8, y_at - 6, point_name(point), "start"))
    return "".join(parts)


def _scaled(value: float, values: Sequence[float], start: float, end: float) -> float:
    """Where a value lies between ``start`` and ``end``, which stand for the least and the largest of ``values``."""
    low, high = min(values), max(values)
    return start + (end - start) * ((value - low) / (high - low) if high > low else 0.5)


def _line(x1: float, y1: float, x2: float, y2: float, color: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'
