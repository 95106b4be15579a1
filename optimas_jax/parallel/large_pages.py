"""Large pages for the arrays of the host. Imports nothing heavy: it is called before anything else is loaded."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLE = "glibc.malloc.hugetlb"


def use_large_pages(setting: Path = _SETTING) -> None:
    """Where Linux gives large pages to programs that ask for them, starts this one again so that glibc asks.

    glibc reads the tunable when a program starts and at no other time. With 2 MB pages instead of 4 KB ones training on
    CPU is about a tenth faster, the rest a few hundredths. Elsewhere, and where ``GLIBC_TUNABLES`` names it already (=0
    to do without), this does nothing.
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
