"""Progress on a console: bars with rates and remaining time, one line per decision.

On a terminal bars move in place; elsewhere (a log file, a pipe) they become a line every few seconds.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.errors import MarkupError
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

from optimas_jax.core.secrets import redact

_LINE_SECONDS = 15.0


class _RateColumn(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.2f}/s", style="progress.data.speed")


class ConsoleProgress:
    """Writes to one console, or nowhere."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False):
        width = None if sys.stdout.isatty() else 120  # log files have room for the tables
        self.console = console or Console(
            highlight=False,
            quiet=quiet,
            soft_wrap=True,
            width=width,
            force_jupyter=False,  # where every line would be a display of its own
        )

    def line(self, text: str) -> None:
        """One line about one decision."""
        text = redact(text)
        try:
            self.console.print(text)
        except MarkupError:  # a name in it looks like markup
            self.console.print(text, markup=False)

    @contextlib.contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[[], None]]:
        """A bar over ``total`` steps; the block calls the yielded function once per step."""
        if not self.console.is_terminal:
            with self._lines(label, total) as advance:
                yield advance
            return
        columns = (
            TextColumn("  {task.description:<28}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=self.console) as bars:
            task = bars.add_task(label, total=total)
            yield lambda: bars.advance(task)

    @contextlib.contextmanager
    def _lines(self, label: str, total: int) -> Iterator[Callable[[], None]]:
        started = last = time.monotonic()
        done = 0

        def report(now: float) -> None:
            seconds = max(now - started, 1e-9)
            left = "" if done in (0, total) else f", ETA {clock(seconds / done * (total - done))}"
            self.line(f"  {label:<28} {done}/{total}, {done / seconds:.2f}/s, {clock(seconds)}{left}")

        def advance() -> None:
            nonlocal done, last
            done += 1
            now = time.monotonic()
            if now - last >= _LINE_SECONDS and done < total:
                last = now
                report(now)

        yield advance
        report(time.monotonic())


def clock(seconds: float) -> str:
    """Minutes and seconds: ``2:05``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
