"""Progress in a notebook: one table, updated in place."""

from __future__ import annotations

import contextlib
import dataclasses
import html
import importlib
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from optimas_jax.core.progress import Progress
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.report.live.view import clock

_ROWS = 60  # rows of the table; earlier rows are only counted
_UPDATE_SECONDS = 0.25  # at least, between two updates for steps of a bar
Show = Callable[[Mapping[str, str]], None]  # gets what is displayed, by MIME type


@dataclasses.dataclass
class _Row:
    """A line, or a bar over ``total`` steps."""

    text: str
    total: int = 0
    done: int = 0
    started: float = 0.0
    seconds: float = 0.0

    def cells(self) -> tuple[str, str, str]:
        if not self.total:
            return self.text, "", ""
        return self.text, f"{self.done}/{self.total}", clock(self.seconds)


class NotebookProgress:
    """Shows lines and bars as the rows of one table. Rows come from several threads."""

    def __init__(self, show: Show):
        self._show, self._lock, self._shown = show, threading.Lock(), 0.0
        self._rows: list[_Row] = []

    def line(self, text: str) -> None:
        """Adds one row about one decision."""
        self._add(_Row(text))

    @contextlib.contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[[], None]]:
        """Adds a row over ``total`` steps; the block calls the yielded function once per step."""
        row = _Row(label, total, started=time.monotonic())
        self._add(row)

        def advance() -> None:
            with self._lock:
                row.done += 1
                row.seconds = time.monotonic() - row.started
                if time.monotonic() - self._shown >= _UPDATE_SECONDS:
                    self._update()

        try:
            yield advance
        finally:
            with self._lock:
                row.seconds = time.monotonic() - row.started
                self._update()

    def _add(self, row: _Row) -> None:
        with self._lock:
            self._rows.append(row)
            self._update()

    def _update(self) -> None:
        self._shown = time.monotonic()
        cells = [row.cells() for row in self._rows[-_ROWS:]]
        earlier = len(self._rows) - len(cells)
        first = [(f"{earlier} earlier rows", "", "")] if earlier else []
        self._show({"text/html": _table([*first, *cells]), "text/plain": _lines([*first, *cells])})


def keep_libraries_quiet() -> None:
    """Suppresses messages of libraries that do not concern this package: transformers reports that torch is absent, and
    tqdm, in a notebook, that widgets are absent. To be called before these libraries are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if _notebook() is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("tqdm.auto")


def default_progress() -> Progress:
    """Progress by default: one table in a notebook, lines and bars on a console."""
    show = _display()
    return ConsoleProgress() if show is None else NotebookProgress(show)


def _display() -> Show | None:
    """Shows and updates one output of the notebook's cell; None outside of a notebook."""
    ipython = _notebook()
    if ipython is None:
        return None
    handle: Any = None

    def show(data: Mapping[str, str]) -> None:
        nonlocal handle
        if handle is None:
            handle = ipython.display.display(dict(data), raw=True, display_id=True)
        else:
            handle.update(dict(data), raw=True)

    return show


def _notebook() -> Any:
    """The module IPython in a notebook, which has imported it; None elsewhere."""
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    return None if getattr(shell, "kernel", None) is None else ipython  # IPython in a terminal has no kernel


def _table(rows: Sequence[tuple[str, str, str]]) -> str:
    style = "text-align: left; white-space: pre-wrap"
    body = "".join(
        "<tr>" + "".join(f'<td style="{style}">{html.escape(c)}</td>' for c in row) + "</tr>" for row in rows
    )
    return f"<table><tbody>{body}</tbody></table>"


def _lines(rows: Sequence[tuple[str, str, str]]) -> str:
    return "\n".join("  ".join(filter(None, row)) for row in rows)
