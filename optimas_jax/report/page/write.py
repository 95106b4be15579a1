"""``report.html``, the page of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optimas_jax.core.folder.files import write_text
from optimas_jax.report.look.first import MOST, look_first
from optimas_jax.report.page.base import render
from optimas_jax.report.page.sections.bill import bill
from optimas_jax.report.page.sections.changes import changes
from optimas_jax.report.page.sections.flips import flips
from optimas_jax.report.page.sections.head import head
from optimas_jax.report.page.sections.outcomes import blame, failures, scores
from optimas_jax.report.page.sections.pareto import pareto
from optimas_jax.report.page.sections.proposals import proposals
from optimas_jax.report.page.sections.rewards import rewards
from optimas_jax.report.page.sections.score import score
from optimas_jax.report.page.sections.system import system
from optimas_jax.report.page.sections.use import use
from optimas_jax.report.run_files import RunFiles

SECTIONS: Mapping[str, tuple[str, Callable[[RunFiles], Any]]] = {
    "look": ("Look here first", look_first),
    "system": ("The system", system),
    "changes": ("What changed", changes),
    "score": ("Score against cost", score),
    "flips": ("Examples that flipped", flips),
    "kinds": ("Scores in detail", scores),
    "proposals": ("Every proposal", proposals),
    "rewards": ("Local reward against metric", rewards),
    "failures": ("Failures", failures),
    "blame": ("Who is at fault", blame),
    "pareto": ("Score against cost of a run", pareto),
    "bill": ("Bill", bill),
    "use": ("Use it", use),
}
_OPTIONAL = ("kinds", "blame", "pareto")  # sections that are left out where they are empty


def run_page(run: RunFiles, *, root: str = "", running: bool = False) -> str:
    """The page of a run as HTML.

    Args:
      root: path from the folder of the page to the folder of the run, for links to its files: "" or ``../``.
      running: whether a command is working in the folder.
    """
    if running:  # the file that an earlier command left is out of date
        run = dataclasses.replace(run, unfinished=None)
    views = {name: view(run) for name, (_, view) in SECTIONS.items()}
    titles = {name: title for name, (title, _) in SECTIONS.items() if views[name] or name not in _OPTIONAL}
    top = head(run, running=running)
    return render(
        "run.html",
        title=_title(top),
        sections=[("head", "Overview"), *titles.items()],
        anchors={"head": "Overview", **titles},
        shown_examples={flip.anchor for flip in views["flips"].shown},
        run=run,
        most_findings=MOST,
        root=root,
        label=(run.results or {}).get("label") or (run.results or {}).get("split") or "",
        evaluated=str((run.config.get("evaluate") or {}).get("folder") or ""),
        head=top,
        **views,
    )


def write_page(path: Path, run: RunFiles, *, running: bool = False) -> None:
    """Writes the page of a run in one step. A file with the same content stays as it is.

    Raises:
      OSError: it cannot be written.
    """
    root = "" if path.parent == run.folder else "../"
    write_text(path, run_page(run, root=root, running=running))


def _title(top: Any) -> str:
    return f"{top.name}: {top.state}"
