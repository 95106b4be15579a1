"""Large memory pages for arrays on the host. Called before other modules are imported, so it imports nothing slow."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLE = "glibc.malloc.hugetlb"


def use_large_pages(setting: Path = _SETTING) -> None:
    """Restarts the program with a glibc tunable that requests large pages, if Linux provides them on request.

    glibc reads the tunable only when a program starts. With 2 MB pages instead of 4 KB pages, training on CPU is about
    10% faster, other work a few per cent. Does nothing elsewhere, or if ``GLIBC_TUNABLES`` already has the tunable
    (``glibc.malloc.hugetlb=0`` turns large pages off).
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    try:
        on_request = "[madvise]" in setting.read_text(encoding="ascii")
    except OSError:
        return
    if _TUNABLE in tunables or not on_request or platform.libc_ver()[0] != "glibc":
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, f"{_TUNABLE}=1"]))
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - the same program again
