"""Measures what the processes of a program use, from /proc, and ends them."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import stat
from collections.abc import Iterator

DESCRIPTORS = 256  # most open descriptors of a process
FEW_SOCKETS = 8  # up to so many, connections are not read: the kernel takes milliseconds to list them
SOCKET_BYTES = 2 * 212_992  # default size of a socket's buffers, which ``seccomp`` keeps unchanged


def descendants(ancestor: int) -> set[int]:
    """Descendants of a process; empty without /proc. Orphans become children of the supervisor."""
    family: set[int] = set()
    fresh = [ancestor]
    children = _children if os.path.exists(f"/proc/self/task/{os.getpid()}/children") else _children_by_search
    while fresh:
        found = children(fresh.pop()) - family
        family |= found
        fresh += found
    return family


def _children(pid: int) -> set[int]:
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/children") as file:
                found |= set(map(int, file.read().split()))
    return found


def _children_by_search(pid: int) -> set[int]:
    """Like ``_children``, for kernels that do not list children."""
    return {other for other in _all_processes() if _parent(other) == pid}


def tasks_of(user: int) -> int:
    """Number of threads of a user on the machine, all of which the kernel's limit of processes counts."""
    tasks = 0
    for pid in _all_processes():
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{pid}").st_uid == user:
                tasks += len(os.listdir(f"/proc/{pid}/task"))
    return tasks


def memory(pids: set[int], most: int, network: bool = False) -> int:
    """Bytes of memory that processes use, without pages of files. Memory that forked processes share counts once, and a
    socket counts with the size of its buffers. ``network``: whether to add the bytes that wait in TCP connections of
    this network namespace.

    There is no other shared memory (``seccomp``). Shares of memory are slow to read: they are read only if the plain
    sum is above ``most`` and at most twice ``most``, and only until their sum is above ``most``, too.
    """
    used = {pid: _field(pid, "status", ("RssAnon", "VmSwap", "VmPTE")) for pid in pids}
    buffers = _buffers(pids, most)
    if network and buffers > FEW_SOCKETS * SOCKET_BYTES:
        buffers += _queues()
    total = sum(used.values()) + buffers
    if total <= most or total > 2 * most:
        return total
    shares = buffers
    for pid in sorted(pids, key=lambda pid: -used[pid]):
        shares += _shared_out(pid)
        if shares > most:
            break
    return shares


def _buffers(pids: set[int], most: int) -> int:
    """Bytes that sockets of processes may hold; counting ends above ``most``. A process that hides its descriptors
    counts with as many sockets as are allowed. One hidden process is not counted, because it is the tests' own
    (``runner``)."""
    sockets: set[str] = set()
    hidden = -1
    for pid in pids:
        try:
            names = os.listdir(f"/proc/{pid}/fd")
        except PermissionError:
            hidden += 1
            continue
        except OSError:
            continue
        for name in names:
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/{pid}/fd/{name}")
                if target.startswith("socket:"):
                    sockets.add(target)
        if len(sockets) * SOCKET_BYTES > most:
            break
    return (len(sockets) + max(0, hidden) * DESCRIPTORS) * SOCKET_BYTES


def _queues() -> int:
    """Bytes that wait in TCP connections, whose buffers grow beyond the default size."""
    waiting = 0
    for file in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"/proc/self/net/{file}") as lines:
            for line in list(lines)[1:]:
                sent, _, received = line.split()[4].partition(":")
                waiting += int(sent, 16) + int(received, 16)
    return waiting


def _shared_out(pid: int) -> int:
    anonymous = _field(pid, "smaps_rollup", ("Pss_Anon", "SwapPss"))
    if not anonymous:  # not readable: count all its memory
        return _field(pid, "status", ("RssAnon", "VmSwap", "VmPTE"))
    return anonymous + _field(pid, "status", ("VmPTE",))


def _field(pid: int, file: str, names: tuple[str, ...]) -> int:
    """Sum of the named lines of a file of /proc, in bytes; 0 if it cannot be read."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/{file}", encoding="utf-8", errors="replace") as lines:
        rows = (line.split() for line in lines)
        return sum(int(row[1]) * 1024 for row in rows if len(row) > 1 and row[0][:-1] in names)
    return 0


def disk(folders: list[str], pids: set[int], most: int) -> int:
    """Bytes of all files below folders and of deleted ones that processes hold open; counting ends above ``most``."""
    used, seen = 0, set()
    for status in itertools.chain(_files(folders), _deleted(pids)):
        if status.st_ino not in seen:
            seen.add(status.st_ino)
            used += status.st_blocks * 512
        if used > most:
            break
    return used


def _files(folders: list[str]) -> Iterator[os.stat_result]:
    """Status of everything below folders, however deep; every path that is opened is a single name."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    stack: list[int] = []

    def enter(name: str, parent: int | None) -> None:
        with contextlib.suppress(OSError):
            stack.append(os.open(name, flags, dir_fd=parent))

    for name in folders:
        enter(name, None)
    try:
        while stack:
            folder, found = stack.pop(), []
            try:
                with contextlib.suppress(OSError), os.scandir(folder) as entries:
                    for entry in entries:
                        found.append(entry.stat(follow_symlinks=False))
                        if entry.is_dir(follow_symlinks=False):
                            enter(entry.name, folder)
            finally:
                os.close(folder)
            yield from found
    finally:
        for folder in stack:
            os.close(folder)


def _deleted(pids: set[int]) -> Iterator[os.stat_result]:
    for pid in pids:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                status = os.stat(f"/proc/{pid}/fd/{name}")
                if stat.S_ISREG(status.st_mode) and not status.st_nlink:
                    yield status


def kill_user(user: int) -> None:
    """Kills all processes of a user who runs only the program; for root."""
    cleaner = os.fork()
    if cleaner == 0:
        try:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            if user and os.getresuid() == (user, user, user):
                os.kill(-1, signal.SIGKILL)  # all at one moment, so that no process can escape by forking
        finally:
            os._exit(0)
    os.waitpid(cleaner, 0)


def kill_each(pids: set[int]) -> None:
    """Kills processes one by one."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _all_processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()] if os.path.isdir("/proc/self") else []


def _parent(pid: int) -> int:
    """The parent of a living process; 0 for others."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
        state, parent, *_ = file.read().rpartition(b")")[2].decode().split()
        return 0 if state in "ZX" else int(parent)
    return 0
