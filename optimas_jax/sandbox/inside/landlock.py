"""Confines a process without namespaces, by the kernel's Landlock (docs.kernel.org/userspace-api/landlock.html)."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

from .kernel import libc

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same numbers on all architectures
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
ABSTRACT_SOCKETS, SIGNALS = 1, 2  # scopes
SCOPES_SINCE, TRUNCATE_SINCE = 6, 3  # Linux 6.12, 6.2

READ = EXECUTE | READ_FILE | READ_DIR
SPECIAL = 1 << 6 | 1 << 11  # making of character and block devices
ALL = (1 << 16) - 1
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV


def version() -> int:
    """Version of the kernel's interface; 0 without one."""
    try:
        return libc("syscall", CREATE_RULESET, None, 0, 1)
    except (OSError, AttributeError):
        return 0


def _rights() -> int:
    """All rights that this kernel can withhold."""
    newest = {1: 13, 2: 14, 3: 15, 4: 15}.get(version(), 16)
    return (1 << newest) - 1


def opened(paths: Iterable[tuple[str, int]]) -> list[tuple[int, int]]:
    """Descriptors of the paths that exist, with their rights; they must be opened while the paths can be reached."""
    return [
        (os.open(path, os.O_PATH | os.O_CLOEXEC), rights)
        for path, rights in paths
        if os.path.exists(path) and not os.path.islink(path)
    ]


def confine(paths: Iterable[tuple[int, int]]) -> None:
    """Confines this process and its children to these files, without access to processes and sockets outside.

    Args:
      paths: descriptors of ``opened``, which are closed.

    Raises:
      OSError: the kernel has no Landlock.
    """
    all_rights = _rights()
    ruleset = _ruleset(all_rights, ABSTRACT_SOCKETS | SIGNALS)
    for descriptor, rights in paths:
        of_this = rights & all_rights
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            of_this &= OF_FILES
        rule = ctypes.create_string_buffer(struct.pack("=Qi", of_this, descriptor))
        libc("syscall", ADD_RULE, ruleset, 1, rule, 0)
        os.close(descriptor)
    _restrict(ruleset)


def confine_signals() -> bool:
    """Confines the signals of this process to its descendants; returns False if the kernel cannot do that."""
    if version() < SCOPES_SINCE:
        return False
    _restrict(_ruleset(0, SIGNALS))
    try:
        os.kill(os.getppid(), 0)
    except PermissionError:
        return True
    return False


def _ruleset(rights: int, scopes: int) -> int:
    scoped = (0, scopes) if version() >= SCOPES_SINCE else ()  # the second field is for TCP, which seccomp forbids
    fields = (rights, *scoped)
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    return libc("syscall", CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)


def _restrict(ruleset: int) -> None:
    libc("syscall", RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
