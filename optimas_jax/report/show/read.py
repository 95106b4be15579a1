"""Which runs are shown: folders, or evaluations in them, with a short name for each."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path

from optimas_jax.core.folder.files import FolderError
from optimas_jax.report.run_files import RunFiles, read_run

_FILES = (
    "config.json",
    "journal.jsonl",
    "run.json",
    "results.json",
)  # a folder with one of them is the folder of a run
EVALUATIONS = "evaluations"


@dataclasses.dataclass(frozen=True)
class Shown:
    """A run that is shown.

    Attributes:
      letter: ``A`` for the first run.
      name: name of its folder, with as much of the path as distinguishes it from the others, and the label of its
        evaluation where one was given.
      run: its files.
    """

    letter: str
    name: str
    run: RunFiles


def read_runs(arguments: Sequence[str], label: str = "") -> list[Shown]:
    """Reads the runs of a command line, in their order, each once.

    Args:
      arguments: folders of runs, their ``best/``, or files ``evaluations/LABEL.json`` in them.
      label: of the evaluation, for arguments that name none.

    Raises:
      FolderError: a folder is missing, has no run or no such evaluation, or a file in it is damaged.
    """
    places = list(dict.fromkeys(_place(argument, label) for argument in arguments))
    names = _names(places)
    runs = [read_run(folder, own_label) for folder, own_label in places]
    return [Shown(_letter(index), name, run) for index, (name, run) in enumerate(zip(names, runs, strict=True))]


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"R{index + 1}"


def _place(argument: str, label: str) -> tuple[Path, str]:
    """The folder of a run and the label of an evaluation, "" for its own."""
    try:
        path = Path(argument).resolve()
        if path.suffix in (".json", ".jsonl", ".html") and path.parent.name == EVALUATIONS:
            path, label = path.parents[1], path.stem
        elif path.is_file() or path.name == "best":
            path = path.parent
        if not path.is_dir():
            raise FolderError(f"there is no folder {argument!r}{_near(path)}")
        if not any((path / name).is_file() for name in _FILES):
            raise FolderError(f"{argument!r} is no folder of a run: it has none of {', '.join(_FILES)}{_inside(path)}")
        known = sorted(file.stem for file in (path / EVALUATIONS).glob("*.json"))
    except (OSError, ValueError) as error:  # a name that no file can have
        raise FolderError(f"cannot read {argument[:200]!r} ({error})") from error
    if label and label not in known:
        raise FolderError(f"{argument!r} has no evaluation {label!r}: it has {', '.join(known) or 'none'}")
    return path, label


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = [folder.name for folder in path.parent.iterdir() if folder.is_dir()]
    near = difflib.get_close_matches(path.name, names, 3, 0.5) or sorted(names)[:5]
    return f"; beside it are {', '.join(near)}" if near else ""


def _inside(path: Path) -> str:
    runs = sorted(folder.name for folder in path.iterdir() if any((folder / name).is_file() for name in _FILES))[:5]
    return f"; there are runs in it: {', '.join(runs)}" if runs else ""


def _names(places: Sequence[tuple[Path, str]]) -> list[str]:
    """The last parts of each path, as few as distinguish the folders."""
    folders = {folder for folder, _ in places}
    most = max(len(folder.parts) for folder in folders)
    parts = next((n for n in range(1, most) if len({folder.parts[-n:] for folder in folders}) == len(folders)), most)
    return ["/".join(folder.parts[-parts:]) + f" ({label})" * bool(label) for folder, label in places]
