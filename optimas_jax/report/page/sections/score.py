"""Validation score against its cost: a step line, and a dot for every proposal that was tested."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from optimas_jax.core.folder.search_events import Curve, Gate
from optimas_jax.core.usage import Usage
from optimas_jax.report.page import svg, text
from optimas_jax.report.run_files import RunFiles

_MOST = 600  # points, and dots, that are drawn
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 880.0, 330.0, 58.0, 20.0, 30.0, 52.0
_COSTS: Mapping[str, tuple[str, Callable[[Usage], float]]] = {
    "tokens": ("tokens of language models", lambda spent: spent.tokens),
    "dollars": ("US dollars", lambda spent: spent.usd),
    "seconds": ("seconds of models and programs", lambda spent: spent.seconds),
    "runs": ("runs of the system", lambda spent: spent.system_runs),
}


@dataclasses.dataclass(frozen=True)
class Point:
    """The score in use from a moment of the search on."""

    score: float
    spent: Usage
    iteration: int
    at: str


@dataclasses.dataclass(frozen=True)
class Dot:
    """A tested proposal: its score (the score in use plus the measured gain), and its verdict."""

    score: float
    spent: Usage
    kept: bool
    words: str


@dataclasses.dataclass(frozen=True)
class Score:
    """The curve of a run.

    Attributes:
      pictures: by cost on the axis; only costs that differ.
      points: of the step line.
    """

    pictures: Mapping[str, Markup]
    points: Sequence[Point]


def score(run: RunFiles) -> Score:
    """The curve of a run, finished or not, from its journal."""
    points, dots = _read(run)
    shown = _thinned(points, _MOST)
    names = [name for name, (_, cost) in _COSTS.items() if len({cost(point.spent) for point in points}) > 1]
    pictures = {name: _picture(shown, dots[:_MOST], name) for name in names or ["tokens"] * bool(points)}
    return Score(pictures, shown)


def _read(run: RunFiles) -> tuple[list[Point], list[Dot]]:
    points: list[Point] = []
    dots: list[Dot] = []
    waiting: list[Gate] = []  # the next point of the curve has what was spent by then
    for event in run.events:
        if isinstance(event, Gate):
            waiting += [event] * text.is_number(event.val_gain)
        elif isinstance(event, Curve):
            if not text.is_number(event.val_score):
                continue
            before = points[-1].score if points else event.val_score
            dots += [_dot(gate, before, event.spent) for gate in waiting]
            waiting = []
            points.append(Point(event.val_score, event.spent, event.iteration, event.at))
    return points, [dot for dot in dots if text.is_number(dot.score)]


def _dot(gate: Gate, before: float, spent: Usage) -> Dot:
    verdict = "kept" if gate.accepted else "refused"
    of = f" of {gate.of}" if gate.of else ""
    what = f"{text.name(gate.component)}, {text.name(gate.kind)}"
    gain = f"{text.signed(gate.val_gain)} {text.interval(gate.ci95)} on {gate.n}{of} validation examples"
    return Dot(before + gate.val_gain, spent, gate.accepted, f"{what}: {gain}, {verdict}")


def _thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most about ``most`` points: every n-th one, and the last."""
    if len(points) <= most:
        return list(points)
    step = -(-len(points) // most)
    return [*points[::step], points[-1]]


def _picture(points: Sequence[Point], dots: Sequence[Dot], name: str) -> Markup:
    axis, cost = _COSTS[name]
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    x = svg.scale_over([cost(item.spent) for item in (*points, *dots)], _LEFT, right, zero=True)
    y = svg.scale_over([item.score for item in (*points, *dots)], bottom, _TOP, margin=0.08)
    corners = [(x(cost(point.spent)), y(point.score)) for point in points]
    line = svg.steps([*corners, (right, corners[-1][1])])
    drawn = [
        *svg.y_axis(y, _LEFT, right, "validation score"),
        *svg.x_axis(x, bottom, axis),
        svg.element("path", d=line, class_="line"),
    ]
    for dot in sorted(dots, key=lambda dot: dot.kept):
        drawn.append(_mark(x(cost(dot.spent)), y(dot.score), dot))
    first, last = points[0], points[-1]
    kept, refused = sum(dot.kept for dot in dots), sum(not dot.kept for dot in dots)
    description = (
        f"The validation score was {text.number(first.score)} at the start and is {text.number(last.score)} after "
        f"{text.number(cost(last.spent), 0)} {axis}. {kept} tested proposals were kept, {refused} refused."
    )
    return svg.picture(f"Validation score against {axis}", description, _WIDTH, _HEIGHT, *drawn, class_="chart curve")


def _mark(x: float, y: float, dot: Dot) -> Markup:
    title = svg.element("title", dot.words)
    if dot.kept:
        return svg.element("circle", title, cx=x, cy=y, r=6, class_="dot good")
    return svg.element("path", title, d=f"M{x - 4.5:.1f} {y - 4.5:.1f}l9 9m0-9l-9 9", class_="cross bad")
