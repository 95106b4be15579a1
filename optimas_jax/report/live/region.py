"""A region at the bottom of a terminal that is drawn in place, while everything else scrolls above it.

``rich.live.Live`` counts the lines that it drew. When a terminal gets narrower, lines wrap and take more rows, and
``Live`` would leave some behind. It also redirects stderr to stdout, even where stderr is a file.
"""

from __future__ import annotations

import atexit
import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TextIO, cast

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook, RenderResult
from rich.control import Control
from rich.file_proxy import FileProxy
from rich.segment import ControlType, Segment

_SECONDS = 0.25  # between two drawings
# While the region is drawn lines do not wrap, whatever width the terminal gives to a letter. A terminal may also wrap
# the lines of the last drawing before it reports its new width (tmux: a quarter of a second later). A drawing in that
# time takes no more rows than it has lines, so that the number of rows is known (``Region._erased``).
_NO_WRAP, _WRAP = (Segment(code, None, [(ControlType.CURSOR_UP, 0)]) for code in ("\x1b[?7l", "\x1b[?7h"))


class Region(RenderHook):
    """Draws what ``view`` gives for a width, until ``close``.

    Attributes:
      lock: held while a thread draws or prints.
    """

    def __init__(self, console: Console, view: Callable[[int], RenderableType]):
        self.lock = threading.RLock()
        self._console, self._view = console, view
        self._drawn: list[int] = []  # widths of the lines on the screen
        self._ended = threading.Event()
        self._opened = contextlib.ExitStack()
        self._opened.callback(console.show_cursor, True)
        self._opened.callback(self._erase)
        self._opened.enter_context(_above(console, self.lock))
        atexit.register(self.close)  # an interrupt can come at any time
        console.show_cursor(False)
        console.push_render_hook(self)
        self._thread = threading.Thread(target=self._work, name="optimas_jax live table", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Removes the region from the screen."""
        self._ended.set()
        with self.lock:
            self._opened.close()
        atexit.unregister(self.close)
        self._thread.join()

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Places printed text above the region."""
        return [self._erased(), *renderables, _Drawing(self)]

    def draw(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The lines of the region; the cursor stays at the end of the last one."""
        width, height = console.size
        width -= 1  # a line that fills the last column wraps on some terminals
        lines = console.render_lines(self._view(width), options.update(width=width, height=None), pad=False)
        lines = lines[: max(1, height - 1)]
        self._drawn = [Segment.get_line_length(line) for line in lines]
        yield _NO_WRAP
        for index, line in enumerate(lines):
            if index:
                yield Segment.line()
            yield from line
        yield _WRAP

    def _erased(self) -> Control:
        """Control codes that erase the last drawing, whose lines may have wrapped meanwhile, and move the cursor to
        where the region began."""
        drawn, self._drawn = self._drawn, []
        width = max(1, self._console.size.width)
        rows = sum(max(1, -(-line // width)) for line in drawn)
        up = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)) * (rows - 1)
        return Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2), *up) if rows else Control()

    def _erase(self) -> None:
        """Erases the last drawing for good."""
        self._console.pop_render_hook()
        self._console.print(self._erased(), end="")

    def _work(self) -> None:
        while not self._ended.wait(_SECONDS):
            with self.lock:
                if not self._ended.is_set():
                    self._console.print(Control(), end="")


class _Drawing:
    """The region, drawn when it is printed."""

    def __init__(self, region: Region):
        self._region = region

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self._region.draw(console, options)


class _Above(FileProxy):
    """A standard stream, whose lines go above the region."""

    def __init__(self, console: Console, stream: TextIO, lock: threading.RLock):
        super().__init__(console, stream)
        self._lock = lock

    def write(self, text: str) -> int:
        with self._lock:
            return super().write(text)

    def flush(self) -> None:
        """Does nothing: ``write`` prints whole lines at once, and a partial line together with its end."""


@contextlib.contextmanager
def _above(console: Console, lock: threading.RLock) -> Iterator[None]:
    """During the block, texts written to standard streams of the terminal go above the region."""
    originals = sys.stdout, sys.stderr
    streams = [_Above(console, stream, lock) if stream.isatty() else stream for stream in originals]
    sys.stdout, sys.stderr = (cast(TextIO, stream) for stream in streams)
    try:
        yield
    finally:
        for stream in streams:
            if isinstance(stream, _Above):
                FileProxy.flush(stream)
        if sys.stdout is streams[0]:
            sys.stdout = originals[0]
        if sys.stderr is streams[1]:
            sys.stderr = originals[1]
