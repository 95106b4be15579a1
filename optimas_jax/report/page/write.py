"""``report.html``, the page of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optimas_jax.core.folder.files import write_text
from optimas_jax.report.page.base import render
from optimas_jax.report.page.sections.flips import flips
from optimas_jax.report.page.sections.head import head
from optimas_jax.report.page.sections.proposals import proposals
from optimas_jax.report.run_files import RunFiles

SECTIONS: Mapping[str, tuple[str, Callable[[RunFiles], Any]]] = {
    "proposals": ("Every proposal", proposals),
    "flips": ("Examples that flipped", flips),
}


def run_page(run: RunFiles, *, root: str = "", running: bool = False) -> str:
    """The page of a run as HTML.

    Args:
      root: path from the page's folder to the run's, for links to its files: "" or ``../``.
      running: whether a command is at work in the folder.
    """
    views = {name: view(run) for name, (_, view) in SECTIONS.items()}
    top = head(run, running=running)
    return render(
        "run.html",
        title=_title(top),
        sections=[("head", "Overview"), *((name, title) for name, (title, _) in SECTIONS.items())],
        run=run,
        root=root,
        label=(run.results or {}).get("label") or (run.results or {}).get("split") or "",
        head=top,
        **views,
    )


def write_page(path: Path, run: RunFiles, *, running: bool = False) -> None:
    """Writes the page of a run in one step. A file that holds the same stays as it is.

    Raises:
      OSError: it cannot be written.
    """
    root = "" if path.parent == run.folder else "../"
    write_text(path, run_page(run, root=root, running=running))


def _title(top: Any) -> str:
    return f"{top.name}: {top.state}"
