"""Pictures as SVG, drawn with classes of the page's style, so that they follow its colours."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup, escape

from optimas_jax.report.page.text import is_interval, is_number, visible


def element(name: str, *children: Any, **attributes: Any) -> Markup:
    """An element; texts and attributes are escaped. ``class_`` is class, ``stroke_width`` stroke-width; attributes that
    are None are left out."""
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    attribute_text = "".join(f' {key}="{escape(_short(value))}"' for key, value in given.items())
    inner = "".join(
        escape(visible(child) if isinstance(child, str) and not _is_safe(child) else child) for child in children
    )
    return Markup(f"<{name}{attribute_text}>{inner}</{name}>")  # noqa: S704  # all parts are escaped


def _is_safe(child: Any) -> bool:
    return hasattr(child, "__html__")


def _short(value: Any) -> Any:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def picture(
    title: str, description: str, width: float, height: float, *children: Any, class_: str = "", stretch: bool = False
) -> Markup:
    """A picture with a name and a description for readers who cannot see it; ``stretch``: as wide as there is room."""
    return element(
        "svg",
        element("title", title),
        element("desc", description) if description else "",
        *children,
        role="img",
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        class_=class_ or None,
        preserveAspectRatio="none" if stretch else None,
    )


@dataclasses.dataclass(frozen=True)
class Scale:
    """Maps numbers from ``low`` to ``high`` to positions from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The position of a value; values outside of the range are at its end."""
        if not self.high > self.low:
            return (self.start + self.end) / 2
        share = value / 2 - self.low / 2, self.high / 2 - self.low / 2  # halves: differences of huge numbers overflow
        return self.start + (self.end - self.start) * min(1.0, max(0.0, share[0] / share[1]))


def scale_over(values: Iterable[Any], start: float, end: float, *, zero: bool = False, margin: float = 0.0) -> Scale:
    """A scale over the finite numbers among some values.

    Args:
      zero: whether 0 is on it.
      margin: share of the range that is added at both ends.
    """
    known = [float(value) for value in values if is_number(value)] + [0.0] * zero
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if low == high:
        low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    room = margin * (high / 2 - low / 2) * 2
    return Scale(low - room, high + room, start, end)


def ticks(scale: Scale, most: int = 5) -> list[float]:
    """Round numbers on a scale, at most ``most`` + 1."""
    span = scale.high / most - scale.low / most
    if not (math.isfinite(span) and span > 0):
        return [scale.low]
    power = 10.0 ** math.floor(math.log10(span))
    step = next((factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= span), 10 * power)
    first = math.ceil(scale.low / step - 1e-9)
    marks = itertools.takewhile(lambda mark: mark <= scale.high + step * 1e-9, ((first + i) * step for i in range(99)))
    return list(marks)


def tick_text(value: float) -> str:
    """A number of an axis: ``0.2``, ``30k``, ``1.2M``."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < 1e12:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def interval_bar(mean: Any, bounds: Any, span: tuple[float, float], *, width: float = 150.0, words: str = "") -> Markup:
    """A mean with its interval beside zero.

    Args:
      span: the ends of the picture, zero between them (``span_of``).
    """
    if not is_number(mean):
        return Markup("")
    scale, middle = Scale(*span, 6, width - 6), 9.0
    drawn = [element("line", class_="axis", x1=scale(0), x2=scale(0), y1=1, y2=17)]
    side = "even"
    if is_interval(bounds):
        low, high = bounds
        side = "good" if low > 0 else "bad" if high < 0 else "even"
        drawn.append(element("line", class_=f"bar {side}", x1=scale(low), x2=scale(high), y1=middle, y2=middle))
    drawn.append(element("circle", class_=f"dot {side}", cx=scale(mean), cy=middle, r=4))
    return picture(words or "interval", "", width, 18, *drawn, class_="interval")


def span_of(values: Iterable[Any]) -> tuple[float, float]:
    """The smallest and the largest of numbers and zero, for bars that are to be compared."""
    known = [0.0, *(float(value) for value in values if is_number(value))]
    low, high = min(known), max(known)
    return (low, high) if low < high else (-1.0, 1.0)


def y_axis(scale: Scale, left: float, right: float, label: str = "") -> list[Markup]:
    """Lines across a picture with their numbers, and the axis' name above."""
    parts = []
    for mark in ticks(scale):
        y = scale(mark)
        parts.append(element("line", class_="grid", x1=left, x2=right, y1=y, y2=y))
        parts.append(element("text", tick_text(mark), x=left - 8, y=y + 4, text_anchor="end"))
    return [*parts, element("text", label, class_="name", x=0, y=12)]


def x_axis(scale: Scale, bottom: float, label: str, most: int = 6) -> list[Markup]:
    """Numbers below a picture, and the axis' name below them."""
    parts = [element("line", class_="axis", x1=scale.start, x2=scale.end, y1=bottom, y2=bottom)]
    for mark in ticks(scale, most):
        parts.append(element("line", class_="axis", x1=scale(mark), x2=scale(mark), y1=bottom, y2=bottom + 4))
        parts.append(element("text", tick_text(mark), x=scale(mark), y=bottom + 18, text_anchor="middle"))
    middle = (scale.start + scale.end) / 2
    return [*parts, element("text", label, class_="name", x=middle, y=bottom + 36, text_anchor="middle")]


def steps(points: Sequence[tuple[float, float]]) -> str:
    """The path of a line that keeps each height until the next point."""
    if not points:
        return ""
    path = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    return " ".join([*path, *(f"H{x:.1f}V{y:.1f}" for x, y in points[1:])])
