"""Checksums of the files of a folder. The files are checked before anything reads them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from optimas_jax.core.folder.files import write_json
from optimas_jax.core.text.json_text import check_form, parse_json

_FILE = "checksums.json"


def write_checksums(folder: Path) -> None:
    """Writes the checksums of all files in a folder, below it too."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _FILE)
    write_json(folder / _FILE, {path.relative_to(folder).as_posix(): _sha256(path) for path in files})


def check_files(folder: Path) -> None:
    """Compares the files of a folder with its checksums. A folder of an earlier version has no checksums.

    Raises:
      ValueError: a file is missing or not as it was written; names it.
      OSError: it cannot be read.
    """
    if not (folder / _FILE).exists():
        return
    known = parse_json((folder / _FILE).read_bytes())
    check_form(dict[str, str], known)
    for name, checksum in known.items():
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        if _sha256(folder / name) != checksum:
            raise ValueError(f"{name} is not as it was written")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
