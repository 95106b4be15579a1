"""The interface for reporting the progress of long work; ``report.console`` shows it on a console."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol


class Progress(Protocol):
    """Receives lines and the steps of long work."""

    def line(self, text: str) -> None:
        """Shows one line about one decision."""
        ...

    def bar(self, label: str, total: int) -> AbstractContextManager[Callable[[], None]]:
        """Shows a bar over ``total`` steps; the block calls the function that it gets once per step."""
        ...
