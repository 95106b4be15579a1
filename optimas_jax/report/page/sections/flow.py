"""A picture of components and what flows between them: columns from left to right, and arcs past columns and back."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from optimas_jax.report.page import text
from optimas_jax.report.page.svg import element, picture

_WIDTH, _HEIGHT, _GAP, _ROW = 176.0, 54.0, 34.0, 78.0  # of a box; between columns; from row to row
_MOST, _ARROWS = 40, 300  # boxes and arrows that are drawn


@dataclasses.dataclass(frozen=True)
class Node:
    """A box: its name, a line below it, whether it was changed, and whether it could have been (``tuned``)."""

    name: str
    note: str
    changed: bool
    tuned: bool


@dataclasses.dataclass(frozen=True)
class Edge:
    """An arrow from one box to another, with what it carries."""

    start: str
    end: str
    note: str


def flow_picture(nodes: Sequence[Node], edges: Sequence[Edge], what: str) -> Markup:
    """Draws boxes and arrows.

    Args:
      nodes: in the order in which they usually come.
      what: meaning of an arrow.
    """
    nodes = nodes[:_MOST]
    places = _places(nodes, edges)
    known = [edge for edge in edges if edge.start in places and edge.end in places][:_ARROWS]
    lifts = [_lift(places, edge) for edge in known]
    above, below = max(0.0, *(-lift for lift in lifts), 0.0), max(0.0, *lifts, 0.0)
    columns = 1 + max(column for column, _ in places.values())
    rows = 1 + max(row for _, row in places.values())
    top = 8 + above
    width, height = columns * (_WIDTH + _GAP) - _GAP + 4, top + rows * _ROW - (_ROW - _HEIGHT) + below + 8
    arrow = element(
        "marker",
        element("path", d="M0 0L7 3.5L0 7Z", class_="head"),
        id="arrow",
        markerWidth=7,
        markerHeight=7,
        refX=7,
        refY=3.5,
        orient="auto",
    )
    drawn = [_edge(places, edge, lift, top) for edge, lift in zip(known, lifts, strict=True)]
    boxes = [_box(node, places[node.name], top) for node in nodes]
    words = "; ".join(f"{edge.start} to {edge.end}" + f" ({edge.note})" * bool(edge.note) for edge in known[:60])
    return picture(
        "The system", f"An arrow: {what}. {words}", width, height, element("defs", arrow), *drawn, *boxes, class_="flow"
    )


def _places(nodes: Sequence[Node], edges: Sequence[Edge]) -> dict[str, tuple[int, int]]:
    """(column, row) of each box: the column after the boxes with arrows to it, by arrows in the order of boxes."""
    order = {node.name: index for index, node in enumerate(nodes)}
    columns: dict[str, int] = {} if edges else order  # nothing is known of what flows between them
    for name, index in order.items() if edges else ():
        before = [edge.start for edge in edges if edge.end == name and order.get(edge.start, math.inf) < index]
        columns[name] = 1 + max((columns[start] for start in before), default=-1)
    rows: collections.Counter[int] = collections.Counter()
    places = {}
    for name, column in columns.items():
        places[name] = (column, rows[column])
        rows[column] += 1
    return places


def _lift(places: Mapping[str, tuple[int, int]], edge: Edge) -> float:
    """How far an arc goes above (negative) or below the boxes: it passes columns, or goes back."""
    (start, row), (end, other) = places[edge.start], places[edge.end]
    if end == start + 1 or (end > start and row != other):
        return 0.0
    return -(12.0 + 13.0 * (end - start)) if end > start else 18.0 + 12.0 * (start - end)


def _edge(places: Mapping[str, tuple[int, int]], edge: Edge, lift: float, top: float) -> Markup:
    (start, row), (end, other) = places[edge.start], places[edge.end]
    left, right = 2 + start * (_WIDTH + _GAP), 2 + end * (_WIDTH + _GAP)
    y1, y2 = (top + place * _ROW + _HEIGHT / 2 for place in (row, other))
    if not lift:
        x1, x2 = left + _WIDTH, right
        path = f"M{x1:.0f} {y1:.0f}C{x1 + 20:.0f} {y1:.0f} {x2 - 24:.0f} {y2:.0f} {x2 - 2:.0f} {y2:.0f}"
    else:
        edge_y = _HEIGHT / 2 * (1 if lift > 0 else -1)
        shift = 40 if lift < 0 else -40
        x1, x2 = left + _WIDTH / 2 + shift, right + _WIDTH / 2 - shift
        y1, y2 = y1 + edge_y, y2 + edge_y + (2 if lift > 0 else -2)
        reach = max(y1, y2) + lift * 1.25 if lift > 0 else min(y1, y2) + lift * 1.25
        path = f"M{x1:.0f} {y1:.0f}C{x1:.0f} {reach:.0f} {x2:.0f} {reach:.0f} {x2:.0f} {y2:.0f}"
    return element(
        "path",
        element("title", f"{edge.start} to {edge.end}" + f": {edge.note}" * bool(edge.note)),
        d=path,
        class_="edge",
        marker_end="url(#arrow)",
    )


def _box(node: Node, place: tuple[int, int], top: float) -> Markup:
    x, y = 2 + place[0] * (_WIDTH + _GAP), top + place[1] * _ROW
    kind = "changed" if node.changed else "tuned" if node.tuned else "fixed"
    short = node.name if len(node.name) <= 23 else f"{node.name[:21]}…"
    return element(
        "g",
        element("title", f"{text.clip(node.name, 200)}: {node.note}"),
        element("rect", x=x, y=y, width=_WIDTH, height=_HEIGHT, rx=10, class_=f"box {kind}"),
        element("text", short, x=x + _WIDTH / 2, y=y + 23, text_anchor="middle", class_="strong"),
        element("text", node.note, x=x + _WIDTH / 2, y=y + 41, text_anchor="middle"),
    )
