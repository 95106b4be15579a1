"""The page of several runs beside each other."""

from __future__ import annotations

import dataclasses
import itertools
import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from optimas_jax.core.folder.files import FolderError, write_text
from optimas_jax.report.page.base import render
from optimas_jax.report.page.sections import flips as run_flips
from optimas_jax.report.page.sections.values import ValueChange, value_change
from optimas_jax.report.page.svg import interval_bar, span_of
from optimas_jax.report.page.text import interval, signed
from optimas_jax.report.page.write import run_page
from optimas_jax.report.run_files import RunFiles
from optimas_jax.report.show.compare import Comparison, Pair, Value
from optimas_jax.report.show.read import EVALUATIONS, Shown

SECTIONS = (
    ("head", "Overview"),
    ("settings", "Settings that differ"),
    ("starts", "Each against its own start"),
    ("pairs", "Against each other"),
    ("values", "What each ends with"),
    ("bill", "Bill"),
)


@dataclasses.dataclass(frozen=True)
class PairView:
    """A pair with its picture, the examples that are shown, and how many are not."""

    pair: Pair
    bar: Markup
    flips: Sequence[run_flips.Flip]
    left_out: int


@dataclasses.dataclass(frozen=True)
class ValueView:
    """A component, and for each run its letter and its final value compared with the first run's."""

    component: str
    sides: Sequence[tuple[str, ValueChange | None]]


def comparison_page(found: Comparison, folder: Path) -> str:
    """A comparison as HTML.

    Args:
      folder: folder of the page, from which links lead to the pages of the runs.
    """
    span = span_of(bound for pair in found.pairs for bound in (pair.mean or 0.0, *(pair.interval or ())))
    return render(
        "show.html",
        title=f"Runs: {', '.join(shown.name for shown in found.runs)}"[:200],
        sections=SECTIONS,
        found=found,
        links=[link_to(_page_of(shown), folder) for shown in found.runs],
        pairs=[_pair(found, pair, span) for pair in found.pairs],
        values=[_value(found, value) for value in found.values],
    )


def write_comparison(found: Comparison, path: Path | None) -> Path:
    """Writes the page of a comparison.

    Args:
      path: None for a new file beside the folder of the first run, which replaces no other file.

    Returns:
      Path of the page.

    Raises:
      FolderError: it cannot be written, or a file that is no page is in its place.
    """
    try:
        if path is not None:
            check_place(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, comparison_page(found, path.parent))
            return path
        folder = found.runs[0].run.folder.parent
        page = comparison_page(found, folder)
        path = _free(folder, [shown.run.folder.name for shown in found.runs], page)
        write_text(path, page)
        return path
    except OSError as error:
        raise FolderError(f"cannot write the page ({error}): --html=FILE names another place") from error


def write_run(run: RunFiles, path: Path, *, running: bool) -> None:
    """Writes the page of one run to any place.

    Raises:
      FolderError: it cannot be written, or a file that is no page is in its place.
    """
    try:
        check_place(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        root = Path(os.path.relpath(run.folder.resolve(), path.parent.resolve())).as_posix()
        write_text(path, run_page(run, root=f"{urllib.parse.quote(root)}/", running=running))
    except OSError as error:
        raise FolderError(f"cannot write the page ({error}): --html=FILE names another place") from error


def check_place(path: Path) -> None:
    if path.is_dir():
        raise FolderError(f"--html={path} is a folder: name a file in it, such as {path / 'show.html'}")
    if path.exists() and not path.read_bytes()[:15].lower().startswith(b"<!doctype html"):
        raise FolderError(f"--html={path} is there, and is no page: name another file")


def _free(folder: Path, names: Sequence[str], page: str) -> Path:
    """Path of a file that does not exist yet, or that holds the same page."""
    stem = f"show-{'-'.join(names)}"[:120]
    for number in itertools.count(1):
        path = folder / f"{stem}{f'-{number}' if number > 1 else ''}.html"
        if not path.exists() or (path.is_file() and path.read_text(encoding="utf-8", errors="replace") == page):
            return path
    raise AssertionError


def _page_of(shown: Shown) -> Path:
    """The page of a run, or of another evaluation of it."""
    label = (shown.run.results or {}).get("label", "")
    other = shown.run.folder / EVALUATIONS / f"{label}.html"
    return other if shown.name.endswith(f"({label})") and other.is_file() else shown.run.folder / "report.html"


def link_to(file: Path, folder: Path) -> str:
    """A relative address of a file, seen from a folder; "" where there is no such file."""
    if not file.is_file():
        return ""
    return urllib.parse.quote(Path(os.path.relpath(file.resolve(), folder.resolve())).as_posix())


def _pair(comparison: Comparison, pair: Pair, span: tuple[float, float]) -> PairView:
    other = next(shown for shown in comparison.runs if shown.letter == pair.other)
    flipped = run_flips.flips(dataclasses.replace(other.run, examples=[flip.row for flip in pair.flips])).shown
    words = f"{signed(pair.mean)} {interval(pair.interval)}"
    bar = Markup("") if pair.mean is None else interval_bar(pair.mean, pair.interval, span, width=220, words=words)
    return PairView(pair, bar, flipped, len(pair.flips) - len(flipped))


def _value(comparison: Comparison, value: Value) -> ValueView:
    first = value.values[0]
    sides = [
        (shown.letter, None if final is None else value_change(first if index else final, final))
        for index, (shown, final) in enumerate(zip(comparison.runs, value.values, strict=True))
    ]
    return ValueView(value.component, sides)
