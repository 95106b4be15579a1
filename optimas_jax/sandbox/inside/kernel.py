"""Calls of the C library and the kernel that Python's standard library lacks."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38


def libc(name: str, *arguments: Any) -> int:
    """Calls a function of the C library; raises ``OSError`` where it fails."""
    result = getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}{arguments}: {os.strerror(code)}")
    return result


def prctl(option: int, value: Any, more: Any = 0) -> None:
    """Sets a property of this process; does nothing on systems other than Linux."""
    if sys.platform == "linux":
        libc("prctl", option, value, more, 0, 0)


def hide() -> None:
    """Keeps other processes of this user out of this one's memory, environment and descriptors."""
    prctl(PR_SET_DUMPABLE, 0)
