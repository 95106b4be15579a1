"""The page of a run while it runs: rewritten after every iteration of its search."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from optimas_jax.core.folder.events import Begin, Confirmation, Event
from optimas_jax.core.folder.search_events import Curve, SearchEnd
from optimas_jax.core.text.frames import describe_error
from optimas_jax.report.page.write import write_page
from optimas_jax.report.run_files import read_run

_NEWS = (Curve, SearchEnd, Confirmation)  # events after which the page is rewritten
_SHARE = 25  # seconds of the run for a second of writing: 4 % of its time, at most
_FIRST = 2.5  # seconds of a run before its first page


@contextlib.contextmanager
def live_page(warn: Callable[[str], None]) -> Iterator[Callable[[Event], None]]:
    """Keeps ``report.html`` of a run current while the block runs it, and at the end rewrites it to show how the run
    ended. A run with results keeps the page of these. An error of writing the page is shown once, and stops nothing.

    Args:
      warn: shows a line.

    Yields:
      A callback for the events of the run.
    """
    page = _Page(warn)
    try:
        yield page.tell
    finally:
        page.end()


class _Page:
    """The page of the run whose events it receives."""

    def __init__(self, warn: Callable[[str], None]):
        self._warn, self._failed = warn, False
        self._folder: Path | None = None  # of the run, once this command has it
        self._due = 0.0  # when the page may be written next

    def tell(self, event: Event) -> None:
        """Rewrites the page if the event is news and the last writing is long enough ago."""
        if isinstance(event, Begin):
            self._folder, self._due = Path(event.folder), time.monotonic() + _FIRST
        elif isinstance(event, _NEWS) and time.monotonic() >= self._due:
            self._write(running=True)

    def end(self) -> None:
        """Rewrites the page of a run without results, which is not running any more."""
        if self._folder is not None:
            self._write(running=False)

    def _write(self, *, running: bool) -> None:
        if self._failed or self._folder is None or (self._folder / "results.json").exists():
            return
        began = time.monotonic()
        try:
            write_page(self._folder / "report.html", read_run(self._folder), running=running)
        except Exception as error:  # the run is worth more than its page
            self._failed = True
            self._warn(
                f"warning: the page of the run cannot be written ({describe_error(error)}); the run goes on, and this "
                "is said once"
            )
        self._due = time.monotonic() + _SHARE * (time.monotonic() - began)
