"""Configurations and commands that come with the package: inside it where it was installed from a wheel, beside it in a
checkout (and an editable install)."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
INSTALLED = (PACKAGE / "launch").is_dir()  # from a wheel
_FOLDERS = ("configs", "launch")


def folder(name: str) -> Path:
    """The folder ``configs`` or ``launch``."""
    return (PACKAGE if INSTALLED else PACKAGE.parent) / name


def find(path: str | Path) -> Path:
    """The path itself if it is a file; otherwise the file of that name that comes with the package, such as
    ``configs/hotpotqa.py``, or ``optimas_jax/configs/hotpotqa.py`` (``portable``)."""
    parts = Path(path).parts
    if parts[:1] == (PACKAGE.name,):
        parts = parts[1:]
    if os.path.isfile(path) or parts[:1] not in {(name,) for name in _FOLDERS}:
        return Path(path)
    return folder(parts[0]).joinpath(*parts[1:])


def portable(path: str) -> str:
    """The path of a file as a run folder records it. A path inside an installed package begins with the package, so
    that the folder can be read where the package is installed elsewhere."""
    inside = INSTALLED and Path(path).is_absolute() and Path(path).is_relative_to(PACKAGE)
    return Path(path).relative_to(PACKAGE.parent).as_posix() if inside else path


def python_path(inherited: str = "") -> list[str]:
    """``PYTHONPATH`` entries of a process that imports this package. An installed package needs no entry: its folder,
    with all other packages, would come before the standard library."""
    return [*([] if INSTALLED else [str(PACKAGE.parent)]), *filter(None, [inherited])]
