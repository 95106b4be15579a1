"""``control.json``: a wish (pause, resume, stop) for the command that runs in a folder.

The command looks for the file and removes it. No signal is sent, so that only this command can be stopped, on whatever
machine it runs.

A wish names the command (``Status.id``). A command that was started later does not take it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import sys
from pathlib import Path
from typing import Literal, get_args

from optimas_jax.core.folder.files import FolderError, json_line, read_file, write_text

CONTROL = "control.json"
LOCK = ".lock"  # of a run folder, held by the process that runs in it
Wish = Literal["pause", "resume", "stop"]
WISHES: tuple[Wish, ...] = get_args(Wish)
_LINUX = "hhqqi4x"  # struct flock: type, whence, start, length, process
_OTHERS = "qqihh"  # start, length, process, type, whence


def ask(folder: Path, command: str, wish: Wish) -> None:
    """Leaves a wish for a command in its folder.

    Raises:
      FolderError: the folder cannot be written.
    """
    try:
        write_text(folder / CONTROL, json_line({"id": command, "wish": wish}) + "\n")
    except OSError as error:
        raise FolderError(f"cannot write {folder / CONTROL} ({error}), and so the run cannot be told") from error


def take(folder: Path, command: str) -> Wish | None:
    """Removes the wish from a folder, and returns it if it is for this command, else None. A damaged file is removed,
    too."""
    path = folder / CONTROL
    if not path.exists():
        return None
    try:
        data = read_file(path)
    except FolderError:
        data = None
    with contextlib.suppress(OSError):
        path.unlink()
    return data["wish"] if data and data["id"] == command else None


def is_locked(folder: Path) -> bool | None:
    """Whether another process holds the lock of a run folder; None where that cannot be known."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        form = _LINUX if sys.platform == "linux" else _OTHERS
        kind = 0 if sys.platform == "linux" else 3
        request = [0] * 5
        request[kind] = fcntl.F_WRLCK
        answer = struct.unpack(form, fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(form, *request)))
        return answer[kind] != fcntl.F_UNLCK
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(descriptor)
