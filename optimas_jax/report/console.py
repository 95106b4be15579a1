"""Progress on a console: one line for each decision, and on a terminal one table that is renewed in place below them.

Elsewhere (a log file, a pipe) only the lines are written, and one every few minutes if nothing else is.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table

from optimas_jax.core.folder.live import Status
from optimas_jax.core.progress import Bars
from optimas_jax.core.text.secrets import redact
from optimas_jax.report.live.grids import fitted
from optimas_jax.report.live.region import Region
from optimas_jax.report.live.text import fit, plain, styled
from optimas_jax.report.live.view import clock, eta, live_table, score, spent, where

_ALIVE_SECONDS = 300.0  # between two lines of a log
_SIZE = ("COLUMNS", "LINES")  # variables that would fix the size that the terminal had at first
_LOG_WIDTH, _LONGEST = 120, 2_000  # of tables, and of lines in a log


class ConsoleProgress:
    """Writes to one console, or nowhere. The table is shown while a run shows its state, or a bar is open."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False, stderr: bool = False):
        """
        Args:
          console: console to use instead of the process's own; it gets no table in place.
          quiet: whether nothing is shown.
          stderr: whether to write to standard error instead of standard output.
        """
        self._interactive = console is None and not quiet and _is_terminal(sys.stderr if stderr else sys.stdout)
        self.console = console or Console(
            highlight=False,
            markup=False,
            emoji=False,
            quiet=quiet,
            stderr=stderr,
            soft_wrap=True,
            force_terminal=self._interactive,  # whatever FORCE_COLOR says
            _environ={name: value for name, value in os.environ.items() if name not in _SIZE},
            width=None if self._interactive else _LOG_WIDTH,  # log files have room for the tables
            force_jupyter=False,  # where every line would be a display of its own
        )
        self._bars, self._status = Bars(), None
        self._lock, self._region = threading.RLock(), None
        self._last = time.monotonic()  # when something was written

    def line(self, text: str) -> None:
        """Prints one line about one decision."""
        self._last = time.monotonic()
        width = self.console.width - 1 if self._interactive else _LONGEST
        line = styled(self._encoded(fit(plain(redact(text)), width)))
        with self._drawing():
            self.console.print(line, soft_wrap=True)

    def table(self, table: Table) -> None:
        """Prints a table that fits the width of the console; no cell is markup."""
        width = self.console.width - 1 if self._interactive else self.console.width
        with self._drawing():
            self.console.print(fitted(table, width), markup=False, emoji=False, soft_wrap=False)

    @contextlib.contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[[], None]]:
        """Shows a bar over ``total`` steps; the block calls the yielded function once per step."""
        try:
            with self._bars.bar(label, total) as count_step:

                def advance() -> None:
                    count_step()
                    self._tell_alive()

                self._update()
                yield advance
        finally:
            self._update()

    def show(self, status: Status | None) -> None:
        """Shows what the run is doing; None at its end."""
        self._status = status
        self._update()
        self._tell_alive()

    @contextlib.contextmanager
    def in_place(self, view: Callable[[int], RenderableType]) -> Iterator[bool]:
        """Draws what ``view`` gives for a width in place during the block, on a terminal; yields whether it does."""
        if not self._interactive:
            yield False
            return
        self._region = region = Region(self.console, view)
        try:
            yield True
        finally:
            self._region = None
            region.close()

    def _update(self) -> None:
        """Opens or closes the table, as needed."""
        if not self._interactive:
            return
        with self._lock:
            wanted = self._status is not None or bool(self._bars.now)
            if wanted and self._region is None:
                self._region = Region(self.console, self._view)
            elif not wanted and self._region is not None:
                region, self._region = self._region, None
                region.close()

    def _drawing(self) -> contextlib.AbstractContextManager[Any]:
        """Context manager during which no other thread draws."""
        region = self._region
        return contextlib.nullcontext() if region is None else region.lock

    def _view(self, width: int) -> RenderableType:
        return live_table(self._status, self._bars.now, width)

    def _tell_alive(self) -> None:
        """Prints a line if a log had none for a while."""
        if self._interactive or time.monotonic() - self._last < _ALIVE_SECONDS:
            return
        status, bars = self._status, self._bars.now
        parts = [] if status is None else [where(status), f"score {score(status)}", spent(status.spent)]
        parts += [f"{bar.label} {bar.done}/{bar.total}" for bar in bars[-1:]]
        left = None if status is None or status.left is None else eta(status)
        if left is None and bars and bars[-1].left is not None:
            left = f"~{clock(bars[-1].left)}"
        self.line(f"  ... {', '.join(parts)}{f', {left} left' if left else ''}")

    def _encoded(self, text: str) -> str:
        """The text, with letters that the console's encoding lacks replaced."""
        encoding = self.console.encoding
        return text.encode(encoding, "replace").decode(encoding)


def _is_terminal(stream: Any) -> bool:
    """Whether a stream is a terminal that can move the cursor and show the letters of the table."""
    encoding = (stream.encoding or "").lower().replace("-", "")
    return (
        stream.isatty()
        and encoding.startswith("utf")
        and os.environ.get("TERM", "dumb").lower() not in ("", "dumb", "unknown")
    )
