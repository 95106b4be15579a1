"""The live table: what a run is doing, and the bars that are open."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from optimas_jax.core.folder.live import Status
from optimas_jax.core.progress import Bar
from optimas_jax.core.usage import Usage
from optimas_jax.report.live.text import fit, padded, plain

_BARS = 4  # bars that are shown: the last ones
_LEAST_BAR, _MOST_BAR = 8, 40  # cells
_NARROW = 70  # cells; on a narrower terminal the figures stand on a line of their own
_STATES = {"pausing": "pausing: calls in flight end", "paused": "paused", "stopping": "stopping"}


def clock(seconds: float) -> str:
    """Minutes and seconds, and hours where there are some: ``2:05``, ``1:02:05``."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def amount(number: float) -> str:
    """A count in at most four digits: ``950``, ``12.3k``, ``4.56M``."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            value = number / unit
            return f"{value:.2f}{name}" if value < 10 else f"{value:.1f}{name}" if value < 100 else f"{value:.0f}{name}"
    return f"{number:.0f}"


def spent(usage: Usage) -> str:
    """Dollars, where there are some, and tokens."""
    dollars = f"${usage.usd:.2f}, " if usage.usd >= 0.005 else f"${usage.usd:.4f}, " if usage.usd else ""
    return f"{dollars}{amount(usage.tokens)} tokens"


def score(status: Status) -> str:
    """The validation score, and its difference to the score of the default configuration."""
    if status.score is None:
        return "-"
    if status.start is None or status.start == status.score:
        return f"{status.score:.3f}"
    return f"{status.score:.3f} ({status.score - status.start:+.3f})"


def eta(status: Status) -> str:
    """The time that is left, roughly."""
    return "-" if status.left is None else f"~{clock(status.left)}"


def where(status: Status) -> str:
    """The title of a run with its phase."""
    phase, _, part = status.step.partition(": ")
    number = f" {status.iteration}/{status.iterations}" if phase == "optimize" and status.iteration else ""
    state = f", {_STATES[status.state]}" if status.state in _STATES else ""
    return f"{plain(status.title)}: {phase}{number}{f', {part}' if part else ''}{state}"


def live_table(status: Status | None, bars: Sequence[Bar], width: int) -> RenderableType:
    """Everything that is shown in place, in at most ``width`` cells; nothing in it wraps."""
    parts = [] if status is None else [_head(status, width), _row(status, width)]
    more = len(bars) - _BARS
    shown = [_bar(bar, width) for bar in bars[-_BARS:]]
    if more > 0:
        shown = [_line(f"  {more} more", width, "dim"), *shown]
    return Group(*parts, *shown)


def _line(text: str, width: int, style: str = "") -> Text:
    return Text(fit(text, width), style=style, no_wrap=True, overflow="crop")


def _head(status: Status, width: int) -> Text:
    time = clock(status.seconds)
    text = fit(where(status), width - len(time) - 1)
    line = _line(f"{padded(text, width - len(time))}{time}", width)
    line.stylize("bold", 0, len(text))
    return line


def _row(status: Status, width: int) -> RenderableType:
    """Component, proposal, score, spent and ETA, with their names above them."""
    texts = [("component", plain(status.component) or "-"), ("proposal", plain(status.proposal) or "-")]
    figures = [("score", score(status)), ("spent", spent(status.spent)), ("ETA", eta(status))]
    if width < _NARROW:
        return Group(_grid(texts, [], width), _grid([], figures, width))
    return _grid(texts, figures, width)


def _grid(texts: Sequence[tuple[str, str]], figures: Sequence[tuple[str, str]], width: int) -> RenderableType:
    """Names above their cells; texts take what figures leave."""
    widths = [max(cell_len(name), cell_len(cell)) for name, cell in figures]
    left = max(0, width - sum(widths) - 2 * (len(texts) + len(figures) - 1))
    if texts:
        first = min(max(cell_len(text) for text in texts[0]), max(9, left // 3), left)
        widths = [first, left - first, *widths]
    names, cells = zip(*texts, *figures, strict=True)
    lines = [
        "  ".join(padded(fit(cell, size), size) for cell, size in zip(row, widths, strict=True))
        for row in (names, cells)
    ]
    return Group(_line(lines[0].rstrip(), width, "dim"), _line(lines[1].rstrip(), width))


def _bar(bar: Bar, width: int) -> Text:
    """A label, a bar, the steps and the time that is left."""
    left = "" if bar.left is None else f"  ~{clock(bar.left)}"
    figures = f"{bar.done}/{bar.total}{left}"
    label = plain(bar.label)
    room = width - len("      ") - len(figures)  # spaces between and before the parts
    size = min(_MOST_BAR, room - cell_len(label))
    if size < _LEAST_BAR:
        size = _LEAST_BAR if room >= 2 * _LEAST_BAR else 0
    words = fit(label, room - size)
    done = round(size * min(bar.done, bar.total) / max(bar.total, 1))
    before = f"  {words}  "
    line = _line(f"{before}{'━' * size}  {figures}", width)
    line.stylize("bright_black", len(before) + done, len(before) + size)
    line.stylize("cyan", len(before), len(before) + done)
    return line
